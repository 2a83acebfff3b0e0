# SPDX-License-Identifier: Apache-2.0
"""What MUXes are told of each backend of a service, and why. Pure; :mod:`manager.plan.plan` calls
:func:`plan_backends`.

Each backend is judged by itself, by operators' orders, by what its agent has installed and by what probes say
(:mod:`manager.plan.health`); then the service as a whole: probes take out no more than its ``panic`` allows
(:mod:`lb.probe.fail_open`), and who returns comes slowly where the service asks for it
(:mod:`manager.plan.slow_start`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lb.model import Backend, BackendState, PortRange, Protocol, Service
from lb.probe.fail_open import too_few
from manager.plan.health import Evidence, Health, judge
from manager.plan.model import BackendPlan, Node, Prepared, Remembered, World, prefix_of, tables_of
from manager.plan.previous import Previous, overlap, ports_of, without
from manager.plan.slow_start import ramp


class _Place(NamedTuple):
    """A backend of a service on a host."""

    service: Service
    backend: Backend
    address: str
    agent: Node | None
    before: Previous
    told: Mapping[str, Any] | None  #: what its agent is told of the service


def plan_backends(prepared: Prepared, before: Previous, world: World) -> tuple[list[BackendPlan], str | None]:
    """Every backend of a service, and why the service is in panic, if it is."""
    judged = []
    for backend, address, agent in zip(prepared.service.backends, prepared.addresses, prepared.agents, strict=True):
        node = None if agent is None else world.agents.get(agent)
        told = prepared.agent_tables.get(agent) if agent is not None else None
        judged.append(_judge(_Place(prepared.service, backend, address, node, before, told), world))
    found, panic = _cap(judged, prepared.service.panic, world)
    if prepared.service.slow_start is not None:
        found = _slowly(found, prepared.service.slow_start, world)
    return found, panic


def _judge(place: _Place, world: World) -> BackendPlan:
    """One backend by itself."""
    service, backend, address, agent, before, _ = place
    known = before.known(service, backend, address)
    order = world.desired.drains.get(f"{service.name}/{backend.name}") if world.desired.drains else None
    healthy, shown, reason, refused = _health(place, known, world)
    state = BackendState.UP if healthy else BackendState.DOWN
    if order is not None and order.now:  # as its table would say it
        backend = replace(backend, state=BackendState.DOWN)
    if backend.state is BackendState.DOWN:
        by_order = order is not None and order.now
        why = f"taken out by {order.who}" if by_order and order is not None else 'its table says state = "down"'
        state, shown, reason, healthy = BackendState.DOWN, "down", why, False
    elif order is not None or backend.state is BackendState.DRAIN:
        who = f"drained by {order.who}" if order is not None else 'its table says state = "drain"'
        # A drained backend keeps its flows even where a probe fails: draining ends with them, or with "down".
        state, reason = BackendState.DRAIN, f"{who}; {shown}: {reason}"
        shown = "drain"
    since = known.since if known is not None and known.shown == shown else world.wall
    name = agent.name if agent is not None else None
    return BackendPlan(service.name, backend, address, name, state, shown, reason, since, healthy, refused, known=known)


def _health(place: _Place, known: Remembered | None, world: World) -> tuple[bool, str, str, bool]:
    """Is it able to serve: (yes or no, what to show, why, whether its machine says itself that nobody listens)."""
    service, backend, address, agent, _, _ = place
    if agent is not None:
        waiting = _not_set_up(place, agent, known, world)
        if waiting is not None:
            return False, "installing", waiting, False
    if service.probe is None and agent is None:
        return True, "up", f"it has no probe, so it is taken to be healthy; no agent has joined for {address}", False
    key = (service.name, backend.name)
    tunnels = world.reports.tunnels(key, backend.address)
    if agent is None:  # what a machine without an agent is worth, its process alone can tell
        tunnels = {mux: report for mux, report in tunnels.items() if not report.host}
    verdict = judge(
        Evidence(
            world.reports.agent(agent.name if agent else None, key, backend.address),
            tunnels,
            sum(not mux.gone for mux in world.muxes.values()),
        )
    )
    if verdict.health is not Health.UNKNOWN:
        return verdict.health is Health.UP, verdict.health.value, verdict.reason, verdict.refused
    if agent is not None and not agent.connected and (service.probe is None or service.protocol is Protocol.UDP):
        lost = _host_is_lost(backend, world)
        if lost is not None:
            return False, "down", f"no report from its agent, and {lost}", False
    if known is None or not known.proven:
        return False, "unknown", f"{verdict.reason}; it takes traffic after its first success", False
    return known.healthy, "up" if known.healthy else "down", f"{verdict.reason}; it stays as it was", False


def _host_is_lost(backend: Backend, world: World) -> str | None:
    """Of a UDP service nobody can ask through a tunnel whether its host is there, but perhaps of others on that host:
    why the host counts as lost, or None."""
    address = backend.address
    muxes = sum(not mux.gone for mux in world.muxes.values())
    why = None
    for name in world.desired.by_address.get(address, ()):
        for other in world.desired.services[name].backends:
            if other.address != address:
                continue
            said = world.reports.tunnels((name, other.name), address)
            failing = [report for report in said.values() if not report.up]
            if len(failing) < len(said):
                return None  # somebody reaches it
            if 2 * len(failing) > muxes:
                why = (
                    f"{len(failing)} of {muxes} MUXes cannot reach {name}/{other.name} on its host: {failing[0].reason}"
                )
    return why


def _not_set_up(place: _Place, agent: Node, known: Remembered | None, world: World) -> str | None:
    """Why packets to the backend would find nobody at its host, or None."""
    service, backend, address, _, before, told = place
    if told is not None and agent.has("services", service.name) is told and before.vip not in agent.owes:
        return None  # the most common by far
    was_there = known is not None and known.proven and before.had(service, backend)
    if was_there and known is not None and not known.healthy:
        was_there = known.shown not in ("installing", "drain")
    if was_there and agent.live is None:  # it has not told yet what it has: the best guess is what was
        return None
    reason = not_installed(agent, service, address, world)
    if reason is None and not was_there and _may_be_going(place, agent, known):
        reason = f"agent {agent.name} has not acknowledged it yet"
    if reason is not None and not service.ports.exact and before.took(service, backend):
        # Of a range of ports that grew, what its host has is worth more than nothing: the rest is on its way.
        parts = [*tables_of(world).live(agent, before.vip)]
        if before.vip in agent.owes:
            parts += before.lent.get(agent.name, {}).values()
        if agent.live is None or any(_serves(part, service, address, before.vip) is not None for part in parts):
            return None
    return reason


def _may_be_going(place: _Place, agent: Node, known: Remembered | None) -> bool:
    """The agent has it, and may just be about to take away what it was told to: until it has acknowledged all."""
    service, _, address, _, before, _ = place
    if before.vip not in agent.owes or agent.late or agent.refused is not None:
        return False
    told = before.lent.get(agent.name, {}).values()
    return (known is not None and known.shown == "installing") or not any(
        _serves(table, service, address, before.vip) == service.ports for table in told
    )


def not_installed(agent: Node, service: Service, address: str, world: World) -> str | None:
    """Why its agent cannot serve the backend at this address yet, or None. What counts is the place, not the names."""
    vip = str(service.vip)
    if _serves(agent.has("services", service.name), service, address, vip) == service.ports:
        return None
    parts = [_serves(table, service, address, vip) for table in tables_of(world).live(agent, vip)]
    if not without(service.ports, [part for part in parts if part is not None]):
        return None
    if service.name in agent.left_out:
        return f"not set up on {agent.name}: {agent.left_out[service.name]}"
    if agent.refused is not None:
        return f"agent {agent.name} refused it: {agent.refused}"
    return f"agent {agent.name} has not installed it yet" + ("" if agent.connected else ": it is not connected")


def _serves(table: Any, service: Service, address: str, vip: str) -> PortRange | None:
    """Which of a service's ports an agent's table is for, if it is of the service's VIP."""
    if table is None or table["protocol"] != service.protocol.value or prefix_of(table["vip"]) != vip:
        return None
    if not any(item["address"] == address for item in table["backend"]):
        return None
    ports = ports_of(table)
    return ports if overlap(ports, service.ports) else None


def _cap(judged: list[BackendPlan], least: float | None, world: World) -> tuple[list[BackendPlan], str | None]:
    """Where too few are healthy the last good set stays, dead or not: it may be the probes that are wrong. But who is
    dead beyond doubt gets nothing as long as anybody is healthy."""
    wanted = [item for item in judged if item.shown != "drain" and item.backend.state is BackendState.UP]
    wanted = [item for item in wanted if item.backend.weight > 0]
    healthy = [item.backend.weight for item in wanted if item.healthy]
    proven = [item.backend.weight for item in wanted if item.healthy or (item.known and item.known.proven)]
    # Packets to a host that says it is not set up for them are lost in any case.
    lost = {item.key for item in wanted if _was_taken_out(item) and item.shown != "installing"}
    if healthy:
        lost -= {item.key for item in wanted if item.refused}
    if not lost or not too_few(healthy, proven, least):
        return judged, None
    reason = f"PANIC: only {len(healthy)} of {len(wanted)} backends are healthy; the last good set stays in service"
    return [_kept(item, world.wall) if item.key in lost else item for item in judged], reason


def _was_taken_out(item: BackendPlan) -> bool:
    return not item.healthy and item.known is not None and item.known.taking


def _kept(item: BackendPlan, wall: float) -> BackendPlan:
    since = item.known.since if item.known is not None and item.known.shown == "panic" else wall
    reason = f"{item.reason}; kept in service all the same, for too few others are healthy"
    return replace(item, state=BackendState.UP, shown="panic", reason=reason, since=since)


def _slowly(items: list[BackendPlan], seconds: float, world: World) -> list[BackendPlan]:
    """Who begins to take flows beside others that do comes to its weight in steps; one that is alone has it at once."""

    def takes(item: BackendPlan) -> bool:
        return item.state is BackendState.UP and item.backend.weight > 0

    def took(item: BackendPlan) -> bool:
        return item.known is not None and item.known.taking

    others = any(takes(item) and took(item) for item in items)
    found = []
    for item in items:
        begun = None
        if takes(item):
            begun = world.now if others else None
            if item.known is not None and item.known.taking:
                begun = item.known.ramp_begun
        found.append(item if begun is None else replace(item, ramp=ramp(begun, seconds, world.now)))
    return found
