# SPDX-License-Identifier: Apache-2.0
"""Which service a packet belongs to: of all that match, the most specific one."""

from __future__ import annotations

from collections.abc import Iterable

from lb.model import Address, Service


def is_vip(services: Iterable[Service], address: Address) -> bool:
    return any(address.version == s.vip.version and address in s.vip for s in services)


def match(services: Iterable[Service], protocol: int, destination: Address, port: int) -> Service | None:
    """Longer prefix first, then exact port, range, any port."""
    matching = [
        service
        for service in services
        if service.protocol.number == protocol
        and destination.version == service.vip.version
        and destination in service.vip
        and service.ports.first <= port <= service.ports.last
    ]
    return max(matching, key=lambda s: (s.vip.prefixlen, s.ports.exact, not s.ports.any), default=None)
