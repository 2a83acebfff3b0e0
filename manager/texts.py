# SPDX-License-Identifier: Apache-2.0
"""The rows of services and backends as JSON, for tables of ten thousand: made once, and kept for as long as a service
and its plan are the same objects. What MUXes count is put in when somebody asks, for it is new every second.

Used by :mod:`manager.api` for ``lb get services``, ``lb get backends``, those who watch them, and ``lb export``; the
rows themselves are :class:`manager.view.View`'s. A row's counters come last in it, so that its text can be continued.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lb.config_text import service_table
from lb.model import Service
from manager.controller import Controller
from manager.view import BACKEND_COUNTERS, SERVICE_COUNTERS, Row, View
from manager.world import VipPlan

#: So many services that are no more may be remembered.
_GONE = 1000
#: Of whom nobody counts anything.
_NOTHING: Mapping[str, int | None] = {}


@dataclass(slots=True)
class _Kept:
    """What is known of one service, for as long as ``service`` and ``vip`` are the same objects."""

    service: Service
    place: str  #: where the plan has its VIP
    vip: VipPlan | None
    row: str | None = None  #: without its counters
    backends: Sequence[tuple[str, str]] | None = None  #: name and row of each, likewise


class Texts:
    """Reads one controller."""

    def __init__(self, controller: Controller, view: View) -> None:
        self._controller = controller
        self._view = view
        self._known: dict[str, _Kept] = {}
        self._tables: dict[str, tuple[Service, str]] = {}

    # -- rows ---------------------------------------------------------------------------------------------------

    def services(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """By name, and sorted, as :meth:`View.services` has them."""
        wanted = self._wanted(names)
        counters = self._view.counters_of_services(None if names is None else wanted)
        found = {}
        for name in wanted:
            known = self._kept(name)
            if known.row is None:
                known.row = _open(self._view.plain_service(known.service))
            found[name] = _closed(known.row, SERVICE_COUNTERS, counters.get((name,), _NOTHING))
        found.update((row["name"], _text(row)) for row in self._view.retiring(names))
        return found

    def backends(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """By service: the rows of its backends, with commas between them. One that has none has no text."""
        wanted = self._wanted(names)
        counters = self._view.counters_of_backends(None if names is None else wanted)
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
        rows = self._view.plain_backends(known.service)
        texts = [(row["name"], _open(row)) for row in rows]
        if not any(row["state"] == "drain" for row in rows):  # since when nothing is left of one is not in the plan
            known.backends = texts
        return texts

    def _wanted(self, names: Iterable[str] | None) -> list[str]:
        services = self._controller.desired.services
        return sorted(services if names is None else services.keys() & set(names))

    def _kept(self, name: str) -> _Kept:
        service = self._controller.desired.services[name]
        known = self._known.get(name)
        place = known.place if known is not None and known.service is service else str(service.vip)
        vip = self._controller.plan.vips.get(place)
        if known is None or known.service is not service or known.vip is not vip:
            known = self._known[name] = _Kept(service, place, vip)
            if len(self._known) > len(self._controller.desired.services) + _GONE:
                services = self._controller.desired.services
                self._known = {name: kept for name, kept in self._known.items() if name in services}
        return known

    # -- tables -------------------------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        """``[[service]]`` tables as operators gave them, sorted by name. From any thread, one at a time."""
        services = self._controller.desired.services
        found = {}
        for name in sorted(services):
            service = services[name]
            known = self._tables.get(name)
            found[name] = known if known is not None and known[0] is service else (service, _table(service))
        self._tables = found
        return [text for _, text in found.values()]


def array(texts: Iterable[str]) -> str:
    """A JSON array of what is JSON."""
    return f"[{', '.join(texts)}]"


def _table(service: Service) -> str:
    return _text(service_table(service))


def _open(row: Row) -> str:
    """A row to be continued."""
    return _text(row)[:-1]


def _closed(row: str, names: Iterable[str], counters: Mapping[str, int | None]) -> str:
    numbers = "".join([f', "{name}": {_number(counters.get(name))}' for name in names])
    return f"{row}{numbers}}}"


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


_text = json.JSONEncoder(ensure_ascii=False).encode
