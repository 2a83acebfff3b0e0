# SPDX-License-Identifier: Apache-2.0
"""Runs probes again and again: each at once, then at its interval, spread out and never two of one at a time.

Used by the agent and by the MUX, each with its own way of asking. A :class:`Scheduler` owns the state of every
probe; what has the same key is the same probe, whoever wants it, and keeps its state as long as somebody does.

An interval is shortened at random by up to a fifth, never lengthened, so that probes drift apart and a backend that
fails is found down within ``interval * fall + timeout``. A probe that takes longer than its interval delays only its
own next turn. All probes together start no faster than ``rate`` a second: what is more waits, and is asked less often
than it should be (see :attr:`Scheduler.overload`), so that probes never become a load of their own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Generic, TypeVar

from lb.model import Probe
from lb.probe.state import Answer, Outcome, Policy, Say, State, step

KeyT = TypeVar("KeyT", bound=Hashable)

#: Probes that may start in a second.
RATE = 1000.0
#: Probes that may be under way at once: each holds a socket or a process.
AT_ONCE = 256
#: The share of an interval that chance may take away.
JITTER = 0.2


class Scheduler(Generic[KeyT]):
    """Probes by key. ``ask`` runs one, ``say`` hears of each change."""

    def __init__(
        self,
        ask: Callable[[KeyT], Awaitable[Answer]],
        say: Callable[[KeyT, Say], None],
        *,
        rate: float = RATE,
        at_once: int = AT_ONCE,
        chance: random.Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._say = say
        self._rate = rate
        self._slots = asyncio.Semaphore(at_once)
        self._chance = chance or random.Random()  # noqa: S311  no secret hangs on it
        self._wall = wall
        self._probes: dict[KeyT, _Running] = {}
        self._next_start = 0.0
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def update(self, wanted: Mapping[KeyT, Probe]) -> None:
        """From now on exactly these. What was wanted before goes on undisturbed."""
        for key in self._probes.keys() - wanted.keys():
            self._probes.pop(key).task.cancel()
        for key, probe in wanted.items():
            if key not in self._probes:
                running = _Running(probe)
                running.task = asyncio.create_task(self._run(key, running), name=f"probe {key}")
                running.task.add_done_callback(self._ended)
                self._probes[key] = running

    def state(self, key: KeyT) -> State:
        """What is known; of a key that is not probed, nothing."""
        running = self._probes.get(key)
        return running.state if running else State()

    def since(self, key: KeyT) -> float:
        """Unix time since when its health is what it is."""
        running = self._probes.get(key)
        return running.since if running else 0.0

    def __len__(self) -> int:
        return len(self._probes)

    @property
    def overload(self) -> float:
        """How many times less often than wanted probes can be asked; 1 where all is well."""
        return max(1.0, sum(1 / running.probe.interval for running in self._probes.values()) / self._rate)

    async def failed(self) -> None:
        """Returns never; raises what a probe raised, which is a programming error."""
        await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Ends all probes, with what they have open."""
        tasks = [running.task for running in self._probes.values()]
        self._probes.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._failed.cancel()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _run(self, key: KeyT, running: _Running) -> None:
        loop = asyncio.get_running_loop()
        policy = Policy(rise=running.probe.rise, fall=running.probe.fall)
        shortest = 0.1  # what is the same age would stay in step: the second turn comes early, by chance
        while True:
            await self._turn()
            async with self._slots:
                began = loop.time()
                answer = await self._ask(key)
            self._note(key, running, Outcome(loop.time(), answer.success, answer.reason), policy)
            pause = running.probe.interval * self._chance.uniform(shortest, 1.0)
            shortest = 1.0 - JITTER
            await asyncio.sleep(began + pause - loop.time())

    async def _turn(self) -> None:
        """Waits until it may start."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_start)
        self._next_start = at + 1 / self._rate
        await asyncio.sleep(at - now)

    def _note(self, key: KeyT, running: _Running, outcome: Outcome, policy: Policy) -> None:
        running.state, said = step(running.state, outcome, policy)
        for say in said:
            if say.changed:
                running.since = round(self._wall(), 3)
            self._say(key, say)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self._failed.done():
            error = task.exception()
            assert error is not None  # noqa: S101  probes run for ever
            self._failed.set_exception(error)


class _Running:
    """One probe that runs."""

    __slots__ = ("probe", "since", "state", "task")

    task: asyncio.Task[None]

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.state = State()
        self.since = 0.0
