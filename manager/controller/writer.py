# SPDX-License-Identifier: Apache-2.0
"""Operators' changes of the desired state: one after the other, checked, committed, and then taken for true.

One :class:`Writer` and its one task, :meth:`Writer.run`. Whoever wants a change hands in an order and waits for its
answer; an order that is begun is carried out whatever becomes of who asked, so what is committed is always planned for,
and told. The plan never waits for a writer: large changes are worked out beside the event loop, on values that were
taken in it, and the plan hears of a change once it lasts (:class:`manager.controller.planner.Planner`). Nothing here
tells nodes.

A change with a time limit (``--confirm``) is taken back here. Its limit is a moment of the steady clock, kept in the
store with the boot that it is of: a wall's clock that jumps, and a manager that starts anew, change nothing. Over a
boot of the machine only the wall's clock goes on: then it decides, and the time left is never more than the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from lb.config.toml import HEADER
from lb.daemon.clocks import Clocks
from lb.daemon.log import get_logger
from lb.errors import NotFoundError, VipmuxError
from lb.model import Address
from manager.desired import state as changes
from manager.desired.state import AsTold, ChangeLine, Desired, DesiredChange, Order, Pending, Rules
from manager.desired.submitted import SubmittedTables
from manager.store.interface import ConflictError, Store, VersionLine
from manager.store.load_desired import HeldService, read

T = TypeVar("T")

#: More services than this in one request are read beside the event loop.
LARGE = 50
#: So many versions are looked at for the latest that can be taken back.
LOOK_BACK = 100
#: How often it is looked whether somebody confirmed in time, seconds.
TICK = 0.2
#: After a failure of the store retiring services are cleared away this much later, seconds.
RETRY = 1.0

log = get_logger()

#: Makes a change of the desired state, by rules and with what MUXes were told; perhaps in a thread.
_Make = Callable[[Desired, Rules, AsTold], DesiredChange]


@dataclass(frozen=True, slots=True)
class Applied:
    """A change that was made, or would be."""

    version: int
    change: DesiredChange


@dataclass(frozen=True, slots=True)
class ChangeTerms:
    """How a change is to be made."""

    who: str
    why: str = ""
    dry_run: bool = False
    confirm: float | None = None  #: seconds until it is taken back unless it is confirmed


@dataclass(frozen=True, slots=True)
class Made:
    """A change that lasts."""

    change: DesiredChange
    terms: ChangeTerms
    version: int


@dataclass(frozen=True, slots=True)
class WriterSurroundings:
    """What a writer asks of the rest of the manager, and tells it; all of it in the event loop."""

    rules: Callable[[], Rules]  #: what is allowed just now
    as_told: Callable[[], AsTold]  #: for a service that goes, by the plan of just now
    made: Callable[[Made], None]  #: a change lasts
    reread: Callable[[], None]  #: the desired state is another, from the store
    locked: Callable[[], str | None]  #: why no change may be made at all; None: they may
    happened: Callable[..., None]  #: for the events


@dataclass(slots=True)
class _WaitingOrder:
    """An order that waits for its turn."""

    work: Callable[[], Awaitable[Any]]
    answer: asyncio.Future[Any]


class Writer:
    """See the module's text."""

    def __init__(self, store: Store, clocks: Clocks, around: WriterSurroundings) -> None:
        self.desired = Desired()
        #: Services of the store that today's rules do not take; nothing of them is changed before the mend.
        self.held: dict[str, HeldService] = {}
        self._store = store
        self._clocks = clocks
        self._around = around
        self._given = SubmittedTables()
        self._orders: asyncio.Queue[_WaitingOrder] = asyncio.Queue()
        self._deadlines: dict[str, float] = {}  # by the version that waits: when it is taken back, steady clock
        self._retired: dict[str, None] = {}  # keys of retiring services that nobody has any more
        self._purge = asyncio.Event()

    # -- its life -----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """What the store has, before anything else."""
        stored = await self._store.load()
        found = await asyncio.to_thread(read, stored.version, stored.entries)
        self.desired, self.held = found.desired, dict(found.held)

    async def run(self) -> None:
        """Carries out orders; returns never."""
        while True:
            wanted = await self._orders.get()
            if wanted.answer.cancelled():
                continue  # nobody waits for it any more, and nothing was begun
            try:
                done = await wanted.work()
            except asyncio.CancelledError:
                wanted.answer.cancel()
                raise
            except Exception as error:  # it is the asker's to handle
                if not wanted.answer.done():
                    wanted.answer.set_exception(error)
            else:
                if not wanted.answer.done():
                    wanted.answer.set_result(done)

    def close(self) -> None:
        """Nobody carries out orders any more; who waits for one hears of it."""
        while not self._orders.empty():
            self._orders.get_nowait().answer.cancel()

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        wanted = _WaitingOrder(work, asyncio.get_running_loop().create_future())
        self._orders.put_nowait(wanted)
        return await wanted.answer  # type: ignore[no-any-return]

    # -- what operators want ------------------------------------------------------------------------------------

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
        terms = ChangeTerms(who, why, dry_run, confirm)

        def change(desired: Desired, rules: Rules, as_told: AsTold) -> DesiredChange:
            return self._given.apply(desired, given, rules, replace_all=replace_all, as_told=as_told)

        return await self._change(change, terms, large=replace_all or size > LARGE)

    async def rollback(
        self, to: int | None, who: str, *, dry_run: bool = False, why: str = "", confirm: float | None = None
    ) -> Applied:
        """To an earlier version, or to the one before the latest that changed services or drains; where a change waits
        for its confirmation, that one is taken back."""
        return await self._in_turn(partial(self._roll_back, to, ChangeTerms(who, why, dry_run, confirm)))

    async def _roll_back(self, to: int | None, terms: ChangeTerms) -> Applied:
        waiting = self.desired.unconfirmed
        if waiting is not None and to in (None, waiting[0] - 1):
            return await self._take_back(waiting[0], replace(terms, confirm=None), f"by {terms.who}")
        after, last = (to, self.desired.version) if to is not None else await self._latest()
        if not 0 <= after <= self.desired.version:
            raise NotFoundError(f"there is no version {after}; the latest is {self.desired.version}")
        undo = await self._store.undo(after, last)
        title = f"rolled back to version {after}" if last == self.desired.version else f"version {last} rolled back"

        def change(desired: Desired, rules: Rules, as_told: AsTold) -> DesiredChange:
            found = changes.restore(desired, undo, rules, as_told=as_told)
            return replace(found, title=title)

        return await self._changed(change, terms, large=_size(undo) > LARGE)

    async def confirm(self, version: int | None, who: str, *, why: str = "") -> Applied:
        """The change that waits for it lasts; ``version`` tells which, if there is doubt."""

        def change(desired: Desired, _: Rules, __: AsTold) -> DesiredChange:
            waiting = desired.unconfirmed
            if waiting is None:
                raise NotFoundError("no change waits for a confirmation")
            if version not in (None, waiting[0]):
                raise NotFoundError(f"version {version} does not wait for a confirmation; version {waiting[0]} does")
            return changes.confirm(desired)

        return await self._change(change, ChangeTerms(who, why), free=True)

    async def delete_services(self, names: Collection[str], who: str, *, why: str = "") -> Applied:
        """All of them, or none, as one change."""

        def change(desired: Desired, _: Rules, as_told: AsTold) -> DesiredChange:
            unread = sorted({name for name in names if name in self.held and name not in desired.services})
            done = changes.delete_services(desired, [name for name in names if name not in unread], as_told)
            lines = [ChangeLine(f"service {name}", "deleted") for name in unread]  # they are in the store alone
            return replace(done, lines=(*done.lines, *lines), names=done.names | set(unread))

        return await self._change(change, ChangeTerms(who, why))

    async def drain_backend(self, service: str, backend: str, who: str, **how: Any) -> Applied:
        """``how``: see :meth:`_drain`."""
        return await self._drain(lambda desired, o: changes.drain_backend(desired, service, backend, o), who, **how)

    async def drain_host(self, host: str, addresses: Collection[Address], who: str, **how: Any) -> Applied:
        """All backends at these addresses, as one change. ``how``: see :meth:`_drain`."""
        return await self._drain(lambda desired, o: changes.drain_host(desired, host, addresses, o), who, **how)

    async def _drain(
        self,
        make: Callable[[Desired, Order | None], DesiredChange],
        who: str,
        *,
        drain: bool,
        now: bool = False,
        dry_run: bool = False,
        why: str = "",
    ) -> Applied:
        """``drain`` false: not any more. ``now``: they are down at once, and do not finish what they have."""

        def change(desired: Desired, _: Rules, __: AsTold) -> DesiredChange:
            return make(desired, Order(who, self._clocks.wall(), now) if drain else None)

        return await self._change(change, ChangeTerms(who, why, dry_run), free=True)

    async def set_weight(
        self,
        service: str,
        backend: str,
        weight: object,
        who: str,
        *,
        dry_run: bool = False,
        why: str = "",
        confirm: float | None = None,
    ) -> Applied:
        def change(desired: Desired, rules: Rules, as_told: AsTold) -> DesiredChange:
            return changes.set_weight(desired, service, backend, weight, rules=rules, as_told=as_told)

        return await self._change(change, ChangeTerms(who, why, dry_run, confirm))

    async def drain_mux(self, mux: str, who: str, *, drain: bool, why: str = "") -> Applied:
        def change(desired: Desired, _: Rules, __: AsTold) -> DesiredChange:
            # First ordered is first served, whatever the wall's clock did in between.
            after = max((order.at + 0.001 for order in desired.mux_drains.values()), default=0.0)
            return changes.drain_mux(desired, mux, Order(who, max(self._clocks.wall(), after)) if drain else None)

        return await self._change(change, ChangeTerms(who, why), free=True)

    async def forget_drain(self, mux: str, who: str) -> Applied:
        """Of a MUX that is no more, so that one that gets its name does not drain; also while no change is taken."""

        def change(desired: Desired, _: Rules, __: AsTold) -> DesiredChange:
            return changes.drain_mux(desired, mux, None)

        return await self._change(change, ChangeTerms(who), free=True, unlocked=True)

    async def history(self, limit: int) -> list[VersionLine]:
        """The latest first."""
        return await self._store.history(limit)

    # -- what follows from it -----------------------------------------------------------------------------------

    def retire(self, keys: Iterable[str]) -> None:
        """Nobody has these retiring services any more: they leave the desired state, when it is their turn."""
        self._retired.update(dict.fromkeys(keys))
        if self._retired:
            self._purge.set()

    async def purges(self) -> None:
        """A task: clears away what has retired; returns never."""
        while True:
            await self._purge.wait()
            self._purge.clear()
            keys, self._retired = [*self._retired], {}
            try:
                await self._change(partial(_purged, keys), ChangeTerms("manager"), free=True)
            except VipmuxError as error:  # it does no harm where it is, so it may stay there for a while
                log.warning("retired services not cleared away yet", reason=str(error))
                await asyncio.sleep(RETRY)
                self.retire(keys)

    async def confirmations(self) -> None:
        """A task: takes back what was not confirmed in time; returns never."""
        failed = False
        while True:
            await asyncio.sleep(TICK)
            try:
                if self._late() is not None:
                    await self._in_turn(self.end_confirmation)
                failed = False
            except VipmuxError as error:
                if not failed:
                    text = f"cannot roll back what was not confirmed, and tries on: {error}"
                    self._around.happened("manager", text, bad=True)
                failed = True

    async def end_confirmation(self) -> bool:
        """Takes back a change that nobody confirmed in time; whether there was one. In turn, or before there are."""
        waiting = self._late()  # somebody may have confirmed it at the last moment
        if waiting is None:
            return False
        version, pending = waiting
        await self._take_back(version, ChangeTerms("manager"), f"because {pending.who} did not confirm it in time")
        return True

    def _late(self) -> tuple[int, Pending] | None:
        waiting = self.desired.unconfirmed
        return waiting if waiting is not None and self.seconds_left(waiting[1]) <= 0 else None

    def seconds_left(self, pending: Pending) -> float:
        """Until it is taken back; negative once it is late."""
        wall, steady, boot = self._clocks.wall(), self._clocks.steady(), self._clocks.boot
        key = f"{pending.who} {pending.at} {pending.until}"
        if key not in self._deadlines:
            self._deadlines = {key: steady + pending.left(wall, steady, boot)}
        return self._deadlines[key] - steady

    # -- one change ---------------------------------------------------------------------------------------------

    async def _latest(self) -> tuple[int, int]:
        """The latest change that operators would want to take back: it, and what came later, goes from the version
        before it to the last of these. What was not confirmed, or taken back before it was, is none: nothing is left
        of it, and the version that did so is no change to take back either. A drain that came in between is taken back
        alone, for the version before it has what was not confirmed."""
        undone: set[int] = set()
        for version, sections, ended in await self._store.touched(LOOK_BACK):
            if not sections & {"services", "drains"} or version in undone:
                continue
            if ended is None:
                between = any(first < version for first in undone)
                return version - 1, version if between else self.desired.version
            undone.add(ended)
        raise NotFoundError("none of the latest versions changed services or drains; --to tells where to go back to")

    async def _take_back(self, version: int, terms: ChangeTerms, why: str) -> Applied:
        undo = await self._store.undo(version - 1, version)

        def change(desired: Desired, _: Rules, as_told: AsTold) -> DesiredChange:
            return changes.take_back(desired, undo, why, as_told=as_told)

        done = await self._changed(change, terms, free=True, large=_size(undo) > LARGE)
        if not terms.dry_run:
            text = f"rolled back {why}: its services are as they were before it"
            self._around.happened(f"version {version}", text, bad=True)
        return done

    async def _change(
        self, make: _Make, terms: ChangeTerms, *, free: bool = False, large: bool = False, unlocked: bool = False
    ) -> Applied:
        return await self._in_turn(partial(self._changed, make, terms, free=free, large=large, unlocked=unlocked))

    async def _changed(
        self, make: _Make, terms: ChangeTerms, *, free: bool = False, large: bool = False, unlocked: bool = False
    ) -> Applied:
        """Decides, commits, and then takes it for true. ``free``: it may be made while another waits for its
        confirmation. ``large``: it takes seconds for thousands of services, beside the event loop; what it looks at
        there are values of this moment."""
        rules, as_told = self._around.rules(), self._around.as_told()
        work = partial(_with_delta, make, self.desired, rules, as_told, self._pending(terms))
        change, delta = await asyncio.to_thread(work) if large else work()
        if change.empty or terms.dry_run:
            return Applied(self.desired.version, change)
        locked = None if unlocked else self._around.locked()
        if locked is not None:
            raise ConflictError(locked)
        if not free:
            self._refuse_beside_unconfirmed()
        self._refuse_of_held(change)
        unread = [name for name in change.names if name in self.held and name not in change.new.services]
        if unread:
            removed = delta["remove"].setdefault("services", [])
            removed += [name for name in unread if name not in removed]
        try:
            version = await self._store.commit(
                self.desired.version, delta, terms.who, change.what, self._clocks.wall(), why=terms.why
            )
        except ConflictError as error:
            await self._reread()
            raise ConflictError(f"{error}; it was read anew, so try again") from None
        self.desired = replace(change.new, version=version)
        for name in change.names & self.held.keys():  # it is whole again, or gone
            del self.held[name]
        self._around.made(Made(change, terms, version))
        return Applied(version, change)

    async def _reread(self) -> None:
        """Somebody else changed the store: what it has is what counts."""
        await self.load()
        log.warning("store read anew", version=self.desired.version, reason="somebody else changed it")
        self._around.reread()

    def _refuse_of_held(self, change: DesiredChange) -> None:
        for name in sorted(change.drained() - change.names):
            if name in self.held:
                raise ConflictError(
                    f"service {name} of the store is not as this version takes it ({self.held[name].why}); apply it "
                    "whole, or delete it, and then change it"
                )

    def _pending(self, terms: ChangeTerms) -> Pending | None:
        if terms.confirm is None:
            return None
        wall, steady = self._clocks.wall(), self._clocks.steady()
        until = wall + terms.confirm
        return Pending(terms.who, wall, until, terms.confirm, self._clocks.boot, steady + terms.confirm)

    def _refuse_beside_unconfirmed(self) -> None:
        if self.desired.unconfirmed is not None:
            version, pending = self.desired.unconfirmed
            left = max(0.0, self.seconds_left(pending))
            raise ConflictError(
                f"version {version} of {pending.who} waits for its confirmation, for another {left:.0f} s: "
                "`lb confirm` keeps it, `lb rollback` ends it; services cannot be changed before that"
            )


def _with_delta(
    make: _Make, desired: Desired, rules: Rules, as_told: AsTold, pending: Pending | None
) -> tuple[DesiredChange, dict[str, Any]]:
    change = make(desired, rules, as_told)
    if pending is not None and not change.empty:
        change = changes.until_confirmed(change, pending)
    return change, change.delta()


def _purged(keys: Sequence[str], desired: Desired, _: Rules, __: AsTold) -> DesiredChange:
    return changes.purge(desired, keys)


def _size(undo: Mapping[str, Any]) -> int:
    """How many services it has to do with."""
    return len(undo["set"].get("services", ())) + len(undo["remove"].get("services", ()))
