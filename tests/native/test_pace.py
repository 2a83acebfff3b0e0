# SPDX-License-Identifier: Apache-2.0
"""When a worker stays away from its io, and which receive ring takes packets: decided by rate, the clock made up."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from enum import IntEnum
from itertools import pairwise

import pytest

from tests.native.compiled import library

MS = 1_000_000
PACE_UP, PACE_DOWN, PAUSE = 80_000, 40_000, 100_000
FAST, SLOW, SETTLE = 500_000, 300_000, 2 * MS


class RateGate(ctypes.Structure):
    _fields_ = (
        ("up", ctypes.c_uint32),
        ("down", ctypes.c_uint32),
        ("since", ctypes.c_uint64),
        ("packets", ctypes.c_uint64),
        ("high", ctypes.c_bool),
    )


class Pace(ctypes.Structure):
    _fields_ = (("gate", RateGate), ("fresh", ctypes.c_bool))


class RingChoice(ctypes.Structure):
    _fields_ = (("gate", RateGate), ("state", ctypes.c_int), ("settled", ctypes.c_uint64))


class State(IntEnum):
    SLOTS = 0
    FILLING = 1
    BLOCKS = 2
    SETTLING = 3


class Decisions:
    """Both machines on one clock that the test moves."""

    def __init__(self) -> None:
        c = library("worker/worker_pace.c", "io/af_packet/ring_choice.c")
        c.pace_count.argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64)
        c.ring_choice_step.argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_bool, ctypes.c_uint64)
        c.pace_pause.argtypes = (ctypes.c_void_p,)
        c.pace_pause.restype = ctypes.c_uint32
        self._c = c
        self.now = 10**12
        self._pace = Pace(RateGate(up=PACE_UP, down=PACE_DOWN))
        self._choice = RingChoice(RateGate(up=FAST, down=SLOW))
        self.all_kept = False

    def turn(self, packets: int, ns: int) -> None:
        """A turn of the worker, so long after the last."""
        self.now += ns
        self._c.pace_count(ctypes.byref(self._pace), packets, self.now)
        self._c.ring_choice_step(ctypes.byref(self._choice), packets, self.all_kept, self.now)

    def load(self, rate: int, ms: int) -> None:
        """Packets that come evenly, taken every 50 us."""
        for _ in range(ms * 20):
            self.turn(rate // 20_000, 50_000)

    def pause(self) -> int:
        return int(self._c.pace_pause(ctypes.byref(self._pace)))

    @property
    def state(self) -> State:
        return State(self._choice.state)

    def states(self, rate: int, ms: int) -> Iterator[State]:
        """Those that it goes through, each once."""
        yield self.state
        for _ in range(ms * 20):
            before = self.state
            self.turn(rate // 20_000, 50_000)
            if self.state is not before:
                yield self.state


@pytest.fixture
def decisions() -> Decisions:
    return Decisions()


def test_a_lone_packet_is_never_waited_for(decisions: Decisions) -> None:
    for gap in (100 * MS, 2 * MS, 100_000, 30_000):
        for _ in range(200):
            decisions.turn(1, gap)
            assert decisions.pause() == 0
    assert decisions.state is State.SLOTS


def test_a_first_burst_after_silence_is_no_load(decisions: Decisions) -> None:
    decisions.turn(0, 100 * MS)
    decisions.turn(64, 100 * MS)
    assert decisions.pause() == 0


def test_under_load_the_worker_gathers_once_for_each_time_that_it_found_something(decisions: Decisions) -> None:
    decisions.load(200_000, 3)
    assert [decisions.pause(), decisions.pause()] == [PAUSE, 0]
    decisions.turn(0, 50_000)
    assert decisions.pause() == 0
    decisions.turn(3, 50_000)
    assert decisions.pause() == PAUSE


@pytest.mark.parametrize(("before", "gathers"), [(20_000, False), (200_000, True)])
def test_between_the_limits_it_goes_on_as_it_did(decisions: Decisions, before: int, gathers: bool) -> None:
    decisions.load(before, 5)
    decisions.load(60_000, 50)
    assert (decisions.pause() > 0) is gathers


def test_when_load_ends_the_first_look_ends_the_gathering(decisions: Decisions) -> None:
    decisions.load(200_000, 5)
    decisions.turn(0, 100 * MS)
    decisions.turn(1, 1)
    assert decisions.pause() == 0


def test_blocks_take_over_when_no_slot_is_left_and_slots_after_the_last_block(decisions: Decisions) -> None:
    decisions.load(FAST, 2)
    assert decisions.state is State.FILLING
    decisions.all_kept = True
    decisions.load(FAST, 1)
    assert decisions.state is State.BLOCKS
    decisions.all_kept = False
    assert list(decisions.states(SLOW // 2, 10)) == [State.BLOCKS, State.SETTLING, State.SLOTS]


def test_slots_are_not_read_before_the_last_block_had_its_time(decisions: Decisions) -> None:
    decisions.load(FAST, 2)
    decisions.all_kept = True
    decisions.load(FAST, 1)
    while decisions.state is State.BLOCKS:
        decisions.turn(0, MS)
    decisions.turn(0, SETTLE - 1)
    assert decisions.state is State.SETTLING
    decisions.turn(0, 1)
    assert decisions.state is State.SLOTS


def test_slots_that_were_kept_in_vain_settle_as_well(decisions: Decisions) -> None:
    """Some packets may have rolled over while the last slots went."""
    decisions.load(FAST, 2)
    assert list(decisions.states(0, 10)) == [State.FILLING, State.SETTLING, State.SLOTS]


def test_load_that_returns_while_it_settles_waits_for_that(decisions: Decisions) -> None:
    decisions.load(FAST, 2)
    decisions.turn(0, 2 * MS)
    assert decisions.state is State.SETTLING
    assert list(decisions.states(FAST, 10)) == [State.SETTLING, State.SLOTS, State.FILLING]


@pytest.mark.parametrize(("before", "state"), [(SLOW // 2, State.SLOTS), (FAST, State.BLOCKS)])
def test_rings_do_not_change_between_the_limits(decisions: Decisions, before: int, state: State) -> None:
    decisions.load(before, 5)
    decisions.all_kept = True
    decisions.load(before, 5)
    assert decisions.state is state
    assert list(decisions.states((FAST + SLOW) // 2, 50)) == [state]


def test_no_step_is_left_out_whatever_the_rate_does(decisions: Decisions) -> None:
    allowed = {(0, 1), (1, 2), (1, 3), (2, 3), (3, 0)}
    seen = []
    for rate in (FAST, 0, 2 * FAST, SLOW, FAST, FAST, 0, 0, FAST, 100_000) * 20:
        decisions.all_kept = decisions.state is State.FILLING and rate == FAST
        seen += list(decisions.states(rate, 3))
    steps = {(int(a), int(b)) for a, b in pairwise(seen) if a is not b}
    assert steps == allowed
