# SPDX-License-Identifier: Apache-2.0
"""How many flows each backend has, counted now and then: :mod:`lb.mux.daemon` runs it, :mod:`lb.mux.status` reads it.

A count reads the whole flow table, beside the workers and beside the event loop (`lb bench pipeline` measures how long
that takes). So it is taken every few seconds only, oftener while a backend drains and somebody may wait for its flows
to end, and never for more than a small part of the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from lb.dataplane import BackendFlows, Census
from lb.dataplane.compile.compiler import Forwarding
from lb.model import BackendState
from lb.mux.workers.engine import Engine

#: Between two counts, seconds: while a backend drains, and else.
BUSY, CALM = 1.0, 5.0
#: How often it is looked whether a drain began meanwhile, seconds.
LOOK = 0.25
#: At most this part of the time is spent on it, while a backend drains, and else.
BUSY_SHARE, SHARE = 0.1, 0.02

NONE = BackendFlows()

#: Service and backend.
Label = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Count:
    """One count. ``drains``: what is left of each backend that drained at this count and at the one before, so that
    no worker can have chosen it for a new flow since."""

    census: Census | None = None
    draining: frozenset[Label] = frozenset()
    drains: tuple[tuple[Label, BackendFlows], ...] = ()


class FlowCensus:
    """The latest count of one MUX."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._latest = Count()

    def of(self, counter: int) -> BackendFlows:
        """A backend's flows at the last count, by its counter index. From any thread."""
        census = self._latest.census
        return census.of(counter) if census is not None else NONE

    @property
    def drains(self) -> tuple[tuple[Label, BackendFlows], ...]:
        """See :class:`Count`. From any thread."""
        return self._latest.drains

    def take(self) -> float:
        """Counts. From any thread, one at a time; returns the seconds of processor time that it took."""
        began = time.thread_time()
        forwarding = self._engine.forwarding  # before the count, so that this is at least as new
        draining = draining_backends(forwarding)
        census = self._engine.census()
        lasting = draining.keys() & self._latest.draining
        self._latest = Count(
            census,
            frozenset(draining),
            tuple((label, census.of(counter)) for label, counter in draining.items() if label in lasting),
        )
        return time.thread_time() - began

    async def run(self) -> None:
        """Returns never."""
        while True:
            began = self._clock()
            took = await asyncio.to_thread(self.take)
            await self._rest(began, max(BUSY, took / BUSY_SHARE), max(CALM, took / SHARE))

    async def _rest(self, began: float, busy: float, calm: float) -> None:
        """A drain that begins meanwhile ends the longer rest."""
        forwarding, drains = self._engine.forwarding, bool(self._latest.draining)
        while (left := began + (busy if drains else calm) - self._clock()) > 0:
            await asyncio.sleep(min(left, LOOK))
            if self._engine.forwarding is not forwarding:
                forwarding = self._engine.forwarding
                drains = bool(draining_backends(forwarding))


def draining_backends(forwarding: Forwarding) -> dict[Label, int]:
    """With their counter indices."""
    draining = [(number, forwarding.service(number)) for number in sorted(forwarding.draining)]
    return {
        (service.name, backend.name): forwarding.counter(number, backend.name)
        for number, service in draining
        if service is not None
        for backend in service.backends
        if backend.state is BackendState.DRAIN
    }
