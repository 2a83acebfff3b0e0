# SPDX-License-Identifier: Apache-2.0
"""Whose packets a saturated MUX drops by choice: new flows of who has most, then known ones, no longer than needed."""

from __future__ import annotations

import pytest

from lb.dataplane import SHED_MAX
from lb.mux.workers.shedding import DOWN, HEAVY, MOST, NEW_ONLY, REMEMBERED, Rule, Shedding, Traffic

FLOOD = {"flooded": 90_000, "web": 9_000, "files": 1_000}


def looks(shedding: Shedding, times: int, came: dict[str, int], *, lost: bool, shed: int = 0) -> list[tuple[Rule, ...]]:
    return [shedding.look(Traffic(1.0, came, shed, lost), saturated=True) for _ in range(times)]


def test_of_who_has_most_new_flows_go_first_then_known_ones_and_some_of_both_always_pass() -> None:
    rules = looks(Shedding(), 8, FLOOD, lost=True)
    assert {rule.service for found in rules for rule in found} == {"flooded"}
    shares = [(found[0].new, found[0].known) for found in rules]
    assert shares[0] == (MOST - NEW_ONLY, 0.0), "no known flow is hit at first"
    assert shares == sorted(shares), "ever more"
    assert shares[1][1] > 0.4
    new, known = shares[-1]
    assert 0.95 < new < 1
    assert 0.9 < known < 1


def test_nothing_is_dropped_by_choice_of_what_was_lost_in_a_moment() -> None:
    shedding = Shedding()
    assert [shedding.look(Traffic(1.0, FLOOD, 0, True), saturated=False) for _ in range(5)] == [()] * 5


def test_it_becomes_less_while_no_ring_is_full_and_more_again_when_one_is() -> None:
    shedding = Shedding()
    (*_, (high,)) = looks(shedding, 2, FLOOD, lost=True, shed=40_000)
    ((low,),) = looks(shedding, 1, FLOOD, lost=False)
    assert low.known == pytest.approx(high.known - DOWN)
    ((again,),) = looks(shedding, 1, FLOOD, lost=True, shed=40_000)
    assert again.known > high.known
    assert looks(shedding, 60, FLOOD, lost=False)[-1] == ()


def test_it_is_over_at_once_when_no_more_comes_than_went_on_before() -> None:
    shedding = Shedding()
    looks(shedding, 3, FLOOD, lost=True, shed=40_000)
    assert looks(shedding, 1, {"flooded": 50_000, "web": 9_000}, lost=False) == [()]


def test_it_is_over_when_the_mux_is_no_longer_saturated() -> None:
    shedding = Shedding()
    looks(shedding, 3, FLOOD, lost=True)
    assert shedding.look(None, saturated=True) != (), "a look that says nothing changes nothing"
    assert shedding.look(None, saturated=False) == ()


def test_where_nobody_stands_out_nobody_is_shed() -> None:
    equal = {f"service-{number}": 10_000 for number in range(10)}
    assert looks(Shedding(), 5, equal, lost=True) == [()] * 5


def test_known_flows_of_the_only_service_that_gets_packets_are_left_to_the_ring() -> None:
    rules = looks(Shedding(), 10, {"flooded": 90_000, "idle": 0}, lost=True)
    assert all(rule.known == 0 for found in rules for rule in found)
    assert rules[-1][0].new > 0.9


def test_a_service_of_which_everything_is_lost_in_the_ring_gets_packets_for_some_time_yet() -> None:
    """Its clients wait longer and longer before they try again; the flood makes room for when they do."""
    shedding = Shedding()
    shedding.look(Traffic(1.0, FLOOD, 0, True), saturated=False)
    silent = looks(shedding, REMEMBERED - 2, {"flooded": 90_000, "web": 0, "files": 0}, lost=True)
    assert silent[1][0].known > 0.4
    assert silent[-1][0].known > 0.9
    alone = Shedding()
    alone.look(Traffic(1.0, FLOOD, 0, True), saturated=False)
    for _ in range(REMEMBERED):
        alone.look(Traffic(1.0, {"flooded": 90_000}, 0, True), saturated=False)
    rules = looks(alone, 5, {"flooded": 90_000}, lost=True)
    assert all(rule.known == 0 for found in rules for rule in found), "it is over at last"


def test_a_second_flood_is_shed_once_the_first_is_as_far_as_it_may_be() -> None:
    came = {"one": 60_000, "two": 45_000, "web": 5_000}
    rules = looks(Shedding(), 12, came, lost=True)
    assert [rule.service for rule in rules[2]] == ["one"]
    assert [rule.service for rule in rules[-1]] == ["one", "two"]
    assert rules[-1][0].known > 0.9


def test_no_more_services_are_shed_than_the_data_plane_can_remember() -> None:
    assert 1 / HEAVY <= SHED_MAX, "so many can have a quarter each"
    shedding = Shedding()
    for number in range(2 * SHED_MAX):
        looks(shedding, 8, {f"flood-{number}": 90_000, "web": 10_000}, lost=True)
    assert len(shedding.rules) == SHED_MAX
