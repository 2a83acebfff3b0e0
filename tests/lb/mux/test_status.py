# SPDX-License-Identifier: Apache-2.0
"""What a manager is told of a MUX, and how often."""

from __future__ import annotations

from typing import Any, cast

from lb.mux.announcer import Announcer
from lb.mux.status import ROWS_MAX, ROWS_RATE, Condition, Status


class Announced:
    """In the place of the announcer."""

    def __init__(self, count: int) -> None:
        self.rows = [{"vip": f"vip-{number}"} for number in range(count)]
        self.asked = 0

    def announced(self) -> list[dict[str, Any]]:
        self.asked += 1
        return self.rows


def status_of(announced: Announced | None) -> Status:
    nothing = cast("Any", None)
    return Status(
        nothing, nothing, nothing, Condition(), cast("Announcer | None", announced), census=cast("Any", object())
    )


def test_a_few_announcements_are_told_whenever_they_are_others() -> None:
    announced = Announced(10)
    status = status_of(announced)
    assert status._announced(100.0) == announced.rows
    announced.rows = announced.rows[1:]
    assert status._announced(101.0) == announced.rows


def test_thousands_of_announcements_are_told_anew_after_a_while() -> None:
    announced = Announced(5 * ROWS_RATE)
    status = status_of(announced)
    before = status._announced(100.0)
    announced.rows = announced.rows[1:]
    assert status._announced(104.9) == before
    assert status._announced(105.0) == announced.rows
    assert announced.asked == 2


def test_a_change_after_long_quiet_is_told_at_once() -> None:
    announced = Announced(5 * ROWS_RATE)
    status = status_of(announced)
    status._announced(100.0)
    assert status._announced(200.0) == announced.rows
    announced.rows = announced.rows[1:]
    assert status._announced(201.0) == announced.rows


def test_announcements_told_are_bounded_and_none_without_bgp() -> None:
    assert len(status_of(Announced(ROWS_MAX + 1))._announced(100.0)) == ROWS_MAX
    assert list(status_of(None)._announced(100.0)) == []
