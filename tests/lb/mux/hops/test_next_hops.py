# SPDX-License-Identifier: Apache-2.0
"""Next hops from plain values: on the link, behind a gateway, and every way of not being reachable."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lb.mux.hops.next_hops import (
    Link,
    Neighbour,
    NeighbourState,
    NextHop,
    RouteAnswer,
    RouteKind,
    Unreachable,
    changes,
    remember,
    resolve,
    to_ask,
)

BACKEND = ip_address("10.0.3.21")
GATEWAY = ip_address("10.0.1.1")
MAC = bytes.fromhex("020000000021")
OTHER_MAC = bytes.fromhex("020000000099")
OUR_MAC = bytes.fromhex("020000000001")
LINKS = {
    2: Link(2, "eth0", up=True, mac=OUR_MAC),
    3: Link(3, "eth1", up=False, mac=OUR_MAC),
    4: Link(4, "wg0", up=True, mac=None),
}
ON_LINK = RouteAnswer(RouteKind.UNICAST, 2)
BEHIND = RouteAnswer(RouteKind.UNICAST, 2, GATEWAY)
REACHABLE = Neighbour(NeighbourState.REACHABLE, MAC)


def test_a_backend_on_the_link_is_reached_at_its_own_link_address() -> None:
    assert resolve(BACKEND, ON_LINK, LINKS, {(2, BACKEND): REACHABLE}) == NextHop(
        BACKEND, 2, "eth0", BACKEND, MAC, OUR_MAC
    )


def test_a_backend_behind_a_gateway_is_reached_at_the_gateways_link_address() -> None:
    found = resolve(
        BACKEND, BEHIND, LINKS, {(2, GATEWAY): REACHABLE, (2, BACKEND): Neighbour(REACHABLE.state, OTHER_MAC)}
    )
    assert isinstance(found, NextHop)
    assert (found.neighbour, found.mac) == (GATEWAY, MAC)


@pytest.mark.parametrize("state", ["REACHABLE", "STALE", "DELAY", "PROBE", "NOARP", "PERMANENT"])
def test_a_link_address_is_used_in_every_state_that_holds_one(state: str) -> None:
    neighbours = {(2, BACKEND): Neighbour(NeighbourState[state], MAC)}
    assert isinstance(resolve(BACKEND, ON_LINK, LINKS, neighbours), NextHop)


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (None, "no route"),
        (RouteAnswer(RouteKind.LOCAL, 1), "it is an address of this machine"),
        (RouteAnswer(RouteKind.BLACKHOLE, 0), "its route is blackhole"),
        (RouteAnswer(RouteKind.PROHIBIT, 0), "its route is prohibit"),
        (RouteAnswer(RouteKind.UNICAST, 3), "interface eth1 is down"),
        (RouteAnswer(RouteKind.UNICAST, 4), "its route leaves by wg0, which has no Ethernet addresses"),
        (RouteAnswer(RouteKind.UNICAST, 9), "its route leaves by interface 9, which does not exist"),
    ],
)
def test_a_backend_without_a_usable_route_is_unreachable_and_says_why(route: RouteAnswer | None, reason: str) -> None:
    assert resolve(BACKEND, route, LINKS, {(2, BACKEND): REACHABLE}) == Unreachable(BACKEND, reason)


@pytest.mark.parametrize(
    ("neighbour", "reason"),
    [
        (None, "10.0.3.21 on eth0 has not answered ARP yet"),
        (Neighbour(NeighbourState.INCOMPLETE, None), "10.0.3.21 on eth0 has not answered ARP yet"),
        (Neighbour(NeighbourState.FAILED, None), "10.0.3.21 on eth0 does not answer ARP"),
        (Neighbour(NeighbourState.FAILED, MAC), "10.0.3.21 on eth0 does not answer ARP"),
    ],
)
def test_a_neighbour_without_a_link_address_makes_the_backend_unreachable(
    neighbour: Neighbour | None, reason: str
) -> None:
    neighbours = {(2, BACKEND): neighbour} if neighbour else {}
    pending = reason.endswith("yet")
    assert resolve(BACKEND, ON_LINK, LINKS, neighbours) == Unreachable(BACKEND, reason, (2, BACKEND), pending)


def test_an_unreachable_gateway_is_named_as_the_reason() -> None:
    found = resolve(BACKEND, BEHIND, LINKS, {})
    assert isinstance(found, Unreachable)
    assert found.reason == "gateway 10.0.1.1 on eth0 has not answered ARP yet"


def test_ipv6_backends_are_looked_for_by_neighbour_discovery() -> None:
    backend = ip_address("fd00::21")
    found = resolve(backend, ON_LINK, LINKS, {})
    assert isinstance(found, Unreachable)
    assert found.reason == "fd00::21 on eth0 has not answered neighbour discovery yet"


def test_the_kernel_is_asked_for_missing_and_stale_neighbours_only() -> None:
    fresh, stale, missing = (ip_address(f"10.0.3.{last}") for last in (1, 2, 3))
    neighbours = {(2, fresh): REACHABLE, (2, stale): Neighbour(NeighbourState.STALE, MAC)}
    found = {address: resolve(address, ON_LINK, LINKS, neighbours) for address in (fresh, stale, missing)}
    assert to_ask(found, neighbours) == {(2, stale), (2, missing)}


def test_backends_behind_one_gateway_ask_for_it_once() -> None:
    backends = [ip_address(f"10.0.3.{last}") for last in range(1, 50)]
    found = {address: resolve(address, BEHIND, LINKS, {}) for address in backends}
    assert to_ask(found, {}) == {(2, GATEWAY)}


INCOMPLETE = Neighbour(NeighbourState.INCOMPLETE, None)
FAILED = Neighbour(NeighbourState.FAILED, None)
REMEMBERED = Neighbour(NeighbourState.STALE, MAC)


@pytest.mark.parametrize(
    ("old", "new", "held"),
    [
        (None, REACHABLE, REACHABLE),
        (REACHABLE, Neighbour(NeighbourState.REACHABLE, OTHER_MAC), Neighbour(NeighbourState.REACHABLE, OTHER_MAC)),
        (REACHABLE, None, REMEMBERED),
        (REACHABLE, INCOMPLETE, REMEMBERED),
        (REACHABLE, FAILED, FAILED),
        (FAILED, INCOMPLETE, FAILED),
        (FAILED, None, FAILED),
        (FAILED, REACHABLE, REACHABLE),
        (INCOMPLETE, None, None),
        (None, None, None),
    ],
)
def test_a_link_address_serves_until_it_failed_and_a_failure_stands_until_an_answer(
    old: Neighbour | None, new: Neighbour | None, held: Neighbour | None
) -> None:
    assert remember(old, new) == held


def test_what_is_not_known_yet_is_no_change() -> None:
    waiting = resolve(BACKEND, ON_LINK, LINKS, {})
    here = resolve(BACKEND, ON_LINK, LINKS, {(2, BACKEND): REACHABLE})
    assert changes({}, {BACKEND: waiting}) == []
    assert changes({BACKEND: waiting}, {BACKEND: here}) == []


def test_each_change_is_said_once() -> None:
    lost = Unreachable(BACKEND, "no route")
    here = NextHop(BACKEND, 2, "eth0", BACKEND, MAC, OUR_MAC)
    moved = NextHop(BACKEND, 2, "eth0", BACKEND, OTHER_MAC, OUR_MAC)
    assert [change.reachable for change in changes({}, {BACKEND: lost})] == [False]
    assert changes({BACKEND: lost}, {BACKEND: lost}) == []
    assert changes({}, {BACKEND: here}) == []
    assert [change.text for change in changes({BACKEND: lost}, {BACKEND: here})] == ["by eth0, 02:00:00:00:00:21"]
    assert [change.text for change in changes({BACKEND: here}, {BACKEND: moved})] == [
        "moved to eth0, 02:00:00:00:00:99"
    ]


def test_many_backends_behind_a_lost_gateway_are_one_change() -> None:
    backends = [ip_address(f"10.0.3.{last}") for last in range(1, 50)]
    before = {address: resolve(address, BEHIND, LINKS, {(2, GATEWAY): REACHABLE}) for address in backends}
    after = {address: resolve(address, BEHIND, LINKS, {(2, GATEWAY): FAILED}) for address in backends}
    (change,) = changes(before, after)
    assert change.addresses == tuple(backends)
    assert change.text == "gateway 10.0.1.1 on eth0 does not answer ARP"
