# SPDX-License-Identifier: Apache-2.0
"""Which of all services this host serves, to which port each must be translated, and which it cannot serve.

Called by :mod:`agent.agent`. A backend is this host's own when its address is the agent's. Its weight and state play no
part: a drained backend still has flows that live on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lb.model import AgentConfig, Backend, DecapMode, Network, PortRange, Protocol, Service


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
        why = _why_not(service, mine, mode)
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
            )
        )
    return Served(tuple(sorted(found, key=lambda own: (own.specificity, own.vip.version, own.vip, own.name))), left_out)


def _why_not(service: Service, mine: Iterable[Backend], mode: DecapMode | None) -> str | None:
    first, *others = mine
    port = service.backend_port(first)
    clash = next((backend for backend in others if service.backend_port(backend) != port), None)
    if clash is not None:
        return (
            f"{first.name} and {clash.name} are both this host with different ports, and a host can translate a "
            "service to one port only; give the second an address of its own"
        )
    if service.vip.version == 6 and mode in (DecapMode.TUN, DecapMode.IPIP):
        return f'is IPv6, and decapsulation by {mode.value} is for IPv4 only; this host needs decap = "bpf"'
    return None
