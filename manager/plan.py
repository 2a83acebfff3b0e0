# SPDX-License-Identifier: Apache-2.0
"""From what should be and what is to what every node should have. Pure; :mod:`manager.controller` calls it.

    desired services + nodes (what each has live) + reports + memory  ->  a NodeState for each node, and new memory

The plan is made VIP by VIP, for what is at one VIP does not depend on what is at another; :func:`replan` makes only
those VIPs anew that something happened to, and gives what :func:`plan` would give. Planning again once the nodes have
what they should changes nothing. The order of steps comes from looking at what nodes have acknowledged:

* install before announce: a MUX is told to announce a VIP once it has the VIP's services itself and the agents of
  their backends have them too, and accept this MUX's tunnels. A backend takes no traffic before its agent has it.
* withdraw before remove: what is at a VIP that nobody wants any more stays on MUXes until none announces the VIP,
  and on agents until no MUX has it. A backend taken out of a service stays on its agent until no MUX sends to it.
* what was granted stays granted: memory outlives the manager, so that one that starts anew withdraws nothing.

A MUX that is gone for longer than the hold time, and an agent that is gone or does not answer, hold nobody up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lb.config_text import service_table, vip_text
from lb.model import Address, Announce, AnnouncePolicy, Backend, BackendState, Network, Service
from lb.node.messages import NodeState
from manager.desired import Desired
from manager.health import Evidence, Health, Reports, judge

MUX, AGENT = "mux", "agent"

#: Service, backend and its address: a backend that moves is another one.
BackendKey = tuple[str, str, str]

#: Agent -> service -> table.
AgentTables = Mapping[str, Mapping[str, Any]]

#: Probes may take out this share of a service's weight, not more.
CAPACITY_CAP = 0.5


@dataclass(frozen=True, slots=True)
class Node:
    """One MUX or agent, as the manager sees it."""

    kind: str
    name: str
    address: Address | None = None
    address6: Address | None = None
    connected: bool = False
    gone: bool = False  #: not connected for longer than the hold time, so it announces nothing any more
    late: bool = False  #: has not acknowledged for so long that nobody waits for it
    live: NodeState | None = None  #: what it acknowledged; None: not known, as after a start of the manager
    refused: str | None = None  #: why it refused what it should have

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.name}"

    def has(self, section: str, key: str) -> Any:
        """A value of its live state, or None."""
        return None if self.live is None else self.live.get(section, {}).get(key)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What must be known of a backend to judge it next time; outlives the manager."""

    healthy: bool  #: the last verdict that was one
    proven: bool  #: it was healthy at some time
    taking: bool  #: MUXes were told that it takes new flows
    shown: str
    since: float  #: of ``shown``


@dataclass(frozen=True, slots=True)
class Memory:
    """What the last plan decided, as far as the next depends on it."""

    backends: Mapping[BackendKey, Remembered] = field(default_factory=dict)
    granted: Mapping[Network, frozenset[str]] = field(default_factory=dict)  #: VIP -> MUXes told to announce it
    lent: Mapping[Network, AgentTables] = field(default_factory=dict)  #: VIP -> what agents were told of it


@dataclass(frozen=True, slots=True)
class World:
    """All that a plan depends on."""

    desired: Desired
    muxes: Mapping[str, Node]
    agents: Mapping[str, Node]
    agent_at: Mapping[Address, str]  #: whose host is at an address
    reports: Reports
    memory: Memory = Memory()
    now: float = 0.0
    withdraw_cap: float = 0.5
    draining: frozenset[str] = frozenset()  #: MUXes told to drain; replan() fills it in

    def agent_of(self, address: Address) -> Node | None:
        name = self.agent_at.get(address)
        return None if name is None else self.agents.get(name)


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One backend of one service: what MUXes are told, and why."""

    service: str
    backend: Backend
    state: BackendState  #: what MUXes are told
    shown: str  #: up, down, drain, panic (down, but kept), unknown, installing
    reason: str
    since: float
    healthy: bool

    @property
    def key(self) -> BackendKey:
        return (self.service, self.backend.name, str(self.backend.address))


@dataclass(frozen=True, slots=True)
class VipPlan:
    """What is at one VIP."""

    vip: Network
    tables: Mapping[str, Any] = field(default_factory=dict)  #: for every MUX: service -> table
    agents: AgentTables = field(default_factory=dict)
    announcement: Mapping[str, Any] | None = None
    granted: frozenset[str] = frozenset()  #: MUXes that shall announce it
    withheld: Mapping[str, str] = field(default_factory=dict)  #: the other MUXes, and why they do not
    backends: tuple[BackendPlan, ...] = ()
    panic: Mapping[str, str] = field(default_factory=dict)  #: service -> reason
    done: tuple[str, ...] = ()  #: retiring services that nobody has any more


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node should have."""

    vips: Mapping[Network, VipPlan] = field(default_factory=dict)
    states: Mapping[str, NodeState] = field(default_factory=dict)  #: node's id -> state
    drains: Mapping[str, str | None] = field(default_factory=dict)  #: MUX to drain -> None, or why it must wait
    memory: Memory = Memory()


# --- the whole -------------------------------------------------------------------------------------------------------


def plan(world: World) -> Plan:
    """Everything anew."""
    return replan(Plan(), world, None)


def replan(last: Plan, world: World, touched: Iterable[Network] | None) -> Plan:
    """``last`` with the VIPs in ``touched`` planned anew; None: all. Whatever else changed in ``world`` must not
    matter to the other VIPs: that is the caller's promise."""
    drains = drain_muxes(world)
    world = replace(world, draining=frozenset(name for name, waits in drains.items() if waits is None))
    desired = world.desired
    everywhere = {*last.vips, *desired.by_vip, *desired.retiring_by_vip}
    names = everywhere if touched is None else everywhere.intersection(touched)
    vips = dict(last.vips)
    for vip in names:
        if vip in desired.by_vip or vip in desired.retiring_by_vip:
            vips[vip] = plan_vip(vip, world)
        else:
            vips.pop(vip, None)
    states = _States(last, world, vips, names).states()
    before = Memory() if touched is None else world.memory
    return Plan(vips, states, drains, _remember(last, before, world.memory, vips, names))


def _remember(
    last: Plan, before: Memory, known: Memory, vips: Mapping[Network, VipPlan], names: Iterable[Network]
) -> Memory:
    """``before`` with what was planned anew."""
    backends, granted, lent = dict(before.backends), dict(before.granted), dict(before.lent)
    gone = {found.key for vip in names if vip in last.vips for found in last.vips[vip].backends}
    for vip in names:
        found = vips.get(vip)
        granted.pop(vip, None)
        lent.pop(vip, None)
        if found is None:
            continue
        if found.granted:
            granted[vip] = found.granted
        if found.agents:
            lent[vip] = found.agents
        for item in found.backends:
            gone.discard(item.key)
            old = known.backends.get(item.key)
            proven = item.healthy or (old is not None and old.proven)
            new = Remembered(item.healthy, proven, item.state is BackendState.UP, item.shown, item.since)
            backends[item.key] = old if old == new and old is not None else new
    for key in gone:
        backends.pop(key, None)
    return Memory(backends, granted, lent)


def drain_muxes(world: World) -> dict[str, str | None]:
    """Which of the MUXes that operators drain may go now: enough others must stay. First ordered, first served."""
    muxes = world.muxes
    orders = sorted(
        ((order.at, name) for name, order in world.desired.mux_drains.items() if name in muxes), key=lambda o: o
    )
    must_stay = math.ceil(len(muxes) * (1 - world.withdraw_cap)) if len(muxes) > 1 else 0
    serving = {name for name, mux in muxes.items() if not mux.gone}
    answers: dict[str, str | None] = {}
    for _, name in orders:
        left = len(serving - {name})
        if left >= must_stay or name not in serving:
            serving.discard(name)
            answers[name] = None
        else:
            answers[name] = f"waits: {left} of {len(muxes)} MUXes would be left, withdraw_cap asks for {must_stay}"
    return answers


# --- one VIP ---------------------------------------------------------------------------------------------------------


def plan_vip(vip: Network, world: World) -> VipPlan:
    """All that is at one VIP."""
    names = world.desired.by_vip.get(vip)
    if names is None:
        return _retire(vip, world)
    services = [world.desired.services[name] for name in names]
    backends: list[BackendPlan] = []
    panic: dict[str, str] = {}
    tables: dict[str, Any] = {}
    for service in services:
        found, reason = plan_backends(service, world)
        backends += found
        tables[service.name] = _mux_table(service, found)
        if reason is not None:
            panic[service.name] = reason
    unwanted = _unwanted(services, backends)
    granted, withheld = _grants(vip, services, backends, unwanted, world)
    return VipPlan(
        vip,
        tables=tables,
        agents=_with_lent(vip, _agent_tables(services, world), world),
        announcement=_announcement(services),
        granted=granted,
        withheld=withheld,
        backends=tuple(backends),
        panic=panic,
    )


def _retire(vip: Network, world: World) -> VipPlan:
    """Nobody wants the VIP: withdraw it, then take its services from the MUXes, then from the agents."""
    keys = world.desired.retiring_by_vip[vip]
    services = [replace(world.desired.retiring[key], name=key) for key in keys]
    prefix = str(vip)
    withheld = dict.fromkeys(world.muxes, "its services were deleted")

    def holds(mux: Node, section: str, wanted: Iterable[str]) -> bool:
        if mux.gone:
            return False
        return mux.live is None or any(key in mux.live.get(section, {}) for key in wanted)

    if any(holds(mux, "announcements", [prefix]) for mux in world.muxes.values()):
        tables = {service.name: service_table(replace(service, announce=None)) for service in services}
        return VipPlan(vip, tables=tables, agents=_agent_tables(services, world), withheld=withheld)
    if any(holds(mux, "services", keys) for mux in world.muxes.values()):
        return VipPlan(vip, agents=_agent_tables(services, world), withheld=withheld)
    return VipPlan(vip, withheld=withheld, done=tuple(keys))


# --- backends --------------------------------------------------------------------------------------------------------


def plan_backends(service: Service, world: World) -> tuple[list[BackendPlan], str | None]:
    """Every backend of a service, and why the service is in panic, if it is."""
    judged = [_judge(service, backend, world) for backend in service.backends]
    return _cap(service, judged, world)


def _judge(service: Service, backend: Backend, world: World) -> BackendPlan:
    """One backend by itself."""
    key = (service.name, backend.name, str(backend.address))
    known = world.memory.backends.get(key)
    order = world.desired.drains.get(f"{service.name}/{backend.name}")
    healthy, shown, reason = _health(service, backend, known, world)
    state = BackendState.UP if healthy else BackendState.DOWN
    if backend.state is BackendState.DOWN:
        state, shown, reason = BackendState.DOWN, "down", 'its table says state = "down"'
        healthy = False
    elif order is not None or backend.state is BackendState.DRAIN:
        who = f"drained by {order.who}" if order is not None else 'its table says state = "drain"'
        # A drained backend keeps its flows even where a probe fails: draining ends with them, or with "down".
        state, reason = BackendState.DRAIN, f"{who}; {shown}: {reason}"
        shown = "drain"
    since = known.since if known is not None and known.shown == shown else world.now
    return BackendPlan(service.name, backend, state, shown, reason, since, healthy)


def _health(service: Service, backend: Backend, known: Remembered | None, world: World) -> tuple[bool, str, str]:
    """Is it able to serve: (yes or no, what to show, why)."""
    agent = world.agent_of(backend.address)
    # Of an agent that has not told yet what it has, and of one that is away, the best guess is what was.
    told = agent is not None and agent.connected and agent.live is not None
    was_there = known is not None and known.proven
    waiting = _not_installed(agent, service, backend) if agent is not None and (told or not was_there) else None
    if waiting is not None:
        return False, "installing", waiting
    if service.probe is None:
        whose = "" if agent is not None else f"; no agent has joined for {backend.address}"
        return True, "up", f"it has no probe, so it is taken to be well{whose}"
    key = (service.name, backend.name)
    verdict = judge(
        Evidence(
            world.reports.agent(agent.name if agent else None, key),
            world.reports.tunnels(key),
            sum(not mux.gone for mux in world.muxes.values()),
        )
    )
    if verdict.health is not Health.UNKNOWN:
        return verdict.health is Health.UP, verdict.health.value, verdict.reason
    if known is None or not known.proven:
        return False, "unknown", f"{verdict.reason}; it takes traffic after its first success"
    return known.healthy, "up" if known.healthy else "down", f"{verdict.reason}; it stays as it was"


def _not_installed(agent: Node, service: Service, backend: Backend) -> str | None:
    """Why its agent cannot serve the backend yet, or None."""
    table = agent.has("services", service.name)
    if table is not None and any(
        item["address"] == str(backend.address) and item["name"] == backend.name for item in table["backend"]
    ):
        return None
    if agent.refused is not None:
        return f"agent {agent.name} refused it: {agent.refused}"
    return f"agent {agent.name} has not installed it yet" + ("" if agent.connected else ": it is not connected")


def _cap(service: Service, judged: list[BackendPlan], world: World) -> tuple[list[BackendPlan], str | None]:
    """Probes must not take out more than half: then the last good set stays, dead or not."""
    memory = world.memory.backends
    wanted = [item for item in judged if item.shown != "drain" and item.backend.state is BackendState.UP]
    wanted = [item for item in wanted if item.backend.weight > 0]
    healthy = sum(item.backend.weight for item in wanted if item.healthy)
    total = sum(
        item.backend.weight for item in wanted if item.healthy or (item.key in memory and memory[item.key].proven)
    )
    lost = {item.key for item in wanted if not item.healthy and item.key in memory and memory[item.key].taking}
    if not lost or healthy >= total * (1 - CAPACITY_CAP):
        return judged, None
    share = f"{len([item for item in wanted if item.healthy])} of {len(wanted)} backends are healthy"
    reason = f"PANIC: only {share}; the last good set stays in service"
    return [_kept(item, memory, world.now) if item.key in lost else item for item in judged], reason


def _kept(item: BackendPlan, memory: Mapping[BackendKey, Remembered], now: float) -> BackendPlan:
    known = memory[item.key]
    since = known.since if known.shown == "panic" else now
    reason = f"{item.reason}; kept in service all the same, for too few others are healthy"
    return replace(item, state=BackendState.UP, shown="panic", reason=reason, since=since)


# --- announcing ------------------------------------------------------------------------------------------------------


def _unwanted(services: list[Service], backends: list[BackendPlan]) -> str | None:
    """Why the VIP's policies do not want it announced, or None: one service that wants it is enough."""
    reasons = []
    for service in services:
        healthy = sum(item.healthy for item in backends if item.service == service.name)
        policy = service.announce.policy if service.announce else AnnouncePolicy.ALWAYS
        needed = {AnnouncePolicy.ALWAYS: 0, AnnouncePolicy.ANY_BACKEND: 1}.get(policy)
        if needed is None:
            needed = service.announce.n or 1 if service.announce else 1
        if healthy >= needed:
            return None
        reasons.append(f"{service.name} has {healthy} healthy backends and its policy {policy.value} asks for {needed}")
    return "; ".join(reasons)


def _announcement(services: list[Service]) -> dict[str, Any]:
    """The services that share a VIP agree on this: manager.desired sees to it."""
    announce = next((service.announce for service in services if service.announce is not None), Announce())
    return {
        "communities": list(announce.communities),
        "med": announce.med,
        "prepend": announce.prepend,
        "peers": announce.peers.value,
    }


def _grants(
    vip: Network, services: list[Service], backends: list[BackendPlan], unwanted: str | None, world: World
) -> tuple[frozenset[str], dict[str, str]]:
    """Which MUXes shall announce the VIP, and why the others shall not."""
    if unwanted is not None:
        return frozenset(), dict.fromkeys(world.muxes, unwanted)
    before = world.memory.granted.get(vip, frozenset())
    withheld = _blind(before, backends, world)
    granted = set()
    for name, mux in world.muxes.items():
        if name in withheld:
            continue
        reason = None if name in before else _not_ready(mux, services, world)
        if reason is None:
            granted.add(name)
        else:
            withheld[name] = reason
    return frozenset(granted), withheld


def _not_ready(mux: Node, services: list[Service], world: World) -> str | None:
    """Why packets that came to this MUX now would be lost, or None."""
    if not mux.connected:
        return "it is not connected"
    if mux.refused is not None:
        return f"it refused its state: {mux.refused}"
    for service in services:
        table = mux.has("services", service.name)
        if table is None or table["vip"] != vip_text(service.vip):
            return f"it has not installed service {service.name} yet"
        for backend in service.backends:
            reason = _agent_not_ready(mux, service, backend, world)
            if reason is not None:
                return reason
    return None


def _agent_not_ready(mux: Node, service: Service, backend: Backend, world: World) -> str | None:
    if backend.state is not BackendState.UP or backend.weight == 0:
        return None
    agent = world.agent_of(backend.address)
    if agent is None or not agent.connected or agent.late or agent.refused is not None:
        return None  # nobody waits for it; the backend takes no traffic meanwhile
    if _not_installed(agent, service, backend) is not None:
        return f"agent {agent.name} has not installed service {service.name} yet"
    if agent.has("muxes", mux.name) != _outer(mux):
        return f"agent {agent.name} does not accept its tunnels yet"
    return None


def _blind(before: frozenset[str], backends: list[BackendPlan], world: World) -> dict[str, str]:
    """MUXes that reach none of the backends that others find healthy; no more of them than withdraw_cap allows."""
    healthy = [item for item in backends if item.healthy and item.shown in ("up", "drain")]
    reports = [world.reports.tunnels((item.service, item.backend.name)) for item in healthy]
    if not healthy or not any(reports):
        return {}
    serving = {name for name, mux in world.muxes.items() if not mux.gone}
    blind = [
        name
        for name in sorted(serving, key=lambda name: (name in before, name))
        if all(name in found and not found[name].up for found in reports)
    ]
    must_stay = max(1, math.ceil(len(serving) * (1 - world.withdraw_cap)))
    allowed = max(0, len(serving - world.draining) - must_stay)
    blind = [name for name in blind if name not in world.draining][:allowed]
    return dict.fromkeys(blind, "it reaches no healthy backend through the tunnel, other MUXes do")


# --- tables for nodes ------------------------------------------------------------------------------------------------


def _mux_table(service: Service, backends: list[BackendPlan]) -> dict[str, Any]:
    """What a MUX needs of a service: all but the announcement, each backend with the state that it has now."""
    states = {item.backend.name: item.state for item in backends}
    told = tuple(
        backend if states[backend.name] is backend.state else replace(backend, state=states[backend.name])
        for backend in service.backends
    )
    return service_table(replace(service, announce=None, backends=told))


def _agent_tables(services: list[Service], world: World) -> dict[str, dict[str, Any]]:
    """What each agent needs: its own backends, with no state or weight, so that these do not disturb it."""
    found: dict[str, dict[str, Any]] = {}
    for service in services:
        own: dict[str, list[Backend]] = {}
        for backend in service.backends:
            agent = world.agent_of(backend.address)
            if agent is not None:
                own.setdefault(agent.name, []).append(Backend(backend.name, backend.address, backend.port))
        for name, backends in own.items():
            bare = replace(service, announce=None, slots=None, idle=None, backends=tuple(backends))
            found.setdefault(name, {})[service.name] = service_table(bare)
    return found


def _with_lent(vip: Network, tables: dict[str, dict[str, Any]], world: World) -> dict[str, dict[str, Any]]:
    """What agents had of this VIP stays with them until no MUX sends to it any more."""
    for agent, services in world.memory.lent.get(vip, {}).items():
        for name, table in services.items():
            wanted = world.desired.services.get(name)
            if agent not in world.agents or (wanted is not None and wanted.vip != vip):
                continue
            now = tables.get(agent, {}).get(name)
            kept = {item["name"] for item in now["backend"]} if now else set()
            used = [
                item
                for item in table["backend"]
                if item["name"] not in kept
                and any(_may_send(mux, name, item["address"]) for mux in world.muxes.values())
            ]
            if used:
                base = now or table
                both = {**base, "backend": [*(now["backend"] if now else ()), *used]}
                tables.setdefault(agent, {})[name] = both
    return tables


def _may_send(mux: Node, service: str, address: str) -> bool:
    """May packets of the service go from this MUX to that host?"""
    if mux.gone:
        return False
    if mux.live is None:
        return True
    table = mux.has("services", service)
    return table is not None and any(item["address"] == address for item in table["backend"])


def _outer(mux: Node) -> dict[str, str | None]:
    """A MUX as agents know it."""
    return {
        "address": None if mux.address is None else str(mux.address),
        "address6": None if mux.address6 is None else str(mux.address6),
    }


class _States:
    """Puts the plans of VIPs together into a state for every node; what did not change stays the same object."""

    def __init__(self, last: Plan, world: World, vips: Mapping[Network, VipPlan], names: set[Network]) -> None:
        self._last = last
        self._world = world
        self._vips = vips
        self._names = names
        self._whole = not names < last.vips.keys() | vips.keys()

    def states(self) -> dict[str, NodeState]:
        services = self._services()
        panic = {service: reason for found in self._vips.values() for service, reason in found.panic.items()}
        muxes = {name: _outer(mux) for name, mux in sorted(self._world.muxes.items())}
        states = {mux.id: self._mux(mux, services, panic) for mux in self._world.muxes.values()}
        touched = self._touched_agents()
        for agent in self._world.agents.values():
            services = self._agent(agent) if agent.name in touched else self._before(agent, "services")
            states[agent.id] = _without_empty({"services": services, "muxes": muxes})
        return states

    def _before(self, node: Node, section: str) -> dict[str, Any]:
        return {} if self._whole else self._last.states.get(node.id, {}).get(section, {})

    def _services(self) -> dict[str, Any]:
        """Of all MUXes alike."""
        tables: dict[str, Any] = {}
        for found in self._vips.values():
            tables.update(found.tables)
        return tables

    def _mux(self, mux: Node, services: dict[str, Any], panic: dict[str, str]) -> NodeState:
        announcements = dict(self._before(mux, "announcements"))
        for vip in self._names:
            announcements.pop(str(vip), None)
            found = self._vips.get(vip)
            if found is not None and mux.name in found.granted:
                announcements[str(vip)] = found.announcement
        options: dict[str, Any] = {"drain": True} if mux.name in self._world.draining else {}
        if panic:
            options["panic"] = panic
        return _without_empty({"services": services, "announcements": announcements, "options": options})

    def _touched_agents(self) -> set[str]:
        """Those with something at a VIP that was planned anew, now or before; all where all is made anew."""
        if self._whole:
            return set(self._world.agents)
        plans = [found for vip in self._names for found in (self._last.vips.get(vip), self._vips.get(vip)) if found]
        return {name for found in plans for name in found.agents}

    def _agent(self, agent: Node) -> dict[str, Any]:
        services = dict(self._before(agent, "services"))
        for vip in self._names:
            before = self._last.vips.get(vip)
            for key in before.agents.get(agent.name, {}) if before else ():
                services.pop(key, None)
        for vip in self._names:
            found = self._vips.get(vip)
            services.update(found.agents.get(agent.name, {}) if found else {})
        return services


def _without_empty(state: NodeState) -> NodeState:
    return {section: entries for section, entries in state.items() if entries}
