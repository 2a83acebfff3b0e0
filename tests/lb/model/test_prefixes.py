# SPDX-License-Identifier: Apache-2.0
"""A cover that followed every step is what collapse_addresses() says of the networks that are left."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import Network
from lb.model.prefixes import MANY, Cover

#: Few addresses, so that networks meet; from the single address to everything.
NETWORKS: st.SearchStrategy[Network] = st.one_of(
    st.builds(
        lambda last, length: IPv4Network((0xC6120000 + last, length), strict=False),
        st.integers(0, 40),
        st.sampled_from([0, 1, 26, 28, 30, 31, 32, 32, 32]),
    ),
    st.builds(
        lambda last, length: IPv6Network((0x20010DB8 << 96 | last, length), strict=False),
        st.integers(0, 10),
        st.sampled_from([0, 64, 126, 127, 128]),
    ),
)


def collapsed(networks: set[Network]) -> list[Network]:
    ipv4 = collapse_addresses(network for network in networks if isinstance(network, IPv4Network))
    ipv6 = collapse_addresses(network for network in networks if isinstance(network, IPv6Network))
    return [*ipv4, *ipv6]


@settings(deadline=None)
@given(st.lists(st.sets(NETWORKS, max_size=25), min_size=1, max_size=6))
def test_a_cover_after_any_steps_is_that_of_what_is_left(steps: list[set[Network]]) -> None:
    cover, there = Cover(), set[Network]()
    kernel: set[Network] = set()
    for wanted in steps:
        step = cover.step(wanted - there, there - wanted)
        gone, come = {prefix.network for prefix in step.gone}, {prefix.network for prefix in step.come}
        assert gone <= kernel
        assert not come & kernel
        kernel = kernel - gone | come
        assert cover.networks == collapsed(wanted)
        assert kernel == set(cover.networks)
        assert len(cover) == len(kernel)
        there = wanted


def test_many_at_once_are_covered_as_one_by_one() -> None:
    networks = [IPv4Network((0xC6120000 + last, 32)) for last in range(MANY + 1)]
    cover = Cover(networks[:3])
    step = cover.step(networks[3:], networks[:1])
    assert cover.networks == collapsed({*networks[1:]})
    assert {prefix.network for prefix in step.come} == {*cover.networks} - {networks[2]}
    assert len(cover.step([], networks[1:]).gone) == len(step.come)


def test_one_address_more_changes_few_prefixes_of_many() -> None:
    cover = Cover(IPv4Network((0xC6120000 + last, 32)) for last in range(0, 20_000, 2))
    step = cover.step([IPv4Network((0xC6120001, 32))], [])
    assert [str(prefix.network) for prefix in step.come] == ["198.18.0.0/31"]
    assert [str(prefix.network) for prefix in step.gone] == ["198.18.0.0/32"]
