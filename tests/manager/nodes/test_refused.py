# SPDX-License-Identifier: Apache-2.0
"""Nodes that were turned away are remembered: one line for each machine, and never too many."""

from __future__ import annotations

from manager.nodes.refused import KEPT, TurnedAway


def test_one_line_for_each_machine_with_how_often_and_when() -> None:
    away = TurnedAway()
    assert away.add("mux:mux1", "10.0.1.12", "is connected already", 1.0, duplicate=True)
    assert not away.add("mux:mux1", "10.0.1.12", "is connected already", 6.0, duplicate=True)
    assert away.add("mux:mux1", "10.0.1.13", "is connected already", 7.0, duplicate=True)
    newest, older = away.rows()
    assert (newest["address"], newest["count"]) == ("10.0.1.13", 1)
    assert (older["address"], older["count"], older["first"], older["last"]) == ("10.0.1.12", 2, 1.0, 6.0)
    assert away.add("mux:mux1", "10.0.1.12", "another reason", 8.0, duplicate=False)  # which is news


def test_whoever_is_let_in_is_forgotten() -> None:
    away = TurnedAway()
    away.add("mux:mux1", "10.0.1.12", "x", 1.0, duplicate=True)
    away.came("mux:mux1", "10.0.1.12")
    away.came("mux:mux9", "10.0.1.12")
    assert away.rows() == []


def test_the_one_that_was_silent_for_longest_makes_room() -> None:
    away = TurnedAway()
    for number in range(KEPT + 5):
        away.add("mux:mux1", f"10.0.{number}.1", "x", float(number), duplicate=True)
        away.add("mux:mux1", "10.9.9.9", "x", float(number), duplicate=True)
    rows = away.rows()
    assert len(rows) == KEPT
    assert rows[0]["address"] == "10.9.9.9"
    assert "10.0.0.1" not in {row["address"] for row in rows}
