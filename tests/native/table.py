# SPDX-License-Identifier: Apache-2.0
"""One flow table, by itself: :class:`Table` calls native/flow/flow_table.c through table_probe.c."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_uint, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass

from tests.native.compiled import library

(
    TCP_UNTRUSTED,
    UDP_UNTRUSTED,
    TCP_TRUSTED,
    UDP_TRUSTED,
    TCP_YOUNG,
    TCP_YOUNG_ENDED,
    TCP_TRUSTED_ENDED,
    UDP_YOUNG,
) = CLASSES = range(8)
#: By tier, the last goes first; see enum flow_tier.
TRUSTED, YOUNG, UNTRUSTED, ENDED = TIERS = range(4)
TICK_NS = 1 << 28
MIN_LINES = 1 << 16
WAYS = 6


class Counters(Structure):
    live: ctypes.Array[c_uint64]
    expired: int
    evicted: int
    tiers: ctypes.Array[c_uint64]  #: the evicted
    forgotten: int
    refused: int
    moved: int
    _fields_ = [
        ("live", c_uint64 * 8),
        ("expired", c_uint64),
        ("evicted", c_uint64),
        ("tiers", c_uint64 * 4),
        ("forgotten", c_uint64),
        ("refused", c_uint64),
        ("moved", c_uint64),
    ]


class _Found(Structure):
    _fields_ = [("line", c_uint64), ("way", c_uint32), ("backend", c_uint32), ("klass", c_uint32), ("age", c_uint32)]


@dataclass(frozen=True)
class Entry:
    backend: int
    klass: int
    age: int
    line: int
    way: int


def _c() -> ctypes.CDLL:
    lib = library("table_probe.c")
    lib.probe_create.restype = c_void_p
    lib.probe_lines.restype = lib.probe_clock.restype = lib.probe_key.restype = lib.flow_table_bytes.restype = c_uint64
    lib.probe_find.restype = lib.probe_found_at_home.restype = lib.flow_table_insert.restype = c_bool
    lib.flow_table_check.restype = c_char_p
    lib.flow_table_bytes.argtypes = [c_uint64]
    lib.probe_create.argtypes = [c_uint64]
    lib.probe_lines.argtypes = lib.probe_clock.argtypes = lib.flow_table_check.argtypes = [c_void_p]
    lib.flow_table_destroy.argtypes = lib.probe_judge.argtypes = [c_void_p]
    lib.flow_table_sweep.argtypes = [c_void_p, c_bool]
    lib.probe_counters.argtypes = [c_void_p, POINTER(Counters)]
    lib.probe_find.argtypes = [c_void_p, c_uint64, POINTER(_Found)]
    lib.probe_found_at_home.argtypes = [c_void_p, c_uint64, POINTER(c_bool)]
    lib.probe_full.restype = c_bool
    lib.probe_offers_agree.restype = c_bool
    lib.probe_offers_agree.argtypes = [c_void_p, c_uint64, c_uint]
    lib.probe_class.argtypes = [c_void_p, c_uint64, c_uint]
    lib.probe_class_after.argtypes = lib.probe_class_ending.argtypes = [c_uint, c_bool]
    lib.probe_places.argtypes = [c_void_p, c_uint64, POINTER(c_uint64), POINTER(c_uint64)]
    lib.probe_crowd.argtypes = [c_void_p, c_uint]
    for name in ("probe_key", "probe_touch", "probe_full", "probe_remove", "flow_table_advance"):
        getattr(lib, name).argtypes = [c_void_p, c_uint64]
    lib.probe_rewrite.argtypes = lib.flow_table_insert.argtypes = [c_void_p, c_uint64, c_uint, c_uint]
    lib.probe_crowded.argtypes = [c_void_p, c_uint64, POINTER(c_uint64), c_uint]
    lib.flow_table_set_idle.argtypes = [c_void_p, POINTER(c_uint16)]
    return lib


class Table:
    """Keys are scrambled already: any 64 bits."""

    def __init__(self, flows: int, idle: tuple[int, int, int, int]) -> None:
        """``idle`` by class, in ticks."""
        self._lib = _c()
        self._table = self._lib.probe_create(flows)
        assert self._table
        self.set_idle(idle)

    def __del__(self) -> None:
        self._lib.flow_table_destroy(self._table)

    @property
    def lines(self) -> int:
        return int(self._lib.probe_lines(self._table))

    @property
    def clock(self) -> int:
        return int(self._lib.probe_clock(self._table))

    def set_idle(self, idle: tuple[int, int, int, int]) -> None:
        self._lib.flow_table_set_idle(self._table, (c_uint16 * 4)(*idle))

    def find(self, key: int) -> Entry | None:
        found = _Found()
        if not self._lib.probe_find(self._table, key, byref(found)):
            return None
        return Entry(found.backend, found.klass, found.age, found.line, found.way)

    def at_home(self, key: int) -> tuple[bool, bool]:
        """Whether it is found in its home line, and whether it may be elsewhere."""
        elsewhere = c_bool()
        return bool(self._lib.probe_found_at_home(self._table, key, byref(elsewhere))), elsewhere.value

    def key(self, key: int) -> int:
        """The key that the table reconstructs of an entry."""
        return int(self._lib.probe_key(self._table, key))

    def insert(self, key: int, backend: int, klass: int) -> bool:
        return bool(self._lib.flow_table_insert(self._table, key, backend, klass))

    def touch(self, key: int) -> None:
        self._lib.probe_touch(self._table, key)

    def set_class(self, key: int, klass: int) -> None:
        self._lib.probe_class(self._table, key, klass)

    def places(self, key: int) -> tuple[int, int]:
        """Its home line and its alternate line."""
        home, alternate = c_uint64(), c_uint64()
        self._lib.probe_places(self._table, key, byref(home), byref(alternate))
        return home.value, alternate.value

    def crowded_with(self, tier: int) -> bool:
        """Whether an insert leaves the alternate line out if its home line has this tier to lose."""
        return bool(self._lib.probe_crowd(self._table, tier))

    def judge_by_number(self) -> None:
        """From now on backends 0, 3, 6 … are worthless, 1, 4, 7 … cheap, and 2, 5, 8 … unsynchronised."""
        self._lib.probe_judge(self._table)

    def full(self, key: int) -> bool:
        """Whether room was looked for in vain in this tick."""
        return bool(self._lib.probe_full(self._table, key))

    def offers_agree(self, seed: int, lines: int) -> bool:
        """Whether random lines offer the same whether their ways are looked at together or one by one."""
        return bool(self._lib.probe_offers_agree(self._table, seed, lines))

    def remove(self, key: int) -> None:
        self._lib.probe_remove(self._table, key)

    def rewrite(self, key: int, backend: int, klass: int) -> None:
        self._lib.probe_rewrite(self._table, key, backend, klass)

    def advance(self, tick: int) -> None:
        self._lib.flow_table_advance(self._table, tick * TICK_NS)

    def sweep(self, *, judged: bool = False) -> None:
        self._lib.flow_table_sweep(self._table, judged)

    def counters(self) -> Counters:
        out = Counters()
        self._lib.probe_counters(self._table, byref(out))
        return out

    def check(self) -> str | None:
        broken = self._lib.flow_table_check(self._table)
        return broken.decode() if broken else None

    def crowded(self, lines: int, count: int) -> list[int]:
        """Keys all of whose places are in the first few lines."""
        keys = (c_uint64 * count)()
        self._lib.probe_crowded(self._table, lines, keys, count)
        return list(keys)


def class_after(klass: int, *, later_tick: bool) -> int:
    return int(_c().probe_class_after(klass, later_tick))


def class_ending(klass: int, *, ended: bool) -> int:
    return int(_c().probe_class_ending(klass, ended))


def table_bytes(flows: int) -> int:
    return int(_c().flow_table_bytes(flows))
