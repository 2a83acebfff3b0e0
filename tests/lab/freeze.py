# SPDX-License-Identifier: Apache-2.0
"""Holds one thread of a process still, as a debugger does, while the rest goes on: how a worker hangs in tests."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 17, 0x4206, 0x4207, 0x40000000


def worker_of(pid: int) -> int:
    """The thread id of a worker."""
    return next(
        int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if (task / "comm").read_text() == "lb-worker\n"
    )


@contextmanager
def thread_stopped(tid: int) -> Iterator[None]:
    """One thread held still, as a debugger does; the rest of its process goes on."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int) -> None:
        if libc.ptrace(ctypes.c_long(request), ctypes.c_long(tid), None, None) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")

    ptrace(PTRACE_SEIZE)
    ptrace(PTRACE_INTERRUPT)
    try:
        yield
    finally:
        os.waitpid(tid, WALL)
        ptrace(PTRACE_DETACH)
