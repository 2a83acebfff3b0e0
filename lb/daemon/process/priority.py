# SPDX-License-Identifier: Apache-2.0
"""Who goes first when there is less CPU than work: of one daemon's threads, and of the programs that it starts.

    control   -12   the event loop, the heart, ExaBGP and its helper: BGP keepalives, the node stream, probes, questions
    workers   -10   packets (native/worker/worker.c sets it)
    the rest    0   helper threads that read, compile and count; metrics; the log

A worker that has more packets than it can take uses all that it is given, for ever. What control needs is little and
bounded, and when it comes late routers and manager take the MUX for dead: its packets go to the others, which are then
the next to have too many. So control goes before packets, and what takes long goes behind them. It needs CAP_SYS_NICE.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

CONTROL_NICE = -12


def control_first() -> str | None:
    """Lifts this thread, and what it starts from now on; why not, in words, where that is not allowed."""
    return _set(CONTROL_NICE)


def helpers() -> ThreadPoolExecutor:
    """Threads for an event loop's :func:`asyncio.to_thread` that stay behind, whoever starts them."""
    return ThreadPoolExecutor(thread_name_prefix="helper", initializer=_set, initargs=(0,))


def _set(nice: int) -> str | None:
    """Of the calling thread: to the kernel each has one of its own."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    except PermissionError:
        return "it needs CAP_SYS_NICE"
    return None
