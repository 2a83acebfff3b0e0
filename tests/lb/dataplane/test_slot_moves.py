# SPDX-License-Identifier: Apache-2.0
"""Slots that a change moves, against tables compiled as a MUX compiles them; and what becomes of live flows."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.dataplane.compile.compiler import Compiler
from lb.dataplane.compile.slot_moves import Pool, deleted, moves
from lb.model import Backend, BackendState, MuxSettings, PortRange, Protocol, Service

SEED = bytes(range(16))
SLOTS = 251


def table(backends: Mapping[str, tuple[int, str, int | None]], **keys: Any) -> dict[str, Any]:
    """``backends``: name -> weight, state and live flows."""
    rows = [
        {"name": name, "address": f"10.0.3.{int(name[1:])}", "weight": weight, "state": state, "flows": flows}
        for name, (weight, state, flows) in backends.items()
    ]
    base = {"vip": "203.0.113.10", "protocol": "tcp", "port": 80, "slots": SLOTS, "hash": "5-tuple"}
    return {**base, "backend": rows, **keys}


def compiled(found: Mapping[str, Any]) -> list[str | None]:
    """The owner of each slot on a MUX."""
    backends = tuple(
        Backend(row["name"], IPv4Address(row["address"]), None, row["weight"], BackendState(row["state"]))
        for row in found["backend"]
    )
    service = Service(
        "web", IPv4Network("203.0.113.10"), Protocol.TCP, PortRange(80, 80), backends, slots=found["slots"]
    )
    mux = MuxSettings("mux1", IPv4Address("10.0.1.11"), interface="eth0", seed=SEED)
    forwarding = Compiler(mux).compile([service])
    (number,) = forwarding.ids
    names = [forwarding.backend(number, slot) for slot in forwarding.table(number).slots()]
    return [backend.name if backend is not None else None for backend in names]


BACKENDS = st.dictionaries(
    st.sampled_from([f"b{n}" for n in range(1, 7)]),
    st.tuples(st.integers(0, 3), st.sampled_from(["up", "drain", "down"]), st.integers(0, 1000)),
)


@given(BACKENDS, BACKENDS)
@settings(max_examples=100, deadline=None)
def test_moved_slots_are_those_in_which_two_muxes_tables_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = table(one), table(other)
    differing = sum(was != now for was, now in zip(compiled(before), compiled(after), strict=True))
    found = moves(before, after, Pool(SEED))
    assert (found.moved, found.size) == (differing, SLOTS)


@given(BACKENDS, BACKENDS)
@settings(max_examples=100, deadline=None)
def test_every_live_flow_is_counted_once_at_most(one: dict[str, Any], other: dict[str, Any]) -> None:
    found = moves(table(one), table(other), Pool(SEED))
    touched = [found.breaking, found.draining, found.moving]
    assert all(count is not None and count >= 0 for count in touched)
    assert sum(count or 0 for count in touched) <= sum(flows for _, _, flows in one.values()) + len(one)


def test_a_backend_that_goes_takes_its_flows_and_its_slots_with_it() -> None:
    before = table({"b1": (1, "up", 700), "b2": (1, "up", 500), "b3": (1, "up", 300)})
    for after, why in (
        (table({"b1": (1, "up", 0), "b2": (1, "up", 0)}), "b3 is removed"),
        (table({"b1": (1, "up", 0), "b2": (1, "up", 0), "b3": (1, "down", 0)}), "b3 goes down"),
    ):
        found = moves(before, after, Pool(SEED))
        assert (found.breaking, found.draining, found.why) == (300, 0, (why,))
        assert 1 / 3 - 0.05 < found.share < 1 / 3 + 0.15, "its own slots, and few others"


def test_a_backend_that_drains_keeps_its_flows_but_not_those_of_udp() -> None:
    before = {"b1": (1, "up", 700), "b2": (1, "up", 500)}
    after = {"b1": (1, "drain", 700), "b2": (1, "up", 500)}
    found = moves(table(before), table(after), Pool(SEED))
    assert (found.breaking, found.draining, found.drained, found.moving) == (0, 700, ("b1",), 0)
    found = moves(table(before, protocol="udp"), table(after, protocol="udp"), Pool(SEED))
    assert (found.breaking, found.draining, found.why) == (700, 0, ("b1 drains, and UDP moves at once",))


def test_another_weight_moves_slots_and_breaks_nothing() -> None:
    found = moves(
        table({"b1": (1, "up", 1000), "b2": (1, "up", 1000)}),
        table({"b1": (3, "up", 0), "b2": (1, "up", 0)}),
        Pool(SEED),
    )
    assert found.breaking == 0
    assert 0.2 < found.share < 0.35, "a quarter, from half and half to three and one"
    assert found.moving is not None
    assert 400 < found.moving < 700


@pytest.mark.parametrize("keys", [{"hash": "source"}, {"slots": 509}])
def test_another_hash_or_size_chooses_every_flow_anew(keys: dict[str, Any]) -> None:
    backends = {"b1": (1, "up", 1000), "b2": (1, "up", 1000)}
    found = moves(table(backends), table(backends, **keys), Pool(SEED))
    assert found.share == pytest.approx(0.5, abs=0.02)
    assert (found.breaking, found.moving) == (0, pytest.approx(1000, abs=40))


def test_another_address_or_port_ends_all_flows_and_so_does_deleting() -> None:
    before = table({"b1": (1, "up", 700), "b2": (1, "up", 500)})
    for found in (moves(before, {**before, "port": 81}, Pool()), deleted(before, Pool())):
        assert (found.breaking, found.share) == (1200, 1.0)
    moved = table({"b1": (1, "up", 700), "b2": (1, "up", 500)})
    moved["backend"][0]["address"] = "10.0.3.99"
    found = moves(before, moved, Pool())
    assert (found.breaking, found.why, found.moved) == (700, ("b1 moves to 10.0.3.99",), 0)


def test_flows_that_nobody_counted_are_unknown_where_they_matter() -> None:
    before = table({"b1": (1, "up", None), "b2": (1, "up", 500)})
    found = moves(before, table({"b2": (1, "up", 0)}), Pool(SEED))
    assert (found.breaking, found.moving) == (None, 0)
    found = moves(before, table({"b1": (1, "up", None)}), Pool(SEED))
    assert (found.breaking, found.moving) == (500, 0)
    assert deleted(before, Pool()).breaking is None


def test_the_seed_matters_by_less_than_a_percent() -> None:
    before = table({f"b{n}": (1, "up", 0) for n in range(1, 6)}, slots=None)
    after = table({f"b{n}": (1 + (n == 2), "up", 0) for n in range(1, 6)}, slots=None)
    shares = [moves(before, after, Pool(bytes([n]) * 16)).share for n in range(6)]
    assert max(shares) - min(shares) < 0.01
