# SPDX-License-Identifier: Apache-2.0
"""SipHash and the bijection by themselves: the papers' values, and the same for one and for many."""

from __future__ import annotations

import random
from ctypes import CDLL, c_bool, c_char_p, c_uint, c_uint64, c_void_p, create_string_buffer
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import Address
from tests.model import hashing
from tests.native.compiled import library

SEEDS = st.binary(min_size=16, max_size=16)
NUMBERS = st.integers(0, (1 << 64) - 1)


def c() -> CDLL:
    lib = library("flow/flow.c")
    lib.flow_scramble.restype = lib.flow_unscramble.restype = lib.flow_tuple_hash.restype = c_uint64
    lib.flow_scramble.argtypes = lib.flow_unscramble.argtypes = [c_void_p, c_uint64]
    lib.flow_tuple_hash.argtypes = [c_void_p, c_char_p, c_bool]
    lib.flow_seed_init.argtypes = [c_void_p, c_char_p]
    lib.flow_scramble_burst_scalar.argtypes = [c_void_p, c_void_p, c_void_p, c_uint]
    lib.flow_hash4_burst_scalar.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_uint]
    return lib


def expanded(seed: bytes) -> object:
    room = create_string_buffer(1024)
    c().flow_seed_init(room, seed)
    return room


@settings(max_examples=100, deadline=None)
@given(SEEDS, NUMBERS)
def test_the_bijection_is_twelve_rounds_of_speck(seed: bytes, key: int) -> None:
    scrambled = c().flow_scramble(expanded(seed), key)
    assert scrambled == hashing.scramble(seed, key)
    assert c().flow_unscramble(expanded(seed), scrambled) == key


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.lists(NUMBERS, max_size=70))
def test_many_keys_are_scrambled_as_one_by_one(seed: bytes, keys: list[int]) -> None:
    room = expanded(seed)
    out = (c_uint64 * (len(keys) + 1))()
    out[len(keys)] = 7
    c().flow_scramble_burst_scalar(room, (c_uint64 * len(keys))(*keys), out, len(keys))
    assert list(out) == [*(c().flow_scramble(room, key) for key in keys), 7]


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.lists(st.tuples(NUMBERS, NUMBERS), max_size=70))
def test_many_tuples_are_hashed_as_siphash_1_3_hashes_each(seed: bytes, words: list[tuple[int, int]]) -> None:
    count = len(words)
    addresses, ports = ((c_uint64 * count)(*column) for column in (zip(*words, strict=True) if words else ((), ())))
    out = (c_uint64 * (count + 1))()
    c().flow_hash4_burst_scalar(expanded(seed), addresses, ports, out, count)
    messages = [a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in words]
    assert list(out) == [*(hashing.siphash(seed, message, 1, 3) for message in messages), 0]


def test_tuples_are_hashed_as_they_lie_on_the_wire() -> None:
    choose = random.Random(1)
    seed = choose.randbytes(16)
    for _ in range(200):
        source: Address
        destination: Address
        if choose.random() < 0.5:
            source, destination = IPv4Address(choose.randbytes(4)), IPv4Address(choose.randbytes(4))
        else:
            source, destination = IPv6Address(choose.randbytes(16)), IPv6Address(choose.randbytes(16))
        ports, protocol = choose.randbytes(4), choose.choice((6, 17))
        flow = source.packed.ljust(16, b"\0") + destination.packed.ljust(16, b"\0") + ports
        flow += bytes([protocol, source.version, 0, 0])
        for source_only in (False, True):
            expected = hashing.tuple_hash(
                seed,
                protocol,
                (source, int.from_bytes(ports[:2], "big")),
                (destination, int.from_bytes(ports[2:], "big")),
                source_only=source_only,
            )
            assert c().flow_tuple_hash(expanded(seed), flow, source_only) == expected
