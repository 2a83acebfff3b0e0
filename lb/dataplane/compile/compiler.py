# SPDX-License-Identifier: Apache-2.0
"""From services as operators write them to what the data plane reads: numbers, Maglev tables, VIP map, snapshot.

A :class:`Compiler` lives as long as the flow tables that hold its numbers: a service keeps its id, and a backend its
number within the service, for as long as it is there, so that entries stay valid over any change
(:mod:`lb.dataplane.compile.numbers` has when a number is lent again).
Nothing of what it numbers reaches another MUX; what must be equal there (permutations, hashes) is made of the pool's
seed and of names only. Not thread-safe; its owner is the daemon's event loop, or a tool.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from lb.dataplane import (
    NO_MAC,
    BackendEntry,
    FlowTuple,
    Hop,
    HopRow,
    HopTable,
    ServiceEntry,
    Snapshot,
    VipMap,
    lookup,
)
from lb.dataplane.compile.kept_numbers import KeptService, NumbersFile, line_of
from lb.dataplane.compile.numbers import Numbers, NumberUsers, Place, ServiceNumbers, places, service_key
from lb.dataplane.compile.quic_keys import QuicKeys
from lb.dataplane.maglev import Maglev, build_table
from lb.model import (
    Address,
    Backend,
    BackendState,
    Encap,
    HashMode,
    MuxSettings,
    Protocol,
    Service,
)
from lb.model.persistent_map import PersistentMap
from lb.model.service_diff import ServiceDiff

_STATES = {BackendState.UP: 1, BackendState.DRAIN: 2, BackendState.DOWN: 3}
_ABSENT = BackendEntry(hop=0, counter=0, state=0)


class Lookup(NamedTuple):
    """What a new flow gets; None where there is none."""

    service: Service | None
    slot: int | None
    backend: Backend | None

    @property
    def address(self) -> Address | None:
        return self.backend.address if self.backend else None


class TunnelEnd(NamedTuple):
    """Where a tunnel leads, and of which kind it is."""

    address: Address
    encap: Encap


@dataclass(frozen=True, slots=True)
class HopNumbers:
    """Numbers of tunnels; one that nobody uses any more is lent again."""

    default: Encap = Encap.IPIP  #: the tunnel of services that do not say
    places: tuple[TunnelEnd | None, ...] = ()  #: by number; None: nobody's
    addresses: tuple[Address, ...] = ()  #: distinct, in the order of their numbers
    _numbers: Mapping[TunnelEnd, int] = field(default_factory=dict)
    _uses: tuple[int, ...] = ()  #: by how many backends, by number

    def end(self, service: Service, backend: Backend) -> TunnelEnd:
        return TunnelEnd(backend.address, service.encap or self.default)

    def number(self, service: Service, backend: Backend) -> int:
        return self._numbers[self.end(service, backend)]

    def has(self, address: Address, encap: Encap) -> bool:
        """Whether a tunnel of this kind leads there."""
        return TunnelEnd(address, encap) in self._numbers

    def after(self, change: ServiceDiff) -> HopNumbers:
        """With one use more for each backend that came, and one less for each that went. ``places`` and ``addresses``
        are the same objects where no machine came or went."""
        steps: dict[TunnelEnd, int] = {}
        for services, step in ((change.come, 1), (change.gone, -1)):
            for service in services:
                for backend in service.backends:
                    end = self.end(service, backend)
                    steps[end] = steps.get(end, 0) + step
        fresh = [end for end in steps if end not in self._numbers]
        numbers, places, uses = self._lend(fresh)
        left = []
        for end, step in steps.items():
            number = numbers[end]
            uses[number] += step
            if not uses[number]:
                left.append(end)
        if not fresh and not left:
            return replace(self, _uses=tuple(uses))
        for end in left:
            places[numbers.pop(end)] = None
        addresses = tuple(dict.fromkeys(place.address for place in places if place is not None))
        if addresses == self.addresses:  # another tunnel to the same machines
            addresses = self.addresses
        return HopNumbers(self.default, tuple(places), addresses, numbers, tuple(uses))

    def _lend(self, ends: Sequence[TunnelEnd]) -> tuple[dict[TunnelEnd, int], list[TunnelEnd | None], list[int]]:
        numbers, places, uses = dict(self._numbers), list(self.places), list(self._uses)
        free = [number for number, place in enumerate(places) if place is None] if ends else []
        for end in ends:
            if not free:
                free.append(len(places))
                places.append(None)
                uses.append(0)
            numbers[end] = number = free.pop()
            places[number] = end
        return numbers, places, uses


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A service as it is in the VIP map, for as long as it stays the same object."""

    service: Service
    id: int
    numbers: tuple[int, ...]  #: of its backends, in their order
    counters: Sequence[int]  #: an array: as numbers of their own they would take more than all the rest
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
        return HopTable(None if end is None else self._row(end, hops.get(end.address)) for end in self.hops.places)

    def _row(self, end: TunnelEnd, hop: Hop | None) -> HopRow:
        gue = end.encap is Encap.GUE
        tunnel, port = (1 + self.settings.gue_variant, self.settings.gue_port) if gue else (0, 0)
        hop = hop or Hop(end.address, None)
        return HopRow(self.settings.source(end.address), hop, tunnel, port, hop.mtu)

    def snapshot(self, hops: Mapping[Address, Hop], generation: int = 0) -> Snapshot:
        """As :meth:`hop_table` says."""
        return Snapshot(self.vip_map, self.hop_table(hops), generation)

    def offline_snapshot(self) -> Snapshot:
        """With every hop reachable on a link that needs no MAC addresses: for tools, and for TUN."""
        return self.snapshot({address: Hop(address, NO_MAC) for address in self.hop_addresses})

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
        return item.id if item is not None and item.service is service else None

    def id_named(self, name: str) -> int | None:
        """Of the service of this name."""
        item = self._by_name.get(name)
        return item.id if item is not None else None

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
            next((b for b, own in zip(item.service.backends, item.numbers, strict=True) if own == number), None)
            if number is not None
            else None
        )

    def _places(self, service_id: int) -> Collection[Place]:
        item = self._by_id.get(service_id)
        return set(places(item.service)) if item is not None else ()

    def number(self, service_id: int, backend: str) -> int | None:
        """The number of a backend of a service, by its name."""
        item = self._by_id[service_id]
        return next((n for b, n in zip(item.service.backends, item.numbers, strict=True) if b.name == backend), None)

    def counter(self, service_id: int, backend: str) -> int:
        """Where the packets of a service's backend are counted; see :meth:`~lb.dataplane.Pipeline.backend_packets`."""
        item = self._by_id[service_id]
        return next(n for b, n in zip(item.service.backends, item.counters, strict=True) if b.name == backend)

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

    def __init__(self, settings: MuxSettings, keys: QuicKeys | None = None) -> None:
        """``keys``: of connection ids; None: a change raises where one cannot be had."""
        self.settings = settings
        self._keys = keys or QuicKeys()
        self._numbers = Numbers()
        self._kept: NumbersFile | None = None
        # Services with the same backends and weights share a table, for as long as one of them has it.
        self._tables: WeakValueDictionary[bytes, Maglev] = WeakValueDictionary()
        vip_map = VipMap(settings.seed, settings.idle.tcp_untrusted, ())
        self._last = Forwarding(
            settings, (), vip_map, HopNumbers(settings.encap), 0, frozenset(), PersistentMap(), PersistentMap()
        )

    def compile(self, services: Iterable[Service]) -> Forwarding:
        """Builds what differs from the call before, and shares what does not."""
        return self.change(ServiceDiff.between(self._last.services, services), self._last)

    def change(self, change: ServiceDiff, before: Forwarding) -> Forwarding:
        """``before`` is what the change begins with. Raises DataplaneError, and then nothing has changed."""
        hops = before.hops.after(change)
        gone = [before._by_name[service.name] for service in change.gone]
        lent = self._numbers.lend(change.come, change.gone, before.vip_map.serial + 1, before._by_id, before._places)
        come = [self._prepare(service, numbers) for service, numbers in lent]
        self._note(come)
        ids = [item.id for item in gone]
        vip_map = before.vip_map.changed(ids, [self._entry(item, hops) for item in come])
        by_id = before._by_id.replaced(ids, {item.id: item for item in come})
        by_name = before._by_name.replaced(
            [service.name for service in change.gone], {item.service.name: item for item in come}
        )
        draining = before.draining.difference(ids).union(item.id for item in come if item.drains)
        self._last = Forwarding(
            self.settings, change.services, vip_map, hops, self._numbers.counters, draining, by_id, by_name
        )
        return self._last

    def keep(self, file: NumbersFile, before: Iterable[KeptService]) -> None:
        """Before the first change: numbers are noted in a file from here on, for whoever goes on with the flow tables
        that hold them. ``before``: what a process before lent, whose flow tables are here. Raises OSError."""
        for service in before:
            self._numbers.restore(service.key, service.id, service.backends)
        file.begin(self.lines())
        self._kept = file

    def lines(self) -> Iterator[str]:
        """All numbers, as a file keeps them."""
        return (line_of(key, numbers) for key, numbers in self._numbers.lent())

    def _note(self, come: Sequence[_Prepared]) -> None:
        """Before any packet can meet them."""
        if self._kept is None:
            return
        lent = ((service_key(item.service), self._numbers.of(item.service)) for item in come)
        news = [(key, numbers) for key, numbers in lent if not numbers.noted]
        for _, numbers in news:
            numbers.noted = True
        self._kept.note([line_of(key, numbers) for key, numbers in news], self.lines())

    def follow(self, tables: NumberUsers) -> None:
        """From here on these hold the numbers, and say when they may be lent again."""
        self._numbers.tables = tables

    def _prepare(self, service: Service, numbers: ServiceNumbers) -> _Prepared:
        own = tuple(numbers.backends[place] for place in places(service))
        counters = array("I", (numbers.counters[number] for number in own))
        return _Prepared(service, numbers.id, own, counters, self._table(service, own))

    # ---- entries ----

    def _entry(self, item: _Prepared, hops: HopNumbers) -> ServiceEntry:
        settings, service = self.settings, item.service
        rows = [_ABSENT] * (max(item.numbers, default=-1) + 1)
        for backend, number, counter in zip(service.backends, item.numbers, item.counters, strict=True):
            rows[number] = BackendEntry(hops.number(service, backend), counter, _STATES[backend.state])
        default_idle = settings.idle.tcp if service.protocol is Protocol.TCP else settings.idle.udp
        return ServiceEntry(
            id=item.id,
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
            quic=self._keys.routes(service, item.numbers) if service.quic else None,
        )

    def _table(self, service: Service, own: Sequence[int]) -> Maglev:
        """The service's table: that of another one, or a new one."""
        size = service.slots or self.settings.slots
        members = sorted((b.name, b.weight) for b in service.backends if b.state is BackendState.UP and b.weight)
        numbers = {backend.name: number for backend, number in zip(service.backends, own, strict=True)}
        key = _digest(size, [(name, weight, numbers[name]) for name, weight in members])
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = build_table(self.settings.seed, size, members, numbers)
        return table


def _digest(*values: object) -> bytes:
    """Of plain values: different ones have different digests, and these are small."""
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()
