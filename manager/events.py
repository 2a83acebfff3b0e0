# SPDX-License-Identifier: Apache-2.0
"""What happened, in words: the last few thousand changes of backends, VIPs and nodes, each with its reason.

Written by :mod:`manager.controller`, read by ``lb get events`` and ``lb describe``. Every event is a line of the log
as well, which is where older ones are found. Who changed what is not here but in the audit, which lasts.
:func:`differences` is pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lb.model import BackendState
from manager.plan import BackendPlan, Plan, VipPlan

KEPT = 5000


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    id: int
    at: float  #: Unix time
    subject: str  #: "backend web/web-1", "vip 203.0.113.10/32", "mux mux1", "agent host1", "service web"
    text: str
    bad: bool = False


class Events:
    """The latest events."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._id = 0

    def add(self, at: float, subject: str, text: str, *, bad: bool = False) -> Event:
        self._id += 1
        event = Event(self._id, at, subject, text, bad)
        self._events.append(event)
        return event

    def latest(self, limit: int, subjects: Iterable[str] | None = None) -> list[Event]:
        """The oldest of them first."""
        wanted = None if subjects is None else set(subjects)
        found = []
        for event in reversed(self._events):
            if wanted is None or event.subject in wanted:
                found.append(event)
                if len(found) == limit:
                    break
        return found[::-1]


def differences(old: Plan, new: Plan, vips: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """What another plan of some VIPs means, as (subject, text, whether it is bad)."""
    for vip in vips:
        before, after = old.vips.get(vip), new.vips.get(vip)
        if before is not after:
            yield from _backends(before, after)
            yield from _panic(before, after)
            yield from _announced(vip, before, after)
    for mux, waits in new.drains.items():
        if old.drains.get(mux, "") != waits:
            yield f"mux {mux}", "is told to drain" if waits is None else f"shall drain, but {waits}", waits is not None


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


def _announced(vip: str, before: VipPlan | None, after: VipPlan | None) -> Iterator[tuple[str, str, bool]]:
    old = before.granted if before else frozenset()
    new = after.granted if after else frozenset()
    come, gone = sorted(new - old), sorted(old - new)
    if come:
        yield f"vip {vip}", f"to be announced by {', '.join(come)}", False
    for mux in gone:
        reason = after.withheld.get(mux, "it is not one of ours any more") if after else "its services were deleted"
        yield f"vip {vip}", f"to be withdrawn by {mux}: {reason}", True
