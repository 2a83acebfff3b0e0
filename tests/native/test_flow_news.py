# SPDX-License-Identifier: Apache-2.0
"""What is news of unsynchronised flows; see native/control/flow_news.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lb._dataplane import ffi
from lb._dataplane import lib as c

OURS, HEARD, HEARD_NOW = range(3)
OWNER = 5 << 12 | 1


class Fact(NamedTuple):
    name: int
    age: int
    mark: int = OURS
    owner: int = OWNER


def facts(rows: Sequence[Fact]) -> ffi.CData:
    made = ffi.new("struct flow_fact[]", max(1, len(rows)))
    for fact, row in zip(made, rows, strict=False):
        fact.record, fact.owner, fact.mark = row.name << 16 | row.age, row.owner, row.mark
    return made


def compare(
    known: Sequence[Fact], now: Sequence[Fact], *, since: int = 0, elapsed: int = 0, anew: bool = False
) -> tuple[list[int], list[int], list[int]]:
    """Names that come, names that are gone, and the marks afterwards."""
    present, come, gone = facts(now), facts(now), facts(known)
    news = c.flow_news_compare(facts(known), len(known), present, len(now), since, elapsed, anew, come, gone)
    return (
        [come[i].record >> 16 for i in range(news.come)],
        [gone[i].record >> 16 for i in range(news.gone)],
        [present[i].mark for i in range(len(now))],
    )


def test_what_is_not_known_comes_and_what_is_not_there_is_gone() -> None:
    assert compare([Fact(1, 3), Fact(2, 3)], [Fact(2, 8), Fact(4, 0)]) == ([4], [1], [OURS, OURS])


def test_what_was_heard_stays_so_while_its_age_grows() -> None:
    known = [Fact(1, 3, HEARD), Fact(2, 0, HEARD_NOW)]
    assert compare(known, [Fact(1, 8), Fact(2, 0)], elapsed=5) == ([], [], [HEARD, HEARD])
    assert compare(known, [Fact(1, 7), Fact(2, 5)], elapsed=5) == ([], [], [HEARD, HEARD]), "ages are rounded"


def test_what_was_heard_and_had_a_packet_here_is_ours_and_is_told() -> None:
    assert compare([Fact(1, 3, HEARD)], [Fact(1, 0)], elapsed=5) == ([1], [], [OURS])
    assert compare([Fact(1, 0, HEARD_NOW)], [Fact(1, 0)], elapsed=5) == ([], [], [HEARD]), "it may be as young as told"


def test_anew_all_of_ours_comes() -> None:
    known = [Fact(1, 3), Fact(2, 3, HEARD)]
    assert compare(known, [Fact(1, 4), Fact(2, 4)], anew=True) == ([1], [], [OURS, HEARD])


def test_what_had_a_packet_of_late_is_told_again_whoever_told_it() -> None:
    known = [Fact(1, 3, HEARD), Fact(2, 3), Fact(3, 3)]
    assert compare(known, [Fact(1, 1), Fact(2, 1), Fact(3, 9)], since=2) == ([1, 2], [], [OURS, OURS, OURS])


def test_copies_are_counted_by_owner() -> None:
    rows = [Fact(1, 0, HEARD), Fact(2, 0), Fact(3, 0, HEARD), Fact(1, 0, HEARD, OWNER + 1), Fact(9, 0, OURS, OWNER + 2)]
    out = ffi.new("struct flow_heard[]", 4)
    assert c.flow_news_heard(facts(rows), len(rows), out, 4) == 2
    assert [(out[i].owner, out[i].count) for i in range(2)] == [(OWNER, 2), (OWNER + 1, 1)]
    assert c.flow_news_heard(facts(rows), len(rows), out, 1) == 2, "there would be more"
