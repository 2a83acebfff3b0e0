# SPDX-License-Identifier: Apache-2.0
"""A file that is applied again is not read again, and nobody can tell: every change and every mistake is the same."""

from __future__ import annotations

import copy
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.config import toml
from lb.errors import ConfigError
from manager.desired import state as module
from manager.desired.state import Desired, DesiredChange, Rules, apply_tables
from manager.desired.submitted import SubmittedTables
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
    known = SubmittedTables()
    there = known.apply(Desired(), MANY, RULES).new
    again = known.apply(there, copied(MANY), RULES)
    assert again.empty
    assert [str(line) for line in again.lines] == [f"service s{n} unchanged" for n in range(1, 31)]
    assert again.names == frozenset()
    changed = copied(MANY)
    changed[7]["backend"][0]["weight"] = 3
    change = known.apply(there, changed, RULES)
    assert [str(line) for line in change.lines if line.action != "unchanged"] == [
        "service s8 changed: weight of s8-1 1 → 3"
    ]
    assert [line.name for line in change.lines] == [f"service s{n}" for n in range(1, 31)]
    assert read == [30, 0, 1]
    back = known.apply(change.new, copied(MANY), RULES)
    assert [str(line) for line in back.lines if line.action != "unchanged"] == [
        "service s8 changed: weight of s8-1 3 → 1"
    ]


def test_a_change_that_was_not_made_is_not_taken_for_made(read: list[int]) -> None:
    known = SubmittedTables()
    there = known.apply(Desired(), MANY[:2], RULES).new
    changed = [MANY[0], service("s2", "203.0.113.99")]
    for _ in range(2):  # as with --dry-run
        change = known.apply(there, copied(changed), RULES)
        assert not change.empty
        assert change.new.services["s2"].vip.network_address == IPv4Address("203.0.113.99")
    assert read == [2, 1, 1]


def test_one_and_true_are_told_apart() -> None:
    known = SubmittedTables()
    table = service()
    table["backend"][0]["weight"] = 1
    there = known.apply(Desired(), [table], RULES).new
    wrong = copied([table])
    wrong[0]["backend"][0]["weight"] = True
    with pytest.raises(ConfigError, match="weight"):
        known.apply(there, wrong, RULES)


def test_a_node_that_joined_since_is_looked_at_in_all_of_the_file() -> None:
    known = SubmittedTables()
    there = known.apply(Desired(), MANY[:3], RULES).new
    for address, whose in (("203.0.113.2", "agent host1"), ("10.0.3.1", "MUX mux1")):
        rules = Rules(RULES.vip_prefixes, {IPv4Address(address): whose})
        with pytest.raises(ConfigError) as plain:
            apply_tables(there, copied(MANY[:3]), rules)
        with pytest.raises(ConfigError) as found:
            known.apply(there, copied(MANY[:3]), rules)
        assert found.value.lines == plain.value.lines
    # An agent's address is no obstacle to a backend.
    assert known.apply(
        there, copied(MANY[:3]), Rules(RULES.vip_prefixes, {IPv4Address("10.0.3.1"): "agent host1"})
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


def outcome(
    there: Desired, tables: list[Any], known: SubmittedTables | None, *, whole: bool
) -> DesiredChange | list[str]:
    try:
        return (known.apply if known is not None else apply_tables)(there, copied(tables), RULES, replace_all=whole)
    except ConfigError as error:
        return error.lines


@given(st.lists(st.tuples(FILES, st.booleans(), st.booleans(), st.booleans()), max_size=6))
@settings(max_examples=300, deadline=None)
def test_with_what_was_given_and_without_it_every_file_means_the_same(
    files: list[tuple[list[Any], bool, bool, bool]],
) -> None:
    known = SubmittedTables()
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


# --- files -----------------------------------------------------------------------------------------------------------


def test_of_a_file_too_only_what_differs_is_read_again(read: list[int]) -> None:
    known = SubmittedTables()
    there = known.apply(Desired(), toml.format_tables(MANY), RULES).new
    assert known.apply(there, toml.format_tables(MANY), RULES).empty
    assert known.apply(there, "# mine\n\n" + toml.format_tables(reversed(MANY)) + "\n\n", RULES).empty
    changed = copied(MANY)
    changed[7]["backend"][0]["weight"] = 3
    change = known.apply(there, toml.format_tables(changed), RULES)
    assert [str(line) for line in change.lines if line.action != "unchanged"] == [
        "service s8 changed: weight of s8-1 1 → 3"
    ]
    assert [line.name for line in change.lines] == [f"service s{n}" for n in range(1, 31)]
    assert read == [30, 0, 0, 1]


def test_a_mistake_in_a_file_is_told_by_its_place_in_the_whole() -> None:
    known = SubmittedTables()
    text = toml.format_tables(MANY[:3])
    there = known.apply(Desired(), text, RULES).new
    for wrong, sentence in (
        (f"{text}\n[[service.backend]\n", "line 43: is not TOML at column 19: unclosed"),
        (text.replace('vip = "203.0.113.2"', "vip = 2", 1), r"service\[1\]\.vip: must be an address"),
        (f"{text}\n[mux]\n", "mux: has no place in a file of services"),
        (f"port = 3\n{text}", "port: has no place in a file of services"),
        (f"service = []\n{text}", "line 2: is not TOML at column 3: duplicate key"),
        (text + text, r"6 mistakes\n  service\[3\]\.name: is also the name of service\[0\]"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            known.apply(there, wrong, RULES)
    with pytest.raises(ConfigError) as found:
        known.apply(there, f"[mux]\n{text}".replace('"203.0.113.2"', "2"), RULES)
    assert [line.partition(":")[0] for line in found.value.lines] == ["mux", "service[1].vip"]


#: Pieces of files: plain ones, such as only look like one, and wrong ones.
LINES = st.sampled_from(
    r'''
[[service]]|[[service]]|[[service]] | [[service]]|[[service]] # web|[service]|[[service.backend]]|[service.probe]|[mux]
name = "a"|name = "b"|vip = "203.0.113.1"|vip = "203.0.113.2"|protocol = "tcp"|port = 80|port = 80.0|weight = 2|"""
service = []|address = "10.0.3.1"|x = [|]|x = QQQ|QQQ|# [[service]]|CR|name = "\u0061"|name = 2001-01-01|x = """
'''.replace("QQQ", "'''")
    .replace("CR", "\r")
    .replace("\n", "|")
    .split("|")
)
PLAIN = toml.format_tables([service("a", "203.0.113.1"), service("b", "203.0.113.2")])
TEXTS = st.lists(st.one_of(LINES, st.sampled_from(PLAIN.split("\n\n"))), max_size=14).map("\n".join)


def written(there: Desired, text: str) -> DesiredChange | list[str]:
    """The oracle: the file is read as a whole, each time."""
    try:
        tables, mistakes = toml.service_tables(text)
        try:
            change = apply_tables(there, tables, RULES)
        except ConfigError as error:
            raise ConfigError([*mistakes, *error.mistakes]) from None
        if mistakes:
            raise ConfigError(mistakes)
    except ConfigError as error:
        return error.lines
    return change


@given(st.lists(TEXTS, max_size=5))
@settings(max_examples=400, deadline=None)
def test_in_pieces_and_as_a_whole_every_file_means_the_same(texts: list[str]) -> None:
    known = SubmittedTables()
    there = known.apply(Desired(), PLAIN, RULES).new
    for text in texts:
        plain = written(there, text)
        try:
            quick: DesiredChange | list[str] = known.apply(there, text, RULES)
        except ConfigError as error:
            quick = error.lines
        if isinstance(plain, list) or isinstance(quick, list):
            assert quick == plain
            continue
        assert quick.lines == plain.lines
        assert quick.new == plain.new
        there = quick.new
