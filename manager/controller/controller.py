# SPDX-License-Identifier: Apache-2.0
"""The manager's heart: puts its parts together, and passes on between them what happens.

    operators (manager.api) -> Writer: what they want, checked and committed ----v
    nodes (manager.nodes.stream) -> NodeHub: what they say  -> Controller ------> Planner: what every node should have
                                  ^                                             |  |
                                  +---------- what they should have <-----------+  +-> Journal: what outlives us

One :class:`Controller` in one event loop, with a task for each part. It is what others read (:mod:`manager.api.view`,
:mod:`manager.api.metrics`), it hears what nodes say (:class:`manager.nodes.hub.NodeListener`), and it owns events and
rates. The store may fail: then changes are refused, but health and withdrawals go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from ipaddress import ip_address
from typing import Any, NoReturn

from lb.daemon.clocks import Clocks
from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from lb.errors import NotFoundError, VipmuxError
from lb.model import Address, ManagerSettings, Protocol
from lb.node.messages import HealthMessage
from manager.controller import planner, writer
from manager.controller.change_feed import ChangeFeed
from manager.controller.planner import Planner
from manager.controller.writer import Applied, Made, Writer
from manager.desired.state import AsTold, Desired, Rules
from manager.nodes.hub import Entry, NodeHub
from manager.observed.announcements import Announced
from manager.observed.clock_skew import Skews
from manager.observed.drains import Emptied
from manager.observed.pool_agreement import Pools
from manager.observed.rates import Rates
from manager.observed.undone_repairs import Undone
from manager.observed.vip_path import Paths, targets
from manager.plan.health import Report, Source
from manager.plan.model import AGENT, MUX, Plan
from manager.store.events import Events, differences
from manager.store.interface import NodeRecord, Store, VersionLine
from manager.store.journal import Journal, generation_of, memory_of
from manager.store.lineage import behind_of, kept
from manager.trust.tokens import forgotten

__all__ = ["Applied", "Controller"]

#: How often time itself is looked at: leases, hold times, late nodes; seconds.
TICK = 0.2
#: Leases of nodes are bounded by the manager's own setting, and by this from below.
LEASE_MIN = 1.0
#: How often it is looked whether something was revoked, seconds.
REVISIONS = 1.0
#: Of one plan, or one change, so many lines are worth a line of the log, or an event, each.
LINES = 100

log = get_logger()


class Controller:
    """See the module's text. Everything but start() and stop() runs in the event loop that it was started in."""

    def __init__(self, settings: ManagerSettings, store: Store, *, clocks: Clocks | None = None) -> None:
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
        self.journal = Journal(store, self.events, wrote=self._wrote, said=self._say_store)
        self.writer = Writer(
            store,
            self.clocks,
            writer.WriterSurroundings(
                rules=lambda: self.rules,
                as_told=self._as_told,
                made=self._made,
                reread=lambda: self.touched(None),
                locked=self._locked,
                happened=self.happened,
            ),
        )
        self._store = store

    # -- start and stop -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reads the store and plans for what was; nobody is told of it before they connect."""
        self.changes.term = await self._store.next_term()
        standing = await self._store.standing()
        await self.writer.load()
        entries = await self._store.memory()
        generation = generation_of(entries) if self.desired.version else 0
        behind = behind_of(entries.get("behind", {}).get("nodes"), standing)
        self.hub = NodeHub(
            standing,
            generation,
            self,
            self.settings.hold,
            self.clocks,
            behind=behind,
            served=self._served,
            known=self._knows,
            known_vip=self._knows_vip,
        )
        self.hub.load(await self._store.nodes())
        self.events.load(await self._store.events())
        around = planner.PlannerSurroundings(
            desired=lambda: self.desired, planned=self._planned, retired=self.writer.retire
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
            self.happened("manager", behind.sentence, bad=True)
        for name, held in self.writer.held.items():
            how = "is served without it" if held.served else "is not served"
            self.happened(f"service {name}", f"{how}, for this version does not take it: {held.why}", bad=True)
        self.tasks.fatal("plan", self.planner.run)
        self.tasks.fatal("clock", self._ticks)
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
            await self._store.nodes()
        before = self.planner.turns
        self.planner.wake()
        async with self.change_made:
            await self.change_made.wait_for(lambda: self.planner.turns > before)

    async def failed(self) -> NoReturn:
        """Returns never; raises TaskFailedError once a task failed that nothing goes on without."""
        await self.tasks.failed()

    # -- what others read ---------------------------------------------------------------------------------------

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

    # -- what operators want (manager.controller.writer)
    # -------------------------------------------------------------------

    async def apply(self, given: str | Sequence[object], who: str, **how: Any) -> Applied:
        """See :meth:`Writer.apply`."""
        return await self.writer.apply(given, who, **how)

    async def rollback(self, to: int | None, who: str, **how: Any) -> Applied:
        """See :meth:`Writer.rollback`."""
        return await self.writer.rollback(to, who, **how)

    async def confirm(self, version: int | None, who: str, *, why: str = "") -> Applied:
        return await self.writer.confirm(version, who, why=why)

    async def history(self, limit: int) -> list[VersionLine]:
        """The latest first."""
        return await self.writer.history(limit)

    async def delete_service(self, name: str, who: str, *, why: str = "") -> Applied:
        return await self.writer.delete_service(name, who, why=why)

    async def drain_backend(self, service: str, backend: str, who: str, *, drain: bool, **how: Any) -> Applied:
        """See :meth:`Writer.drain_backend`."""
        return await self.writer.drain_backend(service, backend, who, drain=drain, **how)

    async def drain_host(self, host: str, who: str, *, drain: bool, **how: Any) -> Applied:
        """All backends on an agent's host, or at an address. See :meth:`Writer.drain_host`."""
        return await self.writer.drain_host(host, self.addresses_of(host), who, drain=drain, **how)

    def addresses_of(self, host: str) -> tuple[Address, ...]:
        """Of an agent's host, or what is an address itself."""
        agents = self.hub.of(AGENT)
        if host in agents:
            return tuple(address for address in (agents[host].address, agents[host].address6) if address is not None)
        try:
            return (ip_address(host),)
        except ValueError:
            known = f"known are {', '.join(sorted(agents))}" if agents else "none has joined yet"
            raise NotFoundError(f'there is no agent "{host[:100]}", and it is no address; {known}') from None

    async def set_weight(self, service: str, backend: str, weight: object, who: str, **how: Any) -> Applied:
        """See :meth:`Writer.set_weight`."""
        return await self.writer.set_weight(service, backend, weight, who, **how)

    async def drain_mux(self, mux: str, who: str, *, drain: bool, why: str = "") -> Applied:
        self._known(MUX, mux)
        return await self.writer.drain_mux(mux, who, drain=drain, why=why)

    async def forget_node(self, kind: str, name: str, who: str) -> None:
        """A node that will not come back."""
        self._known(kind, name)
        self.hub.may_forget(kind, name)
        self.journal.forget(kind, name)  # else it would be written once more, after it is gone
        # The disk comes first: what is forgotten here alone would be there again after the next start.
        await self._store.forget_node(kind, name, forgotten(kind, name, self.clocks.wall(), who))
        self.hub.forget(kind, name)
        self.planner.reports.forget(Source.TUNNEL if kind == MUX else Source.AGENT, name)
        self.happened(f"{kind} {name}", f"forgotten by {who}")
        if kind == MUX and name in self.desired.mux_drains:
            await self.writer.forget_drain(name, who)

    def _known(self, kind: str, name: str) -> None:
        names = [entry.record.name for entry in self.hub.entries.values() if entry.record.kind == kind]
        if name not in names:
            word = "MUX" if kind == MUX else kind
            known = f"known are {', '.join(sorted(names))}" if names else "none has joined yet"
            raise NotFoundError(f'there is no {word} "{name}"; {known}')

    def _locked(self) -> str | None:
        """Why no change is taken at all."""
        return self.hub.behind.sentence if self.hub.behind else None

    def fell_behind(self) -> None:
        self.journal.behind(kept(self.hub.behind))
        self.changes.tables("status", "muxes", "agents")

    async def _revisions(self) -> None:
        """Looks what another process (lb-manager revoke) did that nobody may forget; returns never."""
        while True:
            await asyncio.sleep(REVISIONS)
            with contextlib.suppress(VipmuxError):  # that the store fails is said where it is written
                found = await self._store.standing()
                if found.term == self.hub.term and found.revision > self.hub.revision:  # else it is another's to tell
                    self.hub.turn_page(found.revision)
                    self.hub.renumber()

    def _as_told(self) -> AsTold:
        return self.planner.as_told()

    def _made(self, made: Made) -> None:
        """A change lasts. Planning comes first: whatever becomes of the words about it, nodes are told."""
        change, terms, version = made.change, made.terms, made.version
        self.hub.turn_page(self.hub.revision + 1)
        self.touched(change.vips())
        self.changes.services({*change.names, *change.old.retiring, *change.new.retiring, *change.drained()})
        self.changes.tables("history", "status")
        log.info("changed", version=version, who=terms.who, what=change.what, why=terms.why or None)
        self._say_changed(made)
        if terms.confirm is not None:
            text = f"is rolled back in {terms.confirm:g} s unless it is confirmed; it is of {terms.who}"
            self.happened(f"version {version}", text)

    def _say_changed(self, made: Made) -> None:
        """An operator's change is an event of all that it touches; of a large one the audit has the rest."""
        terms, at = made.terms, self.clocks.wall()
        # What was taken back is bad news, and said as such.
        done = [line for line in made.change.lines if line.action not in ("unchanged", "rolled back")]
        for line in done[:LINES]:
            details = f": {', '.join(line.details)}" if line.details else ""
            why = f" ({terms.why})" if terms.why else ""
            self.events.add(at, line.name, f"{line.action} by {terms.who}{details}{why}", always=True)
        if len(done) > LINES:
            more = f"and {len(done) - LINES:,} more were changed by {terms.who}; `lb get audit` has all of it"
            self.events.add(at, f"version {made.version}", more, always=True)
        self.changes.tables("events")

    # -- what happens (manager.nodes.Listener) ------------------------------------------------------------------

    def touched(self, vips: Iterable[str] | None) -> None:
        self.planner.touched(vips)

    def acknowledged(self, vips: Iterable[str]) -> None:
        self.planner.acknowledged(vips)

    def touched_at(self, addresses: Iterable[Address]) -> None:
        known = self.desired
        names = {name for address in addresses for name in known.by_address.get(address, ())}
        self.touched({*self._vips_of(names), *known.retiring_by_vip})

    def heard(self, kind: str, name: str, message: HealthMessage) -> None:
        """A node's reports on backends that it was told of; an agent's only of its own host's."""
        source = Source.TUNNEL if kind == MUX else Source.AGENT
        found, passed_over = {}, 0
        addresses = self._addresses({report.service for report in message.reports})
        for report in message.reports:
            address = addresses.get((report.service, report.backend))
            if address is None or (source is Source.AGENT and self.hub.agent_at.get(address) != name):
                passed_over += 1
                continue
            found[report.service, report.backend] = Report(
                report.up,
                report.reason,
                report.since,
                address=address,
                host=report.host,
                refused=report.refused and not report.up,
            )
        self.planner.reports.pass_over(source, name, passed_over)
        lease = max(LEASE_MIN, min(message.lease, self.settings.health_lease))
        reports = self.planner.reports
        turned = reports.turned(source, name, found) if source is Source.TUNNEL else ()
        self.touched(self._vips_of(reports.heard(source, name, found, self.clocks.steady(), lease)))
        if turned:  # it tells of the host as well, see manager.plan.verdicts
            self.touched(self._vips_of(self._without_other_word({addresses[key] for key in turned})))

    def _without_other_word(self, hosts: Iterable[Address]) -> set[str]:
        """Services that no MUX asks through a tunnel, on hosts whose agent is away. Of a host that never had one nobody
        asks whether it is lost."""
        known, agent_at = self.desired, self.hub.agent_at
        away = [host for host in hosts if host in agent_at and not self.hub.is_connected(AGENT, agent_at[host])]
        names = {name for address in away for name in known.by_address.get(address, ())}
        services = [known.services[name] for name in names]
        return {it.name for it in services if it.probe is None or it.protocol is Protocol.UDP}

    def _addresses(self, services: Iterable[str]) -> dict[tuple[str, str], Address]:
        """Of the backends of these services. Those of deleted ones that nodes still have count as well: they may come
        back before a node has heard that they went, and it would not say again what it has said."""
        names, known = set(services), self.desired
        found = [service for service in known.retiring.values() if service.name in names]
        found += [known.services[name] for name in names if name in known.services]
        return {(service.name, backend.name): backend.address for service in found for backend in service.backends}

    def _served(self, address: Address) -> bool:
        return f"{address}/{address.max_prefixlen}" in self.desired.by_vip

    def _knows(self, service: str) -> bool:
        return service in self.desired.services or service in self.desired.retiring

    def _knows_vip(self, vip: str) -> bool:
        return vip in self.desired.by_vip or vip in self.desired.retiring_by_vip

    def _vips_of(self, services: Iterable[str]) -> set[str]:
        known = self.desired.services
        return {str(known[name].vip) for name in services if name in known}

    def happened(self, subject: str, text: str, *, bad: bool = False) -> None:
        self.events.add(self.clocks.wall(), subject, text, bad=bad)
        self.changes.tables("events")
        say = log.warning if bad else log.info
        say("event", subject=subject, text=text)

    def _tell(self, events: Iterable[tuple[str, str, bool]]) -> None:
        for subject, text, bad in events:
            self.happened(subject, text, bad=bad)

    def told(self, entry: Entry, body: Mapping[str, Any]) -> None:
        if isinstance(row := body.get(entry.record.kind), dict):
            self._tell(self.undone.heard(f"{entry.record.kind} {entry.record.name}", row.get("repaired")))
        if entry.record.kind == MUX:
            self.changes.counted(self.rates.heard(entry.record.name, body, self.clocks.steady()))
            if isinstance(mux := body.get("mux"), dict):
                self._tell(self.pools.heard(entry.record.name, mux))
            self._hear_announcements(entry)
            self.changes.tables("muxes", *({"announcements"} & body.keys()))
        else:
            self.changes.tables("agents")

    def left(self, entry: Entry) -> None:
        if entry.record.kind == MUX:
            self.rates.left(entry.record.name)
            self._tell(self.pools.left(entry.record.name))

    def looked(self, entry: Entry) -> None:
        if entry.record.kind == MUX:
            self._hear_announcements(entry)
        self.changes.tables("muxes" if entry.record.kind == MUX else "agents", "announcements", "status")

    def _hear_announcements(self, entry: Entry) -> None:
        if vips := self.announced.told(entry):
            self._announced_anew(vips)
            self._look_at_announcements(self.clocks.steady())  # what is well again is so at once

    def _announced_anew(self, vips: Iterable[str]) -> None:
        """Of these VIPs others announce, or something else is to be said."""
        known = self.desired.by_vip
        self.changes.services(name for vip in vips for name in known.get(vip, ()))

    def keep(self, record: NodeRecord) -> None:
        self.journal.node(record)
        self.planner.wake()

    # -- what the plan and the journal say ----------------------------------------------------------------------

    def _planned(self, old: Plan, new: Plan, vips: Collection[str]) -> None:
        """For the events, and for who watches."""
        at = self.clocks.wall()
        for count, (subject, text, bad) in enumerate(differences(old, new, sorted(vips))):
            self.events.add(at, subject, text, bad=bad)
            if bad or count < LINES:
                (log.warning if bad else log.info)("event", subject=subject, text=text)
            elif count == LINES:
                log.info("more events of this kind; `lb get events` has them")
            self.changes.tables("events")
        changed = {
            found: None
            for vip in vips
            if old.vips.get(vip) is not new.vips.get(vip)
            for plan in (old, new)
            if vip in plan.vips
            for found in plan.vips[vip].tables
        }
        if self.announced.planned(old, new, vips):
            changed |= dict.fromkeys(self.desired.services)
        self.changes.services(changed)
        self.changes.tables("muxes", "agents", "announcements", "status")
        self.changes.forget(self.desired.services, self.desired.retiring)

    def _wrote(self, vips: set[str]) -> None:
        self.planner.written(vips)

    def _say_store(self, problem: str | None) -> None:
        if problem is None:
            self.happened("manager", "writes its store again")
        else:
            self.happened("manager", f"cannot write its store, and goes on without: {problem}", bad=True)

    # -- who waits for nodes ------------------------------------------------------------------------------------

    async def followed(self, seconds: float, vips: Set[str] | None = None) -> list[str]:
        """Waits until every node that can has what it should of these VIPs (None: of all); returns those that do not
        (see why_behind()). What happens meanwhile to other VIPs is not waited for."""
        wanted = self.planner.vips if vips is None else vips
        with self.planner.follow(wanted) as left:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds), self.change_made:
                    await self.change_made.wait_for(lambda: not left)
            left.intersection_update(self.planner.unsettled(left))
            # Who cannot follow was not waited for, and has none of it.
            behind = [
                entry.id
                for entry in self.hub.entries.values()
                if entry.behind and self.planner.lacking(entry, left if entry.may_follow else wanted)
            ]
            return sorted(behind + ["manager"] * bool(self.planner.unplanned(left)))

    def without(self, services: Iterable[str]) -> dict[str, str]:
        """Nodes that do not serve one of these, though they have followed, and why."""
        names = set(services)
        return {
            entry.id: "; ".join(f"it leaves out service {name}: {entry.left_out[name]}" for name in sorted(found))
            for entry in self.hub.entries.values()
            if (found := names & entry.left_out.keys())
        }

    def why_behind(self, nodes: Iterable[str]) -> dict[str, str]:
        """Of nodes that did not follow; whose reason is gone by now is not among them."""
        found = {node: self.hub.entries[node].behind for node in nodes if node in self.hub.entries}
        planning = {node: "it still plans; not every node has orders yet" for node in nodes if node == "manager"}
        return planning | {node: why for node, why in found.items() if why is not None}

    # -- time ---------------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now, wall = self.clocks.steady(), self.clocks.wall()
            self.hub.tick()
            self.rates.tick(now, wall)
            self._look_at_drains(wall)
            self._look_at_announcements(now)
            self._look_at_clocks()
            self.planner.tick(now)
            if self.events.tick(wall):
                self.changes.tables("events")

    def _look_at_clocks(self) -> None:
        before = self.skews.differs
        self._tell(self.skews.look(self.hub.entries.values()))
        if self.skews.differs is not before:
            self.changes.tables("muxes", "agents")

    def _look_at_announcements(self, now: float) -> None:
        vips, events = self.announced.look(now, self.plan)
        self._announced_anew(vips)
        self._tell(events)

    def _look_at_drains(self, wall: float) -> None:
        for (service, backend), empty in self.emptied.look(wall, self.hub.entries.values(), self.plan.drains):
            text = "no flow is left: it may be stopped" if empty else "has flows again, though it drains"
            self.happened(f"backend {service}/{backend}", text)
            self.changes.services([service])
