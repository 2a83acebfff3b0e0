# SPDX-License-Identifier: Apache-2.0
"""What happened, in words: the last few thousand changes of backends, VIPs and nodes, each with its reason.

Written by :mod:`manager.controller.controller`, which also keeps them in the store, a moment later and several at once;
read by ``lb get events`` and ``lb describe``. Every event is a line of the log as well, which is where older ones are
found. What operators changed is here in short, and in the audit in full and for ever. Pure.

Whatever flaps must not push out all the rest: of one object there are no more than PER_MINUTE within a minute, some of
which are for bad news alone, so that much good news never hides it. What is
left out then is counted, and at the end of the minute one event says how many there were and what the last of them was.
As long as that goes on, one at once and that one are all of a minute. What operators did is never left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from lb.daemon.supervise import describe
from lb.model import BackendState
from manager.plan.model import BackendPlan, Plan, VipPlan, why_idle
from manager.store.interface import Event

KEPT = 5000
#: Of one object, before others are left out until the minute is over.
PER_MINUTE = 30
#: So many of these are for bad ones alone.
FOR_BAD = 10
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events somebody wants to see; what is None does not matter."""

    subject: str | None = None  #: "backend web/web-1", a kind ("mux"), or a name ("mux1"; "web" and all its backends)
    since: float | None = None  #: Unix time
    after: int | None = None  #: a number
    bad: bool = False  #: only the bad ones

    def __call__(self, event: Event) -> bool:
        return (
            (not self.bad or event.bad)
            and (self.since is None or event.at >= self.since)
            and (self.after is None or event.id > self.after)
            and (self.subject is None or _is_about(event.subject, self.subject))
        )


ANY = Wanted()


def _is_about(subject: str, wanted: str) -> bool:
    kind, _, name = subject.partition(" ")
    if wanted in (subject, kind, name, name.partition("/")[0]):
        return True
    return kind == "vip" and wanted.removeprefix("vip ") == name.partition("/")[0]


@dataclass(slots=True)
class _Minute:
    """One object's, from its first event on."""

    ends: float  #: by the steady clock
    room: int
    for_bad: int = 0  #: so much of it
    left_out: int = 0
    bad: bool = False  #: one of those
    last: str = ""


class Events:
    """The latest events."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        """``steady``: a clock that nobody sets, seconds."""
        self._steady = steady
        self._minutes: dict[str, _Minute] = {}  # by subject; the first to end is the first
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._unkept: deque[Event] = deque(maxlen=KEPT)
        self._id = 0

    @property
    def last(self) -> int:
        """The number of the latest."""
        return self._id

    def load(self, events: Iterable[Event]) -> None:
        """From the store, before any other."""
        self._events.extend(events)
        self._id = self._events[-1].id if self._events else 0

    def add(self, at: float, subject: str, text: str, *, bad: bool = False, always: bool = False) -> Event | None:
        """None: it is left out, for there are too many of this object. ``always``: it is not."""
        self.tick(at)
        if not always:
            minute = self._minutes.setdefault(subject, _Minute(self._steady() + _MINUTE, PER_MINUTE, FOR_BAD))
            if minute.room <= (0 if bad else minute.for_bad):
                minute.left_out, minute.bad, minute.last = minute.left_out + 1, minute.bad or bad, text
                return None
            minute.room -= 1
        return self._add(at, subject, text, bad=bad)

    def tick(self, at: float, *, last: bool = False) -> bool:
        """Says what was left out in minutes that are over, or with ``last`` in all; whether there was something."""
        now, said = self._steady(), False
        for subject in list(self._minutes) if last else self._over(now):
            minute = self._minutes.pop(subject)
            if minute.left_out:
                more = (
                    f"{minute.left_out} more, which the log has, were left out within a minute; the last: {minute.last}"
                )
                self._add(at, subject, more, bad=minute.bad)
                self._minutes[subject] = _Minute(now + _MINUTE, 1)
                said = True
        return said

    def _over(self, now: float) -> list[str]:
        return [subject for subject, _ in takewhile(lambda item: item[1].ends <= now, self._minutes.items())]

    def _add(self, at: float, subject: str, text: str, *, bad: bool) -> Event:
        self._id += 1
        event = Event(self._id, at, subject, text, bad)
        self._events.append(event)
        self._unkept.append(event)
        return event

    def take_unkept(self) -> list[Event]:
        """For the store. If it fails, they are given back to :meth:`not_kept`."""
        taken = list(self._unkept)
        self._unkept.clear()
        return taken

    def not_kept(self, events: Sequence[Event]) -> None:
        """Of these and those since, the latest are tried again."""
        self._unkept = deque([*events, *self._unkept], maxlen=KEPT)

    def latest(self, limit: int, wanted: Callable[[Event], bool] = lambda _: True) -> list[Event]:
        """The oldest of them first."""
        return list(islice((event for event in reversed(self._events) if wanted(event)), limit))[::-1]


def about(subjects: Collection[str]) -> Callable[[Event], bool]:
    return lambda event: event.subject in subjects


def differences(old: Plan, new: Plan, vips: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """What another plan of some VIPs means, as (subject, text, whether it is bad)."""
    for vip in vips:
        before, after = old.vips.get(vip), new.vips.get(vip)
        if (vip in old.failed) != (vip in new.failed):
            yield from _failed(vip, new)
        if before is not after:
            yield from _backends(before, after)
            yield from _panic(before, after)
            yield from _idle(before, after)
            yield from _announced(vip, before, after)
    for mux, waits in new.drains.items():
        if old.drains.get(mux, "") != waits:
            yield f"mux {mux}", "is told to drain" if waits is None else f"should drain, but {waits}", waits is not None


def _failed(vip: str, new: Plan) -> Iterator[tuple[str, str, bool]]:
    if vip in new.failed:
        text = f"cannot be planned, and stays as it is: {describe(new.failed[vip])}; please report it"
        yield f"vip {vip}", text, True
    else:
        yield f"vip {vip}", "can be planned again", False


def _backends(before: VipPlan | None, after: VipPlan | None) -> Iterator[tuple[str, str, bool]]:
    old = {item.key: item for item in before.backends} if before else {}
    for item in after.backends if after else ():
        was = old.get(item.key)
        if was is None or was.shown != item.shown:
            came_from = f"{was.shown} → " if was is not None else ""
            bad = item.shown in ("down", "panic")
            yield f"backend {item.service}/{item.backend.name}", f"{came_from}{item.shown}: {item.reason}", bad
        if (item.ramp is None) != (was is None or was.ramp is None):
            yield f"backend {item.service}/{item.backend.name}", _slow_start(item), False


def _slow_start(item: BackendPlan) -> str:
    if item.ramp is not None:
        return f"slow start: it comes to its weight, {item.backend.weight}, within {item.ramp.seconds:g} s"
    return "slow start is over" + (": it has its whole weight" if item.state is BackendState.UP else "")


def _panic(before: VipPlan | None, after: VipPlan | None) -> Iterator[tuple[str, str, bool]]:
    old = before.panic if before else {}
    new = after.panic if after else {}
    for service, reason in new.items():
        if service not in old:
            yield f"service {service}", reason, True
    for service in old:
        if service not in new:
            yield f"service {service}", "panic is over", False


def _idle(before: VipPlan | None, after: VipPlan | None) -> Iterator[tuple[str, str, bool]]:
    """Services whose last backend takes no new flows any more: it is down, drained, or of weight 0."""
    old, new = _by_service(before), _by_service(after)
    for service in old.keys() & new.keys():
        idle, was = why_idle(new[service]), why_idle(old[service])
        if idle is not None and was is None:
            yield f"service {service}", idle, True
        elif was is not None and idle is None and any(_took(item) for item in old[service]):
            yield f"service {service}", "a backend takes new flows again", False


def _took(item: BackendPlan) -> bool:
    """Whether it may have taken flows at some time: a service that is new has nothing again."""
    return item.shown not in ("installing", "unknown") or not item.backend.weight


def _by_service(found: VipPlan | None) -> dict[str, list[BackendPlan]]:
    services: dict[str, list[BackendPlan]] = {}
    for item in found.backends if found else ():
        services.setdefault(item.service, []).append(item)
    return services


def _announced(vip: str, before: VipPlan | None, after: VipPlan | None) -> Iterator[tuple[str, str, bool]]:
    old = before.granted if before else frozenset()
    new = after.granted if after else frozenset()
    come, gone = sorted(new - old), sorted(old - new)
    if come:
        yield f"vip {vip}", f"to be announced by {', '.join(come)}", False
    for mux in gone:
        reason = after.withheld.get(mux, "it is not one of ours any more") if after else "its services were deleted"
        yield f"vip {vip}", f"to be withdrawn by {mux}: {reason}", True
