# SPDX-License-Identifier: Apache-2.0
"""Which VIPs are worth announcing, by the policy of their services and the backends that can serve. Pure.

A VIP is one prefix towards the routers whatever the number of its services, so it is announced as long as one of
them asks for it; the first of them that has an ``announce`` table says how. Used by :mod:`lb.mux.announcer` on a MUX
without a manager. Imports only the model and its neighbours here, so that a manager may use it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from lb.bgp.routes import BgpRoute
from lb.model import Announce, AnnouncePolicy, Backend, Network, Service

_DEFAULT = Announce()


def asks(announce: Announce, healthy: int) -> bool:
    """Whether a service with so many healthy backends wants its VIP announced."""
    if announce.policy is AnnouncePolicy.ALWAYS:
        return True
    if announce.policy is AnnouncePolicy.ANY_BACKEND:
        return healthy > 0
    return healthy >= (announce.n or 1)


def reason(announce: Announce, healthy: int) -> str:
    """Why it does not, in words."""
    needed = announce.n or 1 if announce.policy is AnnouncePolicy.MIN_HEALTHY else 1
    return f"{healthy} healthy backends, and the policy {announce.policy.value} asks for {needed}"


def route(announce: Announce) -> BgpRoute:
    return BgpRoute(announce.communities, announce.med, announce.prepend, announce.peers)


def by_policy(
    services: Iterable[Service], healthy: Callable[[Backend], bool]
) -> tuple[Mapping[Network, BgpRoute], Mapping[Network, str]]:
    """What is announced and how; and what is not, with the reason in words."""
    wanted: dict[Network, BgpRoute] = {}
    refused: dict[Network, str] = {}
    spoken: dict[Network, Announce] = {}
    asking: set[Network] = set()
    for service in services:
        announce = service.announce or _DEFAULT
        if service.announce is not None or service.vip not in spoken:
            known = spoken.get(service.vip)
            if known is None or known is _DEFAULT:
                spoken[service.vip] = announce
        count = sum(1 for backend in service.backends if healthy(backend))
        if asks(announce, count):
            asking.add(service.vip)
        else:
            refused[service.vip] = f"{service.name}: {reason(announce, count)}"
    for vip, announce in spoken.items():
        if vip in asking:
            wanted[vip] = route(announce)
            refused.pop(vip, None)
    return wanted, refused
