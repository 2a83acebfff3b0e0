# SPDX-License-Identifier: Apache-2.0
"""The MUX of the tables, and what its rows are made of.

Every service has one backend, so that a row can say where its packet goes; choosing among several is tested elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from lb.model import (
    Backend,
    BackendState,
    Encap,
    Idle,
    MuxSettings,
    PortRange,
    Protocol,
    QuicIds,
    Service,
    Unserved,
)
from tests.model import hashing, tunnel
from tests.model.read import Header

SEED = bytes.fromhex("00112233445566778899aabbccddeeff")
MUX, MUX6 = IPv4Address("10.0.1.11"), IPv6Address("2001:db8:1::11")
FIRST_ID = 7

SETTINGS = MuxSettings(
    name="mux1",
    address=MUX,
    address6=MUX6,
    seed=SEED,
    interface="eth0",
    flows=1000,
    slots=251,
    idle=Idle(),
)

ANY_PORT = (0, 65535)


def service(
    name: str,
    vip: str,
    protocol: Protocol,
    ports: int | tuple[int, int],
    *backends: Backend | str,
    mtu: int | None = None,
    encap: Encap | None = None,
    quic: tuple[QuicIds, ...] = (),
) -> Service:
    """A backend given as an address is named after it."""
    first, last = (ports, ports) if isinstance(ports, int) else ports
    rows = tuple(Backend(b, ip_address(b)) if isinstance(b, str) else b for b in backends)
    return Service(name, ip_network(vip), protocol, PortRange(first, last), rows, mtu=mtu, encap=encap, quic=quic)


def drained(address: str) -> Backend:
    return Backend(address, ip_address(address), state=BackendState.DRAIN)


WEB, DNS, RANGE, REST, LOWER, WHOLE = (f"10.0.3.{n}" for n in range(1, 7))
WEB6, DNS6, NET6 = (f"2001:db8:3::{n}" for n in range(1, 4))

#: Of QUIC: who takes what is new, and backends that take nothing new, the last nothing at all.
FRESH, NAMED, DRAINED, DEAD, FRESH6, NAMED6 = "10.0.3.11", "10.0.3.12", "10.0.3.13", "10.0.3.14", WEB6, DNS6
PLAIN_IDS = (QuicIds(1), QuicIds(2, server_id_bytes=1, nonce_bytes=7))


def named(address: str, server_id: str, state: BackendState = BackendState.UP, weight: int = 0) -> Backend:
    return Backend(address, ip_address(address), weight=weight, state=state, server_id=server_id)


SERVICES = (
    service("web", "203.0.113.10", Protocol.TCP, 80, WEB),
    service("dns", "203.0.113.10", Protocol.UDP, 53, DNS),
    service("range", "203.0.113.10", Protocol.TCP, (8000, 8099), RANGE),
    service("rest", "203.0.113.11", Protocol.TCP, ANY_PORT, REST),
    service("rest-80", "203.0.113.11", Protocol.TCP, 80, WEB),
    service("rest-range", "203.0.113.11", Protocol.TCP, (70, 90), RANGE),
    service("lower", "203.0.113.8/29", Protocol.TCP, ANY_PORT, LOWER),
    service("whole", "203.0.113.0/24", Protocol.TCP, 80, WHOLE),
    service("jumbo", "203.0.113.200", Protocol.TCP, 80, WEB, mtu=9000),
    service("empty", "203.0.113.201", Protocol.TCP, 80),
    service("leaving", "203.0.113.202", Protocol.TCP, 80, drained(WEB)),
    service("web6", "2001:db8:f::10", Protocol.TCP, 80, WEB6),
    service("dns6", "2001:db8:f::10", Protocol.UDP, 53, DNS6),
    service("4in6", "203.0.113.210", Protocol.TCP, 80, WEB6),
    service("6in4", "2001:db8:f:1::10", Protocol.TCP, 80, WEB),
    service("gue", "203.0.113.211", Protocol.TCP, 80, WEB, encap=Encap.GUE),
    service("gue-udp", "203.0.113.211", Protocol.UDP, 53, WEB, encap=Encap.GUE),
    service("gue-4in6", "203.0.113.212", Protocol.TCP, 80, WEB6, encap=Encap.GUE),
    service("gue6", "2001:db8:f:1::11", Protocol.TCP, 80, WEB6, encap=Encap.GUE),
    service("gue-6in4", "2001:db8:f:1::12", Protocol.TCP, 80, WEB, encap=Encap.GUE),
    service(
        "h3",
        "203.0.113.220",
        Protocol.UDP,
        443,
        named(FRESH, "0a000001", weight=1),
        named(NAMED, "0a000002"),
        named(DRAINED, "0a000003", BackendState.DRAIN),
        named(DEAD, "0a000004", BackendState.DOWN),
        quic=PLAIN_IDS,
    ),
    service(
        "h36",
        "2001:db8:f::20",
        Protocol.UDP,
        443,
        named(FRESH6, "0a000001", weight=1),
        named(NAMED6, "0a000002"),
        quic=PLAIN_IDS,
    ),
    service("net6", "2001:db8:f::/64", Protocol.TCP, ANY_PORT, NET6),
)


@dataclass(frozen=True)
class Row:
    """One case. ``packet`` starts at the IP header; ``out`` makes the packets that leave, from IP header to IP header.

    ``wire_length``: what it had before a capture cut it; ``partial``: the I/O looks for checksums left to the NIC.
    """

    claim: str
    packet: bytes
    reason: str
    out: tuple[bytes, ...] = ()
    wire_length: int | None = None
    partial: bool = False
    unserved: Unserved = Unserved.DROP

    @property
    def settings(self) -> MuxSettings:
        return replace(SETTINGS, unserved=self.unserved)

    @property
    def verdict(self) -> str:
        if self.reason in ("forwarded", "segmented", "icmp_error", "fragment"):
            return "forward"
        if self.reason in ("echo", "time_exceeded", "frag_needed", "unreachable", "reset"):
            return "reply"
        return "pass" if self.reason in ("not_ip", "not_vip") else "drop"


def to(
    backend: str,
    packet: bytes,
    ident: int = FIRST_ID,
    flow: bytes | None = None,
    encap: Encap = Encap.IPIP,
) -> bytes:
    """``packet`` with one hop less to live, in the tunnel to a backend. ``ident``: where DF is not set. ``flow``:
    a packet of the flow that the label of IPv6 is of, if it is not the packet's own."""
    destination = ip_address(backend)
    source = MUX if destination.version == 4 else MUX6
    if flow is None and packet[9 if packet[0] >> 4 == 4 else 6] not in (6, 17) and packet[0] >> 4 == 4:
        return tunnel.outer(encap, source, destination, tunnel.forwarded(packet), ident, 0)
    header = Header(flow or packet)
    source_port, port = header.ports(flow or packet)
    value = hashing.tuple_hash(SEED, header.protocol, (header.source, source_port), (header.destination, port))
    return tunnel.outer(encap, source, destination, tunnel.forwarded(packet), ident, value >> 32 & 0xFFFFF)


def forwards(
    claim: str,
    packet: bytes,
    backend: str,
    *,
    leaves: bytes | None = None,
    partial: bool = False,
    encap: Encap = Encap.IPIP,
) -> Row:
    """A row whose packet goes to ``backend``, ``leaves`` being what goes into the tunnel if it is not as it came."""
    out = to(backend, packet if leaves is None else leaves, encap=encap)
    return Row(claim, packet, "forwarded", (out,), partial=partial)


def drops(claim: str, packet: bytes, reason: str, wire_length: int | None = None) -> Row:
    return Row(claim, packet, reason, wire_length=wire_length)
