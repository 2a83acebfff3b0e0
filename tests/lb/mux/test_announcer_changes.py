# SPDX-License-Identifier: Apache-2.0
"""An announcer over a real table and a pretended ExaBGP: only what changed is looked at, and nothing is forgotten."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from lb.bgp import selftest
from lb.bgp.routes import Speaks, offers, parse_announcements
from lb.bgp.sidecar import Account, SidecarListener
from lb.dataplane import NO_MAC, Hop
from lb.dataplane.compile.compiler import Compiler
from lb.model import Address, Backend, MuxSettings, Network, Service
from lb.model.persistent_map import PersistentMap
from lb.model.service_diff import ServiceDiff
from lb.mux import announcer as module
from lb.mux.announcer import Announcer, rows_of
from tests.lb.bgp.values import OUTSIDE, SPEAKS, net, service

SETTINGS = MuxSettings(
    name="mux1", address=IPv4Address("10.0.1.11"), address6=IPv6Address("fd00:1::11"), seed=bytes(16),
    interface="eth0", slots=251,
)  # fmt: skip
WEB, FILES = net("203.0.113.10"), net("203.0.113.11")


class PretendedExabgp:
    """In the place of the sidecar: takes every line, and counts them."""

    def __init__(self, speaks: Speaks, account: Account, listener: SidecarListener) -> None:
        self.listener = listener
        self.lines: list[str] = []
        self.pid = None
        everybody.append(self)

    def beat(self) -> None: ...

    async def run(self) -> None:
        self.listener.up()
        for peer in SPEAKS.settings.peers:
            about = {"address": {"peer": str(peer.address)}, "state": "up"}
            self.listener.event({"type": "state", "neighbor": about})
        await asyncio.Event().wait()

    async def send(self, lines: Sequence[str], patience: float = 0) -> list[bool]:
        await asyncio.sleep(0)
        self.lines += [line for line in lines if not line.startswith("#")]
        return [True] * len(lines)


everybody: list[PretendedExabgp] = []


async def until(question: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not question():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.001)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        asyncio.run(test(*arguments, **keywords))

    return run


class PretendedEngine:
    """Workers that turn whenever they are looked at; every backend is reachable."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._compiler = Compiler(SETTINGS)
        self._turns = 0
        self.unsound: str | None = None
        self.publish(services)

    def publish(self, services: Iterable[Service]) -> ServiceDiff:
        before = self.forwarding.services if hasattr(self, "forwarding") else ()
        change = ServiceDiff.between(before, services)
        self.forwarding = self._compiler.change(change, self._compiler._last)
        ways: dict[Address, Hop] = {address: Hop(address, NO_MAC) for address in self.forwarding.hop_addresses}
        self.reachable = frozenset(ways)
        self.snapshot = self.forwarding.snapshot(ways)
        return change

    def bursts(self) -> tuple[int, ...]:
        self._turns += 1
        return (self._turns,)


class Stage:
    """An announcer that has started, and the world around it."""

    def __init__(self, engine: PretendedEngine, announcer: Announcer) -> None:
        self.engine = engine
        self.announcer = announcer
        self.exabgp = everybody[-1]

    async def rest(self) -> None:
        """Until nothing is tested at once and nothing is left to be said."""
        speaker = self.announcer._speaker
        assert speaker is not None
        await until(
            lambda: not self.announcer._proofs.urgent and speaker.ledger.settled and self.announcer._ground.alive
        )
        await asyncio.sleep(0.005)

    def states(self) -> dict[tuple[str, str | None], str]:
        return {(row["vip"], row["peer"]): row["state"] for row in self.announcer.announcements()}


@asynccontextmanager
async def stage(services: Iterable[Service], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async def account() -> Account:
        return Account("nobody", None, None, "a test")

    monkeypatch.setattr("lb.bgp.speaker.Sidecar", PretendedExabgp)
    monkeypatch.setattr(module, "choose_account", account)
    engine = PretendedEngine(services)
    announcer = Announcer(SPEAKS.settings, SETTINGS, engine, lambda: engine.unsound)  # type: ignore[arg-type]
    announcer.want({})
    await announcer.start()
    try:
        yield Stage(engine, announcer)
    finally:
        await announcer.stop(planned=False)


def web(name: str, vip: str, *weights: int) -> Service:
    backends = (Backend(f"{name}-{n}", ip_address(f"10.0.3.{n}"), weight=weight) for n, weight in enumerate(weights, 1))
    return service(name, vip, *backends)


def change(made: Stage, services: Iterable[Service]) -> None:
    made.announcer.restore(made.engine.publish(services))


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of services whose self-test began, in order."""
    names: list[str] = []
    prove = selftest.prove

    def counting(forwarding: Any, snapshot: Any, reachable: Any, services: Any, pipe: Any = None) -> Mapping[str, str]:
        names.extend(each.name for each in services)
        return prove(forwarding, snapshot, reachable, services, pipe)

    monkeypatch.setattr(selftest, "prove", counting)
    monkeypatch.setattr(module, "REST", 3600.0)  # no sweep but the first slice
    monkeypatch.setattr(module, "SWEEP", 1)
    return names


@in_a_loop
async def test_a_change_of_a_weight_tests_that_service_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tested: list[str]
) -> None:
    first, files = web("web", "203.0.113.10", 1, 1), web("files", "203.0.113.11", 1)
    async with stage([first, files], monkeypatch) as made:
        made.announcer.want({"203.0.113.10/32": {}, "203.0.113.11/32": {}})
        await made.rest()
        assert set(made.states().values()) == {"announced"}
        rows, lines = made.announcer.announced(), list(made.exabgp.lines)
        tested.clear()
        change(made, [web("web", "203.0.113.10", 1, 5), files])
        await made.rest()
        assert tested == ["web"]
        assert made.exabgp.lines == lines
        assert made.announcer.announced() is rows


@in_a_loop
async def test_a_vip_that_comes_is_announced_after_its_proof_and_alone(
    monkeypatch: pytest.MonkeyPatch, tested: list[str]
) -> None:
    first, files = web("web", "203.0.113.10", 1), web("files", "203.0.113.11", 1)
    async with stage([first], monkeypatch) as made:
        made.announcer.want({"203.0.113.10/32": {}})
        await made.rest()
        before = {row["vip"]: row for row in made.announcer.announced()}
        lines = len(made.exabgp.lines)
        made.announcer.want({"203.0.113.10/32": {}, "203.0.113.11/32": {}})
        assert made.states()["203.0.113.11", OUTSIDE.name] == "held"
        change(made, [first, files])
        await made.rest()
        assert made.states()["203.0.113.11", OUTSIDE.name] == "announced"
        assert all("203.0.113.11/32" in line and "203.0.113.10" not in line for line in made.exabgp.lines[lines:])
        assert {row["vip"]: row for row in made.announcer.announced()}["203.0.113.10"] == before["203.0.113.10"]


@in_a_loop
async def test_a_table_that_is_live_before_it_is_told_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, tested: list[str]
) -> None:
    async with stage([], monkeypatch) as made:
        change(made, [web("web", "203.0.113.10", 1)])
        moved = made.engine.publish([web("web", "203.0.113.10", 2)])  # before the first was tested
        await asyncio.sleep(0.05)
        assert tested == []
        made.announcer.restore(moved)
        await made.rest()
        assert tested == ["web"]


@in_a_loop
async def test_a_released_vip_is_withdrawn_before_and_stays_where_the_change_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FOLLOW", 0.0)
    first, files = web("web", "203.0.113.10", 1), web("files", "203.0.113.11", 1)
    async with stage([first, files], monkeypatch) as made:
        made.announcer.want({"203.0.113.10/32": {}, "203.0.113.11/32": {}})
        await made.rest()
        await made.announcer.release({FILES})
        assert made.exabgp.lines[-1].split()[2] == "withdraw"
        assert made.states()["203.0.113.11", OUTSIDE.name] == "held"
        made.announcer.restore(ServiceDiff.between([first, files], [first]))  # which never became live
        await made.rest()
        assert made.states()["203.0.113.11", OUTSIDE.name] == "announced"
        await made.announcer.release({FILES})
        change(made, [first])
        made.announcer.want({"203.0.113.10/32": {}})
        await made.rest()
        assert {vip for vip, _ in made.states()} == {"203.0.113.10"}


@in_a_loop
async def test_what_goes_and_what_stays_are_withdrawn_together_when_the_interface_is_lost_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stage([web("web", "203.0.113.10", 1), web("files", "203.0.113.11", 1)], monkeypatch) as made:
        made.announcer.want({"203.0.113.10/32": {}, "203.0.113.11/32": {}})
        await made.rest()
        made.engine.unsound = "the interface eth0 is down or gone"
        made.announcer.want({"203.0.113.10/32": {}})
        await made.rest()
        assert not made.announcer.announces
        assert made.states() == {("203.0.113.10", peer.name): "held" for peer in SPEAKS.settings.peers}


@in_a_loop
async def test_a_broken_table_is_found_by_the_sweep_and_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST", 0.01)
    first, files = web("web", "203.0.113.10", 1), web("files", "203.0.113.11", 1)
    async with stage([first, files], monkeypatch) as made:
        made.announcer.want({"203.0.113.10/32": {}, "203.0.113.11/32": {}})
        await made.rest()
        moved = made.engine.publish([first, files, web("new", "203.0.113.12", 1)])
        ways = {address: Hop(address, NO_MAC) for address in made.engine.forwarding.hop_addresses}
        # As if the new version of the VIP map had lost what it should have shared.
        broken = Compiler(SETTINGS).compile([first, web("none", "203.0.113.13", 1), web("new", "203.0.113.12", 1)])
        made.engine.snapshot = broken.snapshot(ways)
        made.announcer.restore(moved)
        await until(lambda: made.states()["203.0.113.11", OUTSIDE.name] == "held")
        assert made.states()["203.0.113.10", OUTSIDE.name] == "announced"


def whole(made: Stage, table: Mapping[str, Any]) -> dict[Any, str]:
    """What peers shall hear, from a look at everything."""
    announcer = made.announcer
    wanted = parse_announcements(table)
    free = {vip: route for vip, route in wanted.items() if announcer._ground.why_not(vip, made.engine.unsound) is None}
    return offers(SPEAKS, free, drained=announcer._draining)


@in_a_loop
async def test_any_story_ends_as_a_look_at_everything_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLLOW", 0.0)
    chance = random.Random(5)
    pool = [web(f"s{n}", f"203.0.113.{n}", 1, n + 1) for n in range(40)]
    services, table = pool[:20], PersistentMap[str, Any]()
    async with stage(services, monkeypatch) as made:
        announcer = made.announcer
        for _ in range(150):
            what = chance.choice(["want", "want", "publish", "publish", "weight", "drain", "pulse", "unsound", "hops"])
            if what == "want":
                new = {f"203.0.113.{chance.randrange(45)}/32": {"med": chance.randrange(3)} for _ in range(3)}
                table = table.replaced(chance.sample(sorted(table), min(len(table), 2)), new)
                announcer.want(table)
            elif what == "publish":
                before, services = services, sorted(chance.sample(pool, chance.randrange(40)), key=lambda s: s.name)
                gone = {each.vip for each in before} - {each.vip for each in services}
                await announcer.release(gone)
                change(made, services)
            elif what == "weight" and services:
                number = chance.randrange(len(services))
                services[number] = replace(services[number], backends=services[number].backends[:1])
                change(made, services)
            elif what == "drain":
                announcer.drain(chance.random() < 0.3)
            elif what == "pulse":
                announcer._pulse(chance.random() < 0.7)
            elif what == "unsound":
                made.engine.unsound = chance.choice([None, None, "the interface is gone"])
                if chance.random() < 0.5:  # else it is seen with whatever happens next
                    announcer.published()
            else:
                announcer.published()
            if chance.random() < 0.5:
                announcer.announced()  # sometimes somebody asks between
        announcer.published()
        announcer._pulse(True)
        await made.rest()
        speaker = announcer._speaker
        assert speaker is not None
        assert speaker.ledger.wanted == whole(made, table) == speaker.ledger.accepted
        fresh = [row for vip in announcer._wanted for row in rows_of(vip, announcer._said_of(vip))]
        assert sorted(announcer.announced(), key=str) == sorted(fresh, key=str)
        assert announcer._held.keys() == set(parse_announcements(table)) - {each.vip for each in whole(made, table)}
        told = {(vip if isinstance(vip, str) else str(vip)) for vip, _ in announcer.figures().announced}
        assert told == {_text(each.vip) for each in speaker.ledger.accepted}


def _text(vip: Network) -> str:
    return str(ip_network(vip).network_address)
