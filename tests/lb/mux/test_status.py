# SPDX-License-Identifier: Apache-2.0
"""What a manager is told of a MUX, and how often."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any, cast

from lb.mux.announcer import FEW, AnnouncementRows, Announcer
from lb.mux.status import ANNOUNCED_MAX, ROWS_RATE, Condition, Status


class Announced:
    """In the place of the announcer."""

    def __init__(self, count: int) -> None:
        self.rows = [{"vip": f"vip-{number}"} for number in range(count)]
        self.asked = 0

    def announced(self) -> list[dict[str, Any]]:
        self.asked += 1
        return self.rows

    def told_all(self) -> None:
        pass


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
    assert len(status_of(Announced(ANNOUNCED_MAX + 1))._announced(100.0)) == ANNOUNCED_MAX
    assert list(status_of(None)._announced(100.0)) == []


def test_few_announcements_that_are_others_are_told_by_themselves() -> None:
    vips = [IPv4Network(("10.0.0.0", 32)), *(IPv4Network((f"10.0.1.{number}", 32)) for number in range(3))]
    states = dict.fromkeys(vips, "announced")
    rows = AnnouncementRows(lambda vip: ((None, states[vip], None),) if vip in states else ())

    def since() -> dict[str, str]:
        rows.all(states)
        return {row["vip"]: row["state"] for row in rows.since_mark()}

    whole = rows.all(states)
    rows.mark()
    rows.spoil(vips)
    assert since() == {}
    assert rows.all(states) is whole, "nothing that was looked at again is another"
    states[vips[1]] = "held"
    del states[vips[2]]
    rows.spoil(vips)
    assert since() == {"10.0.1.0": "held", "10.0.1.1": "withdrawn"}
    rows.mark()
    assert since() == {}
    many = [IPv4Network((number, 32)) for number in range(FEW + 1)]
    states |= dict.fromkeys(many, "announced")
    rows.spoil(many)
    assert since() == {}, "all are told soon, and a few by themselves"
    rows.mark()
    states[vips[1]] = "announced"
    rows.spoil(vips)
    assert since() == {"10.0.1.0": "announced"}
    states |= dict.fromkeys(many, "held")
    states[vips[1]] = "refused"
    rows.spoil([*vips, *many])
    assert since() == {"10.0.1.0": "refused"}, "what was told is not taken back because many others follow"
