# SPDX-License-Identifier: Apache-2.0
"""What each node should have: the plans of VIPs put together into a state for every MUX and agent. Pure.

Called by :mod:`manager.plan.plan`. What did not change stays the same object, so that comparing, and telling, costs
what changed. Agents keep what MUXes may still send to (:func:`with_lent`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

from lb.config.render import port_value
from lb.model import PortRange
from lb.model.persistent_map import PersistentMap
from lb.node.messages import NAME_MAX, NodeState
from manager.desired.state import Desired
from manager.plan.model import AGENT, MUX, Node, Plan, Prepared, Vip, VipPlan, World, tables_of
from manager.plan.previous import Previous, overlap, ports_of, without

K = TypeVar("K")
V = TypeVar("V")


def agents_of(services: list[Prepared]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for prepared in services:
        for agent, table in prepared.agent_tables.items():
            found.setdefault(agent, {})[prepared.service.name] = table
    return found


def with_lent(before: Previous, tables: dict[str, dict[str, Any]], world: World) -> dict[str, dict[str, Any]]:
    """What agents had of this VIP stays with them until no MUX sends to it any more.

    What an agent has at a place now goes before what it had there: it is the same host, whatever things are called. Of
    what it had, only those ports stay that it has not now, for two services of one host must not tie.
    """
    sent: list[_Reach] | None = None
    for agent, services in before.lent.items():
        here = tables.get(agent, {})
        others = sorted(key for key, table in services.items() if here.get(key) is not table)
        if agent not in world.agents or not others:
            continue
        if sent is None:
            sent = [_Reach(mux, before, world) for mux in world.muxes.values()]
        mine = dict(here)
        own = {(table["protocol"], ports_of(table)) for table in mine.values()}
        for key in others:
            table = services[key]
            pieces = _untied(table, mine.values())
            if not pieces or not any(mux.may_need(table, own) for mux in sent):
                continue
            for piece in pieces:
                port = port_value(piece)
                name = _lent_name(key, before.vip, mine, world.desired)
                mine[name] = table if table["port"] == port else {**table, "port": port}
        if mine:
            tables[agent] = mine
    return tables


def _untied(table: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[PortRange]:
    """Those ports of an agent's table that it may have beside others of its VIP."""
    ports = ports_of(table)
    here = [ports_of(other) for other in others if other["protocol"] == table["protocol"]]
    pieces = without(ports, [other for other in here if _kind(other) == _kind(ports)])
    return [piece for piece in pieces if piece not in here]  # of a range, one port may be left: that is another kind


def _kind(ports: PortRange) -> int:
    """Only services of one kind can tie: of others, one is the more specific."""
    return 0 if ports.exact else 2 if ports.any else 1


def _lent_name(key: str, vip: Vip, mine: Container[str], desired: Desired) -> str:
    """A name of this VIP's own: by now another VIP may have a service of the old one."""
    if key in desired.by_vip.get(vip, ()) and key not in mine:
        return key
    suffix = f"~{vip}"
    own = re.search(rf"{re.escape(suffix)}(~[0-9]+)?$", key)
    base, name, number = key[: own.start()] if own else key, key, 2
    if own is None:
        name = base[: NAME_MAX - len(suffix)] + suffix
    while name in mine or name in desired.services or name in desired.retiring:
        more = f"{suffix}~{number}"
        name, number = base[: NAME_MAX - len(more)] + more, number + 1
    return name


class _Reach:
    """Where a MUX may send packets of one VIP."""

    def __init__(self, mux: Node, before: Previous, world: World) -> None:
        self._mux = mux
        self._world, self._vip = world, before.vip
        self._unknown = mux.live is None or before.vip in mux.owes
        self._exact: set[tuple[str, int, str]] | None = None  # protocol, port, address
        self._wide: list[tuple[str, PortRange, str]] = []

    def may_need(self, table: Mapping[str, Any], own: Container[tuple[str, PortRange]]) -> bool:
        """May packets go from this MUX to that host for which an agent's table was made? Not those of services of
        which the host has tables of their own."""
        if self._mux.gone or self._unknown:
            return not self._mux.gone
        if self._exact is None:
            self._exact = self._look()
        protocol, ports = table["protocol"], ports_of(table)
        places = {(protocol, item["address"]) for item in table["backend"]}
        if ports.exact:  # the most common: there may be thousands
            held = ((protocol, ports) not in own) and any((kind, ports.first, at) in self._exact for kind, at in places)
        else:
            held = any(
                (kind, at) in places and ports.first <= port <= ports.last and (kind, PortRange(port, port)) not in own
                for kind, port, at in self._exact
            )
        return held or any(
            (kind, at) in places and overlap(wide, ports) and (kind, wide) not in own for kind, wide, at in self._wide
        )

    def _look(self) -> set[tuple[str, int, str]]:
        found: set[tuple[str, int, str]] = set()
        for table in tables_of(self._world).live(self._mux, self._vip):
            ports = ports_of(table)
            places = [item["address"] for item in table["backend"]]
            if ports.exact:
                found.update((table["protocol"], ports.first, address) for address in places)
            else:
                self._wide += [(table["protocol"], ports, address) for address in places]
        return found


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
        services = self.services
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

    @functools.cached_property
    def services(self) -> PersistentMap[str, Any]:
        """What every MUX that can has."""
        return self._changed(self._last.services, "tables")

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
