# SPDX-License-Identifier: Apache-2.0
"""What each node should have: the plans of VIPs put together into a state for every MUX and agent. Pure.

Called by :mod:`manager.plan`. What did not change stays the same object, so that comparing, and telling, costs what
changed. Agents keep what MUXes may still send to (:func:`with_lent`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lb.node.messages import NAME_MAX, NodeState
from lb.persistent import PersistentMap
from manager.world import AGENT, MUX, Node, Plan, Prepared, Vip, VipPlan, World

K = TypeVar("K")
V = TypeVar("V")

#: What manager.desired adds to the name of a service that retires.
_RETIRING = re.compile(r"~\d+$")


def agents_of(services: list[Prepared]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for prepared in services:
        for agent, table in prepared.agent_tables.items():
            found.setdefault(agent, {})[prepared.service.name] = table
    return found


def with_lent(vip: Vip, tables: dict[str, dict[str, Any]], world: World) -> dict[str, dict[str, Any]]:
    """What agents had of this VIP stays with them until no MUX sends to it any more.

    It joins what the agent has at that place, such as the service while it retires. Otherwise what is left of a service
    that is here no more goes under a name of this VIP's own: by now another VIP may have a service of the old name.
    """
    here, suffix = world.desired.by_vip.get(vip, ()), f"~{vip}"
    for agent, services in world.memory.lent.get(vip, {}).items():
        if agent not in world.agents:
            continue
        for table in services.values():
            name = table["name"]
            mine = tables.get(agent, {})
            key = name if name in here else name[: NAME_MAX - len(suffix)] + suffix
            key = next((other for other, there in mine.items() if _same_place(there, table)), key)
            now = mine.get(key)
            kept = {item["name"] for item in now["backend"]} if now else set()
            used = [
                item
                for item in table["backend"]
                if item["name"] not in kept
                and any(_may_send(mux, name, table["vip"], item["address"]) for mux in world.muxes.values())
            ]
            if used:
                base = now or table
                both = {**base, "backend": [*(now["backend"] if now else ()), *used]}
                tables.setdefault(agent, {})[key] = both
    return tables


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Of one VIP: an agent cannot have two services there."""
    return (one["protocol"], one["port"]) == (other["protocol"], other["port"])


def _may_send(mux: Node, service: str, vip: str, address: str) -> bool:
    """May packets of the service at this VIP go from this MUX to that host?"""
    if mux.gone:
        return False
    if mux.live is None:
        return True
    for name in {service, _RETIRING.sub("", service)}:  # a MUX that has not followed knows it by its own name
        table = mux.has("services", name)
        if table is not None and table["vip"] == vip and any(item["address"] == address for item in table["backend"]):
            return True
    return False


def outer(mux: Node) -> dict[str, str | None]:
    """A MUX as agents know it."""
    return {
        "address": None if mux.address is None else str(mux.address),
        "address6": None if mux.address6 is None else str(mux.address6),
    }


class States:
    """Puts the plans of VIPs together into a state for every node; what did not change stays the same object."""

    def __init__(self, last: Plan, world: World, vips: Mapping[Vip, VipPlan], names: set[Vip] | None) -> None:
        self._last = last if names is not None else Plan()
        self._world = world
        self._old = [last.vips[vip] for vip in names if vip in last.vips] if names is not None else []
        self._new = [vips[vip] for vip in names if vip in vips] if names is not None else list(vips.values())

    def states(self) -> dict[str, NodeState]:
        services = self._changed(self._before(MUX, "services"), "tables")
        panic = self._changed(self._before(MUX, "options").get("panic", {}), "panic")
        muxes: Mapping[str, Any] = {name: outer(mux) for name, mux in sorted(self._world.muxes.items())}
        known = self._before(AGENT, "muxes")
        muxes = known if muxes == known else muxes
        states = {mux.id: self._mux(mux, services, panic) for mux in self._world.muxes.values()}
        tables = self._agent_services()
        for agent in self._world.agents.values():
            before = self._last.states.get(agent.id, {})
            own: Mapping[str, Any] = tables.get(agent.name, before.get("services", {}))
            same = own is before.get("services") and muxes is before.get("muxes")
            states[agent.id] = before if same else _without_empty({"services": own, "muxes": muxes})
        return states

    def _before(self, kind: str, section: str) -> Mapping[str, Any]:
        """What all MUXes, or all agents, had alike."""
        return next((s.get(section, {}) for id_, s in self._last.states.items() if id_.startswith(kind)), {})

    def _changed(self, before: Mapping[str, Any], what: str) -> PersistentMap[str, Any]:
        """The entries before, without those of old plans of VIPs, with those of the new."""
        old = {key: value for found in self._old for key, value in getattr(found, what).items()}
        new = {key: value for found in self._new for key, value in getattr(found, what).items()}
        return replaced(before, old, new)

    def _mux(self, mux: Node, services: Mapping[str, Any], panic: Mapping[str, str]) -> NodeState:
        before = self._last.states.get(mux.id, {}).get("announcements", {})
        old = {found.vip: None for found in self._old}
        new = {found.vip: found.announcement for found in self._new if mux.name in found.granted}
        options: dict[str, Any] = {"drain": True} if mux.name in self._world.draining else {}
        if panic:
            options["panic"] = dict(sorted(panic.items()))  # a value of an entry is plain JSON
        announcements = replaced(before, old, new)
        return _without_empty({"services": services, "announcements": announcements, "options": options})

    def _agent_services(self) -> dict[str, PersistentMap[str, Any]]:
        """Of the agents with something at a VIP that was planned anew, now or before."""
        old, new = _by_agent(self._old), _by_agent(self._new)
        none: dict[str, Any] = {}
        return {
            name: replaced(
                self._last.states.get(f"{AGENT}:{name}", {}).get("services", none),
                old.get(name, none),
                new.get(name, none),
            )
            for name in old.keys() | new.keys()
        }


def _by_agent(plans: Iterable[VipPlan]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for vip_plan in plans:
        for name, tables in vip_plan.agents.items():
            found.setdefault(name, {}).update(tables)
    return found


def replaced(before: Mapping[K, V], old: Iterable[K], new: Mapping[K, V]) -> PersistentMap[K, V]:
    """``before`` without ``old`` and with ``new``; itself where that is the same."""
    return (before if isinstance(before, PersistentMap) else PersistentMap(before)).replaced(old, new)


def _without_empty(state: NodeState) -> NodeState:
    return {section: entries for section, entries in state.items() if entries}
