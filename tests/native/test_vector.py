# SPDX-License-Identifier: Apache-2.0
"""Whatever vector instructions a pipeline runs with, it does what the plain C does."""

from __future__ import annotations

import itertools
import random
from ctypes import CDLL, POINTER, byref, c_bool, c_char_p, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache

import pytest

from lb.dataplane import VECTORS, LinkHeader, Pipeline
from lb.errors import DataplaneError
from tests.model import hashing
from tests.native.compiled import library
from tests.native.test_pressure import ROOM, SECOND, SNAPSHOT, packet

BATCH = 4096
#: All but "best".
LEVELS = range(1, len(VECTORS))
#: The features of a processor in the order of ``struct vector_processor``, and which of them each level needs.
FEATURES = ("avx2", "bmi", "bmi2", "avx512f", "avx512vl", "avx512dq", "avx512bw")
NEEDS = {1: set(), 2: {"avx2", "bmi", "bmi2"}, 3: set(FEATURES) - {"avx2"}}


@cache
def c() -> CDLL:
    lib = library(
        "burst_probe.c",
        "mux/vector_level.c",
        "flow/flow.c",
        "flow/flow_table.c",
        "packet/burst/read_ipv4.c",
        "packet/burst/read_ipv6.c",
    )
    lib.probe_runs.argtypes, lib.probe_runs.restype = [c_uint32], c_bool
    lib.probe_chosen.argtypes = [c_uint32, c_void_p]
    lib.probe_scramble.argtypes = [c_uint32, c_char_p, c_void_p, c_void_p, c_uint]
    lib.probe_hash4.argtypes = [c_uint32, c_char_p, c_void_p, c_void_p, c_void_p, c_uint]
    lib.probe_hash6.argtypes = [c_uint32, c_char_p, c_char_p, c_void_p, c_uint]
    lib.probe_same_slots.argtypes = [c_uint32, c_void_p, c_uint, c_void_p, c_uint, POINTER(c_uint)]
    return lib


@pytest.fixture(params=LEVELS, ids=VECTORS[1:])
def level(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    if not c().probe_runs(number):
        pytest.skip(f"the processor has no {VECTORS[number]}")
    return number


def test_there_is_always_a_plain_one_and_a_best_one() -> None:
    assert c().probe_runs(0)
    assert c().probe_runs(1)
    assert not c().probe_runs(len(VECTORS))
    assert Pipeline(0, LinkHeader.NONE, vector="plain").vector == "plain"
    assert Pipeline(0, LinkHeader.NONE, vector="").vector in VECTORS[1:]


def test_a_level_is_chosen_only_where_the_processor_has_all_that_it_is_compiled_for() -> None:
    """A hypervisor may mask any feature; what is missing would end the program with SIGILL."""
    x86 = c().probe_chosen(2, (c_bool * 7)(*[True] * 7)) == 2
    for has in itertools.product((False, True), repeat=len(FEATURES)):
        there = {name for name, is_there in zip(FEATURES, has, strict=True) if is_there}
        fit = [number for number, needs in NEEDS.items() if needs <= there and (x86 or number == 1)]
        for number in LEVELS:
            assert c().probe_chosen(number, (c_bool * 7)(*has)) == (number if number in fit else 0), there
        assert c().probe_chosen(0, (c_bool * 7)(*has)) == max(fit), there


@pytest.mark.parametrize("seed", range(20))
def test_keys_and_tuples_are_scrambled_and_hashed_the_same_at_each_level(level: int, seed: int) -> None:
    chance = random.Random(seed)
    secret, count = chance.randbytes(16), chance.randrange(70)
    first, second = ([chance.getrandbits(64) for _ in range(count)] for _ in range(2))
    out, words = (c_uint64 * (count + 1))(), [(c_uint64 * count)(*column) for column in (first, second)]
    out[count] = 7
    c().probe_scramble(level, secret, words[0], out, count)
    assert list(out) == [*(hashing.scramble(secret, key) for key in first), 7]
    c().probe_hash4(level, secret, *words, out, count)
    messages = [a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in zip(first, second, strict=True)]
    assert list(out) == [*(hashing.siphash(secret, message, 1, 3) for message in messages), 7]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 15, 16])
def test_tuples_of_ipv6_are_hashed_the_same_at_each_level(level: int, count: int) -> None:
    chance = random.Random(count)
    secret, tuples = chance.randbytes(16), [chance.randbytes(40) for _ in range(count)]
    out = (c_uint64 * (count + 1))()
    out[count] = 7
    c().probe_hash6(level, secret, b"".join(tuples), out, count)
    assert list(out) == [*(hashing.siphash(secret, message, 1, 3) for message in tuples), 7]


@pytest.mark.parametrize("flows", [0, 60_000, 250_000, 400_000])
def test_a_burst_is_found_as_one_flow_at_a_time_is(level: int, flows: int) -> None:
    chance = random.Random(flows)
    # Small ones: their remainder is as empty as an empty way.
    keys = [0, 2, 1 << 63, (1 << 64) - 1, *(chance.getrandbits(64) for _ in range(flows))]
    # Those that differ from one that is there in a single bit.
    asked = [1, 3, *(key ^ 1 << chance.randrange(64) for key in keys[:64])]
    # Early ones and late ones, which lie in the last ways; and those that look like the stamps behind the entries.
    asked += [*keys[: BATCH // 8], *keys[-BATCH // 4 :], *(line << 48 | 0x000500050005 for line in range(BATCH // 8))]
    asked += [chance.getrandbits(64) for _ in range(BATCH - len(asked))]
    found = c_uint()
    in_table, in_burst = (c_uint64 * len(keys))(*keys), (c_uint64 * BATCH)(*asked)
    assert c().probe_same_slots(level, in_table, len(keys), in_burst, BATCH, byref(found))
    assert 0 < found.value < BATCH


def test_a_pipeline_is_told_which_to_run_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIPMUX_VECTOR", "plain")
    assert Pipeline(1, LinkHeader.NONE).vector == "plain"
    assert Pipeline(1, LinkHeader.NONE, vector="best").vector == Pipeline(1, LinkHeader.NONE, vector="").vector
    monkeypatch.setenv("VIPMUX_VECTOR", "avx1024")
    with pytest.raises(DataplaneError, match=r"VIPMUX_VECTOR = 'avx1024' is no level.*best, plain, avx2, avx512"):
        Pipeline(1, LinkHeader.NONE)


def test_what_the_processor_lacks_is_refused_and_not_replaced() -> None:
    missing = [number for number in LEVELS if not c().probe_runs(number)]
    if not missing:
        pytest.skip("the processor has all of them")
    with pytest.raises(DataplaneError, match=f"does not have the vector instructions '{VECTORS[missing[0]]}'"):
        Pipeline(1, LinkHeader.NONE, vector=VECTORS[missing[0]])


def test_a_table_under_pressure_is_the_same_at_each_level(level: int) -> None:
    """More flows than fit, new and known, opening, going on and ending, over half a minute."""
    chance = random.Random(level)
    plain, fast = Pipeline(1, LinkHeader.NONE, vector="plain"), Pipeline(1, LinkHeader.NONE, vector=VECTORS[level])
    for step in range(300):
        flows = [chance.randrange(2 * ROOM) if chance.random() < 0.7 else chance.randrange(500) for _ in range(640)]
        now = step * SECOND // 10
        rows = [(packet(chance.choice(["S", "A", "A", "FA"]), flow), 40, now) for flow in flows]
        assert fast.process(SNAPSHOT, rows) == plain.process(SNAPSHOT, rows)
    assert fast.counters() == plain.counters()
    assert sum(fast.counters().flows.live) > 50_000
