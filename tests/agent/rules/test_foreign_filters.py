# SPDX-License-Identifier: Apache-2.0
"""Filters before ours: when they are said to keep packets from it, and when not."""

from __future__ import annotations

import pytest

from agent.rules.foreign_filters import FLOWED, STILL, Judge, Stranger

ONE, TWO = Stranger(1, "bpf", "cil_from_netdev"), Stranger(2, "u32")


def judged(*looks: tuple[float, tuple[Stranger, ...], int]) -> Judge:
    judge = Judge()
    for now, filters, count in looks:
        judge.look(now, filters, count)
    return judge


@pytest.mark.parametrize(
    ("looks", "passes"),
    [
        (((0, (), 1), (1, (), 2), (2, (ONE,), 2), (2 + STILL, (ONE,), 2)), False),
        (((0, (), 1), (1, (), 2), (2, (ONE,), 2), (1.9 + STILL, (ONE,), 2)), None),  # not for long enough
        (((0, (), 1), (2, (ONE,), 9), (2 + STILL, (ONE,), 9)), False),  # those came before it
        (((0, (), 1), (1, (), 2), (2, (ONE,), 2), (3, (ONE,), 3), (999, (ONE,), 3)), True),  # quiet later
        (((0, (), 1), (1, (), 2), (2 + FLOWED, (ONE,), 2), (99, (ONE,), 2)), None),  # quiet before
        (((0, (ONE,), 7), (99, (ONE,), 7)), None),  # we came later
        (((0, (), 1), (1, (), 2), (2, (ONE,), 2), (9, (ONE,), 2), (10, (ONE,), 3)), True),
        (((0, (), 1), (1, (), 2), (2, (ONE,), 2), (9, (ONE,), 2), (40, (ONE, TWO), 2), (50, (ONE, TWO), 2)), False),
        (((0, (), 1), (1, (), 2), (2, (ONE,), 2), (3, (ONE,), 3), (40, (ONE, TWO), 3), (50, (ONE, TWO), 3)), None),
    ],
)
def test_they_keep_packets_if_those_stopped_when_they_came(
    looks: tuple[tuple[float, tuple[Stranger, ...], int], ...], passes: bool | None
) -> None:
    judge = judged(*looks)
    assert (judge.passes, judge.blocked) == (passes, passes is False)


def test_they_are_news_once_and_when_they_go_all_is_well() -> None:
    judge = judged((0, (), 1), (1, (), 2))
    assert [judge.look(2 + now, (ONE,), 2) for now in range(9)] == [True] + [False] * 8
    assert judge.blocked
    assert judge.look(20, (), 2)
    assert not judge.blocked
    assert str(ONE) == "the bpf filter cil_from_netdev of priority 1"
    assert str(TWO) == "the u32 filter of priority 2"
