# SPDX-License-Identifier: Apache-2.0
"""Which VIPs the host itself must own, and in which form. Pure; called by the planner.

A translated service needs none: its packets are for the DIP before the host decides whose they are. For any other
one the host must own the VIP. A single IPv4 address goes on ``lo`` with a label, so that ours are known from those
of the operator; anything else becomes a route of type ``local`` with a protocol number of ours. (A whole prefix as
an address would make its last address a broadcast, and IPv6 addresses have no labels.)
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

from agent.rules.local_services import OwnService
from lb.model import Network

#: Label of our addresses on ``lo``; ``ip addr show`` prints it.
LABEL = "lo:vipmux"
#: Protocol of our routes in table ``local``, "LB"; unassigned in iproute2's rt_protos.
ROUTE_PROTOCOL = 0xB1


class OwnedVips(NamedTuple):
    """VIPs as addresses on ``lo`` and as local routes."""

    addresses: frozenset[IPv4Address]
    routes: frozenset[Network]


def owned_vips(services: Iterable[OwnService]) -> OwnedVips:
    """What the host must own to serve these."""
    addresses: set[IPv4Address] = set()
    routes: set[Network] = set()
    for own in services:
        if own.translated:
            continue
        address = own.vip.network_address
        if isinstance(address, IPv4Address) and own.vip.prefixlen == 32:
            addresses.add(address)
        else:
            routes.add(own.vip)
    return OwnedVips(frozenset(addresses), frozenset(routes))


def served_vips(services: Iterable[OwnService]) -> frozenset[Network]:
    """Destinations that may be in a tunnel to this host."""
    return frozenset(own.vip for own in services)
