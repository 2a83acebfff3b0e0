# SPDX-License-Identifier: Apache-2.0
"""The workers' heartbeat: whether the data plane lives, looked at by a thread. Owned by :mod:`lb.mux.announcer`."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Between two looks at the workers, seconds; an idle worker turns ten times a second.
BEAT = 0.05
#: A worker that did not turn for so many looks stands still.
STILL = 10


class Heart(threading.Thread):
    """Vouches for the data plane twenty times a second, as long as every worker turns.

    A thread of its own, because a reload may keep the event loop busy while workers forward as ever.
    """

    def __init__(
        self, bursts: Callable[[], tuple[int, ...]], beat: Callable[[], None], changed: Callable[[bool], None]
    ):
        super().__init__(name="heart", daemon=True)
        self._bursts = bursts
        self._beat = beat
        self._changed = changed
        self._over = threading.Event()

    def run(self) -> None:
        pulse = Pulse()
        alive: bool | None = None
        while not self._over.wait(BEAT):
            now = pulse.look(self._bursts())
            if now:
                self._beat()
            if now is not alive:
                alive = now
                self._changed(now)

    def stop(self) -> None:
        self._over.set()
        self.join()


class Pulse:
    """Whether all workers turn, from their counts at each look. Counts looks, not time: a pause of the whole machine
    is nobody's death."""

    def __init__(self) -> None:
        self._last: tuple[int, ...] = ()
        self._still: list[int] = []

    def look(self, bursts: tuple[int, ...]) -> bool:
        """The counts at this moment; no workers is no life."""
        if len(bursts) != len(self._last):
            self._still = [0] * len(bursts)
        else:
            self._still = [
                0 if now != before else still + 1
                for now, before, still in zip(bursts, self._last, self._still, strict=True)
            ]
        self._last = bursts
        return bool(bursts) and max(self._still) < STILL
