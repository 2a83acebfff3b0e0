# SPDX-License-Identifier: Apache-2.0
"""Proves a table before routers send packets to it: one packet for each service through a pipeline of our own.

The pipeline is private and in memory, the snapshot is the very one that workers have, so nothing that is counted,
remembered or sent by them changes. A service passes when a packet for it is forwarded to a backend that takes new
flows, in a tunnel to that backend's address. Where no backend could take a flow there is nothing to prove, and the
announcement's policy decides alone. Called by :mod:`lb.mux.announcer`, which keeps :class:`lb.bgp.proofs.Proofs`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from lb.dataplane import LinkHeader, Pipeline, Result, Snapshot, Verdict
from lb.dataplane.compile.compiler import Forwarding
from lb.model import Address, Backend, BackendState, Network, Protocol, Service

#: Packets tried for a service, until one answers the question: with some backends unreachable it may take a few.
ROUNDS = (1, 31, 400)

_SOURCE4 = IPv4Address("192.0.2.1")  # documentation addresses: no flow of anybody's
_SOURCE6 = IPv6Address("2001:db8::1")
_TCP_SYN = 0x02
_IPIP = 4


def pipeline() -> Pipeline:
    """For :func:`prove`; it takes longer to make than a service to prove, so who proves often keeps one."""
    return Pipeline(0, LinkHeader.NONE)  # no flow table: every packet asks the snapshot's


def prove(
    forwarding: Forwarding,
    snapshot: Snapshot,
    reachable: Collection[Address],
    services: Iterable[Service],
    pipe: Pipeline | None = None,
) -> dict[str, str]:
    """The names of services that failed, each with what was wrong. ``pipe``: one that nobody else uses meanwhile."""
    waiting = {service.name: service for service in services if any(_candidates(service, reachable))}
    if not waiting:
        return {}
    pipe = pipe or pipeline()
    failed: dict[str, str] = {}
    last: dict[str, str] = {}
    first = 0
    for count in ROUNDS:
        batch = [(service, probe) for service in waiting.values() for probe in _probes(service, first, count)]
        results = pipe.process(snapshot, [(packet, len(packet), 0) for _, packet in batch])
        for (service, _), result in zip(batch, results, strict=True):
            if service.name not in waiting:
                continue
            verdict = _judge(forwarding, service, forwarding.id_of(service), result, reachable)
            if verdict is not None and not verdict.startswith(_WRONG):
                last[service.name] = verdict
                continue
            del waiting[service.name]
            if verdict is not None:
                failed[service.name] = verdict
        first += count
        if not waiting:
            break
    return failed | {name: last[name] for name in waiting if last[name] != _SHADOWED}


_WRONG = "a packet went"
_SHADOWED = "a more specific service takes its packets"


def _candidates(service: Service, reachable: Collection[Address]) -> Iterator[Backend]:
    """The backends that a new flow may get."""
    for backend in service.backends:
        if backend.state is BackendState.UP and backend.weight > 0 and backend.address in reachable:
            yield backend


def _judge(
    forwarding: Forwarding, service: Service, number: int | None, result: Result, reachable: Collection[Address]
) -> str | None:
    """None when the packet proves the service; else what is wrong with it, or what keeps it from being a proof."""
    if result.service_id is not None and result.service_id != number:
        other = forwarding.service(result.service_id)
        if other is not None and _more_specific(other, service):
            return _SHADOWED
        return f"{_WRONG} to service {other.name if other else result.service_id} instead"
    if result.verdict is not Verdict.FORWARD:
        return f"{result.verdict.name.lower()}: {result.reason}"
    backend = forwarding.backend(number, result.backend) if number is not None else None
    if backend is None or backend not in _candidates(service, reachable):
        return f"{_WRONG} to {backend.name if backend else 'no backend'}, which takes no new flows"
    if not result.out or _outer_destination(result.out[0]) != backend.address:
        return f"{_WRONG} to backend {backend.name} in a tunnel that does not lead to {backend.address}"
    return None


def _more_specific(other: Service, service: Service) -> bool:
    """Whether it is right that the other takes some packets of the service's VIP and ports."""
    if other.vip.prefixlen != service.vip.prefixlen:
        return other.vip.prefixlen > service.vip.prefixlen
    return other.ports.last - other.ports.first < service.ports.last - service.ports.first


# --- packets -----------------------------------------------------------------------------------------------------


def _probes(service: Service, first: int, count: int) -> Iterator[bytes]:
    """First packets of flows that differ in source port and, for prefixes and ranges, in what they ask for."""
    for i in range(first, first + count):
        destination = _spread(service.vip, i)
        ports = service.ports
        low = max(ports.first, 1)
        port = (low, ports.last, (low + ports.last) // 2)[i % 3] if i < 30 else low + i * 7919 % (ports.last - low + 1)
        yield syn(service.protocol, destination, 1024 + i, port)


def _spread(vip: Network, i: int) -> Address:
    """First, last and then any addresses of a prefix."""
    size = 1 << vip.max_prefixlen - vip.prefixlen  # ipaddress would keep with the VIP what it computes
    offset = (0, size - 1, size // 2)[i % 3] if i < 30 else i * 7919 % size
    return vip.network_address + offset


def syn(protocol: Protocol, destination: Address, source_port: int, port: int) -> bytes:
    """A TCP SYN or a UDP datagram without payload, checksums right, as an IP packet."""
    source: Address = _SOURCE4 if destination.version == 4 else _SOURCE6
    if protocol is Protocol.TCP:
        segment = bytearray(struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, _TCP_SYN, 65535, 0, 0))
        place = 16
    else:
        segment = bytearray(struct.pack("!HHHH", source_port, port, 8, 0))
        place = 6
    pseudo = source.packed + destination.packed + struct.pack("!IxxxB", len(segment), protocol.number)
    struct.pack_into("!H", segment, place, checksum(pseudo + bytes(segment)) or 0xFFFF)
    if destination.version == 6:
        return (
            struct.pack("!IHBB", 6 << 28, len(segment), protocol.number, 64)
            + source.packed
            + destination.packed
            + bytes(segment)
        )
    header = bytearray(
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0x4000, 64, protocol.number, 0)
        + source.packed
        + destination.packed
    )
    struct.pack_into("!H", header, 10, checksum(bytes(header)))
    return bytes(header + segment)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) if len(data) % 2 == 0 else checksum(data + b"\0") ^ 0xFFFF
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _outer_destination(packet: bytes) -> Address | None:
    """Where a tunnel packet goes."""
    version = packet[0] >> 4
    if version == 4 and packet[9] == _IPIP:
        return ip_address(packet[16:20])
    if version == 6:
        return ip_address(packet[24:40])
    return None
