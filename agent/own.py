# SPDX-License-Identifier: Apache-2.0
"""Which of all services this host serves, and to which port each must be translated.

Called by the planner. A backend is this host's own when its address is the agent's. Its weight and state play no
part: a drained backend still has flows that live on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lb.errors import ConfigError
from lb.model import AgentConfig, Backend, Network, PortRange, Protocol, Service


@dataclass(frozen=True, slots=True)
class OwnService:
    """A service with a backend on this host."""

    name: str
    vip: Network
    protocol: Protocol
    ports: PortRange
    port: int | None  #: where the process listens, if not at the port that clients use
    mtu: int  #: of the way from the MUXes to this host

    @property
    def translated(self) -> bool:
        return self.port is not None

    @property
    def specificity(self) -> tuple[int, int]:
        """Smaller is more specific: longer prefix first, then exact port, range, any port."""
        kind = 0 if self.ports.exact else 2 if self.ports.any else 1
        return self.vip.max_prefixlen - self.vip.prefixlen, kind


def own_services(config: AgentConfig) -> tuple[OwnService, ...]:
    """This host's services, the most specific first; raises ConfigError where a packet could have two targets."""
    settings = config.agent
    found: list[OwnService] = []
    mistakes: list[tuple[str, str]] = []
    for index, service in enumerate(config.services):
        mine = [backend for backend in service.backends if backend.address in (settings.address, settings.address6)]
        if not mine:
            continue
        clash = _other_port(service, mine)
        if clash is not None:
            mistakes.append(
                (
                    f"service[{index}].backend",
                    f"{mine[0].name} and {clash.name} of service {service.name} are both this host with different "
                    "ports, and a host can translate a service to one port only; give the second an address of its own",
                )
            )
        found.append(
            OwnService(
                name=service.name,
                vip=service.vip,
                protocol=service.protocol,
                ports=service.ports,
                port=service.backend_port(mine[0]),
                mtu=service.mtu or settings.mtu,
            )
        )
    if mistakes:
        raise ConfigError(mistakes)
    return tuple(sorted(found, key=lambda own: (own.specificity, own.vip.version, own.vip, own.name)))


def _other_port(service: Service, mine: Iterable[Backend]) -> Backend | None:
    first, *others = mine
    port = service.backend_port(first)
    return next((backend for backend in others if service.backend_port(backend) != port), None)
