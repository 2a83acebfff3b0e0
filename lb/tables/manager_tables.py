# SPDX-License-Identifier: Apache-2.0
"""The tables of services, backends and announcements as text, made where the rows are: in the manager.

There may be sixty thousand rows. As JSON objects they take a second to be written, read and drawn; as columns, each of
which is one text with a line for each row, a tenth of it. :mod:`manager.api.json_rows` makes a :class:`Listing` of what
it keeps, and draws it for who takes it as wide as it is; :mod:`lb.cli.tables.manager_rows` draws it for a terminal, or
makes one of rows that it follows. Pure; starts quickly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lb.tables.layout import Paint, drawn, noted
from lb.tables.values import ago, cell, endpoint, rate

Row = Mapping[str, Any]

#: Backends that one sentence names.
_NAMED = 3
#: Printable ASCII, and the end of a line.
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n"
#: Columns of numbers, in all tables of the manager.
NUMBERS = frozenset({"Up", "Flows", "Pkts", "MUXes", "Weight", "InPkts"})


@dataclass(frozen=True, slots=True)
class Listing:
    """A table before anybody knows how wide it may be."""

    header: tuple[str, ...]
    columns: Sequence[Sequence[str]]  #: the cells of each; or already those of several lines, each on a line
    notes: Sequence[str] = ()  #: sentences that stand below

    def text(self) -> str:
        """A line of JSON about it, and below it the cells, a line each, column by column: as JSON they would have to be
        quoted and read once more."""
        columns = ["\n".join(column) for column in self.columns]
        rows = columns[0].count("\n") + 1 if columns and self.columns[0] else 0
        head = json.dumps({"header": self.header, "rows": rows, "notes": self.notes}, ensure_ascii=False)
        return "\n".join([head, *columns] if rows else [head])

    @classmethod
    def parse(cls, text: str) -> Listing:
        """What :meth:`text` gave; whatever a terminal could take for an order is gone. Raises ValueError."""
        lines = harmless(text).split("\n")
        try:
            head = json.loads(lines[0])
            header, rows = tuple(cell(str(name)) for name in head["header"]), int(head["rows"])
            notes = [cell(str(note)) for note in head["notes"]]
        except (KeyError, TypeError):
            raise ValueError("no table") from None
        if rows < 0 or len(lines) != 1 + rows * len(header):
            raise ValueError("another number of cells than there should be")
        return cls(header, [lines[1 + i * rows : 1 + (i + 1) * rows] for i in range(len(header))], notes)


def harmless(text: str) -> str:
    """Without what a terminal could take for an order; lines stay lines."""
    if text.isascii() and not text.encode().translate(None, _PLAIN):  # the quickest look at a million characters
        return text
    return "\n".join(map(cell, text.split("\n")))


def listed(listing: Listing, width: int | None = None, paint: Paint | None = None) -> list[str]:
    """Its lines, none longer than ``width`` where the columns can be folded so far."""
    head, *lines = drawn(listing.header, listing.columns, NUMBERS, width, paint or {})
    return framed(listing, head, lines, width)


def framed(listing: Listing, head: str, lines: Iterable[str], width: int | None = None) -> list[str]:
    """The drawn lines below their header and above the notes."""
    second = [BACKENDS_BELOW] if listing.header == BACKENDS else []
    return [head, *second, *lines, *noted(listing.notes, width)]


# --- services --------------------------------------------------------------------------------------------------------

SERVICES = ("Prot", "LocalAddress:Port", "Service", "State", "Up", "Flows", "Pkts", "MUXes")
#: Where the counters are among them.
SERVICE_NUMBERS = {5: "flows", 6: "packets"}


def service_cells(row: Row) -> tuple[str, ...]:
    """``TCP  203.0.113.10:80  web  up  2/2 …``."""
    return (
        cell(str(row.get("protocol")).upper()),
        endpoint(row.get("vip"), row.get("port")),
        cell(row.get("name")),
        cell(row.get("state")),
        f"{row.get('healthy')}/{row.get('backends')}",
        rate(row.get("flows")),
        rate(row.get("packets")),
        _announced(row),
    )


def announced_anew(cells: tuple[str, ...], row: Row) -> tuple[str, ...]:
    """The cells of a service that others announce than before."""
    return (*cells[:-1], _announced(row))


def _announced(row: Row) -> str:
    """How many MUXes announce it; and of how many that should, where these are others."""
    by, wanted = row.get("announced_by") or (), row.get("wanted_by")
    return str(len(by)) if wanted is None or set(by) == set(wanted) else f"{len(by)}/{len(wanted)}"


def service_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """``notes``: what is to be said, and of which services."""
    return [f"{cell(_some(names))}: {cell(note)}" for note, names in notes.items()]


def services(rows: Iterable[Row]) -> Listing:
    found = list(rows)
    notes: dict[str, list[str]] = {}
    for row in found:
        if row.get("note"):
            notes.setdefault(str(row["note"]), []).append(str(row.get("name")))
    return Listing(SERVICES, _columns([service_cells(row) for row in found], len(SERVICES)), service_notes(notes))


# --- backends --------------------------------------------------------------------------------------------------------

BACKENDS = ("Prot LocalAddress:Port", "Service", "State", "Weight", "Flows", "InPkts")
#: What stands in the lines of backends, below the header.
BACKENDS_BELOW = "  -> RemoteAddress:Port"
BACKEND_NUMBERS = {4: "flows", 5: "packets"}
#: State and reason -> the backends of which that is true, each with its service.
Because = dict[tuple[str, str], list[str]]


def by_service(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Those of a service follow each other."""
    for _, some in groupby(rows, lambda row: row.get("service")):
        yield list(some)


def backend_cells(rows: Sequence[Row], number: Callable[[Any], str] = rate) -> tuple[tuple[str, ...], ...]:
    """Of a service's backends: a line for the service, and ``-> …`` below it for each of them."""
    first = rows[0]
    place = endpoint(first.get("vip"), first.get("service_port"))
    return (
        (f"{cell(first.get('protocol')).upper():<4} {place}", cell(first.get("service")), "", "", "", ""),
        *(
            (
                f"  -> {endpoint(row.get('address'), row.get('port'))}",
                cell(row.get("name")),
                "drained" if row.get("empty_since") is not None else cell(row.get("state")),
                cell(row.get("weight")),
                number(row.get("flows")),
                number(row.get("packets")),
            )
            for row in rows
        ),
    )


def unwell(rows: Iterable[Row]) -> Because:
    """Of backends that are up there is nothing to explain; `lb describe backend` does."""
    found: Because = {}
    for row in rows:
        if row.get("state") not in ("up", None) or not row.get("healthy", True):
            why = cell(row.get("state")), cell(reason(row))
            found.setdefault(why, []).append(f"{cell(row.get('service'))}/{cell(row.get('name'))}")
    return found


def reason(row: Row) -> Any:
    """Why a backend is in its state."""
    empty = row.get("empty_since")
    return row.get("reason") if empty is None else f"no flow left for {ago(empty)}; {row.get('reason')}"


def backend_notes(because: Because) -> list[str]:
    return [f"{_some(names)} {state}: {why}" for (state, why), names in because.items()]


def backends(rows: Iterable[Row]) -> Listing:
    found = list(by_service(rows))
    lines = [line for some in found for line in backend_cells(some)]
    return Listing(
        BACKENDS, _columns(lines, len(BACKENDS)), backend_notes(unwell(row for some in found for row in some))
    )


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


# --- nodes -----------------------------------------------------------------------------------------------------------


def node_words(row: Row) -> list[str]:
    """What of a MUX or an agent is not as it should be, or worth knowing."""
    live, wanted = row.get("generation"), row.get("wanted")
    words = [
        f"has generation {cell(live)} of {cell(wanted)}" if live != wanted else None,
        f"refused its state: {cell(row['refused'])}" if row.get("refused") else None,
        *(f"leaves out {cell(name)}: {cell(why)}" for name, why in (row.get("left_out") or {}).items()),
        *(cell(row[key]) for key in ("repaired", "differs", "clock", "saturated", "drain", "handover") if row.get(key)),
    ]
    return [word for word in words if word]


# --- announcements ---------------------------------------------------------------------------------------------------

ANNOUNCEMENTS = ("VIP", "MUX", "Wanted", "Peer", "State")


#: MUX and reason -> the VIPs of which that is true.
Withheld = dict[tuple[str, str], list[str]]


def announcement_columns(rows: Sequence[Row]) -> tuple[list[str], ...]:
    return tuple([cell(row.get(name.lower())) for row in rows] for name in ANNOUNCEMENTS)


def withheld(rows: Iterable[Row]) -> Withheld:
    """What a VIP is not announced for, or not yet."""
    found: Withheld = {}
    for row in rows:
        if row.get("reason"):
            found.setdefault((cell(row.get("mux")), cell(row["reason"])), []).append(cell(row.get("vip")))
    return found


def announcement_notes(because: Withheld) -> list[str]:
    return [
        f"{mux}, {vips[0] if len(vips) == 1 else f'{len(vips):,} VIPs'}: {why}" for (mux, why), vips in because.items()
    ]


def announcements(rows: Sequence[Row]) -> Listing:
    return Listing(ANNOUNCEMENTS, announcement_columns(rows), announcement_notes(withheld(rows)))


def _columns(lines: Sequence[Sequence[str]], count: int) -> list[tuple[str, ...]]:
    return list(zip(*lines, strict=True)) if lines else [()] * count
