# SPDX-License-Identifier: Apache-2.0
"""Measures what a MUX adds to a lone request: through the VIP, beside the same path without it.

Called by ``lb bench latency``. Client, ``lb-mux`` and a host with ``lb-agent`` are on one switch, each in a network
namespace of its own. The client has one request under way at a time: over a connection that stays, then over a new
connection for each. Rounds of both ways alternate, so that what disturbs the machine disturbs both; the answer has the
median of the rounds. All of it goes before others on the machine. Nothing is pinned to a core: where a packet wakes
whom is a part of what is measured.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lb.bench.testbed import netns
from lb.bench.testbed.daemons import ended_by_signals, first_in_line, needs, ticks
from lb.bench.testbed.machine import commit_name, cpu_name
from lb.bench.testbed.switch import ANSWER_BYTES, HOST, PORT, VIP, SwitchStage
from lb.errors import IoError
from lb.model import IoMode

#: Rounds; their median counts.
RUNS = 5
#: Of each of the four parts of a round, seconds.
PART_MIN = 0.05
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
#: No answer for so long is none, seconds.
TIMEOUT = 5.0

_PROGRAMS = {"ip": "iproute2", "setpriv": "util-linux"}


@dataclass(frozen=True, slots=True)
class Times:
    """Of one way in one round, microseconds."""

    p50: float
    p99: float
    new_p50: float  #: connection, request and answer
    new_p99: float
    requests: int
    connections: int


@dataclass(frozen=True, slots=True)
class LatencyRun:
    """One round."""

    direct: Times
    vip: Times
    steal: float  #: part of all cores that the hypervisor took


@dataclass(frozen=True, slots=True)
class LatencyBench:
    """The answer of ``lb bench latency``; the names are a contract."""

    direct_p50_us: float  #: medians of the rounds: a request over a connection that stays
    vip_p50_us: float
    direct_p99_us: float
    vip_p99_us: float
    direct_new_p50_us: float  #: a request with a connection of its own
    vip_new_p50_us: float
    direct_new_p99_us: float
    vip_new_p99_us: float
    runs: list[LatencyRun]
    io: str
    mode: str
    decap: str
    steal: float
    noise: float  #: spread of the rounds' direct p50, as a part of their median
    cpu: str
    commit: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_latency(*, io: IoMode, seconds: float) -> LatencyBench:
    """Measures for so long; needs root."""
    needs("lb bench latency", _PROGRAMS)
    netns.reap()
    part = max(seconds / (4 * RUNS), PART_MIN)
    with ended_by_signals(), first_in_line(), _Stage(io) as stage:
        stage.one_round(PART_MIN)  # neighbours, flows and caches are there from now on
        runs = [stage.one_round(part) for _ in range(RUNS)]
        return _summary(io, runs, stage.mode(), stage.decap())


def _summary(io: IoMode, runs: list[LatencyRun], mode: str, decap: str) -> LatencyBench:
    def median(way: str, value: str) -> float:
        values: list[float] = [getattr(getattr(run, way), value) for run in runs]
        return round(statistics.median(values), 1)

    direct = [run.direct.p50 for run in runs]
    return LatencyBench(
        direct_p50_us=median("direct", "p50"),
        vip_p50_us=median("vip", "p50"),
        direct_p99_us=median("direct", "p99"),
        vip_p99_us=median("vip", "p99"),
        direct_new_p50_us=median("direct", "new_p50"),
        vip_new_p50_us=median("vip", "new_p50"),
        direct_new_p99_us=median("direct", "new_p99"),
        vip_new_p99_us=median("vip", "new_p99"),
        runs=runs,
        io=io.value,
        mode=mode,
        decap=decap,
        steal=round(statistics.mean(run.steal for run in runs), 4),
        noise=round((max(direct) - min(direct)) / statistics.median(direct), 4),
        cpu=cpu_name(),
        commit=commit_name(),
    )


# ---- requests ----


def measure(address: str, seconds: float, answer: int = ANSWER_BYTES) -> Times:
    """Half of the time over one connection, half with new ones; in the namespace of the calling thread. ``answer``:
    bytes of it."""
    with connect(address) as kept:
        ask(kept, answer)  # the server has accepted it
        lasting = _repeat(lambda: ask(kept, answer), seconds)
    new = _repeat(lambda: ask_anew(address, answer), seconds)
    return Times(*_percentiles(lasting), *_percentiles(new), len(lasting), len(new))


def _repeat(request: Callable[[], None], seconds: float) -> list[int]:
    """How long each took, ns."""
    taken: list[int] = []
    now = time.perf_counter_ns()
    end = now + int(seconds * 1e9)
    while now < end or len(taken) < 2:
        request()
        after = time.perf_counter_ns()
        taken.append(after - now)
        now = after
    return taken


def _percentiles(taken: list[int]) -> tuple[float, float]:
    """The 50th and the 99th, microseconds."""
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return round(cuts[49] / 1e3, 1), round(cuts[98] / 1e3, 1)


def connect(address: str) -> socket.socket:
    try:
        made = socket.create_connection((address, PORT), TIMEOUT)
    except OSError as error:
        raise IoError(f"no connection to {address} port {PORT} in the benchmark: {error}") from error
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Ends at once and leaves nothing behind: or the client would run out of ports.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


def ask(connection: socket.socket, answer: int) -> None:
    try:
        connection.sendall(REQUEST)
        missing = answer
        while missing:
            data = connection.recv(missing)
            if not data:
                raise IoError("the server of the benchmark closed the connection")
            missing -= len(data)
    except OSError as error:
        raise IoError(f"no answer in the benchmark: {error}") from error


def ask_anew(address: str, answer: int) -> None:
    with connect(address) as connection:
        ask(connection, answer)


# ---- the stage ----


class _Stage(SwitchStage):
    def one_round(self, part: float) -> LatencyRun:
        """Directly and through the VIP; four parts, so long each."""
        cpus = os.sched_getaffinity(0)
        before = ticks(cpus)
        direct, vip = (netns.inside(self._client, partial(measure, to, part)) for to in (HOST, VIP))
        after = ticks(cpus)
        return LatencyRun(direct, vip, round((after[1] - before[1]) / max(after[0] - before[0], 1), 4))
