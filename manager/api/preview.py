# SPDX-License-Identifier: Apache-2.0
"""What a change would mean to MUXes: each service as they are told of it now, and as they would be once the change has
settled; with the live flows of its backends. Pure. ``lb diff`` builds the Maglev tables of both and compares them, for
the manager has no data plane.

Settled means: a backend that stays is as well as it is now, one that is new or comes back from ``state = "down"`` is
taken to be well. Slow start is left as it is, since it is the backend's doing and not the change's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from lb.config.render import service_table
from lb.model import Backend, BackendState, HashMode
from manager.api.answers import BackendChoice, FlowChoice, ServicePreview
from manager.desired.state import Desired, DesiredChange
from manager.nodes.hub import Entry, rows
from manager.observed.drains import withdrawn
from manager.plan.model import MUX, BackendPlan, Plan
from manager.plan.slow_start import weights

#: Live flows by service and backend; None: not known.
Flows = Callable[[str, str], int | None]
#: Rows of one kind that a MUX tells; where there are so many, one that is missing may not be zero (see lb.mux.status).
ROWS_MAX = 20_000


def preview(change: DesiredChange, plan: Plan, flows: Flows) -> list[ServicePreview]:
    """Of each service that differs."""
    drained = change.drained()
    return [
        ServicePreview(name=name, before=_before(name, change.old, plan, flows), after=_after(name, change, plan))
        for name in sorted(change.names | drained)
        if change.old.services.get(name) is not change.new.services.get(name) or name in drained
    ]


def _before(name: str, old: Desired, plan: Plan, flows: Flows) -> FlowChoice | None:
    service = old.services.get(name)
    if service is None:
        return None
    found = plan.vips.get(str(service.vip))
    told = found.tables.get(name) if found is not None else None
    choice = _bare(told if told is not None else service_table(service))
    for row in choice.backend:
        row.flows = flows(name, row.name)
    return choice


def _after(name: str, change: DesiredChange, plan: Plan) -> FlowChoice | None:
    service = change.new.services.get(name)
    if service is None:
        return None
    known = _planned(name, change.old, plan)
    ramps = []
    backends = []
    for backend in service.backends:
        item = known.get((backend.name, str(backend.address)))
        order = change.new.drains.get(f"{name}/{backend.name}")
        if order is not None and order.now:
            backends.append(replace(backend, state=BackendState.DOWN))
        else:
            backends.append(replace(backend, state=_settled(backend, item, drained=order is not None)))
        ramps.append(item.ramp if item is not None else None)
    told = tuple(
        replace(backend, weight=weight)
        for backend, weight in zip(backends, weights(service.backends, ramps), strict=True)
    )
    return _bare(service_table(replace(service, backends=told)))


def _settled(backend: Backend, item: BackendPlan | None, *, drained: bool) -> BackendState:
    if backend.state is BackendState.DOWN:
        return BackendState.DOWN
    if drained or backend.state is BackendState.DRAIN:
        return BackendState.DRAIN
    if item is None or item.backend.state is BackendState.DOWN:
        return BackendState.UP
    if item.state is BackendState.DRAIN:
        return BackendState.UP if item.healthy else BackendState.DOWN
    return item.state


def _planned(name: str, old: Desired, plan: Plan) -> dict[tuple[str, str], BackendPlan]:
    """By name and address, for a backend that moves is another one."""
    service = old.services.get(name)
    found = plan.vips.get(str(service.vip)) if service is not None else None
    items = found.backends if found is not None else ()
    return {(item.backend.name, item.address): item for item in items if item.service == name}


def _bare(table: Mapping[str, Any]) -> FlowChoice:
    """What decides where a flow goes, with nothing left to defaults but ``slots``, which each MUX's file may set."""
    return FlowChoice(
        vip=table["vip"],
        protocol=table["protocol"],
        port=table["port"],
        slots=table.get("slots"),
        hash=table.get("hash") or HashMode.FIVE_TUPLE.value,
        backend=[
            BackendChoice(
                name=row["name"],
                address=row["address"],
                weight=row.get("weight", 1),
                state=row.get("state", BackendState.UP.value),
            )
            for row in table["backend"]
        ],
    )


def live_flows(entries: Iterable[Entry], drains: Mapping[str, str | None], names: Iterable[str]) -> Flows:
    """Of these services, summed over the MUXes that get packets; ``drains`` is the plan's. MUXes tell of no backend
    that has none; and where one has not told anything, nothing is known."""
    wanted = set(names)
    told = [
        _told_flows(entry, wanted)
        for entry in entries
        if entry.record.kind == MUX and not entry.gone and not withdrawn(entry, drains)
    ]

    def flows(service: str, backend: str) -> int | None:
        counts = [of.get((service, backend), none) for of, none in told]
        known = [count for count in counts if count is not None]
        return sum(known) if counts and len(known) == len(counts) else None

    return flows


def _told_flows(entry: Entry, names: set[str]) -> tuple[dict[tuple[str, str], int], int | None]:
    """By service and backend; and what a backend has that it did not tell of."""
    told = rows(entry.status, "backends")
    found = {
        (str(row["service"]), str(row.get("name"))): row["flows"]
        for row in told
        if row.get("service") in names and isinstance(row.get("flows"), int)
    }
    return found, 0 if "backends" in entry.status and len(told) < ROWS_MAX else None
