# SPDX-License-Identifier: Apache-2.0
"""The manager's heart: holds the desired state, hears what happens, plans, and has nodes told.

One :class:`Controller` in one event loop. Operators' changes come by :mod:`manager.api` and are committed to the store
before they count. Everything that happens marks the VIPs that it touches; one task then plans those anew, keeps what
the next plan must remember, and only then gives nodes their new states, by :class:`manager.nodes.NodeHub`. Owns the
plan, the reports and the events. The store may fail: then changes are refused, but health and withdrawals go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lb.errors import NotFoundError, VipmuxError
from lb.log import get_logger
from lb.model import Address, BackendState, ManagerSettings, Service
from lb.node.messages import HealthMessage
from manager import desired as changes
from manager.desired import Change, Desired, Order, Pending, Rules
from manager.drains import Emptied
from manager.events import KEPT, Events, differences
from manager.given import HEADER, Given
from manager.health import Report, Reports, Source
from manager.nodes import Entry, NodeHub
from manager.plan import plan, replan
from manager.rates import Rates
from manager.store import ConflictError, Entries, NodeRecord, Store, VersionLine
from manager.watching import Changes
from manager.world import AGENT, MUX, BackendKey, Memory, Plan, Remembered, Tables, World

#: Of something large, how many VIPs are planned in one go, so that what is small need not wait long.
TURN = 100
#: How often time itself is looked at: leases, hold times, late nodes; seconds.
TICK = 0.2
#: How often new events are written to the store, seconds.
KEEP_EVENTS = 0.5
#: Leases of nodes are bounded by the manager's own setting, and by this from below.
LEASE_MIN = 1.0
#: A manager that starts anew counts on from here, beyond what it may have given out after its last note.
GENERATION_GAP = 1000
#: Tables of services that are gone are cleared away after so many plans.
_TABLES_KEPT = 1000

#: Of one plan, so many good tidings are worth a line of the log each.
LINES = 100
#: More services than this in one request are read beside the event loop.
LARGE = 50
#: So many versions are looked at for the latest that can be taken back.
LOOK_BACK = 100

log = get_logger()


@dataclass(frozen=True, slots=True)
class Applied:
    """A change that was made, or would be."""

    version: int
    change: Change


@dataclass(frozen=True, slots=True)
class Terms:
    """How a change is to be made."""

    who: str
    why: str = ""
    dry_run: bool = False
    confirm: float | None = None  #: seconds until it is taken back unless it is confirmed


class Controller:
    """See the module's text. Everything but start() and stop() runs in the event loop that it was started in."""

    def __init__(
        self,
        settings: ManagerSettings,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.events = Events()
        self.desired = Desired()
        self.plan = Plan()
        self.emptied = Emptied()
        self.rates = Rates()
        self.changes = Changes()
        self.hub: NodeHub
        self._store = store
        self._clock = clock
        self._reports = Reports()
        self._given = Given()
        self._tables = Tables()
        self._changing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._due: dict[str, float] = {}  # VIPs that time alone makes another plan of, and when
        self._touched: set[str] = set()
        self._backlog: set[str] = set()  # touched as well, but by something large
        self._turning = False  # planned, and not yet told
        self._to_keep: dict[tuple[str, str], NodeRecord] = {}
        self._stored_memory = Memory()
        self._unstored = False
        self._tasks: list[asyncio.Task[None]] = []
        self._plans = 0
        self._turns = 0
        self.change_made = asyncio.Condition()  #: for who waits for nodes to follow

    # -- start and stop -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reads the store and plans for what was; nobody is told of it before they connect."""
        term = self.changes.term = await self._store.next_term()
        stored = await self._store.load()
        self.desired = await asyncio.to_thread(changes.from_entries, stored.version, stored.entries)
        entries = await self._store.memory()
        memory = _memory(entries)
        self._stored_memory = memory
        generation = int(entries.get("generation", {}).get("latest", 0)) + GENERATION_GAP
        self.hub = NodeHub(term, generation if stored.version else 0, self, self.settings.hold, self._clock())
        self.hub.load(await self._store.nodes())
        self.events.load(await self._store.events())
        self.plan = Plan(memory=memory)
        self._plan_all(say=False)  # what was so before is no event
        with contextlib.suppress(VipmuxError):  # then _confirmations() tries on, and says so
            if await self._end_confirmation():
                self._plan_all(say=False)  # before a node could hear of what was not confirmed
        await self._store.remember({"set": {"generation": {"latest": self.hub.generation}}, "remove": {}})
        self._tasks = [
            asyncio.create_task(self._run(), name="plan"),
            asyncio.create_task(self._ticks(), name="clock"),
            asyncio.create_task(self._confirmations(), name="confirmations"),
            asyncio.create_task(self._keep_events_on(), name="events"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._keep_nodes()
        await self._keep_events()

    async def heartbeat(self) -> None:
        """Returns once the store's thread has answered and the plan has had a turn.

        A store that fails has answered: health and withdrawals go on without it.
        """
        with contextlib.suppress(VipmuxError):
            await self._store.nodes()
        before = self._turns
        self._wake.set()
        async with self.change_made:
            await self.change_made.wait_for(lambda: self._turns > before)

    async def failed(self) -> None:
        """Returns never; raises what a task of ours raised, which is a programming error."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task

    # -- what operators want ------------------------------------------------------------------------------------

    @property
    def rules(self) -> Rules:
        return Rules(self.settings.vip_prefixes, self.hub.addresses())

    async def apply(
        self,
        given: str | Sequence[object],
        who: str,
        *,
        replace_all: bool = False,
        dry_run: bool = False,
        why: str = "",
        confirm: float | None = None,
    ) -> Applied:
        """``given``: ``[[service]]`` tables, or the text of a file of them. ``confirm``: seconds after which it is
        taken back unless somebody confirms it."""
        size = given.count(HEADER) if isinstance(given, str) else len(given)
        terms = Terms(who, why, dry_run, confirm)

        def change(desired: Desired) -> Change:
            return self._given.apply(desired, given, self.rules, replace_all=replace_all, as_told=self._as_told)

        return await self._change(change, terms, large=replace_all or size > LARGE)

    async def rollback(
        self, to: int | None, who: str, *, dry_run: bool = False, why: str = "", confirm: float | None = None
    ) -> Applied:
        """To an earlier version, or to the one before the latest that changed services or drains; where a change waits
        for its confirmation, that one is taken back."""
        terms = Terms(who, why, dry_run, confirm)
        async with self._changing:
            waiting = self.desired.unconfirmed
            if waiting is not None and to in (None, waiting[0] - 1):
                return await self._take_back(waiting[0], replace(terms, confirm=None), f"by {who}")
            if to is None:
                to = await self._before_latest()
            if not 0 <= to <= self.desired.version:
                raise NotFoundError(f"there is no version {to}; the latest is {self.desired.version}")
            undo = await self._store.undo(to, self.desired.version)

            def change(desired: Desired) -> Change:
                found = changes.restore(desired, undo, self.rules, as_told=self._as_told)
                return replace(found, title=f"rolled back to version {to}")

            return await self._changed(change, terms, large=_size(undo) > LARGE)

    async def confirm(self, version: int | None, who: str, *, why: str = "") -> Applied:
        """The change that waits for it lasts; ``version`` tells which, if there is doubt."""

        def change(desired: Desired) -> Change:
            waiting = desired.unconfirmed
            if waiting is None:
                raise NotFoundError("no change waits for a confirmation")
            if version not in (None, waiting[0]):
                raise NotFoundError(f"version {version} does not wait for a confirmation; version {waiting[0]} does")
            return changes.confirm(desired)

        return await self._change(change, Terms(who, why), free=True)

    async def history(self, limit: int) -> list[VersionLine]:
        """The latest first."""
        return await self._store.history(limit)

    async def _before_latest(self) -> int:
        """The version before the latest that operators would want to take back."""
        for record in await self._store.audit(LOOK_BACK):
            touched = {*record.change.get("set", {}), *record.change.get("remove", {})}
            if touched & {"services", "drains"}:
                return record.version - 1
        raise NotFoundError("none of the latest versions changed services or drains; --to tells where to go back to")

    async def _take_back(self, version: int, terms: Terms, why: str) -> Applied:
        """Within the lock."""
        undo = await self._store.undo(version - 1, version)
        make = partial(changes.take_back, undo=undo, why=why, as_told=self._as_told)
        done = await self._changed(make, terms, free=True, large=_size(undo) > LARGE)
        if not terms.dry_run:
            self.happened(f"version {version}", f"taken back {why}: its services are as they were before it", bad=True)
        return done

    async def delete_service(self, name: str, who: str, *, why: str = "") -> Applied:
        return await self._change(lambda desired: changes.delete_service(desired, name, self._as_told), Terms(who, why))

    async def drain_backend(self, service: str, backend: str, who: str, *, drain: bool, why: str = "") -> Applied:
        order = Order(who, self._clock()) if drain else None
        change = partial(changes.drain_backend, service=service, backend=backend, order=order)
        return await self._change(change, Terms(who, why), free=True)

    async def drain_mux(self, mux: str, who: str, *, drain: bool, why: str = "") -> Applied:
        self._known(MUX, mux)
        order = Order(who, self._clock()) if drain else None
        return await self._change(lambda desired: changes.drain_mux(desired, mux, order), Terms(who, why), free=True)

    async def forget_node(self, kind: str, name: str, who: str) -> None:
        """A node that will not come back."""
        self._known(kind, name)
        self.hub.forget(kind, name)
        if kind == MUX and name in self.desired.mux_drains:
            await self._change(lambda desired: changes.drain_mux(desired, name, None), Terms(who), free=True)
        source = Source.TUNNEL if kind == MUX else Source.AGENT
        self._reports.forget(source, name)
        await self._store.forget_node(kind, name)
        self.happened(f"{kind} {name}", f"forgotten by {who}")

    def _known(self, kind: str, name: str) -> None:
        names = [entry.record.name for entry in self.hub.entries.values() if entry.record.kind == kind]
        if name not in names:
            word = "MUX" if kind == MUX else kind
            known = f"known are {', '.join(sorted(names))}" if names else "none has joined yet"
            raise NotFoundError(f'there is no {word} "{name}"; {known}')

    async def _change(
        self, make: Callable[[Desired], Change], terms: Terms, *, free: bool = False, large: bool = False
    ) -> Applied:
        """One change at a time."""
        async with self._changing:
            return await self._changed(make, terms, free=free, large=large)

    async def _changed(
        self, make: Callable[[Desired], Change], terms: Terms, *, free: bool = False, large: bool = False
    ) -> Applied:
        """Decides, commits, and then takes it for true. ``free``: it may be made while another waits for its
        confirmation. ``large``: it takes seconds for thousands of services, beside the event loop."""
        if large:
            change, delta = await asyncio.to_thread(_with_delta, make, self.desired, self._until(terms))
        else:
            change, delta = _with_delta(make, self.desired, self._until(terms))
        if change.empty or terms.dry_run:
            return Applied(self.desired.version, change)
        if not free:
            self._refuse_beside_unconfirmed()
        version = await self._store.commit(
            self.desired.version, delta, terms.who, change.what, self._clock(), why=terms.why
        )
        self.desired = replace(change.new, version=version)
        log.info("changed", version=version, who=terms.who, what=change.what, why=terms.why or None)
        self._say_changed(change, terms, version)
        self.changes.services({*change.names, *change.old.retiring, *change.new.retiring, *change.drained()})
        self.changes.tables("history", "status")
        self.touched(change.vips())
        if terms.confirm is not None:
            text = f"is taken back in {terms.confirm:g} s unless it is confirmed; it is of {terms.who}"
            self.happened(f"version {version}", text)
        return Applied(version, change)

    def _say_changed(self, change: Change, terms: Terms, version: int) -> None:
        """An operator's change is an event of all that it touches; of a large one the audit has the rest."""
        done = [line for line in change.lines if line.action not in ("unchanged", "taken back")]  # that one is bad news
        for line in done[:LINES]:
            details = f": {', '.join(line.details)}" if line.details else ""
            why = f" ({terms.why})" if terms.why else ""
            self.events.add(self._clock(), line.name, f"{line.action} by {terms.who}{details}{why}")
        if len(done) > LINES:
            more = f"and {len(done) - LINES:,} more were changed by {terms.who}; `lb get audit` has all of it"
            self.events.add(self._clock(), f"version {version}", more)
        self.changes.tables("events")

    def _until(self, terms: Terms) -> Pending | None:
        now = self._clock()
        return Pending(terms.who, now, now + terms.confirm) if terms.confirm is not None else None

    def _refuse_beside_unconfirmed(self) -> None:
        if self.desired.unconfirmed is not None:
            version, pending = self.desired.unconfirmed
            left = max(0.0, pending.until - self._clock())
            raise ConflictError(
                f"version {version} of {pending.who} waits for its confirmation, for another {left:.0f} s: "
                "`lb confirm` keeps it, `lb rollback` takes it back; services cannot be changed before that"
            )

    def _as_told(self, service: Service) -> Service:
        """A service with its backends as MUXes know them, for the time that it retires."""
        found = self.plan.vips.get(str(service.vip))
        states = {item.key: item.state for item in found.backends} if found else {}

        def told(name: str, address: object, state: BackendState) -> BackendState:
            return states.get((service.name, name, str(address)), state)

        backends = tuple(
            replace(backend, state=told(backend.name, backend.address, backend.state)) for backend in service.backends
        )
        return replace(service, backends=backends)

    # -- what happens (manager.nodes.Listener) ------------------------------------------------------------------

    def touched(self, vips: Iterable[str] | None) -> None:
        if vips is None:
            vips = {*self.plan.vips, *self.desired.by_vip, *self.desired.retiring_by_vip}
        found = set(vips)
        (self._touched if len(found) <= TURN else self._backlog).update(found)
        self._wake.set()

    def touched_at(self, addresses: Iterable[Address]) -> None:
        known = self.desired
        names = {name for address in addresses for name in known.by_address.get(address, ())}
        self.touched({*self._vips_of(names), *known.retiring_by_vip})

    def heard(self, kind: str, name: str, message: HealthMessage) -> None:
        """A node's reports on backends; an agent's only of its own host's."""
        source = Source.TUNNEL if kind == MUX else Source.AGENT
        found = {}
        for report in message.reports:
            if source is Source.AGENT and not self._is_of(name, report.service, report.backend):
                continue
            found[report.service, report.backend] = Report(report.up, report.reason, report.since)
        lease = max(LEASE_MIN, min(message.lease, self.settings.health_lease))
        services = self._reports.heard(source, name, found, self._clock(), lease)
        self.touched(self._vips_of(services))

    def _is_of(self, agent: str, service: str, backend: str) -> bool:
        found = self.desired.services.get(service)
        return found is not None and any(
            item.name == backend and self.hub.agent_at.get(item.address) == agent for item in found.backends
        )

    def _vips_of(self, services: Iterable[str]) -> set[str]:
        known = self.desired.services
        return {str(known[name].vip) for name in services if name in known}

    def happened(self, subject: str, text: str, *, bad: bool = False) -> None:
        self.events.add(self._clock(), subject, text, bad=bad)
        self.changes.tables("events")
        say = log.warning if bad else log.info
        say("event", subject=subject, text=text)

    def told(self, entry: Entry, body: Mapping[str, Any]) -> None:
        if entry.record.kind == MUX:
            self.changes.counted(self.rates.heard(entry.record.name, body, self._clock()))
            self.changes.tables("muxes", *({"announcements"} & body.keys()))
        else:
            self.changes.tables("agents")

    def left(self, entry: Entry) -> None:
        if entry.record.kind == MUX:
            self.rates.left(entry.record.name)

    def looked(self, entry: Entry) -> None:
        self.changes.tables("muxes" if entry.record.kind == MUX else "agents", "announcements", "status")

    def keep(self, record: NodeRecord) -> None:
        self._to_keep[record.kind, record.name] = record
        self._wake.set()

    # -- planning -----------------------------------------------------------------------------------------------

    def world(self) -> World:
        return World(
            self.desired,
            self.hub.of(MUX),
            self.hub.of(AGENT),
            self.hub.agent_at,
            self._reports,
            self.plan.memory,
            self._clock(),
            self.settings.withdraw_cap,
            tables=self._tables,
        )

    def _plan_all(self, *, say: bool = True) -> None:
        """For what was touched or not; the states count at once. Used where nobody could have been told yet."""
        self._touched.clear()
        self._backlog.clear()
        old = self.plan
        self.plan = plan(self.world())
        self._note_due({*old.vips, *self.plan.vips})
        if say:
            self._say(old, {*old.vips, *self.plan.vips})
        self.hub.want(self.plan.states, self.plan.vips)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._turn()

    async def _turn(self) -> None:
        """Plans what was touched, keeps what must be remembered, tells the nodes. Bounded work: the rest comes next,
        so that a backend's end does not wait for ten thousand services."""
        touched, self._touched = self._touched, set()
        self._turning = True
        while self._backlog and len(touched) < TURN:
            touched.add(self._backlog.pop())
        if touched or self._nodes_differ():
            old = self.plan
            self.plan = replan(old, self.world(), touched)
            self._note_due(touched)
            self._say(old, touched)
            self._tell_watchers(old, touched)
            await self._remember(old, touched)
            if self.hub.want(self.plan.states, touched, complete=not self._backlog):
                await self._remember_generation()
            await self._purge(touched)
            self._clear_tables()
        await self._keep_nodes()
        if self._backlog:
            self._wake.set()
            await asyncio.sleep(0)
        self._turning = False
        self._turns += 1
        async with self.change_made:
            self.change_made.notify_all()

    def _tell_watchers(self, old: Plan, vips: Iterable[str]) -> None:
        changed = {
            found: None
            for vip in vips
            if old.vips.get(vip) is not self.plan.vips.get(vip)
            for plan in (old, self.plan)
            if vip in plan.vips
            for found in plan.vips[vip].tables
        }
        self.changes.services(changed)
        self.changes.tables("muxes", "agents", "announcements", "status")

    def _note_due(self, vips: Iterable[str]) -> None:
        for vip in vips:
            found = self.plan.vips.get(vip)
            due = found.due if found is not None else None
            if due is None:
                self._due.pop(vip, None)
            else:
                self._due[vip] = due

    def _nodes_differ(self) -> bool:
        """Are there nodes without a state, or states without a node?"""
        return self.plan.states.keys() != self.hub.entries.keys() or self.plan.drains.keys() != (
            self.desired.mux_drains.keys() & self.hub.of(MUX).keys()
        )

    async def followed(self, seconds: float) -> list[str]:
        """Waits until every node that can has what it should; returns those that do not (see why_behind())."""
        entries = self.hub.entries

        def behind(*, awaited: bool) -> list[str]:
            if self._turning or self._touched or self._backlog or self._wake.is_set():
                return ["manager"]
            return [entry.id for entry in entries.values() if entry.behind and (entry.may_follow or not awaited)]

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self.change_made:
                await self.change_made.wait_for(lambda: not behind(awaited=True))
        return sorted(behind(awaited=False))

    def why_behind(self, nodes: Iterable[str]) -> dict[str, str]:
        """Of nodes that did not follow; whose reason is gone by now is not among them."""
        found = {node: self.hub.entries[node].behind for node in nodes if node in self.hub.entries}
        planning = {node: "it still plans; nobody was told yet" for node in nodes if node == "manager"}
        return planning | {node: why for node, why in found.items() if why is not None}

    def _say(self, old: Plan, vips: Iterable[str]) -> None:
        for count, (subject, text, bad) in enumerate(differences(old, self.plan, sorted(vips))):
            self.events.add(self._clock(), subject, text, bad=bad)
            self.changes.tables("events")
            if bad or count < LINES:
                (log.warning if bad else log.info)("event", subject=subject, text=text)
            elif count == LINES:
                log.info("more events of this kind; `lb get events` has them")

    async def _remember(self, old: Plan, touched: set[str]) -> None:
        """Before nodes are told: a manager that starts anew must know what it granted."""
        new = self.plan
        if self._unstored:
            keys = self._stored_memory.backends.keys() | new.memory.backends.keys()
            vips = self._stored_memory.granted.keys() | new.memory.granted.keys()
        else:
            vips = touched
            keys = {
                item.key for vip in vips for plan in (old, new) if vip in plan.vips for item in plan.vips[vip].backends
            }
        change = _memory_change(self._stored_memory, new.memory, keys, vips)
        if (not change["set"] and not change["remove"]) or await self._store_or_say(change):
            self._stored_memory = new.memory

    async def _remember_generation(self) -> None:
        if self.hub.generation % (GENERATION_GAP // 2) == 0:
            await self._store_or_say({"set": {"generation": {"latest": self.hub.generation}}, "remove": {}})

    async def _store_or_say(self, change: Mapping[str, Any]) -> bool:
        try:
            await self._store.remember(change)
        except VipmuxError as error:
            if not self._unstored:
                self.happened("manager", f"cannot write its store, and goes on without: {error}", bad=True)
            self._unstored = True
            return False
        if self._unstored:
            self.happened("manager", "writes its store again")
        self._unstored = False
        return True

    async def _purge(self, touched: Iterable[str]) -> None:
        """Retiring services that nobody has any more leave the desired state."""
        done = [key for vip in touched if vip in self.plan.vips for key in self.plan.vips[vip].done]
        if done:
            with contextlib.suppress(VipmuxError):  # the store failed: the next plan of the VIP tries again
                await self._change(lambda desired: changes.purge(desired, done), Terms("manager"), free=True)

    async def _keep_nodes(self) -> None:
        while self._to_keep:
            key, record = self._to_keep.popitem()
            if f"{key[0]}:{key[1]}" not in self.hub.entries:
                continue
            try:
                await self._store.save_node(record)
            except VipmuxError as error:
                log.error("node not kept in the store", node=record.name, reason=str(error))

    async def _keep_events_on(self) -> None:
        """Beside everything else: an event waits for no disk, and a disk for several events at once."""
        while True:
            await asyncio.sleep(KEEP_EVENTS)
            await self._keep_events()

    async def _keep_events(self) -> None:
        events = self.events.take_unkept()
        if not events:
            return
        try:
            await self._store.add_events(events, KEPT)
        except VipmuxError:  # that the store fails is said where the memory is written
            self.events.not_kept(events)

    def _clear_tables(self) -> None:
        self._plans += 1
        self.changes.forget(self.desired.services, self.desired.retiring)
        if self._plans % _TABLES_KEPT == 0:
            self._tables.keep_only(self.desired.services)
            self._reports.keep_only(self.desired.has_backend)

    def _look_at_drains(self, now: float) -> None:
        for (service, backend), empty in self.emptied.look(now, self.hub.entries.values(), self.plan.drains):
            text = "no flow is left: it may be stopped" if empty else "has flows again, though it drains"
            self.happened(f"backend {service}/{backend}", text)
            self.changes.services([service])

    async def _confirmations(self) -> None:
        """Takes back what was not confirmed in time. Not part of _ticks(): health must not wait for the disk."""
        failed = False
        while True:
            await asyncio.sleep(TICK)
            try:
                await self._end_confirmation()
                failed = False
            except VipmuxError as error:
                if not failed:
                    self.happened(
                        "manager", f"cannot take back what was not confirmed, and tries on: {error}", bad=True
                    )
                failed = True

    async def _end_confirmation(self) -> bool:
        """Whether a change was taken back."""

        def late() -> tuple[int, Pending] | None:
            waiting = self.desired.unconfirmed
            return waiting if waiting is not None and waiting[1].until <= self._clock() else None

        if late() is None:
            return False
        async with self._changing:
            waiting = late()  # somebody may have confirmed it at the last moment
            if waiting is None:
                return False
            version, pending = waiting
            await self._take_back(version, Terms("manager"), f"for {pending.who} did not confirm it in time")
        return True

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = self._clock()
            self.hub.tick(now)
            self.rates.tick(now)
            self._look_at_drains(now)
            silent = self._reports.expire(now)
            if silent:
                self.touched(self._vips_of(silent))
            due = [vip for vip, at in self._due.items() if at <= now]
            if due:
                self.touched(due)


def _with_delta(
    make: Callable[[Desired], Change], desired: Desired, pending: Pending | None
) -> tuple[Change, dict[str, Any]]:
    change = make(desired)
    if pending is not None and not change.empty:
        change = changes.until_confirmed(change, pending)
    return change, change.delta()


def _size(undo: Mapping[str, Any]) -> int:
    """How many services it has to do with."""
    return len(undo["set"].get("services", ())) + len(undo["remove"].get("services", ()))


# --- memory in the store ---------------------------------------------------------------------------------------------


def _memory(entries: Entries) -> Memory:
    backends = {}
    for value in entries.get("backends", {}).values():
        service, backend, address, *known = value
        backends[service, backend, address] = Remembered(*known)
    granted = {vip: frozenset(muxes) for vip, muxes in entries.get("granted", {}).items()}
    return Memory(backends, granted)


def _memory_change(old: Memory, new: Memory, keys: Iterable[BackendKey], vips: Iterable[str]) -> dict[str, Any]:
    """What of these backends and VIPs differs, as the store takes it. What was lent to agents is not kept."""
    changed: dict[str, dict[str, Any]] = {"backends": {}, "granted": {}}
    removed: dict[str, list[str]] = {"backends": [], "granted": []}
    for key in keys:
        was, now = old.backends.get(key), new.backends.get(key)
        if now is None:
            removed["backends"] += ["\n".join(key)] * (was is not None)
        elif was != now:
            changed["backends"]["\n".join(key)] = [*key, *dataclasses.astuple(now)]
    for vip in vips:
        muxes = new.granted.get(vip)
        if muxes is None:
            removed["granted"] += [vip] * (vip in old.granted)
        elif old.granted.get(vip) != muxes:
            changed["granted"][vip] = sorted(muxes)
    return {
        "set": {section: entries for section, entries in changed.items() if entries},
        "remove": {section: found for section, found in removed.items() if found},
    }
