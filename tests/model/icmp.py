# SPDX-License-Identifier: Apache-2.0
"""ICMP and ICMPv6 at a MUX, from RFC 792, 1122, 1812, 4443, 4884, 9293: what an error is about, what is answered.

Whole packets are put together from fields; nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lb.model import Address, Unserved
from tests.model.checksum import checksum, pseudo_header, transport_checksum
from tests.model.read import EXTENSIONS, FRAGMENT, ICMP, ICMPV6, MAX_EXTENSIONS, TCP, UDP, Header

ANSWER_TTL = 64
ECHO, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
#: Unreachable, time exceeded, parameter problem (RFC 792, 1812); and packet too big of ICMPv6.
ABOUT_FLOWS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
#: Whoever gets one of these asked for it: echo, timestamp, information, address mask.
QUERIES = {4: (8, 13, 15, 17), 6: (128,)}
AT_ONCE = 50


@dataclass(frozen=True)
class Subject:
    """The flow that an error is about, as its client's packets have it."""

    protocol: int
    client: tuple[Address, int]
    vip: tuple[Address, int]


def message_of(packet: bytes, header: Header) -> bytes:
    return packet[header.transport : header.length]


def is_echo(packet: bytes, header: Header) -> bool:
    message = message_of(packet, header)
    if header.protocol != (ICMP if header.version == 4 else ICMPV6):
        return False
    if len(message) < 8 or message[0] != ECHO[header.version] or message[1]:
        return False
    return icmp_checksum(header.source, header.destination, message) == 0


def icmp_checksum(source: Address, destination: Address, message: bytes) -> int:
    """RFC 4443, 2.3: that of ICMPv6 covers the pseudo-header too."""
    before = pseudo_header(source, destination, ICMPV6, len(message)) if source.version == 6 else b""
    return checksum(before + message)


def subject(packet: bytes, header: Header) -> Subject | str:
    """What the error is about, or the reason why it goes nowhere."""
    message, version = message_of(packet, header), header.version
    if header.protocol != (ICMP if version == 4 else ICMPV6) or len(message) < 8:
        return "bad_icmp"
    if message[0] not in ABOUT_FLOWS[version]:
        return "icmp"
    quoted = message[8:]
    at = _quoted_transport4(quoted) if version == 4 else _quoted_transport6(quoted)
    if at is None:
        return "bad_icmp"
    start, protocol = at
    if protocol not in (TCP, UDP) or len(quoted) < start + 8:
        return "bad_icmp"
    source, destination = (
        (IPv4Address(quoted[12:16]), IPv4Address(quoted[16:20]))
        if version == 4
        else (IPv6Address(quoted[8:24]), IPv6Address(quoted[24:40]))
    )
    if source != header.destination:
        return "icmp_stranger"
    ports = int.from_bytes(quoted[start : start + 2]), int.from_bytes(quoted[start + 2 : start + 4])
    return Subject(protocol, (destination, ports[1]), (source, ports[0]))


def _quoted_transport4(quoted: bytes) -> tuple[int, int] | None:
    if len(quoted) < 20 or quoted[0] >> 4 != 4 or quoted[0] & 15 < 5:
        return None
    later = int.from_bytes(quoted[6:8]) & 0x1FFF
    return None if later else ((quoted[0] & 15) * 4, quoted[9])


def _quoted_transport6(quoted: bytes) -> tuple[int, int] | None:
    if len(quoted) < 40 or quoted[0] >> 4 != 6:
        return None
    at, protocol, seen = 40, quoted[6], 0
    while protocol in (*EXTENSIONS, FRAGMENT):
        if seen == MAX_EXTENSIONS or len(quoted) < at + 8:
            return None
        if protocol == FRAGMENT and int.from_bytes(quoted[at + 2 : at + 4]) >> 3:
            return None
        size = 8 if protocol == FRAGMENT else 8 + 8 * quoted[at + 1]
        protocol, at, seen = quoted[at], at + size, seen + 1
    return at, protocol


# ---- answers ----


def answerable(packet: bytes, header: Header) -> bool:
    """RFC 1812, 4.3.2.7 and RFC 4443, 2.4(e)."""
    if header.protocol == FRAGMENT or (header.version == 4 and int.from_bytes(packet[6:8]) & 0x1FFF):
        return False  # a later fragment
    if header.version == 4 and (int(header.source) >> 28 >= 14 or int(header.source) >> 24 in (0, 127)):
        return False
    if header.version == 6 and (header.source.is_multicast or header.source.is_unspecified):
        return False
    if header.protocol != (ICMP if header.version == 4 else ICMPV6):
        return True
    message = message_of(packet, header)
    return len(message) >= 8 and message[0] in QUERIES[header.version]


def _ip(ends: tuple[Address, Address], protocol: int, tos: int, ident: int, payload: bytes) -> bytes:
    source, destination = ends
    if source.version == 6:
        first = (6 << 28 | tos << 20).to_bytes(4)
        return (
            first
            + len(payload).to_bytes(2)
            + bytes([protocol, ANSWER_TTL])
            + source.packed
            + destination.packed
            + payload
        )
    header = (
        bytes([0x45, tos])
        + (20 + len(payload)).to_bytes(2)
        + ident.to_bytes(2)
        + bytes([0, 0, ANSWER_TTL, protocol, 0, 0])
        + source.packed
        + destination.packed
    )
    return header[:10] + checksum(header).to_bytes(2) + header[12:] + payload


def _icmp(source: Address, destination: Address, start: bytes, rest: bytes) -> bytes:
    value = icmp_checksum(source, destination, start + b"\0\0" + rest)
    return start + value.to_bytes(2) + rest


def error(packet: bytes, source: Address, kind: tuple[int, int], rest: int, ident: int) -> bytes:
    """An ICMP error about a packet; ``kind``: type and code. At most 576 bytes, of IPv6 1,280."""
    header = Header(packet)
    most = 576 - 28 if header.version == 4 else 1280 - 48
    message = _icmp(source, header.source, bytes(kind), rest.to_bytes(4) + packet[: min(header.length, most)])
    tos = 0xC0 | packet[1] & 0x1C if header.version == 4 else 0  # RFC 1812, 4.3.2.5: precedence 6; never ECN-capable
    return _ip((source, header.source), ICMP if header.version == 4 else ICMPV6, tos, ident, message)


def echo_reply(packet: bytes, ident: int) -> bytes:
    header = Header(packet)
    message = message_of(packet, header)
    reply = _icmp(header.destination, header.source, bytes([ECHO_REPLY[header.version], 0]), message[4:])
    if header.version == 6:
        tos = int.from_bytes(packet[:2]) >> 4 & 0xFC
        return _ip((header.destination, header.source), ICMPV6, tos, ident, reply)
    start = (
        bytes([packet[0], packet[1] & 0xFC])
        + (header.transport + len(reply)).to_bytes(2)
        + ident.to_bytes(2)
        + bytes([0, 0, ANSWER_TTL, ICMP, 0, 0])
        + header.destination.packed
        + header.source.packed
        + packet[20 : header.transport]
    )
    return start[:10] + checksum(start).to_bytes(2) + start[12:] + reply


def reset(packet: bytes, ident: int) -> bytes:
    """RFC 9293, 3.10.7.1: nothing was ever open here."""
    header = Header(packet)
    segment = packet[header.transport : header.length]
    flags, length = segment[13], len(segment) - (segment[12] >> 4) * 4
    if flags & 0x10:
        numbers, said = segment[8:12] + bytes(4), 0x04
    else:
        after = int.from_bytes(segment[4:8]) + length + (flags >> 1 & 1) + (flags & 1)
        numbers, said = bytes(4) + (after % (1 << 32)).to_bytes(4), 0x14
    made = segment[2:4] + segment[:2] + numbers + bytes([0x50, said]) + bytes(6)
    value = transport_checksum(header.destination, header.source, TCP, made)
    made = made[:16] + value.to_bytes(2) + made[18:]
    tos = packet[1] & 0xFC if header.version == 4 else 0
    return _ip((header.destination, header.source), TCP, tos, ident, made)


UNREACHABLE = {
    "no_service": {4: (3, 3), 6: (1, 4)},
    "no_backend": {4: (3, 1), 6: (1, 3)},
    "unsupported_protocol": {4: (3, 2), 6: (4, 1)},
}


def next_header_at(packet: bytes, header: Header) -> int:
    """RFC 4443, 3.4: where the field is that names the protocol nobody knows."""
    if header.version == 4:
        return 0
    at, following = 6, 40
    while following < header.transport:
        size = 8 if packet[at] == FRAGMENT else 8 + 8 * packet[following + 1]
        at, following = following, following + size
    return at


class Answers:
    """Which packets are answered, and how many: a bucket of tokens for each kind."""

    def __init__(self, per_second: int, unserved: Unserved, own: dict[int, Address], first_id: int) -> None:
        self._step = 1_000_000_000 // per_second if per_second else 0
        self._unserved = unserved
        self._own = own
        self._ident = first_id
        self._tokens: dict[str, int] = {}
        self._now = 0

    def answer(  # noqa: PLR0911  one return for each way that it can end
        self, packet: bytes, reason: str, now_ns: int, room: int = 0
    ) -> tuple[str, tuple[bytes, ...]]:
        """The reason that is left, and what is sent. ``room``: how long a packet may be that was too big."""
        # The data plane looks at its clock in steps, so that it does not matter which packets come together.
        elapsed = max(0, (now_ns >> 20 << 20) - self._now)
        self._now += elapsed
        for kind in self._tokens:
            self._tokens[kind] = min(AT_ONCE * self._step, self._tokens[kind] + elapsed)
        if not self._step:
            return ("icmp" if reason == "echo" else reason), ()
        header = Header(packet)
        if reason == "echo":
            return self._send("echo", reason, lambda ident: echo_reply(packet, ident))
        if not answerable(packet, header):
            return reason, ()
        if reason == "ttl_expired":
            own, kind = self._own.get(header.version), (11, 0) if header.version == 4 else (3, 0)
            if own is None:
                return reason, ()
            return self._send("other", "time_exceeded", lambda ident: error(packet, own, kind, 0, ident))
        if reason == "too_big":
            return self._too_big(packet, header, room)
        if reason not in UNREACHABLE or self._unserved is Unserved.DROP:
            return reason, ()
        if header.protocol == TCP and self._unserved is Unserved.RESET:
            if packet[header.transport + 13] & 4:
                return reason, ()
            return self._send("other", "reset", lambda ident: reset(packet, ident))
        kind = UNREACHABLE[reason][header.version]
        rest = next_header_at(packet, header) if kind == (4, 1) else 0
        vip = header.destination
        return self._send("other", "unreachable", lambda ident: error(packet, vip, kind, rest, ident))

    def _too_big(self, packet: bytes, header: Header, room: int) -> tuple[str, tuple[bytes, ...]]:
        """RFC 1191, 4, and RFC 4443, 3.2: who may not be cut is told what would fit."""
        if header.version == 4 and not packet[6] & 0x40:
            return "too_big", ()
        kind, rest = ((3, 4), room) if header.version == 4 else ((2, 0), max(room, 1280))
        vip = header.destination
        return self._send("too_big", "frag_needed", lambda ident: error(packet, vip, kind, rest, ident))

    def _send(self, kind: str, reason: str, make: Callable[[int], bytes]) -> tuple[str, tuple[bytes, ...]]:
        tokens = self._tokens.setdefault(kind, AT_ONCE * self._step)
        if tokens < self._step:
            return "answer_limited", ()
        self._tokens[kind] = tokens - self._step
        ident, self._ident = self._ident, (self._ident + 1) % 65536
        return reason, (make(ident),)
