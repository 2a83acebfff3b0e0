# SPDX-License-Identifier: Apache-2.0
"""Keeps what routers were told equal to what they shall hear, whatever becomes of ExaBGP meanwhile.

:class:`Speaker` owns the sidecar, what ExaBGP has accepted, and one session for each peer. Its owner,
:mod:`lb.mux.announcer`, says what is wanted with :meth:`Speaker.offer` and is told of every change. The loop is:
ask the ledger for what is still to be said, say it, note what was accepted, ask again. A new ExaBGP knows nothing, so
all is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from lb.bgp import session as sessions
from lb.bgp.ledger import AnnouncementLedger
from lb.bgp.routes import ALIVE, ExabgpCommand, Key, Speaks
from lb.bgp.session import BgpSession
from lb.bgp.sidecar import Account, OrderRefused, Sidecar, SidecarGone, SidecarListener
from lb.daemon.log import get_logger
from lb.model import Address, Network

#: Prefixes in one batch of commands; the rest waits for its answers.
PREFIXES = 1000
#: ExaBGP on a busy machine takes less than this for a prefix towards a peer, seconds.
EACH = 0.001
#: After the helper refused because the data plane was silent, seconds.
RETRY = 0.05
#: An idle ExaBGP is asked for a sign of life this often, and killed when it gives none for so long, seconds.
SIGN, SILENCE = 1.0, 5.0

log = get_logger()
#: Is told which VIPs are told otherwise than before; None: perhaps all of them.
Changed = Callable[[Collection[Network] | None], None]


class Speaker:
    """All sessions of one MUX; :meth:`run` until cancelled, which withdraws everything by ending ExaBGP.

    Used from the event loop, but for :meth:`beat` and :meth:`heard`.
    """

    def __init__(self, speaks: Speaks, account: Account, changed: Changed) -> None:
        self._changed = changed
        self._peers = [peer.address for peer in speaks.settings.peers]
        self._ledger = AnnouncementLedger(self._peers)
        self._guard = threading.Lock()  # of the ledger's changes, against heard()
        self._lives = 0  # how often all that was announced was taken back
        self._sessions = {str(peer.address): BgpSession(peer) for peer in speaks.settings.peers}
        self._running = False
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        self._sidecar = Sidecar(speaks, account, SidecarListener(self._up, self._down, self._expired, self._event))

    # -- what the owner uses ------------------------------------------------------------------------------------

    @property
    def ledger(self) -> AnnouncementLedger:
        """For reading."""
        return self._ledger

    @property
    def running(self) -> bool:
        """Whether ExaBGP takes commands."""
        return self._running

    @property
    def sessions(self) -> tuple[BgpSession, ...]:
        return tuple(self._sessions.values())

    def session(self, peer: Address) -> BgpSession:
        return self._sessions[str(peer)]

    def told(self, peer: Address) -> int:
        """Of how many VIPs the peer has been told."""
        return self._ledger.counts[peer] if self.session(peer).up else 0

    @property
    def announces(self) -> bool:
        """Whether any peer has been told of anything."""
        return any(self.told(peer) for peer in self._peers)

    def announced(self, vip: Network) -> bool:
        """Whether any peer has been told of the VIP."""
        return any(self.session(peer).up and Key(peer, vip) in self._ledger.accepted for peer in self._peers)

    def heard(self) -> list[tuple[Network, str]]:
        """Each VIP with the name of each peer that has been told of it. From any thread."""
        with self._guard:
            accepted = list(self._ledger.accepted)
        names = {session.peer.address: session.peer.name for session in self.sessions if session.up}
        return [(key.vip, names[key.peer]) for key in accepted if key.peer in names]

    @property
    def exabgp(self) -> int | None:
        """The pid of ExaBGP."""
        return self._sidecar.pid

    def beat(self) -> None:
        """From any thread."""
        self._sidecar.beat()

    def offer(self, vips: Collection[Network], wanted: Mapping[Key, str]) -> None:
        """What peers shall hear of these VIPs from now on, which is nothing where nothing is wanted."""
        with self._guard:
            news = [
                self._ledger.want(key, wanted.get(key)) for vip in vips for key in (Key(p, vip) for p in self._peers)
            ]
        if any(news):
            self._wake.set()
            self._changed(vips)

    async def settle(self, seconds: float) -> bool:
        """Waits until ExaBGP has taken what is wanted, or there is no ExaBGP; False after the time, and what more than
        that thousands of prefixes take."""
        try:
            async with asyncio.timeout(seconds + EACH * self._ledger.left), self._news:
                await self._news.wait_for(lambda: not self._running or self._ledger.settled)
        except TimeoutError:
            return False
        return True

    def reconnect(self) -> None:
        """The way to routers is there again. Where none of them has a session, ExaBGP waits between its attempts, up to
        a minute after a long absence, and cannot be told to try now; so it begins anew, which nobody hears."""
        if self._running and not any(session.up for session in self.sessions):
            log.info("ExaBGP begins anew", reason="the interface is back, and no router has a session with us")
            self._sidecar.restart()

    def change_passwords(self, speaks: Speaks) -> None:
        """The same peers with other passwords. ExaBGP takes them at its start only, so it begins anew: routers lose
        what they were told, and are told it again once their sessions are up."""
        peers = {str(peer.address): peer for peer in speaks.settings.peers}
        self._sessions = {name: replace(session, peer=peers[name]) for name, session in self._sessions.items()}
        self._sidecar.begin_anew(speaks)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sidecar.run(), name="ExaBGP")
            tasks.create_task(self._keep_equal(), name="announcements")

    # -- the loop -----------------------------------------------------------------------------------------------

    async def _keep_equal(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SIGN):
                    await self._wake.wait()
            except TimeoutError:
                await self._ask_sign()
                continue
            self._wake.clear()
            while self._running and (commands := self._ledger.next(PREFIXES)):
                try:
                    await self._say(commands)
                except OrderRefused:
                    await asyncio.sleep(RETRY)
                except SidecarGone:
                    break
            await self._tell()

    async def _ask_sign(self) -> None:
        if self._running:
            with contextlib.suppress(OrderRefused, SidecarGone):  # either is told of where it happens
                await self._sidecar.send([ALIVE], SILENCE)

    async def _say(self, commands: tuple[ExabgpCommand, ...]) -> None:
        life = self._lives
        results = await self._sidecar.send([command.line for command in commands])
        if life != self._lives:  # what was accepted was taken back since
            return
        with self._guard:
            for command, taken in zip(commands, results, strict=True):
                self._ledger.answered(command, taken=taken)
        for command, taken in zip(commands, results, strict=True):
            if not taken:
                log.error("ExaBGP refuses", command=command.line[:300])
        self._changed({key.vip for command in commands for key in command.keys})
        await self._tell()

    async def _tell(self) -> None:
        """Those who wait in :meth:`settle`."""
        async with self._news:
            self._news.notify_all()

    # -- what the sidecar tells ---------------------------------------------------------------------------------

    def _up(self) -> None:
        now = asyncio.get_running_loop().time()
        self._sessions = {name: sessions.started(session, now) for name, session in self._sessions.items()}
        self._running = True
        self._forget()

    def _down(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        self._sessions = {
            name: sessions.stopped(session, f"ExaBGP ended: {why}", now) for name, session in self._sessions.items()
        }
        self._running = False
        self._forget()

    def _expired(self, why: str) -> None:
        log.error("announcements withdrawn", reason=why)
        self._forget()

    def _forget(self) -> None:
        """Nothing is announced any more."""
        self._lives += 1
        with self._guard:
            self._ledger.forget()
        self._wake.set()
        self._changed(None)

    def _event(self, event: dict[str, Any]) -> None:
        name = sessions.peer_of(event)
        before = self._sessions.get(name or "")
        if name is None or before is None:
            return
        after = sessions.step(before, event, asyncio.get_running_loop().time())
        self._sessions[name] = after
        if after.up and not before.up:
            log.info("BGP session up", peer=after.peer.name, address=name, asn=after.peer.asn)
        elif before.up and not after.up:
            log.warning("BGP session down", peer=after.peer.name, address=name, reason=after.error)
        elif after.error and after.error != before.error:
            log.warning("BGP session refused", peer=after.peer.name, address=name, reason=after.error)
        self._changed(None)
