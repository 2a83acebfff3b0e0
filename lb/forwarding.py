# SPDX-License-Identifier: Apache-2.0
"""From services as operators write them to what the data plane reads: numbers, Maglev tables, VIP map, snapshot.

A :class:`Compiler` lives as long as the flow tables that hold its numbers: a service keeps its id, and a backend its
number within the service, for as long as there is room for others, so that entries stay valid over any change.
Nothing of what it numbers reaches another MUX; what must be equal there (permutations, hashes) is made of the pool's
seed and of names only. Not thread-safe; its owner is the daemon's event loop, or a tool.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mmh3

from lb.dataplane import (
    NO_MAC,
    BackendEntry,
    FlowTuple,
    Hop,
    Maglev,
    Member,
    PreparedService,
    ServiceEntry,
    Snapshot,
    VipMap,
    lookup,
)
from lb.errors import DataplaneError
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


def permutation(seed: bytes, name: str, size: int) -> tuple[int, int]:
    """Offset and skip of a backend in tables of ``size`` slots (Maglev paper, section 3.4).

    MurmurHash3 of the pool's seed and the backend's name, with two hash seeds as the two hash functions.
    """
    key = seed + name.encode()
    offset = mmh3.hash128(key, seed=0, x64arch=True, signed=False)
    skip = mmh3.hash128(key, seed=1, x64arch=True, signed=False)
    return offset % size, skip % (size - 1) + 1


def build_table(seed: bytes, size: int, members: Iterable[tuple[str, int]], numbers: Mapping[str, int]) -> Maglev:
    """Of backends that take new flows, by name and weight in the order of their names; ``numbers`` by name."""
    rows = [Member(*permutation(seed, name, size), weight, numbers[name]) for name, weight in members]
    return Maglev(size, rows)


@dataclass(slots=True)
class _ServiceNumbers:
    """A service's id, its backends' numbers by name, and counter indices by number."""

    id: int
    backends: dict[str, int] = field(default_factory=dict)
    counters: array[int] = field(default_factory=lambda: array("I"))


class Lookup(NamedTuple):
    """What a new flow gets; None where there is none."""

    service: Service | None
    slot: int | None
    backend: Backend | None

    @property
    def address(self) -> Address | None:
        return self.backend.address if self.backend else None


@dataclass(frozen=True)
class Forwarding:
    """One compiled set of services. Snapshots of it differ in their hops only."""

    settings: MuxSettings
    services: tuple[Service, ...]
    vip_map: VipMap
    hop_addresses: tuple[Address, ...]  #: distinct outer destinations, in the order of their numbers
    ids: Mapping[int, Service]  #: by service id
    counters: int  #: counter indices below this are in use
    _numbers: Mapping[int, _ServiceNumbers]  #: by service id

    def snapshot(self, hops: Mapping[Address, Hop], generation: int = 0) -> Snapshot:
        """``hops`` may lack addresses: packets to them are dropped as ``no_next_hop``."""
        rows = [(self._source(address), hops.get(address) or Hop(address, None)) for address in self.hop_addresses]
        return Snapshot(self.vip_map, rows, generation)

    def offline_snapshot(self) -> Snapshot:
        """With every hop reachable on a link that needs no MAC addresses: for tools, and for TUN."""
        return self.snapshot({address: Hop(address, NO_MAC) for address in self.hop_addresses})

    def _source(self, address: Address) -> Address | None:
        return self.settings.address if address.version == 4 else self.settings.address6

    def names(self, service_id: int | None, number: int | None) -> tuple[str | None, str | None]:
        """Names of a service and of one of its backends, by the data plane's numbers."""
        if service_id is None or service_id not in self.ids:
            return None, None
        backend = self.backend(service_id, number)
        return self.ids[service_id].name, backend.name if backend else None

    def backend(self, service_id: int, number: int | None) -> Backend | None:
        """The backend of a service that has this number now."""
        numbers = self._numbers[service_id].backends
        return (
            next((b for b in self.ids[service_id].backends if numbers.get(b.name) == number), None)
            if number is not None
            else None
        )

    def number(self, service_id: int, backend: str) -> int | None:
        """The number of a backend of a service, by its name."""
        present = any(found.name == backend for found in self.ids[service_id].backends)
        return self._numbers[service_id].backends.get(backend) if present else None

    def counter(self, service_id: int, backend: str) -> int:
        """Where the packets of a service's backend are counted; see :meth:`~lb.dataplane.Pipeline.backend_packets`."""
        numbers = self._numbers[service_id]
        return numbers.counters[numbers.backends[backend]]

    def lookup(
        self, protocol: Protocol, source: Address, source_port: int, destination: Address, destination_port: int
    ) -> Lookup:
        """What a new flow would get."""
        flow = FlowTuple(protocol, source, source_port, destination, destination_port)
        answer = lookup(self.offline_snapshot(), flow)
        if answer.service_id is None:
            return Lookup(None, None, None)
        backend = self.backend(answer.service_id, answer.backend)
        return Lookup(self.ids[answer.service_id], answer.slot, backend)


class _Hops:
    """Numbers of outer destinations, and by how many backends each is used."""

    def __init__(self, numbers: dict[Address, int] | None = None, uses: list[int] | None = None) -> None:
        self.numbers = numbers if numbers is not None else {}
        self._uses = uses if uses is not None else []

    def copy(self) -> _Hops:
        return _Hops(dict(self.numbers), list(self._uses))

    def take(self, address: Address) -> int:
        """The number of an address that one more backend uses."""
        number = self.numbers.setdefault(address, len(self.numbers))
        if number == len(self._uses):
            self._uses.append(0)
        self._uses[number] += 1
        return number

    def release(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._uses[number] -= 1

    @property
    def unused(self) -> bool:
        """Whether there is a number that nobody uses."""
        return 0 in self._uses


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A service as it is in the VIP map, for as long as it stays the same object."""

    service: Service
    numbers: _ServiceNumbers
    row: PreparedService
    hops: tuple[int, ...]  #: of its backends
    table_key: tuple[object, ...]
    table: Maglev


class Compiler:
    """Turns services into :class:`Forwarding`, with numbers that stay the same from one call to the next.

    What is the same :class:`~lb.model.Service` object as in the call before is not looked at again, so that a change of
    one service among ten thousand costs a few milliseconds.
    """

    def __init__(self, settings: MuxSettings) -> None:
        self.settings = settings
        self._services: dict[ServiceKey, _ServiceNumbers] = {}
        self._counters = 0
        self._tables: dict[tuple[object, ...], Maglev] = {}
        self._prepared: dict[int, _Prepared] = {}  # by the identity of the service, which each of them keeps alive
        self._hops = _Hops()

    def compile(self, services: Iterable[Service]) -> Forwarding:
        """Builds what changed and shares what did not."""
        services = tuple(services)
        prepared, hops = self._prepare(services, self._prepared, self._hops.copy())
        if hops.unused:  # a machine is gone: the others are numbered anew
            prepared, hops = self._prepare(services, {}, _Hops())
        rows = list(prepared.values())
        vip_map = VipMap(self.settings.seed, self.settings.idle.tcp_untrusted, [item.row for item in rows])
        self._prepared, self._hops = prepared, hops
        self._tables = {item.table_key: item.table for item in rows}
        return Forwarding(
            settings=self.settings,
            services=services,
            vip_map=vip_map,
            hop_addresses=tuple(hops.numbers),
            ids={item.numbers.id: item.service for item in rows},
            counters=self._counters,
            _numbers={item.numbers.id: item.numbers for item in rows},
        )

    def _prepare(
        self, services: tuple[Service, ...], before: Mapping[int, _Prepared], hops: _Hops
    ) -> tuple[dict[int, _Prepared], _Hops]:
        """Each service prepared, in their order; ``hops`` counts who uses them."""
        found = {id(service): before.get(id(service)) for service in services}
        for number, item in before.items():
            if number not in found:
                hops.release(item.hops)
        fresh = [service for service in services if found[id(service)] is None]
        used: dict[tuple[object, ...], Maglev] = {}
        made = {
            id(service): self._make(service, numbers, hops, used) for service, numbers in self._number(fresh, services)
        }
        return {number: item if item is not None else made[number] for number, item in found.items()}, hops

    def _make(
        self, service: Service, numbers: _ServiceNumbers, hops: _Hops, used: dict[tuple[object, ...], Maglev]
    ) -> _Prepared:
        own = tuple(hops.take(backend.address) for backend in service.backends)
        key, table = self._table(service, numbers, used)
        entry = self._entry(service, numbers, own, table)
        return _Prepared(service, numbers, PreparedService(entry), own, key, table)

    # ---- numbers ----

    def _number(
        self, fresh: Sequence[Service], services: Sequence[Service]
    ) -> Iterator[tuple[Service, _ServiceNumbers]]:
        """The fresh ones of all services."""
        present: set[ServiceKey] = set()
        for service in fresh:
            key = service_key(service)
            numbers = self._services.get(key)
            if numbers is None:
                if not present and len(self._services) >= MAX_SERVICES:
                    present = {service_key(other) for other in services}
                numbers = self._services[key] = _ServiceNumbers(self._free_id(present))
            for backend in sorted(service.backends, key=lambda b: b.name):
                self._number_backend(service, numbers, backend)
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

    def _entry(self, service: Service, numbers: _ServiceNumbers, hops: Sequence[int], table: Maglev) -> ServiceEntry:
        settings = self.settings
        rows = [_ABSENT] * (max((numbers.backends[b.name] for b in service.backends), default=-1) + 1)
        for backend, hop in zip(service.backends, hops, strict=True):
            number = numbers.backends[backend.name]
            rows[number] = BackendEntry(hop, numbers.counters[number], _STATES[backend.state])
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
            maglev=table,
            backends=rows,
        )

    def _table(
        self, service: Service, numbers: _ServiceNumbers, used: dict[tuple[object, ...], Maglev]
    ) -> tuple[tuple[object, ...], Maglev]:
        """The service's table: one in use, one of the last call, or a new one."""
        size = service.slots or self.settings.slots
        members = sorted((b.name, b.weight) for b in service.backends if b.state is BackendState.UP and b.weight)
        key = (size, *((name, weight, numbers.backends[name]) for name, weight in members))
        table = used.get(key) or self._tables.get(key)
        if table is None:
            table = build_table(self.settings.seed, size, members, numbers.backends)
        used[key] = table
        return key, table
