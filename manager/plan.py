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
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from lb.config_text import service_table, vip_text
from lb.model import Address, Announce, AnnouncePolicy, Backend, BackendState, Service
from lb.node.messages import NAME_MAX, NodeState
from manager.blind import Sight, blind_from, sees_nothing
from manager.desired import Desired
from manager.health import Evidence, Health, Reports, judge
from manager.slow_start import Ramp, ramp, weights

MUX, AGENT = "mux", "agent"

#: Service, backend and its address: a backend that moves is another one.
BackendKey = tuple[str, str, str]

K = TypeVar("K")

#: A VIP as text, always with its length: "203.0.113.10/32". Text is a faster key than a network.
Vip = str

#: Agent -> service -> table.
AgentTables = Mapping[str, Mapping[str, Any]]

#: What manager.desired adds to the name of a service that retires.
_RETIRING = re.compile(r"~\d+$")

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
    ramp_begun: float | None = None  #: since when it comes to its weight in steps; None: it has it


@dataclass(frozen=True, slots=True)
class Memory:
    """What the last plan decided, as far as the next depends on it. Never changed in place."""

    backends: dict[BackendKey, Remembered] = field(default_factory=dict)
    granted: dict[Vip, frozenset[str]] = field(default_factory=dict)  #: VIP -> MUXes told to announce it
    lent: dict[Vip, AgentTables] = field(default_factory=dict)  #: VIP -> what agents were told of it


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
    tables: Tables | None = None  #: kept from plan to plan, it saves most of the work; changes no result


class Tables:
    """What was made of services before. One entry for each service, valid for that very object."""

    def __init__(self) -> None:
        self._prepared: dict[str, Prepared] = {}

    def get(self, service: Service, world: World) -> Prepared:
        found = self._prepared.get(service.name)
        if found is None or found.service is not service or not found.fits(world):
            found = self._prepared[service.name] = Prepared(service, world)
        return found

    def keep_only(self, names: Container[str]) -> None:
        self._prepared = {name: found for name, found in self._prepared.items() if name in names}


class Told(NamedTuple):
    """What MUXes are told of a backend beside its table."""

    state: BackendState
    weight: int

    @classmethod
    def of(cls, backend: Backend) -> Told:
        """What its table says."""
        return cls(backend.state, backend.weight)


class Prepared:
    """What a plan needs of a service and does not depend on how its backends are."""

    def __init__(self, service: Service, world: World) -> None:
        self.service = service
        self.agent_at = world.agent_at
        self.vip = vip_text(service.vip)
        self.addresses = [str(backend.address) for backend in service.backends]
        self.agents = self._find_agents(world)
        self.agent_tables = self._agent_tables()
        self._told: tuple[tuple[Told, ...], dict[str, Any]] | None = None

    def fits(self, world: World) -> bool:
        """Are its backends' agents still the same? One agent more elsewhere changes nothing here."""
        if self.agent_at is not world.agent_at:
            if self._find_agents(world) != self.agents:
                return False
            self.agent_at = world.agent_at
        return True

    def _find_agents(self, world: World) -> list[str | None]:
        return [world.agent_at.get(backend.address) for backend in self.service.backends]

    def mux_table(self, now: tuple[Told, ...]) -> dict[str, Any]:
        """What a MUX needs of the service, each backend with the state and weight that it has now."""
        if self._told is None or self._told[0] != now:
            told = tuple(
                backend if told == Told.of(backend) else replace(backend, state=told.state, weight=told.weight)
                for backend, told in zip(self.service.backends, now, strict=True)
            )
            bare = replace(self.service, announce=None, slow_start=None, backends=told)
            self._told = now, service_table(bare)
        return self._told[1]

    def _agent_tables(self) -> dict[str, dict[str, Any]]:
        """What each agent needs: its own backends, with no state or weight, so that these do not disturb it."""
        own: dict[str, list[Backend]] = {}
        for backend, agent in zip(self.service.backends, self.agents, strict=True):
            if agent is not None:
                own.setdefault(agent, []).append(Backend(backend.name, backend.address, backend.port))
        bare = replace(self.service, announce=None, slots=None, idle=None, slow_start=None)
        return {name: service_table(replace(bare, backends=tuple(found))) for name, found in own.items()}


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One backend of one service: what MUXes are told, and why."""

    service: str
    backend: Backend
    address: str  #: the backend's
    agent: str | None  #: the agent of its host
    state: BackendState  #: what MUXes are told
    shown: str  #: up, down, drain, panic (down, but kept), unknown, installing
    reason: str
    since: float
    healthy: bool
    ramp: Ramp | None = None  #: None: it has its whole weight

    @property
    def key(self) -> BackendKey:
        return (self.service, self.backend.name, self.address)


@dataclass(frozen=True, slots=True)
class VipPlan:
    """What is at one VIP."""

    vip: Vip
    tables: Mapping[str, Any] = field(default_factory=dict)  #: for every MUX: service -> table
    agents: AgentTables = field(default_factory=dict)
    announcement: Mapping[str, Any] | None = None
    granted: frozenset[str] = frozenset()  #: MUXes that shall announce it
    withheld: Mapping[str, str] = field(default_factory=dict)  #: the other MUXes, and why they do not
    backends: tuple[BackendPlan, ...] = ()
    panic: Mapping[str, str] = field(default_factory=dict)  #: service -> reason
    done: tuple[str, ...] = ()  #: retiring services that nobody has any more
    unsettled: float | None = None  #: a MUX that reaches no healthy backend counts as blind from then on

    @property
    def due(self) -> float | None:
        """When time alone makes another plan of it; None: never."""
        moments = [item.ramp.next_at for item in self.backends if item.ramp is not None]
        return min(moments if self.unsettled is None else [*moments, self.unsettled], default=None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node should have."""

    vips: Mapping[Vip, VipPlan] = field(default_factory=dict)
    states: Mapping[str, NodeState] = field(default_factory=dict)  #: node's id -> state
    drains: Mapping[str, str | None] = field(default_factory=dict)  #: MUX to drain -> None, or why it must wait
    memory: Memory = Memory()


# --- the whole -------------------------------------------------------------------------------------------------------


def plan(world: World) -> Plan:
    """Everything anew."""
    return replan(Plan(), world, None)


def replan(last: Plan, world: World, touched: Iterable[Vip] | None) -> Plan:
    """``last`` with the VIPs in ``touched`` planned anew; None: all. Whatever else changed in ``world`` must not
    matter to the other VIPs: that is the caller's promise."""
    drains = drain_muxes(world)
    world = replace(world, draining=frozenset(name for name, waits in drains.items() if waits is None))
    desired = world.desired
    names = {*last.vips, *desired.by_vip, *desired.retiring_by_vip} if touched is None else set(touched)
    vips = dict(last.vips)
    for vip in names:
        if vip in desired.by_vip or vip in desired.retiring_by_vip:
            vips[vip] = plan_vip(vip, world)
        else:
            vips.pop(vip, None)
    states = _States(last, world, vips, None if touched is None else names).states()
    before = Memory() if touched is None else world.memory
    return Plan(vips, states, drains, _remember(last, before, world.memory, vips, names))


def _remember(last: Plan, before: Memory, known: Memory, vips: Mapping[Vip, VipPlan], names: Iterable[Vip]) -> Memory:
    """``before`` with what was planned anew."""
    granted: dict[str, Any] = {}
    lent: dict[str, Any] = {}
    backends: dict[Any, Any] = {}
    gone: dict[Any, None] = {}
    for vip in names:
        gone.update((item.key, None) for item in (last.vips[vip].backends if vip in last.vips else ()))
        found = vips.get(vip)
        if found is None:
            continue
        if found.granted:
            granted[vip] = found.granted
        if found.agents:
            lent[vip] = found.agents
        for item in found.backends:
            key = item.key
            old = known.backends.get(key)
            proven = item.healthy or (old is not None and old.proven)
            taking = item.state is BackendState.UP
            begun = item.ramp.begun if item.ramp is not None else None
            backends[key] = Remembered(item.healthy, proven, taking, item.shown, item.since, begun)
    vips_gone = dict.fromkeys(names)
    return Memory(
        _replaced(before.backends, gone, backends),
        _replaced(before.granted, vips_gone, granted),
        _replaced(before.lent, vips_gone, lent),
    )


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


def plan_vip(vip: Vip, world: World) -> VipPlan:
    """All that is at one VIP."""
    names = world.desired.by_vip.get(vip)
    if names is None:
        return _retire(vip, world)
    tables_of = world.tables or Tables()
    services = [tables_of.get(world.desired.services[name], world) for name in names]
    backends: list[BackendPlan] = []
    panic: dict[str, str] = {}
    tables: dict[str, Any] = {}
    for prepared in services:
        found, reason = plan_backends(prepared, world)
        backends += found
        name = prepared.service.name
        told = weights(prepared.service.backends, [item.ramp for item in found])
        tables[name] = prepared.mux_table(
            tuple(Told(item.state, weight) for item, weight in zip(found, told, strict=True))
        )
        if reason is not None:
            panic[name] = reason
    unwanted = _unwanted(services, backends)
    granted, withheld, unsettled = _grants(vip, services, backends, unwanted, world)
    return VipPlan(
        vip,
        tables=tables,
        agents=_with_lent(vip, _agents_of(services), world),
        announcement=_announcement(services),
        granted=granted,
        withheld=withheld,
        backends=tuple(backends),
        panic=panic,
        unsettled=unsettled,
    )


def _retire(vip: Vip, world: World) -> VipPlan:
    """Nobody wants the VIP: withdraw it, then take its services from the MUXes, then from the agents."""
    keys = world.desired.retiring_by_vip[vip]
    services = [Prepared(replace(world.desired.retiring[key], name=key), world) for key in keys]
    withheld = dict.fromkeys(world.muxes, "its services were deleted")

    def holds(mux: Node, section: str, wanted: Iterable[str]) -> bool:
        if mux.gone:
            return False
        return mux.live is None or any(key in mux.live.get(section, {}) for key in wanted)

    if any(holds(mux, "announcements", [vip]) for mux in world.muxes.values()):
        tables = {
            found.service.name: found.mux_table(tuple(Told.of(backend) for backend in found.service.backends))
            for found in services
        }
        return VipPlan(vip, tables=tables, agents=_with_lent(vip, _agents_of(services), world), withheld=withheld)
    if any(holds(mux, "services", keys) for mux in world.muxes.values()):
        return VipPlan(vip, agents=_with_lent(vip, _agents_of(services), world), withheld=withheld)
    return VipPlan(vip, withheld=withheld, done=tuple(keys))


# --- backends --------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A backend of a service on a host."""

    service: Service
    backend: Backend
    address: str
    agent: Node | None


def plan_backends(prepared: Prepared, world: World) -> tuple[list[BackendPlan], str | None]:
    """Every backend of a service, and why the service is in panic, if it is."""
    judged = []
    for backend, address, agent in zip(prepared.service.backends, prepared.addresses, prepared.agents, strict=True):
        node = None if agent is None else world.agents.get(agent)
        judged.append(_judge(_Place(prepared.service, backend, address, node), world))
    found, panic = _cap(judged, world)
    if prepared.service.slow_start is not None:
        found = _slowly(found, prepared.service.slow_start, world)
    return found, panic


def _judge(place: _Place, world: World) -> BackendPlan:
    """One backend by itself."""
    service, backend, address, agent = place
    known = world.memory.backends.get((service.name, backend.name, address))
    order = world.desired.drains.get(f"{service.name}/{backend.name}") if world.desired.drains else None
    healthy, shown, reason = _health(place, known, world)
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
    name = agent.name if agent is not None else None
    return BackendPlan(service.name, backend, address, name, state, shown, reason, since, healthy)


def _health(place: _Place, known: Remembered | None, world: World) -> tuple[bool, str, str]:
    """Is it able to serve: (yes or no, what to show, why)."""
    service, backend, address, agent = place
    was_there = known is not None and known.proven
    # Of an agent that has not told yet what it has, and of one that is away, the best guess is what was.
    if agent is not None and (not was_there or (agent.connected and agent.live is not None)):
        waiting = _not_installed(agent, service.name, backend.name, address)
        if waiting is not None:
            return False, "installing", waiting
    if service.probe is None:
        whose = "" if agent is not None else f"; no agent has joined for {address}"
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


def _not_installed(agent: Node, service: str, backend: str, address: str) -> str | None:
    """Why its agent cannot serve the backend yet, or None."""
    table = agent.has("services", service)
    if table is not None and any(item["address"] == address and item["name"] == backend for item in table["backend"]):
        return None
    if agent.refused is not None:
        return f"agent {agent.name} refused it: {agent.refused}"
    return f"agent {agent.name} has not installed it yet" + ("" if agent.connected else ": it is not connected")


def _cap(judged: list[BackendPlan], world: World) -> tuple[list[BackendPlan], str | None]:
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


def _slowly(items: list[BackendPlan], seconds: float, world: World) -> list[BackendPlan]:
    """Who begins to take flows beside others that do comes to its weight in steps; one that is alone has it at once."""
    memory = world.memory.backends

    def takes(item: BackendPlan) -> bool:
        return item.state is BackendState.UP and item.backend.weight > 0

    def took(item: BackendPlan) -> bool:
        return item.key in memory and memory[item.key].taking

    others = any(takes(item) and took(item) for item in items)
    found = []
    for item in items:
        begun = None
        if takes(item):
            begun = memory[item.key].ramp_begun if took(item) else world.now if others else None
        found.append(item if begun is None else replace(item, ramp=ramp(begun, seconds, world.now)))
    return found


# --- announcing ------------------------------------------------------------------------------------------------------


def _unwanted(services: list[Prepared], backends: list[BackendPlan]) -> str | None:
    """Why the VIP's policies do not want it announced, or None: one service that wants it is enough."""
    reasons = []
    for service in (prepared.service for prepared in services):
        healthy = sum(item.healthy for item in backends if item.service == service.name)
        policy = service.announce.policy if service.announce else AnnouncePolicy.ALWAYS
        needed = {AnnouncePolicy.ALWAYS: 0, AnnouncePolicy.ANY_BACKEND: 1}.get(policy)
        if needed is None:
            needed = service.announce.n or 1 if service.announce else 1
        if healthy >= needed:
            return None
        reasons.append(f"{service.name} has {healthy} healthy backends and its policy {policy.value} asks for {needed}")
    return "; ".join(reasons)


def _announcement(services: list[Prepared]) -> dict[str, Any]:
    """The services that share a VIP agree on this: manager.desired sees to it."""
    announce = next((found.service.announce for found in services if found.service.announce is not None), Announce())
    return {
        "communities": list(announce.communities),
        "med": announce.med,
        "prepend": announce.prepend,
        "peers": announce.peers.value,
    }


def _grants(
    vip: Vip, services: list[Prepared], backends: list[BackendPlan], unwanted: str | None, world: World
) -> tuple[frozenset[str], dict[str, str], float | None]:
    """Which MUXes shall announce the VIP, why the others shall not, and when time alone may change that."""
    if unwanted is not None:
        return frozenset(), dict.fromkeys(world.muxes, unwanted), None
    before = world.memory.granted.get(vip, frozenset())
    withheld, unsettled = _blind(before, services, backends, world)
    granted = set()
    for name, mux in world.muxes.items():
        if name in withheld:
            continue
        reason = None if name in before else _not_ready(mux, services, world)
        if reason is None:
            granted.add(name)
        else:
            withheld[name] = reason
    return frozenset(granted), withheld, unsettled


def _not_ready(mux: Node, services: list[Prepared], world: World) -> str | None:
    """Why packets that came to this MUX now would be lost, or None."""
    if not mux.connected:
        return "it is not connected"
    if mux.refused is not None:
        return f"it refused its state: {mux.refused}"
    for prepared in services:
        name = prepared.service.name
        table = mux.has("services", name)
        if table is None or table["vip"] != prepared.vip:
            return f"it has not installed service {name} yet"
        for backend, address, agent in zip(prepared.service.backends, prepared.addresses, prepared.agents, strict=True):
            if agent is not None and backend.state is BackendState.UP and backend.weight > 0:
                reason = _agent_not_ready(mux, world.agents.get(agent), name, backend.name, address)
                if reason is not None:
                    return reason
    return None


def _agent_not_ready(mux: Node, agent: Node | None, service: str, backend: str, address: str) -> str | None:
    if agent is None or not agent.connected or agent.late or agent.refused is not None:
        return None  # nobody waits for it; the backend takes no traffic meanwhile
    if _not_installed(agent, service, backend, address) is not None:
        return f"agent {agent.name} has not installed service {service} yet"
    if agent.has("muxes", mux.name) != _outer(mux):
        return f"agent {agent.name} does not accept its tunnels yet"
    return None


def _blind(
    before: frozenset[str], services: list[Prepared], backends: list[BackendPlan], world: World
) -> tuple[dict[str, str], float | None]:
    """MUXes that reach no healthy backend (see manager.blind), no more of them than withdraw_cap allows; and when the
    next may count as one of them, if nothing changes until then."""
    probes = {found.service.name: found.service.probe for found in services}
    sights = [
        Sight(probe, world.reports.tunnels((item.service, item.backend.name)))
        for item in backends
        if item.healthy and item.shown in ("up", "drain") and (probe := probes[item.service]) is not None
    ]
    serving = {name for name, mux in world.muxes.items() if not mux.gone}
    blind, due = [], None
    for name in sorted(serving, key=lambda name: (name in before, name)):
        if sees_nothing(name, sights):
            at = blind_from(name, sights, serving) if name in before else world.now
            if at <= world.now:
                blind.append(name)
            elif at < math.inf:
                due = min(at, due or at)
    must_stay = max(1, math.ceil(len(serving) * (1 - world.withdraw_cap)))
    allowed = max(0, len(serving - world.draining) - must_stay)
    blind = [name for name in blind if name not in world.draining][:allowed]
    return dict.fromkeys(blind, "it reaches no healthy backend through the tunnel, other MUXes do"), due


# --- tables for nodes ------------------------------------------------------------------------------------------------


def _agents_of(services: list[Prepared]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for prepared in services:
        for agent, table in prepared.agent_tables.items():
            found.setdefault(agent, {})[prepared.service.name] = table
    return found


def _with_lent(vip: Vip, tables: dict[str, dict[str, Any]], world: World) -> dict[str, dict[str, Any]]:
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


def _outer(mux: Node) -> dict[str, str | None]:
    """A MUX as agents know it."""
    return {
        "address": None if mux.address is None else str(mux.address),
        "address6": None if mux.address6 is None else str(mux.address6),
    }


class _States:
    """Puts the plans of VIPs together into a state for every node; what did not change stays the same object."""

    def __init__(self, last: Plan, world: World, vips: Mapping[Vip, VipPlan], names: set[Vip] | None) -> None:
        self._last = last if names is not None else Plan()
        self._world = world
        self._old = [last.vips[vip] for vip in names if vip in last.vips] if names is not None else []
        self._new = [vips[vip] for vip in names if vip in vips] if names is not None else list(vips.values())

    def states(self) -> dict[str, NodeState]:
        services = self._changed(self._before(MUX, "services"), "tables")
        panic = self._changed(self._before(MUX, "options").get("panic", {}), "panic")
        muxes = {name: _outer(mux) for name, mux in sorted(self._world.muxes.items())}
        states = {mux.id: self._mux(mux, services, panic) for mux in self._world.muxes.values()}
        tables = self._agent_services()
        for agent in self._world.agents.values():
            own = tables.get(agent.name)
            if own is None:
                own = self._last.states.get(agent.id, {}).get("services", {})
            states[agent.id] = _without_empty({"services": own, "muxes": muxes})
        return states

    def _before(self, kind: str, section: str) -> dict[str, Any]:
        """What all MUXes had alike."""
        return next((s.get(section, {}) for id_, s in self._last.states.items() if id_.startswith(kind)), {})

    def _changed(self, before: dict[str, Any], what: str) -> dict[str, Any]:
        """The entries before, without those of old plans of VIPs, with those of the new."""
        old = {key: value for found in self._old for key, value in getattr(found, what).items()}
        new = {key: value for found in self._new for key, value in getattr(found, what).items()}
        return _replaced(before, old, new)

    def _mux(self, mux: Node, services: dict[str, Any], panic: dict[str, str]) -> NodeState:
        before = self._last.states.get(mux.id, {}).get("announcements", {})
        old = {found.vip: None for found in self._old}
        new = {found.vip: found.announcement for found in self._new if mux.name in found.granted}
        options: dict[str, Any] = {"drain": True} if mux.name in self._world.draining else {}
        if panic:
            options["panic"] = panic
        announcements = _replaced(before, old, new)
        return _without_empty({"services": services, "announcements": announcements, "options": options})

    def _agent_services(self) -> dict[str, dict[str, Any]]:
        """Of the agents with something at a VIP that was planned anew, now or before."""
        old, new = _by_agent(self._old), _by_agent(self._new)
        none: dict[str, Any] = {}
        return {
            name: _replaced(
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


def _replaced(before: dict[K, Any], old: Mapping[K, Any], new: Mapping[K, Any]) -> dict[K, Any]:
    """``before`` without ``old`` and with ``new``; itself where that is the same. Never changed in place."""
    same = all(before.get(key) == value for key, value in new.items()) and not any(
        key in before and key not in new for key in old
    )
    if same:
        return before
    after = dict(before)
    for key in old:
        if key not in new:
            after.pop(key, None)
    after.update((key, value) for key, value in new.items() if before.get(key) != value)
    return after


def _without_empty(state: NodeState) -> NodeState:
    return {section: entries for section, entries in state.items() if entries}
