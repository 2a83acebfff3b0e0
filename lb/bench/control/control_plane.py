# SPDX-License-Identifier: Apache-2.0
"""Measures the control plane: ten thousand services, three MUXes, a hundred agents, one manager, two routers.

Called by ``lb bench control`` and ``lb bench all``. Manager and MUXes are real processes (mutual TLS, SQLite on disk,
every MUX publishes to its data plane); agents are simulated by :mod:`lb.bench.control.simulated_nodes` with the real
client. A change is live when every node that it concerns has acknowledged it: a MUX does so after it has published, and
it counts from the beginning of the operator's request, connection and TLS handshake included, to the answer of ``lb
apply
--wait``. Every MUX announces all VIPs to two BIRDs (:mod:`lb.bench.testbed.bird`), if BIRD is installed; at the end
they must have all of them by every MUX, and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from typing import Any

from lb.bench.control.testbed import (
    FIRST_VIP,
    SERVICE_PORT,
    BenchFleet,
    OperatorAt,
    check,
    cpu_of,
    exabgp_of,
    host_address,
    memory_of,
    rings_of,
)
from lb.bench.testbed import netns
from lb.bench.testbed.bird import ABSENT
from lb.bench.testbed.machine import commit_name, cpu_name
from lb.config.toml import format_tables
from lb.errors import IoError

#: Maglev tables of ten thousand services; and flows of each MUX.
SLOTS, FLOWS = 4093, 1_000_000
SLOT_BYTES = 1  #: of services of fewer than 256 backends
#: Services with a probe, which verdicts are about; a verdict for each of them in turn.
PROBED = 50
PROBE = {"type": "tcp", "interval": 10, "timeout": 5}
#: Until a change must be live, seconds.
WAIT = 60.0
#: Until everything must have followed at the start, seconds.
FOLLOWED = 300.0
#: Between two changes, seconds: one at a time is measured.
PAUSE = 0.05
#: What MUXes do at leisure after a large change has ended by then, seconds.
REST = 5.0
#: VIPs that come and go, one at a time, and the pause between, seconds.
VIPS_CHANGED, REST_OF_VIP = 20, 0.5
_NOISE_LOOPS, _NOISE_SIZE = 40, 100_000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of times, milliseconds."""

    count: int
    min: float
    median: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Distribution:
        if not seconds:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        sorted_ = sorted(value * 1000 for value in seconds)

        def at(part: float) -> float:
            return round(sorted_[min(int(part * len(sorted_)), len(sorted_) - 1)], 1)

        return cls(len(sorted_), at(0), round(statistics.median(sorted_), 1), at(0.9), at(0.99), at(1))


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Of one process, MiB. ``control`` is what is left of ``rss`` without tables, flows and the rings of packets: the
    control plane."""

    rss: float
    pss: float
    own: float
    tables: float = 0.0
    flows: float = 0.0
    rings: float = 0.0

    @property
    def control(self) -> float:
        return round(self.rss - self.tables - self.flows - self.rings, 1)


@dataclass(slots=True)
class ControlBench:
    """The answer of ``lb bench control``; the names are a contract."""

    services: int
    backends: int
    muxes: int
    agents: int
    median: float = 0.0  #: milliseconds until a change of one service is live everywhere
    worst: float = 0.0
    runs: list[float] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)  #: the distribution of each kind
    noise: float = 0.0  #: of a fixed loop meanwhile: how much slower its slowest tenth is than its median
    first_apply: float = 0.0  #: seconds until all services were live everywhere
    join: float = 0.0  #: seconds until all agents, joining at once, were followed
    bytes_whole: int = 0  #: to each MUX, for all services
    bytes_change: int = 0  #: to each MUX, for a change of one
    churn: dict[str, Any] = field(default_factory=dict)
    rollouts: dict[str, Any] = field(default_factory=dict)  #: memory while names of backends come and go
    verdicts: dict[str, Any] = field(default_factory=dict)  #: until a MUX has them while something large goes on
    bgp: dict[str, Any] = field(default_factory=dict)  #: what router it was against, and what that heard
    memory: dict[str, Any] = field(default_factory=dict)
    commands: dict[str, float] = field(default_factory=dict)  #: milliseconds of each command of ``lb``
    cpu: str = ""
    commit: str = ""

    @property
    def sound(self) -> bool:
        """Whether everybody ended up with what they should have, however long it took."""
        return not self.bgp.get("wrong") and not any(self.churn.get(key) for key in ("lost", "wrong", "diverged"))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_control(
    operator_at: OperatorAt,
    *,
    services: int = 10_000,
    backends: int = 6,
    muxes: int = 3,
    agents: int = 100,
    changes: int = 200,
    seconds: float = 30.0,
    rate: float = 100.0,
    rollouts: int = 0,
    during_apply: int = 0,
    during_join: int = 0,
    say: Say = lambda line: None,
) -> ControlBench:
    """``seconds`` of verdicts at ``rate``; ``rollouts``: so many applies, each with fresh names of
    a service's backends; ``during_apply``: services that are changed at once while verdicts are said,
    and ``during_join`` agents that join meanwhile. Needs root."""
    check()
    netns.reap()
    answer = ControlBench(services, backends, muxes, agents, cpu=cpu_name(), commit=commit_name())
    tables = service_tables(services, backends, agents)
    with BenchFleet(muxes, agents, operator_at) as fleet:
        _begin(fleet, tables, answer, say)
        before = _updates(fleet)
        _changes(fleet, tables, changes, answer, say)
        answer.bgp |= {"moved": _updates(fleet) - before} if fleet.routers else {}
        _vips(fleet, tables, answer, say)
        _memory(fleet, answer)
        _commands(fleet, tables[-1], answer, say)
        if seconds:
            _churn(fleet, seconds, rate, answer, say)
        if rollouts:
            _rollouts(fleet, tables[-1], rollouts, answer, say)
        if during_apply:
            _verdicts_during_apply(fleet, tables[:during_apply], answer, say)
        if during_join:
            _verdicts_during_join(fleet, during_join, answer, say)
        _routes(fleet, tables, answer, say)
    return answer


def service_tables(services: int, backends: int, agents: int) -> list[dict[str, Any]]:
    """Each at a VIP of its own, its backends on hosts drawn at random: hardly two share a Maglev table."""
    chance = random.Random(1)  # noqa: S311  the same in every run
    tables = []
    for number in range(services):
        hosts = sorted(chance.sample(range(1, agents + 1), min(backends, agents)))
        table: dict[str, Any] = {
            "name": f"service-{number:05d}",
            "vip": str(IPv4Address(FIRST_VIP + number + 1)),
            "protocol": "tcp",
            "port": SERVICE_PORT,
            "backend": [_backend(number, host) for host in hosts],
        }
        if number < PROBED:
            table["probe"] = PROBE
        tables.append(table)
    return tables


def _backend(service: int, host: int) -> dict[str, Any]:
    return {"name": f"service-{service:05d}-{host}", "address": host_address(host), "weight": 10}


# ---- the start ------------------------------------------------------------------------------------------------------


def _begin(fleet: BenchFleet, tables: list[dict[str, Any]], answer: ControlBench, say: Say) -> None:
    """Manager, MUXes, services, and then all agents at once."""
    fleet.start_manager()
    fleet.start_routers()
    _tell_routers(fleet, answer, say)
    for name in fleet.mux_names:
        fleet.start_mux(name, SLOTS, FLOWS)
    for mux in fleet.muxes.values():
        mux.wait_for(r'event="manager connected"')
    before = fleet.received(fleet.mux_names[0])
    started = time.monotonic()
    fleet.apply(tables, WAIT)
    fleet.wait_followed(answer.muxes, FOLLOWED)
    answer.first_apply = round(time.monotonic() - started, 2)
    answer.bytes_whole = fleet.received(fleet.mux_names[0]) - before
    say(f"all services live on {answer.muxes} MUXes after {answer.first_apply:.1f} s")
    if fleet.routers:
        fleet.wait_routes(answer.services, FOLLOWED)
        answer.bgp["first"] = round(time.monotonic() - started, 2)
        say(f"all VIPs in all routers by every MUX after {answer.bgp['first']:.1f} s")
    fleet.serve_vips(table["vip"] for table in tables[:PROBED])
    places = [(t["name"], b["name"], f"host{_host(b)}") for t in tables[:PROBED] for b in t["backend"]]
    fleet.start_agents(places)
    fleet.agents.ask(do="start", names=["watcher"])
    fleet.wait_followed(answer.muxes + 1, FOLLOWED)
    started = time.monotonic()
    fleet.agents.ask(do="start", names=fleet.agent_names)
    fleet.wait_followed(answer.muxes + 1 + answer.agents, FOLLOWED)
    answer.join = round(time.monotonic() - started, 2)
    say(f"{answer.agents} agents joined at once and were followed after {answer.join:.1f} s")
    fleet.apply(tables[:1], FOLLOWED)  # changes nothing, and returns once all was planned
    time.sleep(REST)


def _host(backend: dict[str, Any]) -> int:
    return int(backend["name"].rpartition("-")[2])


# ---- changes of one service -----------------------------------------------------------------------------------------


def _changes(fleet: BenchFleet, tables: list[dict[str, Any]], count: int, answer: ControlBench, say: Say) -> None:
    """A weight, a backend more, that backend gone again, by turns, each of another service."""
    chance = random.Random(2)  # noqa: S311
    kinds: dict[str, list[float]] = {"weight": [], "backend added": [], "backend removed": []}
    runs, loops = [], []
    before = fleet.received(fleet.mux_names[0])
    added: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(count):
        kind = list(kinds)[number % 3]
        if kind == "backend removed":
            without, table = added.pop()
        else:
            without = copy.deepcopy(tables[chance.randrange(PROBED, len(tables))])
            table = copy.deepcopy(without)
            if kind == "weight":
                chance.choice(table["backend"])["weight"] = 11 + number  # that nobody has yet: it is a change
            else:
                used = {_host(backend) for backend in table["backend"]}
                free = [host for host in range(1, answer.agents + 1) if host not in used]
                table["backend"].append(_backend(int(table["name"][-5:]), chance.choice(free)))
                added.append((without, table))
        began = time.perf_counter()
        done = fleet.apply([without if kind == "backend removed" else table], WAIT)
        took = time.perf_counter() - began
        if not done["changed"] or done["behind"]:
            raise IoError(f"change {number} ({kind} of {table['name']}) is not live on {done.get('behind')}")
        kinds[kind].append(took)
        runs.append(took)
        loops.append(_loop())
        time.sleep(PAUSE)
    answer.bytes_change = (fleet.received(fleet.mux_names[0]) - before) // max(count, 1)
    found = Distribution.of(runs)
    answer.median, answer.worst = found.median, found.worst
    answer.runs = [round(value * 1000, 1) for value in runs]
    answer.changes = {"all": asdict(found)} | {kind: asdict(Distribution.of(v)) for kind, v in kinds.items()}
    answer.noise = round(statistics.quantiles(loops, n=10)[-1] / statistics.median(loops) - 1, 4)
    say(f"{count} changes of one service: median {found.median} ms, worst {found.worst} ms")


def _loop() -> float:
    """A fixed piece of work, to see who shares the machine."""
    began = time.perf_counter()
    sum(range(_NOISE_SIZE))
    return time.perf_counter() - began


# ---- BGP ------------------------------------------------------------------------------------------------------------


def _tell_routers(fleet: BenchFleet, answer: ControlBench, say: Say) -> None:
    if fleet.routers:
        answer.bgp = {"router": fleet.routers[0].version(), "peers": len(fleet.routers)}
    else:
        answer.bgp = {"router": None, "peers": 0, "why": ABSENT}
        say(ABSENT)


def _updates(fleet: BenchFleet) -> int:
    """What MUXes told routers so far, prefix by prefix."""
    return sum(router.updates() for router in fleet.routers)


def _vips(fleet: BenchFleet, tables: list[dict[str, Any]], answer: ControlBench, say: Say) -> None:
    """A service with a VIP of its own comes and goes: from the request until all routers have it by all MUXes."""
    if not fleet.routers:
        return
    came, went = [], []
    for number in range(VIPS_CHANGED):
        table = {**tables[-1], "name": f"new-{number}", "vip": str(IPv4Address(FIRST_VIP + len(tables) + number + 1))}
        began = time.perf_counter()
        fleet.apply([table], 0)
        fleet.wait_routes(len(tables) + 1, WAIT)
        came.append(time.perf_counter() - began)
        time.sleep(REST_OF_VIP)
        began = time.perf_counter()
        fleet.delete(table["name"])
        fleet.wait_routes(len(tables), WAIT)
        went.append(time.perf_counter() - began)
        time.sleep(REST_OF_VIP)
    found = {"announced": Distribution.of(came), "withdrawn": Distribution.of(went)}
    answer.bgp |= {kind: asdict(row) for kind, row in found.items()}
    say(", ".join(f"a VIP is {kind} after {row.median} ms (median)" for kind, row in found.items()))


def _routes(fleet: BenchFleet, tables: list[dict[str, Any]], answer: ControlBench, say: Say) -> None:
    """At the end every router has exactly the VIPs by every MUX."""
    if not fleet.routers:
        return
    with contextlib.suppress(IoError):  # it is told below
        fleet.wait_routes(len(tables), WAIT)
    vips = [f"{table['vip']}/32" for table in tables]
    wrong = {router.name: found for router in fleet.routers if (found := router.differences(vips))}
    answer.bgp |= {"routes": sum(router.count() for router in fleet.routers), "wrong": wrong}
    say(f"{answer.bgp['routes']:,} routes, " + (f"wrong ones: {wrong}" if wrong else "exactly the VIPs everywhere"))


# ---- memory ---------------------------------------------------------------------------------------------------------


def _memory(fleet: BenchFleet, answer: ControlBench) -> None:
    """Everything idle, after the changes."""
    from lb.dataplane import flow_table_bytes  # noqa: PLC0415  brings the extension

    mib = 2**20
    tables = answer.services * SLOTS * SLOT_BYTES / mib
    flows = flow_table_bytes(FLOWS) / mib
    for name, pid in _processes(fleet).items():
        own_tables, own_flows = (tables, flows) if name in fleet.muxes else (0.0, 0.0)
        found = {key: round(value / mib, 1) for key, value in memory_of(pid).items()}
        rings = round(rings_of(pid) / mib, 1)
        memory = ProcessMemory(**found, tables=round(own_tables, 1), flows=round(own_flows, 1), rings=rings)
        answer.memory[name] = {**asdict(memory), "control": memory.control}


def _processes(fleet: BenchFleet) -> dict[str, int]:
    """The manager, the MUXes, and the ExaBGP of one MUX, by their pids."""
    pids = {"lb-manager": fleet.manager.pid} | {name: mux.pid for name, mux in fleet.muxes.items()}
    return pids | ({"exabgp": exabgp_of(fleet.muxes[fleet.mux_names[0]].pid)} if fleet.routers else {})


# ---- commands -------------------------------------------------------------------------------------------------------

#: What is timed, in this order; ``all.toml`` is what the manager holds, ``more.toml`` that with one weight changed, and
#: ``one.toml`` the changed service alone.
COMMANDS = (
    "--help",
    "get --help",
    "get status",
    "get services",
    "get services -o json",
    "get services --limit 100",
    "get backends",
    "get backends --service {service}",
    "get muxes",
    "get agents",
    "get announcements",
    "get events",
    "get history",
    "describe service {service}",
    "describe backend {service}/{backend}",
    "describe vip {vip}",
    "describe flow --src 198.51.100.7:4711 --dst {vip}:80",
    "top --once",
    "export",
    "apply -f all.toml",
    "apply --dry-run -f more.toml",
    "diff -f more.toml",
    "diff -f one.toml",
    "apply -f one.toml",
    "drain {service}/{backend}",
    "undrain {service}/{backend}",
)
#: Each command so many times; the median counts.
TIMES = 5


def _commands(fleet: BenchFleet, table: dict[str, Any], answer: ControlBench, say: Say) -> None:
    """From the start of the program to its end, its output going to a pipe."""
    held = fleet.get("tables")
    changed = copy.deepcopy(next(one for one in held if one["name"] == table["name"]))
    changed["backend"][0]["weight"] = 30
    more = [changed if one["name"] == table["name"] else one for one in held]
    for name, found in (("all", held), ("more", more), ("one", [changed])):
        (fleet.directory / f"{name}.toml").write_text(format_tables(found))
    names = {"service": table["name"], "backend": table["backend"][0]["name"], "vip": table["vip"]}
    for command in COMMANDS:
        runs = [fleet.command(command.format(**names).split()) for _ in range(TIMES)]
        shown = command.format(service="SERVICE", backend="BACKEND", vip="VIP")
        answer.commands[f"lb {shown}"] = round(statistics.median(runs) * 1000, 1)
    slowest = max(answer.commands, key=lambda command: answer.commands[command])
    say(f"{len(COMMANDS)} commands: the slowest is `{slowest}`, {answer.commands[slowest]:.0f} ms")


# ---- churn ----------------------------------------------------------------------------------------------------------


def _churn(fleet: BenchFleet, seconds: float, rate: float, answer: ControlBench, say: Say) -> None:
    pids = _processes(fleet)
    before = {name: cpu_of(pid) for name, pid in pids.items()}
    done = fleet.agents.ask(do="churn", seconds=seconds, rate=rate, seed=3)
    after = {name: cpu_of(pid) for name, pid in pids.items()}
    fleet.wait_followed(answer.muxes + 1 + answer.agents, FOLLOWED)
    answer.churn = {
        "verdicts": done["verdicts"],
        "rate": round(done["verdicts"] / done["seconds"], 1),
        "latency": asdict(Distribution.of(done["latencies"])),
        "replaced": done["replaced"],
        "lost": done["lost"],
        "wrong": wrong_verdicts(fleet, done["last"]),
        "diverged": diverged(fleet),
        "cpu": {name: round((after[name] - before[name]) / done["seconds"], 3) for name in before},
    }
    latency = answer.churn["latency"]
    say(f"{done['verdicts']} verdicts: median {latency['median']} ms to a MUX, worst {latency['worst']} ms")


#: Memory is looked at so many times, and every so many roll-outs are waited for.
LOOKS, WAITED = 10, 50


def _rollouts(fleet: BenchFleet, table: dict[str, Any], count: int, answer: ControlBench, say: Say) -> None:
    """A service has its backends replaced again and again, by names that never were; the last are the first."""
    pids = {name: pid for name, pid in _processes(fleet).items() if name != "exabgp"}
    rss: dict[str, list[float]] = {name: [] for name in pids}
    began = time.monotonic()
    for number in range(1, count + 1):
        backends = [{**backend, "name": f"{backend['name']}-{number}"} for backend in table["backend"]]
        fleet.apply([{**table, "backend": backends}], WAIT if number % WAITED == 0 else 0)
        if number * LOOKS % count < LOOKS:
            for name, pid in pids.items():
                rss[name].append(round(memory_of(pid)["rss"] / 2**20, 1))
    took = time.monotonic() - began
    fleet.apply([table], FOLLOWED)
    answer.rollouts = {"count": count, "seconds": round(took, 1), "rss": rss}
    grown = {name: round(found[-1] - found[0], 1) for name, found in rss.items()}
    say(f"{count:,} roll-outs in {took:.0f} s: from the first tenth to the last, MiB more: {grown}")


#: Verdicts a second while something large goes on.
BESIDE = 20.0


def _verdicts_during_apply(fleet: BenchFleet, tables: list[dict[str, Any]], answer: ControlBench, say: Say) -> None:
    """Every one of these services gets another weight, in one request, while agents say verdicts."""
    changed = copy.deepcopy(tables)
    for table in changed:
        table["backend"][0]["weight"] = 20

    def work() -> dict[str, Any]:
        fleet.apply(changed, FOLLOWED)
        return {"services": len(changed)}

    answer.verdicts["during_apply"] = _verdicts_beside(fleet, work)
    _say_verdicts("during_apply", f"while {len(changed):,} services changed", answer, say)


def _verdicts_during_join(fleet: BenchFleet, count: int, answer: ControlBench, say: Say) -> None:
    """So many agents more join at once, each with a key, a token and a connection of its own."""
    names = fleet.start_joiners(count)

    def work() -> dict[str, Any]:
        fleet.joiners.ask(do="start", names=names)
        fleet.wait_followed(answer.muxes + 1 + answer.agents + count, FOLLOWED)
        return {"agents": count}

    answer.verdicts["during_join"] = _verdicts_beside(fleet, work)
    _say_verdicts("during_join", f"while {count:,} agents joined", answer, say)
    fleet.joiners.stop()


def _verdicts_beside(fleet: BenchFleet, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Of the verdicts that were said while it went on, how long each took to a MUX."""
    with ThreadPoolExecutor(1, "verdicts") as beside:
        ending = beside.submit(fleet.agents.ask, do="churn", seconds=1.0, rate=BESIDE, seed=4)
        ending.result()  # so that everything is warm
        spans: list[dict[str, Any]] = []
        going = True

        def verdicts() -> None:
            while going:
                spans.append(fleet.agents.ask(do="churn", seconds=1.0, rate=BESIDE, seed=5 + len(spans)))

        saying = beside.submit(verdicts)
        began = time.monotonic()
        try:
            found = work()
        finally:
            ended = time.monotonic()
            going = False
            saying.result()
    took = [
        latency
        for span in spans
        for at, latency in zip(span["said"], span["latencies"], strict=True)
        if began <= at <= ended
    ]
    lost = sum(span["lost"] for span in spans)
    return {**found, "seconds": round(ended - began, 2), "latency": asdict(Distribution.of(took)), "lost": lost}


def _say_verdicts(key: str, words: str, answer: ControlBench, say: Say) -> None:
    found = answer.verdicts[key]
    latency = found["latency"]
    say(f"verdicts {words} ({found['seconds']:.1f} s): median {latency['median']} ms to a MUX, p90 {latency['p90']} ms")


def wrong_verdicts(fleet: BenchFleet, last: list[tuple[str, str, bool]]) -> int:
    """Backends that a real MUX has in another state than the last verdict on them says."""
    rows = {(row["service"], row["name"]): row["state"] for row in fleet.local(fleet.mux_names[-1], "backends")}
    return sum((rows[service, backend] == "up") is not up for service, backend, up in last)


def diverged(fleet: BenchFleet) -> list[str]:
    """Nodes that do not hold what the manager wants of them: by generation, and the simulated by what they hold."""
    rows = {f"mux:{row['name']}": row for row in fleet.get("muxes")}
    rows |= {f"agent:{row['name']}": row for row in fleet.get("agents")}
    held = fleet.agents.ask(do="digests")["digests"]
    found = [name for name, row in rows.items() if row["generation"] != row["wanted"]]
    return found + [name for name, (generation, _) in held.items() if rows[name]["generation"] != generation]


# ---- for people -----------------------------------------------------------------------------------------------------

#: Upper ends of the histogram's rows, milliseconds.
STEPS = (10, 20, 30, 40, 50, 75, 100, 150, 250, 500, 1000)
_BAR = 40


def lines(answer: ControlBench) -> list[str]:
    """The answer as text."""
    said = [
        f"{answer.services:,} services of {answer.backends} backends, {answer.muxes} MUXes, {answer.agents} agents",
        f"all at once  {answer.first_apply:.1f} s until live on every MUX; {answer.bytes_whole / 2**20:.1f} MiB each",
        f"join         {answer.join:.1f} s until {answer.agents} agents that join at once are followed",
        f"change       {answer.bytes_change:,} bytes to each MUX; milliseconds until live everywhere:",
        f"  {'':<16}{'count':>6}{'min':>8}{'median':>8}{'p90':>8}{'p99':>8}{'worst':>8}",
    ]
    for kind, row in answer.changes.items():
        said.append(f"  {kind:<16}" + f"{row['count']:>6}" + "".join(f"{row[key]:>8.1f}" for key in list(row)[1:]))
    said += [f"  {line}" for line in histogram(answer.runs)]
    said += _lines_of_bgp(answer.bgp)
    if answer.churn:
        churn, latency = answer.churn, answer.churn["latency"]
        said += [
            f"churn        {churn['verdicts']:,} verdicts, {churn['rate']:.0f} a second: {latency['median']} ms "
            f"to a MUX (p99 {latency['p99']}, worst {latency['worst']}); {churn['lost']} lost, {churn['wrong']} wrong",
            "  CPU        " + ", ".join(f"{name} {share:.0%}" for name, share in churn["cpu"].items()),
        ]
    if answer.rollouts:
        said.append(f"roll-outs    {answer.rollouts['count']:,}, MiB resident after each tenth of them:")
        said += [
            f"  {name:<11}" + "".join(f"{value:>8.1f}" for value in found)
            for name, found in answer.rollouts["rss"].items()
        ]
    for key, found in answer.verdicts.items():
        many, row = found.get("services") or found.get("agents"), found["latency"]
        what = f"{many:,} {'services are applied' if key == 'during_apply' else 'agents join'}"
        said.append(
            f"verdicts     while {what}, {found['seconds']:.1f} s: {row['median']} ms to a MUX (p90 {row['p90']}, "
            f"worst {row['worst']}, of {row['count']}); {found['lost']} lost"
        )
    if answer.commands:
        said.append(f"commands     milliseconds, the median of {TIMES}:")
        said += [f"  {command:<62}{took:>7.0f}" for command, took in answer.commands.items()]
    said.append(f"memory, MiB  {'rss':>8}{'pss':>8}{'tables':>8}{'flows':>8}{'rings':>8}{'control':>8}")
    for name, row in answer.memory.items():
        said.append(
            f"  {name:<11}"
            + "".join(f"{row[key]:>8.1f}" for key in ("rss", "pss", "tables", "flows", "rings", "control"))
        )
    said.append(f"noise {answer.noise:.0%} of a fixed loop; {answer.cpu}, commit {answer.commit}")
    return said


def _lines_of_bgp(bgp: dict[str, Any]) -> Iterator[str]:
    if not bgp.get("router"):
        yield f"BGP          {bgp.get('why', 'not measured')}"
        return
    yield f"BGP          {bgp['router']}, {bgp['peers']} peers of each MUX: all VIPs there after {bgp['first']:.1f} s"
    came, went = bgp["announced"], bgp["withdrawn"]
    yield f"  a VIP      announced by all after {came['median']} ms (worst {came['worst']}, of {came['count']})"
    yield f"             withdrawn by all after {went['median']} ms (worst {went['worst']})"
    right = f"not exactly the VIPs: {bgp['wrong']}" if bgp["wrong"] else "exactly the VIPs"
    yield f"  routes     {bgp['routes']:,} at the end, {right}; changes of services moved {bgp['moved']}"


def histogram(milliseconds: Sequence[float]) -> list[str]:
    """How many changes took how long."""
    rows, lower = [], 0.0
    for upper in (*STEPS, math.inf):
        count = sum(lower < value <= upper for value in milliseconds)
        if count:
            name = f"to {upper:g} ms" if math.isfinite(upper) else f"over {lower:g} ms"
            rows.append(f"{name:<14}{count:>5}  {'#' * max(1, round(count * _BAR / len(milliseconds)))}")
        lower = upper
    return rows
