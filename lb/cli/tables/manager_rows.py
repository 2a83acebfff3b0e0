# SPDX-License-Identifier: Apache-2.0
"""How the manager's answers look as tables: in the shape of ``ipvsadm -Ln --stats``, a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lb.cli.terminal.colour import BAD, painted, states
from lb.cli.terminal.output import size
from lb.cli.terminal.times import clock
from lb.tables.layout import columns, hanging, noted
from lb.tables.manager_tables import (
    BACKENDS,
    BACKENDS_BELOW,
    NUMBERS,
    Listing,
    announcements,
    backend_cells,
    backends,
    by_service,
    listed,
    node_words,
    reason,
    services,
)
from lb.tables.values import ago, cell, endpoint, rate

Row = dict[str, Any]


#: What was done takes some so many lines of a terminal at most, and never less than so many characters.
DONE_LINES, LEAST = 4, 120
#: Where an event's subject begins, after date, time and mark.
_TEXT_AT = 23


def _columns(
    header: Sequence[str], rows: Sequence[Sequence[Any]], right: Iterable[str], width: int | None
) -> list[str]:
    """States that somebody should look at have their colour, on a terminal."""
    return columns(header, rows, right, width, states(header))


def service_stats(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Exact counters, as wide as they are; for ``--stats``."""
    table = _columns(
        (
            "Prot",
            "LocalAddress:Port",
            "Service",
            "State",
            "Healthy",
            "Conns",
            "Live",
            "InPkts",
            "InBytes",
            "Announced by",
        ),
        [
            (
                str(row.get("protocol")).upper(),
                endpoint(row.get("vip"), row.get("port")),
                row.get("name"),
                row.get("state"),
                f"{row.get('healthy')}/{row.get('backends')}",
                row.get("flows_new"),
                row.get("flows"),
                row.get("packets"),
                _bytes(row.get("bytes")),
                row.get("announced_by"),
            )
            for row in rows
        ],
        ("Healthy", "Conns", "Live", "InPkts", "InBytes"),
        width,
    )
    return [*table, *noted(services(rows).notes, width)]


def backend_stats(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Exact counters, and every backend's reason beside it; for ``--stats``."""
    lines = [
        (*line, why)
        for some in by_service(rows)
        for line, why in zip(backend_cells(some, cell), ("", *map(reason, some)), strict=True)
    ]
    head, *below = _columns((*BACKENDS, "Reason"), lines, NUMBERS, width)
    return [head, BACKENDS_BELOW, *below]


def muxes(rows: Sequence[Row], width: int | None = None) -> list[str]:
    table = _columns(
        ("MUX", "State", "Since", "Address", "VIPs", "Flows", "IO", "BGP"),
        [
            (
                row.get("name"),
                row.get("state"),
                ago(row.get("since")),
                row.get("address") or row.get("address6"),
                _announces(row),
                rate(row.get("flows")),
                row.get("io"),
                _sessions(row),
            )
            for row in rows
        ],
        ("VIPs", "Flows"),
        width,
    )
    return [*table, *noted((_node_note(row) for row in rows), width)]


def _announces(row: Row) -> str:
    """How many VIPs routers hear of by it; and of how many that they should, where these are others."""
    wanted, now = row.get("announces"), row.get("announced")
    drained = row.get("drain") is not None
    return cell(wanted) if now is None or now == wanted or drained else f"{cell(now)}/{cell(wanted)}"


def agents(rows: Sequence[Row], width: int | None = None) -> list[str]:
    table = _columns(
        ("Agent", "State", "Since", "Address", "Services"),
        [
            (
                row.get("name"),
                row.get("state"),
                ago(row.get("since")),
                row.get("address") or row.get("address6"),
                row.get("services"),
            )
            for row in rows
        ],
        ("Services",),
        width,
    )
    return [*table, *noted((_node_note(row) for row in rows), width)]


def _node_note(row: Row) -> str | None:
    said = "; ".join(node_words(row))
    return f"{cell(row.get('name'))}: {said}" if said else None


def _listed(make: Callable[[Sequence[Row]], Listing]) -> Draw:
    def draw(rows: Sequence[Row], width: int | None = None) -> list[str]:
        table = make(rows)
        return listed(table, width, states(table.header))

    return draw


def events(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Columns for programs; on a terminal the text goes on beside its subject, for both are often long."""
    if width is None:
        return columns(
            ("Time", "", "Subject", "Event"),
            [(clock(row.get("at")), _mark(row), row.get("subject"), row.get("text")) for row in rows],
        )
    head = f"{'Time':<{_TEXT_AT}}Subject: event"
    found = [head]
    for row in rows:
        line = f"{clock(row.get('at'))} {_mark(row):<1}  {cell(row.get('subject'))}: {cell(row.get('text'))}"
        lines = hanging([line], width, _TEXT_AT)
        found += painted(lines, BAD) if row.get("bad") else lines
    return found


def _mark(row: Row) -> str:
    return "!" if row.get("bad") else ""


def audit(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """As of events: what was done may be long."""
    if width is None:
        return columns(
            ("Version", "Time", "Who", "What"),
            [(str(row.get("version")), clock(row.get("at")), row.get("who"), _done(row)) for row in rows],
            ("Version",),
        )
    lines = [
        f"{row.get('version')!s:>7}  {clock(row.get('at'))}  {cell(row.get('who'))}: {cell(_done(row))}" for row in rows
    ]
    return [f"Version  {'Time':<19}  Who: what", *hanging(lines, width, 9)]


def history(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """As the audit, but on a terminal each version is a few lines: one looks for which, and then at what it did."""
    if width is None:
        return audit(rows)
    most = max(LEAST, DONE_LINES * (width - 9) - 40)
    short = [
        {**row, "what": f"{what[:most].rstrip()} …"} if len(what := str(row.get("what"))) > most else row
        for row in rows
    ]
    cut = any(one is not row for one, row in zip(short, rows, strict=True))
    more = hanging(["… is cut: a pipe, -o json and `lb get audit` have all of it"], width) if cut else []
    return [*audit(short, width), *(["", *more] if more else [])]


def _done(row: Row) -> str:
    why = row.get("why")
    return f"{row.get('what')}" + (f" ({why})" if why else "")


#: Rows, and how wide a line may be (None: as wide as it gets).
Draw = Callable[[Sequence[Row], int | None], list[str]]

TABLES: dict[str, Draw] = {
    "services": _listed(services),
    "backends": _listed(backends),
    "muxes": muxes,
    "agents": agents,
    "announcements": _listed(announcements),
    "events": events,
    "history": history,
    "audit": audit,
}


#: Those whose cells the manager makes.
LISTED = ("services", "backends", "announcements")

#: With ``--stats``.
STATS: dict[str, Draw] = {"services": service_stats, "backends": backend_stats}


def _bytes(value: Any) -> str | None:
    return size(value) if isinstance(value, int) else None


def _sessions(row: Row) -> str | None:
    peers = row.get("peers") or []
    if not peers:
        return None
    up = sum(peer.get("state") == "established" for peer in peers)
    return f"{up}/{len(peers)}"
