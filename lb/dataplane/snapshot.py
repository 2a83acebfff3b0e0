# SPDX-License-Identifier: Apache-2.0
"""What a packet's decision reads: Maglev tables, VIP maps, snapshots. Immutable, and of any thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lb.dataplane.binding import Cdata, address16, c, fail, ffi, make
from lb.dataplane.maglev import Maglev
from lb.dataplane.quic import QuicRoutes
from lb.model import Address, Protocol


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """A backend of a service, by its number; ``state`` as in C: 0 absent, 1 up, 2 drain, 3 down."""

    hop: int
    counter: int
    state: int


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A service as the VIP map takes it; see ``struct service`` in native/services/service.h."""

    id: int
    first_port: int
    last_port: int
    protocol: Protocol
    vip: Address
    prefix_length: int
    hash_source: bool
    idle_seconds: int
    mtu: int
    maglev: Maglev
    backends: Sequence[BackendEntry]
    quic: QuicRoutes | None = None  #: of UDP


class VipMap:
    """All services of a configuration, sealed."""

    def __init__(self, seed: bytes, idle_untrusted_seconds: int, services: Iterable[ServiceEntry]) -> None:
        ticks = c.flow_ticks_of(idle_untrusted_seconds)
        self._fill(lambda out: c.vip_map_create(seed, ticks, out), services)

    @property
    def serial(self) -> int:
        """0 of the first map, one more of each that was made by changing it."""
        return int(c.vip_map_serial(self._c))

    def changed(self, gone: Collection[int], come: Iterable[ServiceEntry]) -> VipMap:
        """Without the services of these ids, and with others. What stays is shared, and not looked at."""
        ids = ffi.new("uint32_t[]", list(gone))
        new = VipMap.__new__(VipMap)
        new._fill(lambda out: c.vip_map_change(self._c, ids, len(gone), out), come)
        return new

    def _fill(self, create: Callable[[Cdata], int], services: Iterable[ServiceEntry]) -> None:
        self._c = make("vip_map", c.vip_map_put, "Cannot make a VIP map", create)
        for service in services:
            self._add(service)
        code = c.vip_map_seal(self._c)
        if code < 0:
            fail(code, "Cannot index the services (two of them may claim the same packets)")

    def _add(self, service: ServiceEntry) -> None:
        row = ffi.new("struct service *")
        row.id = service.id
        row.first_port, row.last_port = service.first_port, service.last_port
        row.protocol = service.protocol.number
        row.family = service.vip.version
        row.prefix_length = service.prefix_length
        row.hash_source = service.hash_source
        row.idle = c.flow_ticks_of(service.idle_seconds)
        row.mtu = service.mtu
        row.vip = address16(service.vip)
        row.maglev = service.maglev._c  # of which the map takes a reference of its own
        row.quic = service.quic._c if service.quic is not None else ffi.NULL  # the same
        row.backend_count = len(service.backends)
        backends = ffi.new("struct backend[]", [(b.hop << 2 | b.state, b.counter) for b in service.backends])
        code = c.vip_map_add(self._c, row, backends)
        if code < 0:
            fail(code, f"Cannot add service {service.vip}/{service.prefix_length} port {service.first_port}")


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to one backend machine: next hop's MAC, ours, and the interface (0: the one packets came from).

    ``mac`` None: not known, packets for it are dropped as ``no_next_hop``. Links without MAC addresses use NO_MAC.
    """

    address: Address
    mac: bytes | None
    source_mac: bytes | None = None
    ifindex: int = 0
    mtu: int = 0  #: of the way there, where it is known to be less than services say; 0: not known


#: MAC of hops on links that need none.
NO_MAC = bytes(6)


class HopRow(NamedTuple):
    """A tunnel to one backend machine."""

    source: Address | None  #: the MUX's address, the outer source; None: it has none of this family
    hop: Hop
    tunnel: int = 0  #: enum tunnel of native/services/snapshot.h: 0 IP in IP, 1 GUE, 2 GUE without a header of its own
    port: int = 0  #: UDP's, where there is one
    mtu: int = 0  #: of the way there, where it is known to be less than services say; 0: not known


class HopTable:
    """Hops as C takes them, by their numbers; made once for any number of snapshots."""

    def __init__(self, rows: Iterable[HopRow | None]) -> None:
        """None: nobody's."""
        rows = list(rows)
        self.count = len(rows)
        self._c = ffi.new("struct hop_spec[]", self.count)
        for spec, row in zip(self._c, rows, strict=True):
            if row is None:
                continue
            source, hop, spec.tunnel, spec.port, spec.mtu = row
            spec.source, spec.destination = address16(source), address16(hop.address)
            spec.family = hop.address.version
            spec.ifindex = hop.ifindex
            if hop.mac is not None and source is not None:
                spec.resolved = 1
                spec.mac, spec.source_mac = hop.mac, hop.source_mac or NO_MAC


class Snapshot:
    """Everything a packet's decision reads: a VIP map, and the hops that its backends name by number."""

    def __init__(self, vip_map: VipMap, hops: HopTable, generation: int) -> None:
        self._c = make(
            "snapshot",
            c.snapshot_put,
            f"Cannot make a snapshot of {hops.count} hops",
            lambda out: c.snapshot_create(vip_map._c, hops._c, hops.count, generation, out),
        )
        self.generation = generation
