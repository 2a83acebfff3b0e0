# SPDX-License-Identifier: Apache-2.0
"""A persistent map against a plain dict, through any history."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model.persistent_map import PersistentMap, differences

KEYS = st.integers(0, 40).map(str)
CHANGES = st.lists(st.tuples(st.lists(KEYS), st.dictionaries(KEYS, st.integers(0, 3))))


@given(st.dictionaries(KEYS, st.integers(0, 3)), CHANGES)
def test_every_version_is_what_a_dict_would_be_and_stays_so(entries: dict[str, int], changes: list) -> None:  # type: ignore[type-arg]
    plain, version = dict(entries), PersistentMap(entries)
    history = [(dict(plain), version)]
    for old, new in changes:
        plain = {key: value for key, value in plain.items() if key not in old or key in new} | new
        version = version.replaced(old, new)
        history.append((dict(plain), version))
    for before, one in history:
        assert one == before
        assert PersistentMap(before) == one
        assert len(one) == len(before) == len(list(one))
        for after, other in history:
            found, gone = differences(one, other)
            assert found == {key: value for key, value in after.items() if before.get(key) != value}
            assert sorted(gone) == sorted(before.keys() - after.keys())
            assert (one == other) is (before == after)


@settings(max_examples=20)
@given(st.integers(0, 5000), st.integers(0, 5000))
def test_it_grows_and_shrinks_in_one_step(before: int, after: int) -> None:
    version = PersistentMap(dict.fromkeys(range(before), "old"))
    wanted = dict.fromkeys(range(after), "new")
    version = version.replaced(range(before), wanted)
    assert version == wanted
    assert differences(version, wanted) == ({}, [])
    assert version.replaced((), {-1: "x"}).replaced([-1], {}) == wanted


def test_what_changes_nothing_is_the_same_object() -> None:
    version = PersistentMap({"a": [1], "b": [2]})
    assert version.replaced(["a", "none"], {"a": [1]}) is version


def test_versions_share_what_did_not_change() -> None:
    before = PersistentMap({number: [number] for number in range(10_000)})
    after = before.replaced([], {17: ["changed"]})
    shared = sum(one is other for one, other in zip(before._buckets, after._buckets, strict=True))
    assert shared == len(before._buckets) - 1 > 100


def test_it_has_no_hash_as_a_dict_has_none_and_is_no_dict_to_json() -> None:
    with pytest.raises(TypeError):
        hash(PersistentMap({}))
    with pytest.raises(TypeError):
        json.dumps(PersistentMap({}))
    assert repr(PersistentMap({"a": 1})) == "PersistentMap({'a': 1})"
