# SPDX-License-Identifier: Apache-2.0
"""Keeps what routers were told equal to what they shall hear, whatever becomes of ExaBGP meanwhile.

:class:`Speaker` owns the sidecar, what ExaBGP has accepted, and one session for each peer. Its owner,
:mod:`lb.mux.announcer`, says what is wanted with :meth:`Speaker.offer` and is told of every change. The loop is:
plan the difference, send it, note what was accepted, plan again. A new ExaBGP knows nothing, so all is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lb.bgp import session as sessions
from lb.bgp.routes import ALIVE, Command, Key, Speaks, plan, withdrawals
from lb.bgp.session import Session
from lb.bgp.sidecar import Account, Listener, OrderRefused, Sidecar, SidecarGone
from lb.log import get_logger
from lb.model import Address

#: Commands in one batch; the rest waits for its answers.
COMMANDS = 20
#: After the helper refused because the data plane was silent, seconds.
RETRY = 0.05
#: An idle ExaBGP is asked for a sign of life this often, and killed when it gives none for so long, seconds.
SIGN, SILENCE = 1.0, 5.0

log = get_logger()


@dataclass(frozen=True, slots=True)
class View:
    """What is known at one moment; a value, so that any thread may hold it."""

    sessions: tuple[Session, ...]
    accepted: Mapping[Key, str]  #: by ExaBGP, which tells peers as soon as they are up
    wanted: Mapping[Key, str]
    refused: Mapping[Key, str]  #: what ExaBGP would not take
    running: bool

    def session(self, peer: Address) -> Session:
        return next(session for session in self.sessions if session.peer.address == peer)

    @property
    def announced(self) -> frozenset[Key]:
        """What peers have been told."""
        up = {session.peer.address for session in self.sessions if session.up}
        return frozenset(key for key in self.accepted if key.peer in up)


class Speaker:
    """All sessions of one MUX; :meth:`run` until cancelled, which withdraws everything by ending ExaBGP."""

    def __init__(self, speaks: Speaks, account: Account, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._accepted: dict[Key, str] = {}
        self._wanted: dict[Key, str] = {}
        self._refused: dict[Key, str] = {}
        self._sessions = {str(peer.address): Session(peer) for peer in speaks.settings.peers}
        self._running = False
        self._wake = asyncio.Event()
        self._news = asyncio.Condition()
        self._sidecar = Sidecar(speaks, account, Listener(self._up, self._down, self._expired, self._event))

    # -- what the owner uses ------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        return View(
            tuple(self._sessions.values()),
            dict(self._accepted),
            dict(self._wanted),
            dict(self._refused),
            self._running,
        )

    @property
    def exabgp(self) -> int | None:
        """The pid of ExaBGP."""
        return self._sidecar.pid

    def beat(self) -> None:
        """From any thread."""
        self._sidecar.beat()

    def offer(self, wanted: Mapping[Key, str]) -> None:
        """What peers shall hear from now on."""
        if dict(wanted) == self._wanted:
            return
        self._wanted = dict(wanted)
        self._refused = {key: text for key, text in self._refused.items() if self._wanted.get(key) == text}
        self._wake.set()
        self._changed()

    async def settle(self, seconds: float) -> bool:
        """Waits until ExaBGP has taken what is wanted, or there is no ExaBGP; False after the time."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: not self._running or not self._left())
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sidecar.run(), name="ExaBGP")
            tasks.create_task(self._keep_equal(), name="announcements")

    # -- the loop -----------------------------------------------------------------------------------------------

    def _left(self) -> tuple[Command, ...]:
        """What is still to be said."""
        possible = {key: text for key, text in self._wanted.items() if self._refused.get(key) != text}
        return plan(self._accepted, possible)

    async def _keep_equal(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SIGN):
                    await self._wake.wait()
            except TimeoutError:
                await self._ask_sign()
                continue
            self._wake.clear()
            while self._running and (commands := self._left()):
                # Whatever part of it gets through, this takes it all back.
                undo = withdrawals({**self._accepted, **self._wanted})
                try:
                    await self._say(commands[:COMMANDS], undo)
                except OrderRefused:
                    await asyncio.sleep(RETRY)
                except SidecarGone:
                    break
            await self._tell()

    async def _ask_sign(self) -> None:
        if self._running:
            with contextlib.suppress(OrderRefused, SidecarGone):  # either is told of where it happens
                await self._sidecar.send([ALIVE], None, SILENCE)

    async def _say(self, commands: tuple[Command, ...], undo: list[str]) -> None:
        for command, accepted in zip(
            commands, await self._sidecar.send([command.line for command in commands], undo), strict=True
        ):
            for key in command.keys:
                if command.attributes is None:
                    self._accepted.pop(key, None)  # what ExaBGP does not know it does not announce
                elif accepted:
                    self._accepted[key] = command.attributes
                else:
                    self._refused[key] = command.attributes
            if not accepted:
                log.error("ExaBGP refuses", command=command.line[:300])
        await self._tell()

    async def _tell(self) -> None:
        self._changed()
        async with self._news:
            self._news.notify_all()

    # -- what the sidecar tells ---------------------------------------------------------------------------------

    def _up(self) -> None:
        self._running = True
        self._accepted = {}
        now = asyncio.get_running_loop().time()
        self._sessions = {name: sessions.started(session, now) for name, session in self._sessions.items()}
        self._wake.set()
        self._changed()

    def _down(self, why: str) -> None:
        self._running = False
        self._accepted = {}
        now = asyncio.get_running_loop().time()
        self._sessions = {
            name: sessions.stopped(session, f"ExaBGP ended: {why}", now) for name, session in self._sessions.items()
        }
        self._wake.set()
        self._changed()

    def _expired(self, why: str) -> None:
        log.error("announcements taken back", reason=why)
        self._accepted = {}
        self._wake.set()
        self._changed()

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
        self._changed()
