# SPDX-License-Identifier: Apache-2.0
"""When to tell the operator that a flow table is full: once for each time that it is, not for each flow.

Pure; :mod:`lb.mux.workers.worker_watch` feeds it and writes the log line.
"""

from __future__ import annotations

from dataclasses import dataclass

#: So long without a refused flow, and the next one is news again; seconds.
QUIET = 60.0


@dataclass(slots=True)
class Fullness:
    """Watches the count of flows that found no room."""

    refused: int = 0
    last: float | None = None  #: when it last rose

    def step(self, refused: int, now: float) -> int:
        """Takes the count so far; how many flows to report now, 0 for nothing to say."""
        new = refused - self.refused
        self.refused = refused
        if new <= 0:
            return 0
        news = self.last is None or now - self.last > QUIET
        self.last = now
        return new if news else 0
