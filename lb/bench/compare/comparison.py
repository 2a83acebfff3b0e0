# SPDX-License-Identifier: Apache-2.0
"""Measures vipmux beside what it would replace, on one topology and in one run.

Called by ``lb bench peers``. All ways stand at once (:mod:`lb.bench.compare.networks`) and are measured by turns, round
by round, so that what disturbs the machine disturbs all; a figure is the median of the rounds, with the least and the
greatest beside it. What is measured goes before all else on the machine: the sessions of clients, servers and load
balancers are lifted, or all of them have real-time priority. HTTP goes through client, router, load balancer and host,
nothing pinned to a core. Packets go from a generator on one core through a load balancer on another
(:mod:`lb.bench.packet_rate`); what forwards in the kernel does so on the generator's core.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import statistics
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, BinaryIO

from lb.bench.compare import http_load
from lb.bench.compare.forwarders import DIRECT, Way, ways
from lb.bench.compare.networks import CLIENT, CLIENT_SMALL, LARGE, SMALL, PeersStage, RunningWay
from lb.bench.latency import measure
from lb.bench.packet_rate import (
    IoRun,
    KernelStage,
    MuxStage,
    RateStage,
    one_run,
    rules_addresses,
    two_cores,
)
from lb.bench.testbed import netns
from lb.bench.testbed.daemons import ended_by_signals, first_in_line, needs, real_time
from lb.bench.testbed.machine import CpuTime, commit_name, cpu_name, kernel_name, probe_ms
from lb.errors import RequestError, VipmuxError

#: Of a window of packets at full speed; another as long at half of the rate follows. Part of ``--seconds``.
_RATE_PART = 0.5
#: Of transfers.
_TRANSFER_PART = 0.3
_PROGRAMS = {"ip": "iproute2", "setpriv": "util-linux", "nginx": "nginx-light", "wrk": "wrk"}
_PROGRAMS_RATE = {"ip": "iproute2", "setpriv": "util-linux", "taskset": "util-linux"}

#: Figures of HTTP, each with its unit: the names are a contract.
HTTP_FIGURES = {
    "keep_p50_us": "request over a kept connection, median",
    "keep_p99_us": "99th percentile",
    "new_p50_us": "request with a connection of its own, median",
    "new_p99_us": "99th percentile",
    "wrk_per_second": "requests, 32 kept connections",
    "close_per_second": "requests, 32 at a time, each with a connection of its own",
    "get_1mb_mbit": "Mbit/s",
    "get_30mb_mbit": "Mbit/s",
    "put_1mb_mbit": "Mbit/s",
    "put_30mb_mbit": "Mbit/s",
    "put_30mb_window_mbit": "Mbit/s, 64 KB of window",
    "cpu_ms": "CPU of its process for 1,000 requests of wrk",
    "cpu_over_direct_ms": "CPU of the whole machine for 1,000 requests of wrk, less direct",
}
PACKET_FIGURES = {
    "mpps": "million packets per second of 60 bytes, at full speed",
    "ns_per_packet": "CPU of its process, with the sink's side of the link",
    "loss": "part of the packets lost at half of that rate",
}
NO_PACKETS = "it is set up for connections of TCP alone, and these packets are UDP"
#: Connections of wrk in the part "load"; figures are named load_N_per_second, load_N_p50_us and load_N_p99_us.
LOADS = (1, 4, 16, 64, 256)
PARTS = ("http", "packets", "load")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """Of the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(*(round(value, 4) for value in (statistics.median(values), min(values), max(values))))


@dataclass(slots=True)
class Measured:
    """A way and what was seen of it."""

    words: str
    figures: dict[str, Figure] = field(default_factory=dict)
    errors: int = 0  #: of requests, in all rounds
    steal: float = 0.0  #: part of all cores that the hypervisor took meanwhile
    noise: float = 0.0  #: how much slower the slowest fixed loop before its rounds was than their median


@dataclass(slots=True)
class PeersBench:
    """The answer of ``lb bench peers``; the names are a contract."""

    http: dict[str, Measured]
    packets: dict[str, Measured]
    load: dict[str, Measured]
    left_out: dict[str, str]
    offloads: bool
    rounds: int
    seconds: float
    load_average: float  #: of the minute before it began: what others did on this machine
    cpu: str
    kernel: str
    date: str
    commit: str
    realtime: bool = False  #: what took part in HTTP had real-time priority

    @property
    def sound(self) -> bool:
        return not any(way.errors for way in (*self.http.values(), *self.load.values()))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def names() -> list[str]:
    """Of the ways, with the direct one."""
    return [DIRECT, *(way.name for way in ways())]


def bench_peers(
    *,
    only: Collection[str],
    parts: Collection[str],
    rounds: int,
    seconds: float,
    offloads: bool,
    say: Say,
    realtime: bool = False,
) -> PeersBench:
    """``only``: names of ways, all if empty; ``seconds``: of each measurement in a round; ``realtime``: all that takes
    part in HTTP has real-time priority. Needs root."""
    unknown = sorted(set(only) - set(names()))
    if unknown:
        raise RequestError(f"--only {unknown[0]}: no such way; there are {', '.join(names())}")
    needs("lb bench peers", _PROGRAMS_RATE if set(parts) == {"packets"} else _PROGRAMS)
    netns.reap()
    load_average = round(os.getloadavg()[0], 1)
    wanted = [way for way in ways() if not only or way.name in only]
    left_out: dict[str, str] = {}
    http: dict[str, Measured] = {}
    packets: dict[str, Measured] = {}
    load: dict[str, Measured] = {}
    with ended_by_signals():
        with first_in_line(), real_time() if realtime else contextlib.nullcontext():
            if "http" in parts:
                http = _http(wanted, left_out, rounds=rounds, seconds=seconds, offloads=offloads, say=say)
            if "load" in parts:
                load = _load(wanted, left_out, rounds=rounds, seconds=seconds, offloads=offloads, say=say)
        if "packets" in parts:
            packets = _packets(wanted, left_out, rounds=rounds, seconds=seconds, say=say)
    return PeersBench(
        http=http,
        packets=packets,
        load=load,
        left_out=left_out,
        offloads=offloads,
        realtime=realtime,
        rounds=rounds,
        seconds=seconds,
        load_average=load_average,
        cpu=cpu_name(),
        kernel=kernel_name(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        commit=commit_name(),
    )


class _Series:
    """What the rounds of one way gave."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.probes: list[float] = []
        self.steal: list[float] = []
        self.errors = 0

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def measured(self, words: str) -> Measured:
        probes = self.probes or [1.0]
        return Measured(
            words=words,
            figures={name: Figure.of(values) for name, values in self.values.items()},
            errors=self.errors,
            steal=round(statistics.mean(self.steal or [0.0]), 4),
            noise=round(max(probes) / statistics.median(probes) - 1, 4),
        )


# ---- HTTP ----


def _http(
    wanted: list[Way], left_out: dict[str, str], *, rounds: int, seconds: float, offloads: bool, say: Say
) -> dict[str, Measured]:
    with PeersStage(wanted, offloads=offloads) as stage, tempfile.TemporaryFile() as body:
        left_out.update(stage.left_out)
        body.truncate(LARGE)
        series = {standing.name: _Series() for standing in stage.standing}
        lengths = {}
        for standing in stage.standing:  # neighbours, flows and caches are there from now on
            lengths[standing.name] = netns.inside(stage.client, partial(http_load.answer_bytes, standing.address))
        for number in range(rounds):
            direct: float | None = None
            for standing in stage.standing:
                say(f"round {number + 1} of {rounds}: {standing.name}")
                into = series[standing.name]
                into.probes.append(probe_ms())
                began = CpuTime.now()
                machine = _one_http_round(
                    stage.client, standing, into, answer=lengths[standing.name], body=body, seconds=seconds
                )
                into.steal.append(began.steal_until(CpuTime.now()))
                if direct is None:
                    direct = machine
                else:
                    into.add({"cpu_over_direct_ms": machine - direct})
        return {standing.name: series[standing.name].measured(standing.words) for standing in stage.standing}


def _one_http_round(
    client: str, standing: RunningWay, into: _Series, *, answer: int, body: BinaryIO, seconds: float
) -> float:
    """Returns CPU of the whole machine for 1,000 requests, ms."""
    address, transfers = standing.address, seconds * _TRANSFER_PART
    times = netns.inside(client, lambda: measure(address, seconds / 2, answer))
    into.add(
        {
            "keep_p50_us": times.p50,
            "keep_p99_us": times.p99,
            "new_p50_us": times.new_p50,
            "new_p99_us": times.new_p99,
        }
    )
    own, before = standing.program.cpu_ns() if standing.program else 0, CpuTime.now()
    load = http_load.wrk(client, address, seconds)
    machine = before.busy_ms_until(CpuTime.now()) * 1e3 / max(load.requests, 1)
    into.add({"wrk_per_second": load.per_second})
    if standing.program:
        into.add({"cpu_ms": (standing.program.cpu_ns() - own) / 1e3 / max(load.requests, 1)})
    closing = http_load.wrk(client, address, seconds, close=True)
    into.add({"close_per_second": closing.per_second})
    into.errors += load.errors + closing.errors

    def move() -> dict[str, float]:
        get, put = partial(http_load.download, address), partial(http_load.upload, address)
        return {
            "get_1mb_mbit": get("/files/small", transfers, CLIENT),
            "get_30mb_mbit": get("/files/large", transfers, CLIENT),
            "put_1mb_mbit": put("/files/put", transfers, CLIENT, body=body, size=SMALL),
            "put_30mb_mbit": put("/files/put", transfers, CLIENT, body=body, size=LARGE),
            "put_30mb_window_mbit": put("/files/put", transfers, CLIENT_SMALL, body=body, size=LARGE),
        }

    into.add(netns.inside(client, move))
    return machine


# ---- latency by load ----


def _load(
    wanted: list[Way], left_out: dict[str, str], *, rounds: int, seconds: float, offloads: bool, say: Say
) -> dict[str, Measured]:
    with PeersStage(wanted, offloads=offloads) as stage:
        left_out.update(stage.left_out)
        series = {standing.name: _Series() for standing in stage.standing}
        for number in range(rounds):
            for connections in LOADS:
                for standing in stage.standing:
                    say(f"load, round {number + 1} of {rounds}: {connections} connections, {standing.name}")
                    into = series[standing.name]
                    into.probes.append(probe_ms())
                    began = CpuTime.now()
                    load = http_load.wrk(stage.client, standing.address, seconds, connections=connections)
                    into.steal.append(began.steal_until(CpuTime.now()))
                    into.errors += load.errors
                    name = f"load_{connections}"
                    into.add({f"{name}_per_second": load.per_second})
                    into.add({f"{name}_p50_us": load.p50_us, f"{name}_p99_us": load.p99_us})
        return {standing.name: series[standing.name].measured(standing.words) for standing in stage.standing}


# ---- packets ----


def _packets(
    wanted: list[Way], left_out: dict[str, str], *, rounds: int, seconds: float, say: Say
) -> dict[str, Measured]:
    cores = two_cores()
    with contextlib.ExitStack() as stack:
        stack.enter_context(first_in_line())
        stages: dict[str, RateStage] = {}
        for way in wanted:
            if way.name in left_out:
                continue
            reason = way.missing()
            if reason:
                left_out[way.name] = reason
            elif not way.forwards:
                left_out[f"{way.name} (packets)"] = NO_PACKETS
            else:
                try:
                    stages[way.name] = stack.enter_context(_rate_stage(way, cores))
                    stages[way.name].warm_up()
                except VipmuxError as error:
                    left_out[f"{way.name} (packets)"] = str(error)
                    stages.pop(way.name, None)
        series = {name: _Series() for name in stages}
        for number in range(rounds):
            for name, stage in stages.items():
                say(f"packets, round {number + 1} of {rounds}: {name}")
                into = series[name]
                into.probes.append(probe_ms())
                run = one_run(stage, seconds * _RATE_PART, into.values.get("mpps", []))
                into.add(_packet_values(run, own=stage.measures_cpu))
                into.steal += [run.steal, run.paced_steal]
        return {name: series[name].measured(stage.mode()) for name, stage in stages.items()}


def _rate_stage(way: Way, cores: tuple[int, int]) -> RateStage:
    if way.io is not None:
        return MuxStage(way.io, cores)
    return KernelStage(cores, way.rules(*rules_addresses()) if way.rules else "", way.words)


def _packet_values(run: IoRun, *, own: bool) -> dict[str, float]:
    values = {"mpps": run.mpps, "loss": run.loss}
    return {**values, "ns_per_packet": run.ns_per_packet} if own else values


# ---- what is printed ----


def lines(result: PeersBench) -> list[str]:
    """Tables as text, a row for each way."""
    said: list[str] = []
    for title, group, columns in TABLES:
        measured: dict[str, Measured] = getattr(result, group)
        if measured:
            said += [*_table(title, measured, columns), ""]
    said += [f"{name} was left out: {reason}" for name, reason in result.left_out.items()]
    errors = {name: way.errors for name, way in (*result.http.items(), *result.load.items()) if way.errors}
    said += [f"{name}: {count} requests of wrk failed" for name, count in errors.items()]
    offloads = "on" if result.offloads else "off"
    priority = "; HTTP at real-time priority" if result.realtime else ""
    said.append(f"medians [least-greatest] of {result.rounds} rounds by turns; offloads {offloads}{priority}")
    said.append("steal: what the hypervisor took; noise: how much slower the slowest fixed loop was than their median")
    said.append(f"load average of the machine before it began: {result.load_average}")
    said.append(f"{result.cpu}, {result.kernel}, {result.date}, commit {result.commit}")
    return said


#: Title, group, and columns: heading, figure, digits.
TABLES: tuple[tuple[str, str, tuple[tuple[str, str, int], ...]], ...] = (
    (
        "lone requests, microseconds",
        "http",
        (
            ("kept p50", "keep_p50_us", 0),
            ("kept p99", "keep_p99_us", 0),
            ("new p50", "new_p50_us", 0),
            ("new p99", "new_p99_us", 0),
        ),
    ),
    (
        "32 connections: requests per second, and CPU in ms for 1,000 of the kept ones",
        "http",
        (
            ("kept", "wrk_per_second", 0),
            ("new each", "close_per_second", 0),
            ("CPU, its process", "cpu_ms", 1),
            ("CPU over direct", "cpu_over_direct_ms", 1),
        ),
    ),
    (
        "transfers, Mbit/s",
        "http",
        (
            ("GET 1 MB", "get_1mb_mbit", 0),
            ("GET 30 MB", "get_30mb_mbit", 0),
            ("PUT 1 MB", "put_1mb_mbit", 0),
            ("PUT 30 MB", "put_30mb_mbit", 0),
            ("64 KB window", "put_30mb_window_mbit", 0),
        ),
    ),
    *(
        (
            title,
            "load",
            tuple((f"{count} connection{'s' if count > 1 else ''}", f"load_{count}_{what}", 0) for count in LOADS),
        )
        for title, what in (
            ("requests per second by load", "per_second"),
            ("median by load, microseconds", "p50_us"),
            ("99th percentile by load, microseconds", "p99_us"),
        )
    ),
    (
        "packets of 60 bytes",
        "packets",
        (
            ("million per second", "mpps", 3),
            ("CPU ns for each", "ns_per_packet", 0),
            ("lost at half rate", "loss", 4),
        ),
    ),
)


def _table(title: str, measured: dict[str, Measured], columns: Sequence[tuple[str, str, int]]) -> list[str]:
    rows = [[title, *(heading for heading, _, _ in columns), "steal", "noise"]]
    for name, way in measured.items():
        cells = [cell(way.figures.get(figure), digits) for _, figure, digits in columns]
        rows.append([name, *cells, f"{way.steal:.1%}", f"{way.noise:.0%}"])
    widths = [max(len(row[column]) for row in rows[1:]) for column in range(len(rows[0]))]
    widths = [
        max(width, len(heading) if at else 0) for at, (width, heading) in enumerate(zip(widths, rows[0], strict=True))
    ]
    headings = ["", *rows[0][1:]]
    printed = [headings, *rows[1:]]
    return [
        title,
        *(
            "  ".join(
                text.rjust(width) if at else text.ljust(width)
                for at, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in printed
        ),
    ]


def cell(figure: Figure | None, digits: int) -> str:
    """``97 [90-120]``."""
    if figure is None:
        return "-"
    median, least, greatest = (f"{value:,.{digits}f}" for value in (figure.median, figure.min, figure.max))
    return f"{median} [{least}-{greatest}]"
