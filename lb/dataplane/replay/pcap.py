# SPDX-License-Identifier: Apache-2.0
"""Reads captures (pcap and pcapng) and writes them (pcap), a packet at a time.

Used by :mod:`lb.dataplane.replay.run`. Reading takes pcap with micro- or nanoseconds in either byte order, and of
pcapng the first interface of the first section; link types Ethernet and raw IP. Nothing in a file can make it
crash, loop or take much memory: what is wrong raises :class:`lb.errors.PcapError`. Whoever opens a stream
closes it.

pcap:   https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/
pcapng: https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from lb.errors import PcapError

LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101
#: Frames begin with an IP header. 12 and 14 are how DLT_RAW was written by some systems.
RAW_LINKTYPES = frozenset({LINKTYPE_RAW, 12, 14, 228, 229})

#: No link of ours has larger packets; a larger length is damage. A GSO super-packet has up to 64 KiB.
MAX_PACKET = 262_144
_MAX_BLOCK = 16 * 2**20
_MAX_TIME = 2**63 - 1

_PCAP_MAGICS = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE = 1
_OLD_PACKET = 2
_SIMPLE_PACKET = 3
_ENHANCED_PACKET = 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_OPTION_RESOLUTION = 9
_OPTION_OFFSET = 14


class CapturedPacket(NamedTuple):
    """One packet of a capture."""

    data: bytes  #: what was captured
    wire_len: int  #: how long it was; more than len(data) where the capture cut it short
    time: int  #: nanoseconds since 1970


class Capture:
    """A capture being read: its link type, and its packets as an iterator, once."""

    def __init__(self, stream: BinaryIO, name: str = "capture") -> None:
        self._read = _Stream(stream, name)
        magic = self._read.some(4)
        if magic in _PCAP_MAGICS:
            self._packets = self._pcap(*_PCAP_MAGICS[magic])
        elif magic == struct.pack(">I", _SECTION_HEADER):
            self._packets = self._pcapng()
        elif not magic:
            raise self._read.error("is empty, not a capture")
        else:
            raise self._read.error("is neither pcap nor pcapng")
        self._first: CapturedPacket | None = None
        self.linktype = -1
        # Both formats say the link type before the first packet; reading that far fills it in.
        self._first = next(self._packets, None)
        if self.linktype < 0:
            raise self._read.error("has no interface, so no link type")

    @property
    def raw_ip(self) -> bool:
        """Whether packets begin with the IP header, not with an Ethernet header."""
        return self.linktype in RAW_LINKTYPES

    def __iter__(self) -> Iterator[CapturedPacket]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._packets

    def _set_linktype(self, linktype: int) -> None:
        if linktype != LINKTYPE_ETHERNET and linktype not in RAW_LINKTYPES:
            raise self._read.error(f"has link type {linktype}; only Ethernet (1) and raw IP (101, 228, 229) are read")
        self.linktype = linktype

    # --- pcap ----------------------------------------------------------------------------------------------------

    def _pcap(self, order: str, tick_ns: int) -> Iterator[CapturedPacket]:
        major, _, _, _, _, linktype = struct.unpack(order + "HHiIII", self._read.exactly(20, "its header"))
        if major != 2:
            raise self._read.error(f"is pcap version {major}; only version 2 is read")
        self._set_linktype(linktype & 0xFFFF)  # the rest says whether frames end in a checksum
        record = struct.Struct(order + "IIII")
        while header := self._read.some(16):
            if len(header) < 16:
                raise self._read.error("ends within a packet's header")
            seconds, fraction, length, wire_len = record.unpack(header)
            if length > MAX_PACKET:
                raise self._read.error(f"has a packet of {length} bytes, which cannot be; the file is damaged")
            data = self._read.exactly(length, "a packet")
            yield CapturedPacket(data, max(wire_len, length), seconds * 1_000_000_000 + fraction * tick_ns)

    # --- pcapng --------------------------------------------------------------------------------------------------

    def _pcapng(self) -> Iterator[CapturedPacket]:
        """Blocks are length-framed; those of other types and interfaces are stepped over."""
        order = self._section_header()
        interfaces = 0
        interface = _Interface(LINKTYPE_ETHERNET, 0, 1_000_000, 0)
        while head := self._read.some(4):
            if len(head) < 4:
                raise self._read.error("ends within a block's header")
            if head == struct.pack(">I", _SECTION_HEADER):
                order = self._section_header()
                interfaces = 0
                continue
            (kind,) = struct.unpack(order + "I", head)
            body = self._block_body(order, 4)
            if kind == _INTERFACE:
                if interfaces == 0:
                    described = self._interface(order, body)
                    if self.linktype >= 0 and described.linktype != self.linktype:
                        raise self._read.error("has sections of different link types")
                    interface = described
                    self._set_linktype(interface.linktype)
                interfaces += 1
            elif kind in (_ENHANCED_PACKET, _SIMPLE_PACKET, _OLD_PACKET):
                if interfaces == 0:
                    raise self._read.error("has a packet before any interface")
                packet = self._packet(order, kind, body, interface, interfaces)
                if packet is not None:
                    yield packet

    def _section_header(self) -> str:
        """The rest of a section header, after its type; returns the byte order."""
        length_and_magic = self._read.exactly(8, "a section header")
        for order in "<>":
            length, magic = struct.unpack(order + "II", length_and_magic)
            if magic == _BYTE_ORDER_MAGIC:
                break
        else:
            raise self._read.error("has a section header without its byte order")
        body = self._rest_of_block(order, length, 12)
        if len(body) < 12 or struct.unpack(order + "H", body[:2])[0] != 1:
            raise self._read.error("is not pcapng version 1")
        return order

    def _block_body(self, order: str, done: int) -> bytes:
        (length,) = struct.unpack(order + "I", self._read.exactly(4, "a block's header"))
        return self._rest_of_block(order, length, done + 4)

    def _rest_of_block(self, order: str, length: int, done: int) -> bytes:
        """What is left of a block of which ``done`` bytes were read, without the length at its end."""
        if length % 4 or length < done + 4 or length > _MAX_BLOCK:
            raise self._read.error(f"has a block of {length} bytes, which cannot be; the file is damaged")
        rest = self._read.exactly(length - done, "a block")
        if struct.unpack(order + "I", rest[-4:])[0] != length:
            raise self._read.error("has a block whose two lengths differ; the file is damaged")
        return rest[:-4]

    def _interface(self, order: str, body: bytes) -> _Interface:
        if len(body) < 8:
            raise self._read.error("has a short interface description")
        linktype, _, snaplen = struct.unpack(order + "HHI", body[:8])
        ticks, offset = 1_000_000, 0
        for code, value in _options(order, body[8:]):
            if code == _OPTION_RESOLUTION and len(value) >= 1:
                exponent = value[0] & 0x7F
                ticks = 2**exponent if value[0] & 0x80 else 10**exponent
            elif code == _OPTION_OFFSET and len(value) >= 8:
                (offset,) = struct.unpack(order + "q", value[:8])
        return _Interface(linktype, snaplen, ticks, offset)

    def _packet(
        self, order: str, kind: int, body: bytes, interface: _Interface, interfaces: int
    ) -> CapturedPacket | None:
        """The packet of a block, or None if another interface's."""
        if kind == _SIMPLE_PACKET:
            header, number, ticks = 4, 0, 0
            if len(body) < header:
                raise self._read.error("has a packet block too short for its header")
            (wire_len,) = struct.unpack(order + "I", body[:4])
            length = min(wire_len, interface.snaplen or wire_len, len(body) - header)
        else:
            header = 20
            if len(body) < header:
                raise self._read.error("has a packet block too short for its header")
            shape = order + ("HHIIII" if kind == _OLD_PACKET else "IIIII")
            number, *times, length, wire_len = struct.unpack(shape, body[:20])
            ticks = times[-2] << 32 | times[-1]
        if number >= interfaces:
            raise self._read.error(f"has a packet of interface {number}, which it does not describe")
        if number != 0:
            return None
        if length > len(body) - header or length > MAX_PACKET:
            raise self._read.error(f"has a packet of {length} bytes, which cannot be; the file is damaged")
        time = ticks * 1_000_000_000 // interface.ticks + interface.offset * 1_000_000_000
        if not 0 <= time <= _MAX_TIME:
            raise self._read.error("has a time before 1970 or after 2262; the file is damaged")
        return CapturedPacket(body[header : header + length], max(wire_len, length), time)


class _Interface(NamedTuple):
    """What a pcapng interface description says."""

    linktype: int
    snaplen: int  #: 0: no limit
    ticks: int  #: per second
    offset: int  #: seconds to add to every time


def _options(order: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Options up to the end mark or the first that does not fit."""
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack(order + "HH", data[at : at + 4])
        if code == 0 or at + 4 + length > len(data):
            return
        yield code, data[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4


class _Stream:
    """Reads from a file and says of which file it complains."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._at = 0

    def some(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only at the end."""
        data = b""
        while len(data) < count:
            try:
                more = self._stream.read(count - len(data))
            except OSError as error:
                raise self.error(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
            if not more:
                break
            data += more
        self._at += len(data)
        return data

    def exactly(self, count: int, what: str) -> bytes:
        data = self.some(count)
        if len(data) < count:
            raise self.error(f"ends within {what}")
        return data

    def error(self, what: str) -> PcapError:
        return PcapError(f"{self._name}: {what} (at byte {self._at})")


class PcapWriter:
    """Writes pcap with nanoseconds, little-endian, to a stream that the caller owns."""

    def __init__(self, stream: BinaryIO, linktype: int) -> None:
        self._stream = stream
        stream.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_PACKET, linktype))

    def write(self, packet: CapturedPacket) -> None:
        seconds, nanoseconds = divmod(packet.time, 1_000_000_000)
        if seconds >= 2**32:
            raise PcapError(f"time {seconds} s after 1970 does not fit in a pcap file")
        header = struct.pack("<IIII", seconds, nanoseconds, len(packet.data), packet.wire_len)
        self._stream.write(header + packet.data)
