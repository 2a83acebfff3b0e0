# SPDX-License-Identifier: Apache-2.0
"""What a MUX does by itself about dead backends while its manager is away. Pure; called by :mod:`lb.mux.daemon`.

Health is the manager's to judge, from agents and all MUXes together. Without it a backend that dies would get new flows
until it is back. So after a while a MUX goes by what it sees itself: what its tunnel probes find down, or whose
machine has no link-layer address any more, is drained here: it gets no new flows, and those it has stay, in case this
MUX is wrong. The cap is the manager's: never more than half of a service's weight, counted with what the manager had
taken out before; beyond that nothing is taken out, for then it is rather this MUX that cannot reach anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from lb.model import Address, Backend, BackendState, Service
from lb.probe.board import Known, Label
from lb.probe.state import Health

#: How long the manager must be away, seconds: longer than it takes one to start again.
PATIENCE = 10.0
#: The share of a service's weight that may be taken out; as in manager/verdicts.py.
CAPACITY_CAP = 0.5


@dataclass(frozen=True, slots=True)
class OwnVerdicts:
    """What follows."""

    services: tuple[Service, ...]  #: those that are others than the manager's are new objects
    drained: Mapping[Label, str] = field(default_factory=dict)  #: by this MUX alone, and why
    capped: Mapping[str, str] = field(default_factory=dict)  #: services of which too much seems dead, and how much


def own_verdicts(services: Iterable[Service], known: Mapping[Label, Known], reachable: Set[Address]) -> OwnVerdicts:
    """``services`` as the manager said last; ``known`` by tunnel probes; ``reachable``: addresses that a frame can
    leave for."""
    found: list[Service] = []
    drained: dict[Label, str] = {}
    capped: dict[str, str] = {}
    for service in services:
        dead = _dead(service, known, reachable)
        if dead and not _within_cap(service, dead):
            taking = [backend for backend in service.backends if _takes_flows(backend)]
            capped[service.name] = f"{len(dead)} of {len(taking)} backends seem dead from here; all of them stay"
            dead = {}
        drained |= {(service.name, name): reason for name, reason in dead.items()}
        found.append(_without(service, dead) if dead else service)
    return OwnVerdicts(tuple(found), drained, capped)


def _takes_flows(backend: Backend) -> bool:
    return backend.state is BackendState.UP and backend.weight > 0


def _dead(service: Service, known: Mapping[Label, Known], reachable: Set[Address]) -> dict[str, str]:
    """Backends that should take flows and cannot, and why."""
    dead: dict[str, str] = {}
    for backend in service.backends:
        if not _takes_flows(backend):
            continue
        word = known.get((service.name, backend.name))
        if word is not None and word.health is Health.DOWN:
            dead[backend.name] = word.reason
        elif backend.address not in reachable:
            dead[backend.name] = f"there is no way to {backend.address} from here"
    return dead


def _within_cap(service: Service, dead: Mapping[str, str]) -> bool:
    """What the manager took out counts as well; what drains does not."""
    total = sum(backend.weight for backend in service.backends if backend.state is not BackendState.DRAIN)
    left = sum(backend.weight for backend in service.backends if _takes_flows(backend) and backend.name not in dead)
    return left >= total * (1 - CAPACITY_CAP)


def _without(service: Service, dead: Mapping[str, str]) -> Service:
    backends = tuple(
        replace(backend, state=BackendState.DRAIN) if backend.name in dead else backend for backend in service.backends
    )
    return replace(service, backends=backends)
