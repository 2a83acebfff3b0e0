# SPDX-License-Identifier: Apache-2.0
"""``lb top``: what has the highest rates."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

from lb.config.render import vip_text
from lb.model import Service
from lb.rows.row import Row
from lb.rows.top import RateRow, Top, TopBackend, TopMux, TopService
from manager.api.reader import Reader, node_state, service_state
from manager.nodes.hub import Entry
from manager.observed.rates import FIELDS, NONE, MuxRate, Rate
from manager.plan.model import MUX, BackendPlan

#: A name, its rate, and what makes its row: only of those that are shown.
Rated = tuple[str, Rate, Callable[[], Row]]


class Busiest(Reader):
    """Services, backends and MUXes by their rates."""

    def top(self, by: str, sort: str, limit: int, service: str | None = None) -> Top:
        """The busiest services, backends or MUXes, over all MUXes that told their counters twice."""
        now = self._steady()
        kinds = {"service": self._top_services, "backend": self._top_backends, "mux": self._top_muxes}
        rates = kinds[by](now, service)
        return Top(
            at=self._wall(),
            by=by,
            total=RateRow(**_rates(self._controller.rates.total(now))),
            of=len(rates),
            rows=[make() for make in top_of(rates, sort, limit)],
        )

    def _top_services(self, now: float, only: str | None) -> list[Rated]:
        services = self._controller.desired.services
        rates = self._controller.rates.services(now)
        told = self._controller.rates.total(now) is not None

        def row(service: Service, rate: Rate) -> TopService:
            return TopService(
                service=service.name,
                vip=vip_text(service.vip),
                protocol=service.protocol.value,
                port=str(service.ports),
                state=service_state(service, self.backend_plans(service), self.vip_plan(service)),
                **_rates(rate if told else None),
            )

        return [
            (name, rate := rates.get(name, NONE), partial(row, service, rate))
            for name, service in services.items()
            if only is None or name == only
        ]

    def _top_backends(self, now: float, only: str | None) -> list[Rated]:
        rates = self._controller.rates.backends(now, only)
        told = self._controller.rates.total(now) is not None

        def row(service: Service, item: BackendPlan, rate: Rate) -> TopBackend:
            known = _rates(rate if told else None)
            return TopBackend(
                service=service.name,
                backend=item.backend.name,
                address=item.address,
                state=item.shown,
                weight=item.backend.weight,
                pps=known["pps"],
                flows=known["flows"],
            )

        found = (service for name, service in self._controller.desired.services.items() if only in (None, name))
        return [
            (f"{service.name}/{item.backend.name}", rate, partial(row, service, item, rate))
            for service in found
            for item in self.backend_plans(service)
            for rate in [rates.get((service.name, item.backend.name), NONE)]
        ]

    def _top_muxes(self, now: float, _: str | None) -> list[Rated]:
        rates = self._controller.rates.muxes(now)

        def row(entry: Entry, rate: MuxRate | None) -> TopMux:
            return TopMux(
                mux=entry.record.name,
                state=node_state(entry),
                received=round(rate.received, 1) if rate else None,
                capacity=rate.capacity if rate else None,
                fill=rate.rate.flows / rate.capacity if rate and rate.capacity else None,
                **_rates(rate.rate if rate else None),
            )

        return [
            (name, rate.rate if rate else NONE, partial(row, entry, rate))
            for entry in self.entries(MUX)
            for name, rate in [(entry.record.name, rates.get(entry.record.name))]
        ]

    def rates(self, since: float | None, services: int, names: list[str]) -> dict[str, Any]:
        """The last minutes of the total, of the MUXes, and of the services named or else the busiest."""
        history = self._controller.rates.history
        return history.read(since, names or history.services()[:services])


def top_of(rates: list[Rated], sort: str, limit: int) -> list[Callable[[], Row]]:
    """The rows of those with the highest rate, or the first names; what is equal goes by name."""
    if sort == "name":
        key: Callable[[Rated], Any] = itemgetter(0)
    else:
        place = FIELDS.index(sort)
        key = lambda rated: (-rated[1][place], -rated[1].pps, rated[0])  # noqa: E731
    return [make for _, _, make in heapq.nsmallest(limit, rates, key=key)]


def _rates(rate: Rate | None) -> dict[str, Any]:
    """Null: nobody told."""
    if rate is None:
        return dict.fromkeys(FIELDS)
    return {name: round(value, 1) for name, value in zip(FIELDS, rate, strict=True)}
