# SPDX-License-Identifier: Apache-2.0
"""A flow table that is full: floods, more flows than fit, and still the same whatever the burst."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from lb.dataplane import LinkHeader, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler
from lb.model import Backend, Idle, PortRange, Protocol, Service
from tests.packets.build import ipv4, tcp
from tests.packets.world import SETTINGS

SECOND = 1_000_000_000
#: Of the flow table's clock.
TICK = 1 << 28
#: Places of the smallest table there is: 65,536 lines of six.
ROOM = 393_216

BACKENDS = tuple(Backend(f"b{i}", ip_address(f"10.0.3.{i}")) for i in range(1, 9))
WEB = Service("web", ip_network("203.0.113.10"), Protocol.TCP, PortRange(80, 80), BACKENDS)
FORWARDING = Compiler(replace(SETTINGS, idle=Idle(tcp=900, tcp_untrusted=10))).compile([WEB])
SNAPSHOT = FORWARDING.offline_snapshot()


@cache
def _around_ports(flags: str, source: int) -> tuple[bytes, bytes]:
    packet = ipv4(tcp(flags, check=0), source=str(IPv4Address(0x0A000000 + source)))
    return packet[:20], packet[22:]


def packet(flags: str, flow: int) -> bytes:
    """Of the flow with this number."""
    before, after = _around_ports(flags, flow >> 16)
    return before + (flow & 0xFFFF).to_bytes(2, "big") + after


class Load:
    """A pipeline with the smallest table, and a way to send many packets quickly."""

    def __init__(self, burst: int = 64) -> None:
        self.pipeline = Pipeline(1, LinkHeader.NONE)
        self.burst = burst

    def send(self, flags: str, flows: Sequence[int], now: int = 0) -> Iterator[Result]:
        for start in range(0, len(flows), self.burst):
            rows = [(packet(flags, flow), 40, now) for flow in flows[start : start + self.burst]]
            yield from self.pipeline.process(SNAPSHOT, rows)

    def reports(self, flags: str, flows: Sequence[int], now: int = 0) -> Counter[str | None]:
        return Counter(result.flow for result in self.send(flags, flows, now))


def test_a_syn_flood_moves_no_established_flow_and_loses_no_packet() -> None:
    load = Load()
    mine, flood = range(2000), range(1 << 20, (1 << 20) + ROOM * 3 // 2)
    before = [result.backend for result in load.send("S", mine)]
    load.reports("A", mine)  # at once, as a handshake's last: it is young still
    for result in load.send("S", flood):
        assert result.reason == "forwarded"
    counters = load.pipeline.counters().flows
    assert counters.evicted > 0
    assert load.pipeline.check() is None
    after = list(load.send("A", mine))
    assert [result.backend for result in after] == before
    assert {result.flow for result in after} == {"known"}
    assert load.reports("S", range(3000, 4000)) == {"new": 1000}, "new flows found no place"


def test_an_ack_flood_moves_no_established_flow() -> None:
    load = Load()
    mine, flood = range(2000), range(1 << 20, (1 << 20) + ROOM * 5 // 4)
    before = [result.backend for result in load.send("S", mine)]
    load.reports("A", mine)
    assert set(load.reports("A", flood)) == {"new"}
    after = list(load.send("A", mine))
    assert [result.backend for result in after] == before
    assert {result.flow for result in after} == {"known"}
    assert load.pipeline.check() is None


@pytest.mark.parametrize("end", ["FA", "R"])
def test_a_forged_end_costs_a_live_flow_nothing_while_there_is_room(end: str) -> None:
    """Neither time nor a flood that finds other room takes its place; nor does a quiet client's ACK find it gone."""
    load = Load()
    load.reports("S", [7])
    load.reports("A", [7], TICK)
    assert load.reports(end, [7], TICK) == {"known": 1}
    load.reports("S", range(1 << 20, (1 << 20) + ROOM // 2), 20 * SECOND)
    assert load.reports("A", [7], 890 * SECOND) == {"known": 1}


def test_a_conversation_that_was_young_when_it_fell_silent_is_remembered_as_long_as_any() -> None:
    """Handshake, a request, then nothing for minutes: so connection pools behave."""
    load = Load()
    assert load.reports("S", [7]) == {"new": 1}
    assert load.reports("A", [7]) == load.reports("PA", [7]) == {"known": 1}
    assert load.reports("A", [7], 890 * SECOND) == {"known": 1}
    assert load.reports("S", [8], 890 * SECOND) == {"new": 1}
    assert load.reports("A", [8], 902 * SECOND) == {"new": 1}, "of one that only knocked nothing is kept"


def test_flows_that_find_no_place_are_forwarded_where_maglev_says() -> None:
    """More trusted flows than fit: what is in stays in, what is not goes on without an entry."""
    load = Load()
    flows = list(range(ROOM * 11 // 10))
    remembered: dict[int, int | None] = {}
    untracked = []
    for turn, start in enumerate(range(0, len(flows), 1 << 16)):
        some = flows[start : start + (1 << 16)]
        first = list(load.send("S", some, 2 * turn * TICK))
        for flow, result, again in zip(some, first, load.send("A", some, (2 * turn + 1) * TICK), strict=True):
            assert result.reason == again.reason == "forwarded"
            assert result.backend == again.backend
            if again.flow == "known":
                remembered[flow] = again.backend
            else:
                untracked.append((flow, again))
    counters = load.pipeline.counters().flows
    assert load.pipeline.check() is None
    assert counters.refused > 0
    assert counters.moved > 0
    assert untracked
    assert {result.flow for _, result in untracked} <= {"untracked", "new"}
    for flow, result in random.Random(1).sample(untracked, 500):
        source = IPv4Address(0x0A000000 + (flow >> 16))
        found = FORWARDING.lookup(Protocol.TCP, source, flow & 0xFFFF, ip_address("203.0.113.10"), 80)
        assert found.backend is not None
        assert FORWARDING.names(result.service_id, result.backend)[1] == found.backend.name
    # Nobody who was once trusted has been moved out by all the others.
    some = random.Random(2).sample(sorted(remembered), 20_000)
    for flow, result in zip(some, load.send("A", some, 2 * turn * TICK), strict=True):
        assert (result.flow, result.backend) == ("known", remembered[flow])


def reports_in_bursts(rows: Sequence[tuple[bytes, int, int]], burst: int) -> list[tuple[str | None, int | None]]:
    pipeline = Pipeline(1, LinkHeader.NONE)
    report: list[tuple[str | None, int | None]] = []
    for start in range(0, len(rows), burst):
        report += [(r.flow, r.backend) for r in pipeline.process(SNAPSHOT, rows[start : start + burst])]
    assert pipeline.check() is None
    counters = pipeline.counters()
    assert counters.flows.evicted > 0
    assert counters.received == sum(counters.reasons) == len(rows)
    return report


def test_under_pressure_too_a_burst_is_its_packets_one_at_a_time() -> None:
    """Untrusted, trusted, expired and evicted flows all at once, with the clock moving; whatever is where in the table
    must not depend on how packets came together."""
    choose = random.Random(3)
    rows = []
    now = SECOND
    for n in range(300_000):
        now += choose.choice((0, 0, 0, 50_000, 100_000))
        if n % 100_000 == 99_999:
            now += choose.choice((5, 8)) * SECOND
        flow = choose.randrange(1 << 19)
        rows.append((packet("A" if choose.random() < 0.25 else "S", flow), 40, now))
    assert reports_in_bursts(rows, 1) == reports_in_bursts(rows, 64)


def test_what_has_expired_is_gone_whether_the_sweep_came_by_or_not() -> None:
    """How far the sweep has come depends on how many bursts there were; what happens to a flow must not."""
    old = range(300_000)
    again = random.Random(3).sample(old, 512)
    rows = [(packet("S", flow), 40, SECOND) for flow in old]
    rows += [(packet("S", flow), 40, 13 * SECOND) for flow in [*again, *range(600_000, 960_000), *again]]
    assert reports_in_bursts(rows, 1) == reports_in_bursts(rows, 64)
