# SPDX-License-Identifier: Apache-2.0
"""Looks at time itself: leases, hold times, drains, announcements, clocks."""

from __future__ import annotations

import asyncio

from manager.controller.chronicle import Chronicle
from manager.controller.shared_state import Core

#: How often time itself is looked at: leases, hold times, late nodes; seconds.
TICK = 0.2


class Ticker:
    """Looks at everything that changes without being told."""

    def __init__(self, core: Core, chronicle: Chronicle) -> None:
        self._core = core
        self._chronicle = chronicle

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now, wall = self._core.clocks.steady(), self._core.clocks.wall()
            self._core.hub.tick()
            self._core.rates.tick(now, wall)
            self._look_at_drains(wall)
            self.look_at_announcements(now)
            self._look_at_clocks()
            self._core.planner.tick(now)
            if self._core.events.tick(wall):
                self._core.changes.tables("events")

    def _look_at_clocks(self) -> None:
        before = self._core.skews.differs
        self._chronicle.tell(self._core.skews.look(self._core.hub.entries.values()))
        if self._core.skews.differs is not before:
            self._core.changes.tables("muxes", "agents")

    def look_at_announcements(self, now: float) -> None:
        vips, events = self._core.announced.look(now, self._core.plan)
        self._chronicle.announced_anew(vips)
        self._chronicle.tell(events)

    def _look_at_drains(self, wall: float) -> None:
        for (service, backend), empty in self._core.emptied.look(
            wall, self._core.hub.entries.values(), self._core.plan.drains
        ):
            text = "no flow is left: it may be stopped" if empty else "has flows again, though it drains"
            self._chronicle.happened(f"backend {service}/{backend}", text)
            self._core.changes.services([service])
