# SPDX-License-Identifier: Apache-2.0
"""Keeps what comes out of a tunnel on this host: a VIP's packet that nobody here takes goes nowhere. Pure.

A packet that is out of its tunnel has the VIP as destination. Where it is translated, or the VIP is this host's own, it
is taken in. Where neither is so, because nftables was flushed or ``lo`` lost its addresses, a host that forwards would
send it back to the router, which sends it to the MUXes, and round it goes. So an ``ip rule`` for packets from our
interface looks, right behind the table of local addresses, into a table of ours that holds a blackhole for each VIP.
It shares nothing with what it stands in for: neither the table of nftables nor the addresses on ``lo``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from agent.rules.local_services import OwnService
from lb.model import Network

#: Routing table of the blackholes, "LB"; and the protocol number of rule and routes, that of the local routes as well.
TABLE = 0x4C42
#: Behind the local table (0, or 100 where another program moved it), before whatever else forwards.
PRIORITY = 150


class Fence(NamedTuple):
    """Rules and routes of ours, as they are or should be."""

    rules: frozenset[tuple[int, str]] = frozenset()  #: IP version, and the interface that packets come from
    routes: frozenset[Network] = frozenset()


def around(services: Iterable[OwnService], interface: str) -> Fence:
    """``interface``: where packets appear once they are out of their tunnels."""
    vips = frozenset(own.vip for own in services)
    return Fence(frozenset((vip.version, interface) for vip in vips), vips)
