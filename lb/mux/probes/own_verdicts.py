# SPDX-License-Identifier: Apache-2.0
"""What a MUX does by itself about dead backends while its manager is away. Pure.

Called by :mod:`lb.mux.without_manager`.

Health is the manager's to judge, from agents and all MUXes together. Without it a backend that dies would get new flows
until it is back. So after a while a MUX goes by what it sees itself: what its tunnel probes find down, or whose
machine has no link-layer address any more, is drained here: it gets no new flows, and those it has stay, in case this
MUX is wrong. The cap is the manager's (:mod:`lb.probe.fail_open`), counted with what the manager had taken out before;
beyond that only those are taken out whose machine itself says that nobody listens, and only beside others that are
well: for the rest it is rather this MUX that cannot reach anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from lb.model import Address, Backend, BackendState, Service
from lb.probe.fail_open import too_few
from lb.probe.results import Known, Label
from lb.probe.state import ProbeHealth

#: How long the manager must be away, seconds: longer than it takes one to start again.
PATIENCE = 10.0


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
            certain = _refused(service, known, dead) if len(dead) < len(taking) else {}
            if len(certain) < len(dead):
                stay = "all of them" if not certain else "those that do not refuse"
                capped[service.name] = f"{len(dead)} of {len(taking)} backends seem dead from here; {stay} stay"
            dead = certain
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
        if word is not None and word.health is ProbeHealth.DOWN:
            dead[backend.name] = word.reason
        elif backend.address not in reachable:
            dead[backend.name] = f"there is no way to {backend.address} from here"
    return dead


def _refused(service: Service, known: Mapping[Label, Known], dead: Mapping[str, str]) -> dict[str, str]:
    """Those of the dead whose machine says so itself."""
    words = {name: known.get((service.name, name)) for name in dead}
    return {name: dead[name] for name, word in words.items() if word is not None and word.refused}


def _within_cap(service: Service, dead: Mapping[str, str]) -> bool:
    """What the manager took out counts as well; what drains does not."""
    there = [item for item in service.backends if item.state is not BackendState.DRAIN and item.weight > 0]
    left = [item.weight for item in there if _takes_flows(item) and item.name not in dead]
    return not too_few(left, [item.weight for item in there], service.panic)


def _without(service: Service, dead: Mapping[str, str]) -> Service:
    backends = tuple(
        replace(backend, state=BackendState.DRAIN) if backend.name in dead else backend for backend in service.backends
    )
    return replace(service, backends=backends)
