# SPDX-License-Identifier: Apache-2.0
"""Whether all MUXes choose alike. :mod:`manager.controller.controller` owns one :class:`Pools`.

MUXes choose the same backend for a flow only if they have the same seed and the same default of slots. Each has both
from its own file and tells the manager a name that follows from the seed. One that differs works well by itself, and
breaks the connections that a router moves to it or away from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

CHOOSES = "chooses other backends than the others"
_SEED = "its seed differs"
_SLOTS = "its default of slots differs"


class Pools:
    """What MUXes said last of their seed and slots, and who differs. Not thread-safe; ``differs`` is never changed,
    only replaced, and may be read from any thread."""

    def __init__(self) -> None:
        self.differs: Mapping[str, str] = {}  #: by MUX, what is wrong with it
        self._told: dict[str, tuple[Any, Any]] = {}

    def heard(self, mux: str, row: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
        """What a MUX says of itself; returns events, as subject, text and whether they are bad."""
        told = row.get("pool"), row.get("slots")
        if self._told.get(mux) == told:
            return iter(())
        self._told[mux] = told
        return self._look()

    def left(self, mux: str) -> Iterator[tuple[str, str, bool]]:
        """It is not connected any more: nobody knows what its file says when it returns."""
        self._told.pop(mux, None)
        return self._look()

    def _look(self) -> Iterator[tuple[str, str, bool]]:
        muxes = {name: {"pool": pool, "slots": slots} for name, (pool, slots) in self._told.items()}
        before, self.differs = self.differs, disagreements(muxes)
        events = []
        for name in sorted(before.keys() | self.differs.keys()):
            if name in self.differs and name not in before:
                events.append((f"mux {name}", f"{CHOOSES}: {self.differs[name]}", True))
            elif name not in self.differs and name in self._told:
                events.append((f"mux {name}", "chooses the same backends as the others again", False))
        return iter(events)


def disagreements(muxes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By MUX, what is wrong with it; ``muxes``: what each said of itself. What most say is taken to be right; where no
    value has more than half, every MUX is named. One that does not tell (an older version) is not judged."""
    found: dict[str, list[str]] = {}
    for key, words in (("pool", _SEED), ("slots", _SLOTS)):
        told = {name: row[key] for name, row in muxes.items() if row.get(key) is not None}
        counts = Counter(told.values())
        if len(counts) < 2:
            continue
        (most, count), *_ = counts.most_common()
        right = {most} if 2 * count > len(told) else set()
        for name, value in told.items():
            if value not in right:
                others = sorted(other for other, its in told.items() if its != value)
                found.setdefault(name, []).append(f"{words} from that of {_some(others)}")
    return {
        name: f"{', and '.join(words)}: flows that routers move here or away break" for name, words in found.items()
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
