# SPDX-License-Identifier: Apache-2.0
"""Cuts what the kernel sends over netlink into messages, and those into attributes, as <linux/netlink.h> lays them out.

For where pyroute2 is too slow or knows nothing of it: notices (:mod:`lb.daemon.kernel.watch`), routes and rules
(:mod:`lb.daemon.kernel.routes`, :mod:`lb.daemon.kernel.main_rule`, :mod:`lb.mux.hops.netlink`), conntrack
(:mod:`agent.host.conntrack`), the number of the ruleset (:mod:`lb.daemon.kernel.nftables`). Pure, native byte order;
what is cut short ends the list.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")  #: struct nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  #: struct nlattr: length, type
#: Set in the type of an attribute that holds others, or a number in network order.
NESTED, _NET_BYTEORDER = 0x8000, 0x4000
_TYPE = ~(NESTED | _NET_BYTEORDER) & 0xFFFF


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, sequence number, port and body of each of one read."""
    for kind, _, sequence, port, start, end in _cuts(data):
        yield kind, sequence, port, data[start + HEADER.size : end]


def flags(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and body, for who must know whether a list is whole."""
    for kind, said, _, _, start, end in _cuts(data):
        yield kind, said, data[start + HEADER.size : end]


def with_headers(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type of each, and all of it, for who hands some on to another parser."""
    for kind, _, _, _, start, end in _cuts(data):
        yield kind, data[start:end]


def _cuts(data: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Type, flags, sequence number and port of each, and where it begins and ends."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, said, sequence, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, said, sequence, port, offset, offset + length
        offset += _aligned(length)


def attributes(data: bytes) -> dict[int, bytes]:
    """By type; of one that comes twice the last."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & _TYPE] = data[offset + ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """Padded, so that another may follow."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
