# SPDX-License-Identifier: Apache-2.0
"""What MUXes are told of each backend of a service, and why. Pure; :mod:`manager.plan` calls :func:`plan_backends`.

Each backend is judged by itself, by operators' orders, by what its agent has installed and by what probes say
(:mod:`manager.health`); then the service as a whole: probes take out no more than half of it, and who returns comes
slowly where the service asks for it (:mod:`manager.slow_start`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from lb.model import Backend, BackendState, Service
from manager.health import Evidence, Health, judge
from manager.slow_start import ramp
from manager.world import BackendKey, BackendPlan, Node, Prepared, Remembered, World

#: Probes may take out this share of a service's weight, not more.
CAPACITY_CAP = 0.5


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
    since = known.since if known is not None and known.shown == shown else world.wall
    name = agent.name if agent is not None else None
    return BackendPlan(service.name, backend, address, name, state, shown, reason, since, healthy)


def _health(place: _Place, known: Remembered | None, world: World) -> tuple[bool, str, str]:
    """Is it able to serve: (yes or no, what to show, why)."""
    service, backend, address, agent = place
    was_there = known is not None and known.proven
    # Of an agent that has not told yet what it has, and of one that is away, the best guess is what was.
    if agent is not None and (not was_there or (agent.connected and agent.live is not None)):
        waiting = not_installed(agent, service.name, backend.name, address)
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


def not_installed(agent: Node, service: str, backend: str, address: str) -> str | None:
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
    return [_kept(item, memory, world.wall) if item.key in lost else item for item in judged], reason


def _kept(item: BackendPlan, memory: Mapping[BackendKey, Remembered], wall: float) -> BackendPlan:
    known = memory[item.key]
    since = known.since if known.shown == "panic" else wall
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
