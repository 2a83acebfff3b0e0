# SPDX-License-Identifier: Apache-2.0
"""What hearing one node may cost the manager, and when one that was let go may come again. Pure.

A node pays in CPU seconds, over all of its connections: for each connection, for each read of its socket by what was
read, before anything is decoded, and for what its messages made the manager do. It has a share of the core, and some
seconds of that at once. While it owes, its socket is not read (:mod:`manager.trust.bounded_listener`), what it says
waits in its own kernel, and of a new connection nothing is heard. A node that was let go for what it said may come
again at once a few times; after that it waits, twice as long each time. Used by :mod:`manager.nodes.stream`, in the
event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from lb.daemon.time_budget import Budget

#: The share of the manager's core that hearing one node may take, and so many seconds of it at once: all that a MUX
#: with ten thousand services says when it connects. Nobody is left unheard for longer than PAUSE_MAX, for then its
#: pongs would be late.
SHARE, SAVED, PAUSE_MAX = 0.1, 2.0, 2.0
#: More than this it never owes: whoever took a node's key must not shut it out for hours, CPU seconds.
OWED_MAX = 6.0
#: What each connection, each read of its socket, each record and each byte of it and each message cost beside what is
#: measured, seconds.
PER_STREAM, PER_READ, PER_PIECE, PER_BYTE, PER_MESSAGE = 0.02, 60e-6, 4e-6, 6e-9, 50e-6
#: And each hello, to answer it, beside the digest and the text of the state that it gets.
PER_STATE = 2e-3
#: To plan anew what a node has to do with, when it comes and when it leaves, for each service of it: beside all else it
#: may make so much of that at once, and as large a share of it after; what it owes of this is less, seconds.
PER_SERVICE, COMINGS_SAVED, COMINGS_OWED = 2e-4, 10.0, 2.0
#: So often a node may be let go before it waits; then so long, doubled each time, and never longer; all is forgiven
#: after so long without, seconds.
FAULTS, WAIT_FIRST, WAIT_MAX, FORGIVEN = 3, 1.0, 60.0, 600.0
#: So many nodes are remembered.
NODES_MAX = 20_000


class Dues:
    """Of one node, whichever connection it has."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._budget = Budget(SHARE, clock, saved=SAVED, owed=OWED_MAX)
        self._comings = Budget(SHARE, clock, saved=COMINGS_SAVED, owed=COMINGS_OWED)
        self._faults = 0
        self._again = float("-inf")  # when it may come again
        self._last = float("-inf")  # when it was let go

    @property
    def spent(self) -> float:
        """CPU seconds, in all."""
        return self._budget.spent

    def spend(self, seconds: float) -> None:
        self._budget.spend(seconds)

    def read(self, size: int, pieces: int, seconds: float) -> float:
        """So many bytes of its socket were read, in so many records, which took the HTTP library so long; returns how
        long no more of it is to be read."""
        self._budget.spend(seconds + PER_READ + pieces * PER_PIECE + size * PER_BYTE)
        return self.pause()

    def pause(self) -> float:
        """Seconds until it may be heard again; a part of that where it is long."""
        return min(PAUSE_MAX, self._budget.wait())

    def came(self, services: int) -> None:
        """It was let in, and has so many services."""
        self._comings.spend(services * PER_SERVICE)

    def let_go(self) -> float:
        """Its connection was ended for what it said; returns for how long it is not let in."""
        now = self._clock()
        self._faults = 1 if now - self._last > FORGIVEN else self._faults + 1
        self._last = now
        doublings = self._faults - FAULTS - 1
        wait = min(WAIT_MAX, WAIT_FIRST * 2 ** min(doublings, 30)) if doublings >= 0 else 0.0
        self._again = now + wait
        return wait

    def barred(self) -> float:
        """Seconds until it may connect."""
        owing = max(self._budget.wait(), self._comings.wait())
        return max(self._again - self._clock(), owing if owing > PAUSE_MAX else 0.0, 0.0)


class NodeLedger:
    """Of all nodes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nodes: dict[str, Dues] = {}

    def of(self, node: str) -> Dues:
        found = self._nodes.get(node)
        if found is None:
            if len(self._nodes) >= NODES_MAX:
                self._nodes.clear()
            found = self._nodes[node] = Dues(self._clock)
        return found
