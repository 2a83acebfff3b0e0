# SPDX-License-Identifier: Apache-2.0
"""Segments that came together leave as one packet, and whoever cuts that makes exactly what came
(native/packet/merge.c)."""

from __future__ import annotations

import random
from ctypes import CDLL, POINTER, Structure, c_char_p, c_int, c_uint, c_uint32, create_string_buffer
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from tests.model.checksum import ones_complement_sum, pseudo_header
from tests.model.tunnel import segments, with_header_checksum, with_transport_checksum
from tests.native.compiled import library
from tests.packets.build import ethernet, ipv4, ipv6, tcp, udp
from tests.packets.size import data

TOLD, VERIFIED, MERGED = 0x01, 0x02, 0x10  #: io.h
BURST_MAX, HEADROOM = 64, 64
LONGEST = 65_000  #: of an IP packet that is put together


class Told(Structure):
    _fields_ = [
        (name, c_uint32)
        for name in ("length", "wire_length", "gso_size", "csum_start", "csum_offset", "offload", "headroom")
    ]


@dataclass(frozen=True)
class Frame:
    bytes: bytes
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    offload: int = TOLD
    wire_length: int | None = None


def c() -> CDLL:
    lib = library("merge_probe.c", "packet/merge.c", "packet/checksum.c")
    lib.probe_merge.argtypes = [c_int, c_int, c_char_p, POINTER(Told), c_uint, c_char_p]
    return lib


def merge(frames: list[Frame], *, link: bool = False, guess: bool = False) -> list[Frame]:
    told = (Told * BURST_MAX)()
    for to, frame in zip(told, frames, strict=False):
        length = len(frame.bytes)
        wire = length if frame.wire_length is None else frame.wire_length
        to.length, to.wire_length, to.gso_size = length, wire, frame.gso_size
        to.csum_start, to.csum_offset, to.offload = frame.csum_start, frame.csum_offset, frame.offload
    out = create_string_buffer(BURST_MAX << 16)
    left = c().probe_merge(int(link), int(guess), b"".join(f.bytes for f in frames), told, len(frames), out)
    assert left >= 0, "it wrote where it must not"
    made, at = [], 0
    for one in told[:left]:
        assert one.headroom >= HEADROOM
        piece = out.raw[at : at + one.length]
        wire = None if one.wire_length == one.length else one.wire_length
        made.append(Frame(piece, one.gso_size, one.csum_start, one.csum_offset, one.offload, wire))
        at += one.length
    return made


def as_left(packet: bytes) -> bytes:
    """TCP with the sum of the pseudo-header where the checksum will be."""
    four = packet[0] >> 4 == 4
    start, addresses = (20, packet[12:20]) if four else (40, packet[8:40])
    half = len(addresses) // 2
    source, destination = ip_address(addresses[:half]), ip_address(addresses[half:])
    check = ones_complement_sum(pseudo_header(source, destination, 6, len(packet) - start))
    return packet[: start + 16] + check.to_bytes(2, "big") + packet[start + 18 :]


def cut(frame: Frame, link: int) -> list[bytes]:
    """What whoever is last on the way makes of it; of an ordinary frame itself."""
    if not frame.offload & MERGED:
        return [frame.bytes]
    packet = frame.bytes[link:]
    assert packet == as_left(packet), "its checksum is left to be made"
    assert frame.csum_start == link + (20 if packet[0] >> 4 == 4 else 40)
    assert frame.csum_offset == 16
    assert len(packet) <= LONGEST
    assert packet[0] >> 4 == 6 or with_header_checksum(packet) == packet
    return [frame.bytes[:link] + part for part in segments(packet, frame.gso_size)]


def finished(frame: bytes, link: int) -> bytes:
    return frame[:link] + with_transport_checksum(frame[link:])


OPTIONS = b"\1\1\x08\x0a" + b"\x12\x34\x56\x78" * 2


def stream(
    version: int = 4,
    *,
    size: int = 1448,
    count: int = 5,
    tail: int = 0,
    flags: str = "A",
    sport: int = 40_000,
    seq: int = 1000,
    ident: int = 0x1234,
) -> list[bytes]:
    """So many segments of ``size`` and one of ``tail``; ``flags`` of the last."""
    payload, parts = data(size * count + tail), []
    for n, start in enumerate(range(0, len(payload), size)):
        last = start + size >= len(payload)
        piece, at = payload[start : start + size], (seq + start) % (1 << 32)
        part = tcp(flags if last else "A", piece, seq=at, sport=sport, options=OPTIONS)
        parts.append(ipv4(part, ident=(ident + n) % (1 << 16)) if version == 4 else ipv6(part))
    return parts


def plain(packets: list[bytes]) -> list[Frame]:
    return [Frame(packet) for packet in packets]


@pytest.mark.parametrize("tail", [0, 1, 700])
@pytest.mark.parametrize("flags", ["A", "PA"])
@pytest.mark.parametrize("link", [0, 14])
@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_becomes_the_packet_that_it_was_cut_from(version: int, link: int, flags: str, tail: int) -> None:
    packets = [ethernet(p)[14 - link :] for p in stream(version, flags=flags, tail=tail)]
    (made,) = merge(plain(packets), link=bool(link))
    assert made.gso_size == 1448
    assert made.offload == TOLD | MERGED
    assert cut(made, link) == packets


@pytest.mark.parametrize("version", [4, 6])
def test_checksums_that_were_left_to_a_nic_are_left(version: int) -> None:
    packets = stream(version)
    start = 20 if version == 4 else 40
    told = [Frame(as_left(p), csum_start=start, csum_offset=16) for p in packets]
    guessed = [Frame(as_left(p), offload=0) for p in packets]
    for made in (merge(told), merge(guessed, guess=True)):
        assert len(made) == 1
        assert cut(made[0], 0) == packets


def test_where_the_io_tells_a_sum_that_looks_unfinished_is_wrong() -> None:
    frames = plain([as_left(p) for p in stream()])
    assert merge(frames) == frames


def test_a_long_stream_is_several_packets() -> None:
    packets = stream(count=BURST_MAX)
    made = merge(plain(packets))
    assert len(made) == 2
    assert [part for one in made for part in cut(one, 0)] == packets


def test_more_than_there_is_memory_for_stays_as_it_came() -> None:
    packets = stream(size=8948, count=BURST_MAX)
    made = merge(plain(packets))
    assert 1 < len(made) < BURST_MAX
    assert [part for one in made for part in cut(one, 0)] == packets


def changed(packet: bytes, at: int, value: bytes, *, sums: bool = True) -> bytes:
    packet = packet[:at] + value + packet[at + len(value) :]
    if not sums:
        return packet
    return with_transport_checksum(with_header_checksum(packet) if packet[0] >> 4 == 4 else packet)


#: Of the second of two segments: where in it is what, and what it becomes.
APART = {
    "type of service": (4, 1, b"\x02"),
    "an ID that is not the next": (4, 4, b"\x12\x36"),
    "may be fragmented": (4, 6, b"\0\0"),
    "a first fragment": (4, 6, b"\x60\0"),
    "a later fragment": (4, 6, b"\x40\x01"),
    "time to live": (4, 8, b"\x3f"),
    "source address": (4, 15, b"\x09"),
    "destination address": (4, 19, b"\x0b"),
    "class and flow label": (6, 1, b"\x20"),
    "hop limit": (6, 7, b"\x3f"),
    "IPv6 source address": (6, 23, b"\x09"),
    "IPv6 destination address": (6, 39, b"\x11"),
    "source port": (4, 20, b"\0\x63"),
    "destination port": (4, 22, b"\0\x51"),
    "not the next byte": (4, 24, b"\0\0\0\1"),
    "acknowledgement": (4, 28, b"\0\0\0\1"),
    "reserved bits": (4, 32, b"\x81"),
    "FIN": (4, 33, b"\x11"),
    "SYN": (4, 33, b"\x12"),
    "RST": (4, 33, b"\x14"),
    "URG": (4, 33, b"\x30"),
    "ECE": (4, 33, b"\x50"),
    "CWR": (4, 33, b"\x90"),
    "no ACK": (4, 33, b"\0"),
    "window": (4, 34, b"\0\1"),
    "urgent pointer": (4, 38, b"\0\1"),
    "options": (4, 44, b"\x99"),
    "IPv6 source port": (6, 40, b"\0\x63"),
    "IPv6 options": (6, 64, b"\x99"),
}


@pytest.mark.parametrize("what", APART)
def test_what_differs_stays_apart(what: str) -> None:
    version, at, value = APART[what]
    first, second = stream(version, count=2)
    frames = plain([first, changed(second, at, value)])
    assert frames[1].bytes != second
    assert merge(frames) == frames


def test_a_header_that_says_another_length_stays_apart() -> None:
    first, second = stream(count=2)
    frames = plain([first, changed(second, 2, b"\x01\x00", sums=False)])
    assert merge(frames) == frames


@pytest.mark.parametrize("at", [10, 36, 60, 1487], ids=["header", "checksum", "data", "last byte"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_is_damaged_stays_by_itself(bad: int, version: int, at: int) -> None:
    """Its receiver drops it; nobody makes a right checksum over it."""
    packets = stream(version, count=3)
    packets[bad] = changed(packets[bad], at, bytes([packets[bad][at] ^ 0xFF]), sums=False)
    made = merge(plain(packets))
    assert [part for one in made for part in cut(one, 0)] == packets
    assert Frame(packets[bad]) in made


def test_of_what_a_nic_verified_no_sum_is_made() -> None:
    packets = stream(count=2)
    wrong = changed(packets[1], 100, b"\xff\xff", sums=False)
    assert len(merge([Frame(packets[0]), Frame(wrong, offload=TOLD | VERIFIED)])) == 1


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize(("start", "field"), [(20, 6), (40, 16), (0xFFFF, 16), (34, 16)])
def test_a_checksum_that_is_to_be_made_elsewhere_keeps_it_apart(bad: int, start: int, field: int) -> None:
    frames = [Frame(as_left(p), csum_start=20, csum_offset=16) for p in stream(count=2)]
    frames[bad] = replace(frames[bad], csum_start=start, csum_offset=field)
    assert merge(frames) == frames


@pytest.mark.parametrize("count", [1, 3])
def test_push_ends_a_packet(count: int) -> None:
    first = stream(count=count, flags="PA")
    second = stream(count=3, flags="PA", seq=1000 + count * 1448, ident=0x1234 + count)
    made = merge(plain(first + second))
    assert [cut(one, 0) for one in made] == [first, second]


def test_a_shorter_segment_ends_a_packet_and_a_longer_begins_one() -> None:
    short = stream(count=2, tail=600)
    then = stream(count=2, seq=1000 + 2 * 1448 + 600, ident=0x1234 + 3)
    made = merge(plain(short + then))
    assert [cut(one, 0) for one in made] == [short, then]


@pytest.mark.parametrize("count", [1, 2])
def test_a_longer_segment_begins_a_packet(count: int) -> None:
    small = stream(count=count, size=700)
    large = stream(count=2, seq=1000 + count * 700, ident=0x1234 + count)
    made = merge(plain(small + large))
    assert [cut(one, 0) for one in made] == [small, large]


def test_streams_do_not_mix_and_keep_their_order() -> None:
    one, other = stream(sport=1), stream(sport=2)
    assert [cut(made, 0) for made in merge(plain(one + other))] == [one, other]
    mixed = plain([p for pair in zip(one, other, strict=True) for p in pair])
    assert merge(mixed) == mixed


@pytest.mark.parametrize(
    "frames",
    [
        plain(stream(size=300)),
        plain([ipv4(udp(data(1400)))] * 3),
        plain([ipv4(tcp("A"))] * 3),
        plain([ipv4(tcp("S"))] * 3),
        plain([p[:40] for p in stream()]),
        plain([p[:n] for n, p in enumerate(stream(count=60))]),
        [Frame(p, wire_length=len(p) + 1) for p in stream()],
        [Frame(p, gso_size=500) for p in stream()],
        plain([p + b"\0" for p in stream()]),
        [Frame(b"\xff" * 600)] * 5,
    ],
    ids=["short", "UDP", "ACKs", "SYNs", "cut", "cut anywhere", "by a capture", "super", "padded", "no IP"],
)
@pytest.mark.parametrize("link", [False, True])
def test_all_else_stays_as_it_came(frames: list[Frame], link: bool) -> None:
    if link:
        mac = bytes(range(12))
        frames = [
            replace(f, bytes=mac + (b"\x86\xdd" if f.bytes[:1] == b"\x60" else b"\x08\0") + f.bytes, wire_length=None)
            for f in frames
            if f.wire_length is None
        ]
    assert merge(frames, link=link) == frames


@pytest.mark.parametrize(
    "what",
    [
        name
        for name in APART
        if name.endswith(" fragment") or name in ("reserved bits", "URG", "ECE", "CWR", "no ACK", "RST")
    ],
)
def test_what_all_of_them_have_keeps_them_apart_as_well(what: str) -> None:
    _, at, value = APART[what]
    frames = plain([changed(p, at, value) for p in stream(count=3)])
    assert merge(frames) == frames


@pytest.mark.parametrize("kind", [b"\x81\0", b"\x86\xdd", b"\x08\x06"], ids=["VLAN", "IPv6", "ARP"])
def test_what_is_said_to_be_of_another_protocol_stays_apart(kind: bytes) -> None:
    frames = plain([bytes(12) + kind + p for p in stream(count=3)])
    assert merge(frames, link=True) == frames


@pytest.mark.parametrize("at", [10, 36], ids=["header", "TCP"])
def test_a_checksum_that_nobody_would_write_again_keeps_it_apart(at: int) -> None:
    """All ones are as right as zero, and whoever cuts writes zero."""
    first, second = stream(count=2)
    if at == 10:  # what makes up the sum: the ID
        first = changed(first, 4, changed(first, 4, b"\0\0")[10:12])
        second = changed(second, 4, (int.from_bytes(first[4:6]) + 1).to_bytes(2))
    else:  # the window
        window = changed(first, 34, b"\0\0")[36:38]
        first, second = changed(first, 34, window), changed(second, 34, window)
    assert first[at : at + 2] == b"\0\0"
    assert len(merge(plain([first, second]))) == 1
    frames = plain([changed(first, at, b"\xff\xff", sums=False), second])
    assert merge(frames) == frames


@pytest.mark.parametrize("what", ["addresses", "type"])
def test_another_link_header_keeps_it_apart(what: str) -> None:
    frames = plain([ethernet(p) for p in stream(count=2)])
    at, value = (5, b"\x77") if what == "addresses" else (12, b"\x81\0")
    frames[1] = Frame(frames[1].bytes[:at] + value + frames[1].bytes[at + len(value) :])
    assert merge(frames, link=True) == frames


def test_whatever_comes_whoever_cuts_makes_it_again() -> None:
    """Bursts of several streams with damaged, changed and foreign packets between them."""
    rng = random.Random(7)
    merged = 0
    for _ in range(40):
        link = rng.choice((0, 14))
        packets: list[bytes] = []
        while len(packets) < BURST_MAX:
            version, size = rng.choice((4, 6)), rng.choice((512, 536, 1000, 1428, 1448))
            part = stream(
                version,
                size=size,
                count=rng.randrange(1, 30),
                tail=rng.randrange(size),
                flags=rng.choice(("A", "PA", "FA")),
                sport=rng.randrange(65536),
                seq=rng.randrange(1 << 32),
                ident=rng.randrange(1 << 16),
            )
            if rng.random() < 0.3:
                n, at = rng.randrange(len(part)), rng.randrange(100)
                part[n] = changed(part[n], at, bytes([rng.randrange(256)]), sums=False)
            if rng.random() < 0.2:
                part.insert(rng.randrange(len(part)), ipv4(udp(data(rng.randrange(1400)))))
            if rng.random() < 0.2:
                n = rng.randrange(len(part))
                part[n] = part[n][: rng.randrange(1, len(part[n]) + 1)]
            packets += part
        packets = [ethernet(p)[14 - link :] for p in packets[:BURST_MAX]]
        guess = rng.random() < 0.5
        made = merge(plain(packets), link=bool(link), guess=guess)
        assert [part for one in made for part in cut(one, link)] == packets
        merged += BURST_MAX - len(made)
    assert merged > 40 * BURST_MAX / 3
