# SPDX-License-Identifier: Apache-2.0
"""What was at a VIP under the last plan, and what follows from it for the next. Pure; called by
:mod:`manager.plan.plan`.

Names are for people. To flows a service is a VIP, a protocol and ports, and a backend is an address there; so whatever
is renamed, swapped, split or merged, who was at the same place goes on with what is known of it (:class:`Previous`).
And a place that was served is served on: where operators put others in the place of all that serve, those who served
before stay on MUXes (:class:`Leaving`) until the first of the others can take flows, and then keep the flows they
have for :data:`HANDOVER` seconds. They serve under the name of the service that is there now.

    who comes, of the service now    who was there before and is wanted no more
    some take flows                  keep the flows that they have, for HANDOVER, if they were kept; else gone at once
    none does yet, but some shall    take flows as before
    none shall, by operators' word   gone at once
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from ipaddress import ip_address
from typing import Any

from lb.config.render import port_value
from lb.config.tables import parse_ports
from lb.model import (
    MAX_BACKENDS_PER_SERVICE,
    Address,
    Backend,
    BackendState,
    PortRange,
    Protocol,
    Service,
)
from lb.node.messages import NAME_MAX
from manager.desired.state import Desired, holders
from manager.plan.model import BackendPlan, Leaving, Remembered, Vip, World

#: For so long who was kept in service keeps its flows once others take the new ones, seconds.
HANDOVER = 10.0


def served(desired: Desired) -> dict[Vip, tuple[Service, ...]]:
    """What MUXes were told of by a manager that is no more: it wrote down what was wanted, and then told it."""
    here = {vip: tuple(desired.services[name] for name in names) for vip, names in desired.by_vip.items()}
    gone = {
        vip: tuple(replace(desired.retiring[key], name=key) for key in keys)
        for vip, keys in desired.retiring_by_vip.items()
    }
    return {**gone, **here}


#: How those are shown that were told to come and cannot serve yet.
_COMING = ("installing", "unknown")


def _told_to_idle(item: BackendPlan) -> bool:
    """By its table. Whom operators drain by order is drained."""
    drained = item.backend.state is BackendState.DRAIN
    by_order = item.state is BackendState.DRAIN and not drained
    return item.healthy and not by_order and (drained or item.backend.weight == 0)


class Previous:
    """One VIP as the last plan left it."""

    def __init__(self, vip: Vip, world: World) -> None:
        self.vip = vip
        self._served = world.memory.served.get(vip, ())
        self._same = {id(service) for service in self._served}
        wanted = {id(world.desired.services[name]) for name in world.desired.by_vip.get(vip, ())}
        self._gone = {same for same in self._same if same not in wanted}  #: of services that are no more, or others
        self._places: _ServicesByPort | None = None  # made when something has changed
        self._wanted: _ServicesByPort | None = None
        self._leaving = world.memory.leaving.get(vip, ())
        self._desired = world.desired
        self._backends = world.memory.backends
        self.lent = world.memory.lent.get(vip, {})

    def known(self, service: Service, backend: Backend, address: str) -> Remembered | None:
        """What is remembered of the server, whatever it was called. Who was not at this place took no flows here."""
        key = (service.name, backend.name, address)
        if id(service) in self._same:
            return self._backends.get(key)
        known = self._at(service, backend) or self._backends.get(key)
        if known is not None and not self.had(service, backend):
            known = replace(known, taking=False, ramp_begun=None)
        return known

    def took(self, service: Service, backend: Backend) -> bool:
        """Whether it took flows of some of the ports that come to the service now."""
        if id(service) in self._same:
            known = self._backends.get((service.name, backend.name, str(backend.address)))
            return known is not None and known.taking
        if any(left.backend.address == backend.address for left in self._left(service)):
            return True
        return any(known.taking and self._follows(service, old) for old, _, known in self._servers(service, backend))

    def had(self, service: Service, backend: Backend) -> bool:
        """Whether MUXes may have sent it all that they send it now."""
        if id(service) in self._same:
            return True
        parts = [old.ports for old in self._met(service) if any(b.address == backend.address for b in old.backends)]
        parts += [left.ports for left in self._left(service) if left.backend.address == backend.address]
        return not without(service.ports, parts)

    def _at(self, service: Service, backend: Backend) -> Remembered | None:
        """Of whose packets come to the service now, then of who was kept for it, then of who else is on that host."""
        found = [
            (not self._follows(service, old), other.port != backend.port, other.name != backend.name, old.name, known)
            for old, other, known in self._servers(service, backend)
        ]
        left = next((left.known for left in self._left(service) if left.backend.address == backend.address), None)
        elsewhere, *_, known = min(found, key=lambda item: item[:4], default=(True, left))
        return left if elsewhere and left is not None else known

    def _servers(self, service: Service, backend: Backend) -> Iterator[tuple[Service, Backend, Remembered]]:
        """What was on the backend's host at a part of the service's ports."""
        for old in self._met(service):
            for other in (one for one in old.backends if one.address == backend.address):
                known = self._backends.get((old.name, other.name, str(other.address)))
                if known is not None:
                    yield old, other, known

    def _left(self, service: Service) -> Iterator[Leaving]:
        return (left for left in self._leaving if meet(left.protocol, left.ports, service))

    def leaving(self, service: Service, items: Collection[BackendPlan], world: World) -> tuple[Leaving, ...]:
        """Who is kept on MUXes beside the service's own backends; and of these, who is told to take no new flows any
        more while those that shall in their place are not set up yet."""
        if not self._leaving and not self._gone and id(service) in self._same:
            return ()
        own = {backend.address: backend for backend in service.backends}
        able = [item for item in items if item.backend.weight > 0]
        # Operators' word counts at once where those who shall take flows are not new but broken.
        coming = any(item.backend.state is BackendState.UP and item.shown in _COMING for item in able)
        idle = [item for item in items if coming and _told_to_idle(item)]
        kept, others = self._candidates(service, {item.backend.address for item in idle}, world)
        if not kept and not others:
            return ()
        if any(item.state is BackendState.UP for item in able):
            if service.protocol is Protocol.UDP:
                return ()  # draining moves it at once
            found = [replace(left, until=left.until or world.now + HANDOVER) for left in kept]
            # The service's own keep their flows in any case.
            found = [left for left in found if left.backend.address not in own]
            found = [left for left in found if left.until is not None and left.until > world.now]
        elif any(item.backend.state is BackendState.UP and item.shown != "drain" for item in able):
            found = [replace(left, until=None) for left in (*kept, *others)]
        else:
            found = []
        room = min(service.slots or MAX_BACKENDS_PER_SERVICE, MAX_BACKENDS_PER_SERVICE) - len(service.backends)
        stay = [replace(left, backend=own[left.backend.address]) for left in found if left.backend.address in own]
        found = [left for left in found if left.backend.address not in own]
        return (*stay, *_named(found[: max(0, room)], service))

    def _candidates(
        self, service: Service, idle: Collection[Address], world: World
    ) -> tuple[list[Leaving], list[Leaving]]:
        """Who was kept already, and who took flows at this place and is not among the service's backends any more, or
        is to be idle."""
        taken = {backend.address for backend in service.backends if backend.address not in idle}
        kept: list[Leaving] = []
        for left in self._left(service):
            if left.backend.address not in taken:
                taken.add(left.backend.address)
                kept += [left] if _may_serve(left.backend.address, world) else []
        others: dict[Address, Leaving] = {}
        for old in self._met(service):
            if (id(service) in self._same and id(old) not in self._gone) or not self._follows(service, old):
                continue
            for backend in old.backends:
                known = self._backends.get((old.name, backend.name, str(backend.address)))
                if backend.address in taken or known is None or not known.taking or backend.weight == 0:
                    continue
                if backend.address in others:  # at several places before, which are one now
                    left = others[backend.address]
                    others[backend.address] = replace(left, ports=_hull(left.ports, old.ports))
                elif _may_serve(backend.address, world):
                    others[backend.address] = Leaving(service.name, old.protocol, old.ports, backend, known)
        return kept, list(others.values())

    def _follows(self, service: Service, old: Service) -> bool:
        """Whether packets of some port went to the old service before, and go to this one now."""
        if self._wanted is None:
            self._wanted = _ServicesByPort(
                self._desired.services[name] for name in self._desired.by_vip.get(self.vip, ())
            )
        if self._places is None:
            self._places = _ServicesByPort(self._served)
        first, last = max(service.ports.first, old.ports.first), min(service.ports.last, old.ports.last)
        part = PortRange(first, last)
        narrower = [*self._wanted.narrower(service, part), *self._places.narrower(old, part)]
        for ports in sorted(narrower, key=lambda ports: ports.first):
            if ports.first > first:
                return True
            first = max(first, ports.last + 1)
        return first <= last

    def _met(self, service: Service) -> Iterator[Service]:
        """Who served a part of its ports."""
        if self._places is None:
            self._places = _ServicesByPort(self._served)
        return self._places.met(service)


def _may_serve(address: Address, world: World) -> bool:
    """By now the address may be a VIP, or a MUX's."""
    if any(address in (mux.address, mux.address6) for mux in world.muxes.values()):
        return False
    return not any(True for _ in holders(world.desired, address))


class _ServicesByPort:
    """Services of one VIP by their ports, of which there may be thousands."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._exact: dict[tuple[Protocol, int], Service] = {}
        self._wide: list[Service] = []
        for service in services:
            if service.ports.exact:
                self._exact[service.protocol, service.ports.first] = service
            else:
                self._wide.append(service)

    def met(self, service: Service) -> Iterator[Service]:
        """Those that a packet of the service may be of as well."""
        if service.ports.exact:
            exact = [self._exact.get((service.protocol, service.ports.first))]
        else:
            exact = [old for (protocol, _), old in self._exact.items() if meet(protocol, old.ports, service)]
        yield from (old for old in exact if old is not None)
        yield from (old for old in self._wide if meet(old.protocol, old.ports, service))

    def narrower(self, service: Service, part: PortRange) -> Iterator[PortRange]:
        """Ports of others that go before the service in a part of its ports: the more specific."""
        if service.ports.exact:
            return
        if part.exact:  # of thousands
            if (service.protocol, part.first) in self._exact:
                yield part
        else:
            for protocol, port in self._exact:
                if protocol is service.protocol and part.first <= port <= part.last:
                    yield PortRange(port, port)
        for old in self._wide if service.ports.any else ():
            if not old.ports.any and old.protocol is service.protocol and overlap(old.ports, part):
                yield old.ports


def _named(found: Iterable[Leaving], service: Service) -> Iterator[Leaving]:
    """As backends of the service: names that it has not, and no port where it can have none."""
    taken = {backend.name for backend in service.backends}
    for left in found:
        name, number = left.backend.name, 2
        while name in taken:
            suffix = f"~{number}"
            name, number = left.backend.name[: NAME_MAX - len(suffix)] + suffix, number + 1
        taken.add(name)
        state = BackendState.UP if left.until is None else BackendState.DRAIN
        port = left.backend.port if service.ports.exact else None
        backend = Backend(name, left.backend.address, port, max(1, left.backend.weight), state)
        yield replace(left, service=service.name, backend=backend)


# --- as the store has it ---------------------------------------------------------------------------------------------


def plain_leaving(leaving: Iterable[Leaving]) -> list[list[Any]]:
    """Until when they keep their flows is left out: the next manager may have another clock."""
    return [
        [
            left.service,
            left.protocol.value,
            port_value(left.ports),
            left.backend.name,
            str(left.backend.address),
            left.backend.port,
            left.backend.weight,
            list(astuple(left.known)),
        ]
        for left in leaving
    ]


def read_leaving(rows: Iterable[list[Any]]) -> tuple[Leaving, ...]:
    found = []
    for service, protocol, ports, name, address, port, weight, known in rows:
        backend = Backend(name, ip_address(address), port, weight)
        found.append(Leaving(service, Protocol(protocol), parse_ports(ports), backend, Remembered(*known)))
    return tuple(found)


# --- places ----------------------------------------------------------------------------------------------------------


def meet(protocol: Protocol, ports: PortRange, service: Service) -> bool:
    """Of one VIP: may a packet be of both?"""
    return protocol is service.protocol and overlap(ports, service.ports)


def overlap(one: PortRange, other: PortRange) -> bool:
    return one.first <= other.last and other.first <= one.last


def ports_of(table: Mapping[str, Any]) -> PortRange:
    """Of a service's table."""
    return parse_ports(table["port"])


def _hull(one: PortRange, other: PortRange) -> PortRange:
    return PortRange(min(one.first, other.first), max(one.last, other.last))


def without(ports: PortRange, others: Iterable[PortRange]) -> list[PortRange]:
    """What of a range of ports is in none of the others."""
    pieces = [ports]
    for other in others:
        rest = []
        for old in pieces:
            if not overlap(old, other):
                rest.append(old)
                continue
            if old.first < other.first:
                rest.append(PortRange(old.first, other.first - 1))
            if other.last < old.last:
                rest.append(PortRange(other.last + 1, old.last))
        pieces = rest
    return pieces
