# SPDX-License-Identifier: Apache-2.0
"""The manager's heart: puts its parts together, and passes on between them what happens.

    operators (manager.api) -> Writer: what they want, checked and committed ----v
    nodes (manager.nodes) -> NodeHub: what they say  -> NodeEvents ------------> Planner: what every node should have
                               ^                                               |  |
                               +------------ what they should have <-----------+  +-> Journal: what outlives us

What happens is told by :class:`Chronicle`, what only time changes is looked at by :class:`Ticker`; :class:`NodeOrders`
are of whole nodes, and :class:`Followers` says who has not followed yet. :class:`Core` is what they share.

One :class:`Controller` in one event loop, with a task for each part. It is what others read (:mod:`manager.api.view`,
:mod:`manager.api.metrics`), it hears what nodes say (:class:`manager.nodes.hub.NodeListener`), and it owns events and
rates. The store may fail: then changes are refused, but health and withdrawals go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NoReturn

from lb.daemon.clocks import Clocks
from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from lb.errors import VipmuxError
from lb.model import Address, ManagerSettings
from manager.controller import planner, writer
from manager.controller.change_feed import ChangeFeed
from manager.controller.chronicle import Chronicle
from manager.controller.followers import Followers
from manager.controller.node_events import NodeEvents
from manager.controller.node_orders import NodeOrders
from manager.controller.planner import Planner
from manager.controller.shared_state import Core
from manager.controller.ticker import Ticker
from manager.controller.writer import Applied, Made, Writer
from manager.desired.state import AsTold
from manager.nodes.hub import NodeHub
from manager.observed.announcements import Announced
from manager.observed.clock_skew import Skews
from manager.observed.drains import Emptied
from manager.observed.pool_agreement import Pools
from manager.observed.rates import Rates
from manager.observed.undone_repairs import Undone
from manager.observed.vip_path import Paths, targets
from manager.store.events import Events
from manager.store.interface import Store
from manager.store.journal import Journal, generation_of, memory_of
from manager.store.lineage import behind_of

__all__ = ["Applied", "Controller"]

#: How often it is looked whether something was revoked, seconds.
REVISIONS = 1.0

log = get_logger()


class Controller(Core):
    """See the module's text. Everything but start() and stop() runs in the event loop that it was started in."""

    def __init__(self, settings: ManagerSettings, store: Store, *, clocks: Clocks | None = None) -> None:
        self.chronicle = Chronicle(self)
        self.ticker = Ticker(self, self.chronicle)
        self.node_events = NodeEvents(self, self.chronicle, self.ticker)
        self.node_orders = NodeOrders(self, self.chronicle)
        self.followers = Followers(self)
        self.settings = settings
        self.clocks = clocks or Clocks.of_machine()
        self.events = Events(self.clocks.steady)
        self.emptied = Emptied()
        self.rates = Rates()
        self.pools = Pools()
        self.undone = Undone()
        self.skews = Skews()
        self.announced = Announced()
        self.paths: Paths | None = None
        self.changes = ChangeFeed()
        self.tasks = Tasks()
        self.hub: NodeHub
        self.planner: Planner
        self.journal = Journal(store, self.events, wrote=self._wrote, said=self.chronicle.store_problem)
        self.writer = Writer(
            store,
            self.clocks,
            writer.WriterSurroundings(
                rules=lambda: self.rules,
                as_told=self._as_told,
                made=self._made,
                reread=lambda: self.node_events.touched(None),
                locked=self._locked,
                happened=self.chronicle.happened,
            ),
        )
        self.store = store

    # -- start and stop -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reads the store and plans for what was; nobody is told of it before they connect."""
        self.changes.term = await self.store.next_term()
        standing = await self.store.standing()
        await self.writer.load()
        entries = await self.store.memory()
        generation = generation_of(entries) if self.desired.version else 0
        behind = behind_of(entries.get("behind", {}).get("nodes"), standing)
        self.hub = NodeHub(
            standing,
            generation,
            self.node_events,
            self.settings.hold,
            self.clocks,
            behind=behind,
            served=self._served,
            known=self._knows,
            known_vip=self._knows_vip,
        )
        self.hub.load(await self.store.nodes())
        self.events.load(await self.store.events())
        around = planner.PlannerSurroundings(
            desired=lambda: self.desired, planned=self.chronicle.planned, retired=self.writer.retire
        )
        self.planner = Planner(self.settings, self.hub, self.journal, self.clocks, around)
        self.planner.begin(memory_of(entries, self.desired, self.clocks))
        with contextlib.suppress(VipmuxError):  # then the task for it tries on, and says so
            if await self.writer.end_confirmation():
                self.planner.plan_all()  # before a node could hear of what was not confirmed
        self.journal.clock(self.clocks.boot)
        self.journal.count(self.hub.generation)
        await self.journal.write()
        if behind:
            self.chronicle.happened("manager", behind.sentence, bad=True)
        for name, held in self.writer.held.items():
            how = "is served without it" if held.served else "is not served"
            self.chronicle.happened(
                f"service {name}", f"{how}, for this version does not take it: {held.why}", bad=True
            )
        self.tasks.fatal("plan", self.planner.run)
        self.tasks.fatal("clock", self.ticker.run)
        self.tasks.fatal("changes", self.writer.run)
        self.tasks.restarted("retired services", self.writer.purges)
        self.tasks.restarted("confirmations", self.writer.confirmations)
        self.tasks.restarted("journal", self.journal.run)
        self.tasks.restarted("revisions", self._revisions)
        if self.settings.path_interval is not None:
            self.paths = Paths(
                self.settings.path_interval, lambda: targets(self.plan, self.announced.by.keys()), self.announced.path
            )
            self.tasks.restarted("paths to VIPs", self.paths.run)

    async def stop(self) -> None:
        await self.tasks.close()
        self.writer.close()
        self.events.tick(self.clocks.wall(), last=True)
        await self.journal.write()

    async def heartbeat(self) -> None:
        """Returns once the store's thread has answered and the plan has had a turn.

        A store that fails has answered: health and withdrawals go on without it.
        """
        with contextlib.suppress(VipmuxError):
            await self.store.nodes()
        before = self.planner.turns
        self.planner.wake()
        async with self.change_made:
            await self.change_made.wait_for(lambda: self.planner.turns > before)

    async def failed(self) -> NoReturn:
        """Returns never; raises TaskFailedError once a task failed that nothing goes on without."""
        await self.tasks.failed()

    # -- what operators want (manager.controller.writer)
    # -------------------------------------------------------------------

    def _locked(self) -> str | None:
        """Why no change is taken at all."""
        return self.hub.behind.sentence if self.hub.behind else None

    async def _revisions(self) -> None:
        """Looks what another process (lb-manager revoke) did that nobody may forget; returns never."""
        while True:
            await asyncio.sleep(REVISIONS)
            with contextlib.suppress(VipmuxError):  # that the store fails is said where it is written
                found = await self.store.standing()
                if found.term == self.hub.term and found.revision > self.hub.revision:  # else it is another's to tell
                    self.hub.turn_page(found.revision)
                    self.hub.renumber()

    def _as_told(self) -> AsTold:
        return self.planner.as_told()

    def _made(self, made: Made) -> None:
        """A change lasts. Planning comes first: whatever becomes of the words about it, nodes are told."""
        change, terms, version = made.change, made.terms, made.version
        self.hub.turn_page(self.hub.revision + 1)
        self.node_events.touched(change.vips())
        self.changes.services({*change.names, *change.old.retiring, *change.new.retiring, *change.drained()})
        self.changes.tables("history", "status")
        log.info("changed", version=version, who=terms.who, what=change.what, why=terms.why or None)
        self.chronicle.changed(made)
        if terms.confirm is not None:
            text = f"is rolled back in {terms.confirm:g} s unless it is confirmed; it is of {terms.who}"
            self.chronicle.happened(f"version {version}", text)

    # -- what happens (manager.nodes.hub.NodeListener) ----------------------------------------------------------

    def _served(self, address: Address) -> bool:
        return f"{address}/{address.max_prefixlen}" in self.desired.by_vip

    def _knows(self, service: str) -> bool:
        return service in self.desired.services or service in self.desired.retiring

    def _knows_vip(self, vip: str) -> bool:
        return vip in self.desired.by_vip or vip in self.desired.retiring_by_vip

    # -- what the plan and the journal say ----------------------------------------------------------------------

    def _wrote(self, vips: set[str]) -> None:
        self.planner.written(vips)
