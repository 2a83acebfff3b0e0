# SPDX-License-Identifier: Apache-2.0
"""What becomes of a tunnel packet on a host: one table of packets, run through the BPF program and through C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from lb.dataplane import HOST_REASONS, DecapProgram, HostPipeline, Offload
from lb.errors import DataplaneError

HOST, HOST6 = IPv4Address("10.0.3.21"), IPv6Address("fd00::21")
MUX, MUX6 = "10.0.1.11", "fd00::11"
VIP, VIP6 = "203.0.113.10", "2001:db8:1::5"
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:9::7"
MUXES = [ip_address(MUX), ip_address("10.0.1.12"), ip_address(MUX6)]
VIPS = [ip_network(text) for text in (VIP, "203.0.113.128/25", "203.0.113.192/26", "2001:db8:1::/64")]


def outer(source: str = MUX, destination: str = str(HOST), **fields: Any) -> Packet:
    return IP(src=source, dst=destination, proto=4, **fields)


def inner(destination: str = VIP, **fields: Any) -> Packet:
    return IP(src=CLIENT, dst=destination, **fields) / TCP(sport=4711, dport=80, flags="S") / Raw(b"data")


@dataclass(frozen=True)
class Case:
    """A packet and what becomes of it; ``out`` None: it ends here, ``reason`` None: it is not ours."""

    name: str
    packet: bytes
    reason: str | None
    out: bytes | None
    kernel_only: bool = False  #: a raw socket never gets such packets


def taken(name: str, tunnel: Packet, packet: Packet, becomes: Packet | None = None) -> Case:
    return Case(name, raw(tunnel / packet), "decapsulated", raw(becomes or packet))


def dropped(name: str, reason: str, packet: Any, *, kernel_only: bool = False) -> Case:
    return Case(name, raw(packet), reason, None, kernel_only)


def passed(name: str, packet: Any) -> Case:
    return Case(name, raw(packet), None, raw(packet), kernel_only=True)


def with_bytes(packet: Packet, offset: int, data: bytes) -> bytes:
    plain = raw(packet)
    return plain[:offset] + data + plain[offset + len(data) :]


CASES = [
    taken("a packet from a MUX to a VIP", outer(), inner()),
    taken("the other MUX", outer("10.0.1.12"), inner()),
    taken("the first address of a prefix", outer(), inner("203.0.113.128")),
    taken("the last address of a prefix", outer(), inner("203.0.113.255")),
    taken("an inner fragment", outer(), IP(src=CLIENT, dst=VIP, flags="MF", proto=17) / Raw(b"x" * 8)),
    taken("inner options", outer(), IP(src=CLIENT, dst=VIP, options=[b"\x94\x04\x00\x00"]) / UDP(dport=53)),
    taken("an inner header and no more", outer(), IP(src=CLIENT, dst=VIP, proto=17, len=20)),
    taken("ECN: outer Not-ECT leaves inner ECT(0)", outer(tos=0), inner(tos=2)),
    taken("ECN: outer CE marks inner ECT(0)", outer(tos=3), inner(tos=2), inner(tos=3)),
    taken(
        "ECN: outer CE marks inner ECT(1), DSCP of the inner header stays",
        outer(tos=3),
        inner(tos=0xB9),
        inner(tos=0xBB),
    ),
    taken("ECN: outer CE leaves inner CE", outer(tos=3), inner(tos=3)),
    taken("ECN: outer ECT(1) reaches inner ECT(0)", outer(tos=1), inner(tos=2), inner(tos=1)),
    taken("ECN: outer ECT(1) leaves inner Not-ECT", outer(tos=1), inner(tos=0)),
    taken("ECN: outer ECT(0) leaves inner ECT(1)", outer(tos=2), inner(tos=1)),
    dropped("ECN: outer CE on inner Not-ECT", "ecn_mismatch", outer(tos=3) / inner(tos=0)),
    dropped("an unknown outer source", "untrusted_source", outer("10.0.1.13") / inner()),
    dropped("a VIP as outer source", "untrusted_source", outer(VIP) / inner()),
    dropped("an outer header with options", "outer_options", outer(options=[b"\x94\x04\x00\x00"]) / inner()),
    dropped("the first outer fragment", "outer_fragment", outer(flags="MF") / inner()),
    dropped("a later outer fragment", "outer_fragment", outer(frag=7) / inner()),
    dropped("an inner destination that is no VIP", "inner_not_vip", outer() / inner("203.0.113.11")),
    dropped("the address before a prefix", "inner_not_vip", outer() / inner("203.0.113.127")),
    dropped("the host itself inside", "inner_not_vip", outer() / inner(str(HOST))),
    dropped("another tunnel inside", "inner_not_vip", outer() / outer() / inner()),
    dropped("IPv6 in IPv4", "inner_malformed", outer() / IPv6(src=CLIENT6, dst=VIP6) / UDP()),
    dropped("nothing inside", "inner_malformed", outer()),
    dropped("half an inner header", "inner_malformed", outer() / Raw(raw(inner())[:10])),
    dropped("an inner packet cut short", "inner_malformed", outer() / Raw(raw(inner())[:-1])),
    dropped("an inner header length below its minimum", "inner_malformed", with_bytes(outer() / inner(), 20, b"\x44")),
    dropped(
        "an inner total length below its header", "inner_malformed", with_bytes(outer() / inner(), 22, b"\x00\x13")
    ),
    passed("another outer destination", outer(destination="10.0.3.22") / inner()),
    passed("another protocol", IP(src=MUX, dst=str(HOST)) / UDP(dport=53)),
    passed("the VIP without a tunnel", inner()),
    passed("GRE", IP(src=MUX, dst=str(HOST), proto=47) / Raw(b"\0" * 40)),
    passed("a frame of another kind", b""),
]


def outer6(source: str = MUX6, **fields: Any) -> Packet:
    return IPv6(src=source, dst=str(HOST6), nh=41, **fields)


def inner6(destination: str = VIP6, **fields: Any) -> Packet:
    return IPv6(src=CLIENT6, dst=destination, **fields) / TCP(sport=4711, dport=80, flags="S") / Raw(b"data")


CASES6 = [
    taken("IPv6: a packet from a MUX to a VIP", outer6(), inner6()),
    taken("IPv6: outer CE marks inner ECT(0)", outer6(tc=3), inner6(tc=0xB2, fl=0x12345), inner6(tc=0xB3, fl=0x12345)),
    taken("IPv6: outer ECT(1) reaches inner ECT(0)", outer6(tc=1), inner6(tc=2), inner6(tc=1)),
    dropped("IPv6: outer CE on inner Not-ECT", "ecn_mismatch", outer6(tc=3) / inner6()),
    dropped("IPv6: an unknown outer source", "untrusted_source", outer6("fd00::12") / inner6()),
    dropped("IPv6: an inner destination that is no VIP", "inner_not_vip", outer6() / inner6("2001:db8:2::5")),
    dropped("IPv6: an inner packet cut short", "inner_malformed", outer6() / Raw(raw(inner6())[:-1])),
    dropped("IPv6: IPv4 inside", "inner_malformed", outer6() / inner() / Raw(b"x" * 40)),
    passed("IPv6: another outer destination", IPv6(src=MUX6, dst="fd00::22", nh=41) / inner6()),
]


def udp(variant: int = 0, *, protocol: int = 4, check: int = 0, **fields: Any) -> Packet:
    """UDP to the tunnels' port, with the four bytes of variant 0."""
    made = UDP(**{"sport": 50000, "dport": 6080, "chksum": check, **fields})
    return made / Raw(bytes([0, protocol, 0, 0])) if variant == 0 else made


def gue(source: str = MUX, **fields: Any) -> Packet:
    return IP(src=source, dst=str(HOST), **fields)


def gue6(source: str = MUX6, **fields: Any) -> Packet:
    return IPv6(src=source, dst=str(HOST6), nh=17, **fields)


def sit(**fields: Any) -> Packet:
    return IP(src=MUX, dst=str(HOST), proto=41, **fields)


def bytes_of_gue(header: bytes, packet: Packet) -> Packet:
    return gue() / UDP(sport=1, dport=6080, chksum=0) / Raw(header + raw(packet))


#: Tunnels that a raw socket hands over with no outer header of theirs are made again by io_raw.c; here they are whole.
TUNNELS = [
    taken("6in4", sit(), inner6()),
    taken("4in6", IPv6(src=MUX6, dst=str(HOST6), nh=4), inner()),
    taken("GUE variant 0 of IPv4 in IPv4", gue() / udp(), inner()),
    taken("GUE variant 0 of IPv6 in IPv4", gue() / udp(protocol=41), inner6()),
    taken("GUE variant 0 of IPv4 in IPv6", gue6() / udp(), inner()),
    taken("GUE variant 0 of IPv6 in IPv6", gue6() / udp(protocol=41), inner6()),
    taken("GUE variant 1 of IPv4 in IPv4", gue() / udp(1), inner()),
    taken("GUE variant 1 of IPv6 in IPv4", gue() / udp(1), inner6()),
    taken("GUE variant 1 of IPv4 in IPv6", gue6() / udp(1), inner()),
    taken("GUE variant 1 of IPv6 in IPv6", gue6() / udp(1), inner6()),
    taken("GUE from any port", gue() / udp(sport=9), inner()),
    taken("GUE: outer CE marks inner ECT(0)", gue(tos=3) / udp(), inner(tos=2), inner(tos=3)),
    taken("GUE: outer CE in IPv6 marks inner ECT(0) of IPv4", gue6(tc=3) / udp(), inner(tos=2), inner(tos=3)),
    taken("6in4: outer CE marks inner ECT(0)", sit(tos=3), inner6(tc=2), inner6(tc=3)),
    taken("6in4: outer ECT(1) reaches inner ECT(0)", sit(tos=1), inner6(tc=2), inner6(tc=1)),
    dropped("GUE: outer CE on inner Not-ECT", "ecn_mismatch", gue(tos=3) / udp() / inner()),
    dropped("GUE from a stranger", "untrusted_source", gue("10.9.9.9") / udp() / inner()),
    dropped("GUE from a stranger in IPv6", "untrusted_source", gue6("fd00::99") / udp() / inner()),
    dropped("GUE to no VIP", "inner_not_vip", gue() / udp() / inner("203.0.113.11")),
    dropped("GUE to no VIP of IPv6", "inner_not_vip", gue() / udp(1) / inner6("2001:db8:2::5")),
    dropped("6in4 to no VIP", "inner_not_vip", sit() / inner6("2001:db8:2::5")),
    dropped("GUE with a checksum", "gue_malformed", gue() / udp(check=1) / inner()),
    dropped("GUE that says the other family", "inner_malformed", gue() / udp(protocol=41) / inner() / Raw(b"x" * 40)),
    dropped("GUE of another protocol", "gue_malformed", gue() / udp(protocol=17) / inner()),
    dropped("a control message of GUE", "gue_malformed", bytes_of_gue(b"\x20\x04\0\0", inner())),
    dropped("GUE with optional fields", "gue_malformed", bytes_of_gue(b"\x01\x04\0\0\0\0\0\0", inner())),
    dropped("GUE with a flag", "gue_malformed", bytes_of_gue(b"\0\x04\x80\0", inner())),
    dropped("GUE of a later version", "gue_malformed", bytes_of_gue(b"\x80\x04\0\0", inner())),
    dropped("bare GUE with neither version", "gue_malformed", bytes_of_gue(b"\x50\x04\0\0", inner())),
    dropped("GUE whose UDP length is too long", "outer_length", gue() / udp(len=70) / inner()),
    dropped("GUE whose UDP length is too short", "outer_length", gue() / udp(len=20) / inner()),
    dropped("GUE with an inner packet cut short", "inner_malformed", gue() / udp() / Raw(raw(inner())[:-1])),
    dropped(
        "GUE in an outer header with options", "outer_options", gue(options=[b"\x94\x04\x00\x00"]) / udp() / inner()
    ),
    dropped("the first fragment of GUE", "outer_fragment", gue(flags="MF") / udp() / inner()),
    passed("a later fragment that looks like GUE", gue(frag=7) / udp() / inner()),
    passed("UDP to another port", gue() / udp(dport=6081) / inner()),
    passed("GUE to another address", IP(src=MUX, dst="10.0.3.22") / udp() / inner()),
    passed("GUE in IPv6 to another address", IPv6(src=MUX6, dst="fd00::22", nh=17) / udp() / inner()),
    passed("UDP to the port and nothing in it", gue() / UDP(sport=1, dport=6080, chksum=0)),
    dropped("a wrong outer checksum", "outer_checksum", outer(chksum=0x1234) / inner()),
    dropped("a wrong outer checksum of GUE", "outer_checksum", gue(chksum=0x1234) / udp() / inner()),
    dropped("an outer length beyond the packet", "outer_length", outer(len=1000) / inner()),
    dropped("an outer length beyond the packet in IPv6", "outer_length", outer6(plen=1000) / inner6()),
    dropped("an outer length that cuts the inner packet", "inner_malformed", outer(len=60) / inner()),
    dropped("an outer length below the inner header", "inner_malformed", outer(len=30) / inner()),
    dropped("no hops left inside", "inner_expired", outer() / inner(ttl=0)),
    dropped("no hops left inside of IPv6", "inner_expired", outer6() / inner6(hlim=0)),
    dropped("no hops left inside of GUE", "inner_expired", gue() / udp() / inner(ttl=0)),
    taken("one hop left inside", outer(), inner(ttl=1)),
    taken("DSCP outside is not taken over", outer(tos=46 << 2), inner(tos=0)),
]


def names(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.fixture(scope="module")
def program() -> DecapProgram:
    try:
        return DecapProgram.load(address=HOST, address6=HOST6, link_header=14, muxes=MUXES, vips=VIPS)
    except DataplaneError as error:
        pytest.skip(f"the kernel takes no BPF program from this user: {error}")


def changed(read: Callable[[], dict[str, int]], run: Callable[[], object]) -> dict[str, int]:
    """The counters that a run changes, by how much."""
    before = read()
    run()
    return {name: count - before[name] for name, count in read().items() if count != before[name]}


def frame(packet: bytes) -> bytes:
    kind = 0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800
    link = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01", type=kind)
    return raw(link / Raw(packet)) if packet else raw(Ether(src=link.src, dst=link.dst) / ARP(pdst="10.0.3.9"))


@pytest.mark.parametrize("case", [*CASES, *CASES6, *TUNNELS], ids=names)
def test_bpf_program_decides(program: DecapProgram, case: Case) -> None:
    out: list[bytes | None] = []
    counted = changed(program.counters, lambda: out.append(program.test(frame(case.packet))))
    assert counted == ({case.reason: 1} if case.reason else {})
    if case.out is None:
        assert out == [None]
    elif case.packet:
        assert out == [frame(case.packet)[:14] + case.out]


@pytest.mark.parametrize("case", [c for c in (*CASES, *CASES6, *TUNNELS) if not c.kernel_only], ids=names)
def test_userspace_decides_the_same(case: Case) -> None:
    pipeline = HostPipeline(MUXES, VIPS)
    out = pipeline.process([case.packet])
    assert out == ([case.out] if case.out is not None else [])
    assert {name: count for name, count in pipeline.counters().items() if count} == {case.reason: 1}


def unfinished(packet: Packet, protocol: int, segment: bytes) -> bytes:
    """The packet with the sum of its pseudo-header where the checksum belongs, as a sender with offloads leaves it."""
    source, destination = IPv4Address(packet.src).packed, IPv4Address(packet.dst).packed
    words = source + destination + bytes([0, protocol]) + len(segment).to_bytes(2)
    total = sum(int.from_bytes(words[i : i + 2]) for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    offset = 20 + (16 if protocol == 6 else 6)
    return with_bytes(packet, offset, total.to_bytes(2))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 1400, 30001])
@pytest.mark.parametrize(
    "transport", [TCP(sport=4711, dport=80, flags="PA"), UDP(sport=53, dport=53)], ids=["tcp", "udp"]
)
def test_userspace_finishes_a_checksum_that_was_left_to_hardware(transport: Packet, length: int) -> None:
    right = raw(IP(src=CLIENT, dst=VIP) / transport.copy() / Raw(bytes(i & 0xFF for i in range(length))))
    packet = IP(right)
    left = unfinished(packet, packet.proto, right[20:])
    assert left != right
    pipeline = HostPipeline(MUXES, VIPS)
    assert pipeline.process([raw(outer() / Raw(left)), raw(outer() / Raw(right))]) == [right, right]


@pytest.mark.parametrize("start", [20, 28, 36, 60])
def test_userspace_finishes_the_checksum_that_an_io_tells_of(start: int) -> None:
    """Of a tunnel within the packet, say; the value of the transport's own is no hint then."""
    right = raw(IP(src=CLIENT, dst=VIP) / UDP(sport=1, dport=4789, chksum=0) / Raw(bytes(range(100))))
    at = start + 6
    words = right[start:at] + b"\x12\x34" + right[at + 2 :]
    total = sum(int.from_bytes(words[i : i + 2]) for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    left, done = (right[:at] + value + right[at + 2 :] for value in (b"\x12\x34", (~total & 0xFFFF).to_bytes(2)))
    pipeline = HostPipeline(MUXES, VIPS)
    assert pipeline.process([raw(outer() / Raw(left))], Offload(0, 20 + start, 6)) == [done]


@pytest.mark.parametrize(
    ("start", "field"), [(1, 0), (20, 10), (39, 4), (40, 127), (100, 100), (65535, 65535), (168, 0)]
)
def test_userspace_writes_nowhere_that_an_io_tells_wrongly(start: int, field: int) -> None:
    packet = raw(IP(src=CLIENT, dst=VIP) / UDP(sport=1, dport=4789, chksum=0) / Raw(bytes(range(100))))
    assert len(packet) == 128
    pipeline = HostPipeline(MUXES, VIPS)
    assert pipeline.process([raw(outer() / Raw(packet))], Offload(0, start, field)) == [packet]


def test_userspace_leaves_wrong_checksums_and_fragments_alone() -> None:
    wrong = with_bytes(inner(), 36, b"\x12\x34")
    fragment = raw(IP(src=CLIENT, dst=VIP, proto=17, frag=3) / Raw(b"\0" * 40))
    none = raw(IP(src=CLIENT, dst=VIP) / UDP(sport=1, dport=2, chksum=0) / Raw(b"x"))
    pipeline = HostPipeline(MUXES, VIPS)
    packets = [wrong, fragment, none]
    assert pipeline.process([raw(outer() / Raw(packet)) for packet in packets]) == packets


def test_published_rules_count_from_the_next_packet() -> None:
    pipeline = HostPipeline(MUXES, VIPS)
    packet = raw(outer() / inner())
    assert len(pipeline.process([packet])) == 1
    pipeline.publish(MUXES, [])
    pipeline.publish([], VIPS)
    assert pipeline.process([packet]) == []
    assert pipeline.counters()["untrusted_source"] == 1


def test_program_is_known_again_by_its_contents(program: DecapProgram) -> None:
    assert program.muxes() == {ip_network(mux) for mux in MUXES}
    assert program.vips() == set(VIPS)
    same = DecapProgram.load(address=HOST, address6=HOST6, link_header=14, muxes=MUXES, vips=VIPS, inherit=program)
    other = DecapProgram.load(address=IPv4Address("10.0.3.22"), address6=HOST6, link_header=14, muxes=[], vips=[])
    assert same.tag == program.tag != other.tag
    before = program.counters()["untrusted_source"]
    same.test(frame(raw(outer("10.9.9.9") / inner())))
    assert program.counters()["untrusted_source"] == before + 1, "counters are shared with the program inherited from"


def test_program_without_ipv6_leaves_ipv6_tunnels_to_the_kernel(program: DecapProgram) -> None:
    only4 = DecapProgram.load(address=HOST, address6=None, link_header=14, muxes=MUXES, vips=VIPS)
    packet = frame(raw(outer6() / inner6()))
    assert only4.test(packet) == packet


def test_program_without_a_port_leaves_udp_alone() -> None:
    without = DecapProgram.load(address=HOST, address6=HOST6, link_header=14, muxes=MUXES, vips=VIPS, gue_port=0)
    packet = frame(raw(gue() / udp() / inner()))
    assert without.test(packet) == packet
    assert without.test(frame(raw(outer() / inner()))) is not None


def test_program_of_a_host_with_ipv6_alone_takes_both_families() -> None:
    only6 = DecapProgram.load(address=None, address6=HOST6, link_header=14, muxes=MUXES, vips=VIPS)
    for packet in (inner(), inner6()):
        tunnel = IPv6(src=MUX6, dst=str(HOST6), nh=4 if packet.version == 4 else 41)
        taken_out = only6.test(frame(raw(tunnel / packet)))
        assert taken_out is not None
        assert taken_out[14:] == raw(packet)
    packet = frame(raw(outer() / inner()))
    assert only6.test(packet) == packet


def test_this_kernel_takes_packets_out_of_tunnels_of_the_other_family(program: DecapProgram) -> None:
    assert program.counters()  # it loads
    assert DecapProgram.crosses()


def test_reasons_have_names_and_sentences() -> None:
    assert len({reason.name for reason in HOST_REASONS}) == len(HOST_REASONS)
    assert all(reason.help.endswith(".") for reason in HOST_REASONS)
    assert [reason.name for reason in HOST_REASONS if not reason.drops] == ["decapsulated"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 140), st.binary(max_size=4))
def test_userspace_survives_any_bytes(noise: bytes, cut: int, patch: bytes) -> None:
    pipeline = HostPipeline(MUXES, VIPS)
    good = raw(outer() / inner())
    mutated = good[:cut] + patch + good[cut + len(patch) :]
    packets = [noise, mutated, good[:cut], raw(outer()) + noise]
    pipeline.process(packets)
    assert sum(pipeline.counters().values()) == len(packets)


def test_refusal_of_the_kernel_is_told_in_a_sentence() -> None:
    from lb.dataplane import host

    assert "not permitted" in host.bpf_refusal(-1, "")
    assert host.bpf_refusal(-22, "0: r0 = 1\nR1 !read_ok\nprocessed 1 insns\n").endswith("R1 !read_ok")
