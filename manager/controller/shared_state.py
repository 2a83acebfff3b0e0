# SPDX-License-Identifier: Apache-2.0
"""What the parts of the controller share: the manager's own parts, and what is wanted and planned just now."""

from __future__ import annotations

import asyncio

from lb.daemon.clocks import Clocks
from lb.daemon.supervise import Tasks
from lb.model import ManagerSettings
from manager.controller.change_feed import ChangeFeed
from manager.controller.planner import Planner
from manager.controller.writer import Writer
from manager.desired.state import Desired, Rules
from manager.nodes.hub import NodeHub
from manager.observed.announcements import Announced
from manager.observed.clock_skew import Skews
from manager.observed.drains import Emptied
from manager.observed.pool_agreement import Pools
from manager.observed.rates import Rates
from manager.observed.undone_repairs import Undone
from manager.observed.vip_path import Paths
from manager.plan.model import MUX, Plan
from manager.store.events import Events
from manager.store.interface import Store
from manager.store.journal import Journal


class Core:
    """Owned by :class:`manager.controller.controller.Controller`, which sets all of it."""

    settings: ManagerSettings
    clocks: Clocks
    events: Events
    emptied: Emptied
    rates: Rates
    pools: Pools
    undone: Undone
    skews: Skews
    announced: Announced
    paths: Paths | None
    changes: ChangeFeed
    tasks: Tasks
    hub: NodeHub
    planner: Planner
    journal: Journal
    writer: Writer
    store: Store

    @property
    def desired(self) -> Desired:
        return self.writer.desired

    @property
    def plan(self) -> Plan:
        return self.planner.plan

    @property
    def change_made(self) -> asyncio.Condition:
        """Notified after each turn of the plan."""
        return self.planner.turned

    @property
    def rules(self) -> Rules:
        """What is allowed just now; a value, for whichever thread."""
        muxes = self.hub.of(MUX)
        without6 = tuple(sorted(muxes)) if not any(mux.address6 for mux in muxes.values()) else ()
        return Rules(self.settings.vip_prefixes, self.hub.addresses(), without6)
