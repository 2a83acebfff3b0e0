# SPDX-License-Identifier: Apache-2.0
"""Flows of a burst are found with vector instructions; the plain loop beside them says what that means."""

from __future__ import annotations

import random
from ctypes import POINTER, byref, c_uint, c_uint64, c_void_p

import pytest

from tests.native.compiled import library

BATCH = 4096


@pytest.mark.parametrize("flows", [0, 60_000, 250_000])
def test_a_burst_is_found_as_one_flow_at_a_time_is(flows: int) -> None:
    lib = library("burst_probe.c", "flow_table.c")
    lib.probe_same_slots.argtypes = [c_void_p, c_uint, c_void_p, c_uint, POINTER(c_uint)]
    chance = random.Random(flows)
    # Small ones: their remainder is as empty as an empty way.
    keys = [0, 2, 1 << 63, (1 << 64) - 1, *(chance.getrandbits(64) for _ in range(flows))]
    asked = [1, 3, *keys[: BATCH // 2]]
    asked += [chance.getrandbits(64) for _ in range(BATCH - len(asked))]
    found = c_uint()
    in_table, in_burst = (c_uint64 * len(keys))(*keys), (c_uint64 * BATCH)(*asked)
    same = lib.probe_same_slots(in_table, len(keys), in_burst, BATCH, byref(found))
    if same < 0:
        pytest.skip("the processor has no AVX2")
    assert same, "the vector instructions found something else"
    assert 0 < found.value < BATCH
