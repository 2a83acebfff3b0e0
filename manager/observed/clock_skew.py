# SPDX-License-Identifier: Apache-2.0
"""Whose clock is not the manager's. :mod:`manager.controller.controller` owns one :class:`Skews`, and looks once a
second or so.

Nothing that serves clients goes by a node's clock (:mod:`lb.daemon.clocks`), but certificates, logs and events do, and
so does whoever reads them. ``lb doctor`` says the same of a node, with what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from manager.nodes.hub import Entry

#: From so many seconds on it is said, and until it is less than so many again.
SAID, OVER = 2.0, 1.0


class Skews:
    """``differs`` is never changed, only replaced, and may be read from any thread."""

    def __init__(self) -> None:
        self.differs: Mapping[str, str] = {}  #: by node ("mux:mux1"), how far its clock is off, in words

    def look(self, entries: Iterable[Entry]) -> Iterator[tuple[str, str, bool]]:
        """Events: subject, text, and whether they are bad. Of a node that is away nothing new is known."""
        found, events = {}, []
        for entry in entries:
            before = self.differs.get(entry.id)
            skew = entry.clock_skew if entry.connection is not None else None
            if skew is None:
                continue
            subject = f"{entry.record.kind} {entry.record.name}"
            if abs(skew) >= (OVER if before is not None else SAID):
                found[entry.id] = words(skew)
                if before is None:
                    events.append((subject, found[entry.id], True))
            elif before is not None:
                events.append((subject, "its clock agrees with the manager's again", False))
        if found != self.differs:
            self.differs = found
        return iter(events)


def words(skew: float) -> str:
    """``its clock is 3,600 s ahead of the manager's``."""
    return f"its clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} the manager's"
