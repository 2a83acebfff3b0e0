# SPDX-License-Identifier: Apache-2.0
"""Rows of services and of their backends, with what MUXes count of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lb.config.render import vip_text
from lb.errors import NotFoundError
from lb.model import Service
from manager.api.reader import Reader, Row, service_state
from manager.nodes.hub import rows
from manager.observed.drains import left_of, withdrawn
from manager.plan.model import MUX, BackendPlan, why_idle

#: Counters of a service that MUXes tell, and of a backend.
SERVICE_COUNTERS = ("flows_new", "flows", "packets", "bytes")

BACKEND_COUNTERS = ("flows", "packets")

#: By what names a service or a backend: sums over the MUXes; what none told is not in it.
Counters = dict[tuple[Any, ...], dict[str, int | None]]


class ServiceRows(Reader):
    """Of the services that are wanted, and of those that retire."""

    def rows(self, names: Iterable[str] | None = None) -> list[Row]:
        """Sorted by name; those that retire come last. ``names``: only those of them that there are."""
        services = self._controller.desired.services
        wanted = services if names is None else services.keys() & set(names)
        counters = self.counters(None if names is None else wanted)
        found = [
            self.plain(services[name]) | _counted(counters.get((name,), {}), SERVICE_COUNTERS)
            for name in sorted(wanted)
        ]
        return found + self.retiring(names)

    def plain(self, service: Service) -> Row:
        """What hangs on the service, the plan of its VIP and who announces it: without what MUXes count."""
        return self.planned(service) | self.announced(service)

    def planned(self, service: Service) -> Row:
        """What hangs on the service and the plan of its VIP alone."""
        backends = self.backend_plans(service)
        return {
            "name": service.name,
            "vip": vip_text(service.vip),
            "protocol": service.protocol.value,
            "port": str(service.ports),
            "state": service_state(service, backends, self.vip_plan(service)),
            "backends": len(service.backends),
            "healthy": sum(item.healthy for item in backends),
        }

    def announced(self, service: Service) -> Row:
        """Who announces it, who should, and in words what clients may notice and its state alone does not tell."""
        place, announced = str(service.vip), self._controller.announced
        vip, said = self.vip_plan(service), announced.notes.get(place)
        idle = why_idle(self.backend_plans(service)) if vip is not None else None
        words = [word for word in (idle, said.text if said is not None else None) if word]
        return {
            "announced_by": list(announced.by.get(place, ())),
            "wanted_by": announced.wanted(vip),
            "unreached": said is not None and said.level == "unreached",
            "note": "; ".join(words) or None,
        }

    def retiring(self, names: Iterable[str] | None = None) -> list[Row]:
        """Services that are deleted, and not yet withdrawn everywhere."""
        retiring = self._controller.desired.retiring
        wanted = retiring if names is None else retiring.keys() & set(names)
        return [self._retiring_row(key, retiring[key]) for key in sorted(wanted)]

    @staticmethod
    def _retiring_row(key: str, service: Service) -> Row:
        return {
            "name": key,
            "vip": vip_text(service.vip),
            "protocol": service.protocol.value,
            "port": str(service.ports),
            "state": "retiring",
            "backends": len(service.backends),
            "healthy": 0,
            "announced_by": [],
            "wanted_by": [],
            "unreached": False,
            "note": None,
            **dict.fromkeys(SERVICE_COUNTERS),
        }

    def backends(self, names: Iterable[str] | None = None) -> list[Row]:
        services = self._controller.desired.services
        wanted = services if names is None else services.keys() & set(names)
        counters = self.backend_counters(None if names is None else wanted)
        return [
            row | _counted(counters.get((name, row["name"]), {}), BACKEND_COUNTERS)
            for name in sorted(wanted)
            for row in self.plain_backends(services[name])
        ]

    def plain_backends(self, service: Service) -> list[Row]:
        """Without what MUXes count. While a backend drains, ``empty_since`` hangs on what they told before; else, as of
        a service, all hangs on the service and the plan of its VIP."""
        vip, port = vip_text(service.vip), str(service.ports)
        return [
            {
                "service": service.name,
                "vip": vip,
                "protocol": service.protocol.value,
                "service_port": port,
                "name": item.backend.name,
                "address": item.address,
                "port": str(item.backend.port) if item.backend.port else port,
                "weight": item.backend.weight,
                "slow_start": item.ramp.share if item.ramp is not None else None,
                "state": item.shown,
                "takes_flows": item.takes_flows,
                "healthy": item.healthy,
                "agent": item.agent,
                "since": item.since,
                "empty_since": self._empty_since(item),
                "reason": item.reason,
            }
            for item in self.backend_plans(service)
        ]

    def _empty_since(self, item: BackendPlan) -> float | None:
        label = item.service, item.backend.name
        return self._controller.emptied.since.get(label) if item.shown == "drain" else None

    def backend(self, service: str, name: str) -> Row:
        """One backend, and what each MUX has left of it while it drains."""
        found = self._controller.desired.services.get(service)
        row = next((row for row in self.backends([service]) if row["name"] == name), None) if found else None
        if row is None:
            known = f'service "{service}" has no backend "{name}"' if found else f'there is no service "{service}"'
            raise NotFoundError(known)
        left = left_of((service, name), self._controller.hub.entries.values(), self._controller.plan.drains)
        shown = left if row["state"] == "drain" else []
        return {**row, "left": [{"mux": item.mux, "flows": item.flows, "why": item.why} for item in shown]}

    def counters(self, services: Collection[str] | None) -> Counters:
        """By (name,); of these services (None: of all)."""
        return self._counters("services", ("name",), SERVICE_COUNTERS, services)

    def backend_counters(self, services: Collection[str] | None) -> Counters:
        """By (service, name)."""
        return self._counters("backends", ("service", "name"), BACKEND_COUNTERS, services)

    def _counters(
        self, what: str, keys: tuple[str, ...], counters: tuple[str, ...], services: Collection[str] | None
    ) -> Counters:
        """Summed over the MUXes; of these services (None: of all)."""
        chosen = None if services is None else set(services)
        total: Counters = {}
        drains = self._controller.plan.drains
        for entry in self.entries(MUX):
            # A flow that a MUX remembers and gets no packets of any more lives elsewhere.
            idle = entry.gone or withdrawn(entry, drains)
            for row in rows(entry.status, what):
                if chosen is not None and row.get(keys[0]) not in chosen:
                    continue
                sums = total.setdefault(tuple(row.get(key) for key in keys), {})
                for name in counters:
                    value = 0 if idle and name == "flows" else row.get(name)
                    if isinstance(value, int):
                        sums[name] = (sums.get(name) or 0) + value
        return total


def _counted(counters: Mapping[str, int | None], names: Iterable[str]) -> Row:
    return {name: counters.get(name) for name in names}
