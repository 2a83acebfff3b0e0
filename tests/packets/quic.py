# SPDX-License-Identifier: Apache-2.0
"""Packets of QUIC, whose connection ids say which backend they are of (QUIC-LB, RFC 8999)."""

from __future__ import annotations

from itertools import count

from lb.quic_ids import ConnectionIds, server_id_of
from tests.packets.build import ipv4, ipv6, udp
from tests.packets.world import DRAINED, FRESH, FRESH6, NAMED, NAMED6, Row, forwards

VIP, VIP6 = "203.0.113.220", "2001:db8:f::20"
REST = bytes(range(32))


def minted(server_id: str, number: int = 1) -> bytes:
    return ConnectionIds(number, bytes.fromhex(server_id)).mint(bytes(range(12)))


def long_header(connection_id: bytes, version: int = 1, length: int | None = None) -> bytes:
    size = len(connection_id) if length is None else length
    return b"\xe3" + version.to_bytes(4, "big") + bytes([size]) + connection_id + REST


def short_header(connection_id: bytes) -> bytes:
    return b"\x43" + connection_id + REST


#: Each row is a flow of its own, for over a wire they come to one MUX, which remembers what an id names.
PORTS = count(41_000)


def four(claim: str, datagram: bytes, backend: str) -> Row:
    return forwards(claim, ipv4(udp(datagram, sport=next(PORTS), dport=443), to=VIP), backend)


def six(claim: str, datagram: bytes, backend: str) -> Row:
    return forwards(claim, ipv6(udp(datagram, sport=next(PORTS), dport=443), to=VIP6), backend)


OTHER = minted("0a000002")
SHORT_IDS = ConnectionIds(2, server_id_of(NAMED, 1), nonce_bytes=7)

ROWS = (
    four("a short header goes to whom its connection id names", short_header(OTHER), NAMED),
    four("a long header goes to whom its connection id names", long_header(OTHER), NAMED),
    four("a version of QUIC that nobody knows has its id in the same place", long_header(OTHER, 0xFACEB00C), NAMED),
    four("version negotiation has it there, too", long_header(OTHER, 0), NAMED),
    four("an id may have more than names its server", long_header(OTHER + b"abc"), NAMED),
    four("a datagram may end with its connection id", short_header(OTHER)[: 1 + len(OTHER)], NAMED),
    four("a server id that nobody gave is made of the name", long_header(SHORT_IDS.mint(bytes(7))), NAMED),
    four("a backend that drains gets what names it", short_header(minted("0a000003")), DRAINED),
    four("a backend that is down gets nothing, whoever names it", short_header(minted("0a000004")), FRESH),
    four("an id of no backend is balanced", short_header(minted("0a0000ff")), FRESH),
    four("an id of a configuration that is not there is balanced", short_header(minted("0a000002", 3)), FRESH),
    four("an id that says it is of none is balanced", short_header(b"\xf0" + OTHER[1:]), FRESH),
    four("an id that a client made up is balanced", long_header(b"\xaa" * 8), FRESH),
    four("an id that is too short is balanced", long_header(OTHER[:-1]), FRESH),
    four("a long header without an id is balanced", long_header(b""), FRESH),
    four("an id longer than its datagram is balanced", long_header(OTHER, length=255), FRESH),
    four("a datagram that ends within its id is balanced", short_header(OTHER)[: len(OTHER)], FRESH),
    four("a datagram of one byte is balanced", b"\x43", FRESH),
    four("a long header of five bytes is balanced", long_header(OTHER)[:5], FRESH),
    four("a long header of six bytes is balanced", long_header(OTHER)[:6], FRESH),
    four("a datagram without a byte is balanced", b"", FRESH),
    six("a short header over IPv6 goes to whom its connection id names", short_header(OTHER), NAMED6),
    six("a long header over IPv6 goes to whom its connection id names", long_header(OTHER), NAMED6),
    six("an id of no backend is balanced over IPv6", short_header(minted("0a0000ff")), FRESH6),
)
