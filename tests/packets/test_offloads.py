# SPDX-License-Identifier: Apache-2.0
"""What an I/O tells of checksums and segments that a sender left to its NIC: done as told, bounded, and nothing else.

The packets are built twice: as a NIC would have sent them, and as the sender handed them down.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.dataplane import LinkHeader, Offload, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler
from tests.model import tunnel
from tests.model.checksum import ones_complement_sum, transport_checksum
from tests.model.read import Header
from tests.packets.build import Segment, ethernet, ipv4, ipv6, raw, tcp, udp
from tests.packets.size import FITS, FITS6, data
from tests.packets.world import DNS, DNS6, FIRST_ID, SERVICES, SETTINGS, WEB, WEB6, to

SNAPSHOT = Compiler(SETTINGS).compile(SERVICES).offline_snapshot()
TOLD = Offload()
Build = Callable[[Segment], bytes]
FAMILIES = pytest.mark.parametrize("build", [ipv4, ipv6], ids=["ipv4", "ipv6"])


def run(packet: bytes, offload: Offload | None, *, link: LinkHeader = LinkHeader.NONE) -> Result:
    """Through a MUX that has seen nothing yet. Offsets of ``offload`` are from the IP header."""
    pipeline = Pipeline(SETTINGS.flows, link, first_id=FIRST_ID)
    frame, start = (packet, 0) if link is LinkHeader.NONE else (ethernet(packet), 14)
    if offload is not None and offload.csum_start:
        offload = Offload(offload.gso_size, offload.csum_start + start, offload.csum_offset, offload.verified)
    (result,) = pipeline.process(SNAPSHOT, [(frame, len(frame), 0)], None if offload is None else [offload])
    assert sum(pipeline.counters().reasons) == 1
    return result


def outcome(packet: bytes, offload: Offload | None = TOLD) -> tuple[str, tuple[bytes, ...]]:
    """The same over raw IP and over Ethernet."""
    result, framed = run(packet, offload), run(packet, offload, link=LinkHeader.SWAP)
    assert (framed.reason, tuple(out[14:] for out in framed.out)) == (result.reason, result.out)
    return result.reason, result.out


def header_of(build: Build) -> int:
    return 20 if build is ipv4 else 40


def left(build: Build, field: int = 16, gso_size: int = 0) -> Offload:
    return Offload(gso_size, header_of(build), field)


def backend(build: Build, *, dns: bool = False) -> str:
    return (DNS if dns else WEB) if build is ipv4 else (DNS6 if dns else WEB6)


# ---- checksums ----


@FAMILIES
@pytest.mark.parametrize("length", [0, 1, 2, 1000])
def test_the_transports_checksum_is_finished_where_the_io_tells(build: Build, length: int) -> None:
    for segment, field, dns in ((tcp, 16, False), (udp, 6, True)):
        partial_, whole = (build(segment(payload=data(length), check=check)) for check in ("partial", None))
        assert outcome(partial_, left(build, field)) == ("forwarded", (to(backend(build, dns=dns), whole),))


@FAMILIES
def test_what_the_sender_began_wrongly_stays_wrong(build: Build) -> None:
    """A NIC goes on from what lies in the field; so does a MUX, and the backend sees that the data is not right."""
    packet = build(tcp("A", b"data", check=0x1234))
    (out,) = run(packet, left(build)).out
    inner = out[header_of(build) :]
    assert inner != tunnel.forwarded(tunnel.with_transport_checksum(packet))
    at = header_of(build)
    assert int.from_bytes(inner[at + 16 : at + 18]) == ~ones_complement_sum(packet[at:]) & 0xFFFF


def test_a_sum_that_comes_out_as_zero_is_said_as_ones_in_udp() -> None:
    base = udp(b"\0\0abcd")
    packet = ipv4(base)
    short = (0xFFFF - ones_complement_sum(ipv4(udp(b"\0\0abcd", check="partial"))[20:])).to_bytes(2)
    partial_ = ipv4(udp(short + b"abcd", check="partial"))
    (out,) = run(partial_, left(ipv4, 6)).out
    assert len(packet) == len(partial_)
    assert out[20 + 26 : 20 + 28] == b"\xff\xff"


@FAMILIES
@pytest.mark.parametrize("outer", [0, None], ids=["no outer checksum", "outer checksum"])
@pytest.mark.parametrize("inner_build", [ipv4, ipv6], ids=["of ipv4", "of ipv6"])
def test_a_tunnels_inner_checksum_is_finished_and_the_outer_stays(
    build: Build, outer: int | None, inner_build: Build
) -> None:
    """VXLAN to a service of UDP: its own checksum is zero on purpose, or right once the inner one is finished."""
    for segment, field in ((tcp, 16), (udp, 6)):
        head = vxlan(inner_build(segment(payload=data(99))))
        whole = build(udp(head, check=outer))
        unfinished = vxlan(inner_build(segment(payload=data(99), check="partial")))
        start = header_of(build) + 8
        packet = whole[:start] + unfinished
        assert packet != whole
        offload = Offload(0, start + VXLAN + header_of(inner_build), field)
        assert outcome(packet, offload) == ("forwarded", (to(backend(build, dns=True), whole),))


def test_only_what_is_left_is_finished() -> None:
    for packet in (ipv4(tcp("A", b"x", check=0x1234)), ipv4(tcp("A", b"x", check="partial")), ipv4(udp(check=0))):
        assert outcome(packet)[1] == (to(DNS if packet[9] == 17 else WEB, packet),)


def test_padding_is_not_in_the_sum() -> None:
    partial_, whole = ipv4(udp(b"abc", check="partial")), ipv4(udp(b"abc"))
    assert outcome(partial_ + b"\xee" * 15, left(ipv4, 6)) == ("forwarded", (to(DNS, whole),))
    behind = [ipv4(udp(b"abcdef", length=11, check=check)) for check in (0, 0)]
    seeded = behind[0][:26] + tunnel.pseudo_sum(Header(behind[0]), 11).to_bytes(2) + behind[0][28:]
    assert outcome(seeded, left(ipv4, 6))[1] == (to(DNS, tunnel.with_transport_checksum(behind[0])),)


@FAMILIES
def test_numbers_that_point_anywhere_change_two_bytes_at_most_and_no_header_of_ip(build: Build) -> None:
    chance = random.Random(1)
    packet = build(tcp("A", data(60)))
    at, end = header_of(build), len(packet)
    plain = to(backend(build), packet)
    numbers = [*range(end + 4), 65534, 65535, *(chance.getrandbits(16) for _ in range(200))]
    for start in numbers:
        for offset in (0, 1, 6, 16, end - start - 2, end - start - 1, 65535, 65536 - start):
            if not 0 <= offset <= 65535 or not start:
                continue
            (out,) = run(packet, Offload(0, start, offset)).out
            changed = [i - at for i, (a, b) in enumerate(zip(out, plain, strict=True)) if a != b]
            inside = at <= start and start + offset + 2 <= end
            assert set(changed) <= ({start + offset, start + offset + 1} if inside else set()), (start, offset)


# ---- super-packets ----


@FAMILIES
@pytest.mark.parametrize("size", [1, 500, 1000, FITS6])
def test_a_super_packet_is_cut_at_the_size_that_the_io_says(build: Build, size: int) -> None:
    whole = build(tcp("FPAC", data(4000), check="partial"))
    parts = tunnel.segments(whole, size)
    assert outcome(whole, left(build, gso_size=size)) == (
        "segmented",
        tuple(to(backend(build), part, FIRST_ID + n) for n, part in enumerate(parts)),
    )


@FAMILIES
@pytest.mark.parametrize("df", [True, False])
@pytest.mark.parametrize("size", [FITS + 1, 1460, 8000])
def test_whether_segments_fit_does_not_depend_on_who_merged_them(build: Build, df: bool, size: int) -> None:
    made = partial(ipv4, df=df) if build is ipv4 else build
    whole = made(tcp("A", data(size * 3), check="partial"))
    parts = list(tunnel.segments(whole, size))
    if df or build is ipv6:
        assert {outcome(part) for part in parts} == {("too_big", ())}
        assert outcome(whole, left(build, gso_size=size)) == ("too_big", ())
        return
    alone = [out for part in parts for out in run(part, TOLD).out]
    merged = run(whole, left(build, gso_size=size))
    assert merged.reason == "segmented"
    assert [out[20:] for out in merged.out] == [out[20:] for out in alone], "in fragments, each in a tunnel"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([ipv4, ipv6]),
    st.integers(1, 1600),
    st.integers(1, 8000),
    st.sampled_from(["A", "PA", "FPA", "CA", "EA", "UA"]),
    st.integers(0, 4000),
)
def test_merged_packets_fare_as_they_would_alone(build: Build, size: int, length: int, flags: str, urgent: int) -> None:
    """Each goes on or none does; TCP that fits in one piece may leave in one, as its receiver reads it anyway."""
    whole = build(tcp(flags, data(min(length, 40 * size)), urgent=urgent, check="partial"))
    alone = [run(part, TOLD) for part in tunnel.segments(whole, size)]
    merged = run(whole, left(build, gso_size=size))
    if len(alone) > 1 and any(result.reason == "too_big" for result in alone[:-1]):
        assert merged.reason == "too_big"
    elif merged.reason == "segmented":
        assert list(merged.out) == [out for result in alone for out in result.out]
    else:
        expected = to(backend(build), tunnel.with_transport_checksum(whole)) if merged.out else None
        assert merged.out == ((expected,) if expected else ())
        assert all(result.reason == merged.reason for result in alone)


@pytest.mark.parametrize("length", [1461, 4000, 65495])
def test_a_packet_that_no_offload_made_is_too_big_however_long(length: int) -> None:
    for check in (None, "partial", 0x1234):
        assert outcome(ipv4(tcp("A", data(length), check=check))) == ("too_big", ())
        assert outcome(ipv4(tcp("A", data(length), check=check)), left(ipv4)) == ("too_big", ())


@FAMILIES
def test_a_checksum_is_not_made_right_over_data_that_nobody_verified(build: Build) -> None:
    wrong, right = (build(tcp("A", data(4000), check=check)) for check in (0x1234, None))
    parts = tuple(to(backend(build), part) for part in tunnel.segments(right, 1000))
    assert outcome(wrong, Offload(1000)) == ("too_big", ())
    assert outcome(right, Offload(1000)) == ("segmented", parts)
    assert outcome(wrong, Offload(1000, verified=True)) == ("segmented", parts)


@pytest.mark.parametrize("flags", ["S", "SA", "R", "RA"])
def test_segments_never_open_or_reset_a_connection_several_times(flags: str) -> None:
    packet = ipv4(tcp(flags, data(4000), check="partial"))
    assert outcome(packet, left(ipv4, gso_size=1000)) == ("too_big", ())


@FAMILIES
@pytest.mark.parametrize("check", ["partial", 0])
def test_a_train_of_datagrams_stays_several_and_one_without_checksums_has_none(build: Build, check: int | str) -> None:
    parts = [bytes([n]) * 200 for n in range(5)]
    parts[-1] = parts[-1][1:]
    whole = build(udp(b"".join(parts), check=check))
    single = [numbered(build, udp(p, check=0 if check == 0 else None), n) for n, p in enumerate(parts)]
    offload = Offload(200) if check == 0 else left(build, 6, 200)
    expected = tuple(to(backend(build, dns=True), packet) for packet in single)
    assert outcome(whole, offload) == ("segmented", expected)


def test_a_train_whose_datagrams_do_not_fit_is_too_big() -> None:
    whole = ipv4(udp(data(3000), check="partial"))
    assert outcome(whole, left(ipv4, 6, FITS + 13)) == ("too_big", ())


# ---- super-packets in tunnels ----

VXLAN = 8 + 14  #: its own header and an Ethernet header


def numbered(build: Build, segment: Segment, n: int) -> bytes:
    """As the n-th of several packets: in IPv4 they count up."""
    return ipv4(segment, ident=0x1234 + n) if build is ipv4 else build(segment)


def vxlan(inner: bytes) -> bytes:
    return b"\x08\0\0\0\0\0\x07\0" + ethernet(inner)


@FAMILIES
@pytest.mark.parametrize("outer", [0, None], ids=["no outer checksum", "outer checksum"])
@pytest.mark.parametrize("inner_build", [ipv4, ipv6], ids=["of ipv4", "of ipv6"])
@pytest.mark.parametrize("inner_segment", [tcp, udp], ids=["tcp", "udp"])
def test_a_super_packet_in_a_tunnel_is_cut_into_whole_tunnel_packets(
    build: Build, outer: int | None, inner_build: Build, inner_segment: Callable[..., Segment]
) -> None:
    size, payload = 1000, data(3500)
    is_tcp = inner_segment is tcp

    def carried(part: bytes, n: int, check: str | None = None) -> bytes:
        segment = tcp("A", part, seq=1000 + n * size, check=check) if is_tcp else udp(part, check=check)
        return vxlan(numbered(inner_build, segment, n))

    expected = [numbered(build, udp(carried(payload[n * size : (n + 1) * size], n), check=outer), n) for n in range(4)]
    whole = build(udp(carried(payload, 0, "partial"), check=outer))
    start = header_of(build) + 8 + VXLAN + header_of(inner_build)
    offload = Offload(size, start, 16 if is_tcp else 6)
    assert outcome(whole, offload) == ("segmented", tuple(to(backend(build, dns=True), p) for p in expected))


@pytest.mark.parametrize(
    ("start", "field"), [(20 + 8 + VXLAN + 20, 4), (20 + 8 + VXLAN + 19, 16), (30, 16), (60_000, 16), (3500, 16)]
)
def test_a_tunnel_whose_inside_is_not_found_is_not_cut(start: int, field: int) -> None:
    whole = ipv4(udp(vxlan(ipv4(tcp("A", data(3500), check="partial"))), check=0))
    assert outcome(whole, Offload(1000, start, field)) == ("too_big", ())


@pytest.mark.parametrize("words", [0, 1, 2, 4])
def test_a_tunnel_whose_inner_tcp_says_less_than_its_header_is_not_cut(words: int) -> None:
    start = 20 + 8 + VXLAN + 20
    whole = bytearray(ipv4(udp(vxlan(ipv4(tcp("A", data(3500), check="partial"))), check=0)))
    whole[start + 12] = words << 4
    assert outcome(bytes(whole), Offload(1000, start, 16)) == ("too_big", ())


# ---- above 64 KiB ----


def test_an_ipv4_super_packet_of_which_only_the_io_knows_the_length_is_cut() -> None:
    payload = data(100_000)
    whole = ipv4(tcp("A", payload, check=0), total=0)
    segments = [
        ipv4(tcp("A", payload[i : i + FITS], seq=1000 + i), ident=0x1234 + n)
        for n, i in enumerate(range(0, len(payload), FITS))
    ]
    expected = ("segmented", tuple(to(WEB, packet) for packet in segments))
    assert outcome(whole, left(ipv4, gso_size=FITS)) == expected
    assert outcome(whole)[0] == outcome(whole, None)[0] == "bad_header"
    assert outcome(ipv4(tcp("A", data(4000), check=0), total=0), left(ipv4, gso_size=FITS))[0] == "bad_header"


@pytest.mark.parametrize("option", [True, False], ids=["with its option", "without"])
def test_an_ipv6_super_packet_of_which_only_the_io_knows_the_length_is_cut(option: bool) -> None:
    payload = data(100_000)
    jumbo = ((0, b"\0\xc2\x04" + (len(payload) + 28).to_bytes(4, "big")),) if option else ()
    whole = ipv6(tcp("A", payload, check=0), length=0, extensions=jumbo)
    segments = [ipv6(tcp("A", payload[i : i + FITS6], seq=1000 + i)) for i in range(0, len(payload), FITS6)]
    offload = Offload(FITS6, 48 if option else 40, 16)
    assert outcome(whole, offload) == ("segmented", tuple(to(WEB6, packet) for packet in segments))
    assert outcome(whole)[0] == outcome(whole, None)[0] == "bad_header"


def test_a_large_ipv6_packet_of_no_length_with_other_options_is_not_cut() -> None:
    whole = ipv6(tcp("A", data(70_000), check=0), length=0, extensions=((0, b"\0\1\4\0\0\0\0"),))
    assert outcome(whole, Offload(FITS6, 48, 16)) == ("too_big", ())


# ---- bursts ----


def test_a_burst_of_all_kinds_equals_one_packet_at_a_time() -> None:
    cases: list[tuple[bytes, Offload]] = [
        (ipv4(tcp("A", data(4000), check="partial", sport=1)), left(ipv4, gso_size=700)),
        (ipv4(tcp("A", b"x", check="partial", sport=2)), left(ipv4)),
        (ipv4(tcp("A", b"x", check=7, sport=3)), TOLD),
        (ipv4(udp(data(900), check="partial")), left(ipv4, 6, 100)),
        (ipv4(raw(47, b"x" * 40)), TOLD),
        (ipv6(tcp("A", data(9000), check="partial")), left(ipv6, gso_size=FITS6)),
        (ipv6(tcp("A", data(9000), check="partial")), left(ipv6, gso_size=FITS6 + 1)),
    ] * 9
    together = Pipeline(SETTINGS.flows, LinkHeader.NONE, first_id=FIRST_ID)
    single = Pipeline(SETTINGS.flows, LinkHeader.NONE, first_id=FIRST_ID)
    packets = [(packet, len(packet), 0) for packet, _ in cases]
    results = together.process(SNAPSHOT, packets, [offload for _, offload in cases])
    alone = [single.process(SNAPSHOT, [packet], [o])[0] for packet, (_, o) in zip(packets, cases, strict=True)]
    assert results == alone


def test_the_oracle_knows_a_wrong_checksum() -> None:
    packet = ipv4(tcp("A", b"data"))
    header = Header(packet)
    assert transport_checksum(header.source, header.destination, 6, packet[20:]) == 0
