# SPDX-License-Identifier: Apache-2.0
"""To measure with: the benchmark of the pipeline in memory, and a generator of packets on an interface."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from lb.dataplane.binding import Closable, c, check, ffi, make
from lb.dataplane.pipeline import Pipeline
from lb.dataplane.snapshot import Snapshot


class BenchMode(enum.IntEnum):
    """What packets a benchmark makes; see native/bench/pipeline_bench.h."""

    HIT = 0
    FLOOD = 1
    MIX = 2
    STATELESS = 3
    MISS = 4
    SCRIPT = 5


@dataclass(frozen=True, slots=True)
class BenchSample:
    """One timed segment: ns per packet, and ns of a fixed loop beside it."""

    ns: float
    probe: float


#: Packets in one timed segment.
BENCH_SEGMENT = 2048

#: Frames of the ring that packets lie in, where nothing else is said; see native/bench/pipeline_bench.h.
BENCH_FRAMES = 65536


class Bench:
    """Times a pipeline in memory."""

    def __init__(
        self, pipeline: Pipeline, snapshot: Snapshot, mode: BenchMode, flows: int, frames: int = BENCH_FRAMES
    ) -> None:
        """``frames`` of the ring are a multiple of :data:`BENCH_SEGMENT`."""
        self._keep = (pipeline, snapshot)
        self._c = make(
            "bench",
            c.bench_destroy,
            f"Cannot set up a benchmark of {flows} flows and a ring of {frames} frames",
            lambda out: c.bench_create(pipeline._c, snapshot._c, int(mode), flows, frames, out),
        )

    def run(self, seconds: float) -> list[BenchSample]:
        """Runs for so long; at least one sample."""
        return self._samples(c.bench_run, seconds)

    def floor(self, seconds: float) -> list[BenchSample]:
        """Only what memory alone demands of the same packets; see native/bench/pipeline_bench.h."""
        return self._samples(c.bench_floor, seconds)

    def _samples(self, run: Callable[..., int], seconds: float) -> list[BenchSample]:
        samples = ffi.new("struct bench_sample[]", 65536)
        count = run(self._c, seconds, samples, 65536)
        return [BenchSample(samples[i].ns, samples[i].probe) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of packets: of new flows, known ones, flows without a place; and ns of the pipeline."""

    new: int = 0
    known: int = 0
    untracked: int = 0
    dropped: int = 0
    ns: int = 0

    @property
    def packets(self) -> int:
        return self.new + self.known + self.untracked + self.dropped

    def __add__(self, other: Fate) -> Fate:
        return Fate(
            self.new + other.new,
            self.known + other.known,
            self.untracked + other.untracked,
            self.dropped + other.dropped,
            self.ns + other.ns,
        )


class Script:
    """Packets of flows by number, at times of the caller's making, through a pipeline in memory."""

    def __init__(self, pipeline: Pipeline, snapshot: Snapshot) -> None:
        """Flows belong to the services of ``snapshot``; later ones must have the same."""
        self._keep = (pipeline, snapshot)
        self._c = make(
            "bench",
            c.bench_destroy,
            "Cannot set up a benchmark",
            lambda out: c.bench_create(pipeline._c, snapshot._c, int(BenchMode.SCRIPT), 1, BENCH_FRAMES, out),
        )
        self._sent = ffi.new("struct bench_sent *")

    def send(self, snapshot: Snapshot, flows: range, flags: int, now_ns: int) -> Fate:
        """One packet with these TCP flags of each flow."""
        self._sent[0] = (0, 0, 0, 0, 0)
        c.bench_send(self._c, snapshot._c, flows.start, len(flows), flags, now_ns, ffi.NULL, self._sent)
        raw = self._sent
        return Fate(raw.fresh, raw.known, raw.untracked, raw.dropped, raw.ns)

    def backends(self, snapshot: Snapshot, flows: range, flags: int, now_ns: int) -> bytes:
        """As :meth:`send`; the numbers of the backends that they went to, two bytes each, ffff where to none."""
        numbers = ffi.new("uint16_t[]", len(flows))
        c.bench_send(self._c, snapshot._c, flows.start, len(flows), flags, now_ns, numbers, self._sent)
        return bytes(ffi.buffer(numbers))


@dataclass(frozen=True, slots=True)
class Sent:
    """What a generator did in one run; ``refused``: the interface did not take them."""

    sent: int
    refused: int
    seconds: float


class GeneratorKind(enum.IntEnum):
    """Who makes the packets; see native/bench/packet_generator.h."""

    SOCKET = 0
    LIVE = 1


class Generator(Closable):
    """Sends UDP packets by an interface of the network namespace that makes and runs it."""

    def __init__(self, interface: str, frame: bytes, flows: int, kind: GeneratorKind) -> None:
        """``frame``: Ethernet, IPv4 without options, UDP without checksum; each flow has a source port of its own."""
        self._c = make(
            "generator",
            c.generator_close,
            f"Cannot open a packet generator on {interface}",
            lambda out: c.generator_open(interface.encode(), frame, len(frame), flows, int(kind), out),
        )

    def run(self, seconds: float, rate: float = 0.0) -> Sent:
        """Takes this thread's core for so long; ``rate`` in packets per second, 0: as many as go."""
        raw = ffi.new("struct generator_result *")
        check(c.generator_run(self._c, seconds, rate, raw), "The packet generator cannot send")
        return Sent(raw.sent, raw.refused, raw.elapsed_ns / 1e9)
