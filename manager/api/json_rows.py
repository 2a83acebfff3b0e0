# SPDX-License-Identifier: Apache-2.0
"""The rows of services and backends as JSON, for tables of ten thousand: made once, and kept for as long as a service
and its plan are the same objects. What MUXes count is put in when somebody asks, for it is new every second.

Used by :mod:`manager.api.server` for ``lb get services``, ``lb get backends``, those who watch them, and ``lb export``;
the rows themselves are :class:`manager.api.view.View`'s. A row's counters come last in it, so that its text can be
continued.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.config.render import service_table
from lb.config.toml import format_tables
from lb.model import Service
from lb.tables import manager_tables
from lb.tables.layout import aligned
from lb.tables.manager_tables import Listing
from lb.tables.values import rate
from manager.api.announcement_rows import announced_rows
from manager.api.reader import Row
from manager.api.service_rows import BACKEND_COUNTERS, SERVICE_COUNTERS, Counters
from manager.api.view import View
from manager.controller.controller import Controller
from manager.plan.model import VipPlan

#: So many services that are no more may be remembered.
_GONE = 1000
#: Of whom nobody counts anything.
_NOTHING: Mapping[str, int | None] = {}


@dataclass(frozen=True, slots=True)
class _BackendLines:
    """The lines of a service's backends."""

    names: tuple[str, ...]
    columns: tuple[str, ...]
    because: manager_tables.Because


@dataclass(frozen=True, slots=True)
class _Announced:
    """The lines of a VIP's announcements, for as long as the plan of it and what MUXes tell of it are the same."""

    plan: VipPlan
    muxes: tuple[tuple[str, bool, bool], ...]  #: name, whether it is away, and whether it speaks no BGP
    told: Sequence[object]  #: by each of them
    columns: tuple[str, ...]
    because: manager_tables.Withheld


@dataclass(slots=True)
class _Kept:
    """What is known of one service, for as long as ``service`` and ``vip`` are the same objects; who
    announces it, for as long as ``said`` is equal as well."""

    service: Service
    place: str  #: where the plan has its VIP
    vip: VipPlan | None
    said: tuple[object, ...]  #: who announces it, and what there is to say of that
    row: str | None = None  #: without who announces it, and its counters
    announced: str | None = None  #: what follows in the row
    backends: Sequence[tuple[str, str]] | None = None  #: name and row of each, likewise
    cells: tuple[str, ...] | None = None  #: of its line in a listing, as if nobody counted anything
    note: str | None = None  #: below that listing
    stale: bool = True  #: who announces it, and the note, are to be asked for in the listing
    listed: _BackendLines | None = None  #: its backends there, likewise


class _Made:
    """A text of each service, made once for as long as it is the same object."""

    def __init__(self, make: Callable[[Service], str]) -> None:
        self._make = make
        self._known: dict[str, tuple[Service, str]] = {}

    def of(self, services: Mapping[str, Service], names: Sequence[str] | None) -> list[str]:
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
    needs: Mapping[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict)  #: how wide each part must be
    texts: Mapping[tuple[str, ...], str] = field(default_factory=dict)


class Drawer:
    """Draws one table again and again, of which little is new each time. From any thread."""

    def __init__(self) -> None:
        self._last = _Page()

    def draw(self, table: Listing) -> str:
        """What :func:`lb.tables.manager_tables.listed` makes of it."""
        last, parts = self._last, list(zip(*table.columns, strict=True))
        needs = {part: last.needs.get(part) or tuple(map(_width, part)) for part in parts}
        widths = tuple(map(max, zip(map(len, table.header), *needs.values(), strict=True)))
        numbers = {i for i, name in enumerate(table.header) if name in manager_tables.NUMBERS}

        def block(cells: Iterable[str]) -> str:
            return "\n".join(aligned([cell.split("\n") for cell in cells], widths, numbers))

        known = last.texts if widths == last.widths else {}
        texts = {part: known.get(part) or block(part) for part in needs}
        self._last = _Page(widths, needs, texts)
        return "\n".join(manager_tables.framed(table, block(table.header), [texts[part] for part in parts]))


def _width(cells: str) -> int:
    """Of the widest of these lines."""
    return max(map(len, cells.split("\n")))


class JsonRows:
    """Reads one controller."""

    def __init__(self, controller: Controller, view: View) -> None:
        self._controller = controller
        self._view = view
        self._known: dict[str, _Kept] = {}
        self._announced: dict[str, _Announced] = {}
        self._tables = _Made(lambda service: _text(service_table(service)))
        self._files = _Made(lambda service: format_tables([service_table(service)]))

    # -- rows ---------------------------------------------------------------------------------------------------

    def services(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """By name, and sorted, as :meth:`View.services` has them."""
        wanted = self._wanted(names)
        counters = self._view.services.counters(None if names is None else wanted)
        found = {}
        for name in wanted:
            known = self._kept(name)
            if known.row is None:
                known.row = _open(self._view.services.planned(known.service))
            if known.announced is None:
                known.announced = f", {_open(self._view.services.announced(known.service))[1:]}"
            found[name] = _closed(known.row + known.announced, SERVICE_COUNTERS, counters.get((name,), _NOTHING))
        found.update((row["name"], _text(row)) for row in self._view.services.retiring(names))
        return found

    def backends(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """By service: the rows of its backends, with commas between them. One that has none has no text."""
        wanted = self._wanted(names)
        counters = self._view.services.backend_counters(None if names is None else wanted)
        found = {}
        for name in wanted:
            rows = [
                _closed(row, BACKEND_COUNTERS, counters.get((name, backend), _NOTHING))
                for backend, row in self._backends(self._kept(name))
            ]
            if rows:
                found[name] = ", ".join(rows)
        return found

    def _backends(self, known: _Kept) -> Sequence[tuple[str, str]]:
        if known.backends is not None:
            return known.backends
        rows = self._view.services.plain_backends(known.service)
        texts = [(row["name"], _open(row)) for row in rows]
        if not any(row["state"] == "drain" for row in rows):  # since when nothing is left of one is not in the plan
            known.backends = texts
        return texts

    # -- listings -----------------------------------------------------------------------------------------------

    def list_services(self, names: Iterable[str] | None = None) -> Listing:
        """What :func:`lb.tables.manager_tables.services` makes of the rows."""
        wanted = self._wanted(names)
        counters = self._view.services.counters(None if names is None else wanted)
        found = []
        notes: dict[str, list[str]] = {}
        for name in wanted:
            known = self._kept(name)
            if known.cells is None:
                row = self._view.services.plain(known.service)
                known.cells, known.note, known.stale = manager_tables.service_cells(row), row["note"], False
            elif known.stale:
                row = self._view.services.announced(known.service)
                known.cells, known.note, known.stale = (
                    manager_tables.announced_anew(known.cells, row),
                    row["note"],
                    False,
                )
            if known.note is not None:
                notes.setdefault(known.note, []).append(name)
            counted = counters.get((name,))
            found.append(
                known.cells if counted is None else _with_rates(known.cells, manager_tables.SERVICE_NUMBERS, counted)
            )
        found += [manager_tables.service_cells(row) for row in self._view.services.retiring(names)]
        lines = list(zip(*found, strict=True)) or [()] * len(manager_tables.SERVICES)
        return Listing(manager_tables.SERVICES, lines, manager_tables.service_notes(notes))

    def list_backends(self, names: Iterable[str] | None = None) -> Listing:
        """What :func:`lb.tables.manager_tables.backends` makes of the rows."""
        wanted = self._wanted(names)
        counters = self._view.services.backend_counters(None if names is None else wanted)
        busy = {service for service, _ in counters}
        found: list[tuple[str, ...]] = []
        because: manager_tables.Because = {}
        for name in wanted:
            known = self._list(self._kept(name))
            if known.names:
                found.append(_counted(known, name, counters) if name in busy else known.columns)
            for why, labels in known.because.items():
                because.setdefault(why, []).extend(labels)
        columns = list(zip(*found, strict=True)) or [()] * len(manager_tables.BACKENDS)
        return Listing(manager_tables.BACKENDS, columns, manager_tables.backend_notes(because))

    def _list(self, known: _Kept) -> _BackendLines:
        if known.listed is not None:
            return known.listed
        rows = self._view.services.plain_backends(known.service)
        columns = (
            tuple("\n".join(column) for column in zip(*manager_tables.backend_cells(rows), strict=True)) if rows else ()
        )
        found = _BackendLines(tuple(row["name"] for row in rows), columns, manager_tables.unwell(rows))
        if not any(row["state"] == "drain" for row in rows):  # as with rows
            known.listed = found
        return found

    def list_announcements(self) -> Listing:
        """What :func:`lb.tables.manager_tables.announcements` makes of the rows."""
        vips, told = self._controller.plan.vips, self._view.announcements.of_muxes()
        muxes = tuple((mux.name, mux.away, mux.silent) for mux in told)
        before, self._announced = self._announced, {}
        because: manager_tables.Withheld = {}
        for vip in sorted(vips):
            plan, words = vips[vip], [mux.by_vip.get(vip) for mux in told]
            known = before.get(vip)
            if known is None or known.plan is not plan or known.told != words or known.muxes != muxes:
                rows = list(announced_rows(vip, plan, told))
                columns = tuple(map("\n".join, manager_tables.announcement_columns(rows)))
                known = _Announced(plan, muxes, words, columns, manager_tables.withheld(rows))
            self._announced[vip] = known
            for why, some in known.because.items():
                because.setdefault(why, []).extend(some)
        found = [known.columns for known in self._announced.values() if known.muxes]
        lines = list(zip(*found, strict=True)) or [()] * len(manager_tables.ANNOUNCEMENTS)
        return Listing(manager_tables.ANNOUNCEMENTS, lines, manager_tables.announcement_notes(because))

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
            known = self._known[name] = _Kept(service, place, vip, said)
            if len(self._known) > len(self._controller.desired.services) + _GONE:
                services = self._controller.desired.services
                self._known = {name: kept for name, kept in self._known.items() if name in services}
        elif known.said != said:  # its backends are the same
            known.said, known.announced, known.stale = said, None, True
        return known

    # -- tables -------------------------------------------------------------------------------------------------

    def tables(self, names: Sequence[str] | None = None) -> list[str]:
        """``[[service]]`` tables as operators gave them: of these services, or of all, sorted by name. From any thread,
        one at a time; so is :meth:`file`."""
        return self._tables.of(self._controller.desired.services, names)

    def file(self, names: Sequence[str] | None = None) -> str:
        """The same as a file that ``lb apply`` takes."""
        return "\n".join(self._files.of(self._controller.desired.services, names))


def _with_rates(
    cells: tuple[str, ...], places: Mapping[int, str], counters: Mapping[str, int | None]
) -> tuple[str, ...]:
    found = list(cells)
    for i, name in places.items():
        found[i] = rate(counters.get(name))
    return tuple(found)


def _counted(known: _BackendLines, service: str, counters: Counters) -> tuple[str, ...]:
    """A service's lines, with what is counted; its own line has no numbers."""
    found = list(known.columns)
    for i, key in manager_tables.BACKEND_NUMBERS.items():
        numbers = [rate(counters.get((service, name), _NOTHING).get(key)) for name in known.names]
        found[i] = "\n".join(["", *numbers])
    return tuple(found)


def array(texts: Iterable[str]) -> str:
    """A JSON array of what is JSON."""
    return f"[{', '.join(texts)}]"


def _open(row: Row) -> str:
    """A row to be continued."""
    return _text(row)[:-1]


def _closed(row: str, names: Iterable[str], counters: Mapping[str, int | None]) -> str:
    numbers = "".join([f', "{name}": {_number(counters.get(name))}' for name in names])
    return f"{row}{numbers}}}"


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


_text = json.JSONEncoder(ensure_ascii=False).encode
