# SPDX-License-Identifier: Apache-2.0
"""A change seen from what differs gives what looking at everything gives."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from lb.model import PortRange, Protocol, Service
from lb.model.service_diff import ServiceDiff, Vips


def service(n: int) -> Service:
    """Two at each VIP."""
    return Service(f"s{n}", IPv4Network(f"203.0.113.{n // 2}"), Protocol.TCP, PortRange(80 + n % 2, 80 + n % 2))


POOL = [service(n) for n in range(10)]
SETS = st.lists(st.sampled_from(range(10)), unique=True)


@given(st.lists(SETS, min_size=1, max_size=6))
def test_vips_after_changes_are_those_of_the_services(steps: list[list[int]]) -> None:
    before: tuple[Service, ...] = ()
    vips = Vips.of(before)
    for step in steps:
        change = ServiceDiff.between(before, [POOL[n] for n in step])
        after = vips.after(change)
        assert after == Vips.of(change.services)
        assert after.networks == {item.vip for item in change.services}
        assert after.networks is vips.networks or after.networks != vips.networks
        before, vips = change.services, after


def test_a_service_that_became_another_goes_and_comes() -> None:
    before = tuple(POOL[:3])
    after = replace(POOL[1], mtu=1400)
    change = ServiceDiff.between(before, (POOL[0], after, POOL[2]))
    assert (change.gone, change.come) == ((POOL[1],), (after,))
    assert change
    assert not ServiceDiff.between(before, before[::-1])


def test_a_change_is_seen_anew_only_from_elsewhere() -> None:
    change = ServiceDiff.between(tuple(POOL[:2]), POOL[:3])
    assert change.since(change.before) is change
    assert change.since(()).come == tuple(POOL[:3])
