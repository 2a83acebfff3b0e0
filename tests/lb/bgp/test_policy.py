# SPDX-License-Identifier: Apache-2.0
"""Which VIPs a MUX without a manager wants announced."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lb.bgp.policy import by_policy
from lb.bgp.routes import BgpRoute
from lb.model import Announce, AnnouncePeers, AnnouncePolicy, Backend
from tests.lb.bgp.values import net, service

BACKENDS = [Backend(f"b{n}", IPv4Address(f"10.0.3.{n}")) for n in range(1, 4)]
VIP = net("203.0.113.10")


@pytest.mark.parametrize(
    ("announce", "healthy", "announced"),
    [
        (None, 0, True),
        (Announce(AnnouncePolicy.ALWAYS), 0, True),
        (Announce(AnnouncePolicy.ANY_BACKEND), 0, False),
        (Announce(AnnouncePolicy.ANY_BACKEND), 1, True),
        (Announce(AnnouncePolicy.MIN_HEALTHY, n=2), 1, False),
        (Announce(AnnouncePolicy.MIN_HEALTHY, n=2), 2, True),
    ],
)
def test_policy_decides(announce: Announce | None, healthy: int, announced: bool) -> None:
    good = {backend.name for backend in BACKENDS[:healthy]}
    wanted, declined = by_policy(
        [service("web", "203.0.113.10", *BACKENDS, announce=announce)], lambda b: b.name in good
    )
    assert (VIP in wanted, VIP in declined) == (announced, not announced)


def test_the_reason_is_in_words() -> None:
    announce = Announce(AnnouncePolicy.MIN_HEALTHY, n=2)
    _, declined = by_policy([service("web", "203.0.113.10", announce=announce)], lambda b: False)
    assert declined[VIP] == "web: 0 healthy backends, and the policy min-healthy asks for 2"


def test_a_vip_of_two_services_is_announced_as_long_as_one_asks_for_it() -> None:
    sick = service("a", "203.0.113.10", announce=Announce(AnnouncePolicy.ANY_BACKEND, med=5))
    well = service("b", "203.0.113.10", BACKENDS[0], port=443)
    wanted, declined = by_policy([sick, well], lambda b: True)
    assert wanted == {VIP: BgpRoute(med=5)}
    assert declined == {}


def test_the_first_announce_table_of_a_vip_says_how() -> None:
    plain = service("a", "203.0.113.10")
    first = service("b", "203.0.113.10", port=443, announce=Announce(prepend=2, peers=AnnouncePeers.INTERNAL))
    second = service("c", "203.0.113.10", port=444, announce=Announce(prepend=1))
    wanted, _ = by_policy([plain, first, second], lambda b: True)
    assert wanted == {VIP: BgpRoute(prepend=2, peers=AnnouncePeers.INTERNAL)}
