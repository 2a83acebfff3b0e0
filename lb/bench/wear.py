# SPDX-License-Identifier: Apache-2.0
"""Whether the flow table wears out: hours of closed connections, floods of doubled packets, roll-outs.

Called by ``lb bench wear``, ``acks``, ``rollouts`` and tests. Packets go through the real pipeline in memory; the clock
is the benchmark's own, so that an hour takes as long as its packets do.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lb.bench.pipeline import bench_services
from lb.bench.testbed.machine import commit_name, cpu_name
from lb.dataplane import FLOW_TIERS, Fate, LinkHeader, Pipeline, Script, Snapshot
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.model import BackendState, MuxSettings, Service

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SECOND = 1_000_000_000
#: Simulated time goes by in steps of so much; ns.
STEP = SECOND // 10
#: Of the flow table's clock; ns.
TICK = 1 << 28
#: Long enough after the clock's beginning that no age is cut short.
START = 100_000 * SECOND
#: Numbers of flows: connections that are opened and closed count from 0, those that stay open from here.
LIVE = 1 << 41
#: And those of a flood.
FLOOD = 1 << 42
#: How often a connection that stays open has something to say; steps.
LIVE_EVERY = 100
BACKENDS = 100
INTERVALS = 12


@dataclass(frozen=True, slots=True)
class Interval:
    """A piece of simulated time."""

    seconds: float  #: simulated, at its end
    ns_per_packet: float
    packets: int
    untracked: int
    ended: int  #: closed connections that made room for others
    untrusted: int  #: flows seen once, or within a quarter second alone, that did
    trusted: int  #: conversations that did
    entries: int  #: in the table at its end


@dataclass(frozen=True, slots=True)
class WearBench:
    """The answer of ``lb bench wear``."""

    connections_per_second: int
    hours: float
    flows: int  #: that the table is made for
    live: int  #: connections that stay open
    intervals: list[Interval]
    packets: int
    untracked: int
    ns_per_packet_first: float  #: of the first interval
    ns_per_packet_last: float
    forgotten: int  #: live connections that met no entry of theirs at the end
    drained: int  #: backends
    broken: int  #: live connections that went elsewhere once half the backends drained
    sound: bool
    cpu: str
    commit: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AcksBench:
    """The answer of ``lb bench acks``."""

    rate: int  #: packets per second
    seconds: float
    apart_ms: float  #: between the two packets of a tuple
    flows: int
    live: int
    packets: int
    ns_per_packet: float
    untracked: int  #: of the flood's packets
    displaced: int  #: live connections that were forgotten
    broken: int  #: that went elsewhere
    new: int  #: connections opened a minute later
    remembered: int  #: of which the table has taken so many
    known: int  #: and still knew so many a second later
    sound: bool
    cpu: str
    commit: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _World:
    """One service, a pipeline, a clock, and connections that stay open."""

    def __init__(self, flows: int, live: int) -> None:
        self._compiler = Compiler(
            MuxSettings(
                name="bench", address=IPv4Address("192.0.2.1"), seed=bytes(range(16)), interface="", flows=flows
            )
        )
        self.services = bench_services(1, BACKENDS)
        self.snapshot: Snapshot = self._compiler.compile(self.services).offline_snapshot()
        self.pipeline = Pipeline(flows, LinkHeader.SWAP)
        self.script = Script(self.pipeline, self.snapshot)
        self.step = 0
        self.live = range(LIVE, LIVE + live)
        for flags in (SYN, ACK, PSH | ACK):
            self.send(self.live, flags)
        self.step += 3  # into a later tick of the flow table's clock
        self.homes = self.script.backends(self.snapshot, self.live, ACK, self.now)

    @property
    def now(self) -> int:
        return START + self.step * STEP

    def send(self, flows: range, flags: int, later_ns: int = 0) -> Fate:
        return self.script.send(self.snapshot, flows, flags, self.now + later_ns) if len(flows) else Fate()

    def talk(self) -> Fate:
        """A step's part of the live connections says something."""
        turn, size = self.step % LIVE_EVERY, -(-len(self.live) // LIVE_EVERY)
        return self.send(self.live[turn * size : (turn + 1) * size], PSH | ACK)

    def moved(self) -> int:
        """Live connections that go elsewhere than they began."""
        now = self.script.backends(self.snapshot, self.live, ACK, self.now)
        return sum(now[at : at + 2] != self.homes[at : at + 2] for at in range(0, len(now), 2))

    def drain(self, count: int) -> None:
        """The first backends take no new flows from here on."""
        service: Service = self.services[0]
        backends = [
            replace(backend, state=BackendState.DRAIN) if number < count else backend
            for number, backend in enumerate(service.backends)
        ]
        self.snapshot = self._compiler.compile([replace(service, backends=tuple(backends))]).offline_snapshot()


def bench_wear(
    *, connections_per_second: int, hours: float, flows: int, live: int, say: Callable[[str], None] = lambda _: None
) -> WearBench:
    """Opens and closes so many connections a second beside ``live`` ones, then drains half of the backends."""
    world = _World(flows, live)
    steps = max(INTERVALS, round(hours * 3600 * SECOND / STEP))
    intervals: list[Interval] = []
    before = (0, 0, 0)
    for number in range(INTERVALS):
        fate = Fate()
        for _ in range(steps * number // INTERVALS, steps * (number + 1) // INTERVALS):
            fate += _closing(world, connections_per_second)
            fate += world.talk()
            world.step += 1
        counted = world.pipeline.counters().flows
        tiers = dict(zip(FLOW_TIERS, counted.tiers, strict=True))
        after = (tiers["ended"], tiers["untrusted"] + tiers["young"], tiers["trusted"])
        ended, untrusted, trusted = (now - then for now, then in zip(after, before, strict=True))
        before = after
        interval = Interval(
            seconds=steps * (number + 1) // INTERVALS * STEP / SECOND,
            ns_per_packet=round(fate.ns / fate.packets, 1),
            packets=fate.packets,
            untracked=fate.untracked,
            ended=ended,
            untrusted=untrusted,
            trusted=trusted,
            entries=sum(counted.live),
        )
        say(
            f"{interval.seconds:,.0f} s: {interval.ns_per_packet} ns per packet, {interval.untracked} untracked,"
            f" {interval.entries:,} entries"
        )
        intervals.append(interval)
    forgotten = len(world.live) - world.send(world.live, ACK).known
    world.drain(BACKENDS // 2)
    broken = world.moved()
    for _ in range(600):  # a minute more, with all that is new going to the other half
        _closing(world, connections_per_second)
        world.talk()
        world.step += 1
    broken = max(broken, world.moved())
    untracked = sum(interval.untracked for interval in intervals)
    return WearBench(
        connections_per_second=connections_per_second,
        hours=hours,
        flows=flows,
        live=live,
        intervals=intervals,
        packets=sum(interval.packets for interval in intervals),
        untracked=untracked,
        ns_per_packet_first=intervals[0].ns_per_packet,
        ns_per_packet_last=intervals[-1].ns_per_packet,
        forgotten=forgotten,
        drained=BACKENDS // 2,
        broken=broken,
        sound=not (untracked or broken or forgotten),
        cpu=cpu_name(),
        commit=commit_name(),
    )


def _closing(world: _World, rate: int) -> Fate:
    """Connections of this step and of earlier ones: half are over at once, the others after a second."""
    fate = Fate()
    for ago, flags, half in _SCRIPT:
        first, last = (max(0, (world.step - ago + more) * rate * STEP // SECOND) for more in (0, 1))
        middle = (first + last) // 2
        fate += world.send((range(first, last), range(first, middle), range(middle, last))[half], flags)
    return fate


_ALL, _QUICK, _SLOW = range(3)
#: Steps after the first, TCP flags, and which half of the connections sends that.
_SCRIPT: tuple[tuple[int, int, int], ...] = (
    (0, SYN, _ALL),
    (0, ACK, _ALL),
    (0, PSH | ACK, _ALL),
    (0, FIN | ACK, _QUICK),
    (0, ACK, _QUICK),
    (5, ACK, _SLOW),
    (10, FIN | ACK, _SLOW),
    (10, ACK, _SLOW),
)


def bench_acks(*, rate: int, seconds: float, apart_ms: float, flows: int, live: int, new: int) -> AcksBench:
    """Two ACKs for each of a flood's tuples, beside live connections; a minute later others are opened."""
    world = _World(flows, live)
    per_step = max(1, round(rate / 2 * STEP / SECOND))
    late = round(apart_ms * 1_000_000 / STEP)
    fate, displaced = Fate(), 0
    for turn in range(max(1, round(seconds * SECOND / STEP)) + late):
        if turn * STEP < seconds * SECOND:
            fate += world.send(range(FLOOD + turn * per_step, FLOOD + (turn + 1) * per_step), ACK)
        if turn >= late:
            fate += world.send(range(FLOOD + (turn - late) * per_step, FLOOD + (turn - late + 1) * per_step), ACK)
        said = world.talk()
        displaced += said.new + said.untracked
        world.step += 1
    said = world.send(world.live, ACK)
    displaced += said.new + said.untracked
    broken = world.moved()
    world.step += 60 * SECOND // STEP
    fresh = range(new)
    remembered = world.send(fresh, SYN).new
    world.send(fresh, ACK)
    world.step += SECOND // STEP
    known = world.send(fresh, PSH | ACK).known
    return AcksBench(
        rate=rate,
        seconds=seconds,
        apart_ms=apart_ms,
        flows=flows,
        live=live,
        packets=fate.packets,
        ns_per_packet=round(fate.ns / fate.packets, 1),
        untracked=fate.untracked,
        displaced=displaced,
        broken=broken,
        new=new,
        remembered=remembered,
        known=known,
        sound=not displaced and not broken and remembered == new,
        cpu=cpu_name(),
        commit=commit_name(),
    )


def wear_lines(result: WearBench) -> Iterator[str]:
    """For people."""
    yield (
        f"{result.connections_per_second:,} connections a second opened and closed for {result.hours:g} h of simulated"
        f" time, beside {result.live:,} that stay open; a table for {result.flows:,} flows"
    )
    yield "    until  ns/packet  untracked  ended, untrusted, trusted that made room    entries"
    for row in result.intervals:
        made_room = f"{row.ended:,}, {row.untrusted:,}, {row.trusted:,}"
        yield f"{row.seconds:7,.0f} s  {row.ns_per_packet:9.1f}  {row.untracked:9,}  {made_room:>40}  {row.entries:9,}"
    yield f"live connections forgotten: {result.forgotten}"
    yield f"broken when {result.drained} of {BACKENDS} backends drained: {result.broken}"


def acks_lines(result: AcksBench) -> Iterator[str]:
    """For people."""
    yield (
        f"{result.rate:,} packets a second for {result.seconds:g} s, two ACKs for each tuple, {result.apart_ms:g} ms"
        f" apart: {result.ns_per_packet} ns per packet, {result.untracked:,} of {result.packets:,} untracked"
    )
    yield f"live connections: {result.live:,}, of which forgotten {result.displaced:,}, broken {result.broken:,}"
    yield (
        f"a minute later: {result.new:,} opened, {result.remembered:,} remembered, {result.known:,} known a second"
        " after"
    )


# --- roll-outs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RolloutsBench:
    """The answer of ``lb bench rollouts``."""

    rollouts: int
    services: int
    backends: int  #: of each, all of them with fresh names each time
    names: int  #: that there were in all
    seconds: float  #: simulated, between two roll-outs
    counters: int  #: that were ever lent
    highest: int  #: number of a backend within its service
    mislead: int  #: flows of gone backends that were taken for those of new ones
    rss_mib: list[float]  #: memory of the process after each tenth
    sound: bool
    cpu: str
    commit: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Table:
    """As :class:`lb.dataplane.compile.numbers.NumberUsers`."""

    pipeline: Pipeline

    def forgotten(self) -> int:
        return self.pipeline.forgotten

    def lent_counter(self, counter: int) -> None:
        """Nobody reads them."""

    def lent_service(self, service_id: int) -> None:
        """Nobody reads them."""


def bench_rollouts(*, rollouts: int, services: int, backends: int, seconds: float) -> RolloutsBench:
    """Replaces all backends of all services again and again, beside flows that remember the ones before."""
    settings = MuxSettings(
        name="bench", address=IPv4Address("192.0.2.1"), seed=bytes(range(16)), interface="", flows=1, slots=251
    )
    compiler, pipeline, templates = Compiler(settings), Pipeline(1, LinkHeader.SWAP), bench_services(services, backends)
    compiler.follow(_Table(pipeline))
    script: Script | None = None
    now, mislead, highest, rss = START, 0, 0, []
    for turn in range(rollouts):
        forwarding = compiler.compile([_replaced(service, turn) for service in templates])
        snapshot = forwarding.offline_snapshot()
        script = script or Script(pipeline, snapshot)
        # The same clients each time: their entries name backends that are gone by now.
        mislead += script.send(snapshot, range(256), SYN, now).known
        highest = max(highest, *(_highest(forwarding, number, service) for number, service in forwarding.ids.items()))
        for _ in range(max(1, round(seconds * SECOND / TICK))):
            now += TICK
            script.send(snapshot, range(LIVE, LIVE + 1), ACK, now)
        if (turn + 1) % max(1, rollouts // 10) == 0:
            rss.append(round(own_mib(), 1))
    return RolloutsBench(
        rollouts=rollouts,
        services=services,
        backends=backends,
        names=rollouts * services * backends,
        seconds=seconds,
        counters=forwarding.counters,
        highest=highest,
        mislead=mislead,
        rss_mib=rss,
        sound=not mislead and forwarding.counters <= 64 * services * backends,
        cpu=cpu_name(),
        commit=commit_name(),
    )


def _replaced(service: Service, turn: int) -> Service:
    """With backends that have other names and addresses than in any turn before."""
    count = len(service.backends)
    return replace(
        service,
        backends=tuple(
            replace(
                backend, name=f"{backend.name}-{turn}", address=IPv4Address("10.0.0.0") + (turn * count + n) % (1 << 23)
            )
            for n, backend in enumerate(service.backends)
        ),
    )


def _highest(forwarding: Forwarding, number: int, service: Service) -> int:
    return max(forwarding.number(number, backend.name) or 0 for backend in service.backends)


def own_mib() -> float:
    """Memory of this process."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)


def rollouts_lines(result: RolloutsBench) -> Iterator[str]:
    """For people."""
    yield (
        f"{result.rollouts:,} roll-outs of {result.services} services with {result.backends} backends each, all names"
        f" fresh ({result.names:,} in all), {result.seconds:g} s of simulated time apart"
    )
    yield f"numbers within a service: up to {result.highest}; counters lent: {result.counters:,}; none refused"
    yield f"flows of removed backends taken for those of new ones: {result.mislead}"
    yield "MiB after each tenth: " + ", ".join(f"{mib:.1f}" for mib in result.rss_mib)
