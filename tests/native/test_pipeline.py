# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline against the whole model, over any packets, in bursts of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from lb.dataplane import REASONS, Answers, LinkHeader, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler
from lb.model import Backend, BackendState, HashMode, Idle, MuxSettings, PortRange, Protocol, Service, Unserved
from tests.model.checksum import checksum
from tests.model.mux import Expected, Mux, Options
from tests.packets.build import CLIENT, CLIENT6, icmp, ipv4, ipv6, ping, tcp, udp
from tests.packets.rows import ROWS
from tests.packets.world import FIRST_ID, SETTINGS

SECOND = 1_000_000_000
SMALL: MuxSettings = replace(SETTINGS, slots=61, idle=Idle(tcp=300, tcp_untrusted=10, udp=60))

# ---- the strategy: few services, few clients, so that everything meets everything ----

V4 = [Backend(f"b{i}", ip_address(f"10.0.3.{i}")) for i in range(1, 5)]
V6 = [Backend(f"b{i}", ip_address(f"2001:db8:3::{i}")) for i in range(1, 4)]


def a_service(name: str, vip: str, protocol: Protocol, ports: tuple[int, int], idle: int | None = None) -> Service:
    mode = HashMode.SOURCE if name == "sticky" else HashMode.FIVE_TUPLE
    return Service(name, ip_network(vip), protocol, PortRange(*ports), (), hash=mode, idle=idle)


SHAPES = (
    a_service("web", "203.0.113.10", Protocol.TCP, (80, 80)),
    a_service("dns", "203.0.113.10", Protocol.UDP, (53, 53)),
    a_service("range", "203.0.113.10", Protocol.TCP, (81, 90), idle=30),
    a_service("sticky", "203.0.113.8/29", Protocol.UDP, (0, 65535), idle=120),
    a_service("six", "2001:db8:f::10", Protocol.TCP, (80, 80)),
    a_service("net6", "2001:db8:f::/64", Protocol.UDP, (0, 65535)),
)


@st.composite
def some_services(draw: st.DrawFn) -> tuple[Service, ...]:
    chosen = []
    for shape in SHAPES:
        if draw(st.integers(0, 9)) == 0:
            continue
        pool = V4 if shape.vip.version == 4 else V6
        members = []
        for backend in pool:
            state = draw(st.sampled_from([BackendState.UP] * 4 + [BackendState.DRAIN, BackendState.DOWN, None]))
            if state is not None:
                weight = draw(st.sampled_from([1, 1, 3, 0]))
                members.append(replace(backend, state=state, weight=weight))
        chosen.append(replace(shape, backends=tuple(members)))
    return tuple(chosen)


@st.composite
def a_packet(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 13))
    if kind > 11:
        return draw(an_icmp())
    if kind == 0:
        return draw(st.sampled_from(ROWS)).packet[:3000]
    if kind == 1:
        return draw(st.binary(max_size=80))
    sport = draw(st.integers(1, 4))
    ttl = draw(st.sampled_from([64, 64, 64, 2, 1]))
    if kind % 2:
        segment = tcp(draw(st.sampled_from(["S", "S", "A", "PA", "FA", "R"])), sport=sport, dport=draw(TCP_PORTS))
    else:
        segment = udp(sport=sport, dport=draw(st.sampled_from([53, 54])))
    if kind < 9:
        df = draw(st.booleans())
        return ipv4(segment, to=draw(VIPS), source=draw(SOURCES), ttl=ttl, df=df)
    return ipv6(segment, to=draw(VIPS6), source=draw(SOURCES6), hops=ttl)


@st.composite
def an_icmp(draw: st.DrawFn) -> bytes:
    """Errors about flows of :func:`a_packet`, mostly; bytes of them changed or cut off now and then; and pings."""
    six = draw(st.booleans())
    vip, source = draw(VIPS6 if six else VIPS), draw(SOURCES6 if six else SOURCES)
    ttl = draw(st.sampled_from([64, 64, 64, 1]))
    if draw(st.integers(0, 3)) == 0:
        segment = ping(draw(st.binary(max_size=9)), six=six)
    else:
        port, client_port = draw(st.sampled_from([80, 80, 85, 53, 54, 9])), draw(st.integers(1, 4))
        quoted = tcp("A", sport=port, dport=client_port) if draw(st.booleans()) else udp(sport=port, dport=client_port)
        other = draw(st.sampled_from([vip, vip, vip, vip, draw(VIPS6 if six else VIPS)]))
        packet = ipv6(quoted, source=other, to=CLIENT6) if six else ipv4(quoted, source=other, to=CLIENT)
        kinds = (1, 2, 2, 3, 4, 137) if six else (3, 3, 3, 11, 12, 5)
        cut = draw(st.sampled_from([28, 48, 48, 60, 100, 20]))
        segment = icmp(draw(st.sampled_from(kinds)), 4, 1300, packet[:cut], six=six)
    if six:
        return ipv6(segment, source=source, to=vip, hops=ttl)
    return ipv4(segment, source=source, to=vip, ttl=ttl)


VIPS, VIPS6 = (
    st.sampled_from(["203.0.113.10", "203.0.113.9"]),
    st.sampled_from(["2001:db8:f::10", "2001:db8:f::11"]),
)
#: Mostly one client; the MUX, backends, and what no router may forward.
SOURCES = st.sampled_from(
    [CLIENT] * 16 + ["10.0.1.11", "10.0.3.1", "10.0.3.2", "169.254.1.1", "240.0.0.1", "10.0.3.77"]
)
SOURCES6 = st.sampled_from(
    [CLIENT6] * 16 + ["2001:db8:1::11", "2001:db8:3::1", "fe80::1", "::ffff:10.0.0.1", "fe00::1"]
)


TCP_PORTS = st.sampled_from([80, 80, 80, 85, 9])
#: Seconds between packets: mostly none, some short, some beyond each timeout, some back, some beyond what stamps hold.
STEPS = st.sampled_from([0] * 12 + [0.1, 1, 5, 11, 29, 31, 61, 121, 301, -5, -400, 2000, 2300, 20_000])

Event = tuple[bytes, float]
BATCHES = st.lists(
    st.tuples(some_services(), st.lists(st.tuples(a_packet(), STEPS), max_size=40), st.integers(1, 9)),
    min_size=1,
    max_size=4,
)
Batch = tuple[tuple[Service, ...], list[Event], int]


def without_id(packet: bytes) -> bytes:
    """The outer ID is counted for each way, and the ways change with the services: compared elsewhere."""
    if not packet or packet[0] >> 4 != 4:
        return packet
    assert checksum(packet[: (packet[0] & 15) * 4]) == 0
    return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]


class Twins:
    """A pipeline and its model, given the same."""

    def __init__(self, mine: MuxSettings = SMALL, *, partial: bool = False) -> None:
        self.compiler = Compiler(mine)
        self.pipeline = Pipeline(
            mine.flows, LinkHeader.NONE, detect_partial=partial, first_id=FIRST_ID, answers=Answers.of(mine)
        )
        self.model = Mux(mine, Options(detect_partial=partial, first_id=FIRST_ID, answers=True))
        self.now = 1_000_000 * SECOND
        self.processed = 0

    def run(self, services: Sequence[Service], events: Sequence[Event], burst: int) -> None:
        forwarding = self.compiler.compile(services)
        snapshot = forwarding.offline_snapshot()
        self.model.publish(services)
        packets = []
        for data, step in events:
            self.now += int(step * SECOND)
            packets.append((data, len(data), self.now))
        results: list[Result] = []
        for start in range(0, len(packets), burst):
            results += self.pipeline.process(snapshot, packets[start : start + burst])
            assert self.pipeline.check() is None
        for (data, length, now), result in zip(packets, results, strict=True):
            expected = self.model.process(data, length, now)
            service, backend = forwarding.names(result.service_id, result.backend)
            found = Expected(result.reason, service, backend, result.flow, tuple(map(without_id, result.out)))
            assert found == expected._replace(out=tuple(map(without_id, expected.out)))
        self.processed += len(packets)
        counters = self.pipeline.counters()
        assert counters.received == sum(counters.reasons) == self.processed


@settings(max_examples=120, deadline=None)
@given(BATCHES, st.booleans(), st.sampled_from(Unserved), st.sampled_from([1, 2, 1000, 0]))
def test_any_packets_in_bursts_of_any_size_are_what_the_model_says(
    batches: list[Batch], partial: bool, unserved: Unserved, answers: int
) -> None:
    twins = Twins(replace(SMALL, unserved=unserved, answers=answers), partial=partial)
    for services, events, burst in batches:
        twins.run(services, events, burst)


@settings(max_examples=40, deadline=None)
@given(some_services(), st.lists(a_packet(), max_size=200), st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_a_burst_is_its_packets_one_at_a_time(
    services: tuple[Service, ...], packets: list[bytes], sizes: list[int]
) -> None:
    """With identifications, and through bursts larger than the data plane's own."""
    snapshot = Compiler(SMALL).compile(services).offline_snapshot()
    events = [(packet, len(packet), 0) for packet in packets]
    few = Answers(2, Unserved.RESET, (SMALL.address,))
    single, bursts = Pipeline(1000, LinkHeader.NONE, answers=few), Pipeline(1000, LinkHeader.NONE, answers=few)
    expected = [single.process(snapshot, [event])[0] for event in events]
    found: list[Result] = []
    while len(found) < len(events):
        size = sizes[len(found) % len(sizes)]
        found += bursts.process(snapshot, events[len(found) : len(found) + size])
    assert found == expected
    assert bursts.counters() == single.counters()


def test_all_rows_in_one_go_are_what_the_model_says() -> None:
    twins = Twins()
    services = [replace(shape, backends=tuple(V4 if shape.vip.version == 4 else V6)) for shape in SHAPES]
    for burst in (1, 64, 1000):
        twins.run(services, [(row.packet, 0) for row in ROWS], burst)


def test_among_strangers_each_row_is_what_the_model_says() -> None:
    """A burst of which nothing is ours makes the next be looked at in haste."""
    stranger, other = (ipv4(tcp("S", check=0), to=to) for to in ("198.51.100.7", "203.0.113.11"))
    strangers = [stranger, other] * 4
    services = [replace(shape, backends=tuple(V4)) for shape in SHAPES if shape.vip.version == 4]
    for chosen in (services[:1], services):  # of one address and port each, and of others too
        twins = Twins()
        for place in (0, 3, 7):
            bursts = [[*strangers, *strangers[:place], row.packet, *strangers[place + 1 :]] for row in ROWS]
            twins.run(chosen, [(packet, 0) for burst in bursts for packet in burst], 8)


def test_counters_of_services_and_backends_add_up() -> None:
    compiler = Compiler(SMALL)
    services = [replace(shape, backends=tuple(V4 if shape.vip.version == 4 else V6)) for shape in SHAPES]
    forwarding = compiler.compile(services)
    pipeline = Pipeline(1000, LinkHeader.NONE)
    packets = [row.packet for row in ROWS] * 3
    results = pipeline.process(forwarding.offline_snapshot(), [(p, len(p), 0) for p in packets])
    sent = 0
    for service_id in range(len(services)):
        name = forwarding.names(service_id, None)[0]
        mine = [(p, r) for p, r in zip(packets, results, strict=True) if r.service_id == service_id]
        forwarded = [(p, r) for p, r in mine if r.verdict == 0]
        counted = pipeline.service_counters(service_id)
        assert (counted.packets, counted.dropped) == (len(forwarded), len(mine) - len(forwarded)), name
        assert counted.flows == sum(r.flow == "new" for _, r in forwarded)
        lengths = [
            int.from_bytes(p[2:4], "big") if p[0] >> 4 == 4 else 40 + int.from_bytes(p[4:6], "big")
            for p, _ in forwarded
        ]
        assert counted.bytes == sum(lengths)
        sent += len(forwarded)
    counters = pipeline.counters()
    by_name = dict(zip((r.name for r in REASONS), counters.reasons, strict=True))
    assert sum(by_name[name] for name in ("forwarded", "segmented", "icmp_error", "fragment")) == sent > 0
