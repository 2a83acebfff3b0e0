# SPDX-License-Identifier: Apache-2.0
"""What changed since somebody last looked, for those who watch: ``GET /v1/watch``, ``lb get … -w`` and the web page.

:class:`ChangeFeed` counts changes and remembers for each service the number of its last one;
:mod:`manager.controller.controller` tells it. A watcher asks with the cursor of its last answer, waits until there is
something newer, and gets the rows that changed. What is counted by MUXes (packets, flows) changes every second for
every service that is used: it goes by a number of its own, so that a backend's death does not wait for ten thousand
counters.

However many watch however much, the answers take no more than a part of the time, :data:`SHARE` for news and as much
for counters: :class:`Budget` holds them back. What is held back comes later, and newer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lb.daemon.time_budget import Budget

#: Of the manager's time, so much at most is spent on answers to watchers.
SHARE = 0.02
#: What was not spent may be spent at once, up to so much; seconds.
SAVED = 0.1
#: News that come together are told together, seconds.
GATHER = 0.05
#: So many services that are no more are remembered, so that watchers hear of their end.
GONE_KEPT = 10_000

#: Tables with a row or rows for each service.
BY_SERVICE = ("services", "backends")
TABLES = (*BY_SERVICE, "muxes", "agents", "announcements", "events", "history", "status")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a watcher has seen; a text for it, which means nothing to it."""

    term: int
    news: int
    counted: int

    def __str__(self) -> str:
        return f"{self.term}-{self.news}-{self.counted}"

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """None: it is no cursor of ours, and the watcher gets everything."""
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
            return None
        return cls(*map(int, parts))


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher has not seen. ``services`` None: everything."""

    services: frozenset[str] | None
    gone: frozenset[str] = frozenset()


class ChangeFeed:
    """See the module's text. Used in the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.term = 0
        self._number = 1
        self._oldest = 0  # cursors before this one get everything
        self._services: dict[str, int] = {}
        self._counted: dict[str, int] = {}
        self._tables: dict[str, int] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._news = Budget(SHARE, clock)
        self._counters = Budget(SHARE, clock)
        self._clock = clock

    # -- what happens -------------------------------------------------------------------------------------------

    def services(self, names: Iterable[str]) -> None:
        """Their rows, or those of their backends, are others, or they are no more."""
        self._note(self._services, names)

    def counted(self, names: Iterable[str]) -> None:
        """MUXes tell other counters of them."""
        self._note(self._counted, names)

    def tables(self, *names: str) -> None:
        """Any row of these tables is another."""
        self._note(self._tables, names)

    def forget(self, *known: Collection[str]) -> None:
        """All services but these are no more; of too many of those one cannot tell each."""
        most = sum(map(len, known)) + GONE_KEPT
        if len(self._services) > most:
            self._services = _of(self._services, known)
            self._oldest = self._number
        if len(self._counted) > most:
            self._counted = _of(self._counted, known)

    def _note(self, numbers: dict[str, int], names: Iterable[str]) -> None:
        changed = dict.fromkeys(names, self._number + 1)
        if not changed:
            return
        self._number += 1
        numbers.update(changed)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    # -- who asks -----------------------------------------------------------------------------------------------

    def cursor(self, before: Cursor | None = None, *, counters: bool = True) -> Cursor:
        """What an answer made now has shown."""
        return Cursor(self.term, self._number, self._number if counters or before is None else before.counted)

    async def wait(self, table: str, cursor: Cursor, seconds: float, only: Collection[str] = ()) -> tuple[News, bool]:
        """What is new in a table, as soon as there is something, or nothing once time is over; and whether counters
        are among it. ``only``: services that the watcher looks at; empty: all."""
        ending = self._clock() + seconds
        if cursor.term != self.term or not self._oldest <= cursor.news <= self._number:
            return News(None), True
        while True:
            news = self._since(table, cursor.news, only)
            counters = self._counters_since(table, cursor.counted, only)
            pauses = [self._news.wait()] * news + [self._counters.wait()] * counters
            left = ending - self._clock()
            if pauses and min(pauses) <= 0:
                await asyncio.sleep(min(GATHER, max(0.0, left)))
                break
            if left <= 0:
                return News(frozenset()), False
            await self._woken(min([left, *pauses]))
        counters = self._counters_since(table, cursor.counted, only) and self._counters.wait() <= 0
        return self._take(table, cursor, only, counters), counters

    def spent(self, seconds: float, *, counters: bool) -> None:
        """So long did an answer take."""
        (self._counters if counters else self._news).spend(seconds)

    async def _woken(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait((future,), timeout=seconds)
        finally:
            self._waiting.discard(future)

    def _since(self, table: str, number: int, only: Collection[str]) -> bool:
        if table not in BY_SERVICE:
            return self._tables.get(table, 0) > number
        return _any_since(self._services, number, only)

    def _counters_since(self, table: str, number: int, only: Collection[str]) -> bool:
        return table in BY_SERVICE and _any_since(self._counted, number, only)

    def _take(self, table: str, cursor: Cursor, only: Collection[str], counters: bool) -> News:
        if table not in BY_SERVICE or cursor.news < self._oldest:
            return News(None)
        names = {name for name, number in self._services.items() if number > cursor.news}
        if counters:
            names |= {name for name, number in self._counted.items() if number > cursor.counted}
        return News(frozenset(names & set(only) if only else names))


def _of(numbers: Mapping[str, int], known: Sequence[Collection[str]]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if any(name in names for names in known)}


def _any_since(numbers: dict[str, int], number: int, only: Collection[str]) -> bool:
    if only:
        return any(numbers.get(name, 0) > number for name in only)
    return bool(numbers) and max(numbers.values()) > number
