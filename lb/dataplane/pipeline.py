# SPDX-License-Identifier: Apache-2.0
"""The inbound pipeline of a MUX with its flow table and counters. Belongs to whoever runs it; once a worker does, it is
only read.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import add

from lb.dataplane.binding import TICK_SHIFT, Cdata, address16, c, check, ffi, make, text
from lb.dataplane.reasons import REASONS, Verdict
from lb.dataplane.records import Adoption, pieces
from lb.dataplane.snapshot import Snapshot
from lb.errors import DataplaneError
from lb.model import Address, MuxSettings, Protocol, Unserved

#: Packets handled together.
BURST_MAX = 64
#: The finer of a pipeline's clocks, that of its answers, goes in steps of 2^20 ns; that of its flow table in 2^28.
CLOCK_SHIFT = 20
#: ``flow`` of a :class:`Result`, by number in C.
FLOW_REPORTS = (None, "new", "known", "untracked")
#: Classes of flow entries, by number in C.
FLOW_CLASSES = (
    "tcp_untrusted",
    "udp_untrusted",
    "tcp_trusted",
    "udp_trusted",
    "tcp_young",
    "tcp_young_ended",
    "tcp_trusted_ended",
    "udp_young",
)
#: What flows that made room for others were, by number in C; see ``enum flow_tier`` in native/flow/flow_table.h.
FLOW_TIERS = ("trusted", "young", "untrusted", "ended")

#: Levels of vector instructions, by number in C; see native/mux/vector_level.h.
VECTORS = tuple(text(name) for name in map(c.vector_name, range(4)))
#: Environment variable that names one of them, for tests and measurements. Unset: the best that the processor has.
VECTOR_VARIABLE = "VIPMUX_VECTOR"


def vector_asked(name: str) -> int:
    """The number of a level by its name, empty for the best."""
    if (name or VECTORS[0]) not in VECTORS:
        msg = f"{VECTOR_VARIABLE} = {name!r} is no level of vector instructions: unset it, or say {', '.join(VECTORS)}."
        raise DataplaneError(msg)
    return VECTORS.index(name or VECTORS[0])


class LinkHeader(enum.IntEnum):
    """What a pipeline writes before the outer header."""

    NONE = 0  #: nothing: IP packets
    NEXT_HOP = 1  #: Ethernet to the hop's MAC address
    SWAP = 2  #: Ethernet, addresses of the input swapped


@dataclass(frozen=True, slots=True)
class Offload:
    """What a NIC's driver tells of a packet; ``csum_start`` from the frame's first byte. See native/machine/io.h."""

    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    verified: bool = False


#: ``enum mux_unserved`` of native/mux/answers.h.
_UNSERVED = {Unserved.DROP: 0, Unserved.UNREACHABLE: 1, Unserved.RESET: 2}


@dataclass(frozen=True, slots=True)
class Answers:
    """What a pipeline answers by itself: so many of each kind for each second, 0: nothing; and as whom."""

    per_second: int = 0
    unserved: Unserved = Unserved.DROP
    addresses: tuple[Address, ...] = ()  #: the MUX's own

    @staticmethod
    def of(settings: MuxSettings, workers: int = 1) -> Answers:
        """The share of each of so many workers."""
        own = (settings.address, settings.address6)
        return Answers(
            -(-settings.answers // workers), settings.unserved, tuple(address for address in own if address is not None)
        )

    def own(self, version: int) -> bytes:
        return address16(next((address for address in self.addresses if address.version == version), None))


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
class LookupAnswer:
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
    live: tuple[int, ...] = (0,) * len(FLOW_CLASSES)  #: by FLOW_CLASSES
    expired: int = 0
    evicted: int = 0
    tiers: tuple[int, ...] = (0,) * len(FLOW_TIERS)  #: the evicted, by FLOW_TIERS
    forgotten: int = 0  #: of services and backends that are gone
    refused: int = 0  #: packets of flows that found no room
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """A pipeline's counters; ``reasons`` in the order of REASONS."""

    received: int
    reasons: tuple[int, ...]
    flows: FlowCounters


def counters_of(received: int, reasons: Cdata, flows: Cdata) -> Counters:
    return Counters(
        received=received,
        reasons=tuple(reasons),
        flows=FlowCounters(
            live=tuple(flows.live),
            expired=flows.expired,
            evicted=flows.evicted,
            tiers=tuple(flows.evicted_tier),
            forgotten=flows.forgotten,
            refused=flows.refused,
            moved=flows.moved,
        ),
    )


def tuple_of(flow: FlowTuple) -> Cdata:
    return ffi.new(
        "struct flow_tuple *",
        {
            "source": address16(flow.source),
            "destination": address16(flow.destination),
            "source_port": socket.htons(flow.source_port),
            "destination_port": socket.htons(flow.destination_port),
            "protocol": flow.protocol.number,
            "family": flow.source.version,
        },
    )


def answer_of(raw: Cdata) -> LookupAnswer:
    if raw.service == ffi.NULL:
        return LookupAnswer(None, None, None, None)
    flow = None
    if raw.flow_backend >= 0:
        age = raw.flow_age * (1 << TICK_SHIFT) / 1e9
        flow = FlowEntry(raw.flow_backend, FLOW_CLASSES[raw.flow_class], age)
    return LookupAnswer(raw.service.id, raw.slot, raw.backend if raw.backend >= 0 else None, flow)


def lookup(snapshot: Snapshot, flow: FlowTuple) -> LookupAnswer:
    """What a new flow would get from a snapshot, without any flow table."""
    raw = ffi.new("struct mux_answer *")
    c.mux_lookup(ffi.NULL, snapshot._c, tuple_of(flow), raw)
    return answer_of(raw)


def flow_table_bytes(flows: int) -> int:
    """Memory that a flow table for so many flows takes."""
    return int(c.flow_table_bytes(flows))


def load(memory: Cdata, data: bytes, wire_length: int, offload: Offload | None) -> None:
    """The next packet of a burst in memory."""
    check(c.io_memory_load(memory, data, len(data), wire_length), f"Cannot load a packet of {len(data)} bytes")
    if offload is not None:
        told = (offload.gso_size, offload.csum_start, offload.csum_offset, offload.verified)
        check(c.io_memory_offload(memory, *told), "Cannot tell of a packet's offloads")


#: Services whose packets may be shed at once; see native/mux/shed.h.
SHED_MAX = 4
_SHED = next(number for number, reason in enumerate(REASONS) if reason.name == "shed")


def _share(share: float) -> int:
    """Of 65,536."""
    return min(max(round(share * 65536), 0), 65535)


class Fragments:
    """Which backends the datagrams go to of which fragments are under way: one for all workers of a MUX."""

    def __init__(self, keep: int) -> None:
        """``keep``: bytes of fragments that may wait for the first of their datagram."""
        self._c = make(
            "fragments", c.fragments_put, "Cannot remember fragments", lambda out: c.fragments_create(keep, out)
        )


class Pipeline:
    """One MUX pipeline with its flow table and counters; a worker runs it, or :meth:`process` does."""

    def __init__(
        self,
        flows: int,
        link: LinkHeader,
        *,
        detect_partial: bool = False,
        first_id: int = 0,
        vector: str | None = None,
        touch_late: bool = False,
        answers: Answers | None = None,
        fragments: Fragments | None = None,
    ) -> None:
        """``flows`` 0: no table, every packet by Maglev. ``detect_partial``: its io cannot tell partial checksums.
        ``vector``: one of VECTORS; None: what the environment says, else the best. ``touch_late``: a worker will run
        it, and its flow table's memory is to be near the worker's CPU. ``answers``: None, it answers nothing.
        ``fragments``: None, a later fragment goes on only if the first of its datagram came here before it."""
        says = answers or Answers()
        number = vector_asked(os.environ.get(VECTOR_VARIABLE, "") if vector is None else vector)
        config = ffi.new(
            "struct mux_config *",
            {
                "flows": flows,
                "link": int(link),
                "detect_partial": int(detect_partial),
                "first_id": first_id,
                "vector": number,
                "touch_late": int(touch_late),
                "answers": says.per_second,
                "unserved": _UNSERVED[says.unserved],
                "address": says.own(4),
                "address6": says.own(6),
                "fragments": ffi.NULL if fragments is None else fragments._c,
            },
        )
        what = f"Cannot make a flow table for {flows} flows ({flow_table_bytes(flows) >> 20} MiB)"

        def create(out: Cdata) -> int:
            code = int(c.mux_create(config, out))
            if code == -errno.ENOTSUP:
                lacks = f"This processor does not have the vector instructions {VECTORS[number]!r}"
                msg = f"{lacks}: unset {VECTOR_VARIABLE}."
                raise DataplaneError(msg)
            return code

        self._c = make("mux", c.mux_destroy, what, create)
        self.link = link
        self._memory: Cdata | None = None

    @property
    def vector(self) -> str:
        """The vector instructions that it runs with, of VECTORS."""
        return text(c.mux_vector(self._c))

    @property
    def pipeline_pointer(self) -> Cdata:
        """For a :class:`Worker`."""
        return c.mux_pipeline(self._c)

    def process(
        self,
        snapshot: Snapshot,
        packets: Sequence[tuple[bytes, int, int]],
        offloads: Sequence[Offload] | None = None,
    ) -> list[Result]:
        """Runs packets given as (bytes, length on the wire, time in ns) through the pipeline, in memory.

        The results are those of one packet at a time. A time that goes back counts as the latest seen. ``offloads``: of
        each packet; without them nothing is known, as of a capture.
        """
        results: list[Result] = []
        start = 0
        while start < len(packets):
            end, tick = start + 1, packets[start][2] >> CLOCK_SHIFT
            # A burst has one time, so it ends where a clock ticks.
            while end < len(packets) and end - start < BURST_MAX and packets[end][2] >> CLOCK_SHIFT == tick:
                end += 1
            results += self._burst(snapshot, packets[start:end], offloads[start:end] if offloads else ())
            start = end
        return results

    def _burst(
        self, snapshot: Snapshot, packets: Sequence[tuple[bytes, int, int]], offloads: Sequence[Offload]
    ) -> list[Result]:
        if self._memory is None:
            link_type = 0 if self.link is LinkHeader.NONE else 1
            self._memory = make("io", c.io_close, "Cannot make buffers", lambda out: c.io_memory_open(link_type, out))
        for (data, wire_length, _), offload in zip_longest(packets, offloads):
            load(self._memory, data, wire_length, offload)
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

    def lookup(self, snapshot: Snapshot, flow: FlowTuple) -> LookupAnswer:
        """What a packet would get, flow table included. While a worker runs, call it through the worker."""
        raw = ffi.new("struct mux_answer *")
        c.mux_lookup(self._c, snapshot._c, tuple_of(flow), raw)
        return answer_of(raw)

    def counters(self) -> Counters:
        received, reasons = ffi.new("uint64_t *"), ffi.new("uint64_t[]", len(REASONS))
        flows = ffi.new("struct flow_counters *")
        c.mux_counters_read(self._c, received, reasons, flows)
        return counters_of(received[0], reasons, flows)

    def service_counters(self, service_id: int) -> ServiceCounters:
        row = c.mux_service_counters(self._c)[service_id]
        return ServiceCounters(row.packets, row.bytes, row.flows, row.dropped)

    def busy_services(self, ids: int) -> list[int]:
        """Of the service ids below ``ids``, those that counted a packet, forwarded or not."""
        return [number for number, count in enumerate(self.came_for(ids)) if count]

    def came_for(self, ids: int) -> list[int]:
        """By service id below ``ids``: packets that came for it, forwarded or not. From any thread."""
        rows = ffi.buffer(c.mux_service_counters(self._c), ids * ffi.sizeof("struct service_counters"))
        numbers = memoryview(rows).cast("B").cast("Q")
        return list(map(add, numbers[0::4].tolist(), numbers[3::4].tolist()))

    def shed(self, rules: Sequence[tuple[int, float, float]]) -> None:
        """Drops packets of at most SHED_MAX services: of each (service id, share of new flows' packets, share of known
        flows' packets), shares from 0 to 1. Until it is told otherwise; from any thread, one at a time."""
        words = [(service + 1) << 32 | _share(fresh) << 16 | _share(known) for service, fresh, known in rules]
        c.mux_shed(self._c, words, len(words))

    def answer(self, per_second: int) -> None:
        """So many of each kind for each second from here on. From any thread."""
        c.mux_answers(self._c, per_second)

    def shed_packets(self) -> int:
        """So far. From any thread."""
        return self.counters().reasons[_SHED]

    def backend_packets(self, counter: int) -> int:
        """Packets forwarded to a backend, by its counter index."""
        return int(c.mux_backend_counters(self._c)[counter])

    @property
    def forgotten(self) -> int:
        """Serial of a VIP map; what was absent from it on is in this flow table no more. From any thread."""
        return int(c.mux_forgotten(self._c))

    def adopt(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes, *, now_ns: int = 0) -> Adoption:
        """Takes over flows of another MUX, whose ages count from ``now_ns`` or the last packet's time, whichever is
        later. While a worker runs, call it through the worker."""
        raw = ffi.new("struct adoption *")
        for piece, count in pieces(records):
            c.mux_adopt(self._c, snapshot._c, service_id, backend, piece, count, now_ns, raw)
        return Adoption(raw.taken, raw.known, raw.useless, raw.refused)

    def forget(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes, *, now_ns: int = 0) -> int:
        """Removes flows that are as old as told, or older; how many. As :meth:`adopt`."""
        return sum(
            c.mux_forget(self._c, snapshot._c, service_id, backend, piece, count, now_ns)
            for piece, count in pieces(records)
        )

    def check(self) -> str | None:
        """Walks the flow table; the first broken invariant in words, None if it is sound."""
        broken = c.mux_check(self._c)
        return None if broken == ffi.NULL else text(broken)
