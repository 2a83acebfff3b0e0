# SPDX-License-Identifier: Apache-2.0
"""What a plan is made of, and what it is: nodes, memory, the world at a moment, and the plans of backends and VIPs.

Values, made and read by :mod:`manager.plan.plan` and its parts, and read by whoever shows them. None is ever changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from lb.config.render import service_table, vip_text
from lb.model import Address, Backend, BackendState, PortRange, Protocol, Service
from lb.model.persistent_map import differences
from lb.node.messages import NodeState
from manager.desired.state import Desired
from manager.plan.health import Reports
from manager.plan.slow_start import Ramp

MUX, AGENT = "mux", "agent"

#: Service, backend and its address: a backend that moves is another one.
BackendKey = tuple[str, str, str]

#: A VIP as text, always with its length: "203.0.113.10/32". Text is a faster key than a network.
Vip = str


def prefix_of(vip: str) -> Vip:
    """The VIP of a table."""
    return vip if "/" in vip else f"{vip}/{128 if ':' in vip else 32}"


#: Agent -> service -> table.
AgentTables = Mapping[str, Mapping[str, Any]]


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
    left_out: Mapping[str, str] = field(default_factory=dict)  #: services of its state that it does not serve, and why
    owes: Collection[str] = ()  #: VIPs that it was told something of that it has not acknowledged

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.name}"

    def has(self, section: str, key: str) -> Any:
        """A value of its live state, or None."""
        if self.live is None or (section == "services" and key in self.left_out):
            return None
        return self.live.get(section, {}).get(key)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What must be known of a backend to judge it next time; outlives the manager."""

    healthy: bool  #: the last verdict that was one
    proven: bool  #: it was healthy at some time
    taking: bool  #: MUXes were told that it takes new flows
    shown: str
    since: float  #: of ``shown``; Unix time, for people
    ramp_begun: float | None = None  #: since when it comes to its weight in steps, steady clock; None: it has it


@dataclass(frozen=True, slots=True)
class Leaving:
    """A backend that is wanted no more and stays on MUXes for those that come in its place; see
    manager.plan.previous."""

    service: str  #: in whose place it is
    protocol: Protocol
    ports: PortRange  #: where it served
    backend: Backend  #: as MUXes are told
    known: Remembered
    until: float | None = None  #: it keeps its flows until then; None: it takes new ones


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """What the last plan decided, as far as the next depends on it. Never changed in place."""

    backends: Mapping[BackendKey, Remembered] = field(default_factory=dict)
    granted: Mapping[Vip, frozenset[str]] = field(default_factory=dict)  #: VIP -> MUXes told to announce it
    lent: Mapping[Vip, AgentTables] = field(default_factory=dict)  #: VIP -> what agents were told of it
    served: Mapping[Vip, tuple[Service, ...]] = field(default_factory=dict)  #: VIP -> what MUXes were told of
    leaving: Mapping[Vip, tuple[Leaving, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """All that a plan depends on."""

    desired: Desired
    muxes: Mapping[str, Node]
    agents: Mapping[str, Node]
    agent_at: Mapping[Address, str]  #: whose host is at an address
    reports: Reports
    memory: PlanMemory = PlanMemory()
    now: float = 0.0  #: by the steady clock: whatever is decided by time goes by it
    withdraw_cap: float = 0.5
    draining: frozenset[str] = frozenset()  #: MUXes told to drain; replan() fills it in
    tables: PlanCache | None = None  #: kept from plan to plan, it saves most of the work; changes no result
    wall: float = 0.0  #: Unix time, for people alone


class PlanCache:
    """What was made of services before, one entry for each service, valid for that very object; and what nodes have by
    VIP, valid for that very state."""

    def __init__(self) -> None:
        self._prepared: dict[str, Prepared] = {}
        self._live: dict[str, tuple[Mapping[str, Any], dict[Vip, dict[str, Any]]]] = {}

    def get(self, service: Service, world: World) -> Prepared:
        found = self._prepared.get(service.name)
        if found is None or found.service is not service or not found.fits(world):
            found = self._prepared[service.name] = Prepared(service, world)
        return found

    def live(self, node: Node, vip: Vip) -> Iterable[dict[str, Any]]:
        """What a node has of a VIP, by whatever names. Only what differs from when it was asked last is looked at."""
        services = node.live.get("services", {}) if node.live is not None else {}
        before, index = self._live.get(node.id, ({}, {}))
        if services is not before:
            found, gone = differences(before, services)
            for name in (*gone, *(name for name in found if name in before)):
                index[prefix_of(before[name]["vip"])].pop(name)
            for name, table in found.items():
                index.setdefault(prefix_of(table["vip"]), {})[name] = table
            self._live[node.id] = services, index
        found = index.get(vip, {})
        if node.left_out:
            return [table for name, table in found.items() if name not in node.left_out]
        return found.values()

    def keep_only(self, names: Container[str]) -> None:
        self._prepared = {name: found for name, found in self._prepared.items() if name in names}


def tables_of(world: World) -> PlanCache:
    return world.tables if world.tables is not None else PlanCache()


class BackendOrder(NamedTuple):
    """What MUXes are told of a backend beside its table."""

    state: BackendState
    weight: int

    @classmethod
    def of(cls, backend: Backend) -> BackendOrder:
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
        self._told: tuple[tuple[BackendOrder, ...], tuple[Backend, ...], dict[str, Any]] | None = None

    def fits(self, world: World) -> bool:
        """Are its backends' agents still the same? One agent more elsewhere changes nothing here."""
        if self.agent_at is not world.agent_at:
            if self._find_agents(world) != self.agents:
                return False
            self.agent_at = world.agent_at
        return True

    def _find_agents(self, world: World) -> list[str | None]:
        return [world.agent_at.get(backend.address) for backend in self.service.backends]

    def mux_table(self, now: tuple[BackendOrder, ...], leaving: tuple[Backend, ...] = ()) -> dict[str, Any]:
        """What a MUX needs of the service, each backend with the state and weight that it has now, and who leaves."""
        if self._told is None or self._told[0] != now or self._told[1] != leaving:
            told = tuple(
                backend if told == BackendOrder.of(backend) else replace(backend, state=told.state, weight=told.weight)
                for backend, told in zip(self.service.backends, now, strict=True)
            )
            taken = {backend.server_id for backend in told}  # who came in the place of one that leaves may have its id
            left = tuple(replace(one, server_id=None) if one.server_id in taken else one for one in leaving)
            bare = replace(self.service, announce=None, slow_start=None, backends=(*told, *left))
            self._told = now, leaving, service_table(bare)
        return self._told[2]

    def _agent_tables(self) -> dict[str, dict[str, Any]]:
        """What each agent needs: its own backends, with no state or weight, so that these do not disturb it."""
        own: dict[str, list[Backend]] = {}
        for backend, agent in zip(self.service.backends, self.agents, strict=True):
            if agent is not None:
                own.setdefault(agent, []).append(Backend(backend.name, backend.address, backend.port))
        bare = replace(self.service, announce=None, slots=None, idle=None, slow_start=None, panic=None, quic=())
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
    since: float  #: Unix time, for people
    healthy: bool
    refused: bool = False  #: its machine itself says that nobody listens there
    ramp: Ramp | None = None  #: None: it has its whole weight
    #: Of the server, whatever it was called before.
    known: Remembered | None = field(default=None, compare=False)

    @property
    def key(self) -> BackendKey:
        return (self.service, self.backend.name, self.address)

    @property
    def takes_flows(self) -> bool:
        """New ones."""
        return self.state is BackendState.UP and self.backend.weight > 0


def why_idle(backends: Sequence[BackendPlan]) -> str | None:
    """Why a service takes no new flows, though it has backends; None: it takes some, or has none."""
    if not backends or any(item.takes_flows for item in backends):
        return None
    counts = Counter(
        "drained" if item.shown == "drain" else "of weight 0" if not item.backend.weight else item.shown
        for item in backends
    )
    if len(counts) == 1:
        (kind,) = counts
        return f"no backend takes new flows: all {len(backends)} {kind}"
    return f"no backend takes new flows: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"


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
    served: tuple[Service, ...] = ()  #: what ``tables`` are of
    leaving: tuple[Leaving, ...] = ()
    panic: Mapping[str, str] = field(default_factory=dict)  #: service -> reason
    done: tuple[str, ...] = ()  #: retiring services that nobody has any more
    unsettled: float | None = None  #: a MUX that reaches no healthy backend counts as blind from then on

    @property
    def due(self) -> float | None:
        """When time alone makes another plan of it; None: never."""
        moments = [item.ramp.next_at for item in self.backends if item.ramp is not None]
        moments += [left.until for left in self.leaving if left.until is not None]
        return min(moments if self.unsettled is None else [*moments, self.unsettled], default=None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node should have."""

    vips: Mapping[Vip, VipPlan] = field(default_factory=dict)
    services: Mapping[str, Any] = field(default_factory=dict)  #: for every MUX that can serve them: name -> table
    states: Mapping[str, NodeState] = field(default_factory=dict)  #: node's id -> state
    drains: Mapping[str, str | None] = field(default_factory=dict)  #: MUX to drain -> None, or why it must wait
    memory: PlanMemory = PlanMemory()
    #: VIPs that could not be planned, for a mistake of ours: they stay as they were.
    failed: Mapping[Vip, Exception] = field(default_factory=dict)
