# SPDX-License-Identifier: Apache-2.0
"""Runs probes again and again: each at once, then at its interval, spread out and never two of one at a time.

Used by :mod:`lb.probe.results`. A :class:`Scheduler` owns the state of every probe; what has the same key is the same
probe, whoever wants it, and keeps its state as long as somebody does. A probe that waits is an entry in a queue; only
one that runs is a task.

An interval is shortened at random by up to a fifth, never lengthened, so that probes drift apart and a backend that
fails is found down within ``interval * fall + timeout``. A probe that takes longer than its interval delays only its
own next turn. All probes together start no faster than ``rate`` a second: what is more waits, and is asked less often
than it should be (see :attr:`Scheduler.overload`), so that probes never become a load of their own.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from lb.daemon.log import get_logger
from lb.model import Probe
from lb.probe.state import Outcome, ProbeAnswer, ProbePolicy, ProbeState, Say, step

log = get_logger()

KeyT = TypeVar("KeyT", bound=Hashable)

#: Probes that may start in a second.
RATE = 1000.0
#: Starts that were missed by so much are caught up with, seconds; timers are no finer.
CATCH_UP = 0.02
#: Probes that may be under way at once: each holds a socket or a process.
AT_ONCE = 256
#: Silence that is noticed later than this after its time was up says more of us than of the backend, seconds.
LATE = 0.2
#: The share of an interval that chance may take away.
JITTER = 0.2
#: Probes that began together would stay in step: each one's second turn comes early, by chance. The least share.
FIRST_PAUSE = 0.1

_NEW = ProbeState()


@dataclass(slots=True, eq=False)
class _Entry(Generic[KeyT]):
    """One probe."""

    key: KeyT
    probe: Probe
    state: ProbeState = _NEW
    since: float = 0.0
    asked: bool = False
    gone: bool = False
    unmade: str | None = None  #: why it could not be asked the last time
    took: float | None = None  #: the last that was made, until its answer or its time-out, seconds
    task: asyncio.Task[None] | None = None  #: while it runs


def spread(probe: Probe) -> float:
    """By how many seconds the last of several that ask the same may find a change later than the first of them.

    Each needs as many answers in a row as the probe says, the first at its next turn; and one of them may not count,
    where a process stood still (see ``_run``). Before this has passed, what two of them say is not of one age.
    """
    turns = max(probe.rise, probe.fall)
    pace = max(probe.interval, probe.timeout)
    soonest = (turns - 1) * (1 - JITTER) * probe.interval
    return (turns + 1) * pace + probe.timeout - soonest


class Scheduler(Generic[KeyT]):
    """Probes by key. ``ask`` runs one, ``say`` hears of each change."""

    def __init__(
        self,
        ask: Callable[[KeyT], Awaitable[ProbeAnswer]],
        say: Callable[[KeyT, Say], None],
        *,
        rate: float = RATE,
        at_once: int = AT_ONCE,
        chance: random.Random | None = None,
        wall: Callable[[], float] = time.time,
        count_unmade: Callable[[], None] = lambda: None,
    ) -> None:
        """``count_unmade`` hears of each probe that could not be made."""
        self._count_unmade = count_unmade
        self._unmade = 0  # probes that could not be made the last time
        self._ask = ask
        self._say = say
        self._rate = rate
        self._at_once = at_once
        self._slots = asyncio.Semaphore(at_once)
        self._chance = chance or random.Random()  # noqa: S311  no secret hangs on it
        self._wall = wall
        self._entries: dict[KeyT, _Entry[KeyT]] = {}
        self._queue: list[tuple[float, int, _Entry[KeyT]]] = []  # when it is due, a serial number, the probe
        self._serial = itertools.count()
        self._wanted_rate = 0.0
        self._next_start = 0.0
        self._earlier = asyncio.Event()
        self._starter: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def want(self, key: KeyT, probe: Probe) -> None:
        """From now on this one as well; what is wanted already goes on undisturbed."""
        if key in self._entries:
            return
        entry = self._entries[key] = _Entry(key, probe)
        self._wanted_rate += 1 / probe.interval
        self._enqueue(entry, asyncio.get_running_loop().time())
        if self._starter is None:
            self._starter = self._started(self._start_when_due(), "probes")

    def drop(self, key: KeyT) -> None:
        """Ends it, and forgets what is known."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._wanted_rate -= 1 / entry.probe.interval
        entry.gone = True
        if entry.unmade is not None:
            self._unmade -= 1
        if entry.task is not None:
            entry.task.cancel()

    def state(self, key: KeyT) -> ProbeState:
        """What is known; of a key that is not probed, nothing. From any thread."""
        entry = self._entries.get(key)
        return entry.state if entry else _NEW

    def since(self, key: KeyT) -> float:
        """Unix time since when its health is what it is. From any thread."""
        entry = self._entries.get(key)
        return entry.since if entry else 0.0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def overload(self) -> float:
        """How many times less often than wanted probes can be asked; 1 where all is well."""
        return max(1.0, self._wanted_rate / self._rate)

    def unmade(self, key: KeyT) -> str | None:
        """Why it could not be asked the last time; None: it was. From any thread."""
        entry = self._entries.get(key)
        return entry.unmade if entry else None

    def took(self, key: KeyT) -> float | None:
        """How long the last that was made took until its answer, or its time-out; seconds. From any thread."""
        entry = self._entries.get(key)
        return entry.took if entry else None

    async def failed(self) -> None:
        """Returns never; raises what ended the starting of probes, which is a programming error. Called again it begins
        to start them anew."""
        if self._starter is not None and self._starter.done():
            self._failed = asyncio.get_running_loop().create_future()
            self._slots = asyncio.Semaphore(self._at_once)
            self._starter = self._started(self._start_when_due(), "probes")
        await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Ends all probes, with what they have open."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        tasks += [self._starter] if self._starter is not None else []
        for key in list(self._entries):
            self.drop(key)
        if self._starter is not None:
            self._starter.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._failed.cancel()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _enqueue(self, entry: _Entry[KeyT], due: float) -> None:
        heapq.heappush(self._queue, (due, next(self._serial), entry))
        if self._queue[0][2] is entry:
            self._earlier.set()

    async def _start_when_due(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            await self._until_due()
            entry = heapq.heappop(self._queue)[2]
            self._next_start = max(self._next_start, loop.time() - CATCH_UP) + 1 / self._rate
            entry.task = self._started(self._run(entry), f"probe {entry.key}")
            entry.task.add_done_callback(partial(_release, self._slots))

    async def _until_due(self) -> None:
        """Until the queue's first may start; of those that are gone, nothing is left before it."""
        loop = asyncio.get_running_loop()
        while True:
            while self._queue and self._queue[0][2].gone:
                heapq.heappop(self._queue)
            self._earlier.clear()
            at = max(self._queue[0][0], self._next_start) if self._queue else None
            if at is not None and at <= loop.time():
                return
            try:
                async with asyncio.timeout_at(at):
                    await self._earlier.wait()
            except TimeoutError:
                pass

    async def _run(self, entry: _Entry[KeyT]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await self._ask(entry.key)
        except Exception as error:  # of ours, and no reason to ask nobody any more
            answer = ProbeAnswer(False, f"{type(error).__name__}: {error}", made=False)
            if answer.reason != entry.unmade:
                log.error("probe failed by itself", probe=str(entry.key)[:200], reason=answer.reason, exc_info=error)
        if entry.gone:
            return
        self._note_made(entry, None if answer.made else answer.reason)
        if answer.made:
            entry.took = loop.time() - began
        # This process stood still: the answer may have been there, and all that is probed would seem to fail at once.
        late = answer.silent and loop.time() - began > entry.probe.timeout + LATE
        if answer.made and answer.news and not late:
            self._note(entry, Outcome(loop.time(), answer.success, answer.reason, answer.refused))
        least = 1 - JITTER if entry.asked else FIRST_PAUSE
        entry.asked = True
        entry.task = None
        self._enqueue(entry, began + entry.probe.interval * self._chance.uniform(least, 1.0))

    def _note_made(self, entry: _Entry[KeyT], why_not: str | None) -> None:
        """Shown, counted, and said once for all of them: they have the same want."""
        if why_not is not None:
            self._count_unmade()
        if (why_not is None) == (entry.unmade is None):
            entry.unmade = why_not
            return
        entry.unmade = why_not
        self._unmade += 1 if why_not is not None else -1
        if why_not is not None and self._unmade == 1:
            log.error("probes not made", reason=why_not, then="what is known stands; they are tried again")
        elif self._unmade == 0:
            log.info("probes made again")

    def _note(self, entry: _Entry[KeyT], outcome: Outcome) -> None:
        entry.state, said = step(entry.state, outcome, ProbePolicy(rise=entry.probe.rise, fall=entry.probe.fall))
        for say in said:
            if say.changed:
                entry.since = round(self._wall(), 3)
            self._say(entry.key, say)

    def _started(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self._failed.done():
            error = task.exception()
            if error is not None:
                self._failed.set_exception(error)


def _release(slots: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
    slots.release()
