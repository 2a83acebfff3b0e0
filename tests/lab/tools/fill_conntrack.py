# SPDX-License-Identifier: Apache-2.0
"""Fills this network namespace's table of connections, or (``flush``) empties it. Needs CAP_NET_ADMIN.

Entries are made over ctnetlink, as many as the kernel allows: answered UDP flows of as many clients, which it does not
throw out for newcomers. No packet is sent.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from lb.daemon.kernel.netlink_bytes import HEADER, NESTED, attribute

_NETLINK_NETFILTER, _SUBSYSTEM, _NEW, _DELETE = 12, 1 << 8, 0, 2
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _TIMEOUT = 1, 2, 3, 7
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_ASSURED = 2 | 4 | 8  # it was answered, it is assured, it is confirmed
_SECONDS = 3600
#: Messages of one system call.
_BATCH = 400
_CLIENTS = IPv4Address("100.64.0.0")
_SERVER = IPv4Address("192.0.2.1").packed


def main(command: str) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if command == "flush":
            kernel.send(_message(_DELETE, _REQUEST | _ACK, b""))
            kernel.recv(1 << 16)
            return
        most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        for batch in _batches(most):
            kernel.send(batch)


def _batches(count: int) -> Iterator[bytes]:
    for first in range(0, count, _BATCH):
        yield b"".join(_message(_NEW, _REQUEST | _CREATE, _flow(n)) for n in range(first, min(first + _BATCH, count)))


def _flow(number: int) -> bytes:
    client = (_CLIENTS + number).packed
    return _FRONT + client + _BETWEEN + client + _BACK


def _tuple(kind: int, source: bytes, destination: bytes) -> bytes:
    addresses = attribute(1, source) + attribute(2, destination)
    ports = attribute(1, bytes([socket.IPPROTO_UDP])) + attribute(2, (53).to_bytes(2)) + attribute(3, (53).to_bytes(2))
    return attribute(kind | NESTED, attribute(_TUPLE_IP | NESTED, addresses) + attribute(_TUPLE_PROTO | NESTED, ports))


def _message(command: int, flags: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + attributes
    return HEADER.pack(HEADER.size + len(body), _SUBSYSTEM | command, flags, 0, 0) + body


#: All of an entry but the client's address, which stands in it twice.
_MARK = b"\xff\xfe\xfd\xfc"
_FRONT, _BETWEEN, _BACK = (
    _tuple(_TUPLE_ORIG, _MARK, _SERVER)
    + _tuple(_TUPLE_REPLY, _SERVER, _MARK)
    + attribute(_STATUS, _ASSURED.to_bytes(4))
    + attribute(_TIMEOUT, _SECONDS.to_bytes(4))
).split(_MARK)

if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fill")
