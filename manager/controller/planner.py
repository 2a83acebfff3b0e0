# SPDX-License-Identifier: Apache-2.0
"""Plans what was touched, and has nodes told: the part of the manager that a backend's end must not wait in.

Everything that happens marks the VIPs that it touches (:meth:`Planner.touched`). One task then takes turns: what is
small first, then a bounded part of what is large or only goes on (acknowledgements), so that ten thousand services that
come at once hold up a verdict for one turn at most. A turn is plain work in the event loop: it awaits neither the disk
(:class:`manager.store.journal.Journal` writes beside it) nor an operator's change
(:class:`manager.controller.writer.Writer`), nor anybody else. Only a VIP's new announcements are held back until they
are written; the rest of the same plan is told at once. A node owes an acknowledgement of the VIPs that it is told
something new of, and no others: else what is planned often would be planned again with each answer, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from lb.daemon.clocks import Clocks
from lb.daemon.log import get_logger
from lb.daemon.supervise import describe
from lb.model import BackendState, ManagerSettings, Service
from lb.node.messages import NodeState
from manager.desired.state import AsTold, Desired
from manager.nodes.hub import Entry, NodeHub
from manager.plan.health import Reports
from manager.plan.model import AGENT, MUX, Plan, PlanCache, PlanMemory, VipPlan, World
from manager.plan.node_states import replaced
from manager.plan.plan import coupled, plan, replan
from manager.store.journal import Grant, Journal

#: Of something large, how many VIPs are planned in one turn.
TURN = 25
#: So many at once are something large.
LARGE = 50
#: A VIP that could not be planned is tried again after so long, seconds; and of so many the log has the traceback.
AGAIN, TRACEBACKS = 10.0, 3
#: Tables of services that are gone are cleared away after so many plans.
_TABLES_KEPT = 1000

log = get_logger()


@dataclass(frozen=True, slots=True)
class PlannerSurroundings:
    """What a planner asks of the rest of the manager, and tells it; all of it in the event loop, at once."""

    desired: Callable[[], Desired]
    planned: Callable[[Plan, Plan, Collection[str]], None]  #: the plan before, the one now, and for which VIPs
    retired: Callable[[list[str]], None]  #: keys of services that nobody has any more


class Planner:
    """See the module's text. Used in the event loop; :meth:`run` is its task."""

    def __init__(
        self, settings: ManagerSettings, hub: NodeHub, journal: Journal, clocks: Clocks, around: PlannerSurroundings
    ) -> None:
        self.plan = Plan()
        self.reports = Reports()
        #: Notified after each turn, for who waits for nodes to follow.
        self.turned = asyncio.Condition()
        self.turns = 0
        self._settings = settings
        self._hub = hub
        self._journal = journal
        self._clocks = clocks
        self._around = around
        self._tables = PlanCache()
        self._touched: set[str] = set()
        self._followed: set[str] = set()  # touched as well, by who acknowledged what it was told of them
        self._backlog: set[str] = set()  # touched as well, by something large
        self._written: set[str] = set()  # VIPs whose announcements were held back, and need be no longer
        self._due: dict[str, float] = {}  # VIPs that time alone makes another plan of, and when (steady clock)
        self._large_next = False
        self._awaited: list[set[str]] = []  # see follow()
        self._wake = asyncio.Event()
        self._plans = 0

    # -- what happens -------------------------------------------------------------------------------------------

    def touched(self, vips: Iterable[str] | None) -> None:
        """These VIPs (None: all) are to be planned anew."""
        found = self.vips if vips is None else set(vips)
        (self._touched if len(found) <= LARGE else self._backlog).update(found)
        self._wake.set()

    def acknowledged(self, vips: Iterable[str]) -> None:
        """A node has what it was told of these VIPs, so the next step may be due. Beside something large these are
        many, from every node, and a verdict passes them."""
        self._followed.update(vips)
        self._wake.set()

    def written(self, vips: set[str]) -> None:
        """New announcements of these VIPs are on the disk."""
        self._written |= vips
        self._wake.set()

    def wake(self) -> None:
        """A turn is wanted, whether there is something to plan or not."""
        self._wake.set()

    def tick(self, now: float) -> None:
        """Time passes, by the steady clock."""
        silent = self.reports.expire(now)
        if silent:
            services = self._around.desired().services
            self.touched({str(services[name].vip) for name in silent if name in services})
        due = [vip for vip, at in self._due.items() if at <= now]
        if due:
            self.touched(due)

    @property
    def busy(self) -> bool:
        """Whether nodes may still be to be told of something that happened."""
        waiting = self._touched or self._followed or self._backlog
        return bool(waiting or self._written or self._wake.is_set() or self._journal.unwritten)

    # -- for who waits for nodes --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def follow(self, vips: Set[str]) -> Iterator[set[str]]:
        """Those of these VIPs that nodes have not followed in yet. Each leaves the set for good once nothing is to come
        of it: what happens to it, or to others, afterwards is another's to wait for. So whoever waits for the set to be
        empty is done in the end, however much is reported meanwhile. ``turned`` is notified of it."""
        left = self.unsettled(vips)
        self._awaited.append(left)
        try:
            yield left
        finally:
            self._awaited = [other for other in self._awaited if other is not left]

    def unsettled(self, vips: Set[str]) -> set[str]:
        """Of these VIPs those that are to be planned, or written, or of which a node that can has not acknowledged what
        it was told."""
        found = self.unplanned(vips)
        for entry in self._hub.entries.values():
            if entry.may_follow:
                found |= self.lacking(entry, vips)
        return found

    def lacking(self, entry: Entry, vips: Set[str]) -> Set[str]:
        """Of these VIPs those of which a node may not have what it was told."""
        return entry.lacks(vips, self._agents)

    def unplanned(self, vips: Set[str]) -> set[str]:
        """Of these VIPs those that nodes may still be to be told of, whatever they acknowledge."""
        found = {vip for _, vip in self._journal.unwritten if vip in vips}
        for waiting in (self._touched, self._followed, self._backlog, self._written):
            found |= waiting & vips
        return found

    def _agents(self, vip: str) -> Container[str]:
        """Agents that have something of a VIP."""
        found = self.plan.vips.get(vip)
        return found.agents if found is not None else ()

    @property
    def vips(self) -> set[str]:
        """All that there are, or were a moment ago."""
        desired = self._around.desired()
        return {*self.plan.vips, *desired.by_vip, *desired.retiring_by_vip}

    def _settle(self, planned: Set[str]) -> None:
        """At the end of each turn, for then what was planned in it is not touched again yet."""
        for left in self._awaited:
            looked_at = left if len(left) <= LARGE else left & planned  # of many, each has its turn
            left.difference_update(looked_at - self.unsettled(looked_at))

    # -- turns --------------------------------------------------------------------------------------------------

    def begin(self, memory: PlanMemory) -> None:
        """Plans everything, as what was so before: it is no event. Nobody could have been told anything yet."""
        self.plan = Plan(memory=memory)
        self.plan_all()
        self._journal.trim(memory, self.plan.memory)

    def plan_all(self) -> None:
        for waiting in (self._touched, self._followed, self._backlog):
            waiting.clear()
        old, self.plan = self.plan, plan(self._world())
        vips = {*old.vips, *self.plan.vips}
        self._note_due(vips)
        self._say_failed(old)
        self._journal.note(old, self.plan, vips)
        self._tell(vips)

    async def run(self) -> None:
        """Takes turns; returns never."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._settle(self._turn())
            self.turns += 1
            async with self.turned:
                self.turned.notify_all()
            if self._touched or self._followed or self._backlog:
                self._wake.set()
                await asyncio.sleep(0)  # whoever else has something to do

    def _turn(self) -> Set[str]:
        """Plans a bounded part of what was touched, and tells the nodes; the VIPs that it was about."""
        touched = self._next()
        written, self._written = self._written, set()
        news: set[str] = set()
        if touched or self._nodes_differ():
            touched = coupled(self.plan, self._around.desired(), touched)
            old, self.plan = self.plan, replan(self.plan, self._world(), touched)
            news = {vip for vip in touched if _told(old.vips.get(vip)) != _told(self.plan.vips.get(vip))}
            self._note_due(touched)
            self._say_failed(old)
            self._journal.note(old, self.plan, touched)
            self._around.planned(old, self.plan, touched)
            self._around.retired([key for vip in touched if vip in self.plan.vips for key in self.plan.vips[vip].done])
            self._forget_tables()
        elif not written:
            return written
        self._tell(news | written)
        return touched | written

    def _next(self) -> set[str]:
        """What is planned in this turn: by turns what is small, and of the rest what goes on before what begins, so
        that none starves another."""
        if self._touched and not (self._large_next and (self._followed or self._backlog)):
            touched, self._touched = self._touched, set()
            self._large_next = True
            return touched
        self._large_next = False
        touched = {self._followed.pop() for _ in range(min(TURN, len(self._followed)))}
        return touched | {self._backlog.pop() for _ in range(min(TURN - len(touched), len(self._backlog)))}

    def _say_failed(self, old: Plan) -> None:
        """Once for each reason; the events have it too (manager.store.events)."""
        news = {
            vip: why
            for vip, why in self.plan.failed.items()
            if vip not in old.failed or describe(old.failed[vip]) != describe(why)
        }
        for count, (vip, why) in enumerate(news.items()):
            if count == TRACEBACKS:
                log.error("more VIPs cannot be planned", number=len(news) - count)
                return
            log.error("VIP not planned", vip=vip, reason=describe(why), then="it stays as it is", exc_info=why)

    def _tell(self, vips: Collection[str]) -> None:
        states = _without(self.plan.states, self._journal.unwritten)
        if self._hub.want(states, vips, complete=not self._backlog):
            self._journal.count(self._hub.generation)

    def _world(self) -> World:
        return World(
            self._around.desired(),
            self._hub.of(MUX),
            self._hub.of(AGENT),
            self._hub.agent_at,
            self.reports,
            self.plan.memory,
            self._clocks.steady(),
            self._settings.withdraw_cap,
            tables=self._tables,
            wall=self._clocks.wall(),
        )

    def _note_due(self, vips: Iterable[str]) -> None:
        for vip in vips:
            found = self.plan.vips.get(vip)
            due = found.due if found is not None else None
            if vip in self.plan.failed:
                due = self._clocks.steady() + AGAIN
            if due is None:
                self._due.pop(vip, None)
            else:
                self._due[vip] = due

    def _nodes_differ(self) -> bool:
        """Are there nodes without a state, or states without a node?"""
        drains = self._around.desired().mux_drains.keys() & self._hub.of(MUX).keys()
        return self.plan.states.keys() != self._hub.entries.keys() or self.plan.drains.keys() != drains

    def _forget_tables(self) -> None:
        self._plans += 1
        if self._plans % _TABLES_KEPT == 0:
            desired = self._around.desired()
            self._tables.keep_only(desired.services)
            self.reports.keep_only(desired.has_backend)

    # -- for who changes the desired state ----------------------------------------------------------------------

    def as_told(self) -> AsTold:
        """Gives a service its backends as MUXes know them, for the time that it retires; by the plan of this moment,
        and from any thread."""
        vips = self.plan.vips

        def told(service: Service) -> Service:
            found = vips.get(str(service.vip))
            states = {item.key: item.state for item in found.backends} if found else {}

            def state(name: str, address: object, said: BackendState) -> BackendState:
                return states.get((service.name, name, str(address)), said)

            backends = tuple(replace(one, state=state(one.name, one.address, one.state)) for one in service.backends)
            return replace(service, backends=backends)

        return told


def _told(found: VipPlan | None) -> tuple[object, ...] | None:
    """What nodes are told of a VIP."""
    if found is None:
        return None
    return found.tables, found.agents, found.granted, found.announcement, found.panic


def _without(states: Mapping[str, NodeState], grants: Collection[Grant]) -> Mapping[str, NodeState]:
    """The states, but without these announcements."""
    if not grants:
        return states
    held: dict[str, dict[str, None]] = {}
    for mux, vip in grants:
        held.setdefault(f"{MUX}:{mux}", {})[vip] = None
    found: dict[str, NodeState] = dict(states)
    for id_, vips in held.items():
        state: Mapping[str, Mapping[str, Any]] = states.get(id_, {})
        if "announcements" in state:
            left = replaced(state["announcements"], vips, {})
            rest = {section: entries for section, entries in state.items() if section != "announcements"}
            found[id_] = {**rest, "announcements": left} if left else rest
    return found
