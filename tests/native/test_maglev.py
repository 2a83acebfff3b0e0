# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: those of the paper, slot by slot, and the properties that the paper promises."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.dataplane import FlowTuple, lookup
from lb.dataplane.compile.compiler import Compiler
from lb.dataplane.maglev import Maglev, MaglevMember, permutation
from lb.errors import DataplaneError
from lb.model import Backend, BackendState, HashMode, MuxSettings, PortRange, Protocol, Service
from tests.model import hashing, maglev
from tests.packets.world import SEED, SETTINGS

PRIMES = (7, 11, 251, 1021, 4093)


def table(size: int, weights: Sequence[tuple[str, int]]) -> list[int]:
    """As the compiler makes it: members in the order of their names; slots hold indices into ``weights``."""
    rows = sorted((name, weight, i) for i, (name, weight) in enumerate(weights))
    return Maglev(size, [MaglevMember(*permutation(SEED, name, size), weight, i) for name, weight, i in rows]).slots()


WEIGHTS = st.lists(
    st.tuples(st.text("abcdef-123", min_size=1, max_size=6), st.integers(0, 1000)),
    max_size=20,
    unique_by=lambda row: row[0],
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PRIMES), WEIGHTS)
def test_every_slot_is_that_of_the_papers_algorithm(size: int, weights: list[tuple[str, int]]) -> None:
    rows = sorted((name, weight, i) for i, (name, weight) in enumerate(weights))
    members = [(*permutation(SEED, name, size), weight, i) for name, weight, i in rows]
    assert Maglev(size, [MaglevMember(*m) for m in members]).slots() == maglev.populate(size, members)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PRIMES), WEIGHTS)
def test_no_slot_is_empty_where_any_backend_has_a_weight(size: int, weights: list[tuple[str, int]]) -> None:
    slots = table(size, weights)
    if any(weight for _, weight in weights):
        assert Maglev.NONE not in slots
        assert all(weights[backend][1] > 0 for backend in slots)
    else:
        assert slots == [Maglev.NONE] * size


def test_equal_backends_differ_by_one_slot_at_most() -> None:
    for count in (1, 2, 3, 10, 100, 1000):
        shares = Counter(table(65537, [(f"b{i}", 1) for i in range(count)]))
        assert len(shares) == count
        assert max(shares.values()) - min(shares.values()) <= 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_shares_of_the_whole_table_follow_the_weights_within_one_percent(weights: list[int]) -> None:
    size = 65537
    shares = Counter(table(size, [(f"b{i}", w) for i, w in enumerate(weights)]))
    for i, weight in enumerate(weights):
        ideal = size * weight / sum(weights)
        # a turn that has not come yet when the table is full is at most one slot
        assert abs(shares[i] - ideal) <= max(ideal * 0.01, 1.5)


@pytest.mark.parametrize("gone", [0, 17, 99])
def test_removing_one_of_a_hundred_moves_at_most_two_percent_of_the_others(gone: int) -> None:
    names = [(f"backend-{i}", 1) for i in range(100)]
    before = table(65537, names)
    after = table(65537, [(n, 0 if i == gone else w) for i, (n, w) in enumerate(names)])
    others = [(b, a) for b, a in zip(before, after, strict=True) if b != gone]
    assert sum(b != a for b, a in others) <= 0.02 * len(others)


def test_taking_a_backend_away_equals_giving_it_weight_zero() -> None:
    names = [(f"backend-{i}", i + 1) for i in range(10)]
    assert table(4093, names[:9]) == table(4093, [*names[:9], ("backend-9", 0)])


@pytest.mark.parametrize("size", [0, 1, 4, 9, 65536, 65535, 4093 * 4099, (1 << 24) - 1, (1 << 24) + 43, (1 << 32) - 5])
def test_a_size_that_is_no_prime_or_too_large_is_refused(size: int) -> None:
    with pytest.raises(DataplaneError, match=f"Cannot build a Maglev table of {size} slots for 2 backends"):
        Maglev(size, [MaglevMember(0, 2, 1, 0), MaglevMember(0, 1, 1, 1)])


def test_steps_that_would_come_round_for_ever_are_refused() -> None:
    with pytest.raises(DataplaneError):
        Maglev(9, [MaglevMember(0, 3, 1, 0)])


def test_the_smallest_and_the_largest_prime_are_taken() -> None:
    assert Maglev(2, [MaglevMember(1, 1, 1, 5)]).slots() == [5, 5]
    assert Maglev((1 << 24) - 3, [MaglevMember(1, 1, 1, 0)]).size == (1 << 24) - 3


@pytest.mark.parametrize("numbers", [(0, 254), (0, 255), (255, 256), (254, 4094), (0x00FF, 0xFF00), (0, 0xFFFE)])
def test_numbers_of_backends_are_what_they_are_whether_they_fit_into_a_byte_or_not(numbers: tuple[int, int]) -> None:
    members = [(0, 1, 1, numbers[0]), (3, 2, 1, numbers[1])]
    slots = Maglev(7, [MaglevMember(*m) for m in members]).slots()
    assert slots == maglev.populate(7, members)
    assert set(slots) == set(numbers)


def test_permutations_and_backends_out_of_range_are_refused() -> None:
    for member in (
        MaglevMember(7, 1, 1, 0),
        MaglevMember(0, 0, 1, 0),
        MaglevMember(0, 7, 1, 0),
        MaglevMember(0, 1, 1, Maglev.NONE),
    ):
        with pytest.raises(DataplaneError):
            Maglev(7, [member])


def test_the_largest_weights_there_are_keep_their_shares() -> None:
    half = Counter(Maglev(4093, [MaglevMember(0, 1, (1 << 32) - 1, 0), MaglevMember(0, 1, 1 << 31, 1)]).slots())
    assert abs(half[0] - 2 * half[1]) <= 2


# ---- as services ----


def a_service(backends: Sequence[Backend], mode: HashMode = HashMode.FIVE_TUPLE, vip: str = "203.0.113.1") -> Service:
    return Service("web", ip_network(vip), Protocol.TCP, PortRange(0, 65535), tuple(backends), hash=mode)


def some_backends(count: int = 10) -> list[Backend]:
    return [Backend(f"web-{i}", ip_address(f"10.0.0.{i}"), weight=i % 3 + 1) for i in range(count)]


def test_any_order_of_backends_gives_the_same_choices() -> None:
    shuffled = some_backends()
    random.Random(1).shuffle(shuffled)
    left = Compiler(SETTINGS).compile([a_service(some_backends())])
    right = Compiler(SETTINGS).compile([a_service(shuffled)])
    for port in range(2000):
        flow = (Protocol.TCP, IPv4Address("192.0.2.1"), port, IPv4Address("203.0.113.1"), 80)
        assert left.lookup(*flow)[1:] == right.lookup(*flow)[1:]


def test_two_muxes_with_one_seed_choose_the_same_for_a_hundred_thousand_flows() -> None:
    """Though the second was told of other services and backends before, so that its numbers are others."""
    first = Compiler(SETTINGS)
    second = Compiler(SETTINGS)
    second.compile([a_service([Backend(f"old-{i}", ip_address("10.9.9.9")) for i in range(5)])])
    other = replace(a_service(some_backends()[5:], vip="203.0.113.2"), name="other")
    second.compile([other, a_service(some_backends()[3:])])
    left, right = first.compile([a_service(some_backends())]), second.compile([a_service(some_backends())])
    left_snapshot, right_snapshot = left.offline_snapshot(), right.offline_snapshot()
    flows = random.Random(2)
    numbered_alike = True
    for _ in range(100_000):
        flow = FlowTuple(
            Protocol.TCP,
            IPv4Address(flows.getrandbits(32)),
            flows.getrandbits(16),
            IPv4Address("203.0.113.1"),
            flows.getrandbits(16),
        )
        a, b = lookup(left_snapshot, flow), lookup(right_snapshot, flow)
        assert a.slot == b.slot
        assert left.names(a.service_id, a.backend) == right.names(b.service_id, b.backend) != (None, None)
        numbered_alike &= a.backend == b.backend
    assert not numbered_alike, "the second MUX was to have numbers of its own"


def test_another_seed_chooses_otherwise() -> None:
    other = MuxSettings(name="m", address=SETTINGS.address, seed=bytes(16), interface="eth0", slots=SETTINGS.slots)
    left, right = (Compiler(s).compile([a_service(some_backends())]) for s in (SETTINGS, other))
    same = 0
    for port in range(2000):
        flow = (Protocol.TCP, IPv4Address("192.0.2.1"), port, IPv4Address("203.0.113.1"), 80)
        same += left.lookup(*flow).backend == right.lookup(*flow).backend
    assert same < 600


ADDRESSES4, ADDRESSES6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
PORTS = st.integers(0, 65535)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.tuples(ADDRESSES4, ADDRESSES4), st.tuples(ADDRESSES6, ADDRESSES6)),
    PORTS,
    PORTS,
    st.sampled_from(HashMode),
    st.sampled_from(Protocol),
    st.binary(min_size=16, max_size=16),
)
def test_the_slot_is_that_of_siphash_1_3_over_the_tuple(addresses, source_port, port, mode, protocol, seed) -> None:  # type: ignore[no-untyped-def]  # noqa: PLR0917
    source, destination = addresses
    backend = Backend("b", ip_address("10.0.0.1" if source.version == 4 else "2001:db8::1"))
    whole = ip_network("0.0.0.0/0" if source.version == 4 else "::/0")
    mine = MuxSettings(name="m", address=SETTINGS.address, seed=seed, interface="eth0", slots=4093)
    web = Service("web", whole, protocol, PortRange(0, 65535), (backend,), hash=mode)
    found = Compiler(mine).compile([web]).lookup(protocol, source, source_port, destination, port)
    value = hashing.tuple_hash(
        seed, protocol.number, (source, source_port), (destination, port), source_only=mode is HashMode.SOURCE
    )
    assert found.slot == hashing.slot_of(value, 4093)


def test_only_backends_that_are_up_and_have_weight_take_new_flows() -> None:
    backends = [
        Backend("up", ip_address("10.0.0.1")),
        Backend("zero", ip_address("10.0.0.2"), weight=0),
        Backend("drain", ip_address("10.0.0.3"), state=BackendState.DRAIN),
        Backend("down", ip_address("10.0.0.4"), state=BackendState.DOWN),
    ]
    forwarding = Compiler(SETTINGS).compile([a_service(backends)])
    flow = (Protocol.TCP, IPv4Address("192.0.2.1"))
    found = {forwarding.lookup(*flow, port, IPv4Address("203.0.113.1"), 80).backend for port in range(500)}
    assert found == {backends[0]}


def test_services_with_the_same_backends_share_one_table() -> None:
    services = [a_service(some_backends(), vip=f"203.0.113.{i}") for i in range(1, 5)]
    compiler = Compiler(SETTINGS)
    compiler.compile(services)
    assert len(compiler._tables) == 1
