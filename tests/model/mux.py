# SPDX-License-Identifier: Apache-2.0
"""A whole MUX as a model: packets in, one at a time; verdict, reason, flow, service, backend and packets out.

Made of the same services and settings as :class:`lb.dataplane.compile.compiler.Compiler` gets, and of nothing that it
makes: the permutations' numbers alone (:func:`lb.dataplane.maglev.permutation`) are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lb.dataplane.maglev import permutation
from lb.model import Address, Backend, BackendState, HashMode, MuxSettings, Protocol, Service
from lb.quic_ids import server_id_of
from tests.model import flows, fragments, hashing, icmp, maglev, quic, read, services, tunnel

#: Whatever the settings say, these are.
UNANSWERED = ("not_ip", "not_vip", "truncated", "bad_header", "bad_checksum", "bad_source", "bad_fragment")

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class Way(NamedTuple):
    """Where the fragments of a datagram go."""

    service: Service
    backend: Backend
    key: flows.Tuple


class Expected(NamedTuple):
    reason: str
    service: str | None = None
    backend: str | None = None
    flow: str | None = None
    out: tuple[bytes, ...] = ()
    room: int = 0  #: of what is too big: how long it may be


@cache
def _table(seed: bytes, size: int, members: tuple[tuple[str, int], ...]) -> list[int]:
    rows = [(*permutation(seed, name, size), weight, i) for i, (name, weight) in enumerate(members)]
    return maglev.populate(size, rows)


@dataclass(frozen=True)
class Options:
    """What the I/O is like."""

    detect_partial: bool = False
    first_id: int = 0
    answers: bool = False  #: as the settings say; else nothing is answered


class Mux:
    """One MUX over raw IP packets."""

    def __init__(self, settings: MuxSettings, options: Options | None = None) -> None:
        self.settings = settings
        self.options = options or Options()
        self.flows = flows.Flows()
        self._datagrams = fragments.Datagrams()
        self.services: tuple[Service, ...] = ()
        self._ids: dict[object, int] = {}
        own: dict[int, Address] = {4: settings.address}
        if settings.address6 is not None:
            own[6] = settings.address6
        per_second = settings.answers if self.options.answers else 0
        self._answers = icmp.Answers(per_second, settings.unserved, own, self.options.first_id)

    def publish(self, new: Sequence[Service]) -> None:
        """Other services, or others' backends. What a backend that left was remembered for is forgotten with use."""
        self.services = tuple(new)

    def process(self, packet: bytes, wire_length: int, now_ns: int) -> Expected:
        self.flows.advance(now_ns)
        if len(packet) < wire_length:
            return Expected("truncated")
        version = packet[0] >> 4 if packet else 0
        if version not in (4, 6):
            return Expected("not_ip")
        problem = read.network_problem(packet, version)
        if problem:
            return Expected(problem)
        header = read.Header(packet)
        if not services.is_vip(self.services, header.destination):
            return Expected("not_vip")
        problem = read.vip_problem(packet, header)
        whole = packet[: header.length]
        if problem == "icmp":
            expected = self._icmp(whole, header)
        elif problem == "fragment":
            expected = self._fragment(whole, header, now_ns)
        elif problem:
            expected = Expected(problem)
        else:
            expected = self._balance(whole, header)
        if expected.out or expected.reason in UNANSWERED:
            return expected
        reason, out = self._answers.answer(whole, expected.reason, now_ns, expected.room)
        return expected._replace(reason=reason, out=out, room=0)

    # ---- decide ----

    def _icmp(self, packet: bytes, header: read.Header) -> Expected:  # noqa: PLR0911  as many ends
        """A ping; or an error, which goes where the flow is that it is about, and changes nothing."""
        if icmp.is_echo(packet, header):
            return Expected("echo")
        about = icmp.subject(packet, header)
        if isinstance(about, str):
            return Expected(about)
        service = services.match(self.services, about.protocol, *about.vip)
        if service is None:
            return Expected("no_service")
        if header.ttl <= 1:
            return Expected("ttl_expired", service.name)
        key = flows.Tuple((service.vip, service.protocol, service.ports), about.client, about.vip)
        flow = self._entry(service, key)
        known = flow is not None and self._state(service, flow) not in (None, BackendState.DOWN)
        backend = _named(service, flow.backend) if flow is not None and known else self.choice(service, key)
        if backend is None:
            return Expected("no_backend", service.name)
        if len(packet) + tunnel.overhead(header.version) > (service.mtu or self.settings.mtu):
            return Expected("too_big", service.name)  # and about an error nothing is said
        out = self._encapsulate(service, backend, tunnel.forwarded(packet), key)
        return Expected("icmp_error", service.name, backend.name, "known" if known else "untracked", (out,))

    def _fragment(self, packet: bytes, header: read.Header, now_ns: int) -> Expected:  # noqa: PLR0911  as many ends
        fragment = fragments.Fragment.of(packet, header)
        problem = fragment.problem(header.version)
        if problem is None and fragment.offset == 0:
            problem = fragments.open_first(packet, header, fragment)
        if problem is not None:
            return Expected(problem)
        if header.ttl <= 1:
            return Expected("ttl_expired")
        chosen = self._choose(packet, header) if fragment.offset == 0 else None
        if isinstance(chosen, Expected):
            return chosen
        way = self._datagrams.take(header, fragment, now_ns, chosen[0] if chosen else None)
        if not isinstance(way, Way):
            return Expected(str(way), chosen[0].service.name if chosen else None)
        service = next((s for s in self.services if s.name == way.service.name), None)
        backend = service and next((b for b in service.backends if b.name == way.backend.name), None)
        if service is None or backend is None or backend.state is BackendState.DOWN:
            return Expected("no_backend", service.name if service else None)
        room = self._room(service, backend)
        if len(packet) > room and not _may_cut(packet):
            return Expected("too_big", service.name, room=room)
        parts = fragments.pieces(packet, room) if len(packet) > room else [packet]
        out = tuple(self._encapsulate(service, backend, tunnel.forwarded(part), way.key) for part in parts)
        return Expected("fragment", service.name, backend.name, chosen[1] if chosen else "known", out)

    def _balance(self, packet: bytes, header: read.Header) -> Expected:
        if header.ttl <= 1:
            return Expected("ttl_expired")
        chosen = self._choose(packet, header, whole=True)
        if isinstance(chosen, Expected):
            return chosen
        (service, backend, key), report = chosen
        reason, out = self._send(service, backend, packet, key)
        if not out:
            return Expected(reason, service.name, room=self._room(service, backend))
        return Expected(reason, service.name, backend.name, report, out)

    def _choose(self, packet: bytes, header: read.Header, *, whole: bool = False) -> Expected | tuple[Way, str]:
        """The way of a packet's flow, and whether it was known; or why there is none."""
        source_port, port = header.ports(packet)
        service = services.match(self.services, header.protocol, header.destination, port)
        if service is None:
            return Expected("no_service")
        name = (service.vip, service.protocol, service.ports)
        key = flows.Tuple(name, (header.source, source_port), (header.destination, port))
        chosen = self.choice(service, key)
        by_id = self._by_connection_id(service, packet, header) if whole else None  # QUIC is in no fragments
        if by_id is not None:
            return self._go_by_id(service, by_id, header, key)
        flow = self._remembered(service, key, packet, header, chosen)
        if flow is not None:
            report, backend = "known", _named(service, flow.backend)
        elif chosen is None:
            return Expected("no_backend", service.name)
        elif header.source in (self.settings.address, self.settings.address6):
            return Expected("own_source", service.name)
        elif header.source == chosen.address:
            return Expected("hairpin", service.name)
        else:
            self.flows.start(key, chosen.name)
            report, backend = "new", chosen
        return Way(service, backend, key), report

    def _by_connection_id(self, service: Service, packet: bytes, header: read.Header) -> Backend | None:
        """Whom a packet of QUIC names, if he is there and not down."""
        at = header.transport
        datagram = packet[at + 8 : at + int.from_bytes(packet[at + 4 : at + 6], "big")] if service.quic else b""
        whole = quic.destination_id(datagram)
        formats = [
            quic.Configuration(
                one.id,
                one.server_id_bytes,
                one.nonce_bytes,
                bytes.fromhex(Path(one.key_file).read_text()) if one.key_file else None,
            )
            for one in service.quic
        ]
        found = None if whole is None else quic.server_id(formats, whole)
        for backend in service.backends:
            if found is not None and backend.state is not BackendState.DOWN:
                own = server_id_of(backend.name, len(found[1]), backend.server_id)
                if own == found[1]:
                    return backend
        return None

    def _go_by_id(
        self, service: Service, backend: Backend, header: read.Header, key: flows.Tuple
    ) -> Expected | tuple[Way, str]:
        """There, whatever is remembered; which is refreshed where it is the same, and left where it serves on."""
        flow = self._entry(service, key)
        state = None if flow is None else self._state(service, flow)
        if flow is not None and flow.backend == backend.name:
            flow.seen, flow.trusted, report = self.flows.tick, True, "known"
        elif header.source in (self.settings.address, self.settings.address6):
            return Expected("own_source", service.name)
        elif header.source == backend.address:
            return Expected("hairpin", service.name)
        elif state in (None, BackendState.DOWN):
            self.flows.start(key, backend.name)
            report = "new"
        else:
            report = "untracked"
        return Way(service, backend, key), report

    def choice(self, service: Service, key: flows.Tuple) -> Backend | None:
        """What Maglev gives a new flow."""
        members = sorted((b.name, b.weight) for b in service.backends if b.state is BackendState.UP and b.weight)
        if not members:
            return None
        size = service.slots or self.settings.slots
        table = _table(self.settings.seed, size, tuple(members))
        value = self._hash(service, key, source_only=service.hash is HashMode.SOURCE)
        return _named(service, members[table[hashing.slot_of(value, size)]][0])

    def _hash(self, service: Service, key: flows.Tuple, *, source_only: bool) -> int:
        return hashing.tuple_hash(
            self.settings.seed, service.protocol.number, key.source, key.destination, source_only=source_only
        )

    def _entry(self, service: Service, key: flows.Tuple) -> flows.Flow | None:
        """The entry, if it has not expired."""
        idle = self.settings.idle
        udp = service.protocol is Protocol.UDP
        trusted = flows.ticks(service.idle or (idle.udp if udp else idle.tcp))
        untrusted = trusted if udp else flows.ticks(idle.tcp_untrusted)
        return self.flows.find(key, idle=trusted, idle_untrusted=untrusted)

    @staticmethod
    def _state(service: Service, flow: flows.Flow) -> BackendState | None:
        """Of the backend that an entry names; None: it is gone."""
        return next((b.state for b in service.backends if b.name == flow.backend), None)

    def _remembered(
        self, service: Service, key: flows.Tuple, packet: bytes, header: read.Header, chosen: Backend | None
    ) -> flows.Flow | None:
        """The entry, if it still decides for this packet; refreshed then."""
        udp = service.protocol is Protocol.UDP
        flow = self._entry(service, key)
        if flow is None:
            return None
        state = self._state(service, flow)
        opens = not udp and packet[header.transport + 13] & (FIN | SYN | RST | ACK) == SYN
        if state in (None, BackendState.DOWN):
            return None
        if state is BackendState.DRAIN and (opens or (udp and chosen is not None)):
            return None
        flow.seen = self.flows.tick
        flow.trusted = flow.trusted or not opens
        return flow

    # ---- send ----

    def _send(
        self, service: Service, backend: Backend, packet: bytes, key: flows.Tuple
    ) -> tuple[str, tuple[bytes, ...]]:
        room = self._room(service, backend)
        mtu = service.mtu or self.settings.mtu
        reason, parts = "forwarded", [_completed(packet) if self.options.detect_partial else packet]
        if len(packet) > room:
            size = self._segment_size(packet, room, mtu)
            is_super = read.Header(packet).protocol == read.TCP and len(packet) > mtu
            if size:
                reason, parts = "segmented", list(tunnel.segments(packet, size))
            elif is_super or not _may_cut(packet):
                return "too_big", ()
            else:
                parts = list(fragments.pieces(parts[0], room))
        return reason, tuple(self._encapsulate(service, backend, tunnel.forwarded(part), key) for part in parts)

    def _room(self, service: Service, backend: Backend) -> int:
        """The longest packet that fits on the way there."""
        encap = service.encap or self.settings.encap
        overhead = tunnel.overhead(backend.address.version, encap, self.settings.gue_variant)
        return (service.mtu or self.settings.mtu) - overhead

    @staticmethod
    def _segment_size(packet: bytes, room: int, mtu: int) -> int:
        """Payload of each segment. A capture does not say what is a super-packet, but no link carries a packet
        larger than its MTU; its checksum is right, or left to the NIC, and it opens or ends no connection."""
        header = read.Header(packet)
        if header.protocol != read.TCP or len(packet) <= mtu or packet[header.transport + 13] & (SYN | RST):
            return 0
        if _completed(packet) == packet and tunnel.with_transport_checksum(packet) != packet:
            return 0
        headers = header.transport + (packet[header.transport + 12] >> 4) * 4
        return max(0, room - headers) if len(packet) > headers else 0

    def _encapsulate(self, service: Service, backend: Backend, inner: bytes, key: flows.Tuple) -> bytes:
        source = self.settings.source(backend.address)
        assert source is not None
        encap = service.encap or self.settings.encap
        tunnel_end = (backend.address, encap)
        next_id = self._ids.get(tunnel_end, self.options.first_id)
        if backend.address.version == 4 and inner[0] >> 4 == 4 and not inner[6] & 0x40:
            self._ids[tunnel_end] = (next_id + 1) & 0xFFFF
        entropy = self._hash(service, key, source_only=False) >> 32 & 0xFFFFF
        return tunnel.outer(encap, source, backend.address, inner, next_id, entropy, self.settings.gue_variant)


def _may_cut(packet: bytes) -> bool:
    """Whoever is on its way may fragment it."""
    return packet[0] >> 4 == 4 and not packet[6] & 0x40


def _named(service: Service, name: str) -> Backend:
    return next(b for b in service.backends if b.name == name)


def _completed(packet: bytes) -> bytes:
    """Senders leave the checksum to the NIC with the pseudo-header's sum in its place: then the real one."""
    header = read.Header(packet)
    at = header.transport
    field = at + (16 if header.protocol == read.TCP else 6)
    length = header.length - at if header.protocol == read.TCP else int.from_bytes(packet[at + 4 : at + 6], "big")
    pseudo = tunnel.pseudo_sum(header, length)
    if int.from_bytes(packet[field : field + 2], "big") != pseudo:
        return packet
    return tunnel.with_transport_checksum(packet)
