# SPDX-License-Identifier: Apache-2.0
"""Hand-over of flows between MUXes: real flow tables and the manager's own office between them, no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.dataplane import LinkHeader
from lb.dataplane.compile.compiler import Compiler
from lb.model import BackendState, MuxSettings, Service
from lb.mux.workers import flow_sync
from lb.mux.workers.engine import Engine
from lb.mux.workers.flow_groups import parts_of, place_of
from lb.mux.workers.flow_sync import Export, FlowSync, export, pool_name, take_over
from lb.node.messages import (
    FLOWS_MAX,
    FlowGroup,
    FlowsFromNode,
    FlowsMessage,
    FlowsToNode,
    encode,
    parse_from_node,
    parse_to_node,
)
from manager.nodes.flow_sync import Handovers
from tests.native.test_flow_table_scan import services
from tests.native.test_pipeline import SMALL
from tests.packets.build import ipv4, tcp

UP, DRAIN = BackendState.UP, BackendState.DRAIN
CLIENTS = range(1, 201)


class Office:
    """The manager's part, and the wires to it: letters are delivered as text, in order."""

    def __init__(self) -> None:
        self.muxes: dict[str, Mux] = {}
        self.office = Handovers()
        self.silent: set[str] = set()  #: MUXes whose letters are lost
        self.words: list[str] = []

    def say(self, mux: str, letter: FlowsFromNode) -> None:
        if mux in self.silent:
            return
        read: Any = parse_from_node(encode(letter))
        others = [name for name, other in self.muxes.items() if name != mux and other.connected]
        answer = self.office.said(mux, read, others, 0.0)
        self.words += [text for _, text, _ in answer.words]
        for name, told in answer.letters:
            asyncio.get_running_loop().call_soon(self.deliver, name, encode(told))

    def deliver(self, name: str, text: str) -> None:
        letters, letter = self.muxes[name].letters, parse_to_node(text)
        assert letters is not None
        letters(letter)  # type: ignore[arg-type]


class Mux:
    """A MUX's engine without workers, and its connection. A :class:`lb.mux.workers.flow_sync.Post`."""

    def __init__(self, office: Office, name: str, told: tuple[Service, ...], **keys: Any) -> None:
        settings: MuxSettings = replace(SMALL, name=name, flows=1000, **keys)
        self.compiler = Compiler(settings)
        self.engine = Engine(settings, LinkHeader.NONE, self.compiler.compile(told))
        self.name, self.office = name, office
        self.connected = True
        self.letters: Callable[[FlowsToNode], None] | None = None
        self.joined: Callable[[], None] | None = None
        self.events: list[str] = []
        self.handover = FlowSync(settings, lambda: self.engine, self)
        office.muxes[name] = self

    def send_letter(self, letter: FlowsFromNode) -> bool:
        self.office.say(self.name, letter)
        return True

    def send_event(self, text: str) -> None:
        self.events.append(text)

    def publish(self, told: tuple[Service, ...]) -> None:
        self.engine.publish(self.compiler.compile(told), {})

    def went(self, flags: str, worker: int = 0, clients: Iterable[int] = CLIENTS, now: int = 1) -> list[str | None]:
        """Where the packets of these clients go; ``now`` in seconds."""
        snapshot = self.engine.forwarding.offline_snapshot()
        packets = [ipv4(tcp(flags, sport=client)) for client in clients]
        rows = [(packet, len(packet), now * 10**9) for packet in packets]
        results = self.engine._pipelines[worker].process(snapshot, rows)
        return [self.engine.forwarding.names(result.service_id, result.backend)[1] for result in results]


def run(test: Callable[[Office], Any], *muxes: tuple[str, tuple[Service, ...], dict[str, Any]]) -> list[Any]:
    async def main() -> None:
        office = Office()
        for name, told, keys in muxes:
            Mux(office, name, told, **keys)
        reading = [asyncio.create_task(mux.handover.run()) for mux in office.muxes.values()]
        async with asyncio.timeout(20):
            await test(office)
        for task in reading:
            assert not task.done(), task
            task.cancel()

    with capture_logs() as logs:
        asyncio.run(main())
    return [line["event"] for line in logs if line["log_level"] in ("warning", "error")]


def two(**keys: Any) -> tuple[tuple[str, tuple[Service, ...], dict[str, Any]], ...]:
    return ("mux1", services(UP, UP), {}), ("mux2", services(UP, UP), keys)


def test_a_mux_that_leaves_loses_no_connection_also_none_that_only_it_knew() -> None:
    async def test(office: Office) -> None:
        one, other = office.muxes["mux1"], office.muxes["mux2"]
        went = one.went("S")
        one.went("A")
        for mux in (one, other):
            mux.publish(services(DRAIN, UP, UP))
        await one.handover.give()
        for worker in (0, 1):  # whichever the kernel chooses
            assert other.went("A", worker) == went
        moved = (
            went.count("b1")
            + sum(b == "b2" for b in went)
            - sum(a == b for a, b in zip(went, Mux(Office(), "x", services(DRAIN, UP, UP)).went("S"), strict=True))
        )
        assert one.handover.words == f"{moved} flows sent to 1 MUX"
        assert office.words == [f"sent {moved} flows that only it knew to 1 other MUX"]

    assert run(test, *two(workers=2)) == []


def test_a_mux_that_returns_knows_what_the_others_know() -> None:
    async def test(office: Office) -> None:
        one, other = office.muxes["mux1"], office.muxes["mux2"]
        went = other.went("S")
        other.went("A")
        for mux in (one, other):
            mux.publish(services(UP, UP, UP))
        await one.handover.fetch()
        assert one.went("A") == went
        assert one.handover.words is not None
        assert one.handover.words.endswith("flows received from 1 MUX")

    assert run(test, *two()) == []


def test_there_and_back_again() -> None:
    """A drain, a restart with an empty flow table, and a return: as `lb drain mux`, upgrade, `lb undrain mux`."""

    async def test(office: Office) -> None:
        one, other = office.muxes["mux1"], office.muxes["mux2"]
        went = one.went("S")
        one.went("A")
        for mux in (one, other):
            mux.publish(services(UP, UP, UP))
        await one.handover.give()
        again = Mux(office, "mux1", services(UP, UP, UP))
        reading = asyncio.create_task(again.handover.run())
        await again.handover.fetch()
        reading.cancel()
        assert other.went("A") == went
        assert again.went("A") == went

    assert run(test, *two()) == []


def test_what_a_mux_knew_before_it_left_is_not_held_against_a_new_connection_on_the_same_ports() -> None:
    """A connection ends while its MUX is away, and its ports are used anew: only the others know."""

    async def test(office: Office) -> None:
        one, other = office.muxes["mux1"], office.muxes["mux2"]
        one.went("S")
        one.went("A")
        for mux in (one, other):
            mux.publish(services(UP, UP, UP))
        await one.handover.give()
        idle, again = CLIENTS[:100], CLIENTS[100:]
        before = one.went("A", clients=idle)
        for mux in (one, other):  # while it is away, one backend more drains: others never saw the idle flows there
            mux.publish(services(DRAIN, UP, UP))
        other.went("R", clients=again, now=30)
        anew = other.went("S", clients=again, now=30)
        one.went("A", clients=[999], now=40)  # time passes with packets
        await one.handover.fetch(away=20)
        found = one.went("S", clients=again, now=40)
        stale = sum(a != b for a, b in zip(found, anew, strict=True))
        assert stale == 0
        assert one.went("A", clients=idle, now=40) == before, "idle connections that live on were forgotten"

    assert run(test, *two()) == []


@pytest.mark.parametrize("what", ["give", "fetch"])
def test_nobody_waits_long_for_a_manager_or_a_mux_that_does_not_answer(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_sync, "ANSWER", 0.1)
    monkeypatch.setattr(flow_sync, "WHOLE", 0.2)

    async def test(office: Office) -> None:
        one = office.muxes["mux1"]
        for silent, words in (("mux1", "the manager did not answer"), ("mux2", "1 MUX did not answer in time")):
            office.silent = {silent}
            await getattr(one.handover, what)()
            assert one.handover.words is not None
            assert one.handover.words.endswith(words)
            assert one.events[-1].endswith(f"{words}; those left out may break")
        one.connected = False
        await getattr(one.handover, what)()
        assert one.handover.words is not None
        assert one.handover.words.endswith("no manager was connected")

    assert len(run(test, *two())) == 3, "each is a warning in the log"


def test_flows_beyond_the_limit_are_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_sync, "MOST", 50)
    monkeypatch.setattr(flow_sync, "export", lambda engine: export(engine, 50))

    async def test(office: Office) -> None:
        one = office.muxes["mux1"]
        one.went("S")
        one.went("A")
        one.publish(services(DRAIN, DRAIN))
        await one.handover.give()
        assert one.handover.words == "50 flows sent to 1 MUX; 150 more were beyond the limit of 50"
        assert one.events == [f"flow sync incomplete: {one.handover.words}; those left out may break"]

    assert run(test, *two()) == ["flow sync incomplete"]


def test_muxes_with_another_seed_understand_nothing_and_say_so() -> None:
    async def test(office: Office) -> None:
        one, other = office.muxes["mux1"], office.muxes["mux2"]
        one.went("S")
        one.publish(services(DRAIN, UP))
        await one.handover.give()
        assert other.engine.totals().live == 0

    assert run(test, *two(seed=bytes(16))) == ["flows not accepted"]


def test_flows_of_what_another_mux_does_not_have_are_left() -> None:
    told = services(UP, UP)
    office = Office()
    mux = Mux(office, "mux1", told)
    place = place_of(told[0])
    assert place == "tcp 203.0.113.10/32 80"
    groups = [FlowGroup(place, "b9", bytes(8)), FlowGroup("tcp 203.0.113.99/32 80", "b1", bytes(16))]
    assert take_over(mux.engine, groups).useless == 3


def test_parts_are_as_large_as_may_be_and_lose_nothing() -> None:
    groups = [
        FlowGroup("p", f"b{n}", bytes([n % 256]) * 8 * size) for n, size in enumerate([1, 5000, 3000, 192, 1] * 3)
    ]
    parts = list(parts_of(groups))
    assert [sum(group.count for group in part) for part in parts[:-1]] == [FLOWS_MAX] * (len(parts) - 1)
    whole: dict[str, bytes] = {}
    for part in parts:
        assert parse_from_node(encode(FlowsMessage(1, "", "ab", False, 0, part))).groups == part  # type: ignore[union-attr]
        for group in part:
            whole[group.backend] = whole.get(group.backend, b"") + group.records
    assert whole == {group.backend: group.records for group in groups}
    many = [FlowGroup("p", f"b{n}", bytes(8)) for n in range(10_000)]
    assert [len(part) for part in parts_of(many)] == [4096, 4096, 1808]
    assert list(parts_of([])) == []


def test_a_pool_is_named_without_telling_its_seed() -> None:
    assert pool_name(bytes(16)) != pool_name(bytes(15) + b"\1")
    assert len(pool_name(bytes(16))) == 16
    assert Export((), 0).count == 0
