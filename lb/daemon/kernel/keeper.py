# SPDX-License-Identifier: Apache-2.0
"""Keeps in the kernel what a daemon put there: looks when the kernel tells of a change, and now and then; puts back.

    KernelWatch ──"look again"──►  Keeper  ──look()──►  Kept (isolation, addresses, sysctls, ...)
      (netlink)                      │     ◄─differences─┘
                                     ├──► Repairs (pure): what to put back now, what to say
                                     └──put_back()──►  Kept

How a daemon uses it::

    own = Own()                                        # whoever changes the kernel adds its sockets and processes
    watch = KernelWatch(Area.LINK | Area.NFTABLES, own=own, tables=["vipmux_mux1"])
    keeper = Keeper([isolation, settings], watch)      # each a Kept
    task = asyncio.create_task(keeper.run())           # until cancelled; supervise it like any other
    keeper.rows(), keeper.words(), keeper.figures()    # for the status (keys kernel, repaired), and for Prometheus

A part locks against its own changes: :meth:`KeptPart.look` must never see a change of ours half done. Whatever a part
raises but VipmuxError is a programming error and ends :meth:`Keeper.run`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lb.daemon.kernel.repairs import Difference, RepairEvent, Repairs, Saying, words
from lb.daemon.kernel.watch import Area, ChangingProgram, KernelNotices
from lb.daemon.log import get_logger
from lb.errors import VipmuxError

#: Notices of one deed come in a row; wait this long for the rest, seconds.
SETTLE = 0.02
#: Looking takes at most this part of the time, however much the kernel tells; yet no look waits longer than this.
SHARE, PAUSE_MOST = 0.2, 1.0
#: Counted from the beginning, so that the first repair is seen as an increase; see :attr:`Difference.what`.
KINDS = ("nftables", "interface", "address", "route", "rule", "filter", "sysctl")
#: A look that failed is tried again so soon, seconds.
RETRY = 1.0

log = get_logger()


class KeptPart(Protocol):
    """A part of the kernel that a daemon keeps as it made it."""

    @property
    def areas(self) -> Area:
        """Notices of which a look is due here."""

    @property
    def interval(self) -> float:
        """A look is due so often at least, seconds, even if nothing was heard."""

    async def look(self) -> Sequence[Difference]:
        """What is not as it was made; empty where all is well, or where there is nothing to keep now.

        Raises VipmuxError where that cannot be found out."""

    async def put_back(self, differences: Sequence[Difference]) -> None:
        """Makes these as they were, or everything. Raises VipmuxError if one of them could not be."""


class Watch(Protocol):
    """What the keeper needs of :class:`lb.daemon.kernel.watch.KernelWatch`."""

    noticed: asyncio.Event

    def start(self) -> None: ...

    def take(self) -> KernelNotices: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class KeptFigures:
    """For Prometheus."""

    repairs: Mapping[str, int] = field(default_factory=dict)  #: since the start, by kind
    fights: int = 0  #: things that another program undoes again and again
    amiss: int = 0  #: things that are not as they should be at this moment


@dataclass(slots=True)
class _Ward:
    """A part, and when it is looked at."""

    part: KeptPart
    repairs: Repairs = field(default_factory=Repairs)
    due: float = 0.0  # the next look
    earliest: float = 0.0  # not before, whatever is heard
    program: ChangingProgram | None = None  # the last that changed something here
    blind: str | None = None  # why it cannot be looked at


class Keeper:
    """Looks after the parts in their order, one at a time."""

    def __init__(self, parts: Sequence[KeptPart], watch: Watch, clock: Callable[[], float] = time.monotonic) -> None:
        self._wards = [_Ward(part) for part in parts]
        self._watch = watch
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled. Raises IoError if the kernel cannot be listened to."""
        self._watch.start()
        try:
            while True:
                await self._wait()
                self._hear(self._watch.take())
                for ward in self._wards:
                    if self._clock() >= ward.due:
                        await self._look(ward)
        finally:
            self._watch.close()

    def rows(self) -> list[dict[str, Any]]:
        """What was put back, could not be, or is fought over; see :meth:`lb.daemon.kernel.repairs.Repairs.rows`."""
        now, wall = self._clock(), time.time()
        rows = [row for ward in self._wards for row in ward.repairs.rows(now, wall)]
        rows += [
            {"what": "look", "name": type(ward.part).__name__.lower(), "failed": ward.blind, **_BLIND}
            for ward in self._wards
            if ward.blind is not None
        ]
        return rows

    def words(self) -> str | None:
        """What happened lately, in one sentence."""
        return words(self.rows(), time.time())

    def figures(self) -> KeptFigures:
        """From any thread."""
        repairs = sum((ward.repairs.counts for ward in self._wards), Counter[str]())
        every = [ward.repairs for ward in self._wards]
        return KeptFigures(dict(repairs), sum(one.fights for one in every), sum(one.amiss for one in every))

    # -- inside -------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until a look is due, or something was heard and the rest of it has come."""
        pause = min(ward.due for ward in self._wards) - self._clock()
        try:
            async with asyncio.timeout(max(0.0, pause)):
                await self._watch.noticed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE)

    def _hear(self, notices: KernelNotices) -> None:
        for ward in self._wards:
            if notices.areas & ward.part.areas:
                ward.due = min(ward.due, ward.earliest)
                ward.program = notices.program(ward.part.areas) or ward.program

    async def _look(self, ward: _Ward) -> None:
        began = self._clock()
        ward.due = began + ward.part.interval
        try:
            differences = await ward.part.look()
        except VipmuxError as error:
            if ward.blind != str(error):
                log.error("cannot look at what is kept in the kernel", reason=str(error))
            ward.blind, ward.due = str(error), began + RETRY
            return
        ward.blind = None
        step = ward.repairs.step(self._clock(), differences)
        _say(step.sayings)
        if step.repair:
            await self._repair(ward, step.repair)
        if not differences:
            ward.program = None
        self._plan(ward, began)

    async def _repair(self, ward: _Ward, differences: Sequence[Difference]) -> None:
        try:
            await ward.part.put_back(differences)
        except VipmuxError as error:
            _say(ward.repairs.failed(self._clock(), differences, str(error)))
        else:
            by = str(ward.program) if ward.program is not None else None
            _say(ward.repairs.repaired(self._clock(), differences, by))

    def _plan(self, ward: _Ward, began: float) -> None:
        now, again_at = self._clock(), ward.repairs.again_at()
        ward.earliest = now + min((now - began) * (1 / SHARE - 1), PAUSE_MOST)
        if again_at is not None:
            ward.due = min(ward.due, again_at)
        ward.due = max(ward.due, ward.earliest)


_BLIND = {"became": "cannot be looked at", "count": 0, "last": None, "by": None, "amiss": True, "fight": False}
_ERRORS = {RepairEvent.NOT_PUT_BACK, RepairEvent.FIGHT}
_NEWS = {RepairEvent.RIGHT_AGAIN, RepairEvent.FIGHT_OVER}


def _say(sayings: Sequence[Saying]) -> None:
    for saying in sayings:
        level = log.error if saying.event in _ERRORS else log.info if saying.event in _NEWS else log.warning
        level(saying.event.value, thing=saying.thing, **saying.fields)


def metrics(figures: KeptFigures) -> Iterator[Metric]:
    """The same of every daemon."""
    repairs = CounterMetricFamily(
        "lb_kernel_repairs", "Things that this daemon put back into the kernel, by kind.", labels=["what"]
    )
    for what in (*KINDS, *sorted(figures.repairs.keys() - set(KINDS))):
        repairs.add_metric([what], figures.repairs.get(what, 0))
    yield repairs
    yield GaugeMetricFamily(
        "lb_kernel_fights", "Things in the kernel that another program undoes again and again.", value=figures.fights
    )
    yield GaugeMetricFamily(
        "lb_kernel_amiss", "Things in the kernel that are not as they should be now.", value=figures.amiss
    )
