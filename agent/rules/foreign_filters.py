# SPDX-License-Identifier: Apache-2.0
"""Filters of others that stand before ours at the interface's ingress: do they keep tunnel packets from it? Pure.

A filter that says "accept" ends the list, and the packet goes into the host with its outer header on; one that says
nothing ("continue") lets it go on to ours. Which of the two it does cannot be read from outside, so it is judged by
what our filter counts::

    packets came until the filters appeared, and not one since     they keep them: a fault
    a packet came since                                            they let them go on: nothing to complain of
    none came before, nor since                                    nobody can tell: said once, no fault

So a filter that lives in peace with ours (a firewall's, a container network's) is never called a fault, however quiet
the host is later. :class:`agent.kernel_parts.FiltersAhead` asks; one object for one interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Packets came, if the last one came within so many seconds before the filters appeared.
FLOWED = 10.0
#: Without a packet for so long since then, the filters keep them, seconds.
STILL = 3.0


@dataclass(frozen=True, slots=True, order=True)
class Stranger:
    """A filter of somebody else, by where ``tc filter show`` shows it."""

    priority: int
    kind: str  #: of the classifier: ``bpf``, ``u32``, ``matchall``, ...
    name: str = ""  #: of a BPF program

    def __str__(self) -> str:
        return f"the {self.kind} filter {f'{self.name} ' if self.name else ''}of priority {self.priority}"


class Judge:
    """What is known of the filters before ours."""

    def __init__(self) -> None:
        self.filters: tuple[Stranger, ...] = ()
        self.passes: bool | None = None  #: they let packets go on; None: that cannot be told
        self._count: int | None = None  # at the last look
        self._moved: float | None = None  # when it last grew
        self._since = 0.0  # when the filters appeared
        self._flowed = False  # until then

    def look(self, now: float, filters: Sequence[Stranger], count: int) -> bool:
        """``count``: packets that our filter has met, read after the filters. Whether these are others than before."""
        moved = self._count is not None and count > self._count
        self._count = count
        news = tuple(filters) != self.filters
        if news:  # what came until this look may have come before them
            came = moved or (self._moved is not None and now - self._moved <= FLOWED)
            # One more beside one that keeps them, or one less: packets came before the first.
            self._flowed = bool(filters) and (came or (self._flowed and not self.passes))
            self.filters, self.passes, self._since = tuple(filters), None, now
        elif moved:
            self.passes = True
        elif self._flowed and self.passes is None and now - self._since >= STILL:
            self.passes = False
        if moved:
            self._moved = now
        return news

    @property
    def blocked(self) -> bool:
        """No packet comes to our filter, for theirs."""
        return bool(self.filters) and self.passes is False
