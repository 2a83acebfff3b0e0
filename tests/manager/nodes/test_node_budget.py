# SPDX-License-Identifier: Apache-2.0
"""What hearing one node may cost, by the values alone."""

from __future__ import annotations

import pytest

from manager.nodes.node_budget import (
    COMINGS_OWED,
    FAULTS,
    FORGIVEN,
    NODES_MAX,
    OWED_MAX,
    PAUSE_MAX,
    PER_BYTE,
    PER_PIECE,
    PER_READ,
    PER_SERVICE,
    SAVED,
    SHARE,
    WAIT_FIRST,
    WAIT_MAX,
    Dues,
    NodeLedger,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_who_sends_little_is_read_at_once() -> None:
    clock = Clock()
    dues = Dues(clock)
    for _ in range(1000):  # as a MUX of ten thousand services sends each second
        clock.now += 1
        assert dues.read(500_000, 40, 0.02) == 0
    assert dues.barred() == 0


def test_whoever_goes_on_has_its_share_and_no_more() -> None:
    clock = Clock()
    dues = Dues(clock)
    dues.spend(SAVED)
    spent, began = dues.spent, clock.now
    while clock.now - began < 100:
        clock.now += 0.0001 + dues.read(32_768, 2, 0.0005)
    assert dues.spent - spent == pytest.approx(SHARE * 100, rel=0.02)


def test_a_read_is_paid_by_what_was_read_and_that_it_was() -> None:
    dues = Dues(Clock())
    dues.read(1, 1, 0.0)
    assert dues.spent == pytest.approx(PER_READ + PER_PIECE + PER_BYTE)
    dues.read(1_000_000, 99, 0.25)
    assert dues.spent == pytest.approx(0.25 + 2 * PER_READ + 100 * PER_PIECE + 1_000_001 * PER_BYTE)


def test_who_owes_much_is_heard_now_and_then_and_may_not_connect() -> None:
    clock = Clock()
    dues = Dues(clock)
    dues.spend(SAVED + 0.5)
    assert dues.pause() == PAUSE_MAX
    assert dues.barred() == pytest.approx(0.5 / SHARE)
    clock.now += 0.5 / SHARE - PAUSE_MAX
    assert dues.barred() == 0
    assert dues.pause() == pytest.approx(PAUSE_MAX)


def test_nobody_owes_for_ever() -> None:
    clock = Clock()
    dues = Dues(clock)
    for _ in range(1000):
        dues.spend(1.0)
    assert dues.barred() == pytest.approx(OWED_MAX / SHARE)
    clock.now += OWED_MAX / SHARE
    assert dues.barred() == 0


def test_who_is_let_go_again_and_again_waits_twice_as_long_each_time() -> None:
    clock = Clock()
    dues = Dues(clock)
    assert [dues.let_go() for _ in range(FAULTS)] == [0] * FAULTS
    assert dues.barred() == 0
    waits = []
    for _ in range(10):
        waits.append(dues.let_go())
        assert dues.barred() == waits[-1]
        clock.now += waits[-1]
        assert dues.barred() == 0
    assert waits[:3] == [WAIT_FIRST, 2 * WAIT_FIRST, 4 * WAIT_FIRST]
    assert waits[-1] == WAIT_MAX
    clock.now += FORGIVEN + 1
    assert dues.let_go() == 0


def test_who_comes_and_goes_makes_no_more_work_than_a_share_of_the_core() -> None:
    """A MUX of ten thousand services may be started five times in a row; then it has to wait for some seconds."""
    clock = Clock()
    dues, small = Dues(clock), Dues(clock)
    for _ in range(5):
        assert dues.barred() == 0
        dues.came(10_000)
    dues.came(10_000)
    assert 10 < dues.barred() <= COMINGS_OWED / SHARE
    clock.now += dues.barred()
    assert dues.barred() == 0
    came, began = 0, clock.now
    while clock.now - began < 400:
        if dues.barred() == 0:
            dues.came(10_000)
            came += 1
        clock.now += 0.1
    assert came * 10_000 * PER_SERVICE == pytest.approx(SHARE * 400, rel=0.2)
    for _ in range(100):
        small.came(100)
    assert small.barred() == 0


def test_of_nodes_that_are_too_many_none_is_remembered() -> None:
    ledger = NodeLedger(Clock())
    first = ledger.of("mux:0")
    assert ledger.of("mux:0") is first
    for number in range(1, NODES_MAX + 1):
        ledger.of(f"mux:{number}")
    assert ledger.of("mux:0") is not first
