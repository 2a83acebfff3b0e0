# SPDX-License-Identifier: Apache-2.0
"""The flow table against a dict: nothing it was told is lost, but what may be."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.table import (
    MIN_LINES,
    TCP_TRUSTED,
    TCP_UNTRUSTED,
    TRUSTED,
    UDP_UNTRUSTED,
    WAYS,
    Counters,
    Table,
    table_bytes,
)

IDLE = (39, 225, 3354, 225)
FOREVER = (60_000,) * 4


@dataclass
class Remembered:
    backend: int
    klass: int
    seen: int


class Model:
    """A dict beside the table. Each step is done to both and compared."""

    def __init__(self, idle: tuple[int, int, int, int] = IDLE, *, lines: int = 4, keys: int = 64) -> None:
        self.table = Table(1, idle)
        self.idle = idle
        self.keys = self.table.crowded(lines, keys)
        self.flows: dict[int, Remembered] = {}
        self.clock = 0

    def expired(self, flow: Remembered) -> bool:
        return self.clock - flow.seen >= self.idle[flow.klass]

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
            if self.table.insert(key, value % 4095, value % 4):
                self.flows[key] = Remembered(value % 4095, value % 4, self.clock)
            else:
                assert self.table.counters().refused == before.refused + 1
        elif known and op in ("touch", "trust", "remove", "rewrite"):
            self._change(op, key, value)
        self.compare(before, just=key if op == "insert" else None)

    def _change(self, op: str, key: int, value: int) -> None:
        flow = self.flows[key]
        if op == "touch":
            self.table.touch(key)
            flow.seen = self.clock
        elif op == "trust" and not flow.klass & TRUSTED:
            self.table.trust(key)
            flow.klass |= TRUSTED
        elif op == "rewrite":
            self.table.rewrite(key, value % 4095, value % 4)
            self.flows[key] = Remembered(value % 4095, value % 4, self.clock)
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
        evicted = [key for key in gone if not self.expired(self.flows[key])]
        assert len(evicted) == after.evicted - before.evicted <= 1
        assert all(not self.flows[key].klass & TRUSTED for key in evicted), "a trusted flow was evicted"
        assert len(gone) - len(evicted) == after.expired - before.expired
        for key in gone:
            del self.flows[key]
        live = [0, 0, 0, 0]
        for flow in self.flows.values():
            live[flow.klass] += 1
        assert list(after.live) == live


OPS = ("insert", "insert", "insert", "touch", "trust", "trust", "remove", "rewrite", "advance", "sweep")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(OPS[:-2]), st.integers(0, 63), st.integers(0, 5000)),
        st.tuples(
            st.just("advance"), st.just(0), st.sampled_from([-70_000, -1, 0, 1, 38, 39, 225, 8191, 8193, 70_000])
        ),
        st.tuples(st.just("sweep"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_the_table_is_a_dict_that_may_forget_untrusted_flows(steps: list[tuple[str, int, int]]) -> None:
    model = Model(lines=2, keys=24)
    for step in steps:
        model.step(*step)


@pytest.mark.parametrize("seed", range(2))
def test_a_long_walk_in_a_crowd_keeps_every_invariant(seed: int) -> None:
    walk = random.Random(seed)
    model = Model(lines=8, keys=120)
    for _ in range(2000):
        op = walk.choice(OPS)
        value = walk.choice([0, 0, 1, 1, 5, 40]) if op == "advance" else walk.randrange(1 << 20)
        model.step(op, walk.randrange(120), value)
    counters = model.table.counters()
    assert counters.evicted > 0
    assert counters.expired > 0


def test_a_full_crowd_of_trusted_flows_refuses_and_forgets_nobody() -> None:
    model = Model(FOREVER, lines=8, keys=200)
    for which in range(200):
        model.step("insert", which, 4 + TCP_TRUSTED)
    counters = model.table.counters()
    assert len(model.flows) + counters.refused == 200
    assert len(model.flows) <= 8 * WAYS
    assert len(model.flows) >= 8 * WAYS - 2, "refused although there was room"
    assert counters.evicted == 0
    assert counters.moved > 0, "nobody moved to make room"


def test_a_trusted_flow_takes_the_place_of_an_untrusted_one_and_not_the_other_way() -> None:
    model = Model(FOREVER, lines=2, keys=60)
    for which in range(30):
        model.step("insert", which, TCP_UNTRUSTED)
    assert len(model.flows) == 12
    for which in range(30, 60):
        model.step("insert", which, TCP_TRUSTED)
    assert [flow.klass for flow in model.flows.values()] == [TCP_TRUSTED] * 12
    for which in range(30):
        model.step("insert", which, UDP_UNTRUSTED)
    assert [flow.klass for flow in model.flows.values()] == [TCP_TRUSTED] * 12


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
