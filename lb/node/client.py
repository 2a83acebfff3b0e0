# SPDX-License-Identifier: Apache-2.0
"""A node's end of the node stream: follows its manager for ever, and needs none to go on.

:class:`NodeClient` belongs to a daemon (``lb-mux`` or ``lb-agent``), which runs :meth:`NodeClient.run` as a task and
applies what it is handed. No trouble of the network ever ends it. The order of things for each state:

    received, checked (term, base, digest)  ->  applied by the daemon  ->  in the cache, on disk  ->  acknowledged

so what is acknowledged is live and outlives a restart. A state that the daemon refuses is acknowledged with the reason;
the one before serves on, and the refused one is tried again now and then, for what was in its way may go. Orders of a
term lower than the highest seen are refused: they come from a manager that is no longer the one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import aiohttp

from lb.errors import AccessError, IoError, MessageError
from lb.log import get_logger
from lb.node.cache import Cache, Cached
from lb.node.identity import Identity, ManagerUnreachableError, TokenText, unreachable
from lb.node.messages import (
    TEXT_MAX,
    TO_NODE_MAX,
    Ack,
    Delta,
    DeltaMessage,
    Digest,
    FlowAnswer,
    FlowQuestion,
    FlowsDoneMessage,
    FlowsFromNode,
    FlowsMessage,
    FlowsToNode,
    FlowsWantedMessage,
    HealthReport,
    Hello,
    Keys,
    NodeState,
    Order,
    RefusedMessage,
    StateMessage,
    UnknownMessage,
    apply,
    diff,
    encode,
    keys_of,
    parse_to_node,
)
from lb.node.outbox import Outbox
from lb.node.packed import pack_sections

#: Between two attempts, seconds; doubled each time, and each time shortened at random by up to a half.
BACKOFF_MIN, BACKOFF_MAX = 0.2, 5.0
#: A connection that says nothing for so long is asked whether it lives, and given up after half of it again, seconds.
#: A manager that plans ten thousand services anew, on a busy machine, may well be silent for a few.
HEARTBEAT = 10.0
CONNECT_TIMEOUT = 10.0
#: Until a manager that takes nothing is given up, seconds.
SEND_TIMEOUT = 20.0
#: How long the manager believes our reports after the last message, seconds.
LEASE = 10.0
#: A refused state is tried again after this time, seconds.
RETRY = 10.0
#: Orders that wait to be applied; more wait in the kernel.
PENDING_MAX = 64
#: So many entries are looked at in the event loop: it takes less time than to ask a thread.
SMALL = 100
#: Messages longer than this are parsed beside the event loop.
_LARGE = 1 << 16

log = get_logger()


@dataclass(slots=True)
class _Wanted:
    """The newest order, whether it is live or not, and its digest to be carried on."""

    cached: Cached
    sum: Digest
    keys: Keys | None  #: where it may differ from what is live; None: anywhere


class NodeClient:
    """One node's connection to its manager."""

    def __init__(
        self,
        url: str,
        identity: Identity,
        cache: Cache,
        apply: Callable[[NodeState, Delta], Awaitable[str | None]],
        settings: Callable[[], Mapping[str, Any]],
        *,
        token: TokenText | None = None,
        lease: float = LEASE,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``apply`` makes a state live, of which the delta tells what differs from the one that was live, and returns
        None, or why it refuses. ``settings`` is what hello says."""
        self.url = url
        self.identity = identity
        #: Every report of the node, for a manager that knows none.
        self.reports: Callable[[], Sequence[HealthReport]] | None = None
        #: Is handed what is said about flows, in order; returns at once.
        self.letters: Callable[[FlowsToNode], None] | None = None
        #: Answers what the manager asks of a flow; only MUXes are asked.
        self.answer: Callable[[FlowQuestion], FlowAnswer] | None = None
        self.connected = False
        #: Why there is no connection, or what else is not as it should be, for people.
        self.problem: str | None = "not connected yet"
        self._cache = cache
        self._apply = apply
        self._settings = settings
        self._token = token
        self._lease = lease
        self.wall = wall
        self._outbox = Outbox(lease, wall)
        self._wake = asyncio.Event()
        self._live = Cached(0, 0, "", {})
        self._wanted: _Wanted | None = None
        self._term = 0
        self._refused: str | None = None
        self._orders: asyncio.Queue[Order | None] = asyncio.Queue(PENDING_MAX)
        self._renewed = -math.inf

    # -- for the daemon -----------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Of the state that is live."""
        return self._live.generation

    @property
    def term(self) -> int:
        """The highest seen."""
        return self._term

    @property
    def refused(self) -> str | None:
        """Why the newest state is not live."""
        return self._refused

    def begin_with(self, cached: Cached, problem: str | None = None) -> None:
        """The daemon began with this state of the cache, or would have but for the problem."""
        self._term = cached.term
        self._live = cached if problem is None else Cached(0, 0, "", {})

    def retry(self) -> None:
        """Something changed at the node: a refused state is tried again at once."""
        if not self._orders.full():
            self._orders.put_nowait(None)

    def send_health(self, reports: Iterable[HealthReport]) -> None:
        """Words that are new; those said before stand."""
        self._outbox.health(reports)
        self._wake.set()

    def send_status(self, body: Mapping[str, Any]) -> None:
        """Sent if it is another than before; the newest wins."""
        self._outbox.status(body)
        self._wake.set()

    def send_event(self, text: str) -> None:
        self._outbox.event(text)
        self._wake.set()

    def send_letter(self, letter: FlowsFromNode) -> bool:
        """A part of a hand-over of flows; False: it cannot be said now."""
        said = self.connected and self._outbox.letter(letter)
        self._wake.set()
        return said

    async def run(self) -> None:
        """Returns never, whatever becomes of the manager."""
        delay = BACKOFF_MIN
        while True:
            reason: str | None = None
            started = time.monotonic()
            try:
                await self._ready_identity()
                await self._connection()
            except (AccessError, MessageError, IoError) as error:
                reason = str(error)
            except ManagerUnreachableError as error:
                reason = f"{self.url}: {error}"
            if reason is None:  # ended by ourselves, for a new certificate
                continue
            self._lost(reason)
            if time.monotonic() - started > BACKOFF_MAX:
                delay = BACKOFF_MIN
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  spreads nodes, hides nothing
            delay = min(2 * delay, BACKOFF_MAX)

    def _lost(self, reason: str) -> None:
        """One line for each reason, not for each attempt."""
        if self.connected or reason != self.problem:
            log.warning("no manager", reason=reason, serving="the last good state", generation=self.generation)
        self.connected = False
        self.problem = reason

    # -- identity -----------------------------------------------------------------------------------------------

    async def _ready_identity(self) -> None:
        if self.identity.usable(self.wall()):
            return
        if self._token is None:
            held = self.identity.held
            raise AccessError(
                "this node has no certificate: make a token with `lb-manager token` and start once with --token"
                if held is None
                else "this node's certificate has expired: make a token with `lb-manager token --name` and start once "
                "with --token"
            )
        await self.join()

    async def join(self) -> None:
        """Uses the token. Raises AccessError or ManagerUnreachableError."""
        assert self._token is not None  # noqa: S101
        try:
            await self.identity.join(self.url, self._token)
        except AccessError:
            self._token = None  # it would be refused again
            raise
        self._token = None
        # Another authority counts its terms from the beginning.
        await asyncio.to_thread(self._cache.forget_term)
        self._term = 0
        self._live = Cached(0, 0, self._live.digest, self._live.state)
        log.info("joined", manager=self.url, certificate=self.identity.common_name)

    async def _renewals(self) -> None:
        """Returns when there is a new certificate, and the connection should be made anew with it."""
        while self.identity.held is not None:
            held = self.identity.held
            now = self.wall()
            life = held.not_after - held.not_before
            if held.renewal_due(now) and time.monotonic() - self._renewed > life / 20:  # a wrong clock makes no storm
                self._renewed = time.monotonic()
                try:
                    await self.identity.renew(self.url)
                except (AccessError, IoError, ManagerUnreachableError) as error:
                    log.warning("certificate not renewed", reason=str(error), seconds_left=int(held.not_after - now))
                else:
                    log.info("certificate renewed", serial=self.identity.held.serial)
                    return
            await asyncio.sleep(min(60.0, life / 20))

    # -- one connection -----------------------------------------------------------------------------------------

    async def _connection(self) -> None:
        """From connecting to the end; raises why it ended, returns for a new certificate."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.ws_connect(
                    self.url + "/v1/stream",
                    ssl=self.identity.context(),
                    heartbeat=HEARTBEAT,
                    max_msg_size=TO_NODE_MAX,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                ) as stream,
            ):
                await self._converse(stream)
        except aiohttp.WSServerHandshakeError as error:
            raise ManagerUnreachableError(f"answers {error.status} instead of a node stream") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(error) from None

    async def _converse(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        reports = self.reports() if self.reports is not None else ()
        self._outbox.begin(self._hello(whole=False), reports)
        self._outbox.renew_lease()  # with it the manager hears of our clock at once
        self._wake.set()
        self._wanted = None
        orders = self._orders = asyncio.Queue(PENDING_MAX)
        renewal = asyncio.create_task(self._renewals())
        tasks = [
            renewal,
            asyncio.create_task(self._receive(stream, orders)),
            asyncio.create_task(self._obey(orders)),
            asyncio.create_task(self._send(stream)),
            asyncio.create_task(self._lease_renewals()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {renewal}:
                await task
            await renewal
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _hello(self, *, whole: bool) -> Hello:
        """``whole``: asks for the whole state, whatever we hold."""
        generation, digest = (0, "") if whole else (self._live.generation, self._live.digest)
        return Hello(self._term, generation, digest, dict(self._settings()), _version())

    async def _send(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for message in self._outbox.take():
                try:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await stream.send_str(encode(message))
                except TimeoutError:
                    raise ManagerUnreachableError("takes no more messages") from None

    async def _lease_renewals(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            self._outbox.renew_lease()
            self._wake.set()

    async def _receive(self, stream: aiohttp.ClientWebSocketResponse, orders: asyncio.Queue[Order | None]) -> None:
        async for frame in stream:
            if frame.type is aiohttp.WSMsgType.ERROR:
                break  # it does not answer any more
            if frame.type is not aiohttp.WSMsgType.TEXT:
                raise MessageError("the manager sent what is no text frame")
            text = frame.data
            large = len(text) > _LARGE
            message = await asyncio.to_thread(parse_to_node, text) if large else parse_to_node(text)
            if isinstance(message, RefusedMessage):
                raise AccessError(f"the manager refused: {message.reason}")
            if isinstance(message, UnknownMessage):
                continue
            if isinstance(message, FlowsMessage | FlowsWantedMessage | FlowsDoneMessage):
                if self.letters is not None:
                    self.letters(message)
                continue
            if isinstance(message, FlowQuestion):
                if self.answer is not None:
                    self._outbox.answer(self.answer(message))
                    self._wake.set()
                continue
            if not self.connected:
                self.connected, self.problem = True, None
                log.info("manager connected", manager=self.url, term=message.term, generation=message.generation)
            await orders.put(message)
            del frame, text, message  # they may be large, and the next may be long in coming
        error = stream.exception()
        if error is not None:
            raise unreachable(error)
        raise ManagerUnreachableError("closed the connection")

    # -- orders -------------------------------------------------------------------------------------------------

    async def _obey(self, orders: asyncio.Queue[Order | None]) -> None:
        """All orders that wait become one state to be applied: the newest is what counts."""
        while True:
            message: Order | None = None  # None: what was refused is tried again
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._refused is None else RETRY):
                    message = await orders.get()
            news = message is None
            while True:
                if message is not None:
                    news |= await self._take(message)
                message = None  # it may be large
                if orders.empty():
                    break
                message = orders.get_nowait()
            if self._wanted is not None and news:
                await self._make_live(self._wanted)

    async def _take(self, message: Order) -> bool:
        """Checks an order and makes it what is wanted; False: it is refused, or it is asked for anew."""
        if message.term < self._term:
            reason = f"an order of term {message.term}; this node has orders of term {self._term}"
            log.error("order refused", reason=reason)
            self._say(Ack(message.term, message.generation, reason))
            return False
        self._term = message.term
        try:
            if isinstance(message, StateMessage):
                wanted: _Wanted | None = await self._whole(message)
            else:
                wanted = await self._changed(message)
        except (UnicodeEncodeError, RecursionError, AttributeError, TypeError):
            raise MessageError("the manager sent a state that cannot be hashed") from None
        if wanted is None:
            self._outbox.greet(self._hello(whole=True))
            self._wake.set()
            return False
        self._wanted = wanted
        return True

    async def _whole(self, message: StateMessage) -> _Wanted:
        state = await asyncio.to_thread(pack_sections, message.body)
        total = await asyncio.to_thread(Digest, state)
        if str(total) != message.digest:
            raise MessageError("a state that is not what its digest says")
        return _Wanted(Cached(message.term, message.generation, message.digest, state), total, None)

    async def _changed(self, message: DeltaMessage) -> _Wanted | None:
        """None: it does not fit to what we have."""
        wanted = self._wanted or _Wanted(self._live, await asyncio.to_thread(Digest, self._live.state), {})
        before = wanted.cached
        if message.base != before.generation:
            log.info("whole state asked for", reason=f"a change of {message.base}, and this is {before.generation}")
            return None
        fresh = keys_of(message.delta)
        small = sum(map(len, fresh.values())) <= SMALL
        put = pack_sections(message.set) if small else await asyncio.to_thread(pack_sections, message.set)
        delta = {"set": put, "remove": message.remove}
        total = wanted.sum.copy()
        total.update(before.state, delta)
        if str(total) != message.digest:
            log.warning("whole state asked for", reason="a change does not lead to what its digest says")
            return None
        state = apply(before.state, delta)
        keys = wanted.keys
        if keys is not None:
            keys = {
                section: {*keys.get(section, ()), *fresh.get(section, ())} for section in keys.keys() | fresh.keys()
            }
        return _Wanted(Cached(message.term, message.generation, message.digest, state), total, keys)

    async def _make_live(self, wanted: _Wanted) -> None:
        """Applied, then on disk, then acknowledged."""
        cached, live, keys = wanted.cached, self._live.state, wanted.keys
        small = sum(map(len, cached.state.values() if keys is None else keys.values())) <= SMALL
        delta = diff(live, cached.state, keys) if small else await asyncio.to_thread(diff, live, cached.state, keys)
        # What is equal stays the same object, so that the daemon sees at a glance what is new.
        cached = replace(cached, state=apply(live, delta))
        if cached.digest != self._live.digest:  # else a manager that came back, with another number
            refusal = await self._apply(cached.state, delta)
            if refusal is not None:
                if refusal != self._refused:
                    log.error("state refused", generation=cached.generation, reason=refusal)
                self._refused = refusal
                self._say(Ack(cached.term, cached.generation, refusal[:TEXT_MAX]))
                return
        self._live, self._refused = cached, None
        wanted.cached, wanted.keys = cached, {}
        await self._keep(cached, delta)
        self._say(Ack(cached.term, cached.generation))

    async def _keep(self, cached: Cached, delta: Mapping[str, Any] | None) -> None:
        """A disk that cannot be written must not stop the pool; it is said loudly instead."""
        try:
            await asyncio.to_thread(self._cache.save, cached, delta)
        except IoError as error:
            if str(error) != self.problem:
                log.error("state not kept", reason=str(error))
                self.send_event(f"state not kept: {error}")
            self.problem = str(error)
        else:
            self.problem = None

    def _say(self, ack: Ack) -> None:
        self._outbox.ack(ack)
        self._wake.set()


def _version() -> str:
    try:
        return version("vipmux")
    except PackageNotFoundError:
        return ""
