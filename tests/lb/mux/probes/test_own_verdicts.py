# SPDX-License-Identifier: Apache-2.0
"""What a MUX takes out by itself while its manager is away: what it sees dead, and never too much."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest

from lb.model import Backend, BackendState, PortRange, Protocol, Service
from lb.mux.probes.own_verdicts import own_verdicts
from lb.probe.results import Known
from lb.probe.state import ProbeHealth

UP, DRAIN, DOWN = BackendState.UP, BackendState.DRAIN, BackendState.DOWN


def backend(number: int, state: BackendState = UP, weight: int = 1) -> Backend:
    return Backend(f"b{number}", IPv4Address(f"10.0.3.{number}"), weight=weight, state=state)


def service(*backends: Backend, name: str = "web", protocol: Protocol = Protocol.TCP) -> Service:
    return Service(name, ip_network("203.0.113.10/32"), protocol, PortRange(80, 80), backends)


def known(*down: str, of: str = "web") -> dict[tuple[str, str], Known]:
    return {(of, name): Known(ProbeHealth.DOWN, "connect timed out", 1.0) for name in down}


ALL = frozenset(IPv4Address(f"10.0.3.{number}") for number in range(1, 9))


@pytest.mark.parametrize(
    ("backends", "down", "drained"),
    [
        ([backend(1), backend(2)], [], []),
        ([backend(1), backend(2)], ["b1"], ["b1"]),  # half may go
        ([backend(1), backend(2)], ["b1", "b2"], []),  # all may not: this MUX is blind
        ([backend(1), backend(2), backend(3)], ["b1", "b2"], []),
        ([backend(1), backend(2), backend(3), backend(4)], ["b1", "b2"], ["b1", "b2"]),
        ([backend(1, weight=3), backend(2)], ["b1"], ["b1"]),  # by weight it is more, by number it is half
        ([backend(1, weight=3), backend(2), backend(3)], ["b1", "b2"], []),  # too much by both
        ([backend(1, weight=3), backend(2)], ["b2"], ["b2"]),
        ([backend(1, DOWN), backend(2), backend(3)], ["b1", "b2"], []),  # what the manager took out counts
        ([backend(1, DOWN), backend(2), backend(3), backend(4)], ["b1", "b2"], ["b2"]),
        ([backend(1, DRAIN), backend(2), backend(3)], ["b1", "b2"], ["b2"]),  # what drains does not
        ([backend(1, weight=0), backend(2), backend(3)], ["b1", "b2"], ["b2"]),
        ([backend(1)], ["b1"], []),  # the only one
    ],
)
def test_never_more_than_half_of_a_services_weight(
    backends: list[Backend], down: list[str], drained: list[str]
) -> None:
    before = service(*backends)
    found = own_verdicts([before], known(*down), ALL)
    assert [name for _, name in found.drained] == drained
    (after,) = found.services
    changed = [one.name for one, other in zip(after.backends, before.backends, strict=True) if one != other]
    assert changed == drained
    assert all(one.state is DRAIN for one in after.backends if one.name in drained)
    if not drained:
        assert after is before, "nothing to publish"


def test_too_much_is_said() -> None:
    found = own_verdicts([service(backend(1), backend(2))], known("b1", "b2"), ALL)
    assert found.capped == {"web": "2 of 2 backends seem dead from here; all of them stay"}


def test_who_refuses_goes_beyond_that_as_long_as_anybody_is_well() -> None:
    three = service(backend(1), backend(2), backend(3))
    refused = {key: replace(word, refused=True) for key, word in known("b1", "b2").items()}
    assert [name for _, name in own_verdicts([three], refused, ALL).drained] == ["b1", "b2"]
    mixed = {**known("b1", "b2"), ("web", "b1"): refused["web", "b1"]}
    found = own_verdicts([three], mixed, ALL)
    assert [name for _, name in found.drained] == ["b1"]
    assert found.capped == {"web": "2 of 3 backends seem dead from here; those that do not refuse stay"}
    all_refuse = {("web", name): replace(word, refused=True) for (_, name), word in known("b1", "b2", "b3").items()}
    assert own_verdicts([three], all_refuse, ALL).services == (three,)


def test_how_much_may_go_is_the_services_to_say() -> None:
    never = replace(service(backend(1), backend(2), backend(3)), panic=0.0)
    assert [name for _, name in own_verdicts([never], known("b1", "b2"), ALL).drained] == ["b1", "b2"]
    soon = replace(never, panic=0.9)
    assert own_verdicts([soon], known("b1"), ALL).services == (soon,)


def test_what_is_not_known_is_not_dead() -> None:
    words = {
        ("web", "b1"): Known(ProbeHealth.UNKNOWN, "not probed", 0.0),
        ("web", "b2"): Known(ProbeHealth.UP, "well", 1.0),
    }
    before = service(backend(1), backend(2), backend(3))
    assert own_verdicts([before], words, ALL).services == (before,)


def test_a_backend_of_udp_that_nobody_probes_is_dead_once_there_is_no_way_to_its_machine() -> None:
    before = service(backend(1), backend(2), protocol=Protocol.UDP)
    found = own_verdicts([before], {}, ALL - {IPv4Address("10.0.3.1")})
    assert found.drained == {("web", "b1"): "there is no way to 10.0.3.1 from here"}


def test_services_are_judged_each_by_itself() -> None:
    web, dns = service(backend(1), backend(2)), service(backend(1), backend(2), name="dns")
    found = own_verdicts([web, dns], known("b1"), ALL)
    assert found.services[1] is dns
    assert list(found.drained) == [("web", "b1")]
