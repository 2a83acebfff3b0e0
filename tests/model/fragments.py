# SPDX-License-Identifier: Apache-2.0
"""Fragments (RFC 791, 8200): what one says, which datagrams are under way, and how a packet is cut into some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model import read, tunnel

LIFE_NS = 2_000_000_000
MOST = 65_535


@dataclass(frozen=True)
class Fragment:
    """One of several: where its bytes belong, and whether more come."""

    id: int
    offset: int
    size: int
    more: bool
    protocol: int
    headers: int  #: bytes before its payload

    @classmethod
    def of(cls, packet: bytes, header: read.Header) -> Fragment:
        at = header.transport
        if header.version == 4:
            where = int.from_bytes(packet[6:8])
            number, protocol, offset, more = int.from_bytes(packet[4:6]), packet[9], where % 0x2000 * 8, where & 0x2000
        else:
            where = int.from_bytes(packet[at + 2 : at + 4])
            number, protocol, offset, more = int.from_bytes(packet[at + 4 : at + 8]), packet[at], where & ~7, where & 1
            at += 8
        return cls(number, offset, header.length - at, bool(more), protocol, at)

    def problem(self, version: int) -> str | None:
        if not self.size or (self.more and self.size % 8) or self.offset + self.size > MOST:
            return "bad_fragment"
        if self.protocol == read.TCP and self.offset in (8, 16):
            return "bad_fragment"  # it begins within the header (RFC 3128)
        return _kind(self.protocol, version)


def _kind(protocol: int, version: int) -> str | None:
    if protocol in (read.TCP, read.UDP) or (version == 6 and protocol in (*read.EXTENSIONS, read.FRAGMENT)):
        return None
    return "icmp" if protocol in (read.ICMP, read.ICMPV6) else "unsupported_protocol"


def open_first(packet: bytes, header: read.Header, fragment: Fragment) -> str | None:  # noqa: PLR0911  as many ends
    """The header is that of the transport then; or why there is none (RFC 1858, RFC 7112)."""
    header.transport, header.protocol = fragment.headers, fragment.protocol
    count = 0
    while header.version == 6 and header.protocol in (*read.EXTENSIONS, read.FRAGMENT):
        at = header.transport
        if count == read.MAX_EXTENSIONS or header.protocol == read.FRAGMENT or at + 8 > len(packet):
            return "bad_fragment"
        header.protocol, header.transport = packet[at], at + 8 + 8 * packet[at + 1]
        count += 1
    if header.transport > len(packet):
        return "bad_fragment"
    transport = packet[header.transport :]
    if header.protocol == read.TCP:
        if len(transport) < 20 or len(transport) < (transport[12] >> 4) * 4:
            return "bad_fragment"
        return "bad_header" if transport[12] >> 4 < 5 else None
    if header.protocol == read.UDP:
        if len(transport) < 8:
            return "bad_fragment"
        return "bad_header" if int.from_bytes(transport[4:6]) < 8 else None
    return _kind(header.protocol, header.version)


@dataclass
class Datagram:
    """What has come of one; ``way`` is where it goes, None before its first fragment."""

    began: int
    there: set[int] = field(default_factory=set)  #: each byte
    end: int | None = None
    spoilt: bool = False
    way: object = None

    def take(self, fragment: Fragment) -> bool:
        """Whether it may go on: all of it is new."""
        new = set(range(fragment.offset, fragment.offset + fragment.size))
        last = fragment.offset + fragment.size
        if not fragment.more:
            self.spoilt |= self.end not in (None, last) or max(self.there, default=-1) >= last
            self.end = last
        self.spoilt |= self.end is not None and last > self.end
        self.spoilt |= bool(new & self.there) and not new <= self.there
        if self.spoilt or new <= self.there:
            return False
        self.there |= new
        return True

    @property
    def complete(self) -> bool:
        return self.way is not None and len(self.there) == self.end


class Datagrams:
    """Those under way."""

    def __init__(self) -> None:
        self._known: dict[object, Datagram] = {}

    def take(self, header: read.Header, fragment: Fragment, now_ns: int, way: object) -> object:
        """Where it goes; or why it goes nowhere. ``way``: of a first fragment."""
        protocol = fragment.protocol if header.version == 4 else None
        key = (header.source, header.destination, protocol, fragment.id)
        datagram = self._known.get(key)
        if datagram is None or now_ns - datagram.began >= LIFE_NS:
            datagram = self._known[key] = Datagram(now_ns)
        if not datagram.take(fragment):
            return "fragment_overlap"
        datagram.way = way or datagram.way
        if datagram.complete:
            del self._known[key]
        return datagram.way or "fragment_alone"


def pieces(packet: bytes, room: int) -> Iterator[bytes]:
    """An IPv4 packet, or fragment, as fragments of at most ``room`` bytes."""
    header, where = (packet[0] & 15) * 4, int.from_bytes(packet[6:8])
    step = (room - header) // 8 * 8
    for at in range(header, len(packet), step):
        options = packet[20:header] if at == header else _copied(packet[20:header])
        payload = packet[at : at + step]
        more = where & 0x2000 if at + step >= len(packet) else 0x2000
        place = (where & 0xC000) | more | (where % 0x2000 + (at - header) // 8)
        length = 20 + len(options) + len(payload)
        first = (
            bytes([0x40 | (20 + len(options)) // 4, packet[1]]) + length.to_bytes(2) + packet[4:6] + place.to_bytes(2)
        )
        yield tunnel.with_header_checksum(first + packet[8:20] + options + payload)


def _copied(options: bytes) -> bytes:
    """Those whose highest bit says that every fragment has them (RFC 791, 3.1)."""
    kept, at = b"", 0
    while at < len(options) and options[at]:
        size = 1 if options[at] == 1 or at + 1 == len(options) else options[at + 1]
        if (options[at] != 1 and size < 2) or at + size > len(options):
            break
        kept += options[at : at + size] if options[at] & 0x80 else b""
        at += size
    return kept + bytes(-len(kept) % 4)
