# SPDX-License-Identifier: Apache-2.0
"""Rows of services and backends, and their lines in a table, for tables of ten thousand: made once, and kept for as
long as a service and its plan are the same objects. What MUXes count is put in when somebody asks, for it is new every
second.

Used by :mod:`manager.api.server` for ``lb get services``, ``lb get backends``, those who watch them, and ``lb export``;
the rows themselves are made by :class:`manager.api.service_rows.ServiceRows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from lb.config.render import service_table
from lb.config.toml import format_tables
from lb.model import Service
from lb.rows.announcement import AnnouncementRow, Withheld, announcement_notes, withheld
from lb.rows.backend import BackendRow, Because, backend_notes, unwell
from lb.rows.service import ServiceRow, service_notes
from lb.rows.table import Listing, RowTable, framed, table_of
from lb.tables.layout import aligned
from manager.api.announcement_rows import announced_rows
from manager.api.service_rows import count
from manager.api.view import View
from manager.controller.controller import Controller
from manager.plan.model import VipPlan

#: So many services that are no more may be remembered.
_GONE = 1000
SERVICES, BACKENDS, ANNOUNCEMENTS = table_of(ServiceRow), table_of(BackendRow), table_of(AnnouncementRow)

#: The cells of some rows, a column each, with a line for each row.
Columns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Announced:
    """The lines of a VIP's announcements, for as long as the plan of it and what MUXes tell of it are the same."""

    plan: VipPlan
    muxes: tuple[tuple[str, bool, bool], ...]  #: name, whether it is away, and whether it speaks no BGP
    told: Sequence[object]  #: by each of them
    columns: Columns
    because: Withheld


@dataclass(slots=True)
class _Kept:
    """What is known of one service, for as long as ``service`` and ``vip`` are the same objects; who
    announces it, for as long as ``said`` is equal as well."""

    service: Service
    place: str  #: where the plan has its VIP
    vip: VipPlan | None
    said: tuple[object, ...]  #: who announces it, and what there is to say of that
    row: ServiceRow
    cells: Columns | None = None  #: of its line
    backends: Sequence[BackendRow] | None = None
    lines: Columns | None = None  #: of its backends
    because: Because = field(default_factory=dict)  #: what there is to say of them


class _Made:
    """A text of each service, made once for as long as it is the same object."""

    def __init__(self, make: Callable[[Service], bytes]) -> None:
        self._make = make
        self._known: dict[str, tuple[Service, bytes]] = {}

    def of(self, services: Mapping[str, Service], names: Sequence[str] | None) -> list[bytes]:
        """``names`` None: of all, sorted by name. What is no service has no text."""
        found = {}
        for name in sorted(services) if names is None else names:
            service, known = services.get(name), self._known.get(name)
            if service is not None:
                found[name] = known if known is not None and known[0] is service else (service, self._make(service))
        self._known = found if names is None else self._known | found
        return [text for _, text in found.values()]


@dataclass(frozen=True, slots=True)
class _Page:
    """A table as it was drawn; its parts go by their cells."""

    widths: tuple[int, ...] = ()  #: of the columns
    needs: Mapping[Columns, tuple[int, ...]] = field(default_factory=dict)  #: how wide each part must be
    texts: Mapping[Columns, str] = field(default_factory=dict)


class Drawer:
    """Draws one table again and again, of which little is new each time. From any thread."""

    def __init__(self) -> None:
        self._last = _Page()

    def draw(self, found: Listing) -> str:
        """What :func:`lb.rows.table.listed` makes of it."""
        last, parts, header = self._last, list(zip(*found.columns, strict=True)), found.table.header
        needs = {part: last.needs.get(part) or tuple(map(_width, part)) for part in parts}
        widths = tuple(map(max, zip(map(len, header), *needs.values(), strict=True)))
        numbers = found.table.numbers

        def block(cells: Iterable[str]) -> str:
            return "\n".join(aligned([cell.split("\n") for cell in cells], widths, numbers))

        known = last.texts if widths == last.widths else {}
        texts = {part: known.get(part) or block(part) for part in needs}
        self._last = _Page(widths, needs, texts)
        return "\n".join(framed(found, block(header), [texts[part] for part in parts]))


def _width(cells: str) -> int:
    """Of the widest of these lines."""
    return max(map(len, cells.split("\n")))


class KeptRows:
    """Reads one controller."""

    def __init__(self, controller: Controller, view: View) -> None:
        self._controller = controller
        self._view = view
        self._known: dict[str, _Kept] = {}
        self._announced: dict[str, _Announced] = {}
        self._tables = _Made(lambda service: msgspec.json.encode(service_table(service)))
        self._files = _Made(lambda service: format_tables([service_table(service)]).encode())

    # -- rows ---------------------------------------------------------------------------------------------------

    def services(self, names: Iterable[str] | None = None) -> list[ServiceRow]:
        """Sorted by name; those that retire come last. Until the next question."""
        wanted = self._wanted(names)
        counters = self._view.services.counters(None if names is None else wanted)
        rows = [count(self._kept(name).row, counters.get((name,))) for name in wanted]
        return [*rows, *self._view.services.retiring(names)]

    def backends(self, names: Iterable[str] | None = None) -> list[BackendRow]:
        """Sorted by service. Until the next question."""
        wanted = self._wanted(names)
        counters = self._view.services.backend_counters(None if names is None else wanted)
        return [
            count(row, counters.get((name, row.name))) for name in wanted for row in self._backends(self._kept(name))
        ]

    def _backends(self, known: _Kept) -> Sequence[BackendRow]:
        if known.backends is not None:
            return known.backends
        rows = self._view.services.plain_backends(known.service)
        if not any(row.state == "drain" for row in rows):  # since when nothing is left of one is not in the plan
            known.backends = rows
        return rows

    # -- listings -----------------------------------------------------------------------------------------------

    def list_services(self, names: Iterable[str] | None = None) -> Listing:
        """What :func:`lb.rows.table.listing` makes of the rows."""
        wanted = self._wanted(names)
        counters = self._view.services.counters(None if names is None else wanted)
        counted = SERVICES.counted
        found: list[Columns] = []
        notes: dict[str, list[str]] = {}
        for name in wanted:
            known = self._kept(name)
            if known.cells is None:
                (known.cells,) = SERVICES.lines([count(known.row, None)])
            told, cells = counters.get((name,)), known.cells
            if told is not None:
                row = count(known.row, told)
                cells = _with(cells, ((i, make(row)) for i, make in counted))
            found.append(cells)
            if known.row.note is not None:
                notes.setdefault(known.row.note, []).append(name)
        found += SERVICES.lines(self._view.services.retiring(names))
        return _listing(SERVICES, found, service_notes(notes))

    def list_backends(self, names: Iterable[str] | None = None) -> Listing:
        """What :func:`lb.rows.table.listing` makes of the rows."""
        wanted = self._wanted(names)
        counters = self._view.services.backend_counters(None if names is None else wanted)
        busy = {service for service, _ in counters}
        found: list[Columns] = []
        because: Because = {}
        for name in wanted:
            known = self._kept(name)
            rows = self._backends(known)
            lines, why = known.lines, known.because
            if lines is None or known.backends is None:
                for row in rows:
                    count(row, None)
                lines, why = tuple(map("\n".join, zip(*BACKENDS.lines(rows), strict=True))), unwell(rows)
                if known.backends is not None:
                    known.lines, known.because = lines, why
            if rows and name in busy:
                for row in rows:
                    count(row, counters.get((name, row.name)))
                lines = _with(lines, ((i, "\n".join(["", *map(make, rows)])) for i, make in BACKENDS.counted))
            if rows:
                found.append(lines)
            for reason, labels in why.items():
                because.setdefault(reason, []).extend(labels)
        return _listing(BACKENDS, found, backend_notes(because))

    def list_announcements(self) -> Listing:
        """What :func:`lb.rows.table.listing` makes of the rows."""
        vips, told = self._controller.plan.vips, self._view.announcements.of_muxes()
        muxes = tuple((mux.name, mux.away, mux.silent) for mux in told)
        before, self._announced = self._announced, {}
        because: Withheld = {}
        for vip in sorted(vips):
            plan, words = vips[vip], [mux.by_vip.get(vip) for mux in told]
            known = before.get(vip)
            if known is None or known.plan is not plan or known.told != words or known.muxes != muxes:
                rows = list(announced_rows(vip, plan, told))
                columns = tuple(map("\n".join, zip(*ANNOUNCEMENTS.lines(rows), strict=True)))
                known = _Announced(plan, muxes, words, columns, withheld(rows))
            self._announced[vip] = known
            for why, some in known.because.items():
                because.setdefault(why, []).extend(some)
        found = [known.columns for known in self._announced.values() if known.muxes]
        return _listing(ANNOUNCEMENTS, found, announcement_notes(because))

    def _wanted(self, names: Iterable[str] | None) -> list[str]:
        services = self._controller.desired.services
        return sorted(services if names is None else services.keys() & set(names))

    def _kept(self, name: str) -> _Kept:
        service = self._controller.desired.services[name]
        known = self._known.get(name)
        place = known.place if known is not None and known.service is service else str(service.vip)
        vip = self._controller.plan.vips.get(place)
        said = self._controller.announced.key(place)
        if known is None or known.service is not service or known.vip is not vip:
            row = self._view.services.plain(service)
            known = self._known[name] = _Kept(service, place, vip, said, row)
            if len(self._known) > len(self._controller.desired.services) + _GONE:
                services = self._controller.desired.services
                self._known = {name: kept for name, kept in self._known.items() if name in services}
        elif known.said != said:  # its backends are the same
            self._view.services.announce(known.row, service)
            known.said, known.cells = said, None
        return known

    # -- tables -------------------------------------------------------------------------------------------------

    def tables(self, names: Sequence[str] | None = None) -> bytes:
        """``[[service]]`` tables as operators gave them, as JSON: of these services, or of all, sorted by name. From
        any thread, one at a time; so is :meth:`file`."""
        return b"[" + b", ".join(self._tables.of(self._controller.desired.services, names)) + b"]"

    def file(self, names: Sequence[str] | None = None) -> bytes:
        """The same as a file that ``lb apply`` takes."""
        return b"\n".join(self._files.of(self._controller.desired.services, names))


def _with(cells: Columns, others: Iterable[tuple[int, str]]) -> Columns:
    """With other cells at some places."""
    found = list(cells)
    for i, text in others:
        found[i] = text
    return tuple(found)


def _listing(table: RowTable, found: Sequence[Columns], notes: Sequence[str]) -> Listing:
    return Listing(table, list(zip(*found, strict=True)) if found else [()] * len(table.columns), notes)
