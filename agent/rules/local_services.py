# SPDX-License-Identifier: Apache-2.0
"""Which of all services this host serves, to which port each must be translated, and which it cannot serve.

Called by :mod:`agent.agent`. A backend is this host's own when its address is the agent's. Its weight and state play no
part: a drained backend still has flows that live on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lb.model import (
    AgentConfig,
    AgentSettings,
    Backend,
    DecapMode,
    Encap,
    Network,
    PortRange,
    Protocol,
    Service,
    tunnel_bytes,
)


@dataclass(frozen=True)
class OwnService:
    """A service with a backend on this host."""

    name: str
    vip: Network
    protocol: Protocol
    ports: PortRange
    port: int | None  #: where the process listens at the host's own address; None: at VIP and port of the service
    mtu: int  #: of the way from the MUXes to this host
    track: bool = False  #: connections are tracked, though nothing is translated
    overhead: int | None = None  #: what tunnels to it take of the MTU; None: IP in IP of its own family

    @property
    def fits(self) -> int:
        """The longest packet that fits in its tunnel."""
        own = tunnel_bytes(self.vip.version, Encap.IPIP)
        return self.mtu - (own if self.overhead is None else self.overhead)

    @property
    def translated(self) -> bool:
        return self.port is not None

    @property
    def tracked(self) -> bool:
        """Conntrack knows its connections: to turn replies back, or for the host's own rules."""
        return self.translated or self.track

    @cached_property
    def specificity(self) -> tuple[int, int]:
        """Smaller is more specific: longer prefix first, then exact port, range, any port."""
        kind = 0 if self.ports.exact else 2 if self.ports.any else 1
        return self.vip.max_prefixlen - self.vip.prefixlen, kind


@dataclass(frozen=True, slots=True)
class Served:
    """What becomes of a configuration on this host."""

    services: tuple[OwnService, ...] = ()  #: the most specific first
    left_out: Mapping[str, str] = field(default_factory=dict)  #: services of this host that it cannot serve, and why


def serve(config: AgentConfig, mode: DecapMode | None = None) -> Served:
    """This host's services; one that cannot be served leaves all others alone. ``mode``: how tunnels are taken off."""
    settings = config.agent
    found: list[OwnService] = []
    left_out: dict[str, str] = {}
    for service in config.services:
        mine = [backend for backend in service.backends if backend.address in (settings.address, settings.address6)]
        if not mine:
            continue
        why = _why_not(service, mine, mode, settings)
        if why is not None:
            left_out[service.name] = why
            continue
        found.append(
            OwnService(
                name=service.name,
                vip=service.vip,
                protocol=service.protocol,
                ports=service.ports,
                port=service.backend_port(mine[0]),
                mtu=service.mtu or settings.mtu,
                track=service.track,
                overhead=max(tunnel_bytes(one.address.version, service.encap or settings.encap) for one in mine),
            )
        )
    return Served(tuple(sorted(found, key=lambda own: (own.specificity, own.vip.version, own.vip, own.name))), left_out)


def _why_not(service: Service, mine: Iterable[Backend], mode: DecapMode | None, settings: AgentSettings) -> str | None:
    first, *others = mine
    port = service.backend_port(first)
    clash = next((backend for backend in others if service.backend_port(backend) != port), None)
    if clash is not None:
        return (
            f"{first.name} and {clash.name} are both this host with different ports, and a host can translate a "
            "service to one port only; give the second an address of its own"
        )
    if port is not None and service.vip.version not in {address.version for address in settings.addresses}:
        key = "address" if service.vip.version == 4 else "address6"
        return f"its port is translated to {port} of this host, which needs agent.{key}: an address of the VIP's family"
    if mode is DecapMode.IPIP:
        return _not_by_ipip(service, mine)
    return None


def _not_by_ipip(service: Service, mine: Iterable[Backend]) -> str | None:
    """The kernel's own device takes IPv4 out of IPv4."""
    other = 'and decapsulation by ipip takes IPv4 in IPv4 alone; this host needs decap = "bpf" or "tun"'
    if service.vip.version == 6:
        return f"is IPv6, {other}"
    if any(backend.address.version == 6 for backend in mine):
        return f"its tunnel is of IPv6, {other}"
    return f"its tunnel is GUE, {other}" if service.encap is Encap.GUE else None
