# SPDX-License-Identifier: Apache-2.0
"""Keeps a daemon's memory at what it needs, after it needed more for a while."""

from __future__ import annotations

import ctypes
import gc

#: See mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def tame_allocator() -> None:
    """Call it before there are other threads.

    One arena, instead of one for each thread that keeps what a large configuration needed once; and what is large goes
    back to the system when it is freed, whatever was freed before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 2 << 20)
        mallopt(_M_TRIM_THRESHOLD, 4 << 20)


def give_back() -> None:
    """Reading a large file leaves much that nobody needs: to the system with it, where the C library can. What is
    left stays: looking through it for cycles again and again would stop everything for a tenth of a second each time.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
