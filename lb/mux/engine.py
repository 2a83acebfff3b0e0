# SPDX-License-Identifier: Apache-2.0
"""The running data plane: one pipeline and one worker for each io, and what is published to them.

Owned by :mod:`lb.mux.daemon`, which calls everything here from its event loop; :meth:`Engine.figures` alone is also
called by the metrics thread. Pipelines, and with them the flow tables and counters, live as long as the process;
workers and ios come and go with the interface.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lb.dataplane import (
    ADOPT_MAX,
    FLOW_TIERS,
    REASONS,
    RECORD_BYTES,
    Adoption,
    Answer,
    Census,
    Counters,
    Exceptional,
    FlowTuple,
    Hop,
    Io,
    IoStats,
    Link,
    Pipeline,
    ServiceCounters,
    Snapshot,
    Worker,
    WorkerCounters,
    exceptional_flows,
)
from lb.errors import DataplaneError
from lb.forwarding import Forwarding
from lb.model import Address, MuxSettings


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of all workers together."""

    received: int
    reasons: Mapping[str, int]
    live: int
    evicted: Mapping[str, int]  #: by FLOW_TIERS
    expired: int
    refused: int
    moved: int
    io: IoStats
    workers: tuple[WorkerCounters, ...]


class Engine:
    """Pipelines and workers of one MUX."""

    def __init__(
        self, settings: MuxSettings, link: Link, forwarding: Forwarding, *, guesses_checksums: bool = False
    ) -> None:
        """``guesses_checksums``: what its ios receive may have unfinished ones, and they cannot tell."""
        self._settings = settings
        flows = -(-settings.flows // settings.workers)
        self._pipelines = [
            Pipeline(flows, link, detect_partial=guesses_checksums, first_id=_first_id(worker))
            for worker in range(settings.workers)
        ]
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

    def start(self, ios: Sequence[Io]) -> None:
        """One worker for each io, on a CPU of its own where there are enough."""
        cpus = sorted(os.sched_getaffinity(0))
        pin = 1 < len(ios) <= len(cpus)
        with self._guard:
            self._started = True
            self._ios = list(ios)
            self._workers = [
                Worker(pipeline, io, self._snapshot, cpus[number] if pin else None)
                for number, (pipeline, io) in enumerate(zip(self._pipelines, ios, strict=True))
            ]
            for worker in self._workers:
                worker.start()

    def stop(self) -> None:
        """Ends the workers; flow tables and counters stay. The ios may be closed afterwards."""
        with self._guard:
            for worker in self._workers:
                worker.close()
            self._workers = []
            for io in self._ios:
                self._closed_ios += io.stats()
            self._ios = []

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

    def exceptional(self, most: int) -> tuple[Forwarding, Exceptional]:
        """The flows that no other MUX knows, and what their numbers mean. From any thread."""
        with self._guard:
            snapshot, forwarding = self._snapshot, self._forwarding
        records: dict[tuple[int, int], bytes] = {}
        total = 0
        for pipeline in self._pipelines:
            found = exceptional_flows(pipeline, snapshot, max(0, most - total))
            total += found.total
            for owner, more in found.records.items():
                records[owner] = records.get(owner, b"") + more
        return forwarding, Exceptional(records, total)

    def adopt(self, service_id: int, backend: int, records: bytes) -> Adoption:
        """Takes over another MUX's flows, in every worker; the outcome is that of the worker that took the fewest.

        From any thread. Raises DataplaneError if a worker stands still.
        """
        total = Adoption()
        for piece in _pieces(records):
            with self._guard:  # held for a moment only: others wait for it
                snapshot, now = self._snapshot, self._now()
                found = [worker.adopt(snapshot, service_id, backend, piece) for worker in self._workers] or [
                    pipeline.adopt(snapshot, service_id, backend, piece, now_ns=now) for pipeline in self._pipelines
                ]
            total += min(found, key=lambda adoption: (-adoption.refused, adoption.taken))
        return total

    def forget(self, service_id: int, backend: int, records: bytes) -> int:
        """Forgets those of the flows that are as old as told, or older; how many. As :meth:`adopt`."""
        total = 0
        for piece in _pieces(records):
            with self._guard:
                snapshot, now = self._snapshot, self._now()
                total += sum(
                    [worker.forget(snapshot, service_id, backend, piece) for worker in self._workers]
                    or [
                        pipeline.forget(snapshot, service_id, backend, piece, now_ns=now)
                        for pipeline in self._pipelines
                    ]
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
        for pipeline in self._pipelines:
            census.add(pipeline, snapshot)
        return census

    def lookup(self, flow: FlowTuple) -> Answer:
        """What a packet would get: its flow entry if a worker has one, else what a new flow gets.

        Raises DataplaneError while there are no workers.
        """
        with self._guard:
            answers = [worker.lookup(self._snapshot, flow) for worker in self._workers]
        if not answers:
            raise DataplaneError("no worker runs now, since the interface is being opened; ask again in a moment")
        return next((answer for answer in answers if answer.flow is not None), answers[0])

    def bursts(self) -> tuple[int, ...]:
        """Each running worker's turns so far: its heartbeat. From any thread; empty while there are no workers."""
        with self._guard:
            return tuple(worker.counters().bursts for worker in self._workers)

    def heartbeats(self) -> tuple[WorkerCounters, ...]:
        return tuple(worker.counters() for worker in self._workers)

    def totals(self) -> Totals:
        """Sums over workers; each worker's own counters add up."""
        with self._guard:
            counters = [self._counters(number) for number in range(len(self._pipelines))]
            io = sum((io.stats() for io in self._ios), self._closed_ios)
            workers = tuple(worker.counters() for worker in self._workers)
        reasons = {
            reason.name: sum(counter.reasons[number] for counter in counters) for number, reason in enumerate(REASONS)
        }
        return Totals(
            received=sum(counter.received for counter in counters),
            reasons=reasons,
            live=sum(sum(counter.flows.live) for counter in counters),
            evicted={
                tier: sum(counter.flows.tiers[number] for counter in counters) for number, tier in enumerate(FLOW_TIERS)
            },
            expired=sum(counter.flows.expired for counter in counters),
            refused=sum(counter.flows.refused for counter in counters),
            moved=sum(counter.flows.moved for counter in counters),
            io=io,
            workers=workers,
        )

    def _counters(self, number: int) -> Counters:
        """At rest, between two bursts; a stopped worker's pipeline always is."""
        if self._workers:
            return self._workers[number].pipeline_counters()
        return self._pipelines[number].counters()

    def refused(self) -> int:
        """Flows that found no room in their table, so far."""
        return sum(pipeline.counters().flows.refused for pipeline in self._pipelines)

    # -- numbers, see lb.numbers.Tables --------------------------------------------------------------------------

    def forgotten(self) -> int:
        """What the VIP map of this serial has not, no worker's flow table remembers any more."""
        return min(pipeline.forgotten for pipeline in self._pipelines)

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
