# SPDX-License-Identifier: Apache-2.0
"""Packets that are dropped by choice: of the services told, in the shares told, new and known flows apart; counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from lb.dataplane import SHED_MAX, LinkHeader, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler
from tests.packets.build import ipv4, tcp
from tests.packets.world import SERVICES, SETTINGS, WEB

ONE, TWO = SERVICES[0], replace(SERVICES[0], name="two", ports=replace(SERVICES[0].ports, first=81, last=81))
FLOWS = 4000
#: Of so many packets a share is met within this.
NEAR = 0.05


@dataclass
class Shed:
    """A pipeline with two services, and packets through it."""

    flows: int = 100_000
    pipeline: Pipeline = field(init=False)

    def __post_init__(self) -> None:
        self.forwarding = Compiler(SETTINGS).compile((ONE, TWO))
        self.snapshot = self.forwarding.offline_snapshot()
        self.pipeline = Pipeline(self.flows, LinkHeader.NONE)

    def tell(self, **shares: tuple[float, float]) -> None:
        self.pipeline.shed([(self.number(name), *found) for name, found in shares.items()])

    def number(self, name: str) -> int:
        found = self.forwarding.id_named(name)
        assert found is not None
        return found

    def send(self, port: int, first: int = 0) -> list[Result]:
        """One packet of each flow."""
        packets = [ipv4(tcp("S", sport=1024 + number, dport=port)) for number in range(first, first + FLOWS)]
        return self.pipeline.process(self.snapshot, [(packet, len(packet), 10**9) for packet in packets])

    def share(self, port: int, first: int = 0) -> float:
        """Of the packets, that was dropped by choice; nothing else is."""
        found = Counter(result.reason for result in self.send(port, first))
        assert found.keys() <= {"shed", "forwarded"}
        return found["shed"] / FLOWS


def test_nothing_is_dropped_by_choice_unless_it_is_told_and_no_longer_than_it_is() -> None:
    shed = Shed()
    assert shed.share(80) == 0
    shed.tell(web=(1, 1))
    assert shed.share(80) > 0.99
    shed.tell()
    assert shed.share(80) == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_shares_are_met_of_new_flows_and_of_known_ones_apart(share: float) -> None:
    shed = Shed()
    shed.tell(web=(share, 0))
    assert shed.share(80) == pytest.approx(share, abs=NEAR)
    assert shed.share(80) == 0, "they are known by now"
    shed.tell(web=(0, share))
    assert shed.share(80) == pytest.approx(share, abs=NEAR)
    assert shed.share(80, FLOWS) == 0, "these are new"


def test_each_packet_of_a_flow_has_the_same_chance() -> None:
    """A flow that were hit each time would be cut off, and not slowed down."""
    shed = Shed()
    shed.send(80)
    shed.tell(web=(0, 0.5))
    hits = [
        sum(result.reason == "shed" for result in turn) for turn in zip(*(shed.send(80) for _ in range(8)), strict=True)
    ]
    assert {0, 8} != set(hits)
    assert sum(0 < hit < 8 for hit in hits) > 0.95 * FLOWS


def test_other_services_are_spared() -> None:
    shed = Shed()
    shed.tell(web=(1, 1))
    assert shed.share(81) == 0
    shed.tell(web=(0, 0), two=(1, 1))
    assert shed.share(80) == 0
    assert shed.share(81) > 0.99


def test_without_a_flow_table_every_flow_is_new() -> None:
    shed = Shed(flows=0)
    shed.tell(web=(0.5, 0))
    assert [shed.share(80) == pytest.approx(0.5, abs=NEAR) for _ in range(2)] == [True, True]


def test_what_is_dropped_by_choice_is_counted_by_reason_and_service_and_nothing_leaves() -> None:
    shed = Shed()
    shed.tell(web=(0.5, 0.5))
    results = shed.send(80)
    dropped = [result for result in results if result.reason == "shed"]
    assert all(not result.out and result.flow is None and result.verdict.name == "DROP" for result in dropped)
    assert shed.pipeline.shed_packets() == len(dropped)
    counters = shed.pipeline.service_counters(shed.number("web"))
    assert (counters.packets, counters.dropped) == (FLOWS - len(dropped), len(dropped))
    assert shed.pipeline.came_for(shed.forwarding.id_limit)[shed.number("web")] == FLOWS
    total = shed.pipeline.counters()
    assert total.received == sum(total.reasons) == FLOWS
    assert WEB in {str(backend.address) for backend in ONE.backends}


def test_more_services_than_there_is_room_for_are_left_out() -> None:
    shed = Shed()
    others = [(1000 + number, 1.0, 1.0) for number in range(SHED_MAX)]
    shed.pipeline.shed([*others, (shed.number("web"), 1.0, 1.0)])
    assert shed.share(80) == 0
    shed.pipeline.shed([*others[1:], (shed.number("web"), 1.0, 1.0)])
    assert shed.share(80) > 0.99
