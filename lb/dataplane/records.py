# SPDX-License-Identifier: Apache-2.0
"""Flows as MUXes tell them to each other, eight bytes each; and what became of those that were told."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lb.dataplane.binding import TICK_SHIFT, Cdata, ffi

#: An unsynchronised flow: its name << 16 | class << 14 | age in units of 4 ticks; see native/control/flow_table_scan.h.
RECORD_BYTES = 8
#: Flows that a worker takes over in one piece, between two bursts.
ADOPT_MAX = 256


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of flows that were to be taken over; see native/control/adopt_flows.h."""

    taken: int = 0
    known: int = 0
    useless: int = 0
    refused: int = 0

    def __add__(self, other: Adoption) -> Adoption:
        return Adoption(
            self.taken + other.taken,
            self.known + other.known,
            self.useless + other.useless,
            self.refused + other.refused,
        )


def pieces(records: bytes) -> Iterator[tuple[Cdata, int]]:
    """As much of them at a time as a worker does between two bursts."""
    numbers = struct.unpack(f"<{len(records) // RECORD_BYTES}Q", records)
    for start in range(0, len(numbers), ADOPT_MAX):
        piece = numbers[start : start + ADOPT_MAX]
        yield ffi.new("uint64_t[]", piece), len(piece)


def with_age(records: bytes, seconds: float) -> bytes:
    """The same flows, as if their last packet had come so long ago, or a little less."""
    age = min(int(seconds * 1e9) >> TICK_SHIFT >> 2, 0x3FFF)
    numbers = struct.unpack(f"<{len(records) // RECORD_BYTES}Q", records)
    return struct.pack(f"<{len(numbers)}Q", *(number & ~0x3FFF | age for number in numbers))
