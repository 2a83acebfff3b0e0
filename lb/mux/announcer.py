# SPDX-License-Identifier: Apache-2.0
"""What this MUX announces by BGP: what is wanted of it, as far as its own data plane stands behind it.

Wanted is what the manager says (:meth:`Announcer.want`), or without one what the policies of the file's services say.
Of that, a VIP is announced only while all of this holds: its services are in the published table, every worker has
the table, a packet for each service passed the self-test of that table, the workers' heartbeat goes on, and the
interface is there. What fails says so in ``lb get announcements``. :mod:`lb.mux.daemon` owns the one
:class:`Announcer`, tells it of every publication, and stops it before anything else: routes go before forwarding does.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lb.bgp import policy, selftest
from lb.bgp.routes import GRACEFUL_SHUTDOWN, Key, Known, Route, Speaks, family, hears, offers, parse_announcements
from lb.bgp.sidecar import choose_account
from lb.bgp.speaker import Speaker, View
from lb.forwarding import Forwarding
from lb.log import get_logger
from lb.metrics import BgpFigures
from lb.model import Address, Backend, BackendState, BgpPeer, BgpSettings, MuxSettings, Network
from lb.mux.engine import Engine

#: Between two looks at the workers, seconds; an idle worker turns ten times a second.
BEAT = 0.05
#: A worker that did not turn for so many looks stands still.
STILL = 10
#: How long ExaBGP may take to take a withdrawal before a VIP is removed all the same, seconds.
SETTLE = 2.0
#: From ExaBGP's word until routers have followed, seconds: twice what the slower of the lab's routers needs.
FOLLOW = 0.3

log = get_logger()
Row = dict[str, Any]


class Heart(threading.Thread):
    """Vouches for the data plane twenty times a second, as long as every worker turns.

    A thread of its own, because a reload may keep the event loop busy while workers forward as ever.
    """

    def __init__(
        self, bursts: Callable[[], tuple[int, ...]], beat: Callable[[], None], changed: Callable[[bool], None]
    ):
        super().__init__(name="heart", daemon=True)
        self._bursts = bursts
        self._beat = beat
        self._changed = changed
        self._over = threading.Event()

    def run(self) -> None:
        pulse = Pulse()
        alive: bool | None = None
        while not self._over.wait(BEAT):
            now = pulse.look(self._bursts())
            if now:
                self._beat()
            if now is not alive:
                alive = now
                self._changed(now)

    def stop(self) -> None:
        self._over.set()
        self.join()


class Pulse:
    """Whether all workers turn, from their counts at each look. Counts looks, not time: a pause of the whole machine
    is nobody's death."""

    def __init__(self) -> None:
        self._last: tuple[int, ...] = ()
        self._still: list[int] = []

    def look(self, bursts: tuple[int, ...]) -> bool:
        """The counts at this moment; no workers is no life."""
        if len(bursts) != len(self._last):
            self._still = [0] * len(bursts)
        else:
            self._still = [
                0 if now != before else still + 1
                for now, before, still in zip(bursts, self._last, self._still, strict=True)
            ]
        self._last = bursts
        return bool(bursts) and max(self._still) < STILL


@dataclass(frozen=True, slots=True)
class Ground:
    """What this MUX knows of itself: why a VIP may be announced, or may not."""

    alive: bool = False  #: workers turn
    proved: frozenset[Network] = frozenset()  #: VIPs whose services passed the self-test of a live table
    failed: Mapping[Network, str] = field(default_factory=dict)  #: VIPs that failed it, and how
    released: frozenset[Network] = frozenset()  #: VIPs that are about to be removed
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
        self._manager: Mapping[Network, Route] | None = None
        self._known: Known = {}
        self._draining = False
        self._leaving: asyncio.TimerHandle | None = None
        #: Since when nothing is announced, by the loop's clock, because this MUX is drained.
        self.away_since: float | None = None
        self._stopping = False
        self._ground = Ground()
        self._held: Mapping[Network, str] = {}
        self._wanted: Mapping[Network, Route] = {}
        self._declined: Mapping[Network, str] = {}
        self._test = asyncio.Event()
        self._speaker: Speaker | None = None
        self._heart: Heart | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._figures = BgpFigures()

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """After the workers; returns before any session is up."""
        account = await choose_account()
        log.info("BGP", user=account.name, reason=account.reason, peers=len(self._speaks.settings.peers))
        self._speaker = Speaker(self._speaks, account, self._note)
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def changed(alive: bool) -> None:
            loop.call_soon_threadsafe(self._pulse, alive, context=context)

        self._heart = Heart(self._engine.bursts, self._speaker.beat, changed)
        self._heart.start()
        self._tasks = [
            asyncio.create_task(self._speaker.run(), name="BGP"),
            asyncio.create_task(self._tests(), name="self-tests"),
        ]
        self.published()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """They end only with :meth:`stop`, or by a programming error."""
        return self._tasks

    async def stop(self, *, planned: bool) -> None:
        """GRACEFUL_SHUTDOWN, time for routers to move, withdrawal, time for them to follow, the end; else the end."""
        speaker = self._speaker
        self._stopping = True
        if speaker is not None and planned:
            pause = self._speaks.settings.shutdown
            if speaker.view.announced:
                log.info("announcing GRACEFUL_SHUTDOWN", community=GRACEFUL_SHUTDOWN, seconds=pause)
                self._demote(True)
                await speaker.settle(SETTLE)
                await asyncio.sleep(pause)
            told = bool(speaker.view.announced)
            self._ground = replace(self._ground, released=frozenset(self._wanted))
            self._evaluate()
            if told:
                log.info("withdrawing", vips=len(self._wanted), seconds=pause)
                await speaker.settle(SETTLE)
                await asyncio.sleep(pause)
        if self._heart is not None:
            await asyncio.to_thread(self._heart.stop)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def announces(self) -> bool:
        """Whether a router may send packets here."""
        return self._speaker is not None and bool(self._speaker.view.announced)

    # -- what the daemon says -----------------------------------------------------------------------------------

    def check(self, announcements: Mapping[str, Any]) -> None:
        """Raises ConfigError, with every mistake, where :meth:`want` would."""
        parse_announcements(announcements, self._known)

    def want(self, announcements: Mapping[str, Any] | None) -> None:
        """The section ``announcements`` of the manager's node state; None: no manager, the file's policies decide.

        Raises ConfigError with every mistake, and changes nothing then.
        """
        self._manager = None if announcements is None else parse_announcements(announcements, self._known)
        if not self._stopping:
            self._evaluate()

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
        self._ground = replace(self._ground, away=False)
        self._evaluate()

    def _leave(self) -> None:
        self._leaving = None
        self.away_since = asyncio.get_running_loop().time()
        self._ground = replace(self._ground, away=True)
        self._evaluate()

    def published(self) -> None:
        """There is another table, or other ways to backends, or the interface came or went."""
        here = frozenset(service.vip for service in self._engine.forwarding.services)
        self._ground = replace(self._ground, proved=self._ground.proved & here)
        self._test.set()
        self._evaluate()

    async def release(self, vips: Iterable[Network]) -> None:
        """Withdraw before remove: returns when routers had time to forget these VIPs. Until :meth:`restore`."""
        released = frozenset(vips)
        self._ground = replace(self._ground, released=released)
        speaker = self._speaker
        if speaker is None or not released:
            return
        told = any(key.vip in released for key in speaker.view.announced)
        self._evaluate()
        if told:
            await speaker.settle(SETTLE)
            await asyncio.sleep(FOLLOW)

    def restore(self) -> None:
        """What was released is gone from the table now, or stays after all."""
        self._ground = replace(self._ground, released=frozenset())
        self.published()

    # -- what may be announced ----------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Everything that is known, put together; cheap enough for every change."""
        if self._speaker is None:
            return
        if self._manager is None:
            wanted, declined = policy.by_policy(self._engine.forwarding.services, self._takes_flows)
        else:
            wanted, declined = self._manager, {}
        self._wanted, self._declined = wanted, declined
        unsound = self._unsound()
        self._held = {vip: why for vip in wanted if (why := self._ground.why_not(vip, unsound)) is not None}
        offered = {vip: route for vip, route in wanted.items() if vip not in self._held}
        self._speaker.offer(offers(self._speaks, offered, drained=self._draining))
        self._note()

    def _takes_flows(self, backend: Backend) -> bool:
        return backend.state is BackendState.UP and backend.weight > 0 and backend.address in self._engine.reachable

    def _pulse(self, alive: bool) -> None:
        if alive:
            log.info("data plane lives")
        else:
            log.error("data plane stands still", reason=f"no turn of a worker for {STILL * BEAT:g} s; VIPs withdrawn")
        self._ground = replace(self._ground, alive=alive)
        self._evaluate()

    # -- self-tests ---------------------------------------------------------------------------------------------

    async def _tests(self) -> None:
        """Proves each table once workers have it, off the event loop.

        Other ways to backends prove nothing new of a service that passed: backends without a way are no candidates.
        """
        tested: Forwarding | None = None
        while True:
            await self._test.wait()
            self._test.clear()
            forwarding, snapshot = self._engine.forwarding, self._engine.snapshot
            reachable, before = self._engine.reachable, self._engine.bursts()
            passed = self._ground.proved if forwarding is tested else frozenset()
            services = [service for service in forwarding.services if service.vip not in passed]
            failed = await asyncio.to_thread(selftest.prove, forwarding, snapshot, reachable, services)
            tested = forwarding
            while not _all_later(before, self._engine.bursts()):  # noqa: ASYNC110  a worker tells nobody of its turns
                await asyncio.sleep(BEAT / 5)
            by_vip = {service.vip: failed[service.name] for service in forwarding.services if service.name in failed}
            for vip, why in by_vip.items():
                if self._ground.failed.get(vip) != why:
                    log.error("self-test failed", vip=str(vip), reason=why)
            proved = frozenset(service.vip for service in forwarding.services) - by_vip.keys()
            self._ground = replace(self._ground, proved=proved, failed=by_vip)
            self._evaluate()

    # -- what is told of it -------------------------------------------------------------------------------------

    def _note(self) -> None:
        """Something changed: the figures that another thread reads."""
        if self._speaker is None:
            return
        view = self._speaker.view
        names = {session.peer.address: session.peer.name for session in view.sessions}
        self._figures = BgpFigures(
            tuple(sorted((_text(key.vip), names[key.peer]) for key in view.announced)),
            tuple((session.peer.name, session.up) for session in view.sessions),
        )

    def figures(self) -> BgpFigures:
        """From any thread."""
        return self._figures

    @property
    def exabgp(self) -> int | None:
        """ExaBGP's pid, while it runs."""
        return self._speaker.exabgp if self._speaker is not None else None

    def peers(self) -> list[Row]:
        """One row for each session."""
        if self._speaker is None:
            return []
        view, now = self._speaker.view, asyncio.get_running_loop().time()
        counts: dict[Address, int] = {}
        for key in view.announced:
            counts[key.peer] = counts.get(key.peer, 0) + 1
        return [
            {
                "name": session.peer.name,
                "address": str(session.peer.address),
                "asn": session.peer.asn,
                "kind": session.peer.kind.value,
                "families": [member.value for member in session.peer.families],
                "state": session.state.value,
                "seconds": int(now - session.since) if session.since else None,
                "announced": counts.get(session.peer.address, 0),
                "error": session.why(now),
            }
            for session in view.sessions
        ]

    def announcements(self) -> list[Row]:
        """One row for each VIP and peer that shall hear of it, and one for each VIP that nobody hears of."""
        if self._speaker is None:
            return []
        view, now = self._speaker.view, asyncio.get_running_loop().time()
        announced = view.announced
        rows: list[Row] = []
        for vip, route in self._wanted.items():
            hearing = [peer for peer in self._speaks.settings.peers if hears(peer, vip, route)]
            for peer in hearing:
                state, why = self._told(view, announced, Key(peer.address, vip), now)
                rows.append(_row(vip, peer, state, why, route))
            if not hearing:
                why = f"no peer is {route.peers.value} and takes {family(vip).value}"
                rows.append(_row(vip, None, "unheard", why, route))
        rows += [_row(vip, None, "withdrawn", why, None) for vip, why in self._declined.items()]
        return rows

    def _told(self, view: View, announced: frozenset[Key], key: Key, now: float) -> tuple[str, str | None]:
        """The state of a VIP towards a peer, and why it is not announced if it is not."""
        if key.vip in self._held:
            return ("leaving" if key in announced else "held"), self._held[key.vip]
        if key in announced and view.accepted[key] == view.wanted.get(key):
            return ("draining" if self._draining else "announced"), None
        if key in view.refused:
            return "refused", "ExaBGP does not take it; its log says why"
        if not view.running:
            return "waiting", "ExaBGP is starting"
        session = view.session(key.peer)
        return "waiting", None if session.up else session.why(now) or f"the session is {session.state.value}"


def _all_later(before: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Whether every worker began another turn, or is a new one: it has what was published before the first counts."""
    return len(before) == len(now) > 0 and all(count != old for count, old in zip(now, before, strict=True))


def _row(vip: Network, peer: BgpPeer | None, state: str, why: str | None, route: Route | None) -> Row:
    return {
        "vip": _text(vip),
        "peer": peer.name if peer is not None else None,
        "state": state,
        "communities": list(route.communities) if route is not None else [],
        "med": route.med if route is not None else None,
        "prepend": route.prepend if route is not None else 0,
        "why": why,
    }


def _text(vip: Network) -> str:
    """As in ``lb get services``: a single address without its length."""
    return str(vip.network_address if vip.prefixlen == vip.max_prefixlen else vip)
