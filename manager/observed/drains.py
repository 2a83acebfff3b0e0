# SPDX-License-Identifier: Apache-2.0
"""What is left of what drains: flows of backends, announcements and packets of MUXes, as MUXes tell. Decides nothing.

A MUX tells of a backend that drains how many flows it has left, counted when no new ones came any more. So nothing is
left once every MUX that may still get packets has told of none. A flow that several MUXes know, because one told the
others of it, is that one's; where none has it for its own any more (it died), it is left where most of such are.
:mod:`manager.controller.controller` asks :class:`Emptied` on its clock, and :mod:`manager.api.view` shows what
:func:`left_of` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from manager.nodes.hub import Entry, rows
from manager.observed.announcements import HEARD
from manager.plan.model import MUX

#: Service and backend.
Label = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Left:
    """What one MUX has left of a backend's flows; None: not known, and ``why``."""

    mux: str
    flows: int | None
    why: str | None = None


def left_of(label: Label, entries: Iterable[Entry], drains: Mapping[str, str | None]) -> list[Left]:
    """By MUX. ``drains``: of the plan, the MUXes that shall drain."""
    found: list[Left] = []
    copies: dict[str, int] = {}
    for entry in entries:
        name = entry.record.name
        if entry.record.kind != MUX or entry.gone or withdrawn(entry, drains):
            continue  # no packet comes to it
        if entry.connection is None:
            found.append(Left(name, None, "it is not connected"))
            continue
        told = next(
            (row for row in rows(entry.status, "drains") if (row.get("service"), row.get("name")) == label), None
        )
        flows = told.get("flows") if told is not None else None
        if told is not None and isinstance(flows, int):
            theirs = told.get("copies")
            copies[name] = min(flows, theirs) if isinstance(theirs, int) and theirs > 0 else 0
            found.append(Left(name, flows - copies[name]))
        else:
            found.append(Left(name, None, "it has not counted them yet"))
    if not any(item.flows for item in found) and any(copies.values()):
        most = max(copies, key=lambda name: copies[name])
        found = [Left(most, copies[most]) if item.mux == most else item for item in found]
    return sorted(found, key=lambda left: left.mux)


def withdrawn(entry: Entry, drains: Mapping[str, str | None]) -> bool:
    """Whether a MUX was told to drain and no router hears of it any more."""
    return drains.get(entry.record.name, "no") is None and announced(entry) == 0


def announced(entry: Entry) -> int | None:
    """How many VIPs a MUX announces to anybody; None: it has not told."""
    if entry.connection is None or "announcements" not in entry.status:
        return None
    return len({str(row.get("vip")) for row in rows(entry.status, "announcements") if row.get("state") in HEARD})


@dataclass(slots=True)
class Emptied:
    """Since when drained backends have no flow left. In memory only: a manager that starts anew hears it anew."""

    since: dict[Label, float] = field(default_factory=dict)

    def look(self, now: float, entries: Iterable[Entry], drains: Mapping[str, str | None]) -> list[tuple[Label, bool]]:
        """What changed: backends that have no flow left since now (True), or have some again (False)."""
        entries = list(entries)
        told = {label for entry in entries if entry.record.kind == MUX for label in _labels(entry)}
        changed = []
        for label in sorted(told):
            left = left_of(label, entries, drains)
            if bool(left) and all(item.flows == 0 for item in left):
                if label not in self.since:
                    self.since[label] = now
                    changed.append((label, True))
            elif any(item.flows for item in left) and self.since.pop(label, None) is not None:
                changed.append((label, False))
        for label in self.since.keys() - told:  # no drain any more
            del self.since[label]
        return changed


def _labels(entry: Entry) -> list[Label]:
    return [
        (row["service"], row["name"])
        for row in rows(entry.status, "drains")
        if isinstance(row.get("service"), str) and isinstance(row.get("name"), str)
    ]
