# SPDX-License-Identifier: Apache-2.0
"""The edge between Python and the C data plane, and the only module that touches the extension.

Each class owns one C object and frees it with its last reference; what C keeps a pointer to, the Python
object keeps alive. Errno becomes :class:`~lb.errors.DataplaneError` with the operands in the message.
What comes back is plain values, never cdata. Nothing crosses here per packet, except in replay and tests.

Snapshots and everything below them are immutable and may be used from any thread; a :class:`Pipeline` belongs
to whoever runs it, and once a worker does, is only read.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lb._dataplane import ffi
from lb._dataplane import lib as c
from lb.errors import DataplaneError
from lb.model import Address, Protocol

Cdata = Any

#: Packets handled together.
BURST_MAX = 64
#: The flow table's clock ticks every 2^28 ns.
TICK_SHIFT = 28
#: ``flow`` of a :class:`Result`, by number in C.
FLOW_REPORTS = (None, "new", "known", "untracked")
#: Classes of flow entries, by number in C.
FLOW_CLASSES = ("tcp_untrusted", "udp_untrusted", "tcp_trusted", "udp_trusted")


class Verdict(enum.IntEnum):
    """What became of a packet."""

    FORWARD = 0
    PASS = 1
    DROP = 2
    REPLY = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """Why; ``name`` is stable and has one counter."""

    name: str
    verdict: Verdict
    help: str


def _text(pointer: Cdata) -> str:
    return str(ffi.string(pointer).decode())


REASONS: tuple[Reason, ...] = tuple(
    Reason(_text(c.reason_name(i)), Verdict(c.reason_verdict(i)), _text(c.reason_sentence(i)))
    for i in range(c.reason_count())
)


def _fail(code: int, what: str) -> NoReturn:
    raise DataplaneError(f"{what}: {os.strerror(-code)}.")


def _make(ctype: str, destroy: Callable[[Cdata], None], what: str, create: Callable[[Cdata], int]) -> Cdata:
    """Calls ``create`` with an out-pointer; returns the object, which ``destroy`` frees."""
    out = ffi.new(f"struct {ctype} **")
    code = create(out)
    if code < 0:
        _fail(code, what)
    return ffi.gc(out[0], destroy)


def _address16(address: Address | None) -> bytes:
    return address.packed.ljust(16, b"\0") if address is not None else bytes(16)


# ---- Maglev, VIP map, snapshot ----


@dataclass(frozen=True, slots=True)
class Member:
    """One backend's share of a Maglev table: its permutation, weight, and number within the service."""

    offset: int
    skip: int
    weight: int
    backend: int


class Maglev:
    """An immutable table from slot to backend number, shared between services."""

    NONE = 0xFFFF

    def __init__(self, size: int, members: Sequence[Member]) -> None:
        array = ffi.new("struct maglev_member[]", [(m.offset, m.skip, m.weight, m.backend) for m in members])
        what = f"Cannot build a Maglev table of {size} slots for {len(members)} backends"
        self._c = _make("maglev", c.maglev_put, what, lambda out: c.maglev_build(size, array, len(members), out))
        self.size = size

    def slots(self) -> list[int]:
        """Backend number of every slot; :attr:`NONE` where there is none."""
        return list(ffi.unpack(c.maglev_slots(self._c), self.size))


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """A backend of a service, by its number; ``state`` as in C: 0 absent, 1 up, 2 drain, 3 down."""

    hop: int
    counter: int
    state: int


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A service as the VIP map takes it; see ``struct service`` in native/vip_map.h."""

    id: int
    first_port: int
    last_port: int
    protocol: Protocol
    vip: Address
    prefix_length: int
    hash_source: bool
    idle_seconds: int
    mtu: int
    maglev: Maglev
    backends: Sequence[BackendEntry]


class VipMap:
    """All services of a configuration, sealed."""

    def __init__(self, seed: bytes, idle_untrusted_seconds: int, services: Sequence[ServiceEntry]) -> None:
        ticks = c.flow_ticks_of(idle_untrusted_seconds)
        self._c = _make(
            "vip_map", c.vip_map_put, "Cannot make a VIP map", lambda out: c.vip_map_create(seed, ticks, out)
        )
        row = ffi.new("struct service *")
        for service in services:
            self._add(row, service)
        code = c.vip_map_seal(self._c)
        if code < 0:
            _fail(code, f"Cannot index {len(services)} services (two of them may claim the same packets)")

    def _add(self, row: Cdata, service: ServiceEntry) -> None:
        row.id = service.id
        row.first_port, row.last_port = service.first_port, service.last_port
        row.protocol = service.protocol.number
        row.family = service.vip.version
        row.prefix_length = service.prefix_length
        row.hash_source = service.hash_source
        row.idle = c.flow_ticks_of(service.idle_seconds)
        row.mtu = service.mtu
        row.vip = _address16(service.vip)
        row.maglev = service.maglev._c
        row.backend_count = len(service.backends)
        backends = ffi.new("struct backend[]", [(b.hop, b.counter, b.state) for b in service.backends])
        code = c.vip_map_add(self._c, row, backends)
        if code < 0:
            _fail(code, f"Cannot add service {service.vip}/{service.prefix_length} port {service.first_port}")


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to one backend machine: next hop's MAC, ours, and the interface (0: the one packets came from).

    ``mac`` None: not known, packets for it are dropped as ``no_next_hop``. Links without MAC addresses use NO_MAC.
    """

    address: Address
    mac: bytes | None
    source_mac: bytes | None = None
    ifindex: int = 0


#: MAC of hops on links that need none.
NO_MAC = bytes(6)


class Snapshot:
    """Everything a packet's decision reads: a VIP map, and the hops that its backends name by index."""

    def __init__(self, vip_map: VipMap, hops: Sequence[tuple[Address | None, Hop]], generation: int) -> None:
        """``hops``: for each, the MUX's address (the outer source; None: no such family here) and the way."""
        array = ffi.new("struct hop_spec[]", len(hops))
        for spec, (source, hop) in zip(array, hops, strict=True):
            spec.source, spec.destination = _address16(source), _address16(hop.address)
            spec.family = hop.address.version
            spec.ifindex = hop.ifindex
            if hop.mac is not None and source is not None:
                spec.resolved = 1
                spec.mac, spec.source_mac = hop.mac, hop.source_mac or NO_MAC
        self._c = _make(
            "snapshot",
            c.snapshot_put,
            f"Cannot make a snapshot of {len(hops)} hops",
            lambda out: c.snapshot_create(vip_map._c, array, len(hops), generation, out),
        )
        self.generation = generation


# ---- the inbound pipeline ----


class Link(enum.IntEnum):
    """What a pipeline writes before the outer header."""

    NONE = 0  #: nothing: IP packets
    NEXT_HOP = 1  #: Ethernet to the hop's MAC address
    SWAP = 2  #: Ethernet, addresses of the input swapped


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """A packet's 5-tuple."""

    protocol: Protocol
    source: Address
    source_port: int
    destination: Address
    destination_port: int


@dataclass(frozen=True, slots=True)
class FlowEntry:
    """What a flow table remembers of a flow."""

    backend: int  #: number within the service
    flow_class: str  #: of FLOW_CLASSES
    age: float  #: seconds since its last packet, to a quarter second


@dataclass(frozen=True, slots=True)
class Answer:
    """What a packet of a tuple would get. Numbers as in C; None where there is none."""

    service_id: int | None
    slot: int | None
    backend: int | None
    flow: FlowEntry | None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one packet of :meth:`Pipeline.process`."""

    verdict: Verdict
    reason: str
    service_id: int | None
    backend: int | None
    flow: str | None
    out: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ServiceCounters:
    packets: int = 0
    bytes: int = 0
    flows: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class FlowCounters:
    live: tuple[int, ...] = (0, 0, 0, 0)  #: by FLOW_CLASSES
    expired: int = 0
    evicted: int = 0
    refused: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """A pipeline's counters; ``reasons`` in the order of REASONS."""

    received: int
    reasons: tuple[int, ...]
    flows: FlowCounters


def _c_tuple(flow: FlowTuple) -> Cdata:
    return ffi.new(
        "struct flow_tuple *",
        {
            "source": _address16(flow.source),
            "destination": _address16(flow.destination),
            "source_port": socket.htons(flow.source_port),
            "destination_port": socket.htons(flow.destination_port),
            "protocol": flow.protocol.number,
            "family": flow.source.version,
        },
    )


def _answer(raw: Cdata) -> Answer:
    if raw.service == ffi.NULL:
        return Answer(None, None, None, None)
    flow = None
    if raw.flow_backend >= 0:
        age = raw.flow_age * (1 << TICK_SHIFT) / 1e9
        flow = FlowEntry(raw.flow_backend, FLOW_CLASSES[raw.flow_class], age)
    return Answer(raw.service.id, raw.slot, raw.backend if raw.backend >= 0 else None, flow)


def lookup(snapshot: Snapshot, flow: FlowTuple) -> Answer:
    """What a new flow would get from a snapshot, without any flow table."""
    raw = ffi.new("struct mux_answer *")
    c.mux_lookup(ffi.NULL, snapshot._c, _c_tuple(flow), raw)
    return _answer(raw)


def flow_table_bytes(flows: int) -> int:
    """Memory that a flow table for so many flows takes."""
    return int(c.flow_table_bytes(flows))


class Pipeline:
    """One MUX pipeline with its flow table and counters; a worker runs it, or :meth:`process` does."""

    def __init__(self, flows: int, link: Link, *, detect_partial: bool = False, first_id: int = 0) -> None:
        """``flows`` 0: no table, every packet by Maglev. ``detect_partial``: for an io that tells nothing of checksums."""
        config = ffi.new("struct mux_config *", [flows, int(link), int(detect_partial), first_id])
        what = f"Cannot make a flow table for {flows} flows ({flow_table_bytes(flows) >> 20} MiB)"
        self._c = _make("mux", c.mux_destroy, what, lambda out: c.mux_create(config, out))
        self.link = link
        self._memory: Cdata | None = None

    def process(self, snapshot: Snapshot, packets: Sequence[tuple[bytes, int, int]]) -> list[Result]:
        """Runs packets given as (bytes, length on the wire, time in ns) through the pipeline, in memory.

        The results are those of one packet at a time. A time that goes back counts as the latest seen.
        """
        results: list[Result] = []
        start = 0
        while start < len(packets):
            end, tick = start + 1, packets[start][2] >> TICK_SHIFT
            # A burst has one time, so it ends where the flow table's clock ticks.
            while end < len(packets) and end - start < BURST_MAX and packets[end][2] >> TICK_SHIFT == tick:
                end += 1
            results += self._burst(snapshot, packets[start:end])
            start = end
        return results

    def _burst(self, snapshot: Snapshot, packets: Sequence[tuple[bytes, int, int]]) -> list[Result]:
        if self._memory is None:
            link_type = 0 if self.link is Link.NONE else 1
            self._memory = _make("io", c.io_close, "Cannot make buffers", lambda out: c.io_memory_open(link_type, out))
        for data, wire_length, _ in packets:
            code = c.io_memory_load(self._memory, data, len(data), wire_length)
            if code < 0:
                _fail(code, f"Cannot load a packet of {len(data)} bytes")
        raw = ffi.new("struct memory_result[]", len(packets))
        c.mux_run_loaded(self._c, snapshot._c, self._memory, packets[0][2], raw)
        out: list[list[bytes]] = [[] for _ in packets]
        sent = ffi.new("struct memory_sent *")
        for i in range(c.io_memory_sent_count(self._memory)):
            c.io_memory_sent(self._memory, i, sent)
            out[sent.origin].append(bytes(ffi.buffer(sent.data, sent.len)))
        return [self._result(row, tuple(frames)) for row, frames in zip(raw, out, strict=True)]

    @staticmethod
    def _result(row: Cdata, out: tuple[bytes, ...]) -> Result:
        reason = REASONS[row.reason]
        return Result(
            verdict=reason.verdict,
            reason=reason.name,
            service_id=row.service if row.service >= 0 else None,
            backend=row.backend if row.backend >= 0 else None,
            flow=FLOW_REPORTS[row.flow],
            out=out,
        )

    def lookup(self, snapshot: Snapshot, flow: FlowTuple) -> Answer:
        """What a packet would get, flow table included. While a worker runs, call it through the worker."""
        raw = ffi.new("struct mux_answer *")
        c.mux_lookup(self._c, snapshot._c, _c_tuple(flow), raw)
        return _answer(raw)

    def counters(self) -> Counters:
        received, reasons = ffi.new("uint64_t *"), ffi.new("uint64_t[]", len(REASONS))
        flows = ffi.new("struct flow_counters *")
        c.mux_counters_read(self._c, received, reasons, flows)
        return Counters(
            received=received[0],
            reasons=tuple(reasons),
            flows=FlowCounters(tuple(flows.live), flows.expired, flows.evicted, flows.refused, flows.moved),
        )

    def service_counters(self, service_id: int) -> ServiceCounters:
        row = c.mux_service_counters(self._c)[service_id]
        return ServiceCounters(row.packets, row.bytes, row.flows, row.dropped)

    def backend_packets(self, counter: int) -> int:
        """Packets forwarded to a backend, by its counter index."""
        return int(c.mux_backend_counters(self._c)[counter])

    def check(self) -> str | None:
        """Walks the flow table; the first broken invariant in words, None if it is sound."""
        broken = c.mux_check(self._c)
        return None if broken == ffi.NULL else _text(broken)


# ---- the benchmark ----


class BenchMode(enum.IntEnum):
    """What packets a benchmark makes; see native/bench.h."""

    HIT = 0
    FLOOD = 1
    MIX = 2
    STATELESS = 3
    MISS = 4


@dataclass(frozen=True, slots=True)
class BenchSample:
    """One timed segment: ns per packet, and ns of a fixed loop beside it."""

    ns: float
    probe: float


#: Packets in one timed segment.
BENCH_SEGMENT = 2048


class Bench:
    """Times a pipeline in memory."""

    def __init__(self, pipeline: Pipeline, snapshot: Snapshot, mode: BenchMode, flows: int) -> None:
        self._keep = (pipeline, snapshot)
        self._c = _make(
            "bench",
            c.bench_destroy,
            f"Cannot set up a benchmark of {flows} flows",
            lambda out: c.bench_create(pipeline._c, snapshot._c, int(mode), flows, out),
        )

    def run(self, seconds: float) -> list[BenchSample]:
        """Runs for so long; at least one sample."""
        samples = ffi.new("struct bench_sample[]", 65536)
        count = c.bench_run(self._c, seconds, samples, 65536)
        return [BenchSample(samples[i].ns, samples[i].probe) for i in range(count)]
