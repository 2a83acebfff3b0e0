# SPDX-License-Identifier: Apache-2.0
"""Workers: C threads that run a pipeline over an io, and the questions that are asked of them between two bursts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as PythonProtocol

from lb.dataplane.binding import Cdata, Closable, c, check, fail, ffi, make
from lb.dataplane.io import Io
from lb.dataplane.pipeline import Counters, FlowTuple, LookupAnswer, Pipeline, answer_of, counters_of, tuple_of
from lb.dataplane.reasons import REASONS
from lb.dataplane.records import Adoption, pieces
from lb.dataplane.snapshot import Snapshot

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


class Worker(Closable):
    """A C thread that runs a pipeline over an io, burst after burst. Never waits for Python.

    It has references of its own, in C, to pipeline, io and snapshots: whoever made them may let go of them, and of the
    worker, in any order and at any time.
    """

    def __init__(self, pipeline: Runs, io: Io, snapshot: Snapshot | None = None, cpu: int | None = None) -> None:
        self._pipeline = pipeline
        self._c = make(
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
            fail(code, "Cannot start a worker" if self._cpu is None else f"Cannot start a worker on CPU {self._cpu}")

    def publish(self, snapshot: Snapshot) -> None:
        """Current from the worker's next burst on. Returns at once."""
        code = c.worker_publish(self._c, snapshot._c)
        if code < 0:
            fail(code, "Cannot publish a snapshot")

    def reclaim(self) -> int:
        """Frees replaced snapshots that the worker let go of; how many it still may hold."""
        return int(c.worker_reclaim(self._c))

    def counters(self) -> WorkerCounters:
        raw = ffi.new("struct worker_counters *")
        c.worker_counters(self._c, raw)
        return WorkerCounters(raw.bursts, raw.errors, raw.error, bool(raw.running), raw.retired)

    def lookup(self, snapshot: Snapshot, flow: FlowTuple) -> LookupAnswer:
        """What a packet would get, flow table included, asked between two bursts."""
        raw = ffi.new("struct mux_answer *")
        code = c.worker_ask_lookup(self._c, self._mux(), snapshot._c, tuple_of(flow), raw, int(ASK_TIMEOUT * 1000))
        if code < 0:
            fail(code, "The worker did not answer a lookup")
        return answer_of(raw)

    def pipeline_counters(self) -> Counters:
        """The pipeline's counters between two bursts, when they add up."""
        received, reasons = ffi.new("uint64_t *"), ffi.new("uint64_t[]", len(REASONS))
        flows = ffi.new("struct flow_counters *")
        code = c.worker_ask_counters(self._c, self._mux(), received, reasons, flows, int(ASK_TIMEOUT * 1000))
        if code < 0:
            fail(code, "The worker did not answer")
        return counters_of(received[0], reasons, flows)

    def adopt(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes) -> Adoption:
        """Takes over flows of another MUX, in pieces between bursts."""
        raw = ffi.new("struct adoption *")
        for piece, count in pieces(records):
            code = c.worker_ask_adopt(
                self._c, self._mux(), snapshot._c, service_id, backend, piece, count, raw, int(ASK_TIMEOUT * 1000)
            )
            check(code, "The worker did not take flows over")
        return Adoption(raw.taken, raw.known, raw.useless, raw.refused)

    def forget(self, snapshot: Snapshot, service_id: int, backend: int, records: bytes) -> int:
        """Removes flows that are as old as told, or older, in pieces between bursts; how many."""
        raw, total = ffi.new("uint32_t *"), 0
        for piece, count in pieces(records):
            code = c.worker_ask_forget(
                self._c, self._mux(), snapshot._c, service_id, backend, piece, count, raw, int(ASK_TIMEOUT * 1000)
            )
            check(code, "The worker did not forget flows")
            total += raw[0]
        return total

    def stop(self) -> None:
        """Returns when the thread has ended; it can be started again."""
        c.worker_stop(self._c)

    def close(self) -> None:
        """Stops it; returns when the thread has ended. Lets go of pipeline, io and snapshots."""
        if self._handle is not None:
            c.worker_stop(self._handle)
        super().close()

    def _mux(self) -> Cdata:
        assert isinstance(self._pipeline, Pipeline)  # noqa: S101  only a MUX's pipeline has flows
        return self._pipeline._c
