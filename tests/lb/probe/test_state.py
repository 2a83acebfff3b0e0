# SPDX-License-Identifier: Apache-2.0
"""The state machine of a probe: its table row by row, and what holds whatever happens."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.probe.state import Outcome, ProbeHealth, ProbePolicy, ProbeState, Say, needed, step

POLICY = ProbePolicy(rise=3, fall=2)
NEW = ProbeState()

OUTCOMES = st.lists(
    st.tuples(st.floats(0, 700), st.booleans(), st.sampled_from(["refused", "timed out", "HTTP 503"])), max_size=200
)
POLICIES = st.builds(ProbePolicy, rise=st.integers(1, 5), fall=st.integers(1, 5))


def run(
    outcomes: Iterable[bool], *, policy: ProbePolicy = POLICY, state: ProbeState = NEW, gap: float = 2.0
) -> tuple[ProbeState, list[Say]]:
    """A series of outcomes, one each ``gap`` seconds."""
    said: list[Say] = []
    at = state.since
    for success in outcomes:
        at += gap
        state, more = step(state, Outcome(at, success, "yes" if success else "no"), policy)
        said += more
    return state, said


def up(since: float = 0.0) -> ProbeState:
    return ProbeState(ProbeHealth.UP, "yes", since)


def down(factor: int = 1) -> ProbeState:
    return ProbeState(ProbeHealth.DOWN, "no", factor=factor)


@pytest.mark.parametrize(
    ("before", "outcomes", "after", "changes"),
    [
        pytest.param(ProbeState(), [True], ProbeHealth.UP, 1, id="one success brings an unknown backend up"),
        pytest.param(ProbeState(), [False], ProbeHealth.UNKNOWN, 0, id="one failure leaves it unknown"),
        pytest.param(ProbeState(), [False, True], ProbeHealth.UP, 1, id="a failure before it does not matter"),
        pytest.param(ProbeState(), [False, False], ProbeHealth.DOWN, 1, id="fall failures bring it down"),
        pytest.param(up(), [False], ProbeHealth.UP, 0, id="one failure is forgiven"),
        pytest.param(up(), [False, True, False], ProbeHealth.UP, 0, id="failures count in a row only"),
        pytest.param(up(), [False, False], ProbeHealth.DOWN, 1, id="fall failures bring it down"),
        pytest.param(down(), [True, True], ProbeHealth.DOWN, 0, id="fewer than rise successes are not enough"),
        pytest.param(down(), [True, True, False, True], ProbeHealth.DOWN, 0, id="successes count in a row only"),
        pytest.param(down(), [True, True, True], ProbeHealth.UP, 1, id="rise successes bring it up"),
        pytest.param(down(2), [True] * 5, ProbeHealth.DOWN, 0, id="damped, rise is not enough"),
        pytest.param(down(2), [True] * 6, ProbeHealth.UP, 1, id="damped, it takes a multiple"),
    ],
)
def test_table(before: ProbeState, outcomes: list[bool], after: ProbeHealth, changes: int) -> None:
    state, said = run(outcomes, state=before)
    assert (state.health, sum(say.changed for say in said)) == (after, changes)


def test_what_brings_it_down_is_said() -> None:
    state, _ = step(up(), Outcome(1, False, "connect timed out after 1 s"), POLICY)
    state, said = step(state, Outcome(3, False, "HTTP 503"), POLICY)
    assert said == (Say(ProbeHealth.DOWN, "HTTP 503", changed=True),)
    assert (state.reason, state.since) == ("HTTP 503", 3)


def test_another_reason_of_being_down_is_said_once() -> None:
    state, said = step(down(), Outcome(1, False, "HTTP 503"), POLICY)
    assert said == (Say(ProbeHealth.DOWN, "HTTP 503", changed=False),)
    assert step(state, Outcome(2, False, "HTTP 503"), POLICY)[1] == ()


def test_third_flap_in_ten_minutes_doubles_rise_up_to_eightfold_and_says_so() -> None:
    state, factors = up(), []
    for _ in range(7):
        state, _ = run([False] * POLICY.fall, state=state)
        factors.append(state.factor)
        state, said = run([True] * needed(state, POLICY), state=state)
        assert state.health is ProbeHealth.UP
    assert factors == [1, 1, 2, 4, 8, 8, 8]
    assert any("too often: it comes up after 24 successes in a row" in say.reason for say in said)


def test_flaps_further_apart_than_the_window_are_not_damped() -> None:
    state = up()
    for _ in range(10):
        state, _ = run([False] * POLICY.fall + [True] * POLICY.rise, state=state, gap=61)
    assert state.factor == 1


def test_each_window_without_a_flap_halves_the_damping() -> None:
    state = ProbeState(ProbeHealth.UP, "yes", factor=8, damped=0.0)
    factors = [step(state, Outcome(at, True, "yes"), POLICY)[0].factor for at in (599, 600, 1199, 1200, 1800, 99999)]
    assert factors == [8, 4, 4, 2, 1, 1]


@given(OUTCOMES, POLICIES)
def test_health_changes_only_after_enough_outcomes_in_a_row(
    outcomes: list[tuple[float, bool, str]], policy: ProbePolicy
) -> None:
    state, at, history = ProbeState(), 0.0, list[bool]()
    for gap, success, reason in outcomes:
        at += gap
        history.append(success)
        before, (state, said) = state, step(state, Outcome(at, success, reason), policy)
        if state.health is ProbeHealth.DOWN and before.health is not ProbeHealth.DOWN:
            assert history[-policy.fall :] == [False] * policy.fall
        if state.health is ProbeHealth.UP and before.health is ProbeHealth.DOWN:
            assert history[-policy.rise :] == [True] * policy.rise
        if success and before.health is ProbeHealth.UNKNOWN:
            assert state.health is ProbeHealth.UP
        assert state.health is not ProbeHealth.UNKNOWN or before.health is ProbeHealth.UNKNOWN
        assert any(say.changed for say in said) == (state.health is not before.health)


@given(OUTCOMES, POLICIES)
def test_damping_and_memory_are_bounded(outcomes: list[tuple[float, bool, str]], policy: ProbePolicy) -> None:
    state, at = ProbeState(), 0.0
    for gap, success, reason in outcomes:
        at += gap
        state, said = step(state, Outcome(at, success, reason), policy)
        assert policy.rise <= needed(state, policy) <= 8 * policy.rise
        assert state.factor in (1, 2, 4, 8)
        assert len(state.falls) <= policy.flaps
        assert len(said) <= 1
        assert state.since <= at


@given(OUTCOMES, POLICIES)
def test_from_anywhere_steady_success_brings_up_and_steady_failure_down(
    outcomes: list[tuple[float, bool, str]], policy: ProbePolicy
) -> None:
    state, at = ProbeState(), 0.0
    for gap, success, reason in outcomes:
        at += gap
        state, _ = step(state, Outcome(at, success, reason), policy)
    for _ in range(8 * policy.rise):
        state, _ = step(state, Outcome(at, True, "yes"), policy)
    assert state.health is ProbeHealth.UP
    for _ in range(policy.fall):
        state, _ = step(state, Outcome(at, False, "no"), policy)
    assert state.health is ProbeHealth.DOWN
