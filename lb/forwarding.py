# SPDX-License-Identifier: Apache-2.0
"""From services as operators write them to what the data plane reads: numbers, Maglev tables, VIP map, snapshot.

A :class:`Compiler` lives as long as the flow tables that hold its numbers: a service keeps its id, and a backend its
number within the service, for as long as there is room for others, so that entries stay valid over any change.
Nothing of what it numbers reaches another MUX; what must be equal there (permutations, hashes) is made of the pool's
seed and of names only. Not thread-safe; its owner is the daemon's event loop, or a tool.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakValueDictionary

from lb.changes import Change
from lb.dataplane import (
    NO_MAC,
    BackendEntry,
    FlowTuple,
    Hop,
    HopTable,
    ServiceEntry,
    Snapshot,
    VipMap,
    lookup,
)
from lb.errors import DataplaneError
from lb.maglev import Maglev, build_table
from lb.model import (
    MAX_BACKENDS_PER_SERVICE,
    MAX_SERVICES,
    Address,
    Backend,
    BackendState,
    HashMode,
    MuxSettings,
    Network,
    PortRange,
    Protocol,
    Service,
)
from lb.persistent import PersistentMap

#: Pairs of service and backend that can be counted over a process's life (COUNTER_MAX in native/vip_map.h).
MAX_COUNTERS = 1 << 20

_STATES = {BackendState.UP: 1, BackendState.DRAIN: 2, BackendState.DOWN: 3}
_ABSENT = BackendEntry(hop=0, counter=0, state=0)


class ServiceKey(NamedTuple):
    """What a service is to its flows: a new name keeps them, another address or port does not."""

    vip: Network
    protocol: Protocol
    ports: PortRange


def service_key(service: Service) -> ServiceKey:
    return ServiceKey(service.vip, service.protocol, service.ports)


@dataclass(slots=True)
class _ServiceNumbers:
    """A service's id, its backends' numbers by name, and counter indices by number. A number that no backend has any
    more stays under the name of the last one, or under one that no backend can have."""

    id: int
    backends: dict[str, int] = field(default_factory=dict)
    addresses: dict[str, Address] = field(default_factory=dict)  #: of the backends that are there, by name
    counters: array[int] = field(default_factory=lambda: array("I"))


class Lookup(NamedTuple):
    """What a new flow gets; None where there is none."""

    service: Service | None
    slot: int | None
    backend: Backend | None

    @property
    def address(self) -> Address | None:
        return self.backend.address if self.backend else None


@dataclass(frozen=True, slots=True)
class HopNumbers:
    """Numbers of outer destinations; one that nobody uses any more is lent again."""

    places: tuple[Address | None, ...] = ()  #: by number; None: nobody's
    addresses: tuple[Address, ...] = ()  #: distinct, in the order of their numbers
    _numbers: Mapping[Address, int] = field(default_factory=dict)
    _uses: tuple[int, ...] = ()  #: by how many backends, by number

    def __getitem__(self, address: Address) -> int:
        return self._numbers[address]

    def after(self, change: Change) -> HopNumbers:
        """With one use more for each backend that came, and one less for each that went. ``places`` and ``addresses``
        are the same objects where no machine came or went."""
        steps: dict[Address, int] = {}
        for services, step in ((change.come, 1), (change.gone, -1)):
            for service in services:
                for backend in service.backends:
                    steps[backend.address] = steps.get(backend.address, 0) + step
        fresh = [address for address in steps if address not in self._numbers]
        numbers, places, uses = self._lend(fresh)
        left = []
        for address, step in steps.items():
            number = numbers[address]
            uses[number] += step
            if not uses[number]:
                left.append(address)
        if not fresh and not left:
            return HopNumbers(self.places, self.addresses, self._numbers, tuple(uses))
        for address in left:
            places[numbers.pop(address)] = None
        return HopNumbers(tuple(places), tuple(place for place in places if place is not None), numbers, tuple(uses))

    def _lend(self, addresses: Sequence[Address]) -> tuple[dict[Address, int], list[Address | None], list[int]]:
        numbers, places, uses = dict(self._numbers), list(self.places), list(self._uses)
        free = [number for number, place in enumerate(places) if place is None] if addresses else []
        for address in addresses:
            if not free:
                free.append(len(places))
                places.append(None)
                uses.append(0)
            numbers[address] = number = free.pop()
            places[number] = address
        return numbers, places, uses


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A service as it is in the VIP map, for as long as it stays the same object."""

    service: Service
    numbers: _ServiceNumbers
    table: Maglev

    @property
    def drains(self) -> bool:
        return any(backend.state is BackendState.DRAIN for backend in self.service.backends)


@dataclass(frozen=True)
class Forwarding:
    """One compiled set of services. Snapshots of it differ in their hops only."""

    settings: MuxSettings
    services: tuple[Service, ...]
    vip_map: VipMap
    hops: HopNumbers
    counters: int  #: counter indices below this are in use
    draining: frozenset[int]  #: ids of services that have a draining backend
    _by_id: PersistentMap[int, _Prepared]
    _by_name: PersistentMap[str, _Prepared]

    @property
    def hop_addresses(self) -> tuple[Address, ...]:
        """Distinct outer destinations; the same object as long as they are the same."""
        return self.hops.addresses

    def hop_table(self, hops: Mapping[Address, Hop]) -> HopTable:
        """The ways to the backends as a snapshot takes them; ``hops`` may lack addresses: packets to them are dropped
        as ``no_next_hop``."""
        return HopTable(
            (self._source(address), hops.get(address) or Hop(address, None)) if address is not None else None
            for address in self.hops.places
        )

    def snapshot(self, hops: Mapping[Address, Hop], generation: int = 0) -> Snapshot:
        """As :meth:`hop_table` says."""
        return Snapshot(self.vip_map, self.hop_table(hops), generation)

    def offline_snapshot(self) -> Snapshot:
        """With every hop reachable on a link that needs no MAC addresses: for tools, and for TUN."""
        return self.snapshot({address: Hop(address, NO_MAC) for address in self.hop_addresses})

    def _source(self, address: Address) -> Address | None:
        return self.settings.address if address.version == 4 else self.settings.address6

    @property
    def id_limit(self) -> int:
        """All ids are below it."""
        return max(self._by_id, default=-1) + 1

    @property
    def ids(self) -> dict[int, Service]:
        """All services by their ids."""
        return {number: item.service for number, item in self._by_id.items()}

    def service(self, service_id: int) -> Service | None:
        item = self._by_id.get(service_id)
        return item.service if item is not None else None

    def id_of(self, service: Service) -> int | None:
        """Of one of these services: the object, not one that is equal."""
        item = self._by_name.get(service.name)
        return item.numbers.id if item is not None and item.service is service else None

    def names(self, service_id: int | None, number: int | None) -> tuple[str | None, str | None]:
        """Names of a service and of one of its backends, by the data plane's numbers."""
        service = self.service(service_id) if service_id is not None else None
        if service is None or service_id is None:
            return None, None
        backend = self.backend(service_id, number)
        return service.name, backend.name if backend else None

    def backend(self, service_id: int, number: int | None) -> Backend | None:
        """The backend of a service that has this number."""
        item = self._by_id[service_id]
        return (
            next((b for b in item.service.backends if item.numbers.backends[b.name] == number), None)
            if number is not None
            else None
        )

    def number(self, service_id: int, backend: str) -> int | None:
        """The number of a backend of a service, by its name."""
        item = self._by_id[service_id]
        present = any(found.name == backend for found in item.service.backends)
        return item.numbers.backends.get(backend) if present else None

    def counter(self, service_id: int, backend: str) -> int:
        """Where the packets of a service's backend are counted; see :meth:`~lb.dataplane.Pipeline.backend_packets`."""
        numbers = self._by_id[service_id].numbers
        return numbers.counters[numbers.backends[backend]]

    def table(self, service_id: int) -> Maglev:
        """From slot to the number of a backend."""
        return self._by_id[service_id].table

    def lookup(
        self, protocol: Protocol, source: Address, source_port: int, destination: Address, destination_port: int
    ) -> Lookup:
        """What a new flow would get."""
        flow = FlowTuple(protocol, source, source_port, destination, destination_port)
        answer = lookup(self.offline_snapshot(), flow)
        if answer.service_id is None:
            return Lookup(None, None, None)
        backend = self.backend(answer.service_id, answer.backend)
        return Lookup(self.service(answer.service_id), answer.slot, backend)


class Compiler:
    """Turns services into :class:`Forwarding`, with numbers that stay the same from one call to the next.

    Of a change it looks at what differs alone, so that one service among ten thousand costs a millisecond or two.
    """

    def __init__(self, settings: MuxSettings) -> None:
        self.settings = settings
        self._services: dict[ServiceKey, _ServiceNumbers] = {}
        self._counters = 0
        # Services with the same backends and weights share a table, for as long as one of them has it.
        self._tables: WeakValueDictionary[bytes, Maglev] = WeakValueDictionary()
        vip_map = VipMap(settings.seed, settings.idle.tcp_untrusted, ())
        self._last = Forwarding(settings, (), vip_map, HopNumbers(), 0, frozenset(), PersistentMap(), PersistentMap())

    def compile(self, services: Iterable[Service]) -> Forwarding:
        """Builds what differs from the call before, and shares what does not."""
        return self.change(Change.between(self._last.services, services), self._last)

    def change(self, change: Change, before: Forwarding) -> Forwarding:
        """``before`` is what the change begins with. Raises DataplaneError, and then nothing has changed."""
        hops = before.hops.after(change)
        gone = [before._by_name[service.name] for service in change.gone]
        come = [self._prepare(service, numbers) for service, numbers in self._number(change)]
        ids = [item.numbers.id for item in gone]
        vip_map = before.vip_map.changed(ids, [self._entry(item, hops) for item in come])
        by_id = before._by_id.replaced(ids, {item.numbers.id: item for item in come})
        by_name = before._by_name.replaced(
            [service.name for service in change.gone], {item.service.name: item for item in come}
        )
        draining = before.draining.difference(ids).union(item.numbers.id for item in come if item.drains)
        self._last = Forwarding(self.settings, change.services, vip_map, hops, self._counters, draining, by_id, by_name)
        return self._last

    def _prepare(self, service: Service, numbers: _ServiceNumbers) -> _Prepared:
        return _Prepared(service, numbers, self._table(service, numbers))

    # ---- numbers ----

    def _number(self, change: Change) -> Iterator[tuple[Service, _ServiceNumbers]]:
        """Those that come."""
        present: set[ServiceKey] = set()
        for service in change.come:
            key = service_key(service)
            numbers = self._services.get(key)
            if numbers is None:
                if not present and len(self._services) >= MAX_SERVICES:
                    present = {service_key(other) for other in change.services}
                numbers = self._services[key] = _ServiceNumbers(self._free_id(present))
            _follow_addresses(service, numbers)
            for backend in sorted(service.backends, key=lambda b: b.name):
                self._number_backend(service, numbers, backend)
            numbers.addresses = {backend.name: backend.address for backend in service.backends}
            yield service, numbers

    def _free_id(self, present: set[ServiceKey]) -> int:
        if len(self._services) < MAX_SERVICES:
            return len(self._services)
        # All ids were lent: take that of the service that went first. Its flows have long expired, or soon will.
        gone = next((key for key in self._services if key not in present), None)
        if gone is None:
            raise DataplaneError(f"There are more than {MAX_SERVICES} services; split them between pools of MUXes.")
        return self._services.pop(gone).id

    def _number_backend(self, service: Service, numbers: _ServiceNumbers, backend: Backend) -> None:
        if backend.name in numbers.backends:
            return
        number = len(numbers.backends)
        if number >= MAX_BACKENDS_PER_SERVICE:
            present = {b.name for b in service.backends}
            gone = next(name for name in numbers.backends if name not in present)
            number = numbers.backends.pop(gone)
        elif self._counters < MAX_COUNTERS:
            numbers.counters.append(self._counters)
            self._counters += 1
        else:
            raise DataplaneError(f"More than {MAX_COUNTERS} backends were seen since the start; restart to go on.")
        numbers.backends[backend.name] = number

    # ---- entries ----

    def _entry(self, item: _Prepared, hops: HopNumbers) -> ServiceEntry:
        settings, service, numbers = self.settings, item.service, item.numbers
        rows = [_ABSENT] * (max((numbers.backends[b.name] for b in service.backends), default=-1) + 1)
        for backend in service.backends:
            number = numbers.backends[backend.name]
            rows[number] = BackendEntry(hops[backend.address], numbers.counters[number], _STATES[backend.state])
        default_idle = settings.idle.tcp if service.protocol is Protocol.TCP else settings.idle.udp
        return ServiceEntry(
            id=numbers.id,
            first_port=service.ports.first,
            last_port=service.ports.last,
            protocol=service.protocol,
            vip=service.vip.network_address,
            prefix_length=service.vip.prefixlen,
            hash_source=service.hash is HashMode.SOURCE,
            idle_seconds=service.idle or default_idle,
            mtu=service.mtu or settings.mtu,
            maglev=item.table,
            backends=rows,
        )

    def _table(self, service: Service, numbers: _ServiceNumbers) -> Maglev:
        """The service's table: that of another one, or a new one."""
        size = service.slots or self.settings.slots
        members = sorted((b.name, b.weight) for b in service.backends if b.state is BackendState.UP and b.weight)
        key = _digest(size, [(name, weight, numbers.backends[name]) for name, weight in members])
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = build_table(self.settings.seed, size, members, numbers.backends)
        return table


def _follow_addresses(service: Service, numbers: _ServiceNumbers) -> None:
    """Flows belong to a machine, whatever it is called: who is at an address has the number of who was there before,
    and a name that is elsewhere now has none."""
    known = numbers.addresses
    if all(known.get(backend.name) == backend.address for backend in service.backends):
        return
    places: dict[Address, list[str]] = {}
    for name, address in known.items():
        places.setdefault(address, []).append(name)
    stayed = {backend.name for backend in service.backends if known.get(backend.name) == backend.address}
    moved: dict[str, int] = {}
    for backend in service.backends:
        here = [name for name in places.get(backend.address, ()) if name not in stayed]
        if backend.name not in stayed and len(here) == 1:  # of several, names must tell
            moved[backend.name] = numbers.backends[here[0]]
            del places[backend.address]
    left = set(moved.values())
    elsewhere = [b.name for b in service.backends if b.name in known and known[b.name] != b.address]
    for name in {*moved, *elsewhere, *(name for name, number in numbers.backends.items() if number in left)}:
        number = numbers.backends.pop(name, None)
        if number is not None and number not in left:
            numbers.backends[f"\0{number}"] = number
    numbers.backends.update(moved)


def _digest(*values: object) -> bytes:
    """Of plain values: different ones have different digests, and these are small."""
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()
