# SPDX-License-Identifier: Apache-2.0
"""Captures: what is written is read back; every format of the contract is read; damage is one clear error."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.dataplane.replay.pcap import LINKTYPE_ETHERNET, LINKTYPE_RAW, Capture, CapturedPacket, PcapWriter
from lb.errors import PcapError

SECOND = 1_000_000_000


def read(data: bytes) -> tuple[int, list[CapturedPacket]]:
    capture = Capture(io.BytesIO(data))
    return capture.linktype, list(capture)


def written(packets: list[CapturedPacket], linktype: int = LINKTYPE_ETHERNET) -> bytes:
    stream = io.BytesIO()
    writer = PcapWriter(stream, linktype)
    for packet in packets:
        writer.write(packet)
    return stream.getvalue()


def pcap(order: str, magic: int, records: list[tuple[int, int, bytes, int]], linktype: int = 1) -> bytes:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, linktype)
    for seconds, fraction, packet, wire_len in records:
        data += struct.pack(order + "IIII", seconds, fraction, len(packet), wire_len) + packet
    return data


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + padded(value)


class Ng:
    """Builds pcapng, block by block."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.data = b""
        self.block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))

    def block(self, kind: int, body: bytes) -> Ng:
        length = 12 + len(padded(body))
        framed = struct.pack(self.order + "II", kind, length) + padded(body) + struct.pack(self.order + "I", length)
        self.data += framed
        return self

    def interface(self, linktype: int = 1, snaplen: int = 0, options: bytes = b"") -> Ng:
        return self.block(1, struct.pack(self.order + "HHI", linktype, 0, snaplen) + options)

    def enhanced(self, ticks: int, packet: bytes, wire_len: int | None = None, interface: int = 0) -> Ng:
        head = (interface, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), wire_len or len(packet))
        return self.block(6, struct.pack(self.order + "IIIII", *head) + padded(packet))

    def old(self, ticks: int, packet: bytes, interface: int = 0) -> Ng:
        head = (interface, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet))
        return self.block(2, struct.pack(self.order + "HHIIII", *head) + padded(packet))

    def simple(self, packet: bytes, wire_len: int | None = None) -> Ng:
        return self.block(3, struct.pack(self.order + "I", wire_len or len(packet)) + padded(packet))


@given(
    st.lists(
        st.builds(
            lambda data, cut, time: CapturedPacket(data, len(data) + cut, time),
            st.binary(max_size=100),
            st.integers(0, 2000),
            st.integers(0, 2**32 * SECOND - 1),
        ),
        max_size=5,
    ),
    st.sampled_from([LINKTYPE_ETHERNET, LINKTYPE_RAW, 12, 14, 228, 229]),
)
def test_what_is_written_is_read_back(packets: list[CapturedPacket], linktype: int) -> None:
    assert read(written(packets, linktype)) == (linktype, packets)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "tick"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_is_read_in_either_order_and_resolution(order: str, magic: int, tick: int) -> None:
    data = pcap(order, magic, [(5, 7, b"abc", 3), (6, 999_999, b"", 60)], 101)
    assert read(data) == (
        101,
        [CapturedPacket(b"abc", 3, 5 * SECOND + 7 * tick), CapturedPacket(b"", 60, 6 * SECOND + 999_999 * tick)],
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_packets_of_all_kinds_are_read(order: str) -> None:
    data = Ng(order).interface(snaplen=4).enhanced(5_000_007, b"abcde"[:4], 5).old(6, b"xy").simple(b"1234", 9).data
    assert read(data) == (
        1,
        [CapturedPacket(b"abcd", 5, 5 * SECOND + 7000), CapturedPacket(b"xy", 2, 6000), CapturedPacket(b"1234", 9, 0)],
    )


@pytest.mark.parametrize(
    ("resolution", "offset", "ticks", "time"),
    [
        (9, 0, 123, 123),
        (6, 100, 1, 100 * SECOND + 1000),
        (0x80 | 10, 0, 1024 + 512, SECOND + SECOND // 2),
        (0x80, 0, 3, 3 * SECOND),
        (127, 0, 2**63, 0),
        (3, -1, 5000, 4 * SECOND),
    ],
)
def test_pcapng_resolution_and_offset_are_honoured(resolution: int, offset: int, ticks: int, time: int) -> None:
    options = option("<", 2, b"eth0") + option("<", 9, bytes([resolution])) + option("<", 14, struct.pack("<q", offset))
    data = Ng("<").interface(options=options + option("<", 0, b"")).enhanced(ticks, b"x").data
    assert read(data)[1] == [CapturedPacket(b"x", 1, time)]


def test_only_the_first_interface_of_pcapng_is_read() -> None:
    data = (
        Ng("<")
        .interface()
        .interface(linktype=113)
        .enhanced(1, b"b", interface=1)
        .enhanced(2, b"a")
        .block(99, b"?")
        .data
    )
    assert read(data) == (1, [CapturedPacket(b"a", 1, 2000)])


def test_pcapng_sections_may_differ_in_byte_order() -> None:
    data = Ng("<").interface().enhanced(1, b"a").data + Ng(">").interface().enhanced(2, b"b").data
    assert [packet.data for packet in read(data)[1]] == [b"a", b"b"]


def test_a_frame_check_sequence_in_the_link_type_is_ignored() -> None:
    assert read(pcap("<", 0xA1B2C3D4, [], 1 | 2 << 28 | 1 << 26))[0] == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"GIF89a and more", "neither pcap nor pcapng"),
        (b"\xd4\xc3\xb2\xa1\x02", "ends within its header"),
        (pcap("<", 0xA1B2C3D4, [], 113), "link type 113"),
        (pcap("<", 0xA1B2C3D4, [(0, 0, b"abc", 3)])[:-1], "ends within a packet"),
        (pcap("<", 0xA1B2C3D4, [])[:24] + b"\0" * 5, "ends within a packet's header"),
        (pcap("<", 0xA1B2C3D4, []) + struct.pack("<IIII", 0, 0, 2**31, 60), "a packet of 2147483648 bytes"),
        (Ng("<").data, "has no interface"),
        (Ng("<").enhanced(0, b"x").data, "before any interface"),
        (Ng("<").interface().enhanced(0, b"x", interface=3).data, "interface 3"),
        (Ng("<").interface().data + struct.pack("<II", 6, 2**31), "a block of 2147483648 bytes"),
        (Ng("<").interface().data + struct.pack("<II", 6, 8), "a block of 8 bytes"),
        (Ng("<").interface().data[:-4] + b"\0\0\0\0", "two lengths differ"),
        (Ng("<").interface().block(6, b"short").data, "too short"),
        (Ng("<").interface().enhanced(2**64 - 1, b"x").data, "before 1970 or after 2262"),
        (Ng("<").interface(linktype=276).data, "link type 276"),
    ],
)
def test_damage_is_one_clear_error(data: bytes, sentence: str) -> None:
    with pytest.raises(PcapError, match=sentence):
        read(data)


GOOD = [
    pcap("<", 0xA1B2C3D4, [(1, 2, b"abc", 3)] * 3),
    pcap(">", 0xA1B23C4D, [(1, 2, b"abc", 3)] * 3),
    Ng("<").interface(options=option("<", 9, b"\x09")).enhanced(1, b"a" * 9).simple(b"b").old(1, b"c").data,
    Ng(">").interface().interface().enhanced(1, b"a" * 9).enhanced(1, b"x", interface=1).data,
]


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
    st.integers(0, 300),
)
def test_a_mutated_capture_is_read_or_refused(good: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(good)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        _, packets = read(bytes(data[: max(4, cut)]))
    except PcapError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(len(packet.data) <= packet.wire_len for packet in packets)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", *(good[:4] for good in GOOD), *(good[:28] for good in GOOD)]), st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(start: bytes, rest: bytes) -> None:
    try:
        read(start + rest)
    except PcapError as error:
        assert str(error).isprintable()  # noqa: PT017


def test_scapy_reads_what_is_written_and_we_read_what_scapy_writes(tmp_path: Path) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether
    from scapy.utils import PcapNgWriter, rdpcap, wrpcap

    frame = bytes(Ether() / IP(dst="203.0.113.10") / UDP(dport=53) / b"hello")
    (tmp_path / "ours.pcap").write_bytes(written([CapturedPacket(frame, len(frame), 5 * SECOND + 7)]))
    (theirs,) = rdpcap(str(tmp_path / "ours.pcap"))
    assert bytes(theirs) == frame
    assert int(theirs.time * SECOND) == 5 * SECOND + 7

    wrpcap(str(tmp_path / "theirs.pcap"), [Ether(frame)])
    assert [packet.data for packet in read((tmp_path / "theirs.pcap").read_bytes())[1]] == [frame]
    writer = PcapNgWriter(str(tmp_path / "theirs.pcapng"))
    writer.write(Ether(frame))
    writer.close()
    assert [packet.data for packet in read((tmp_path / "theirs.pcapng").read_bytes())[1]] == [frame]
