# SPDX-License-Identifier: Apache-2.0
"""The flow table against a dict: nothing it was told is lost, but what may be."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.table import (
    CLASSES,
    ENDED,
    MIN_LINES,
    TCP_TRUSTED,
    TCP_TRUSTED_ENDED,
    TCP_UNTRUSTED,
    TCP_YOUNG,
    TCP_YOUNG_ENDED,
    TRUSTED,
    UDP_TRUSTED,
    UDP_UNTRUSTED,
    UDP_YOUNG,
    UNTRUSTED,
    WAYS,
    YOUNG,
    Counters,
    Table,
    class_after,
    class_ending,
    table_bytes,
)

IDLE = (39, 225, 3354, 225)
FOREVER = (60_000,) * 4
#: Ticks that a trusted flow must have been silent before another takes its place; unsynchronised ones longer.
SPARE, SPARE_UNSYNCHRONISED = 113, 1119


@dataclass
class Remembered:
    backend: int
    klass: int
    seen: int


class Model:
    """A dict beside the table. Each step is done to both and compared."""

    def __init__(self, idle: tuple[int, int, int, int] = IDLE, *, lines: int = 4, keys: int = 64) -> None:
        self.table = Table(1, idle)
        self.idle = [*idle, *[idle[TCP_TRUSTED]] * 3, idle[UDP_TRUSTED]]
        self.keys = self.table.crowded(lines, keys)
        self.flows: dict[int, Remembered] = {}
        self.clock = 0

    def age(self, key: int) -> int:
        return self.clock - self.flows[key].seen

    def expired(self, key: int) -> bool:
        return self.age(key) >= self.idle[self.flows[key].klass]

    def tier(self, key: int) -> int:
        klass = self.flows[key].klass
        silent = self.age(key) >= self.idle[TCP_UNTRUSTED]
        if klass in (TCP_YOUNG_ENDED, TCP_TRUSTED_ENDED) and silent:
            return ENDED
        if klass in (TCP_UNTRUSTED, UDP_UNTRUSTED) or (klass in (TCP_YOUNG, UDP_YOUNG) and silent):
            return UNTRUSTED
        return YOUNG if klass in (TCP_YOUNG, TCP_YOUNG_ENDED, UDP_YOUNG) else TRUSTED

    def step(self, op: str, which: int, value: int) -> None:
        key = self.keys[which % len(self.keys)]
        before = self.table.counters()
        known = key in self.flows
        assert (self.table.find(key) is not None) is known
        if op == "advance":
            self.clock = max(self.clock, self.clock + value)
            self.table.advance(self.clock if value >= 0 else max(0, self.clock + value))
        elif op == "sweep":
            self.table.sweep()
        elif op == "insert" and not known:
            self._insert(key, value, before)
        elif known and op in ("touch", "class", "remove", "rewrite"):
            self._change(op, key, value)
        self.compare(before, just=key if op == "insert" else None)

    def _insert(self, key: int, value: int, before: Counters) -> None:
        """And looks whether the right one made room."""
        lines: tuple[list[int], list[int]] = ([], [])
        home, alternate = self.table.places(key)
        for other in self.flows:
            entry = self.table.find(other)
            assert entry is not None
            if entry.line in (home, alternate):
                lines[entry.line == alternate].append(other)
        ranks = [[(self.tier(other), self.age(other)) for other in line] for line in lines]
        free = [len(line) < WAYS or any(self.expired(other) for other in line) for line in lines]
        short_cut = not free[0] and self.table.crowded_with(max(ranks[0])[0])
        full = self.table.full(key)

        made = self.table.insert(key, value % 4095, value % len(CLASSES))
        after = self.table.counters()
        gone = [other for other in self.flows if self.table.find(other) is None and not self.expired(other)]
        lost = [(self.tier(other), self.age(other)) for other in gone]
        moved = after.moved - before.moved

        assert made or after.refused == before.refused + 1
        assert [after.tiers[n] - before.tiers[n] for n in range(4)] == [sum(t == n for t, _ in lost) for n in range(4)]
        if free[0]:
            assert (made, lost, moved) == (True, [], 0)
        elif short_cut and lost == [max(ranks[0])]:
            assert lost[0][0] != TRUSTED
        elif free[1]:
            assert (made, lost, moved) == (True, [], 0)
        elif max(ranks[0] + ranks[1])[0] > TRUSTED:
            assert (made, lost, moved) == (True, [max(ranks[0] + ranks[1])], 0)
        elif moved:
            assert made
            assert all(tier == ENDED for tier, _ in lost)
        elif lost:
            assert lost == [max(ranks[0] + ranks[1])]
            assert lost[0][1] >= SPARE
        else:
            assert not made
            assert full or max(ranks[0] + ranks[1])[1] < SPARE
            assert self.table.full(key), "it would be tried again in vain"
        if made:
            self.flows[key] = Remembered(value % 4095, value % len(CLASSES), self.clock)

    def _change(self, op: str, key: int, value: int) -> None:
        flow = self.flows[key]
        if op == "touch":
            self.table.touch(key)
            flow.seen = self.clock
        elif op == "class":
            flow.klass = value % len(CLASSES)
            self.table.set_class(key, flow.klass)
        elif op == "rewrite":
            self.table.rewrite(key, value % 4095, value % len(CLASSES))
            self.flows[key] = Remembered(value % 4095, value % len(CLASSES), self.clock)
        elif op == "remove":
            self.table.remove(key)
            del self.flows[key]

    def compare(self, before: Counters, just: int | None) -> None:
        assert self.table.check() is None
        assert self.table.clock == self.clock
        gone = []
        for key in self.keys:
            entry, flow = self.table.find(key), self.flows.get(key)
            if entry is None:
                gone += [key] if flow else []
                continue
            assert flow is not None, "an entry out of nowhere"
            assert (entry.backend, entry.klass) == (flow.backend, flow.klass)
            assert entry.age == (self.clock - flow.seen) % 65536
            assert self.table.key(key) == key
        after = self.table.counters()
        assert just not in gone or just is None
        evicted = [key for key in gone if not self.expired(key)]
        assert len(evicted) == after.evicted - before.evicted <= 1
        assert len(gone) - len(evicted) == after.expired - before.expired
        for key in gone:
            del self.flows[key]
        live = [0] * 8
        for flow in self.flows.values():
            live[flow.klass] += 1
        assert list(after.live) == live


OPS = ("insert", "insert", "insert", "touch", "class", "class", "remove", "rewrite", "advance", "sweep")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(OPS[:-2]), st.integers(0, 63), st.integers(0, 5000)),
        st.tuples(
            st.just("advance"), st.just(0), st.sampled_from([-70_000, -1, 0, 1, 38, 39, 112, 225, 8191, 8193, 70_000])
        ),
        st.tuples(st.just("sweep"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_the_table_is_a_dict_that_forgets_whom_it_would_miss_least(steps: list[tuple[str, int, int]]) -> None:
    model = Model(lines=2, keys=24)
    for step in steps:
        model.step(*step)


@pytest.mark.parametrize("seed", range(2))
def test_a_long_walk_in_a_crowd_keeps_every_invariant(seed: int) -> None:
    walk = random.Random(seed)
    model = Model(lines=8, keys=120)
    for _ in range(2000):
        op = walk.choice(OPS)
        value = walk.choice([0, 0, 1, 1, 5, 40, 100]) if op == "advance" else walk.randrange(1 << 20)
        model.step(op, walk.randrange(120), value)
    counters = model.table.counters()
    assert counters.evicted > 0
    assert counters.expired > 0


def test_a_full_crowd_of_trusted_flows_refuses_and_forgets_nobody() -> None:
    """None of them has been silent for long."""
    model = Model(FOREVER, lines=8, keys=200)
    for which in range(200):
        model.step("insert", which, 8 + TCP_TRUSTED)
    counters = model.table.counters()
    assert len(model.flows) + counters.refused == 200
    assert len(model.flows) <= 8 * WAYS
    assert len(model.flows) >= 8 * WAYS - 2, "refused although there was room"
    assert counters.evicted == 0
    assert counters.moved > 0, "nobody moved to make room"


def full_lines(klass: int, idle: tuple[int, int, int, int] = FOREVER, *, keys: int = 60) -> Model:
    """Two lines full of flows of one class, of which each was made a tick after the one before."""
    model = Model(idle, lines=2, keys=keys)
    for which in range(2 * WAYS):
        model.step("insert", which, 8 + klass)
        model.step("advance", 0, 1)
    assert len(model.flows) == 2 * WAYS
    return model


def classes(model: Model) -> list[int]:
    return sorted(flow.klass for flow in model.flows.values())


def test_a_trusted_flow_takes_the_place_of_an_untrusted_one_and_not_the_other_way() -> None:
    model = full_lines(TCP_UNTRUSTED)
    for which in range(30, 60):
        model.step("insert", which, TCP_TRUSTED)
    assert classes(model) == [TCP_TRUSTED] * 12
    for which in range(30):
        model.step("insert", which, UDP_UNTRUSTED)
    assert classes(model) == [TCP_TRUSTED] * 12


def test_a_young_flow_outlives_untrusted_ones_and_not_trusted_ones() -> None:
    model = full_lines(TCP_YOUNG)
    young = set(model.flows)
    model.step("class", 7, TCP_UNTRUSTED)
    for which in range(20, 40):
        model.step("insert", which, TCP_UNTRUSTED)
    assert len(young & set(model.flows)) == 11, "a flood of single packets costs nobody but the untrusted one"
    for which in range(40, 52):
        model.step("insert", which, TCP_TRUSTED)
    assert not young & set(model.flows)


def test_a_young_flow_that_fell_silent_goes_before_one_that_just_came() -> None:
    """Else what a flood of doubled packets leaves behind would outlive every new connection."""
    model = full_lines(TCP_YOUNG, (39, 60_000, 60_000, 60_000))
    old = set(model.flows)
    model.step("advance", 0, 39)
    for which in range(20, 32):
        model.step("insert", which, TCP_UNTRUSTED)
    assert not old & set(model.flows)
    assert len(model.flows) == 12


@pytest.mark.parametrize("klass", [TCP_TRUSTED_ENDED, TCP_YOUNG_ENDED])
def test_what_has_ended_and_is_silent_goes_before_untrusted_flows(klass: int) -> None:
    model = full_lines(UDP_UNTRUSTED, (39, 60_000, 60_000, 60_000))
    model.step("class", 5, klass)
    model.step("class", 9, klass)
    model.step("touch", 9, 0)
    model.step("advance", 0, 38)
    model.step("insert", 20, UDP_UNTRUSTED)
    assert model.keys[5] not in model.flows, "silent for longer than an untrusted flow may be"
    model.step("insert", 21, UDP_UNTRUSTED)
    assert model.keys[9] in model.flows, "its last packet came a moment ago: the end may be forged"
    model.step("advance", 0, 1)
    model.step("insert", 22, UDP_UNTRUSTED)
    assert model.keys[9] not in model.flows


def test_a_forged_end_costs_nothing_while_there_is_room() -> None:
    model = Model(lines=4, keys=24)
    model.step("insert", 0, 8 + TCP_TRUSTED)
    model.step("class", 0, TCP_TRUSTED_ENDED)
    for which in range(1, 9):
        model.step("insert", which, TCP_UNTRUSTED)
    model.step("advance", 0, IDLE[TCP_TRUSTED] - 1)
    for _ in range(17):
        model.step("sweep", 0, 0)
    assert model.keys[0] in model.flows, "it lives as long as any trusted flow"


def test_the_trusted_flow_that_is_silent_longest_goes_where_nothing_else_is_left() -> None:
    model = full_lines(TCP_TRUSTED)
    model.step("touch", 0, 0)
    model.step("advance", 0, SPARE - 12)
    model.step("insert", 20, TCP_UNTRUSTED)
    assert model.table.counters().refused == 1, "of those that were seen within half a minute none goes"
    model.step("advance", 0, 1)
    model.step("insert", 20, TCP_UNTRUSTED)
    assert model.keys[1] not in model.flows
    assert model.keys[20] in model.flows
    assert model.table.counters().tiers[TRUSTED] == 1


def test_who_moves_takes_a_free_way_and_else_that_of_the_flow_that_ended_and_is_silent_longest() -> None:
    """Both lines of the new flow are full of trusted ones, whose own other lines have something to lose."""
    table = Table(1, (39, 60_000, 60_000, 60_000))
    keys: dict[tuple[int, int], list[int]] = {}
    for key in table.crowded(4, 400):
        keys.setdefault(table.places(key), []).append(key)
    home, alternate, later, longest = range(4)

    def fill(line: int, others: list[int], klass: int) -> list[int]:
        """Its ways in this order, with flows that have these for their other lines."""
        made = [keys[line, other].pop() for other in others]
        assert all(table.insert(key, 1, klass) for key in made)
        return made

    silent = {longest: fill(longest, [home] * WAYS, TCP_TRUSTED_ENDED)}
    table.advance(10)
    silent[later] = fill(later, [home] * WAYS, TCP_YOUNG_ENDED)
    table.advance(60)
    trusted = fill(home, [later, longest] * (WAYS // 2), TCP_TRUSTED) + fill(alternate, [home] * WAYS, TCP_TRUSTED)

    def insert() -> list[tuple[int, int]]:
        """Who was lost, as (line, way), by a new flow for which one moved."""
        before = {key: table.find(key) for line in silent.values() for key in line}
        moved = table.counters().moved
        trusted.append(keys[home, alternate].pop())
        assert table.insert(trusted[-1], 1, TCP_TRUSTED)
        assert table.counters().moved == moved + 1
        assert all(table.find(key) for key in trusted), "of these nobody is lost"
        return [(entry.line, entry.way) for key, entry in before.items() if entry and not table.find(key)]

    assert insert() == [(longest, 0)]
    for line in (longest, later):
        table.remove(silent[line][-1])
        assert insert() == [], "there was a free way"
    assert table.check() is None


def test_worthless_and_cheap_flows_go_before_unsynchronised_ones() -> None:
    table = Table(1, FOREVER)
    table.judge_by_number()
    keys = table.crowded(2, 40)
    # Backend 2 is unsynchronised, 1 cheap, 0 worthless. The unsynchronised ones have been silent longest.
    for turn, key in enumerate(keys[:12]):
        assert table.insert(key, (2, 2, 1, 1, 0, 2, 2, 1, 1, 0, 2, 2)[turn], TCP_TRUSTED)
        table.advance(turn + 1)
    table.advance(12 + SPARE)
    gone = []
    for new in keys[12:22]:
        before = {key for key in keys[:12] if table.find(key)}
        made = table.insert(new, 1, UDP_TRUSTED)
        gone += [keys.index(key) for key in before if not table.find(key)]
        assert made or len(gone) == 6
    assert gone == [4, 9, 2, 3, 7, 8], "one that Maglev would send elsewhere breaks if it is forgotten"
    table.advance(12 + SPARE_UNSYNCHRONISED)
    for key in keys[12:22]:
        if table.find(key):
            table.touch(key)
    assert table.insert(keys[30], 1, TCP_TRUSTED)
    assert table.find(keys[0]) is None
    assert table.check() is None


def test_what_found_no_room_does_not_look_again_in_the_same_tick() -> None:
    model = full_lines(TCP_TRUSTED)
    key = model.keys[20]
    assert not model.table.full(key)
    model.step("insert", 20, TCP_TRUSTED)
    assert model.table.full(key)
    model.step("advance", 0, 1)
    assert not model.table.full(key), "the next tick brings another chance"
    model.step("insert", 20, TCP_TRUSTED)
    # Whatever costs nothing to look for is found all the same.
    model.step("class", 3, TCP_UNTRUSTED)
    model.step("insert", 20, TCP_TRUSTED)
    assert key in model.flows


@pytest.mark.parametrize("idle", [(39, 4, 3354, 225), (39, 225, 3354, 225), (60000, 3, 60001, 40000), (2, 2, 2, 2)])
def test_all_ways_at_once_offer_what_they_do_one_by_one(idle: tuple[int, int, int, int]) -> None:
    table = Table(1000, idle)
    for tick in (0, 100_000, 131_071):
        table.advance(tick)
        assert table.offers_agree(tick + 1, 300_000)


def test_classes_follow_what_packets_tell() -> None:
    again = {
        TCP_UNTRUSTED: (TCP_YOUNG, TCP_TRUSTED),
        TCP_YOUNG: (TCP_YOUNG, TCP_TRUSTED),
        TCP_YOUNG_ENDED: (TCP_YOUNG_ENDED, TCP_TRUSTED_ENDED),
        UDP_UNTRUSTED: (UDP_YOUNG, UDP_TRUSTED),
        UDP_YOUNG: (UDP_YOUNG, UDP_TRUSTED),
    }
    ends = {
        TCP_YOUNG: TCP_YOUNG_ENDED,
        TCP_YOUNG_ENDED: TCP_YOUNG_ENDED,
        TCP_TRUSTED: TCP_TRUSTED_ENDED,
        TCP_TRUSTED_ENDED: TCP_TRUSTED_ENDED,
    }
    goes_on = {TCP_YOUNG_ENDED: TCP_YOUNG, TCP_TRUSTED_ENDED: TCP_TRUSTED}
    for klass in CLASSES:
        found = tuple(class_after(klass, later_tick=later) for later in (False, True))
        assert found == again.get(klass, (klass, klass))
        assert class_ending(klass, ended=True) == ends.get(klass, klass), "one packet alone ends nothing, nor does UDP"
        assert class_ending(klass, ended=False) == goes_on.get(klass, klass)


def test_a_judged_pass_forgets_what_is_worthless_and_nothing_else() -> None:
    table = Table(1, IDLE)
    table.judge_by_number()
    keys = [random.Random(n).getrandbits(64) for n in range(3000)]
    for n, key in enumerate(keys):
        assert table.insert(key, n % 30, TCP_TRUSTED)
    table.advance(16)
    for _ in range(16):
        table.sweep()
    assert all(table.find(key) for key in keys)
    table.advance(32)
    for _ in range(16):
        table.sweep(judged=True)
    assert [n for n, key in enumerate(keys) if table.find(key)] == [n for n in range(3000) if n % 3]
    assert (table.counters().forgotten, table.counters().expired) == (1000, 0)
    assert table.check() is None


def test_the_oldest_untrusted_flow_goes_first() -> None:
    model = Model(FOREVER, lines=2, keys=20)
    for which in range(12):
        model.step("insert", which, TCP_UNTRUSTED)
        model.step("advance", 0, 1)
    for which in (0, 3):
        model.step("touch", which, 0)
    for which, oldest in zip(range(12, 18), (1, 2, 4, 5, 6, 7), strict=True):
        assert model.keys[oldest] in model.flows
        model.step("insert", which, TCP_UNTRUSTED)
        assert model.keys[oldest] not in model.flows


@pytest.mark.parametrize("flows", [1, 1 << 17, (1 << 17) + 1, 150_000, 200_003])
def test_any_table_size_finds_what_it_holds(flows: int) -> None:
    """Also where the number of lines is no power of two."""
    table = Table(flows, FOREVER)
    assert table.lines == max(MIN_LINES, (flows + 3) // 4)
    chosen = random.Random(flows)
    keys = [chosen.getrandbits(64) for _ in range(20_000)] + [0, 1, (1 << 64) - 1, 1 << 63]
    for n, key in enumerate(keys):
        assert table.insert(key, n % 4095, TCP_TRUSTED)
    for n, key in enumerate(keys):
        entry = table.find(key)
        assert entry is not None
        assert entry.backend == n % 4095
        assert table.key(key) == key
    assert table.check() is None


def test_the_promised_number_of_trusted_flows_fits() -> None:
    """A table for N flows holds N, practically always: the refused are fewer than one in ten thousand."""
    table = Table(1 << 17, FOREVER)
    keys = random.Random(1)
    for _ in range(1 << 17):
        table.insert(keys.getrandbits(64), 1, TCP_TRUSTED)
    assert table.counters().refused <= 13
    assert table.check() is None


def test_a_flow_takes_at_most_sixteen_bytes() -> None:
    for flows in (1_000_000, 10_000_000):
        assert table_bytes(flows) <= 16 * flows


def test_a_sweep_removes_exactly_what_expired() -> None:
    table = Table(1, IDLE)
    keys = [random.Random(n).getrandbits(64) for n in range(4000)]
    for n, key in enumerate(keys):
        table.advance(n // 100)
        assert table.insert(key, 1, n % 4)
    table.advance(100)
    for _ in range(16):
        table.sweep()
    alive = [key for n, key in enumerate(keys) if 100 - n // 100 < IDLE[n % 4]]
    assert [key for key in keys if table.find(key)] == alive
    assert table.counters().expired == len(keys) - len(alive)


@pytest.mark.parametrize("stride", [11, 100, 2000, 8000])
def test_stamps_never_wrap_however_rarely_the_sweep_comes_by(stride: int) -> None:
    """A flow unseen for 4.9 hours would look as if seen now; it must have been removed by then, also where packets are
    so rare that each finds many ticks gone by and only a piece of the table is swept for each."""
    table = Table(1 << 20, IDLE)
    keys = [random.Random(n).getrandbits(64) for n in range(1000)]
    for key in keys:
        assert table.insert(key, 1, TCP_TRUSTED)
    tick = 0
    while tick < 65536:
        tick += stride
        table.advance(min(tick, 65536))
        table.sweep()
    assert [key for key in keys if table.find(key)] == []
    assert table.check() is None


def test_time_that_goes_back_counts_as_the_latest_seen() -> None:
    table = Table(1, IDLE)
    table.advance(1000)
    assert table.insert(1, 1, TCP_TRUSTED)
    table.advance(0)
    table.advance(999)
    assert table.clock == 1000
    entry = table.find(1)
    assert entry is not None
    assert entry.age == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
def test_any_jump_ahead_is_survived(first: int, second: int) -> None:
    table = Table(1, IDLE)
    table.advance((first >> 28) % (1 << 35))
    assert table.insert(1, 1, TCP_TRUSTED)
    start = table.clock
    table.advance((second >> 28) % (1 << 35))
    table.sweep()
    if table.clock - start > 8192:
        assert table.find(1) is None
    assert table.check() is None
