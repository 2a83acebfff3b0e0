# SPDX-License-Identifier: Apache-2.0
"""A file that is applied again is not read again, and nobody can tell: every change and every mistake is the same."""

from __future__ import annotations

import copy
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import ConfigError
from manager import desired as module
from manager.desired import Change, Desired, Rules, apply_tables
from manager.given import Given
from tests.manager.fleet import RULES, service

MANY = [service(f"s{n}", f"203.0.113.{n}") for n in range(1, 31)]


def copied(tables: list[Any]) -> list[Any]:
    return copy.deepcopy(tables)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tables were read, each time."""
    counts: list[int] = []
    parse = module.parse_service_tables

    def counting(array: Any) -> Any:
        counts.append(len(array))
        return parse(array)

    monkeypatch.setattr(module, "parse_service_tables", counting)
    return counts


def test_only_what_differs_is_read_again(read: list[int]) -> None:
    known = Given()
    there = apply_tables(Desired(), MANY, RULES, given=known).new
    again = apply_tables(there, copied(MANY), RULES, given=known)
    assert again.empty
    assert [str(line) for line in again.lines] == [f"service s{n} unchanged" for n in range(1, 31)]
    assert again.names == frozenset()
    changed = copied(MANY)
    changed[7]["backend"][0]["weight"] = 3
    change = apply_tables(there, changed, RULES, given=known)
    assert [str(line) for line in change.lines if line.action != "unchanged"] == [
        "service s8 changed: weight of s8-1 1 → 3"
    ]
    assert [line.name for line in change.lines] == [f"service s{n}" for n in range(1, 31)]
    assert read == [30, 0, 1]
    back = apply_tables(change.new, copied(MANY), RULES, given=known)
    assert [str(line) for line in back.lines if line.action != "unchanged"] == [
        "service s8 changed: weight of s8-1 3 → 1"
    ]


def test_a_change_that_was_not_made_is_not_taken_for_made(read: list[int]) -> None:
    known = Given()
    there = apply_tables(Desired(), MANY[:2], RULES, given=known).new
    changed = [MANY[0], service("s2", "203.0.113.99")]
    for _ in range(2):  # as with --dry-run
        change = apply_tables(there, copied(changed), RULES, given=known)
        assert not change.empty
        assert change.new.services["s2"].vip.network_address == IPv4Address("203.0.113.99")
    assert read == [2, 1, 1]


def test_one_and_true_are_told_apart() -> None:
    known = Given()
    table = service()
    table["backend"][0]["weight"] = 1
    there = apply_tables(Desired(), [table], RULES, given=known).new
    wrong = copied([table])
    wrong[0]["backend"][0]["weight"] = True
    with pytest.raises(ConfigError, match="weight"):
        apply_tables(there, wrong, RULES, given=known)


def test_a_node_that_joined_since_is_looked_at_in_all_of_the_file() -> None:
    known = Given()
    there = apply_tables(Desired(), MANY[:3], RULES, given=known).new
    for address, whose in (("203.0.113.2", "agent host1"), ("10.0.3.1", "MUX mux1")):
        rules = Rules(RULES.vip_prefixes, {IPv4Address(address): whose})
        with pytest.raises(ConfigError) as plain:
            apply_tables(there, copied(MANY[:3]), rules)
        with pytest.raises(ConfigError) as found:
            apply_tables(there, copied(MANY[:3]), rules, given=known)
        assert found.value.lines == plain.value.lines
    # An agent's address is no obstacle to a backend.
    assert apply_tables(
        there, copied(MANY[:3]), Rules(RULES.vip_prefixes, {IPv4Address("10.0.3.1"): "agent host1"}), given=known
    ).empty


VIPS = st.sampled_from([f"203.0.113.{n}" for n in range(1, 5)] + ["203.0.113.0/30", "198.51.100.1"])
TABLES = st.builds(
    lambda name, vip, port, hosts, weight, more: {
        **service(name, vip, hosts, port),
        "backend": [{"name": f"b{n}", "address": f"10.0.3.{n}", "weight": weight} for n in hosts] + more,
    },
    st.sampled_from(["a", "b", "c", "d"]),
    VIPS,
    st.sampled_from([80, 81, "80-90", 0]),
    st.sampled_from([(1,), (2,), (1, 2)]),
    st.sampled_from([1, 2, -1]),
    st.sampled_from([[], [], [{"name": "in", "address": "203.0.113.1"}]]),
)
FILES = st.lists(st.one_of(TABLES, st.sampled_from([7, None, {}, {"name": 3}])), max_size=5)


def outcome(there: Desired, tables: list[Any], known: Given | None, *, whole: bool) -> Change | list[str]:
    try:
        return apply_tables(there, copied(tables), RULES, replace_all=whole, given=known)
    except ConfigError as error:
        return error.lines


@given(st.lists(st.tuples(FILES, st.booleans(), st.booleans(), st.booleans()), max_size=6))
@settings(max_examples=300, deadline=None)
def test_with_what_was_given_and_without_it_every_file_means_the_same(
    files: list[tuple[list[Any], bool, bool, bool]],
) -> None:
    known = Given()
    there = Desired()
    last: list[Any] = []
    for tables, with_last, whole, dry_run in files:
        tables = [*last, *tables] if with_last else tables  # noqa: PLW2901
        quick, plain = (outcome(there, tables, how, whole=whole) for how in (known, None))
        if isinstance(plain, list) or isinstance(quick, list):
            assert quick == plain
            continue
        assert quick.lines == plain.lines
        assert quick.new == plain.new
        assert quick.delta() == plain.delta()
        assert {name: sorted(found) for name, found in quick.new.by_address.items()} == {
            name: sorted(found) for name, found in plain.new.by_address.items()
        }
        assert quick.new.by_vip == plain.new.by_vip
        last = tables
        if not dry_run:
            there = quick.new
