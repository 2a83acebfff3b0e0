# SPDX-License-Identifier: Apache-2.0
"""Rows of services and of their backends, with what MUXes count of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from lb.config.render import vip_text
from lb.errors import NotFoundError
from lb.model import Backend, Service
from lb.quic_ids import server_id_of
from lb.rows import backend as backend_row
from lb.rows import service as service_row
from lb.rows.backend import BackendRow, FlowsLeft, OneBackend, TunnelTold
from lb.rows.service import ServiceRow
from manager.api.reader import Reader, service_state
from manager.nodes.hub import rows
from manager.observed.drains import left_of, withdrawn
from manager.plan.model import MUX, BackendPlan, why_idle

#: By what names a service or a backend: sums over the MUXes; what none told is not in it.
Counters = dict[tuple[Any, ...], dict[str, int | None]]
CountedRow = TypeVar("CountedRow", ServiceRow, BackendRow)
#: Of whom nobody counts anything.
_NOTHING: Mapping[str, int | None] = {}


class ServiceRows(Reader):
    """Of the services that are wanted, and of those that retire."""

    def rows(self, names: Iterable[str] | None = None) -> list[ServiceRow]:
        """Sorted by name; those that retire come last. ``names``: only those of them that there are."""
        services = self._controller.desired.services
        wanted = services if names is None else services.keys() & set(names)
        counters = self.counters(None if names is None else wanted)
        found = [count(self.plain(services[name]), counters.get((name,))) for name in sorted(wanted)]
        return found + self.retiring(names)

    def plain(self, service: Service) -> ServiceRow:
        """What hangs on the service, the plan of its VIP and who announces it: without what MUXes count."""
        backends = self.backend_plans(service)
        row = ServiceRow(
            name=service.name,
            vip=vip_text(service.vip),
            protocol=service.protocol.value,
            port=str(service.ports),
            state=service_state(service, backends, self.vip_plan(service)),
            backends=len(service.backends),
            healthy=sum(item.healthy for item in backends),
            announced_by=[],
            wanted_by=[],
        )
        self.announce(row, service)
        return row

    def announce(self, row: ServiceRow, service: Service) -> None:
        """Puts in who announces it, who should, and in words what clients may notice and its state alone does not
        tell."""
        place, announced = str(service.vip), self._controller.announced
        vip, said = self.vip_plan(service), announced.notes.get(place)
        idle = why_idle(self.backend_plans(service)) if vip is not None else None
        words = [word for word in (idle, said.text if said is not None else None) if word]
        row.announced_by = list(announced.by.get(place, ()))
        row.wanted_by = announced.wanted(vip)
        row.unreached = said is not None and said.level == "unreached"
        row.note = "; ".join(words) or None

    def retiring(self, names: Iterable[str] | None = None) -> list[ServiceRow]:
        """Services that are deleted, and not yet withdrawn everywhere."""
        retiring = self._controller.desired.retiring
        wanted = retiring if names is None else retiring.keys() & set(names)
        return [self._retiring_row(key, retiring[key]) for key in sorted(wanted)]

    @staticmethod
    def _retiring_row(key: str, service: Service) -> ServiceRow:
        return ServiceRow(
            name=key,
            vip=vip_text(service.vip),
            protocol=service.protocol.value,
            port=str(service.ports),
            state="retiring",
            backends=len(service.backends),
            healthy=0,
            announced_by=[],
            wanted_by=[],
        )

    def backends(self, names: Iterable[str] | None = None) -> list[BackendRow]:
        services = self._controller.desired.services
        wanted = services if names is None else services.keys() & set(names)
        counters = self.backend_counters(None if names is None else wanted)
        return [
            count(row, counters.get((name, row.name)))
            for name in sorted(wanted)
            for row in self.plain_backends(services[name])
        ]

    def plain_backends(self, service: Service) -> list[BackendRow]:
        """Without what MUXes count. While a backend drains, ``empty_since`` hangs on what they told before; else, as of
        a service, all hangs on the service and the plan of its VIP."""
        vip, port = vip_text(service.vip), str(service.ports)
        return [
            BackendRow(
                service=service.name,
                vip=vip,
                protocol=service.protocol.value,
                service_port=port,
                name=item.backend.name,
                address=item.address,
                port=str(item.backend.port) if item.backend.port else port,
                weight=item.backend.weight,
                slow_start=item.ramp.share if item.ramp is not None else None,
                server_id=_server_id(service, item.backend),
                state=item.shown,
                takes_flows=item.takes_flows,
                healthy=item.healthy,
                agent=item.agent,
                since=item.since,
                empty_since=self._empty_since(item),
                reason=item.reason,
            )
            for item in self.backend_plans(service)
        ]

    def _empty_since(self, item: BackendPlan) -> float | None:
        label = item.service, item.backend.name
        return self._controller.emptied.since.get(label) if item.shown == "drain" else None

    def backend(self, service: str, name: str) -> OneBackend:
        """One backend, and what each MUX has left of it while it drains."""
        found = self._controller.desired.services.get(service)
        row = next((row for row in self.backends([service]) if row.name == name), None) if found else None
        if row is None:
            known = f'service "{service}" has no backend "{name}"' if found else f'there is no service "{service}"'
            raise NotFoundError(known)
        left = left_of((service, name), self._controller.hub.entries.values(), self._controller.plan.drains)
        shown = [FlowsLeft(mux=item.mux, flows=item.flows, why=item.why) for item in left]
        drains = shown if row.state == "drain" else []
        return OneBackend(**msgspec.structs.asdict(row), left=drains, tunnels=self._tunnels(row.address))

    def _tunnels(self, address: str) -> list[TunnelTold]:
        """What each MUX was told of its tunnel to a backend."""
        return [
            TunnelTold(
                mux=entry.record.name,
                mtu=mtu if isinstance(mtu := told.get("mtu"), int) else None,
                unreachable=told.get("unreachable") is True,
                reason=str(told.get("reason") or ""),
            )
            for entry in self.entries(MUX)
            for told in rows(entry.status, "tunnels")
            if told.get("address") == address
        ]

    def counters(self, services: Collection[str] | None) -> Counters:
        """By (name,); of these services (None: of all)."""
        return self._counters("services", ("name",), service_row.COUNTERS, services)

    def backend_counters(self, services: Collection[str] | None) -> Counters:
        """By (service, name)."""
        return self._counters("backends", ("service", "name"), backend_row.COUNTERS, services)

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


def count(row: CountedRow, counters: Mapping[str, int | None] | None) -> CountedRow:
    """Puts in what MUXes count; None: nothing."""
    known = counters if counters is not None else _NOTHING
    row.flows, row.packets = known.get("flows"), known.get("packets")
    if isinstance(row, ServiceRow):
        row.flows_new, row.bytes = known.get("flows_new"), known.get("bytes")
    return row


def _server_id(service: Service, backend: Backend) -> str | None:
    sizes = sorted({one.server_id_bytes for one in service.quic})
    return ", ".join(server_id_of(backend.name, size, backend.server_id).hex() for size in sizes) or None
