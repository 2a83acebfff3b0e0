# SPDX-License-Identifier: Apache-2.0
"""Which nodes have what they should, and why others do not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Set

from manager.controller.shared_state import Core


class Followers:
    """Waits for nodes that can follow."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def wait(self, seconds: float, vips: Set[str] | None = None) -> list[str]:
        """Waits until every node that can has what it should of these VIPs (None: of all); returns those that do not
        (see why_behind()). What happens meanwhile to other VIPs is not waited for."""
        wanted = self._core.planner.vips if vips is None else vips
        with self._core.planner.follow(wanted) as left:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds), self._core.change_made:
                    await self._core.change_made.wait_for(lambda: not left)
            left.intersection_update(self._core.planner.unsettled(left))
            # Who cannot follow was not waited for, and has none of it.
            behind = [
                entry.id
                for entry in self._core.hub.entries.values()
                if entry.behind and self._core.planner.lacking(entry, left if entry.may_follow else wanted)
            ]
            return sorted(behind + ["manager"] * bool(self._core.planner.unplanned(left)))

    def without(self, services: Iterable[str]) -> dict[str, str]:
        """Nodes that do not serve one of these, though they have followed, and why."""
        names = set(services)
        return {
            entry.id: "; ".join(f"it leaves out service {name}: {entry.left_out[name]}" for name in sorted(found))
            for entry in self._core.hub.entries.values()
            if (found := names & entry.left_out.keys())
        }

    def why_behind(self, nodes: Iterable[str]) -> dict[str, str]:
        """Of nodes that did not follow; whose reason is gone by now is not among them."""
        found = {node: self._core.hub.entries[node].behind for node in nodes if node in self._core.hub.entries}
        planning = {node: "it still plans; not every node has orders yet" for node in nodes if node == "manager"}
        return planning | {node: why for node, why in found.items() if why is not None}
