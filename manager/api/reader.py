# SPDX-License-Identifier: Apache-2.0
"""What the rows of services, nodes and announcements have in common: what they read of a controller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lb.model import Service
from lb.rows.event import EventRow
from manager.controller.controller import Controller
from manager.nodes.hub import Entry
from manager.plan.model import BackendPlan, VipPlan
from manager.store.interface import Event

Row = dict[str, Any]

#: Said of what a MUX without BGP has live.
NO_BGP = "it speaks no BGP, so what it has live counts"


class Reader:
    """Reads one controller, and changes nothing."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._wall, self._steady = controller.clocks.wall, controller.clocks.steady

    def vip_plan(self, service: Service) -> VipPlan | None:
        return self._controller.plan.vips.get(str(service.vip))

    def backend_plans(self, service: Service) -> list[BackendPlan]:
        vip = self.vip_plan(service)
        return [item for item in vip.backends if item.service == service.name] if vip else []

    def entries(self, kind: str) -> list[Entry]:
        found = [entry for entry in self._controller.hub.entries.values() if entry.record.kind == kind]
        return sorted(found, key=lambda entry: entry.record.name)


def event_rows(events: Iterable[Event]) -> list[EventRow]:
    return [EventRow(id=it.id, at=it.at, subject=it.subject, text=it.text, bad=it.bad) for it in events]


def node_state(entry: Entry) -> str:
    if entry.connection is None:
        return "gone" if entry.gone else "away"
    if entry.refused is not None:
        return "refused"
    if entry.late:
        return "late"
    return "ready" if entry.live is not None and entry.live_generation >= entry.generation else "following"


def service_state(service: Service, backends: list[BackendPlan], vip: VipPlan | None) -> str:
    if vip is None:
        return "new"
    if service.name in vip.panic:
        return "PANIC"
    wanted = [item for item in backends if item.shown != "drain"]
    if not any(item.takes_flows for item in backends):
        return "down"
    return "up" if all(item.healthy for item in wanted) else "degraded"
