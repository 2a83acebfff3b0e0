# SPDX-License-Identifier: Apache-2.0
"""Hears from the kernel that something was changed, and by whom: links, addresses, routes, rules, filters, nftables.

A notice is only a hint to look again (:mod:`lb.daemon.kernel.keeper` does): its contents are read no further than
needed to tell whose it is. What this daemon changes itself makes no hint: netlink requests are known by the port of
their socket, runs of ``nft`` by their process (:class:`OwnMarks`). Where the kernel had to drop notices, everything
counts as changed. Settings below ``/proc/sys`` have no notices; whoever keeps them compares them now and then.

In the event loop's thread; needs CAP_NET_ADMIN for nftables.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from lb.daemon.kernel.netlink_bytes import attributes, messages
from lb.errors import IoError

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_NETFILTER = 12
_RECEIVE_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33
_GENERIC = 4  # struct nfgenmsg
_RTMSG_PROTOCOL = 5  # offset in struct rtmsg
_NFTABLES = 10  # subsystem, in the upper byte of the type
_NFNLGRP_NFTABLES = 7
_NFT_MSG_NEWGEN = 15
_TABLE, _PROC_PID, _PROC_NAME = 1, 2, 3  # every object of nftables names its table first; of NEWGEN: who


class Area(enum.Flag):
    """What a notice may be about."""

    LINK = enum.auto()
    ADDRESS = enum.auto()
    ROUTE = enum.auto()
    RULE = enum.auto()
    FILTER = enum.auto()  #: qdiscs and filters of ``tc``
    NFTABLES = enum.auto()


NOTHING = Area(0)
EVERYTHING = ~NOTHING
_OF_ROUTING = EVERYTHING & ~Area.NFTABLES

#: rtnetlink's multicast groups, as <linux/rtnetlink.h> numbers them (RTNLGRP_*).
_GROUPS = {
    Area.LINK: (1,),
    Area.FILTER: (4,),
    Area.ADDRESS: (5, 9),
    Area.ROUTE: (7, 11),
    Area.RULE: (8, 19),
}
#: RTM_NEW*, RTM_DEL*.
_KINDS = {
    **dict.fromkeys((16, 17), Area.LINK),
    **dict.fromkeys((20, 21), Area.ADDRESS),
    **dict.fromkeys((24, 25), Area.ROUTE),
    **dict.fromkeys((32, 33), Area.RULE),
    **dict.fromkeys((36, 37, 44, 45), Area.FILTER),
}


@dataclass(frozen=True, slots=True)
class ChangingProgram:
    """Who changed something, as far as the kernel tells."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(slots=True)
class OwnMarks:
    """By what this daemon's own changes are known. Whoever makes changes adds to it, before it makes them."""

    ports: set[int] = field(default_factory=set)  #: of netlink sockets: ``socket.getsockname()[0]``
    processes: set[int] = field(default_factory=set)  #: of ``nft``; take them out some time after they have ended


@dataclass(slots=True)
class KernelNotices:
    """What was heard since the last :meth:`KernelWatch.take`."""

    areas: Area = NOTHING
    programs: dict[Area, ChangingProgram] = field(
        default_factory=dict
    )  #: the last one, of each area where one is known

    def add(self, areas: Area, program: ChangingProgram | None = None) -> None:
        self.areas |= areas
        if program is not None:
            self.programs[areas] = program

    def program(self, areas: Area) -> ChangingProgram | None:
        """Who changed something of these."""
        return next((program for area, program in self.programs.items() if area & areas), None)


class KernelWatch:
    """Listens from :meth:`start` to :meth:`close`; :attr:`noticed` is set when there is something to take."""

    def __init__(
        self, areas: Area, *, own: OwnMarks | None = None, tables: Collection[str] = (), protocols: Collection[int] = ()
    ) -> None:
        """``tables``: names of the nftables tables to hear of, in any family. ``protocols``: of routes; none: all."""
        self.noticed = asyncio.Event()
        self._areas = areas
        self._own = own if own is not None else OwnMarks()
        self._tables = frozenset(name.encode() for name in tables)
        self._protocols = frozenset(protocols)
        self._notices = KernelNotices()
        self._sockets: list[socket.socket] = []
        self._touched = False  # the transaction that is being told of is about a table of ours

    def start(self) -> None:
        """Raises IoError."""
        loop = asyncio.get_running_loop()
        try:
            groups = [group for area, group in _GROUPS.items() if area & self._areas]
            if groups:
                routing = self._open(socket.NETLINK_ROUTE, [number for group in groups for number in group])
                loop.add_reader(routing.fileno(), self._read, routing, _OF_ROUTING, self._note_routing)
            if Area.NFTABLES & self._areas:
                rules = self._open(_NETLINK_NETFILTER, [_NFNLGRP_NFTABLES])
                loop.add_reader(rules.fileno(), self._read, rules, Area.NFTABLES, self._note_rules)
        except OSError as error:
            self.close()
            reason = (error.strerror or str(error)).lower()
            raise IoError(f"cannot listen to what other programs change in this kernel: {reason}") from None

    def close(self) -> None:
        for opened in self._sockets:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                asyncio.get_running_loop().remove_reader(opened.fileno())
            opened.close()
        self._sockets = []

    def take(self) -> KernelNotices:
        """What was heard; begins anew."""
        self.noticed.clear()
        taken, self._notices = self._notices, KernelNotices()
        return taken

    def _open(self, family: int, groups: Collection[int]) -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, family)
        self._sockets.append(opened)
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:  # of a user namespace's root
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        opened.bind((0, 0))
        for group in groups:
            opened.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        return opened

    # -- notices ------------------------------------------------------------------------------------------------

    def _read(self, opened: socket.socket, areas: Area, note: Callable[[int, int, bytes], None]) -> None:
        try:
            while True:
                for kind, _, port, body in messages(opened.recv(1 << 16)):
                    note(kind, port, body)
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: the kernel dropped notices; what it still has comes with the next turn
            self._touched = False
            self._notices.add(areas & self._areas)
        if self._notices.areas:
            self.noticed.set()

    def _note_routing(self, kind: int, port: int, body: bytes) -> None:
        area = _KINDS.get(kind)
        if area is None or port in self._own.ports:
            return
        if area is Area.ROUTE and self._protocols and body[_RTMSG_PROTOCOL] not in self._protocols:
            return
        self._notices.add(area, _program_of(port))

    def _note_rules(self, kind: int, port: int, body: bytes) -> None:
        """A transaction is told of object by object; who made it comes last."""
        del port
        found = attributes(body[_GENERIC:])
        if kind != _NFTABLES << 8 | _NFT_MSG_NEWGEN:
            self._touched = self._touched or found.get(_TABLE, b"").rstrip(b"\0") in self._tables
            return
        touched, self._touched = self._touched, False
        pid = int.from_bytes(found.get(_PROC_PID, b""))
        if touched and pid not in self._own.processes:
            name = found.get(_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
            self._notices.add(Area.NFTABLES, ChangingProgram(name, pid) if name else None)


def _program_of(port: int) -> ChangingProgram | None:
    """Most programs get their process's number as port, and many are still there; 0 is the kernel itself."""
    if not 0 < port < 1 << 22:
        return None
    try:
        return ChangingProgram(Path(f"/proc/{port}/comm").read_text().strip(), port)
    except OSError:
        return None
