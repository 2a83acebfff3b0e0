# SPDX-License-Identifier: Apache-2.0
"""The parser's short ways against its long one, which alone says what is wrong with a packet.

``VIPMUX_PACKETS=10000000`` looks at as many.
"""

from __future__ import annotations

import os
from ctypes import Structure, byref, c_uint64

from tests.native.compiled import library

PACKETS = int(os.environ.get("VIPMUX_PACKETS", "300000"))


class Counts(Structure):
    _fields_ = [(name, c_uint64) for name in ("taken4", "taken6", "good4", "good6")]


def test_what_a_short_way_takes_is_what_the_long_way_finds() -> None:
    c = library("parse_probe.c", "packet.c", "checksum.c")
    c.probe_parse.restype = c_uint64
    counts = Counts()
    assert c.probe_parse(c_uint64(1), c_uint64(PACKETS), byref(counts)) == 0
    # And it takes most of what is in order. It leaves what is unusual (options, odd sources), and datagrams so short
    # that they end before what it reads: many here, where payloads are of 0 to 39 bytes.
    assert counts.good4 * 0.75 < counts.taken4 <= counts.good4
    assert counts.good6 * 0.75 < counts.taken6 <= counts.good6
    assert min(counts.taken4, counts.taken6) > PACKETS / 20


def test_a_ttl_less_changes_every_checksum_as_the_rfc_says() -> None:
    c = library("parse_probe.c", "packet.c", "checksum.c")
    c.probe_decrement.restype = c_uint64
    assert c.probe_decrement() == 0


def test_a_header_is_right_when_its_words_add_up_whatever_they_carry() -> None:
    c = library("parse_probe.c", "packet.c", "checksum.c")
    c.probe_header_sums.restype = c_uint64
    right = c_uint64()
    assert c.probe_header_sums(c_uint64(2), c_uint64(PACKETS), byref(right)) == 0
    assert PACKETS / 3 < right.value < PACKETS
