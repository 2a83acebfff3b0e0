# SPDX-License-Identifier: Apache-2.0
"""A share of a process's time: so many seconds may be spent in each second."""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """So many seconds may be spent in each second."""

    def __init__(
        self, share: float, clock: Callable[[], float], saved: float = 0.1, owed: float = float("inf")
    ) -> None:
        self._share = share
        self._clock = clock
        self._saved = saved  #: so much of it at once, at most
        self._owed = owed  #: what is spent beyond so much is forgiven
        self._left = saved
        self._at = clock()
        self.spent = 0.0  #: in all

    def wait(self) -> float:
        """Seconds until something may be spent again."""
        now = self._clock()
        self._left = min(self._saved, self._left + (now - self._at) * self._share)
        self._at = now
        return max(0.0, -self._left / self._share)

    def spend(self, seconds: float) -> None:
        self.wait()
        self._left = max(-self._owed, self._left - seconds)
        self.spent += seconds
