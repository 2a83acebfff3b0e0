# SPDX-License-Identifier: Apache-2.0
"""What this MUX announces by BGP: what is wanted of it, as far as its own data plane stands behind it.

Wanted is what the manager says (:meth:`Announcer.want`), or without one what the policies of the file's services say.
Of that, a VIP is announced only while all of this holds: its services are in the published table, every worker has
the table, a packet for each service passed the self-test of that table, the workers' heartbeat goes on, and the
interface is there. What fails says so in ``lb get announcements``. :mod:`lb.mux.daemon` owns the one
:class:`Announcer`, tells it of every publication, and stops it before anything else: routes go before forwarding does.

Of ten thousand VIPs mostly none or one is concerned, and only that is looked at; what concerns all of them (workers,
the interface, a drain) happens seldom.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from lb.bgp import policy, selftest
from lb.bgp.proofs import Proofs
from lb.bgp.routes import GRACEFUL_SHUTDOWN, BgpRoute, Key, Speaks, Wishes, family, hears, offers
from lb.bgp.sidecar import choose_account
from lb.bgp.speaker import Speaker
from lb.daemon.log import get_logger
from lb.daemon.metrics.collectors import BgpFigures
from lb.daemon.supervise import Tasks
from lb.dataplane import Snapshot
from lb.model import Address, Backend, BackendState, BgpSettings, MuxSettings, Network, Service
from lb.model.persistent_map import differences
from lb.model.service_diff import ServiceDiff
from lb.mux.workers.engine import Engine
from lb.mux.workers.heartbeat import BEAT, STILL, Heart

#: How long ExaBGP may take to take a withdrawal before a VIP is removed all the same, seconds.
SETTLE = 2.0
#: From ExaBGP's word until routers have followed, seconds: twice what the slower of the lab's routers needs.
FOLLOW = 0.3
#: So many new services are tested at once, and so many in the event loop: it takes less time than to ask a thread.
SLICE, SMALL = 500, 20
#: So many services are tested again at once, and the pause before the next, seconds: 10,000 in some two minutes, for
#: one percent of a CPU.
SWEEP, REST = 20, 0.25
#: VIPs whose rows are told by themselves, beside those of all that were told before.
FEW = 1000

log = get_logger()
Row = dict[str, Any]
#: What is told of a VIP towards a peer, by the peer's name: the state, and why it is not announced if it is not.
Said = tuple[str | None, str, str | None]
_GONE: tuple[Said, ...] = ((None, "withdrawn", None),)


@dataclass(slots=True)
class Ground:
    """What this MUX knows of itself: why a VIP may be announced, or may not. As it is now; what it holds changes."""

    proved: Set[Network] = frozenset()  #: VIPs whose services passed the self-test of a live table
    failed: Mapping[Network, str] = field(default_factory=dict)  #: VIPs that failed it, and how
    alive: bool = False  #: workers turn
    released: Set[Network] = frozenset()  #: VIPs that are about to be removed
    away: bool = False  #: drained: routers had time to move, now nothing is announced

    def why_not(self, vip: Network, unsound: str | None) -> str | None:
        """Why the VIP must not be announced, in words; None if it may. ``unsound``: what else is wrong here."""
        if vip in self.released:
            return "it is being removed from this MUX"
        if self.away:
            return "this MUX is drained"
        if not self.alive:
            return "the data plane stands still"
        if vip in self.failed:
            return f"the self-test failed: {self.failed[vip]}"
        if vip not in self.proved:
            return "no service here has this VIP, or the self-test still runs"
        return unsound


class Announcer:
    """The BGP part of one MUX."""

    def __init__(self, bgp: BgpSettings, mux: MuxSettings, engine: Engine, unsound: Callable[[], str | None]) -> None:
        """``unsound`` says in words why the MUX cannot serve just now, if so."""
        self._speaks = Speaks(bgp, mux.address, mux.address6)
        self._engine = engine
        self._unsound = unsound
        self._unsound_before: str | None = None
        self._managed = False
        self._wishes = Wishes()
        self._draining = False
        self._leaving: asyncio.TimerHandle | None = None
        #: Since when nothing is announced, by the loop's clock, because this MUX is drained.
        self.away_since: float | None = None
        self._stopping = False
        self._proofs = Proofs()
        self._ground = Ground(self._proofs.proved, self._proofs.failed)
        self._wanted: dict[Network, BgpRoute] = {}
        self._held: dict[Network, str] = {}  # of the wanted, those that must not be announced, and why
        self._declined: Mapping[Network, str] = {}
        self._rows = AnnouncementRows(self._said_of)
        self._test = asyncio.Event()
        self._pipe = selftest.pipeline()
        self._reached: Snapshot | None = None  # what every worker is known to have
        self._speaker: Speaker | None = None
        self._heart: Heart | None = None
        self._tasks = Tasks()

    def change_passwords(self, bgp: BgpSettings) -> None:
        """The same settings with other passwords: the sessions are opened anew."""
        self._speaks = replace(self._speaks, settings=bgp)
        if self._speaker is not None:
            self._speaker.change_passwords(self._speaks)

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """After the workers; returns before any session is up."""
        account = await choose_account()
        log.info("BGP", user=account.name, reason=account.reason, peers=len(self._speaks.settings.peers))
        self._speaker = Speaker(self._speaks, account, self._rows.spoil)
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def changed(alive: bool) -> None:
            loop.call_soon_threadsafe(self._pulse, alive, context=context)

        self._heart = Heart(self._engine.bursts, self._speaker.beat, changed)
        self._heart.start()
        self._tasks.restarted("BGP", self._speaker.run)
        self._tasks.restarted("self-tests", self._tests)
        self._follow(None)
        self._evaluate()

    async def stop(self, *, planned: bool) -> None:
        """GRACEFUL_SHUTDOWN, time for routers to move, withdrawal, time for them to follow, the end; else the end."""
        speaker = self._speaker
        self._stopping = True
        if speaker is not None and planned:
            pause = self._speaks.settings.shutdown
            if speaker.announces:
                log.info("announcing GRACEFUL_SHUTDOWN", community=GRACEFUL_SHUTDOWN, seconds=pause)
                self._demote(True)
                await speaker.settle(SETTLE)
                await asyncio.sleep(pause)
            told = speaker.announces
            self._ground.released = frozenset(self._wanted)
            self._evaluate()
            if told:
                log.info("withdrawing", vips=len(self._wanted), seconds=pause)
                await speaker.settle(SETTLE)
                await asyncio.sleep(pause)
        if self._heart is not None:
            await asyncio.to_thread(self._heart.stop)
        await self._tasks.close()

    @property
    def announces(self) -> bool:
        """Whether a router may send packets here."""
        return self._speaker is not None and self._speaker.announces

    # -- what the daemon says -----------------------------------------------------------------------------------

    def check(self, announcements: Mapping[str, Any]) -> None:
        """Raises ConfigError, with every mistake, where :meth:`want` would."""
        self._wishes.read(announcements)

    def want(self, announcements: Mapping[str, Any]) -> None:
        """The section ``announcements`` of the manager's node state, which is not changed any more; before the first of
        them the file's policies decide.

        Raises ConfigError with every mistake, and changes nothing then.
        """
        put, gone = self._wishes.take(announcements)
        if self._stopping:
            return
        if not self._managed:
            self._managed, gone = True, list(self._wanted)
            self._declined = {}
        for vip in gone:
            self._wanted.pop(vip, None)
        self._wanted |= {self._proofs.known(vip): route for vip, route in put.items()}
        self._evaluate({*gone, *map(self._proofs.known, put)})

    def drain(self, draining: bool) -> None:
        """Takes this MUX out: GRACEFUL_SHUTDOWN, so that routers prefer others, and later withdrawal. Or back in."""
        if draining is self._draining or self._stopping:
            return
        self._demote(draining)
        if draining:
            log.info("drained", community=GRACEFUL_SHUTDOWN, withdrawn_in=self._speaks.settings.shutdown)
            self._leaving = asyncio.get_running_loop().call_later(self._speaks.settings.shutdown, self._leave)
        else:
            log.info("no longer drained")

    def _demote(self, draining: bool) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        self._draining = draining
        self.away_since = None
        self._ground.away = False
        self._evaluate()

    def _leave(self) -> None:
        self._leaving = None
        self.away_since = asyncio.get_running_loop().time()
        self._ground.away = True
        self._evaluate()

    def link_up(self) -> None:
        """The interface is there again: sessions that were lost with it are tried at once."""
        if self._speaker is not None:
            self._speaker.reconnect()

    def published(self) -> None:
        """There are other ways to backends, or the interface came or went."""
        self._proofs.retry()
        self._test.set()
        self._evaluate(self._follow_policies())

    async def release(self, vips: Iterable[Network]) -> None:
        """Withdraw before remove: returns when routers had time to forget these VIPs. Until :meth:`restore`."""
        released = frozenset(vips)
        self._ground.released = released
        speaker = self._speaker
        if speaker is None or not released:
            return
        told = any(speaker.announced(vip) for vip in released)
        self._evaluate(released)
        if told:
            await speaker.settle(SETTLE)
            await asyncio.sleep(FOLLOW)

    def restore(self, change: ServiceDiff) -> None:
        """The change is live now, or the table is the same after all: what was released is gone, or stays."""
        released, self._ground.released = self._ground.released, frozenset()
        self._evaluate({*released, *self._follow(change)})

    # -- what may be announced ----------------------------------------------------------------------------------

    def _follow(self, change: ServiceDiff | None) -> Set[Network]:
        """Another table is live, by this change if it is that; the VIPs about which something else is known."""
        services = self._engine.forwarding.services
        if change is None or change.services is not services:
            change = ServiceDiff.between(self._proofs.services, services)
        changed = self._proofs.follow(change)
        self._test.set()
        return changed | self._follow_policies()

    def _follow_policies(self) -> Set[Network]:
        """Without a manager: the VIPs that are wanted in another way than before, or not any more."""
        if self._managed:
            return frozenset()
        wanted, declined = policy.by_policy(self._engine.forwarding.services, self._takes_flows)
        changed: set[Network] = set()
        for before, after in ((self._wanted, wanted), (self._declined, declined)):
            put, gone = differences(before, after)
            changed |= {*put, *gone}
        self._wanted, self._declined = dict(wanted), declined
        return changed

    def _evaluate(self, vips: Iterable[Network] | None = None) -> None:
        """What is known of these VIPs, put together; None: of all, for something changed that is about all of them."""
        if self._speaker is None:
            return
        unsound = self._unsound()
        if vips is None or unsound != self._unsound_before:
            self._unsound_before = unsound
            vips = {*self._wanted, *(vips or ())}
        vips = list(vips)
        offered = {vip: route for vip in vips if (route := self._considered(vip, unsound)) is not None}
        self._speaker.offer(vips, offers(self._speaks, offered, drained=self._draining))
        self._rows.spoil(vips)

    def _considered(self, vip: Network, unsound: str | None) -> BgpRoute | None:
        """How to announce it; None: not at all."""
        route = self._wanted.get(vip)
        why = self._ground.why_not(vip, unsound) if route is not None else None
        if why is None:
            self._held.pop(vip, None)
            return route
        self._held[vip] = why
        return None

    def _takes_flows(self, backend: Backend) -> bool:
        return backend.state is BackendState.UP and backend.weight > 0 and backend.address in self._engine.reachable

    def _pulse(self, alive: bool) -> None:
        if alive:
            log.info("data plane lives")
        else:
            log.error("data plane stands still", reason=f"no turn of a worker for {STILL * BEAT:g} s; VIPs withdrawn")
        self._ground.alive = alive
        self._evaluate()

    # -- self-tests ---------------------------------------------------------------------------------------------

    async def _tests(self) -> None:
        """Tests what is new at once; what is not, at leisure."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            if not self._proofs.urgent:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due if self._proofs.sweeping else None):
                        await self._test.wait()
            self._test.clear()
            if self._proofs.urgent and not await self._prove(self._proofs.waiting(SLICE)):
                await self._test.wait()  # another table is live, and in a moment it is told by what it differs
            if loop.time() >= due:
                await self._prove(self._proofs.sweep(SWEEP))
                due = loop.time() + REST

    async def _prove(self, services: Sequence[Service]) -> bool:
        """Tests these services once workers have their table, and announces or withdraws accordingly. False: none of
        them is live any more."""
        engine = self._engine
        forwarding, snapshot, reachable, before = engine.forwarding, engine.snapshot, engine.reachable, engine.bursts()
        live = [service for service in services if forwarding.id_of(service) is not None]
        if not live:
            return False
        if len(live) <= SMALL:
            failed = selftest.prove(forwarding, snapshot, reachable, live, self._pipe)
        else:
            failed = await asyncio.to_thread(selftest.prove, forwarding, snapshot, reachable, live, self._pipe)
        while snapshot is not self._reached:
            if _all_later(before, engine.bursts()):
                self._reached = snapshot
            else:
                await asyncio.sleep(BEAT / 5)
        told = dict(self._ground.failed)
        changed = self._proofs.judge((s for s in live if engine.forwarding.id_of(s) is not None), failed)
        for vip in changed:
            why = self._ground.failed.get(vip)
            if why is not None and why != told.get(vip):
                log.error("self-test failed", vip=str(vip), reason=why)
        if changed:
            self._evaluate(changed)
        return True

    # -- what is told of it -------------------------------------------------------------------------------------

    def figures(self) -> BgpFigures:
        """From any thread."""
        speaker = self._speaker
        if speaker is None:
            return BgpFigures()
        return BgpFigures(
            tuple(sorted((_text(vip), peer) for vip, peer in speaker.heard())),
            tuple((session.peer.name, session.up) for session in speaker.sessions),
        )

    @property
    def exabgp(self) -> int | None:
        """ExaBGP's pid, while it runs."""
        return self._speaker.exabgp if self._speaker is not None else None

    def peers(self) -> list[Row]:
        """One row for each session."""
        if self._speaker is None:
            return []
        now = asyncio.get_running_loop().time()
        return [
            {
                "name": session.peer.name,
                "address": str(session.peer.address),
                "asn": session.peer.asn,
                "kind": session.peer.kind.value,
                "families": [member.value for member in session.peer.families],
                "state": session.state.value,
                "seconds": int(now - session.since) if session.since else None,
                "announced": self._speaker.told(session.peer.address),
                "error": session.why(now),
            }
            for session in self._speaker.sessions
        ]

    def announcements(self) -> list[Row]:
        """One row for each VIP and peer that shall hear of it, and one for each VIP that nobody hears of."""
        if self._speaker is None:
            return []
        return [
            {
                **row,
                "communities": list(route.communities) if route is not None else [],
                "med": route.med if route is not None else None,
                "prepend": route.prepend if route is not None else 0,
                "why": row.get("why"),
            }
            for vip in chain(self._wanted, self._declined)
            for route in (self._wanted.get(vip),)
            for row in rows_of(vip, self._said_of(vip))
        ]

    def announced(self) -> Sequence[Row]:
        """The same for the manager, which knows how VIPs are announced; ``why`` is there where there is one.

        The same object as long as nothing of it changes. Nobody changes any of it.
        """
        return self._rows.all(chain(self._wanted, self._declined)) if self._speaker is not None else ()

    def told_all(self) -> None:
        """The manager has all of these rows."""
        self._rows.mark()

    def announced_since(self) -> Sequence[Row]:
        """Rows of VIPs of which another is to be told than when the manager was told all; no more where these became
        many."""
        if self._speaker is None:
            return ()
        self.announced()
        return self._rows.since_mark()

    def _said_of(self, vip: Network) -> tuple[Said, ...]:
        route = self._wanted.get(vip)
        if route is None:
            return ((None, "withdrawn", self._declined[vip]),) if vip in self._declined else ()
        hearing = [peer for peer in self._speaks.settings.peers if hears(peer, vip, route)]
        if not hearing:
            return ((None, "unheard", f"no peer is {route.peers.value} and takes {family(vip).value}"),)
        return tuple((peer.name, *self._told(vip, peer.address)) for peer in hearing)

    def _told(self, vip: Network, peer: Address) -> tuple[str, str | None]:
        """The state of a VIP towards a peer, and why it is not announced if it is not."""
        speaker, key = self._speaker, Key(peer, vip)
        assert speaker is not None  # noqa: S101
        session, accepted = speaker.session(peer), speaker.ledger.accepted.get(key)
        announced = session.up and accepted is not None
        if vip in self._held:
            return ("leaving" if announced else "held"), self._held[vip]
        if announced and accepted == speaker.ledger.wanted.get(key):
            return ("draining" if self._draining else "announced"), None
        if key in speaker.ledger.refused:
            return "refused", "ExaBGP does not take it; its log says why"
        if not speaker.running:
            return "waiting", "ExaBGP is starting"
        # Without its time, which is in the row of the peer: ten thousand rows would be others each second.
        return "waiting", None if session.up else session.error or f"the session is {session.state.value}"


class Told(Sequence[Row]):
    """Rows of VIPs, made when somebody reads them: of ten thousand VIPs the same is mostly said, and as rows it takes
    5 MiB. Equal to itself alone."""

    def __init__(self, by_vip: Mapping[Network, tuple[Said, ...]]) -> None:
        """``by_vip`` is not changed any more."""
        self._by_vip = by_vip
        self._count = sum(map(len, by_vip.values()))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(rows_of(vip, said) for vip, said in self._by_vip.items())

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


class AnnouncementRows:
    """What is to be told of each VIP, made when somebody asks, and kept for as long as nothing of it changes."""

    def __init__(self, make: Callable[[Network], tuple[Said, ...]]) -> None:
        """``make``: what there is to tell of a VIP; nothing if there is not."""
        self._make = make
        self._by_vip: dict[Network, tuple[Said, ...]] = {}
        self._same: dict[tuple[Said, ...], tuple[Said, ...]] = {}  # what is said of one VIP is said of many
        self._stale: set[Network] | None = None  # None: all
        self._all: Sequence[Row] = Told({})
        self._others: dict[Network, None] = {}  # those whose rows are others than at the mark
        self._told: dict[Network, None] = {}  # of these, those that were told by themselves

    def spoil(self, vips: Iterable[Network] | None) -> None:
        """Something else may have to be told of these VIPs; None: of any."""
        if vips is None:
            self._stale = None
        elif self._stale is not None:
            self._stale.update(vips)

    def all(self, vips: Iterable[Network]) -> Sequence[Row]:
        """Those of all VIPs, which ``vips`` are. The same object as before if nothing changed."""
        stale = {*self._by_vip, *vips} if self._stale is None else self._stale
        self._stale = set()
        changed = [vip for vip in stale if self._renew(vip)]
        if changed:
            self._others.update(dict.fromkeys(changed))
            self._all = Told(self._by_vip.copy())
        return self._all

    def _renew(self, vip: Network) -> bool:
        """Whether its rows are others now."""
        now = self._make(vip)
        if now == self._by_vip.get(vip, ()):
            return False
        if len(self._same) > FEW:
            self._same.clear()
        if now:
            self._by_vip[vip] = self._same.setdefault(now, now)
        else:
            del self._by_vip[vip]
        return True

    def mark(self) -> None:
        """From now on what becomes another is counted."""
        self._others, self._told = {}, {}

    def since_mark(self) -> list[Row]:
        """Rows of VIPs whose rows are others than at the mark. Where they are more than :data:`FEW`, of those that were
        told before there were so many: what was told stays so."""
        if len(self._others) <= FEW:
            self._told = dict(self._others)
        return [row for vip in self._told for row in rows_of(vip, self._by_vip.get(vip) or _GONE)]


def _all_later(before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Whether every worker began another turn, or is a new one: it has what was published before the first counts."""
    return len(before) == len(now) > 0 and all(count != old for count, old in zip(now, before, strict=True))


def rows_of(vip: Network, said: Iterable[Said]) -> list[Row]:
    text = _text(vip)
    return [
        {"vip": text, "peer": peer, "state": state, **({} if why is None else {"why": why})}
        for peer, state, why in said
    ]


def _text(vip: Network) -> str:
    """As in ``lb get services``: a single address without its length."""
    return str(vip.network_address if vip.prefixlen == vip.max_prefixlen else vip)
