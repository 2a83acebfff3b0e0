# SPDX-License-Identifier: Apache-2.0
"""A full flow table is told once for each time that it is full."""

from __future__ import annotations

from lb.mux.workers.full_table import QUIET, Fullness


def test_nothing_is_said_while_every_flow_finds_room() -> None:
    watch = Fullness()
    assert [watch.step(0, float(second)) for second in range(3)] == [0, 0, 0]


def test_the_first_refused_flows_are_told_and_the_rest_of_the_flood_is_not() -> None:
    watch = Fullness()
    assert [watch.step(5, 1.0), watch.step(900, 2.0), watch.step(901, 3.0 + QUIET / 2)] == [5, 0, 0]


def test_after_a_quiet_minute_it_is_news_again() -> None:
    watch = Fullness()
    assert watch.step(5, 0.0) == 5
    assert watch.step(5, QUIET) == 0
    assert watch.step(7, QUIET + 1.0) == 2
