# SPDX-License-Identifier: Apache-2.0
"""A packed section is the mapping that it was made of, whatever is done to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lb.node.lazy_section import PackedMap, pack_sections, sections_text, share
from lb.node.messages import Digest, apply, diff, digest, keys_of

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.text(max_size=3), VALUES, max_size=6)
STATES = st.dictionaries(st.sampled_from(["services", "announcements", "options"]), ENTRIES.filter(bool))


def plain(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {section: dict(entries) for section, entries in state.items()}


@given(ENTRIES)
def test_what_was_packed_is_read_again(entries: dict[str, Any]) -> None:
    packed = PackedMap(entries)
    assert packed == entries
    assert dict(packed) == entries
    assert len(packed) == len(entries)
    assert all(key in packed for key in entries)


@given(ENTRIES, ENTRIES, st.sets(st.text(max_size=3), max_size=3))
def test_a_later_version_is_that_of_a_dict(before: dict[str, Any], new: dict[str, Any], old: set[str]) -> None:
    expected = {key: value for key, value in before.items() if key not in old} | new
    assert PackedMap(before).replaced(old, new) == expected
    assert PackedMap(before) == before


@given(STATES, STATES)
def test_a_packed_state_differs_as_a_plain_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    packed_old, packed_new = pack_sections(old), pack_sections(new)
    delta = diff(packed_old, packed_new)
    assert plain(apply(packed_old, delta)) == new
    keys = {section: {*old.get(section, ()), *new.get(section, ())} for section in old.keys() | new.keys()}
    assert diff(packed_old, packed_new, keys) == delta
    assert diff(packed_old, packed_new, keys_of(delta)) == delta
    assert digest(packed_new) == digest(new)
    followed = Digest(packed_old)
    followed.update(packed_old, delta)
    assert str(followed) == digest(new)


@given(STATES)
def test_the_text_of_a_state_is_its_json(state: dict[str, Any]) -> None:
    assert json.loads(sections_text(pack_sections(state))) == state
    assert json.loads(sections_text(state)) == state


def test_equal_values_are_the_same_object() -> None:
    shared = share({"a": {"x": [1]}, "b": {"x": [1]}, "c": {"x": [2]}})
    assert shared["a"] is shared["b"]
    assert shared["c"] == {"x": [2]}
