# SPDX-License-Identifier: Apache-2.0
"""Looks after the workers: frees what they let go of, and tells of one that fails or stands still, once for each time.

Owned by :mod:`lb.mux.daemon`, whose event loop runs :meth:`Care.run`. Whoever supervises the daemon hears from here
that all is well, and only while every worker turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lb.daemon.log import get_logger
from lb.daemon.notify import Supervisor
from lb.dataplane import WorkerCounters
from lb.errors import DataplaneError
from lb.mux.workers.engine import Engine
from lb.mux.workers.full_table import Fullness

#: Between two looks, seconds.
INTERVAL = 0.5
#: A worker whose heartbeat stood still for so long is reported, seconds.
STALLED = 3.0

log = get_logger()


@dataclass(slots=True)
class Heartbeats:
    """What the workers' heartbeats say. Pure: takes what they are at a time, and returns what is news of them."""

    stalled: set[int] = field(default_factory=set)  #: workers that stand still
    _beats: dict[int, tuple[int, float]] = field(default_factory=dict)
    _errors: dict[int, int] = field(default_factory=dict)

    def failed(self, workers: Sequence[WorkerCounters]) -> dict[int, int]:
        """Workers whose error is another than at the last look, and its number."""
        before = self._errors
        self._errors = {number: worker.error for number, worker in enumerate(workers)}
        return {number: error for number, error in self._errors.items() if error and error != before.get(number)}

    def stopped(self, workers: Sequence[WorkerCounters], now: float) -> dict[int, float]:
        """Workers that are found to stand still for the first time, and for how long they do, seconds."""
        found = {}
        for number, worker in enumerate(workers):
            bursts, since = self._beats.get(number, (-1, 0.0))
            if bursts != worker.bursts:
                self._beats[number] = (worker.bursts, now)
                self.stalled.discard(number)
            elif now - since > STALLED and number not in self.stalled:
                self.stalled.add(number)
                found[number] = now - since
        self.stalled &= set(range(len(workers)))  # of fewer workers than there were
        return found


class Care:
    """Of one MUX's workers."""

    def __init__(self, engine: Engine, supervisor: Supervisor, summary: Callable[[], str], flows: int) -> None:
        """``summary``: the MUX in one line; ``flows``: so many its flow table is made for."""
        self._engine = engine
        self._supervisor = supervisor
        self._summary = summary
        self._flows = flows
        self._heartbeats = Heartbeats()
        self._fullness = Fullness()

    async def run(self) -> None:
        """Returns never."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(INTERVAL)
            self._look(clock())

    def _look(self, now: float) -> None:
        engine, heartbeats = self._engine, self._heartbeats
        engine.reclaim()
        with contextlib.suppress(DataplaneError):  # a worker that stands still: said below
            engine.tend()
        self._tell_if_full(self._fullness.step(engine.refused(), now))
        workers = engine.heartbeats()
        for number, error in heartbeats.failed(workers).items():
            log.warning("receive failed", worker=number, error=errno.errorcode.get(error, "?"))
        for number, seconds in heartbeats.stopped(workers, now).items():
            log.error("worker stands still", worker=number, seconds=round(seconds, 1))
        if not heartbeats.stalled:
            self._supervisor.alive()
        still = len(heartbeats.stalled)
        self._supervisor.status(f"{still} workers stand still" if still else self._summary())

    def _tell_if_full(self, refused: int) -> None:
        if refused:
            log.warning(
                "flow table full",
                refused=refused,
                flows=self._flows,
                reason="new flows are forwarded by Maglev alone and may move when backends change",
                remedy="raise flows in [mux] and restart",
            )
