# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: from a slot to the number of a backend (Maglev paper, section 3.4). The tables are built in C.

Used by :mod:`lb.dataplane.compile.compiler` for what MUXes forward by, and by :mod:`lb.dataplane.compile.slot_moves` to
compare; immutable, and of any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import mmh3

from lb.dataplane.binding import c, ffi, make


@dataclass(frozen=True, slots=True)
class MaglevMember:
    """One backend's share of a Maglev table: its permutation, weight, and number within the service."""

    offset: int
    skip: int
    weight: int
    backend: int


class Maglev:
    """An immutable table from slot to backend number, shared between services."""

    NONE = 0xFFFF

    def __init__(self, size: int, members: Sequence[MaglevMember]) -> None:
        array = ffi.new("struct maglev_member[]", [(m.offset, m.skip, m.weight, m.backend) for m in members])
        what = f"Cannot build a Maglev table of {size} slots for {len(members)} backends"
        self._c = make("maglev", c.maglev_put, what, lambda out: c.maglev_build(size, array, len(members), out))
        self.size = size

    def slots(self) -> list[int]:
        """Backend number of every slot; :attr:`NONE` where there is none."""
        slots = ffi.new("uint16_t[]", self.size)
        c.maglev_slots(self._c, slots)
        return list(ffi.unpack(slots, self.size))


def permutation(seed: bytes, name: str, size: int) -> tuple[int, int]:
    """Offset and skip of a backend in tables of ``size`` slots (Maglev paper, section 3.4).

    MurmurHash3 of the pool's seed and the backend's name, with two hash seeds as the two hash functions.
    """
    key = seed + name.encode()
    offset = mmh3.hash128(key, seed=0, x64arch=True, signed=False)
    skip = mmh3.hash128(key, seed=1, x64arch=True, signed=False)
    return offset % size, skip % (size - 1) + 1


def build_table(seed: bytes, size: int, members: Iterable[tuple[str, int]], numbers: Mapping[str, int]) -> Maglev:
    """Of backends that take new flows, by name and weight in the order of their names; ``numbers`` by name."""
    rows = [MaglevMember(*permutation(seed, name, size), weight, numbers[name]) for name, weight in members]
    return Maglev(size, rows)
