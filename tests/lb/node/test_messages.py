# SPDX-License-Identifier: Apache-2.0
"""States, deltas and digests: what holds for any two states."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lb.node.messages import Digest, NodeState, apply, diff, digest, keys_of

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 3), st.text("ab", max_size=2), st.dictionaries(st.text("xy", max_size=2), st.integers(0, 2))
)
STATES = st.dictionaries(
    st.sampled_from(["services", "announcements", "muxes", "options"]),
    st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, min_size=1, max_size=4),
)


@given(STATES, STATES)
def test_a_delta_makes_the_new_state_of_the_old(old: NodeState, new: NodeState) -> None:
    assert apply(old, diff(old, new)) == new


@given(STATES, STATES, STATES)
def test_a_difference_within_the_keys_of_deltas_is_the_whole_difference(
    old: NodeState, between: NodeState, new: NodeState
) -> None:
    keys: dict[str, set[str]] = {}
    for delta in (diff(old, between), diff(between, new)):
        for section, names in keys_of(delta).items():
            keys.setdefault(section, set()).update(names)
    assert diff(old, new, keys) == diff(old, new)


def test_sections_that_a_delta_is_not_about_stay_the_same_objects() -> None:
    old: NodeState = {"services": {"web": 1}, "announcements": {"203.0.113.10/32": {}}}
    new = apply(old, {"set": {"services": {"dns": 2}}, "remove": {}})
    assert new["announcements"] is old["announcements"]
    assert old["services"] == {"web": 1}


@given(STATES)
def test_equal_states_have_no_difference(state: NodeState) -> None:
    copy = {section: dict(entries) for section, entries in state.items()}
    assert diff(state, copy) == {"set": {}, "remove": {}}


@given(STATES, STATES)
def test_digest_follows_deltas_without_reading_the_state(old: NodeState, new: NodeState) -> None:
    followed = Digest(old)
    followed.update(old, diff(old, new))
    assert str(followed) == digest(new)


@given(STATES, STATES)
def test_digests_are_equal_exactly_if_the_states_are(one: NodeState, other: NodeState) -> None:
    assert (digest(one) == digest(other)) == (one == other)


def test_digest_does_not_depend_on_order() -> None:
    assert digest({"a": {"x": 1, "y": {"p": 1, "q": 2}}}) == digest({"a": {"y": {"q": 2, "p": 1}, "x": 1}})


def test_applying_leaves_the_old_state_alone() -> None:
    old: NodeState = {"services": {"web": 1}}
    apply(old, {"set": {"services": {"dns": 2}}, "remove": {"services": ["web"]}})
    assert old == {"services": {"web": 1}}
