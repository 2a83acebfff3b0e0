# SPDX-License-Identifier: Apache-2.0
"""Measures what a MUX loses when more comes than it can take, where, and what it does not lose.

Called by ``lb bench overload``. The stage is that of :mod:`lb.bench.testbed.switch`. A router (BIRD, where it is
installed) has a BGP session with the MUX, and a generator on another core floods one VIP, at multiples of the rate that
the MUX was seen to forward at full speed. Meanwhile a client asks another VIP, over a kept connection and over new
ones. ``lb-mux`` and its BGP process have one core, for what they need to stay alive is a part of what is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lb.bench.latency import ask, ask_anew, connect
from lb.bench.packet_rate import merge_received, settle_thread, two_cores, udp_frame
from lb.bench.testbed import netns
from lb.bench.testbed.bird import ABSENT, ROUTERS, Router, bgp_settings, programs
from lb.bench.testbed.daemons import (
    NICE,
    BenchProgram,
    add_namespace,
    ended_by_signals,
    first_in_line,
    needs,
    ticks,
    wait,
)
from lb.bench.testbed.machine import commit_name, cpu_name, kernel_name
from lb.bench.testbed.switch import ANSWER_BYTES, MUX, VIP, SwitchStage, web_service
from lb.dataplane import Generator, GeneratorKind, Sent
from lb.errors import DataplaneError, IoError
from lb.model import Backend, BgpSettings, IoMode, PortRange, Protocol, Service

#: Of a session; a step should take longer, seconds.
HOLD = 3
#: The MUX forwards as much as it can before it finds that it is saturated, and sheds; seconds.
CAPACITY = 1.2
#: From the end of a flood until nothing of it is left to see, at most.
RECOVERY = 30.0
#: Between two looks at the MUX, and two requests of the client; seconds.
LOOK, PAUSE = 0.1, 0.01
#: Of the client's requests one of so many has a connection of its own.
NEW_EVERY = 5
FLOWS = 20_000
FLOODED_VIP, FLOODED_PORT = "198.18.0.2", 53
SOURCE = "198.51.100.7"

_PROGRAMS = {"ip": "iproute2", "bridge": "iproute2", "setpriv": "util-linux", "taskset": "util-linux"}
_SINK, _FLOOD_MAC = "10.0.1.31", "02:00:00:00:66:01"
#: Of nobody: the host's link takes the frames, and its kernel drops them at once as somebody else's.
_SINK_MAC = "02:00:00:00:00:ff"
_ROUTER = "router1"
_TICKS = os.sysconf("SC_CLK_TCK")
_METRICS = "http://127.0.0.1:9741/metrics"


@dataclass(frozen=True, slots=True)
class LoadStep:
    """At one multiple of what the MUX can take. Rates in packets per second."""

    factor: float
    offered: float  #: by the generator
    arrived: float  #: at the MUX's interface; what is missing the links lost before it
    forwarded: float
    ring: float  #: lost before a worker saw them: the ring, or the device's queue, was full
    shed: float  #: dropped by choice, of the service that has most of the packets
    first: list[str]  #: what was lost first, and after how many seconds: ``ring after 0.2 s``
    kept_p50_ms: float  #: of another VIP's answers, over a connection that stays
    kept_slowest_ms: float
    new_slowest_ms: float  #: over a connection of its own
    requests: int
    failed: int  #: of them
    worker_cpu: float  #: part of a core
    control_cpu: float  #: of all else of lb-mux, its BGP process included
    session: str  #: ``stayed``, ``fell 2 times``, or why there was none
    steal: float


@dataclass(frozen=True, slots=True)
class OverloadBench:
    """The answer of ``lb bench overload``; the names are a contract."""

    io: str
    mode: str
    capacity: float  #: forwarded at full speed before anything is shed, packets per second
    steps: list[LoadStep]
    seconds: float  #: of each step
    hold: int  #: of the BGP session, seconds
    router: str
    source: str  #: what made the packets
    cores: list[int]  #: of generator and MUX
    cpu: str
    kernel: str
    commit: str

    @property
    def sound(self) -> bool:
        """The session never fell."""
        return not any(step.session.startswith("fell") for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_overload(*, io: IoMode, seconds: float, factors: Sequence[float]) -> OverloadBench:
    """``seconds`` of each step; ``factors``: of the rate that the MUX forwards at most, what is offered in each. Needs
    root."""
    needs("lb bench overload", _PROGRAMS)
    netns.reap()
    with ended_by_signals(), first_in_line(), OverloadStage(io, two_cores()) as stage:
        capacity = stage.capacity()
        return OverloadBench(
            io=io.value,
            mode=stage.mode(),
            capacity=round(capacity),
            steps=[stage.step(factor, capacity, seconds) for factor in factors],
            seconds=seconds,
            hold=HOLD,
            router=stage.router_words(),
            source=stage.source,
            cores=list(stage.cores),
            cpu=cpu_name(),
            kernel=kernel_name(),
            commit=commit_name(),
        )


# ---- what a client sees ----


@dataclass(slots=True)
class BystanderTimes:
    """Answers of another VIP, seconds each."""

    kept: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    failed: int = 0


@contextlib.contextmanager
def asking(namespace: str) -> Iterator[BystanderTimes]:
    """A client in a namespace asks until the end."""
    found, over = BystanderTimes(), threading.Event()

    def run() -> None:
        netns.enter(namespace)
        with contextlib.ExitStack() as stack:
            kept = None
            while not over.wait(PAUSE):
                began = time.perf_counter()
                new = (len(found.kept) + 1) % NEW_EVERY == 0 and len(found.new) < len(found.kept) / NEW_EVERY
                try:
                    if new:
                        ask_anew(VIP, ANSWER_BYTES)
                    else:
                        kept = kept or stack.enter_context(connect(VIP))
                        ask(kept, ANSWER_BYTES)
                except IoError:
                    found.failed += 1
                    kept = None if not new else kept
                    continue
                (found.new if new else found.kept).append(time.perf_counter() - began)

    thread = threading.Thread(target=run, name="client")
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


# ---- what the MUX is, from look to look ----


@dataclass(frozen=True, slots=True)
class Moment:
    """Counters so far, and when."""

    at: float
    received: int
    missed: int
    dropped: int
    shed: int = 0
    forwarded: int = 0
    worker: float = 0.0  #: seconds of CPU
    control: float = 0.0
    ticks: int = 0
    stolen: int = 0


def first_losses(looks: Sequence[Moment]) -> list[str]:
    """What was lost in their order, each with how long after the first look."""
    found: dict[str, float] = {}
    for look in looks[1:]:
        for what, now, before in (
            ("ring", look.missed, looks[0].missed),
            ("shed", look.dropped, looks[0].dropped),
        ):
            if now > before:
                found.setdefault(what, look.at - looks[0].at)
    return [f"{what} after {seconds:.1f} s" for what, seconds in sorted(found.items(), key=lambda item: item[1])]


def cpu_of(pid: int, proc: Path = Path("/proc")) -> tuple[float, float]:
    """CPU seconds of a process's workers, and of all else of it and its children; a thread that ended is left out."""
    worker = control = 0.0
    for task in (proc / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):
            used, children = _cpu(task), (task / "children").read_text().split()
            if (task / "comm").read_text().strip() == "lb-worker":
                worker += used
            else:
                control += used
            for child in children:
                with contextlib.suppress(OSError):
                    control += _cpu(proc / child)
    return worker, control


def _cpu(task: Path) -> float:
    words = (task / "stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


# ---- the stage ----


class OverloadStage(SwitchStage):
    """With a router and a flood beside client, MUX and host."""

    def __init__(self, io: IoMode, cores: tuple[int, int]) -> None:
        super().__init__(io)
        self.cores = cores
        self._router_ns = self._space("rt")
        self._router: Router | None = None

    def _services(self) -> Sequence[Service]:
        flooded = Service(
            name="flooded",
            vip=IPv4Network(FLOODED_VIP),
            protocol=Protocol.UDP,
            ports=PortRange(FLOODED_PORT, FLOODED_PORT),
            backends=(Backend("sink", IPv4Address(_SINK)),),
        )
        return (web_service(), flooded)

    def _bgp(self) -> BgpSettings | None:
        return bgp_settings((_ROUTER,), HOLD) if self._router is not None else None

    def _before(self) -> Sequence[str]:
        return ("taskset", "-c", str(self.cores[1]), "nice", "-n", str(NICE))

    def _wire(self) -> None:
        netns.batch([f"neighbour replace {_SINK} lladdr {_SINK_MAC} dev eth0 nud permanent"], self._mux_ns)
        netns.ip(
            "netns", "exec", self._switch, "bridge", "fdb", "add", _SINK_MAC, "dev", "p3", "master", "static"
        )  # fmt: skip
        if programs() is not None:
            self._start_router()

    def _start_router(self) -> None:
        add_namespace(self._router_ns, self._resources)
        self._plug("p4", self._router_ns, ROUTERS[_ROUTER])
        self._router = Router(_ROUTER, self.directory, {"bench": MUX}, IPv4Network("198.18.0.0/15"), HOLD)
        self._keep(BenchProgram(self._router_ns, "bird", self._router.command(), self.directory / "bird.log"))

    def _build(self) -> None:
        super()._build()
        router = self._router
        if router is not None:
            wait(lambda: router.count() == len(self._services()), "the router to learn the VIPs")
        mac = json.loads(netns.ip("-n", self._mux_ns, "-j", "link", "show", "eth0"))[0]["address"]
        frame = udp_frame((_FLOOD_MAC, mac), (SOURCE, FLOODED_VIP), FLOODED_PORT)
        self._thread = self._resources.enter_context(
            ThreadPoolExecutor(1, "generator", initializer=settle_thread, initargs=(self._switch, self.cores[0]))
        )
        self._generator, self.source = self._open_generator(frame)
        self._resources.callback(self._generator.close)

    def _open_generator(self, frame: bytes) -> tuple[Generator, str]:
        def opened(kind: GeneratorKind) -> Generator:
            # By the switch's end of the MUX's link, not through the switch, which would take more of the core.
            return self._thread.submit(Generator, "p2", frame, FLOWS, kind).result()

        try:
            netns.inside(self._mux_ns, lambda: merge_received("eth0"))  # or the link takes no frames of the kernel's
            return opened(GeneratorKind.LIVE), "frames made by the kernel (XDP)"
        except (DataplaneError, OSError) as error:
            reason = str(error).rstrip(".")
            return opened(
                GeneratorKind.SOCKET
            ), f"a socket, which may be the limit; the kernel makes no frames: {reason}"

    # -- questions ----------------------------------------------------------------------------------------------

    def router_words(self) -> str:
        return self._router.version() if self._router is not None else ABSENT

    def _look(self) -> Moment:
        row = self._mux.status()
        return Moment(time.monotonic(), row["received"], row["missed"], row["dropped"], forwarded=row["forwarded"])

    def _moment(self) -> Moment:
        """With all that a look leaves out."""
        found = netns.inside(self._mux_ns, _shed_packets)
        worker, control = cpu_of(self._mux.process.pid)
        total, stolen = ticks(self.cores)
        look = self._look()
        return Moment(
            look.at, look.received, look.missed, look.dropped, found, look.forwarded, worker, control, total, stolen
        )

    def _falls(self) -> int:
        """How often the session fell so far, by the MUX's own word."""
        return self._mux.log().count("BGP session down")

    # -- acts ---------------------------------------------------------------------------------------------------

    def _flood(self, seconds: float, rate: float) -> Callable[[], Sent]:
        return self._thread.submit(self._generator.run, seconds, rate).result

    def _recover(self) -> None:
        wait(lambda: self._mux.status().get("saturated", "") is None, "the MUX to keep up again", RECOVERY)

    def capacity(self) -> float:
        """What it forwards per second at full speed, the best part of a moment after the first."""
        with contextlib.closing(_Over(self._flood(CAPACITY + 0.3, 0.0))):
            time.sleep(0.3)
            looks = [self._look()]
            while looks[-1].at - looks[0].at < CAPACITY - 0.3:
                time.sleep(LOOK)
                looks.append(self._look())
        self._recover()
        rates = [(b.forwarded - a.forwarded) / (b.at - a.at) for a, b in itertools.pairwise(looks)]
        if not any(rates):
            raise IoError(f"no packet came through; {self._mux.last_words()}")
        return statistics.median(rates)

    def step(self, factor: float, capacity: float, seconds: float) -> LoadStep:
        falls, first = self._falls(), self._moment()
        looks = [first]
        with asking(self._client) as asked:
            sending = self._flood(seconds, factor * capacity)
            while looks[-1].at - first.at < seconds - LOOK:
                time.sleep(LOOK)
                looks.append(self._look())
            sent = sending()
            last = self._moment()
        self._recover()
        elapsed = last.at - first.at
        fell = self._falls() - falls

        def rate(what: str) -> float:
            return float(round((getattr(last, what) - getattr(first, what)) / elapsed))

        return LoadStep(
            factor=factor,
            offered=round(sent.sent / sent.seconds),
            arrived=rate("received") + rate("missed"),
            forwarded=rate("forwarded"),
            ring=rate("missed"),
            shed=rate("shed"),
            first=first_losses(looks),
            kept_p50_ms=round(statistics.median(asked.kept or [0.0]) * 1e3, 2),
            kept_slowest_ms=round(max(asked.kept, default=0.0) * 1e3, 1),
            new_slowest_ms=round(max(asked.new, default=0.0) * 1e3, 1),
            requests=len(asked.kept) + len(asked.new),
            failed=asked.failed,
            worker_cpu=round((last.worker - first.worker) / elapsed, 3),
            control_cpu=round((last.control - first.control) / elapsed, 3),
            session=ABSENT if self._router is None else f"fell {fell} times" if fell else "stayed",
            steal=round((last.stolen - first.stolen) / max(last.ticks - first.ticks, 1), 4),
        )


class _Over:
    """Waits for a flood's end, whatever happens meanwhile."""

    def __init__(self, result: Callable[[], Sent]) -> None:
        self.close = result


def _shed_packets() -> int:
    """In the MUX's namespace."""
    with urllib.request.urlopen(_METRICS, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(
        sum(float(line.split()[-1]) for line in lines if line.startswith("lb_packets_total") and '"shed"' in line)
    )


def lines(result: OverloadBench) -> list[str]:
    """As ``lb bench overload`` prints it."""
    said = [f"{result.io}: {result.mode}; it takes {result.capacity:,.0f} packets/s of a flood"]
    for step in result.steps:
        said += [
            "",
            f"{step.factor:g} times that: {step.offered:,.0f} packets/s offered, {step.arrived:,.0f} came to the MUX",
            f"  forwarded  {step.forwarded:,.0f}",
            f"  lost       {step.ring:,.0f} in the ring, {step.shed:,.0f} shed; {', '.join(step.first) or 'nothing'}",
            f"  other VIP  median {step.kept_p50_ms:g} ms, slowest {step.kept_slowest_ms:,.0f} ms, on a new connection "
            f"{step.new_slowest_ms:,.0f} ms; {step.failed} of {step.requests + step.failed} requests failed",
            f"  CPU        {step.worker_cpu:.0%} of a core worker, {step.control_cpu:.1%} control",
            f"  BGP        {step.session}",
        ]
    return [
        *said,
        "",
        f"steps of {result.seconds:g} s, hold time {result.hold} s; {result.router}; {result.source}",
        f"{result.cpu}, {result.kernel}, commit {result.commit}",
    ]
