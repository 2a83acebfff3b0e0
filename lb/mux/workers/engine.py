# SPDX-License-Identifier: Apache-2.0
"""The running data plane: one pipeline and one worker for each io, and what is published to them.

Owned by :mod:`lb.mux.daemon`, which calls everything here from its event loop; :meth:`Engine.figures` alone is also
called by the metrics thread. Pipelines, and with them the flow tables and counters, live as long as the process;
workers and ios come and go with the interface, and become more or fewer with the configuration.

Each worker has a flow table of its own, and the kernel decides whose packet it is. Where that may have changed (other
workers, other queues), or where flows of another MUX came that no worker has seen yet, a flow may be in the table of a
worker that does not get its packets. For as long as such a flow may live, a worker asks the others for a flow that it
does not know: see native/flow/sibling_tables.h. In all other times nobody asks, and nothing is shared.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.dataplane import (
    ADOPT_MAX,
    FLOW_TIERS,
    REASONS,
    RECORD_BYTES,
    Adoption,
    Answers,
    Census,
    Counters,
    FlowLedger,
    FlowNews,
    FlowTuple,
    Fragments,
    Hop,
    Io,
    IoStats,
    LinkHeader,
    LookupAnswer,
    Pipeline,
    ServiceCounters,
    Snapshot,
    Unsynchronised,
    Worker,
    WorkerCounters,
    regroup,
    unsynchronised_flows,
)
from lb.dataplane.compile.compiler import Forwarding
from lb.dataplane.regroup import RegroupMember
from lb.errors import DataplaneError
from lb.model import Address, MuxSettings
from lb.mux.workers.kept_flows import KeptFlows, KeptTable
from lb.mux.workers.shedding import Rule

#: Bytes of fragments that may wait for the first of their datagram.
FRAGMENTS_KEEP = 1 << 20
#: Serial of an elder of which nobody knows what it has forgotten.
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """One worker's part."""

    bursts: int  #: its heartbeat
    received: int
    live: int  #: entries in its flow table
    missed: int  #: lost before it saw them, since its io was opened


@dataclass(slots=True)
class _Elder:
    """The flow table of a worker that is no more, on its way into those of today's."""

    table: regroup.FlowTable
    serial: int  #: what the VIP map of this serial has not, it may remember still
    file: Path | None  #: that it is in
    next_line: int = 0


@dataclass(frozen=True, slots=True)
class WorkerTotals:
    """Counters of all workers together."""

    received: int
    reasons: Mapping[str, int]
    live: int
    evicted: Mapping[str, int]  #: by FLOW_TIERS
    expired: int
    refused: int
    moved: int
    io: IoStats
    workers: tuple[WorkerFigures, ...]


class Engine:
    """Pipelines and workers of one MUX."""

    def __init__(
        self,
        settings: MuxSettings,
        link: LinkHeader,
        forwarding: Forwarding,
        *,
        guesses_checksums: bool = False,
        kept: KeptFlows | None = None,
        elders: Sequence[KeptTable] = (),
    ) -> None:
        """``guesses_checksums``: what its ios receive may have unfinished ones, and they cannot tell.

        ``kept``: memory that outlives the process; ``elders``: what an earlier one left there, whose numbers mean what
        they mean here."""
        self._settings = settings
        self._kept = kept
        self._files: list[Path | None] = []  # that the pipelines' flow tables are in
        self._guesses_checksums = guesses_checksums
        self._link = link
        self._fragments = Fragments(FRAGMENTS_KEEP)
        self._pipelines = [self._pipeline(number, settings.workers) for number in range(settings.workers)]
        self._active = settings.workers  # of the pipelines; the others keep what they counted
        self._elders = [_Elder(elder.table, _UNKNOWN, elder.path) for elder in elders]
        self._strange_until: float | None = None  # until then a flow may be known to another worker than sees it
        self._turn = 0  # whose turn it is to be given flows
        self._workers: list[Worker] = []
        self._ios: list[Io] = []
        self._closed_ios = IoStats()
        self._started = False
        # Counters that were somebody else's before begin anew: what they stood at is taken off.
        self._backend_bases: dict[int, int] = {}
        self._service_bases: dict[int, ServiceCounters] = {}
        self._forwarding = forwarding
        self._hops: Mapping[Address, Hop] = {}
        self._reachable: frozenset[Address] = frozenset()
        self._hop_table = forwarding.hop_table({})
        self._generation = 1
        self._snapshot = Snapshot(forwarding.vip_map, self._hop_table, self._generation)
        self._guard = threading.Lock()  # figures() against start, stop and publish

    @property
    def vector(self) -> str:
        """The vector instructions that all pipelines run with."""
        return self._pipelines[0].vector

    def _pipeline(self, number: int, workers: int) -> Pipeline:
        """Its memory is touched by the worker's thread, so that it is of that thread's NUMA node."""
        pipeline = Pipeline(
            0,
            self._link,
            detect_partial=self._guesses_checksums,
            first_id=_first_id(number),
            touch_late=True,
            answers=Answers.of(self._settings, workers),
            fragments=self._fragments,
        )
        self._files.append(None)
        self._give_table(pipeline, number, self._share(workers))
        return pipeline

    def _give_table(self, pipeline: Pipeline, number: int, flows: int) -> regroup.FlowTable | None:
        """An empty one, where the process may end and its flows do not; returns the one that it had."""
        if self._kept is None:
            return regroup.replace_table(pipeline, flows)
        before, self._files[number] = self._kept.replace_table(pipeline, flows)
        return before

    def _remove(self, file: Path | None) -> None:
        if self._kept is not None:
            self._kept.remove(file)

    def _share(self, workers: int) -> int:
        return -(-self._settings.flows // workers)

    # -- what is current ----------------------------------------------------------------------------------------

    @property
    def forwarding(self) -> Forwarding:
        return self._forwarding

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def snapshot(self) -> Snapshot:
        """What was published last."""
        return self._snapshot

    @property
    def reachable(self) -> frozenset[Address]:
        """Backend addresses that a frame can leave for."""
        return self._reachable

    # -- life ---------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        return self._active

    @property
    def inherits(self) -> bool:
        """There are flow tables of workers before, for :meth:`inherit`."""
        return bool(self._elders)

    def start(self, ios: Sequence[Io]) -> None:
        """One worker for each io, on a CPU of its own where there are enough."""
        with self._guard:
            self._begin_workers(ios)

    def stop(self) -> None:
        """Ends the workers; flow tables and counters stay. The ios may be closed afterwards."""
        with self._guard:
            self._end_workers()

    def look(self) -> None:
        """Returns when each worker has looked for packets once more.

        From any thread. Raises DataplaneError if one stands still."""
        with self._guard:
            for worker in self._workers:
                worker.pipeline_counters()  # at the end of a turn that may have begun before
                worker.pipeline_counters()

    def regroup(self, ios: Sequence[Io]) -> None:
        """One worker for each of these ios instead, be it more or fewer; no flow is forgotten.

        Ios that are not among them may be closed afterwards, and :meth:`inherit` is to be called. Raises
        DataplaneError, with no worker running."""
        with self._guard:
            try:
                self._end_workers(going_on=ios)
                self._begin_workers(ios)
            except DataplaneError:
                self._end_workers()
                raise

    def resize(self, workers: int) -> None:
        """The flow tables for so many workers, none of which runs yet; see :meth:`regroup`, which does this as well."""
        with self._guard:
            self._prepare(workers)

    def _prepare(self, workers: int) -> None:
        if workers != self._active:
            self._replace_tables(workers)
        if self._elders or (workers > 1 and self._live()):  # the kernel may spread flows in another way than before
            self._strange_until = time.monotonic() + self._longest_idle()
        self._meet()

    def _begin_workers(self, ios: Sequence[Io]) -> None:
        self._prepare(len(ios))
        cpus = sorted(os.sched_getaffinity(0))
        pin = 1 < len(ios) <= len(cpus)
        self._started = True
        self._ios = list(ios)
        self._workers = [
            Worker(pipeline, io, self._snapshot, cpus[number] if pin else None)
            for number, (pipeline, io) in enumerate(zip(self._running, ios, strict=True))
        ]
        for worker in self._workers:
            worker.start()

    def _end_workers(self, going_on: Sequence[Io] = ()) -> None:
        """``going_on``: ios that other workers get, and that count on."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        for io in self._ios:
            if not any(io is other for other in going_on):
                self._closed_ios += io.stats()
        self._ios = []

    # -- flows between workers ----------------------------------------------------------------------------------

    @property
    def _running(self) -> list[Pipeline]:
        """Those that workers run."""
        return self._pipelines[: self._active]

    @property
    def _members(self) -> list[RegroupMember]:
        workers: Sequence[Worker | None] = self._workers or [None] * self._active
        return [RegroupMember(*pair) for pair in zip(self._running, workers, strict=True)]

    def _replace_tables(self, workers: int) -> None:
        """Each a table of its share; what the tables remember that there were becomes the elders'."""
        serial = self._forgotten()
        for number in range(len(self._pipelines), workers):
            self._pipelines.append(self._pipeline(number, workers))
        for number in range(max(self._active, workers)):
            file = self._files[number]
            table = self._give_table(self._pipelines[number], number, self._share(workers) if number < workers else 0)
            if table is not None and number < self._active:
                self._elders.append(_Elder(table, serial, file))
                regroup.inherit_counters(self._pipelines[0], table)
            else:
                self._remove(file)
        self._active = workers
        for pipeline in self._running:
            pipeline.answer(Answers.of(self._settings, workers).per_second)

    def expect_strangers(self) -> None:
        """Before something is done by which the kernel may spread flows in another way, while workers run."""
        with self._guard:
            self._expect_strangers()

    def _expect_strangers(self) -> None:
        """From now on each worker asks the others for flows that it does not know."""
        known = self._strange_until is not None
        self._strange_until = time.monotonic() + self._longest_idle()
        if not known:
            self._meet()

    def _live(self) -> int:
        return sum(sum(pipeline.counters().flows.live) for pipeline in self._running)

    def _longest_idle(self) -> float:
        """So long a flow may live without a packet, seconds."""
        idle = self._settings.idle
        return max([idle.tcp, idle.udp, *(service.idle or 0 for service in self._forwarding.services)])

    def _meet(self) -> None:
        """Whom each of them asks; and, always, whose flows an ICMP error may be about, for it comes to any of them."""
        tables = [regroup.FlowTable.of(pipeline) for pipeline in self._running]
        for number, member in enumerate(self._members):
            others = [*tables[:number], *tables[number + 1 :], *(elder.table for elder in self._elders)]
            known = [table for table in others if table is not None]
            regroup.meet(member, known, asked=self._strange_until is not None)

    def inherit(self) -> int:
        """Moves what the workers before knew to those of now, a piece at a time, each to one of them: who sees the flow
        will find it there. Returns how many flows. From any thread. Raises DataplaneError if a worker stands still."""
        taken = 0
        while True:
            with self._guard:  # held for a moment only: others wait for it
                if not self._elders:
                    return taken
                taken += self._inherit_piece(self._elders[0])

    def _inherit_piece(self, elder: _Elder) -> int:
        member = self._members[self._next_turn()]
        taken = regroup.inherit(member, self._snapshot, elder.table, elder.next_line, self._now())
        elder.next_line += regroup.INHERIT_LINES
        if elder.next_line >= elder.table.lines:
            self._elders.remove(elder)
            self._remove(elder.file)
            if not self._elders and self._active == 1:
                self._strange_until = None  # whatever is known, the one worker knows
            self._meet()
        return taken

    def _next_turn(self) -> int:
        self._turn = (self._turn + 1) % self._active
        return self._turn

    def tend(self) -> None:
        """To be called about twice a second: what one worker took over from another, that one forgets; and nobody is
        asked any more when no flow can be elsewhere. Raises DataplaneError if a worker stands still."""
        with self._guard:
            if self._kept is not None:
                self._kept.beat()
            if self._strange_until is None:
                return
            claimed = [set(regroup.claims(member)) for member in self._members]
            for member, own in zip(self._members, claimed, strict=True):
                # Who took a flow over as well, keeps it: else nobody might be left who knows it.
                if keys := set().union(*claimed) - own:
                    regroup.release(member, list(keys))
            if time.monotonic() >= self._strange_until and not self._elders:
                self._strange_until = None
                self._meet()

    # -- publish ------------------------------------------------------------------------------------------------

    def publish(self, forwarding: Forwarding, hops: Mapping[Address, Hop]) -> None:
        """Other services, other hops, or both. A flow keeps its backend as long as that is up. ``hops`` is not changed
        any more."""
        with self._guard:
            if forwarding.hops.places is not self._forwarding.hops.places or hops is not self._hops:
                self._hop_table = forwarding.hop_table(hops)
                self._reachable = frozenset(hops)
            self._generation += 1
            self._forwarding = forwarding
            self._hops = hops
            self._snapshot = Snapshot(forwarding.vip_map, self._hop_table, self._generation)
            for worker in self._workers:
                worker.publish(self._snapshot)

    def publish_hops(self, hops: Mapping[Address, Hop]) -> None:
        """Does nothing if they are the same."""
        if hops is not self._hops and hops != self._hops:
            self.publish(self._forwarding, hops)

    def reclaim(self) -> int:
        """Lets go of replaced snapshots; how many a worker still may hold."""
        return sum(worker.reclaim() for worker in self._workers)

    # -- flows of this MUX and of others ------------------------------------------------------------------------

    def unsynchronised(self, most: int) -> tuple[Forwarding, Unsynchronised]:
        """The flows that no other MUX knows, and what their numbers mean. From any thread."""
        self.inherit()
        with self._guard:
            snapshot, forwarding = self._snapshot, self._forwarding
        records: dict[tuple[int, int], bytes] = {}
        total = 0
        for pipeline in self._running:
            found = unsynchronised_flows(pipeline, snapshot, max(0, most - total))
            total += found.total
            for owner, more in found.records.items():
                records[owner] = records.get(owner, b"") + more
        return forwarding, Unsynchronised(records, total)

    def news(self, ledger: FlowLedger, again: float) -> tuple[Forwarding, FlowNews]:
        """What the others do not know yet of such flows, by what is published now; see :meth:`FlowLedger.news`.

        From any thread. Raises DataplaneError if a worker stands still."""
        self.look()  # none goes by what was published before
        self.inherit()
        with self._guard:
            snapshot, forwarding, running = self._snapshot, self._forwarding, self._running
        return forwarding, ledger.news(running, snapshot, again, time.monotonic())

    def adopt(self, service_id: int, backend: int, records: bytes) -> Adoption:
        """Takes over another MUX's flows: who knows one already, or else one worker for all, whom the others ask.

        From any thread. Raises DataplaneError if a worker stands still.
        """
        total = Adoption()
        for piece in _pieces(records):
            with self._guard:  # held for a moment only: others wait for it
                total += self._adopt_piece(service_id, backend, piece)
        return total

    def _adopt_piece(self, service_id: int, backend: int, records: bytes) -> Adoption:
        total, now = Adoption(), self._now()
        if self._active > 1:
            self._expect_strangers()
            for member in self._members:
                found, records = regroup.adopt_known(member, self._snapshot, service_id, backend, records, now_ns=now)
                total += found
        number = self._next_turn()
        if self._workers:
            return total + self._workers[number].adopt(self._snapshot, service_id, backend, records)
        return total + self._running[number].adopt(self._snapshot, service_id, backend, records, now_ns=now)

    def forget(self, service_id: int, backend: int, records: bytes) -> int:
        """Forgets those of the flows that are as old as told, or older; how many. As :meth:`adopt`."""
        total = 0
        for piece in _pieces(records):
            with self._guard:
                snapshot, now = self._snapshot, self._now()
                total += sum(
                    [worker.forget(snapshot, service_id, backend, piece) for worker in self._workers]
                    or [pipeline.forget(snapshot, service_id, backend, piece, now_ns=now) for pipeline in self._running]
                )
        return total

    def _now(self) -> int:
        """The time for pipelines without a worker, which may have stood still for long; 0, that of the last packet,
        where somebody else than workers feeds them, by a clock that we do not know."""
        return time.monotonic_ns() if self._started else 0

    # -- questions ----------------------------------------------------------------------------------------------

    def census(self) -> Census:
        """Counts the flows of every backend; takes a while, disturbs no worker. From any thread."""
        with self._guard:
            snapshot, counters = self._snapshot, self._forwarding.counters
        census = Census(counters)
        for pipeline in self._running:
            census.add(pipeline, snapshot)
        return census

    def lookup(self, flow: FlowTuple) -> LookupAnswer:
        """What a packet would get: its flow entry if a worker has one, else what a new flow gets.

        Raises DataplaneError while there are no workers.
        """
        with self._guard:
            answers = [worker.lookup(self._snapshot, flow) for worker in self._workers]
        if not answers:
            raise DataplaneError("no worker runs now, since the interface is being opened; ask again in a moment")
        known = [answer for answer in answers if answer.flow is not None]
        return min(known, key=lambda answer: answer.flow.age if answer.flow else 0.0, default=answers[0])

    def bursts(self) -> tuple[int, ...]:
        """Each running worker's turns so far: its heartbeat. From any thread; empty while there are no workers."""
        with self._guard:
            return tuple(worker.counters().bursts for worker in self._workers)

    def heartbeats(self) -> tuple[WorkerCounters, ...]:
        return tuple(worker.counters() for worker in self._workers)

    def totals(self) -> WorkerTotals:
        """Sums over workers; each worker's own counters add up."""
        with self._guard:
            counters = [self._counters(number) for number in range(len(self._pipelines))]
            ios = [io.stats() for io in self._ios]
            bursts = [worker.counters().bursts for worker in self._workers]
        reasons = {
            reason.name: sum(counter.reasons[number] for counter in counters) for number, reason in enumerate(REASONS)
        }
        return WorkerTotals(
            received=sum(counter.received for counter in counters),
            reasons=reasons,
            live=sum(sum(counter.flows.live) for counter in counters),
            evicted={
                tier: sum(counter.flows.tiers[number] for counter in counters) for number, tier in enumerate(FLOW_TIERS)
            },
            expired=sum(counter.flows.expired for counter in counters),
            refused=sum(counter.flows.refused for counter in counters),
            moved=sum(counter.flows.moved for counter in counters),
            io=sum(ios, self._closed_ios),
            workers=tuple(
                WorkerFigures(beat, counter.received, sum(counter.flows.live), io.missed)
                for beat, counter, io in zip(bursts, counters, ios, strict=False)
            ),
        )

    def _counters(self, number: int) -> Counters:
        """At rest, between two bursts; a stopped worker's pipeline always is."""
        if number < len(self._workers):
            return self._workers[number].pipeline_counters()
        return self._pipelines[number].counters()

    def arrivals(self) -> tuple[IoStats, ...]:
        """Each running worker's io, as counted since it was opened. From any thread; no worker is asked."""
        with self._guard:
            return tuple(io.stats() for io in self._ios)

    def came_for(self) -> dict[str, int]:
        """Packets that came for each live service so far, forwarded or not. No worker is asked."""
        forwarding = self._forwarding
        counted = [pipeline.came_for(forwarding.id_limit) for pipeline in self._pipelines]
        numbers = ((service.name, forwarding.id_of(service)) for service in forwarding.services)
        return {name: sum(row[number] for row in counted) for name, number in numbers if number is not None}

    def shed(self, rules: Sequence[Rule]) -> None:
        """Drops packets as told, until told otherwise: each service's share on every worker."""
        found = [(self._forwarding.id_named(rule.service), rule) for rule in rules]
        words = [(number, rule.new, rule.known) for number, rule in found if number is not None]
        for pipeline in self._pipelines:
            pipeline.shed(words)

    def shed_packets(self) -> int:
        """So far. No worker is asked."""
        return sum(pipeline.shed_packets() for pipeline in self._pipelines)

    def refused(self) -> int:
        """Flows that found no room in their table, so far."""
        return sum(pipeline.counters().flows.refused for pipeline in self._pipelines)

    # -- numbers, see lb.dataplane.compile.numbers.NumberUsers
    # --------------------------------------------------------------------------

    def forgotten(self) -> int:
        """What the VIP map of this serial has not, no worker's flow table remembers any more."""
        return self._forgotten()

    def _forgotten(self) -> int:
        return min([*(pipeline.forgotten for pipeline in self._running), *(elder.serial for elder in self._elders)])

    def lent_counter(self, counter: int) -> None:
        """Another backend's from here on."""
        self._backend_bases[counter] = self._backend_count(counter)

    def lent_service(self, service_id: int) -> None:
        """Another service's from here on."""
        self._service_bases[service_id] = self._service_count(service_id)

    def service_counters(self, service_id: int) -> ServiceCounters:
        count, base = self._service_count(service_id), self._service_bases.get(service_id, ServiceCounters())
        return ServiceCounters(
            packets=count.packets - base.packets,
            bytes=count.bytes - base.bytes,
            flows=count.flows - base.flows,
            dropped=count.dropped - base.dropped,
        )

    def _service_count(self, service_id: int) -> ServiceCounters:
        rows = [pipeline.service_counters(service_id) for pipeline in self._pipelines]
        return ServiceCounters(
            packets=sum(row.packets for row in rows),
            bytes=sum(row.bytes for row in rows),
            flows=sum(row.flows for row in rows),
            dropped=sum(row.dropped for row in rows),
        )

    def busy(self, ids: int) -> list[int]:
        """Of the service ids below ``ids``, those that counted a packet, in order."""
        busy = set().union(*(pipeline.busy_services(ids) for pipeline in self._pipelines))
        return sorted(
            number
            for number in busy
            if number not in self._service_bases or self.service_counters(number) != ServiceCounters()
        )

    def backend_packets(self, counter: int) -> int:
        return self._backend_count(counter) - self._backend_bases.get(counter, 0)

    def _backend_count(self, counter: int) -> int:
        return sum(pipeline.backend_packets(counter) for pipeline in self._pipelines)


def _pieces(records: bytes) -> Iterator[bytes]:
    size = ADOPT_MAX * RECORD_BYTES
    return (records[start : start + size] for start in range(0, len(records), size))


def _first_id(worker: int) -> int:
    """Workers begin far apart in the identifications of outer packets."""
    return (worker * 0x9E37 + os.getpid()) & 0xFFFF
