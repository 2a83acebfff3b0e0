# SPDX-License-Identifier: Apache-2.0
"""Which MUXes shall announce a VIP, and why the others shall not. Pure; called by :mod:`manager.plan.plan`.

The VIP's policies come first, then what each MUX has and reaches. What was granted stays granted unless a policy or
blindness (:mod:`manager.plan.cut_off_muxes`) takes it away.
"""

from __future__ import annotations

import math
from typing import Any

from lb.model import Announce, AnnouncePolicy, BackendState
from manager.plan.cut_off_muxes import Sight, blind_from, sees_nothing
from manager.plan.model import BackendPlan, Node, Prepared, World
from manager.plan.node_states import outer
from manager.plan.previous import Previous
from manager.plan.verdicts import not_installed


def unwanted_by_policy(services: list[Prepared], backends: list[BackendPlan]) -> str | None:
    """Why the VIP's policies do not want it announced, or None: one service that wants it is enough."""
    reasons = []
    able: dict[str, int] = {}
    idle: dict[str, int] = {}
    for item in backends:
        # One that drains keeps its flows, and they come by this VIP.
        takes = item.healthy and (item.backend.weight > 0 or item.state is BackendState.DRAIN)
        able[item.service] = able.get(item.service, 0) + takes
        idle[item.service] = idle.get(item.service, 0) + (item.healthy and not takes)
    for service in (prepared.service for prepared in services):
        healthy = able.get(service.name, 0)
        policy = service.announce.policy if service.announce else AnnouncePolicy.ALWAYS
        needed = {AnnouncePolicy.ALWAYS: 0, AnnouncePolicy.ANY_BACKEND: 1}.get(policy)
        if needed is None:
            needed = service.announce.n or 1 if service.announce else 1
        if healthy >= needed:
            return None
        more = f", beside {idle[service.name]} of weight 0, which take no new flows" if idle.get(service.name) else ""
        reasons.append(
            f"{service.name} has {healthy} healthy backends{more} and its policy {policy.value} asks for {needed}"
        )
    return "; ".join(reasons)


def announcement(services: list[Prepared]) -> dict[str, Any]:
    """The services that share a VIP agree on this: manager.desired.state sees to it."""
    announce = next((found.service.announce for found in services if found.service.announce is not None), Announce())
    return {
        "communities": list(announce.communities),
        "med": announce.med,
        "prepend": announce.prepend,
        "peers": announce.peers.value,
    }


def grants(
    past: Previous, services: list[Prepared], backends: list[BackendPlan], unwanted: str | None, world: World
) -> tuple[frozenset[str], dict[str, str], float | None]:
    """Which MUXes shall announce the VIP, why the others shall not, and when time alone may change that."""
    if unwanted is not None:
        return frozenset(), dict.fromkeys(world.muxes, unwanted), None
    before = world.memory.granted.get(past.vip, frozenset())
    withheld, unsettled = _blind(before, services, backends, world)
    withheld |= _lacking(past.vip, services, world)
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


def _lacking(vip: str, services: list[Prepared], world: World) -> dict[str, str]:
    """MUXes that leave out services of the VIP, where others leave out fewer, or that leave out all of them. One that
    serves a part is better than none."""
    left_out = {
        name: {found.service.name: why for found in services if (why := mux.left_out.get(found.service.name))}
        for name, mux in world.muxes.items()
        if not mux.gone
    }
    least = min((len(found) for found in left_out.values()), default=0)
    reasons = {}
    for name, found in left_out.items():
        if len(found) > least or (found and len(found) == len(services)):
            service, why = next(iter(found.items()))
            reasons[name] = f"it leaves out service {service}: {why}"
        elif why_not := world.muxes[name].left_out.get(f"announcements/{vip}"):
            reasons[name] = f"it cannot announce it: {why_not}"
    return reasons


def _not_ready(mux: Node, services: list[Prepared], world: World) -> str | None:
    """Why packets that came to this MUX now would be lost, or None."""
    if not mux.connected:
        return "it is not connected"
    if mux.refused is not None:
        return f"it refused its state: {mux.refused}"
    for prepared in services:
        name = prepared.service.name
        if name in mux.left_out:
            continue  # no other MUX serves more of this VIP, see _lacking()
        table = mux.has("services", name)
        if table is None or table["vip"] != prepared.vip:
            return f"it has not installed service {name} yet"
        for backend, address, agent in zip(prepared.service.backends, prepared.addresses, prepared.agents, strict=True):
            if agent is not None and backend.state is BackendState.UP and backend.weight > 0:
                reason = _agent_not_ready(mux, world.agents.get(agent), prepared, address, world)
                if reason is not None:
                    return reason
    return None


def _agent_not_ready(mux: Node, agent: Node | None, prepared: Prepared, address: str, world: World) -> str | None:
    if agent is None or not agent.connected or agent.late or agent.refused is not None:
        return None  # nobody waits for it; the backend takes no traffic meanwhile
    if prepared.service.name in agent.left_out:
        return None
    name = prepared.service.name
    set_up = agent.has("services", name) is prepared.agent_tables.get(agent.name)  # the very table: the most common
    if not set_up and not_installed(agent, prepared.service, address, world) is not None:
        return f"agent {agent.name} has not installed service {prepared.service.name} yet"
    if agent.has("muxes", mux.name) != outer(mux):
        return f"agent {agent.name} does not accept its tunnels yet"
    return None


def _blind(
    before: frozenset[str], services: list[Prepared], backends: list[BackendPlan], world: World
) -> tuple[dict[str, str], float | None]:
    """MUXes that reach no healthy backend (see manager.plan.cut_off_muxes), no more of them than withdraw_cap allows;
    and when the next may count as one of them, if nothing changes until then."""
    probes = {found.service.name: found.service.probe for found in services}
    sights = [
        Sight(probe, world.reports.tunnels((item.service, item.backend.name), item.backend.address))
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
