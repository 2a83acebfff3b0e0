# SPDX-License-Identifier: Apache-2.0
"""The tables of ``lb get``: which rows each has (:mod:`lb.rows`), and how they are drawn on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from lb.cli.terminal.colour import BAD, painted, states
from lb.rows.announcement import AnnouncementRow
from lb.rows.backend import BackendRow
from lb.rows.event import EventRow, VersionRow
from lb.rows.node import AgentRow, MuxRow
from lb.rows.row import Row
from lb.rows.service import ServiceRow
from lb.rows.status import StatusRow
from lb.rows.table import listed, listing
from lb.tables.layout import hanging
from lb.tables.values import cell, clock

#: The audit's lines are read without what they changed, which may be long.
TABLES: dict[str, type[Row]] = {
    "services": ServiceRow,
    "backends": BackendRow,
    "muxes": MuxRow,
    "agents": AgentRow,
    "announcements": AnnouncementRow,
    "events": EventRow,
    "history": VersionRow,
    "audit": VersionRow,
    "status": StatusRow,
}
#: Those that the manager draws, where nothing has to be folded.
DRAWN = ("services", "backends", "announcements")
#: Those that have wide tables with exact counters.
STATS = ("services", "backends")

#: What was done takes some so many lines of a terminal at most, and never less than so many characters.
DONE_LINES, LEAST = 4, 120
#: Where an event's subject begins, after date, time and mark.
_TEXT_AT = 23


def draw(what: str, rows: Sequence[Any], width: int | None = None, *, stats: bool = False) -> list[str]:
    """The lines of a table, none longer than ``width`` where it can be folded so far; None: as wide as it gets.
    States that somebody should look at have their colour, on a terminal."""
    text = _TEXTS.get(what)
    if text is not None and width is not None:
        return text(rows, width)
    found = listing(TABLES[what], rows, stats=stats)
    return listed(found, width, states(found.table.header))


def _events(rows: Sequence[EventRow], width: int) -> list[str]:
    """The text goes on beside its subject, for both are often long."""
    found = [f"{'Time':<{_TEXT_AT}}Subject: event"]
    for row in rows:
        line = f"{clock(row.at)} {row.mark():<1}  {cell(row.subject)}: {cell(row.text)}"
        lines = hanging([line], width, _TEXT_AT)
        found += painted(lines, BAD) if row.bad else lines
    return found


def _audit(rows: Sequence[VersionRow], width: int) -> list[str]:
    """As of events: what was done may be long."""
    lines = [f"{row.version!s:>7}  {clock(row.at)}  {cell(row.who)}: {cell(row.done())}" for row in rows]
    return [f"Version  {'Time':<19}  Who: what", *hanging(lines, width, 9)]


def _history(rows: Sequence[VersionRow], width: int) -> list[str]:
    """As the audit, but each version is a few lines: one looks for which, and then at what it did."""
    most = max(LEAST, DONE_LINES * (width - 9) - 40)
    shown = [replace(row, what=f"{row.what[:most].rstrip()} …") if len(row.what) > most else row for row in rows]
    cut = any(one is not row for one, row in zip(shown, rows, strict=True))
    more = hanging(["… is cut: a pipe, -o json and `lb get audit` have all of it"], width) if cut else []
    return [*_audit(shown, width), *(["", *more] if more else [])]


#: Tables that are texts on a terminal; columns elsewhere, for programs.
_TEXTS: dict[str, Callable[[Sequence[Any], int], list[str]]] = {
    "events": _events,
    "history": _history,
    "audit": _audit,
}
