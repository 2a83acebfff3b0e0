# SPDX-License-Identifier: Apache-2.0
"""The kernel's routes of one protocol number ("who installed it"), asked for so that the kernel does the choosing.

A machine that speaks BGP has routes by the ten thousand, and looking at all of them for a few of ours takes seconds of
a daemon that has other things to do. With strict checking (Linux 4.20) the kernel tells ours alone.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from lb.daemon.kernel.netlink_bytes import HEADER, attributes, flags, messages
from lb.errors import IoError
from lb.model import Network

_SOL_NETLINK = 270
_NETLINK_GET_STRICT_CHK = 12
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP = 0x1 | 0x300
_INTERRUPTED = 0x10
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 6, 15
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """One route."""

    network: Network
    kind: int  #: RTN_*: 1 unicast, 2 local, 6 blackhole
    table: int
    ifindex: int  #: 0 where it leaves by none, or by several
    metric: int


class RoutesOf:
    """The routes of one protocol; keeps a socket."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._socket: socket.socket | None = None

    def dump(self, family: int = socket.AF_INET) -> bytes:
        """All of them as the kernel tells them, for :func:`parse`. Raises IoError.

        Two answers are equal only if nothing has changed between, and mostly are if so: to compare ten thousand routes
        takes a tenth of the time that reading them takes.
        """
        for _ in range(_ATTEMPTS):
            try:
                answer = self._ask(family)
            except OSError as error:
                self.close()
                reason = (error.strerror or str(error)).lower()
                raise IoError(f"cannot ask the kernel for its routes: {reason}") from None
            if answer is not None:
                return answer
        raise IoError("cannot ask the kernel for its routes: they change while they are listed")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, family: int) -> bytes | None:
        """None: the routes changed meanwhile, and the answer may not be whole."""
        if self._socket is None:
            self._socket = _open()
        question = _ROUTE.pack(family, 0, 0, 0, 0, self._protocol, 0, 0, 0)
        self._socket.send(HEADER.pack(HEADER.size + len(question), _RTM_GETROUTE, _REQUEST_DUMP, 1, 0) + question)
        parts: list[bytes] = []
        whole, ended = True, False
        while not ended:
            data = self._socket.recv(1 << 17)
            undisturbed, ended = _read(data)
            whole = whole and undisturbed
            parts.append(data)
        return b"".join(parts) if whole else None


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        opened.settimeout(2.0)
        opened.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        opened.bind((0, 0))
    except OSError:
        opened.close()
        raise
    return opened


def parse(answer: bytes) -> list[KernelRoute]:
    """What :meth:`RoutesOf.dump` has answered."""
    return [_route(body) for kind, _, _, body in messages(answer) if kind == _RTM_NEWROUTE]


def _read(data: bytes) -> tuple[bool, bool]:
    """Whether nothing changed meanwhile, and whether this was the last part. Raises OSError."""
    undisturbed, ended = True, False
    for kind, said, body in flags(data):
        undisturbed = undisturbed and not said & _INTERRUPTED
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            raise OSError(code, os.strerror(code))
        ended = ended or kind == _NLMSG_DONE
    return undisturbed, ended


def _route(body: bytes) -> KernelRoute:
    family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    found = attributes(body[_ROUTE.size :])

    def number_of(attribute: int, default: int = 0) -> int:
        value = found.get(attribute)
        return int.from_bytes(value, sys.byteorder) if value is not None else default

    width = 4 if family == socket.AF_INET else 16
    address = found.get(_RTA_DST, bytes(width))
    network: Network = IPv4Network((address, length)) if width == 4 else IPv6Network((address, length))
    return KernelRoute(network, kind, number_of(_RTA_TABLE, table), number_of(_RTA_OIF), number_of(_RTA_PRIORITY))
