# SPDX-License-Identifier: Apache-2.0
"""Fifty operations in a row under load: whatever an operator does or kills, no connection breaks but those that the
design names, which are counted and shown.

Operations are drawn at random from a seed, VIPMUX_SEED, that is printed. The load is keep-alive HTTP whose connections
end in peace after some seconds, so that a drained backend becomes empty as it would in production. What may break is
said in :func:`may_break`; the table of operations is printed at the end (``pytest -s`` shows it while tests pass).
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

import pytest

from lb.model import Backend, BackendState, Probe, ProbeType, Service
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet, exabgp_of, kill
from tests.lab.pace import reachable
from tests.lab.prediction import choices
from tests.lab.process import wait_for
from tests.lab.routers import Routers
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import Node
from tests.lab.traffic import KeepAlive, Life

pytestmark = pytest.mark.lab

OPERATIONS = 50
#: 2,000 requests a second: so many connections, each asking again this long after an answer, and so often in its life.
CONNECTIONS, INTERVAL, REQUESTS = 220, 0.1, 60
RATE = 2000
#: A connection without an answer for so long is broken, seconds.
PATIENCE = 15.0
PROBE = Probe(ProbeType.TCP, interval=1.0, timeout=1.0)
#: A reset follows the packet that caused it, and each connection sends one every INTERVAL.
AFTER = 2.0


@dataclass(frozen=True, slots=True)
class Done:
    """One operation, and when."""

    name: str
    began: float
    ended: float
    kills_mux: bool  #: the memory of a MUX's flows was lost, or is out of the packets' way


@dataclass(frozen=True, slots=True)
class Told:
    """What MUXes are told of ``web``: none before ``began``, all from ``settled`` on, until the next has settled."""

    began: float
    settled: float
    service: Service


@dataclass(slots=True)
class Stage:
    """The fleet and what the operator has done to it; each method is one operation and says what it was."""

    fleet: Fleet
    load: KeepAlive
    random: random.Random
    services: dict[str, Service]
    drained: set[str] = field(default_factory=set)
    told: list[Told] = field(default_factory=list)
    extras: int = 0

    # -- what an operator does ----------------------------------------------------------------------------------

    def weight(self) -> str:
        backend = self.random.choice(self.web.backends)
        weight = self.random.choice([w for w in (1, 2, 3, 5) if w != backend.weight])
        self.apply_web([replace(b, weight=weight) if b.name == backend.name else b for b in self.web.backends])
        return f"lb apply: weight of {backend.name} {weight}"

    def add(self) -> str:
        host = self.random.choice(self.absent)
        self.apply_web([*self.web.backends, Backend(f"web-{host.name}", host.address, 8080)])
        return f"lb apply: web-{host.name} added"

    def remove(self) -> str:
        """As it is done with care: drained, and taken out once nobody is connected to it any more."""
        backend = self.random.choice(self.removable)
        if backend.name not in self.drained:
            self.order("drain", backend.name)
        host = backend.name.removeprefix("web-")
        wait_for(lambda: not self.connected_to(host), f"{backend.name} to be left by its clients", 30)
        self.apply_web([b for b in self.web.backends if b is not backend])
        self.drained.discard(backend.name)
        return f"{backend.name} drained, waited for, removed"

    def drain(self) -> str:
        backend = self.random.choice(self.removable)
        self.order("drain", backend.name)
        return f"lb drain backend web/{backend.name}"

    def undrain(self) -> str:
        name = self.random.choice(sorted(self.drained))
        self.order("undrain", name)
        return f"lb undrain backend web/{name}"

    def create(self) -> str:
        self.extras += 1
        vip = f"203.0.113.{100 + self.extras}"
        name = f"extra-{self.extras}"
        self.services[name] = replace(self.web, name=name, vip=ip_network(vip))
        self.apply()
        return f"lb apply: service {name} created"

    def delete(self) -> str:
        name = self.random.choice(sorted(self.services.keys() - {"web"}))
        del self.services[name]
        self.fleet.lb("delete", "service", name)
        return f"lb delete service {name}"

    def drain_mux(self) -> str:
        mux = self.random.choice(self.fleet.muxes)
        self.fleet.lb("drain", "mux", mux.name)
        self.fleet.wait_hops(WEB_VIP, *(other for other in self.fleet.muxes if other is not mux))
        self.fleet.lb("undrain", "mux", mux.name)
        self.fleet.wait_hops(WEB_VIP, *self.fleet.muxes)
        return f"lb drain mux {mux.name}, and undrain"

    # -- what is restarted, and what dies -----------------------------------------------------------------------

    def restart_mux(self) -> str:
        return self._mux("restart", lambda mux: mux.processes["mux"].stop(30))

    def kill_mux(self) -> str:
        return self._mux("kill -9", lambda mux: mux.processes["mux"].kill())

    def _mux(self, word: str, end: Callable[[Node], object]) -> str:
        mux = self.random.choice(self.fleet.muxes)
        end(mux)
        self.fleet.revive(mux)
        self.fleet.wait_hops(WEB_VIP, *self.fleet.muxes)
        return f"{word} lb-mux of {mux.name}"

    def kill_exabgp(self) -> str:
        mux = self.random.choice(self.fleet.muxes)
        pid = exabgp_of(mux)
        kill(pid)
        wait_for(lambda: exabgp_of(mux) != pid, f"another ExaBGP of {mux.name}")
        self.fleet.wait_hops(WEB_VIP, *self.fleet.muxes)
        return f"kill -9 ExaBGP of {mux.name}"

    def restart_agent(self) -> str:
        return self._agent("restart", lambda host: host.processes["agent"].stop())

    def kill_agent(self) -> str:
        return self._agent("kill -9", lambda host: host.processes["agent"].kill())

    def _agent(self, word: str, end: Callable[[Node], object]) -> str:
        host = self.random.choice(self.fleet.hosts)
        end(host)
        self.fleet.revive(host)
        return f"{word} lb-agent of {host.name}"

    def restart_manager(self) -> str:
        return self._manager("restart", lambda manager: manager.processes["manager"].stop())

    def kill_manager(self) -> str:
        return self._manager("kill -9", lambda manager: manager.processes["manager"].kill())

    def _manager(self, word: str, end: Callable[[Node], object]) -> str:
        end(self.fleet.manager)
        self.fleet.revive(self.fleet.manager)
        wait_for(lambda: self.fleet.connected() == len(self.fleet.nodes), "every node to be connected again", 60)
        return f"{word} lb-manager"

    # -- inside -------------------------------------------------------------------------------------------------

    @property
    def web(self) -> Service:
        return self.services["web"]

    @property
    def absent(self) -> list[Node]:
        there = {backend.name for backend in self.web.backends}
        return [host for host in self.fleet.hosts if f"web-{host.name}" not in there]

    @property
    def removable(self) -> list[Backend]:
        """Of those that take flows two shall be left."""
        taking = [backend for backend in self.web.backends if backend.name not in self.drained]
        return taking if len(taking) > 2 else []

    def connected_to(self, host: str) -> list[Life]:
        return [life for life in self.load.lives() if life.ended is None and life.flow.host == host]

    def apply_web(self, backends: Sequence[Backend]) -> None:
        began = time.monotonic()
        self.services["web"] = replace(self.web, backends=tuple(backends))
        self.apply()
        self.settle(began)

    def apply(self) -> None:
        self.fleet.apply(tuple(self.services.values()))

    def order(self, word: str, backend: str) -> None:
        began = time.monotonic()
        self.fleet.lb(word, "backend", f"web/{backend}")
        (self.drained.add if word == "drain" else self.drained.discard)(backend)
        self.settle(began)

    def settle(self, began: float) -> None:
        """Until every MUX has all of it, probes' verdicts included."""
        self.fleet.wait_states("web", {b.name: self._state(b).value for b in self.web.backends})
        backends = tuple(replace(backend, state=self._state(backend)) for backend in self.web.backends)
        self.told.append(Told(began, time.monotonic(), replace(self.web, backends=backends)))

    def _state(self, backend: Backend) -> BackendState:
        return BackendState.DRAIN if backend.name in self.drained else BackendState.UP

    def possible(self) -> dict[str, Callable[[], str]]:
        """What can be done now, by kind."""
        found = dict(KINDS)
        if not self.absent:
            del found["add"]
        if not self.removable:
            del found["drain"], found["remove"]
        if not self.drained:
            del found["undrain"]
        if len(self.services) == 1:
            del found["delete"]
        return {kind: method.__get__(self) for kind, method in found.items()}


KINDS = {
    "weight": Stage.weight, "add": Stage.add, "remove": Stage.remove, "drain": Stage.drain, "undrain": Stage.undrain,
    "create": Stage.create, "delete": Stage.delete, "drain mux": Stage.drain_mux, "restart mux": Stage.restart_mux,
    "kill mux": Stage.kill_mux, "kill ExaBGP": Stage.kill_exabgp, "restart agent": Stage.restart_agent,
    "kill agent": Stage.kill_agent, "restart manager": Stage.restart_manager, "kill manager": Stage.kill_manager,
}  # fmt: skip
#: After these, packets of a flow may come to a MUX that has no memory of it. One that is drained or stopped in peace
#: hands over what only it knows, and one that comes is told.
KILLS_MUX = {"kill mux", "kill ExaBGP"}


def next_kind(stage: Stage, counts: dict[str, int]) -> str:
    """At random, but each kind in its turn: the rarest of what is possible are drawn from."""
    possible = sorted(stage.possible())
    fewest = min(counts[kind] for kind in possible)
    return stage.random.choice([kind for kind in possible if counts[kind] <= fewest + 1])


def may_break(stage: Stage, life: Life, done: Done | None) -> bool:
    """Footnote 1 of the failure budget: its Maglev choice changed since it began, and the MUX that knew it is gone."""
    if done is None or not done.kills_mux:
        return False
    found = [told.service for told in in_force(stage.told, life.opened, broke_at(life))]
    settings, port = stage.fleet.mux_settings(stage.fleet.muxes[0]), life.flow.source_port
    return len({choices(settings, [service], [life.flow])[port] for service in found}) > 1


def in_force(told: Sequence[Told], first: float, last: float) -> Iterator[Told]:
    """What some MUX had at some time between."""
    for item, following in itertools.zip_longest(told, told[1:]):
        if item.began <= last and (following is None or following.settled >= first):
            yield item


def broke_at(life: Life) -> float:
    """A connection that hangs is given up much later."""
    assert life.ended is not None
    hangs = (life.flow.broken or "").startswith("no answer")
    return life.ended - PATIENCE if hangs else life.ended


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(Routers.BIRD, muxes=3, hosts=4) as started:
        started.start([replace(web(started.hosts), probe=PROBE)])
        yield started


def test_fifty_operations_under_load_break_only_what_the_design_names(fleet: Fleet) -> None:
    seed = int(os.environ.get("VIPMUX_SEED", "1"))
    fleet.wait_hops(WEB_VIP, *fleet.muxes)
    service = replace(web(fleet.hosts), probe=PROBE)
    fleet.wait_states("web", {backend.name: "up" for backend in service.backends})
    load = KeepAlive(
        fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL, requests=REQUESTS, patience=PATIENCE
    ).start()
    stage = Stage(fleet, load, random.Random(seed), {"web": service})
    stage.told.append(Told(0.0, 0.0, service))
    counts = dict.fromkeys(KINDS, 0)
    done: list[Done] = []
    began, answers = time.monotonic(), load.answers
    try:
        for _ in range(OPERATIONS):
            kind = next_kind(stage, counts)
            counts[kind] += 1
            start = time.monotonic()
            name = stage.possible()[kind]()
            wait_for(lambda: fleet.connected() == len(fleet.nodes), "every node to follow the manager", 60)
            done.append(Done(name, start, time.monotonic(), kind in KILLS_MUX))
        time.sleep(AFTER)
        seconds = time.monotonic() - began
        rate = (load.answers - answers) / seconds
    finally:
        load.close()
    broken = [(life, cause(done, life)) for life in load.lives() if life.flow.broken]
    wrong = [(life, operation) for life, operation in broken if not may_break(stage, life, operation)]
    print(f"\nseed {seed}, {len(fleet.muxes)} MUXes, {len(fleet.hosts)} hosts\n" + table(done, broken, wrong))
    print(
        f"{OPERATIONS} operations in {seconds:.0f} s under {rate:,.0f} requests/s; {len(load.lives()):,} connections, "
        f"{len(broken)} broken, of which {len(wrong)} must not; slowest answer {load.slowest * 1000:,.0f} ms"
    )
    assert wrong == []
    assert unbalanced(fleet) == []
    assert rate >= reachable(0.75 * RATE)


def cause(done: Sequence[Done], life: Life) -> Done | None:
    """The operation that was under way when the connection broke, or had just ended; first one that moved flows."""
    at = broke_at(life)
    found = [item for item in reversed(done) if item.began <= at <= item.ended + AFTER]
    return next((item for item in found if item.kills_mux), found[0] if found else None)


def table(
    done: Sequence[Done], broken: Sequence[tuple[Life, Done | None]], wrong: Sequence[tuple[Life, Done | None]]
) -> str:
    lines = [f"{'operation':<46}{'took':>9}{'broken':>8}{'wrongly':>9}"]
    for item in done:
        counts = [sum(1 for _, operation in rows if operation is item) for rows in (broken, wrong)]
        lines.append(f"{item.name:<46}{item.ended - item.began:>7.2f} s{counts[0]:>8}{counts[1]:>9}")
    return "\n".join(lines)
