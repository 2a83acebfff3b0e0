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
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lb import netns
from lb.bench.machine import commit_name, cpu_name
from lb.bench.stage import (
    Daemon,
    Stage,
    add_namespace,
    ended_by_signals,
    first_in_line,
    lift_session,
    needs,
    ticks,
    wait,
)
from lb.config_text import format_config
from lb.errors import IoError
from lb.model import (
    AgentConfig,
    AgentSettings,
    Backend,
    DecapMode,
    IoMode,
    MuxConfig,
    MuxSettings,
    PortRange,
    Protocol,
    Service,
)

#: Rounds; their median counts.
RUNS = 5
#: Of each of the four parts of a round, seconds.
PART_MIN = 0.05
#: Of an answer; with its header a small web page's.
ANSWER_BYTES = 200
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
#: No answer for so long is none, seconds.
TIMEOUT = 5.0

_PROGRAMS = {"ip": "iproute2", "setpriv": "util-linux"}
_CLIENT, _MUX, _HOST = "10.0.1.100", "10.0.1.11", "10.0.1.21"
_VIP, _PORT = "198.18.0.1", 80


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
    with _connect(address) as kept:
        _ask(kept, answer)  # the server has accepted it
        lasting = _repeat(lambda: _ask(kept, answer), seconds)
    new = _repeat(lambda: _ask_anew(address, answer), seconds)
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


def _connect(address: str) -> socket.socket:
    try:
        made = socket.create_connection((address, _PORT), TIMEOUT)
    except OSError as error:
        raise IoError(f"no connection to {address} port {_PORT} in the benchmark: {error}") from error
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Ends at once and leaves nothing behind: or the client would run out of ports.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


def _ask(connection: socket.socket, answer: int) -> None:
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


def _ask_anew(address: str, answer: int) -> None:
    with _connect(address) as connection:
        _ask(connection, answer)


# ---- the stage ----


class _Stage(Stage):
    """Client, MUX and host on one switch, each in a namespace of its own, with all that runs in them."""

    def __init__(self, io: IoMode) -> None:
        super().__init__()
        self._switch, self._client, self._mux_ns, self._host = map(self._space, ("sw", "cl", "mux", "ho"))
        self._io = io

    # -- set-up -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in (self._switch, self._client, self._mux_ns, self._host):
            add_namespace(name, self._resources)
        netns.batch(["link add name br0 type bridge", "link set dev br0 up"], self._switch)
        for port, name, address in (
            ("p1", self._client, _CLIENT),
            ("p2", self._mux_ns, _MUX),
            ("p3", self._host, _HOST),
        ):
            self._plug(port, name, address)
        netns.ip("-n", self._client, "route", "add", f"{_VIP}/32", "via", _MUX)
        self._start_agent()
        self._start_mux()
        arguments = (str(_PORT), str(ANSWER_BYTES))
        server = self._start(self._host, "lb.bench.echo", *arguments)
        wait(lambda: "listening" in server.last_words(), "the server of the benchmark")

    def _plug(self, port: str, name: str, address: str) -> None:
        netns.batch(
            [
                f"link add name {port} type veth peer name eth0 netns {name}",
                f"link set dev {port} master br0 up",
            ],
            self._switch,
        )
        netns.batch([f"address add {address}/24 dev eth0", "link set dev eth0 up", "link set dev lo up"], name)

    def _start(self, namespace: str, module: str, *arguments: str | Path) -> Daemon:
        daemon = self._keep(Daemon(namespace, module, arguments, self.directory / f"{module}.log"))
        lift_session(daemon.process.pid)
        return daemon

    def _start_agent(self) -> None:
        settings = AgentSettings(
            name="host",
            address=IPv4Address(_HOST),
            interface="eth0",
            muxes=(IPv4Address(_MUX),),
            decap=DecapMode.AUTO,
            state_dir=str(self.directory / "agent"),
        )
        path = self.directory / "agent.toml"
        path.write_text(format_config(AgentConfig(settings, (_service(),))))
        self._agent = self._start(self._host, "agent.daemon", "--config", path)
        wait(lambda: bool(self._agent_row().get("mode")), "lb-agent to be ready")

    def _start_mux(self) -> None:
        settings = MuxSettings(
            name="bench",
            address=IPv4Address(_MUX),
            seed=bytes(range(16)),
            interface="eth0",
            io=self._io,
            state_dir=str(self.directory / "mux"),
        )
        path = self.directory / "mux.toml"
        path.write_text(format_config(MuxConfig(settings, (_service(),))))
        self._mux = self._start(self._mux_ns, "lb.mux.daemon", "--config", path)
        wait(lambda: self._mux_row().get("state") == "ready", "lb-mux to be ready")

    # -- questions ----------------------------------------------------------------------------------------------

    def _agent_row(self) -> dict[str, Any]:
        return self._agent.row(self.directory / "agent" / "agent.sock", "agents")

    def _mux_row(self) -> dict[str, Any]:
        return self._mux.row(self.directory / "mux" / "mux.sock", "muxes")

    def mode(self) -> str:
        """How the MUX's packets come in and go out, in words."""
        return str(self._mux_row()["mode"])

    def decap(self) -> str:
        """How the host takes them out of the tunnel."""
        return str(self._agent_row()["mode"])

    # -- acts ---------------------------------------------------------------------------------------------------

    def one_round(self, part: float) -> LatencyRun:
        """Directly and through the VIP; four parts, so long each."""
        cpus = os.sched_getaffinity(0)
        before = ticks(cpus)
        direct, vip = (netns.inside(self._client, partial(measure, to, part)) for to in (_HOST, _VIP))
        after = ticks(cpus)
        return LatencyRun(direct, vip, round((after[1] - before[1]) / max(after[0] - before[0], 1), 4))


def _service() -> Service:
    return Service(
        name="bench",
        vip=IPv4Network(_VIP),
        protocol=Protocol.TCP,
        ports=PortRange(_PORT, _PORT),
        backends=(Backend("host", IPv4Address(_HOST)),),
    )
