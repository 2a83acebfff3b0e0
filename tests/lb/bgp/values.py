# SPDX-License-Identifier: Apache-2.0
"""Peers, VIPs and services that the tests of BGP share."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from lb.bgp.routes import Key, Speaks
from lb.model import (
    Announce,
    Backend,
    BgpFamily,
    BgpPeer,
    BgpSettings,
    Network,
    PeerKind,
    PortRange,
    Protocol,
    Service,
)

BOTH = (BgpFamily.IPV4, BgpFamily.IPV6)
OUTSIDE = BgpPeer("outside", IPv4Address("10.0.1.1"), 65000, BOTH)
INSIDE = BgpPeer("inside", IPv4Address("10.0.1.2"), 65001, (BgpFamily.IPV4,), kind=PeerKind.INTERNAL)
SPEAKS = Speaks(BgpSettings(65001, (OUTSIDE, INSIDE), hold=3), IPv4Address("10.0.1.11"), IPv6Address("fd00:1::11"))


def net(text: str) -> Network:
    return ip_network(text)


def key(peer: str, vip: str) -> Key:
    return Key(ip_address(peer), ip_network(vip))


def service(
    name: str, vip: str, *backends: Backend, announce: Announce | None = None, port: int = 80, last: int | None = None
) -> Service:
    return Service(
        name, ip_network(vip), Protocol.TCP, PortRange(port, last or port), tuple(backends), announce=announce
    )
