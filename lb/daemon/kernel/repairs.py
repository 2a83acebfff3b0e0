# SPDX-License-Identifier: Apache-2.0
"""What to do about things in the kernel that are not as this daemon made them. Pure: time and differences in, repairs
and sayings out; :mod:`lb.daemon.kernel.keeper` looks, performs and logs.

A thing of ours is always in one of these states:

    state     | what happens                         | then
    ----------+--------------------------------------+----------------------------------------------------------
    right     | it is missing or another             | repair at once; said; still *right*
    right     | ... more than 5 times in 60 seconds  | *fought over*: said once, with the other program's name
    fought    | it is missing or another             | repair after a pause: 2 s, twice as long each time, 60 at most
    fought    | nothing for twice the pause (60 s)   | *right*; said, with how often it was put back
    any       | a repair fails                       | *broken*: the reason is said once; again after 1 s, 2, 4, ... 30
    broken    | a repair works, or it is right again | as before; said
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

#: More repairs of one thing than this within the window are a fight, seconds.
FIGHT_REPAIRS = 5
FIGHT_WINDOW = 60.0
#: Between repairs of what is fought over: at first, and at most, seconds.
PAUSE_FIRST, PAUSE_MOST = 2.0, 60.0
#: Between attempts at what could not be repaired, seconds.
RETRY_FIRST, RETRY_MOST = 1.0, 30.0
#: Things that have been right for so long are forgotten, but for the last few; seconds.
FORGET = 3600.0
REMEMBERED = 50
#: Things named in one line of the log.
SHOWN = 5
#: A repair is news for so long, seconds.
LATELY = 3600.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Something of ours that is not as we made it."""

    what: str  #: its kind, one of few: ``nftables``, ``address``, ``route``, ``rule``, ``filter``, ``sysctl``, ...
    name: str  #: in words, as an operator would look for it: ``table inet vipmux_mux1``
    became: str = "was removed"  #: what happened to it, as the sentence goes on
    urgent: bool = False  #: nothing works without it: fought over, it is put back after 2 s all the same


class RepairEvent(enum.Enum):
    """What a saying is about; its value is the event in the log."""

    PUT_BACK = "put back"
    NOT_PUT_BACK = "cannot be put back"
    RIGHT_AGAIN = "right again"
    FIGHT = "another program undoes it again and again"
    FIGHT_OVER = "left alone again"


@dataclass(frozen=True, slots=True)
class Saying:
    """One line for the log."""

    event: RepairEvent
    names: tuple[str, ...]
    fields: Mapping[str, Any]

    @property
    def thing(self) -> str:
        """All of a few names, a few of many."""
        more = len(self.names) - SHOWN
        return ", ".join(self.names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class RepairStep:
    """What to do now."""

    repair: tuple[Difference, ...]
    sayings: tuple[Saying, ...]


@dataclass(slots=True)
class _Thing:
    """One thing's history."""

    difference: Difference
    times: deque[float] = field(default_factory=lambda: deque(maxlen=FIGHT_REPAIRS + 1))  # of the last repairs
    count: int = 0
    by: str | None = None
    pause: float = 0.0  # fought over: how long the next repair waits
    fought_from: int = 0  # the count when the fight began
    broken: str | None = None  # why it could not be repaired
    retry: float = RETRY_FIRST
    not_before: float = 0.0
    amiss: bool = False  # at the last look

    @property
    def last(self) -> float:
        return self.times[-1] if self.times else 0.0

    def fight_ends(self) -> float:
        return self.last + max(FIGHT_WINDOW, 2 * self.pause)

    def quiet(self) -> bool:
        return not (self.amiss or self.pause or self.broken)


class Repairs:
    """The history of all things of one part of the kernel. One caller at a time: a step, then what became of it."""

    def __init__(self) -> None:
        self._things: dict[tuple[str, str], _Thing] = {}
        self.counts: Counter[str] = Counter()  #: repairs since the start, by kind

    def step(self, now: float, differences: Iterable[Difference]) -> RepairStep:
        """``differences``: all that a look has found. Seconds of any monotonic clock."""
        seen = {(found.what, found.name): found for found in differences}
        sayings = _Sayings()
        repair: list[Difference] = []
        for key, found in seen.items():
            thing = self._things.setdefault(key, _Thing(found))
            thing.difference, thing.amiss = found, True
            if now >= thing.not_before:
                repair.append(found)
        for key, thing in self._things.items():
            if key in seen:
                continue
            thing.amiss = False
            if thing.broken is not None:
                thing.broken, thing.retry = None, RETRY_FIRST
                sayings.add(RepairEvent.RIGHT_AGAIN, thing.difference.name)
            if thing.pause and now >= thing.fight_ends():
                sayings.add(RepairEvent.FIGHT_OVER, thing.difference.name, put_back=thing.count - thing.fought_from)
                thing.pause = 0.0
        self._forget(now)
        return RepairStep(tuple(repair), sayings.all())

    def repaired(self, now: float, differences: Iterable[Difference], by: str | None = None) -> tuple[Saying, ...]:
        """These were put back; ``by``: who made it necessary, if that is known."""
        sayings = _Sayings()
        for found in differences:
            thing = self._things[found.what, found.name]
            self.counts[found.what] += 1
            thing.count += 1
            thing.times.append(now)
            thing.by = by or thing.by
            thing.amiss, thing.broken, thing.retry = False, None, RETRY_FIRST
            who = {"by": by} if by else {}
            if thing.pause:
                thing.pause = PAUSE_FIRST if found.urgent else min(2 * thing.pause, PAUSE_MOST)
            elif len(thing.times) > FIGHT_REPAIRS and now - thing.times[0] <= FIGHT_WINDOW:
                thing.pause, thing.fought_from = PAUSE_FIRST, thing.count - len(thing.times)
                sayings.add(
                    RepairEvent.FIGHT, found.name, **({"by": thing.by} if thing.by else {}), times=len(thing.times)
                )
            else:
                sayings.add(RepairEvent.PUT_BACK, found.name, reason=f"it {found.became}", **who)
            thing.not_before = now + thing.pause
        return sayings.all()

    def failed(self, now: float, differences: Iterable[Difference], reason: str) -> tuple[Saying, ...]:
        """These could not be put back, or at least not all of them."""
        sayings = _Sayings()
        for found in differences:
            thing = self._things[found.what, found.name]
            if thing.broken != reason:
                sayings.add(RepairEvent.NOT_PUT_BACK, found.name, was=f"it {found.became}", reason=reason)
            thing.broken = reason
            thing.not_before = now + thing.retry
            thing.retry = RETRY_FIRST if found.urgent else min(2 * thing.retry, RETRY_MOST)
        return sayings.all()

    def again_at(self) -> float | None:
        """A look is due then, for what is not right yet or fought over; None: there is no hurry."""
        return min(
            (
                thing.not_before if thing.amiss else thing.fight_ends()
                for thing in self._things.values()
                if thing.amiss or thing.pause
            ),
            default=None,
        )

    # -- what is told of it -------------------------------------------------------------------------------------

    def rows(self, now: float, wall: float) -> list[dict[str, Any]]:
        """The things that needed repairs, those that need one first, then the latest. ``last`` is Unix time."""
        things = sorted(self._things.values(), key=lambda thing: (thing.quiet(), -thing.last))
        return [
            {
                "what": thing.difference.what,
                "name": thing.difference.name,
                "became": thing.difference.became,
                "count": thing.count,
                "last": round(wall - (now - thing.last), 3) if thing.count else None,
                "by": thing.by,
                "amiss": thing.amiss,
                "fight": bool(thing.pause),
                "failed": thing.broken,
            }
            for thing in things[:REMEMBERED]
        ]

    @property
    def fights(self) -> int:
        return sum(bool(thing.pause) for thing in self._things.values())

    @property
    def amiss(self) -> int:
        """Things that are not as they should be at this moment."""
        return sum(thing.amiss for thing in self._things.values())

    def _forget(self, now: float) -> None:
        if len(self._things) <= REMEMBERED:
            return
        old = [key for key, thing in self._things.items() if thing.quiet() and now - thing.last > FORGET]
        for key in old[: len(self._things) - REMEMBERED]:
            del self._things[key]


def words(rows: Iterable[Mapping[str, Any]], wall: float) -> str | None:
    """A sentence about the rows of :meth:`Repairs.rows`, for a table of nodes; None where nothing happened lately."""
    rows = list(rows)
    fights = [f"{_FIGHT} {row['name']} again and again{_by(row)}" for row in rows if row["fight"]]
    broken = [f"{_BROKEN} {row['name']}: {row['failed']}" for row in rows if row["failed"]]
    lately = [row for row in rows if row["count"] and not row["fight"] and wall - row["last"] < LATELY]
    done = [f"put back {row['name']}, which {row['became']}{_by(row)}" for row in lately]
    said = fights + broken + done
    return None if not said else said[0] + (f"; and {len(said) - 1} more" if len(said) > 1 else "")


def goes_on(said: object) -> TypeGuard[str]:
    """Whether :func:`words` tell of what is not over: of a fight, or of what cannot be put back."""
    return isinstance(said, str) and said.startswith((_FIGHT, _BROKEN))


_FIGHT, _BROKEN = "another program undoes", "cannot put back"


def _by(row: Mapping[str, Any]) -> str:
    return f" by {row['by']}" if row["by"] else ""


class _Sayings:
    """Groups what is to be said alike of several things."""

    def __init__(self) -> None:
        self._names: dict[tuple[RepairEvent, tuple[tuple[str, Any], ...]], list[str]] = {}

    def add(self, event: RepairEvent, name: str, **fields: Any) -> None:
        self._names.setdefault((event, tuple(fields.items())), []).append(name)

    def all(self) -> tuple[Saying, ...]:
        return tuple(Saying(event, tuple(names), dict(fields)) for (event, fields), names in self._names.items())
