# SPDX-License-Identifier: Apache-2.0
"""Numbers that stand for services, backends and counters in the data plane, and when they are lent again.

Flow entries and counters hold these numbers, so a number must not mean somebody else before every entry of its last
owner is gone. A change that takes a service or a backend away makes a VIP map with a serial; a flow table says up to
which serial it has *forgotten* whatever was taken away (``mux_forgotten()`` in native/mux/mux.h), which takes ten
seconds. Only then is the number lent again, and its counter begins anew. So the numbers in use are those of what is
there and of what left in the last seconds, for as long as the process lives.

Flows belong to a machine, whatever it is called: within a service a backend is its address, so who is renamed keeps its
flows, and who moves to another address has none there. Its counter begins anew with its name.

Who is there is what the state that a change begins with says, never what was noted here: states that were built and
not published leave notes behind.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lb.errors import DataplaneError
from lb.model import MAX_BACKENDS_PER_SERVICE, MAX_SERVICES, Address, Network, PortRange, Service
from lb.model import Protocol as IpProtocol

#: Pairs of service and backend that can be counted at a time (COUNTER_MAX in native/services/service.h).
MAX_COUNTERS = 1 << 20
_NONE = 0xFFFFFFFF
#: Serial of what left before the first VIP map.
_BEFORE = 0


class NumberUsers(Protocol):
    """The flow tables and counters that hold the numbers."""

    def forgotten(self) -> int:
        """Serial of a VIP map: what is absent from it on is in no table any more, and is not counted."""

    def lent_counter(self, counter: int) -> None:
        """It belongs to another backend from here on."""

    def lent_service(self, service_id: int) -> None:
        """It belongs to another service from here on."""


class ServiceKey(NamedTuple):
    """What a service is to its flows: a new name keeps them, another address or port does not."""

    vip: Network
    protocol: IpProtocol
    ports: PortRange


def service_key(service: Service) -> ServiceKey:
    return ServiceKey(service.vip, service.protocol, service.ports)


#: A backend within its service: its address, with its name where another has the same.
Place = Address | tuple[Address, str]


def places(service: Service) -> list[Place]:
    """Of its backends, in their order."""
    addresses = [backend.address for backend in service.backends]
    if len(set(addresses)) == len(addresses):
        return list(addresses)
    return [
        (backend.address, backend.name) if addresses.count(backend.address) > 1 else backend.address
        for backend in service.backends
    ]


@dataclass(slots=True)
class ServiceNumbers:
    """A service's id, its backends' numbers, and by number their counters and names."""

    id: int
    backends: dict[Place, int] = field(default_factory=dict)
    counters: array[int] = field(default_factory=lambda: array("I"))
    names: list[str | None] = field(default_factory=list)
    left: dict[Place, int] = field(default_factory=dict)  #: backends that are gone, since which serial; the first first
    free: list[int] = field(default_factory=list)  #: a heap of numbers
    noted: bool = False  #: a file has them as they are

    def take_back(self, place: Place) -> int:
        """A backend's number is free from here on; its counter."""
        self.noted = False
        del self.left[place]
        number = self.backends.pop(place)
        self.names[number] = None
        counter, self.counters[number] = self.counters[number], _NONE
        heapq.heappush(self.free, number)
        return counter


class Numbers:
    """Lends them. Not thread-safe."""

    def __init__(self) -> None:
        self.tables: NumberUsers | None = None  #: None: nobody tells, so numbers last as long as there are others
        self._services: dict[ServiceKey, ServiceNumbers] = {}
        self._left: dict[ServiceKey, int] = {}  #: services that are gone, as ServiceNumbers.left
        self._came: set[ServiceKey] = set()  #: services that came and were not seen to be there yet
        self._free_ids: list[int] = []
        self._ids = 0
        self._free_counters: list[int] = []
        self.counters = 0  #: all counter indices that were ever lent are below it

    def lend(
        self, come: Iterable[Service], gone: Iterable[Service], serial: int, present: Collection[int], live: _FreePlaces
    ) -> Iterator[tuple[Service, ServiceNumbers]]:
        """Numbers for the services that come in a change.

        ``serial`` is that of the map to be made. ``present`` has the ids of the services that there are before the
        change, ``live(id)`` the places of the backends that one of them has then.
        """
        come = tuple(come)
        forgotten = self.tables.forgotten() if self.tables is not None else -1
        coming = {service_key(service) for service in come}
        for service in gone:
            key = service_key(service)
            if key in self._services and key not in coming:
                self._leave(key, serial)
        for key in self._came - coming:
            if key in self._services and self._services[key].id not in present:
                self._leave(key, serial)  # the state that it came with never became live
        self._came = coming
        self._reclaim_services(forgotten, present)
        for service in come:
            key = service_key(service)
            numbers = self._services.get(key)
            if numbers is None:
                numbers = self._services[key] = ServiceNumbers(self._lend_id(present))
            since = self._left.pop(key, -1)
            for place, mark in numbers.left.items():
                numbers.left[place] = max(mark, since)  # it may have been there until its service left
            before, now = live(numbers.id), places(service)
            self._note_left(now, numbers, serial, before)
            self._reclaim_backends(numbers, forgotten, before)
            names = {place: backend.name for place, backend in zip(now, service.backends, strict=True)}
            for place, name in sorted(names.items(), key=lambda item: item[1]):
                if place not in numbers.backends:
                    self._lend_backend(numbers, place, present, live)
                self._note_name(numbers, numbers.backends[place], name)
            yield service, numbers

    def restore(self, key: ServiceKey, service_id: int, backends: Mapping[Place, int]) -> None:
        """What a process before lent, whose flows are still to be taken over; before the first :meth:`lend`.

        Nobody of them is there yet. Who comes gets the numbers that it had; the others are lent again once no table
        remembers them."""
        size = max(backends.values(), default=-1) + 1
        numbers = ServiceNumbers(service_id, dict(backends), array("I", [_NONE]) * size, [None] * size)
        numbers.left = dict.fromkeys(backends, _BEFORE)
        numbers.noted = True
        numbers.free = sorted(set(range(size)) - set(backends.values()))
        for number in backends.values():
            numbers.counters[number] = self.counters
            self.counters += 1
        self._services[key] = numbers
        self._left[key] = _BEFORE
        fresh = range(self._ids, service_id)
        self._free_ids = [number for number in (*self._free_ids, *fresh) if number != service_id]
        heapq.heapify(self._free_ids)
        self._ids = max(self._ids, service_id + 1)

    def of(self, service: Service) -> ServiceNumbers:
        """Of one that has some."""
        return self._services[service_key(service)]

    def lent(self) -> Iterator[tuple[ServiceKey, ServiceNumbers]]:
        """All that is."""
        return iter(self._services.items())

    # ---- services ----

    def _leave(self, key: ServiceKey, serial: int) -> None:
        self._left.pop(key, None)
        self._left[key] = serial

    def _reclaim_services(self, forgotten: int, present: Collection[int]) -> None:
        while self._left:
            key, serial = next(iter(self._left.items()))
            if serial > forgotten:
                break  # those behind left later
            if self._services[key].id in present:
                del self._left[key]  # noted by a change that never became live
            else:
                self._take_back(key)

    def _take_back(self, key: ServiceKey) -> None:
        del self._left[key]
        numbers = self._services.pop(key)
        self._free_counters += [counter for counter in numbers.counters if counter != _NONE]
        heapq.heappush(self._free_ids, numbers.id)

    def _lend_id(self, present: Collection[int]) -> int:
        if not self._free_ids and self._ids < MAX_SERVICES:
            self._ids += 1
            return self._ids - 1
        if not self._free_ids:
            # Nobody said that its flows are forgotten, but it left before all others.
            oldest = next((key for key in self._left if self._services[key].id not in present), None)
            if oldest is None:
                raise DataplaneError(f"There are more than {MAX_SERVICES} services; split them between pools of MUXes.")
            self._take_back(oldest)
        number = heapq.heappop(self._free_ids)
        if self.tables is not None:
            self.tables.lent_service(number)
        return number

    # ---- backends ----

    @staticmethod
    def _note_left(now: Iterable[Place], numbers: ServiceNumbers, serial: int, before: Collection[Place]) -> None:
        stay = set(now)
        for place in stay & numbers.left.keys():
            del numbers.left[place]
        for place in numbers.backends:
            if place not in stay and (place not in numbers.left or place in before):
                numbers.left.pop(place, None)
                numbers.left[place] = serial

    def _note_name(self, numbers: ServiceNumbers, number: int, name: str) -> None:
        if numbers.names[number] not in (None, name) and self.tables is not None:
            self.tables.lent_counter(numbers.counters[number])
        numbers.names[number] = name

    def _reclaim_backends(self, numbers: ServiceNumbers, forgotten: int, before: Collection[Place]) -> None:
        gone = [place for place, serial in numbers.left.items() if serial <= forgotten and place not in before]
        for place in gone:
            self._free_counters.append(numbers.take_back(place))

    def _lend_backend(self, numbers: ServiceNumbers, place: Place, present: Collection[int], live: _FreePlaces) -> None:
        if not numbers.free and len(numbers.counters) >= MAX_BACKENDS_PER_SERVICE:
            # Replaced all at once, some go on in the place of others: who lost a backend loses it either way.
            _ = self._take_back_oldest(numbers, live(numbers.id)) or self._take_back_oldest(numbers, ())
        counter = self._lend_counter(numbers, present, live)
        if not numbers.free:
            numbers.free.append(len(numbers.counters))
            numbers.counters.append(_NONE)
            numbers.names.append(None)
        number = heapq.heappop(numbers.free)
        numbers.backends[place] = number
        numbers.counters[number] = counter
        numbers.noted = False

    def _take_back_oldest(self, numbers: ServiceNumbers, before: Collection[Place]) -> bool:
        """Nobody said that its flows are forgotten, but it left before the others of its service."""
        oldest = next((place for place in numbers.left if place not in before), None)
        if oldest is None:
            return False
        self._free_counters.append(numbers.take_back(oldest))
        return True

    def _lend_counter(self, numbers: ServiceNumbers, present: Collection[int], live: _FreePlaces) -> int:
        if not self._free_counters and self.counters < MAX_COUNTERS:
            self.counters += 1
            return self.counters - 1
        if not self._free_counters and not self._take_back_oldest(numbers, live(numbers.id)):
            gone = next((key for key in self._left if self._services[key].id not in present), None)
            if gone is not None:
                self._take_back(gone)
        if not self._free_counters:
            any(self._take_back_oldest(other, live(other.id)) for other in self._services.values())
        if not self._free_counters:
            raise DataplaneError(f"There are more than {MAX_COUNTERS} backends; split services between pools of MUXes.")
        counter = self._free_counters.pop()
        if self.tables is not None:
            self.tables.lent_counter(counter)
        return counter


class _FreePlaces(Protocol):
    def __call__(self, service_id: int, /) -> Collection[Place]: ...
