# SPDX-License-Identifier: Apache-2.0
"""What a daemon counts of its own faults, for its metrics: tasks begun anew, lines of the log that were lost.

One process is one daemon, so there is one set of counters, :data:`VITALS`; :func:`lb.daemon.metrics.collectors.serve`
shows it beside whatever else the daemon tells. Written from any thread: each counter has a lock of the interpreter's
own granularity, and a scrape may see one a moment old.
"""

from __future__ import annotations

import threading
from collections import Counter


class Vitals:
    """Counters; from any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._crashes: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter()
        self._lines_lost = 0
        self._unasked: Counter[str] = Counter()

    def crashed(self, task: str) -> None:
        """A task ended with an error."""
        with self._guard:
            self._crashes[task] += 1

    def restarted(self, task: str) -> None:
        """A task that had ended was begun anew."""
        with self._guard:
            self._restarts[task] += 1

    def lost_lines(self, count: int) -> None:
        """Lines of the log that could not be written."""
        with self._guard:
            self._lines_lost += count

    def unasked(self, source: str) -> None:
        """A probe that could not be made, for a want of our own; ``source``: agent or tunnel."""
        with self._guard:
            self._unasked[source] += 1

    @property
    def crashes(self) -> dict[str, int]:
        with self._guard:
            return dict(self._crashes)

    @property
    def restarts(self) -> dict[str, int]:
        with self._guard:
            return dict(self._restarts)

    @property
    def lines_lost(self) -> int:
        return self._lines_lost

    @property
    def probes_not_made(self) -> dict[str, int]:
        with self._guard:
            return dict(self._unasked)


#: This process's.
VITALS = Vitals()
