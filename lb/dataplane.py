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
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NoReturn
from typing import Protocol as PythonProtocol

from lb._dataplane import ffi
from lb._dataplane import lib as c
from lb.errors import DataplaneError, IoError
from lb.model import Address, Network, Protocol

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


class PreparedService:
    """A :class:`ServiceEntry` as C takes it; made once, and added to any number of VIP maps."""

    __slots__ = ("_backends", "_maglev", "_row")

    def __init__(self, service: ServiceEntry) -> None:
        self._maglev = service.maglev  # the row points into it
        self._row = row = ffi.new("struct service *")
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
        self._backends = ffi.new("struct backend[]", [(b.hop << 2 | b.state, b.counter) for b in service.backends])

    def add_to(self, vip_map: Cdata) -> int:
        """0, or a negative errno."""
        return int(c.vip_map_add(vip_map, self._row, self._backends))

    def __str__(self) -> str:
        """For an error."""
        packed = bytes(self._row.vip)
        address = ip_address(packed[:4] if self._row.family == 4 else packed)
        return f"service {address}/{self._row.prefix_length} port {self._row.first_port}"


class VipMap:
    """All services of a configuration, sealed."""

    def __init__(
        self, seed: bytes, idle_untrusted_seconds: int, services: Sequence[ServiceEntry | PreparedService]
    ) -> None:
        ticks = c.flow_ticks_of(idle_untrusted_seconds)
        self._c = _make(
            "vip_map", c.vip_map_put, "Cannot make a VIP map", lambda out: c.vip_map_create(seed, ticks, out)
        )
        for service in services:
            prepared = service if isinstance(service, PreparedService) else PreparedService(service)
            code = prepared.add_to(self._c)
            if code < 0:
                _fail(code, f"Cannot add {prepared}")
        code = c.vip_map_seal(self._c)
        if code < 0:
            _fail(code, f"Cannot index {len(services)} services (two of them may claim the same packets)")


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


def _counters(received: int, reasons: Cdata, flows: Cdata) -> Counters:
    return Counters(
        received=received,
        reasons=tuple(reasons),
        flows=FlowCounters(tuple(flows.live), flows.expired, flows.evicted, flows.refused, flows.moved),
    )


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
        """``flows`` 0: no table, every packet by Maglev. ``detect_partial``: its io cannot tell partial checksums."""
        config = ffi.new("struct mux_config *", [flows, int(link), int(detect_partial), first_id])
        what = f"Cannot make a flow table for {flows} flows ({flow_table_bytes(flows) >> 20} MiB)"
        self._c = _make("mux", c.mux_destroy, what, lambda out: c.mux_create(config, out))
        self.link = link
        self._memory: Cdata | None = None

    @property
    def pipeline_pointer(self) -> Cdata:
        """For a :class:`Worker`."""
        return c.mux_pipeline(self._c)

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
        return _counters(received[0], reasons, flows)

    def service_counters(self, service_id: int) -> ServiceCounters:
        row = c.mux_service_counters(self._c)[service_id]
        return ServiceCounters(row.packets, row.bytes, row.flows, row.dropped)

    def backend_packets(self, counter: int) -> int:
        """Packets forwarded to a backend, by its counter index."""
        return int(c.mux_backend_counters(self._c)[counter])

    def adopt(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes) -> Adoption:
        """Takes over flows of another MUX. While a worker runs, call it through the worker."""
        raw = ffi.new("struct adoption *")
        for piece, count in _pieces(records):
            c.mux_adopt(self._c, snapshot._c, service_id, backend, piece, count, raw)
        return Adoption(raw.taken, raw.known, raw.useless, raw.refused)

    def forget(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes) -> int:
        """Removes flows that are as old as told, or older; how many. A running worker's: through the worker."""
        return sum(
            c.mux_forget(self._c, snapshot._c, service_id, backend, piece, count) for piece, count in _pieces(records)
        )

    def check(self) -> str | None:
        """Walks the flow table; the first broken invariant in words, None if it is sound."""
        broken = c.mux_check(self._c)
        return None if broken == ffi.NULL else _text(broken)


# ---- flows of a MUX, and of others ----

#: An exceptional flow: its name << 16 | class << 14 | age in units of 4 ticks; see native/census.h.
RECORD_BYTES = 8
#: Flows that a worker takes over in one piece, between two bursts.
ADOPT_MAX = 256


@dataclass(frozen=True, slots=True)
class BackendFlows:
    """Live flows of one backend of one service; ``exceptional``: those that Maglev would send elsewhere now."""

    tcp: int = 0
    udp: int = 0
    exceptional: int = 0

    @property
    def live(self) -> int:
        return self.tcp + self.udp


class Census:
    """How many live flows each backend has. Counted from beside, while workers go on; see native/census.h."""

    def __init__(self, counters: int) -> None:
        """``counters``: how many counter indices are in use."""
        self._rows = ffi.new("struct census_row[]", max(counters, 1))
        self._numbers = memoryview(ffi.buffer(self._rows)).cast("B").cast("I")
        self._counters = counters

    def add(self, pipeline: Pipeline, snapshot: Snapshot) -> None:
        """Adds a pipeline's flows, whether a worker runs it or not. Takes a while, and lets other threads run."""
        c.census_count(pipeline._c, snapshot._c, self._rows, self._counters)

    def of(self, counter: int) -> BackendFlows:
        """Of a backend, by its counter index; none where it is newer than the census."""
        if counter >= self._counters:
            return BackendFlows()
        tcp, udp, exceptional = self._numbers[3 * counter : 3 * counter + 3]
        return BackendFlows(tcp, udp, exceptional)


@dataclass(frozen=True, slots=True)
class Exceptional:
    """Exceptional flows by (service id, backend number), each as records; ``total`` counts those left out as well."""

    records: dict[tuple[int, int], bytes]
    total: int


def exceptional_flows(pipeline: Pipeline, snapshot: Snapshot, most: int) -> Exceptional:
    """No more than ``most`` of them. Read from beside, as a :class:`Census` is."""
    records, owners = ffi.new("uint64_t[]", max(most, 1)), ffi.new("uint32_t[]", max(most, 1))
    total = int(c.census_exceptional(pipeline._c, snapshot._c, records, owners, most))
    found: dict[tuple[int, int], list[int]] = {}
    for owner, record in zip(ffi.unpack(owners, min(total, most)), records, strict=False):
        found.setdefault((owner >> 12, owner & 0xFFF), []).append(record)
    return Exceptional({owner: struct.pack(f"<{len(rows)}Q", *rows) for owner, rows in found.items()}, total)


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of flows that were to be taken over; see native/adopt.h."""

    taken: int = 0
    known: int = 0
    useless: int = 0
    refused: int = 0

    def __add__(self, other: Adoption) -> Adoption:
        return Adoption(
            self.taken + other.taken,
            self.known + other.known,
            self.useless + other.useless,
            self.refused + other.refused,
        )


def _pieces(records: bytes) -> Iterator[tuple[Cdata, int]]:
    """As much of them at a time as a worker does between two bursts."""
    numbers = struct.unpack(f"<{len(records) // RECORD_BYTES}Q", records)
    for start in range(0, len(numbers), ADOPT_MAX):
        piece = numbers[start : start + ADOPT_MAX]
        yield ffi.new("uint64_t[]", piece), len(piece)


def with_age(records: bytes, seconds: float) -> bytes:
    """The same flows, as if their last packet had come so long ago, or a little less."""
    age = min(int(seconds * 1e9) >> TICK_SHIFT >> 2, 0x3FFF)
    numbers = struct.unpack(f"<{len(records) // RECORD_BYTES}Q", records)
    return struct.pack(f"<{len(numbers)}Q", *(number & ~0x3FFF | age for number in numbers))


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


# ---- packets to measure with ----


@dataclass(frozen=True, slots=True)
class Sent:
    """What a generator did in one run; ``refused``: the interface did not take them."""

    sent: int
    refused: int
    seconds: float


class GeneratorKind(enum.IntEnum):
    """Who makes the packets; see native/generator.h."""

    SOCKET = 0
    LIVE = 1


class Generator:
    """Sends UDP packets by an interface of the network namespace that makes and runs it."""

    def __init__(self, interface: str, frame: bytes, flows: int, kind: GeneratorKind) -> None:
        """``frame``: Ethernet, IPv4 without options, UDP without checksum; each flow has a source port of its own."""
        self._c = _make(
            "generator",
            c.generator_close,
            f"Cannot open a packet generator on {interface}",
            lambda out: c.generator_open(interface.encode(), frame, len(frame), flows, int(kind), out),
        )

    def run(self, seconds: float, rate: float = 0.0) -> Sent:
        """Takes this thread's core for so long; ``rate`` in packets per second (SOCKET alone), 0: as many as go."""
        raw = ffi.new("struct generator_result *")
        _check(c.generator_run(self._c, seconds, rate, raw), "The packet generator cannot send")
        return Sent(raw.sent, raw.refused, raw.elapsed_ns / 1e9)

    def close(self) -> None:
        ffi.release(self._c)


# ---- host agent ----

_TAG_BYTES = 8
_VERIFIER_LOG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HostReason:
    """What can become of a tunnel packet on a backend's host."""

    name: str
    drops: bool
    help: str


HOST_REASONS: tuple[HostReason, ...] = tuple(
    HostReason(_text(c.host_reason_name(i)), bool(c.host_reason_drops(i)), _text(c.host_reason_sentence(i)))
    for i in range(c.host_reason_count())
)


def _mapped(address: Address) -> bytes:
    """16 bytes, IPv4 as ``::ffff:a.b.c.d``."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _check(code: int, what: str) -> int:
    if code < 0:
        _fail(code, what)
    return code


def _host_prefixes(networks: Iterable[Network | Address]) -> tuple[Cdata, int]:
    """An array of ``struct host_prefix``, and how many are in it."""
    pairs = set()
    for network in networks:
        plain = ip_network(network)
        pairs.add((_mapped(plain.network_address), plain.prefixlen + (96 if plain.version == 4 else 0)))
    array = ffi.new("struct host_prefix[]", max(len(pairs), 1))
    for item, (address, length) in zip(array, sorted(pairs), strict=False):
        item.address = address
        item.length = length
    return array, len(pairs)


def _network_of(prefix: Cdata) -> Network:
    packed = bytes(prefix.address)
    if packed.startswith(bytes(10) + b"\xff\xff") and prefix.length >= 96:
        return IPv4Network((packed[12:], prefix.length - 96))
    return IPv6Network((packed, prefix.length))


def _host_counts(counts: Cdata) -> dict[str, int]:
    return {reason.name: int(counts[number]) for number, reason in enumerate(HOST_REASONS)}


class DecapProgram:
    """The tc program of a host agent with its maps; loaded, or found behind an attached filter."""

    def __init__(self, handle: Cdata) -> None:
        self._c = handle

    @classmethod
    def load(
        cls,
        *,
        address: IPv4Address,
        address6: Address | None,
        link_header: int,
        muxes: Iterable[Address],
        vips: Iterable[Network],
        inherit: DecapProgram | None = None,
    ) -> DecapProgram:
        """Loads it, maps filled, counters those of ``inherit``; the kernel's words are in the error."""
        settings = ffi.new("struct decap_settings *")
        settings.address = _mapped(address)
        if address6 is not None:
            settings.address6 = address6.packed
        settings.link_header = link_header
        log = ffi.new("char[]", _VERIFIER_LOG_BYTES)
        out = ffi.new("struct decap **")
        old = inherit._c if inherit is not None else ffi.NULL
        status = c.decap_load(settings, old, log, _VERIFIER_LOG_BYTES, out)
        if status < 0:
            raise DataplaneError(_bpf_refusal(status, ffi.string(log).decode(errors="replace")))
        program = cls(ffi.gc(out[0], c.decap_destroy))
        program._fill(muxes, vips)
        return program

    @classmethod
    def open(cls, program_id: int) -> DecapProgram:
        """The program with this number, if it is one of ours."""
        what = f"Cannot open BPF program {program_id}"
        return cls(_make("decap", c.decap_destroy, what, lambda out: c.decap_open(program_id, out)))

    def _fill(self, muxes: Iterable[Address], vips: Iterable[Network]) -> None:
        array, count = _host_prefixes(muxes)
        for index in range(count):
            _check(c.decap_add_mux(self._c, array[index].address), f"Cannot add MUX {index + 1} of {count}")
        array, count = _host_prefixes(vips)
        for index in range(count):
            what = f"Cannot add VIP {index + 1} of {count}"
            _check(c.decap_add_vip(self._c, ffi.addressof(array, index)), what)

    @property
    def fd(self) -> int:
        """For attaching; stays this object's."""
        return int(c.decap_program_fd(self._c))

    @property
    def tag(self) -> bytes:
        """The kernel's digest of the instructions."""
        tag = ffi.new("uint8_t[]", _TAG_BYTES)
        c.decap_tag(self._c, tag)
        return bytes(tag)

    def muxes(self) -> frozenset[Network]:
        return self._prefixes(c.decap_muxes)

    def vips(self) -> frozenset[Network]:
        return self._prefixes(c.decap_vips)

    def _prefixes(self, read: Callable[[Cdata, Cdata, int], int]) -> frozenset[Network]:
        count = _check(read(self._c, ffi.NULL, 0), "Cannot read a BPF map")
        array = ffi.new("struct host_prefix[]", max(count, 1))
        count = min(_check(read(self._c, array, count), "Cannot read a BPF map"), count)
        return frozenset(_network_of(array[index]) for index in range(count))

    def counters(self) -> dict[str, int]:
        """Packets by reason, since the first program of this host."""
        counts = ffi.new("uint64_t[]", len(HOST_REASONS))
        _check(c.decap_counters(self._c, counts), "Cannot read the BPF counters")
        return _host_counts(counts)

    def test(self, frame: bytes) -> bytes | None:
        """What the program makes of an Ethernet frame: the frame that goes on, or None for a drop."""
        out = ffi.new("uint8_t[]", len(frame) + 256)
        length = ffi.new("uint32_t *", len(out))
        verdict = ffi.new("uint32_t *")
        _check(c.decap_test(self._c, frame, len(frame), out, length, verdict), "Cannot test the BPF program")
        return None if verdict[0] else bytes(ffi.buffer(out, length[0]))

    def close(self) -> None:
        """Lets go of it; a filter that uses it keeps it alive."""
        ffi.release(self._c)


def _bpf_refusal(status: int, log: str) -> str:
    """The kernel's reason, and the verifier's last words where it had any."""
    reason = {
        errno.EPERM: "not permitted (it needs CAP_BPF and CAP_NET_ADMIN, and a kernel that is not locked down)",
        errno.ENOSYS: "this kernel has no bpf(2)",
        errno.ENOTSUP: "this kernel's helper cannot take an outer header off",
    }.get(-status, os.strerror(-status).lower())
    lines = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    return f"{reason}; the verifier says: {lines[-1]}" if lines else reason


class HostPipeline:
    """Decapsulation in userspace; the rules may change while a worker runs it."""

    def __init__(self, muxes: Iterable[Address], vips: Iterable[Network]) -> None:
        rules = _host_rules(muxes, vips)
        self._c = _make("host", c.host_destroy, "Cannot make a host pipeline", lambda out: c.host_create(rules, out))

    def publish(self, muxes: Iterable[Address], vips: Iterable[Network]) -> None:
        """Rules for all later bursts."""
        c.host_publish(self._c, _host_rules(muxes, vips))

    def process(self, packets: Iterable[bytes]) -> list[bytes]:
        """Runs packets (outer IP header first) through the pipeline, in memory; returns the inner ones that go on."""
        io = _make("io", c.io_close, "Cannot make buffers", lambda out: c.io_memory_open(0, out))
        item = ffi.new("struct memory_sent *")
        sent: list[bytes] = []
        for packet in packets:
            _check(
                c.io_memory_load(io, packet, len(packet), len(packet)), f"Cannot load a packet of {len(packet)} bytes"
            )
            _check(c.host_run_once(self._c, io), "Cannot run the host pipeline")
            for index in range(c.io_memory_sent_count(io)):
                c.io_memory_sent(io, index, item)
                sent.append(bytes(ffi.buffer(item.data, item.len)))
        return sent

    def counters(self) -> dict[str, int]:
        """Packets by reason."""
        counts = ffi.new("uint64_t[]", len(HOST_REASONS))
        c.host_counters(self._c, counts)
        return _host_counts(counts)


class RawTunnel:
    """Raw socket, TUN device and the worker between them; runs a :class:`HostPipeline` until closed."""

    def __init__(self, pipeline: HostPipeline, address: IPv4Address, device: str) -> None:
        self._pipeline = pipeline
        what = f"Cannot open a raw socket on {address} and the TUN device {device}"
        self._io = _make("io", c.io_close, what, lambda out: c.raw_io_open(address.packed, device.encode(), out))
        self._worker: Cdata | None = None

    def start(self) -> None:
        pipeline = c.host_pipeline(self._pipeline._c)
        self._worker = _make(
            "worker",
            c.worker_destroy,
            "Cannot make a worker",
            lambda out: c.worker_create(pipeline, self._io, ffi.NULL, -1, out),
        )
        _check(c.worker_start(self._worker), "Cannot start a worker")

    def bursts(self) -> int | None:
        """The worker's turns so far: its heartbeat; None before it started."""
        if self._worker is None:
            return None
        raw = ffi.new("struct worker_counters *")
        c.worker_counters(self._worker, raw)
        return int(raw.bursts)

    def close(self) -> None:
        """Stops the worker; the TUN device ends with the I/O."""
        if self._worker is not None:
            c.worker_stop(self._worker)
            ffi.release(self._worker)
            self._worker = None
        ffi.release(self._io)


def _host_rules(muxes: Iterable[Address], vips: Iterable[Network]) -> Cdata:
    out = ffi.new("struct host_rules **")
    trusted, trusted_count = _host_prefixes(muxes)
    served, served_count = _host_prefixes(vips)
    _check(c.host_rules_create(trusted, trusted_count, served, served_count, out), "Cannot make the host's rules")
    return out[0]


# ---- packets from the network (io_packet.h, io_tun.h) ----

#: Receive ring of one worker: some 100,000 small frames.
RING_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class IoStats:
    """Counters of one io; ``missed``: the kernel dropped them before we saw them."""

    received: int = 0
    sent: int = 0
    missed: int = 0
    send_errors: int = 0

    def __add__(self, other: IoStats) -> IoStats:
        return IoStats(
            self.received + other.received,
            self.sent + other.sent,
            self.missed + other.missed,
            self.send_errors + other.send_errors,
        )


class Io:
    """Where one worker's packets come from and go to. Close it once the worker has stopped."""

    _c: Cdata

    def __init__(self, what: str, open_: Callable[[Cdata], int]) -> None:
        out = ffi.new("struct io **")
        code = open_(out)
        if code < 0:
            raise IoError(f"{what}: {os.strerror(-code).lower()}")
        self._c = ffi.gc(out[0], c.io_close)

    def stats(self) -> IoStats:
        """From any thread."""
        raw = ffi.new("struct io_stats *")
        c.io_stats_read(self._c, raw)
        return IoStats(raw.received, raw.sent, raw.missed, raw.send_errors)

    def close(self) -> None:
        """Closes sockets and devices at once; it must not be used any more."""
        ffi.release(self._c)


class PacketIo(Io):
    """AF_PACKET on one interface; sends by any."""

    #: The only ring of the interface, or the first of a group; see native/io_packet.h.
    ALONE = -1
    NEW_GROUP = -2

    def __init__(
        self, interface: str, *, group: int = ALONE, filter_: Sequence[int] = (), ring_bytes: int = RING_BYTES
    ) -> None:
        """``filter_``: classic BPF, one 64-bit word an instruction; ``group``: of the ring to share frames with."""
        program, name = ffi.new("uint64_t[]", list(filter_)), interface.encode()
        super().__init__(
            f"AF_PACKET on {interface}",
            lambda out: c.packet_io_open(name, ring_bytes, group, program, len(filter_), out),
        )
        self._interface = interface

    @property
    def group(self) -> int:
        return int(c.packet_io_group(self._c))

    def set_filter(self, filter_: Sequence[int]) -> None:
        """Replaces the filter at once; empty: everything enters the ring."""
        code = c.packet_io_filter(self._c, ffi.new("uint64_t[]", list(filter_)), len(filter_))
        if code < 0:
            raise IoError(f"cannot change the packet filter on {self._interface}: {os.strerror(-code).lower()}")


class TunIo(Io):
    """One queue of a TUN device, which exists as long as its queues do."""

    def __init__(self, name: str, *, shared: bool = False) -> None:
        """``shared``: further queues of the same device will follow, or this is one."""
        super().__init__(f"TUN device {name}", lambda out: c.tun_io_open(name.encode(), int(shared), out))


# ---- workers (worker.h, worker_ask.h) ----

#: A worker comes by its mailbox at least ten times a second; seconds.
ASK_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class WorkerCounters:
    """``bursts`` is the heartbeat; ``error`` the errno of the last receive that failed, 0 while all is well."""

    bursts: int
    errors: int
    error: int
    running: bool
    retired: int  #: snapshots not yet let go


class Runs(PythonProtocol):
    """Anything with a C pipeline that a worker can run."""

    @property
    def pipeline_pointer(self) -> Cdata: ...


class Worker:
    """A C thread that runs a pipeline over an io, burst after burst. Never waits for Python."""

    def __init__(self, pipeline: Runs, io: Io, snapshot: Snapshot | None = None, cpu: int | None = None) -> None:
        self._keep = (pipeline, io)  # C borrows both
        self._pipeline = pipeline
        self._c = _make(
            "worker",
            c.worker_destroy,
            "Cannot make a worker",
            lambda out: c.worker_create(
                pipeline.pipeline_pointer,
                io._c,
                snapshot._c if snapshot else ffi.NULL,
                -1 if cpu is None else cpu,
                out,
            ),
        )
        self._cpu = cpu

    def start(self) -> None:
        code = c.worker_start(self._c)
        if code < 0:
            _fail(code, "Cannot start a worker" if self._cpu is None else f"Cannot start a worker on CPU {self._cpu}")

    def publish(self, snapshot: Snapshot) -> None:
        """Current from the worker's next burst on. Returns at once."""
        code = c.worker_publish(self._c, snapshot._c)
        if code < 0:
            _fail(code, "Cannot publish a snapshot")

    def reclaim(self) -> int:
        """Frees replaced snapshots that the worker let go of; how many it still may hold."""
        return int(c.worker_reclaim(self._c))

    def counters(self) -> WorkerCounters:
        raw = ffi.new("struct worker_counters *")
        c.worker_counters(self._c, raw)
        return WorkerCounters(raw.bursts, raw.errors, raw.error, bool(raw.running), raw.retired)

    def lookup(self, snapshot: Snapshot, flow: FlowTuple) -> Answer:
        """What a packet would get, flow table included, asked between two bursts."""
        raw = ffi.new("struct mux_answer *")
        code = c.worker_ask_lookup(self._c, self._mux(), snapshot._c, _c_tuple(flow), raw, int(ASK_TIMEOUT * 1000))
        if code < 0:
            _fail(code, "The worker did not answer a lookup")
        return _answer(raw)

    def pipeline_counters(self) -> Counters:
        """The pipeline's counters between two bursts, when they add up."""
        received, reasons = ffi.new("uint64_t *"), ffi.new("uint64_t[]", len(REASONS))
        flows = ffi.new("struct flow_counters *")
        code = c.worker_ask_counters(self._c, self._mux(), received, reasons, flows, int(ASK_TIMEOUT * 1000))
        if code < 0:
            _fail(code, "The worker did not answer")
        return _counters(received[0], reasons, flows)

    def adopt(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes) -> Adoption:
        """Takes over flows of another MUX, in pieces between bursts."""
        raw = ffi.new("struct adoption *")
        for piece, count in _pieces(records):
            code = c.worker_ask_adopt(
                self._c, self._mux(), snapshot._c, service_id, backend, piece, count, raw, int(ASK_TIMEOUT * 1000)
            )
            _check(code, "The worker did not take flows over")
        return Adoption(raw.taken, raw.known, raw.useless, raw.refused)

    def forget(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes) -> int:
        """Removes flows that are as old as told, or older, in pieces between bursts; how many."""
        raw, total = ffi.new("uint32_t *"), 0
        for piece, count in _pieces(records):
            code = c.worker_ask_forget(
                self._c, self._mux(), snapshot._c, service_id, backend, piece, count, raw, int(ASK_TIMEOUT * 1000)
            )
            _check(code, "The worker did not forget flows")
            total += raw[0]
        return total

    def stop(self) -> None:
        """Returns when the thread has ended; it can be started again."""
        c.worker_stop(self._c)

    def close(self) -> None:
        """Stops it and lets its snapshots go, before its io is closed."""
        ffi.release(self._c)

    def _mux(self) -> Cdata:
        assert isinstance(self._pipeline, Pipeline)  # noqa: S101  only a MUX's pipeline has flows
        return self._pipeline._c
