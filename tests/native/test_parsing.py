# SPDX-License-Identifier: Apache-2.0
"""The parser's short ways against its long one, which alone says what is wrong with a packet.

``VIPMUX_PACKETS=10000000`` looks at as many.
"""

from __future__ import annotations

import os
from ctypes import CDLL, Structure, byref, c_bool, c_uint32, c_uint64
from functools import cache

import pytest

from lb.dataplane import VECTORS
from tests.native.compiled import library

PACKETS = int(os.environ.get("VIPMUX_PACKETS", "300000"))


class Counts(Structure):
    _fields_ = [(name, c_uint64) for name in ("taken4", "taken6", "good4", "good6")]


@cache
def probe() -> CDLL:
    files = (
        "packet/packet.c",
        "packet/checksum.c",
        "mux/vector_level.c",
        "flow/flow.c",
        "flow/flow_table.c",
        "packet/burst/read_ipv4.c",
        "packet/burst/read_ipv6.c",
    )
    c = library("parse_probe.c", "burst_probe.c", *files)
    for name in ("probe_parse", "probe_bursts", "probe_groups6", "probe_decrement", "probe_header_sums"):
        getattr(c, name).restype = c_uint64
    return c


def test_what_a_short_way_takes_is_what_the_long_way_finds() -> None:
    counts = Counts()
    assert probe().probe_parse(c_uint64(1), c_uint64(PACKETS), byref(counts)) == 0
    # And it takes most of what is in order. It leaves what is unusual (options, odd sources), and datagrams so short
    # that they end before what it reads: many here, where payloads are of 0 to 39 bytes.
    assert counts.good4 * 0.75 < counts.taken4 <= counts.good4
    assert counts.good6 * 0.75 < counts.taken6 <= counts.good6
    assert min(counts.taken4, counts.taken6) > PACKETS / 20


@pytest.mark.parametrize(("read", "most"), [("probe_bursts", 1), ("probe_groups6", 0.9)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("level", range(1, len(VECTORS)), ids=VECTORS[1:])
def test_many_plain_packets_are_read_as_one_by_one(level: int, read: str, most: float) -> None:
    taken = c_uint64()
    probe().probe_runs.restype = c_bool
    if not probe().probe_runs(c_uint32(level)):
        pytest.skip(f"the processor has no {VECTORS[level]}")
    assert getattr(probe(), read)(c_uint32(level), c_uint64(level), c_uint64(PACKETS), byref(taken)) == 0
    assert PACKETS / 2 < taken.value < PACKETS * most


def test_a_ttl_less_changes_every_checksum_as_the_rfc_says() -> None:
    assert probe().probe_decrement() == 0


def test_a_header_is_right_when_its_words_add_up_whatever_they_carry() -> None:
    right = c_uint64()
    assert probe().probe_header_sums(c_uint64(2), c_uint64(PACKETS), byref(right)) == 0
    assert PACKETS / 3 < right.value < PACKETS
