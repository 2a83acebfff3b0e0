# SPDX-License-Identifier: Apache-2.0
"""Values that the unit tests of the agent share."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from agent.rules.local_services import OwnService, serve
from lb.model import (
    AgentConfig,
    AgentSettings,
    Backend,
    BackendState,
    DecapMode,
    PortRange,
    Protocol,
    Service,
)

HOST = IPv4Address("10.0.3.21")
HOST6 = IPv6Address("fd00::21")
MUX = IPv4Address("10.0.1.11")

ANY_PORT = (0, 65535)


def service(  # a row of a test reads better than keywords
    name: str,
    vip: str,
    port: int | tuple[int, int] = 80,
    to: int | None = None,
    *,
    protocol: str = "tcp",
    address: str | None = None,
    state: BackendState = BackendState.UP,
    weight: int = 1,
    mtu: int | None = None,
    track: bool = False,
) -> Service:
    network = ip_network(vip)
    first, last = port if isinstance(port, tuple) else (port, port)
    at = ip_address(address) if address else HOST if network.version == 4 else HOST6
    return Service(
        name=name,
        vip=network,
        protocol=Protocol(protocol),
        ports=PortRange(first, last),
        backends=(Backend(f"{name}-1", at, to, weight, state),),
        mtu=mtu,
        track=track,
    )


def config(*services: Service, **changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "name": "h",
        "address": HOST,
        "interface": "eth0",
        "muxes": (MUX,),
        "decap": DecapMode.TUN,
    }
    return AgentConfig(AgentSettings(**{**values, **changes}), services)


def own_services(given: AgentConfig) -> tuple[OwnService, ...]:
    """Of a configuration of which everything can be served."""
    served = serve(given)
    assert not served.left_out
    return served.services
