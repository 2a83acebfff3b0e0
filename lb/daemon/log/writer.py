# SPDX-License-Identifier: Apache-2.0
"""Writes a daemon's log without ever holding it up: a thread of its own behind a bounded queue of lines.

Whoever reads the log may stop reading (a pipe that is full blocks its writer for ever), go away (EPIPE), or have no
room (a file on a full disk). None of that is a reason to stop forwarding. Lines that cannot be queued or written are
lost and counted (``lb_log_lines_lost_total``), and once the log works again one line says how many.

:func:`take_over_stderr` puts a :class:`LogWriter` in the place of ``sys.stderr``, so that nothing else of the process
waits there either: warnings, tracebacks, libraries that log. The descriptor may be shared with others and stays as it
is; above all it is not made non-blocking.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from lb.daemon.process.fault_counts import VITALS
from lb.daemon.process.privileges import keep_only
from lb.errors import PrivilegeError

#: What waits at most, characters: some ten thousand lines.
QUEUE_MAX = 2 * 2**20
#: Written at once, characters: what a pipe takes whole.
BATCH = 32 * 1024
#: How long the end of the process waits for what was said last, seconds.
PARTING = 1.0
#: After a failure, until the next line is tried, seconds: a full disk is not asked a thousand times a second.
PAUSE = 0.1
#: Of a line that never ends, so much is kept, characters.
LINE_MAX = 64 * 1024


class LogWriter(io.TextIOBase):
    """A text file for one descriptor; :meth:`write` never blocks and never raises. From any thread."""

    def __init__(self, descriptor: int, *, lost: Callable[[int], None] = VITALS.lost_lines) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._count_lost = lost
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._size = 0
        self._partial = ""
        self._lost = 0  # not yet said
        self._cut = False  # in the middle of a line
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    # -- as a file ----------------------------------------------------------------------------------------------

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "replace"

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Whole lines are queued; the beginning of one waits for its end."""
        with self._changed:
            *lines, self._partial = (self._partial + text).split("\n")
            self._partial = self._partial[-LINE_MAX:]
            for line in lines:
                self._queue(line[-LINE_MAX:] + "\n")
            self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing waits here; see :meth:`part`."""

    def part(self, seconds: float = PARTING) -> None:
        """The process ends: waits until all is written, but no longer than this."""
        end = time.monotonic() + seconds
        with self._changed:
            if self._partial:
                self._queue(self._partial + "\n")
                self._partial = ""
                self._changed.notify()
            while (self._lines or self._busy) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _queue(self, line: str) -> None:
        if self._size + len(line) > QUEUE_MAX:
            self._lose(1)
            return
        self._lines.append(line)
        self._size += len(line)

    def _lose(self, count: int) -> None:
        self._lost += count
        self._count_lost(count)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # It is there before the daemon gives up rights, and needs none to write to an open descriptor. A unit whose
        # filter of system calls does not let it give them up has given it none.
        with contextlib.suppress(PrivilegeError):
            keep_only(())
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                self._busy = True
                batch = self._next()
                note = _note(self._lost) if self._lost else ""
                said = self._lost
            unwritten = self._write_out(note, batch)
            with self._changed:
                if not unwritten:
                    self._lost -= said
                else:
                    self._lose(unwritten)
            if unwritten:
                time.sleep(PAUSE)

    def _next(self) -> list[str]:
        batch: list[str] = []
        size = 0
        while self._lines and (not batch or size + len(self._lines[0]) <= BATCH):
            line = self._lines.popleft()
            batch.append(line)
            size += len(line)
        self._size -= size
        return batch

    def _write_out(self, note: str, batch: list[str]) -> int:
        """How many lines of the batch could not be written, wholly or in part."""
        lines = [line.encode(errors="replace") for line in ([note] if note else []) + batch]
        data = (b"\n" if self._cut else b"") + b"".join(lines)
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # somebody else made it so
                    select.select((), (self._descriptor,), (), 1.0)
        except (OSError, ValueError):
            self._cut = len(left) < len(data) and bytes(data[: len(data) - len(left)])[-1:] != b"\n"
            return min(len(batch), bytes(left).count(b"\n"))
        self._cut = False
        return 0


def _note(count: int) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f'timestamp={now} level=error event="log lines lost" count={count} reason="they could not be written"\n'


_WRITER: LogWriter | None = None


def take_over_stderr() -> None:
    """Once, at a daemon's start. Where something else than the process's own stderr is in its place (a test), that
    stays."""
    global _WRITER  # noqa: PLW0603  there is one stderr
    if _WRITER is not None or sys.stderr is not sys.__stderr__:
        return
    _WRITER = LogWriter(2)
    sys.stderr = _WRITER
    atexit.register(_WRITER.part)
