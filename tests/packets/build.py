# SPDX-License-Identifier: Apache-2.0
"""A small builder of packets. Lengths and checksums are right unless a keyword says otherwise."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from lb.model import Address
from tests.model.checksum import checksum, ones_complement_sum, pseudo_header, transport_checksum

CLIENT, CLIENT6 = "192.0.2.7", "2001:db8:c::7"
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}


class Segment:
    """A transport header with its payload, waiting for the addresses that its checksum needs."""

    def __init__(self, protocol: int, data: bytes, checksum_at: int | None, check: int | str | None) -> None:
        self.protocol = protocol
        self.data = data
        self.checksum_at = checksum_at
        self.check = check

    def bytes(self, source: Address, destination: Address) -> bytes:
        at = self.checksum_at
        if at is None:
            return self.data
        if self.check == "partial":  # what a sender leaves to its NIC
            value = ones_complement_sum(pseudo_header(source, destination, self.protocol, len(self.data)))
        elif isinstance(self.check, int):
            value = self.check
        else:
            value = transport_checksum(source, destination, self.protocol, self.data)
        return self.data[:at] + value.to_bytes(2, "big") + self.data[at + 2 :]


def tcp(
    flags: str = "S",
    payload: bytes = b"",
    *,
    sport: int = 40_000,
    dport: int = 80,
    seq: int = 1000,
    ack: int = 0,
    options: bytes = b"",
    offset: int | None = None,
    urgent: int = 0,
    check: int | str | None = None,
) -> Segment:
    """``offset``: of the data, in words; ``check``: a number, or ``"partial"``."""
    assert len(options) % 4 == 0
    words = offset if offset is not None else 5 + len(options) // 4
    header = (
        sport.to_bytes(2, "big")
        + dport.to_bytes(2, "big")
        + seq.to_bytes(4, "big")
        + ack.to_bytes(4, "big")
        + bytes([words << 4, sum(FLAGS[flag] for flag in flags)])
        + b"\xfa\xf0\0\0"
        + urgent.to_bytes(2, "big")
    )
    return Segment(6, header + options + payload, 16, check)


def udp(
    payload: bytes = b"question",
    *,
    sport: int = 40_000,
    dport: int = 53,
    length: int | None = None,
    check: int | str | None = None,
) -> Segment:
    """``check`` 0: the sender computed none (RFC 768)."""
    total = 8 + len(payload) if length is None else length
    header = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + total.to_bytes(2, "big") + b"\0\0"
    return Segment(17, header + payload, 6, check)


def raw(protocol: int, data: bytes) -> Segment:
    """Any protocol, bytes as they are."""
    return Segment(protocol, data, None, None)


class Icmp(Segment):
    """ICMP, whose checksum knows no addresses; and ICMPv6, whose does."""

    def bytes(self, source: Address, destination: Address) -> bytes:
        before = pseudo_header(source, destination, 58, len(self.data)) if self.protocol == 58 else b""
        value = self.check if isinstance(self.check, int) else checksum(before + self.data)
        return self.data[:2] + value.to_bytes(2, "big") + self.data[4:]


def icmp(
    kind: int,
    code: int = 0,
    rest: int = 0,
    data: bytes = b"",
    *,
    six: bool = False,
    check: int | None = None,
) -> Segment:
    """``rest``: bytes 4 to 7 of the header; ``data``: what is behind them, such as a quoted packet."""
    return Icmp(58 if six else 1, bytes([kind, code, 0, 0]) + rest.to_bytes(4, "big") + data, 2, check)


def ping(data: bytes = b"ping", *, six: bool = False, check: int | None = None) -> Segment:
    return icmp(128 if six else 8, rest=1 << 16 | 1, data=data, six=six, check=check)


def ipv4(
    segment: Segment,
    *,
    to: str = "203.0.113.10",
    source: str = CLIENT,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0x1234,
    df: bool = True,
    mf: bool = False,
    offset: int = 0,
    options: bytes = b"",
    version: int = 4,
    ihl: int | None = None,
    total: int | None = None,
    check: int | None = None,
) -> bytes:
    """``offset``: of a fragment, in units of 8 bytes."""
    assert len(options) % 4 == 0
    a, b = IPv4Address(source), IPv4Address(to)
    payload = segment.bytes(a, b)
    words = 5 + len(options) // 4
    header = (
        bytes([version << 4 | (words if ihl is None else ihl), tos])
        + (words * 4 + len(payload) if total is None else total).to_bytes(2, "big")
        + ident.to_bytes(2, "big")
        + (df << 14 | mf << 13 | offset).to_bytes(2, "big")
        + bytes([ttl, segment.protocol, 0, 0])
        + a.packed
        + b.packed
        + options
    )
    value = checksum(header) if check is None else check
    return header[:10] + value.to_bytes(2, "big") + header[12:] + payload


def extension(units: int = 0, fill: int = 1) -> bytes:
    """An IPv6 extension header of 8 + 8 * units bytes without its first byte; padding inside."""
    body = 6 + 8 * units
    return bytes([units, fill, body - 2 if fill == 1 else 0]) + bytes(body - 2)


def ipv6(
    segment: Segment,
    *,
    to: str = "2001:db8:f::10",
    source: str = CLIENT6,
    hops: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
    extensions: tuple[tuple[int, bytes], ...] = (),
    version: int = 6,
    length: int | None = None,
) -> bytes:
    """``extensions``: protocol number and bytes without the first (the next header) of each."""
    a, b = IPv6Address(source), IPv6Address(to)
    numbers = [number for number, _ in extensions] + [segment.protocol]
    chain = b"".join(bytes([following]) + body for (_, body), following in zip(extensions, numbers[1:], strict=True))
    payload = chain + segment.bytes(a, b)
    first = version << 28 | traffic_class << 20 | flow_label
    total = len(payload) if length is None else length
    return (
        first.to_bytes(4, "big") + total.to_bytes(2, "big") + bytes([numbers[0], hops]) + a.packed + b.packed + payload
    )


ROUTER_MAC, MUX_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def ethernet(packet: bytes, *, ethertype: int | None = None, pad: int = 0) -> bytes:
    """As it comes from the router; ``pad``: bytes behind the packet."""
    if ethertype is None:
        ethertype = 0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800
    return MUX_MAC + ROUTER_MAC + ethertype.to_bytes(2, "big") + packet + b"\xee" * pad
