# SPDX-License-Identifier: Apache-2.0
"""A node's end of the node stream: follows its manager for ever, and needs none to go on.

:class:`NodeClient` belongs to a daemon (``lb-mux`` or ``lb-agent``), which runs :meth:`NodeClient.run` as a task and
applies what it is handed. No trouble of the network ever ends it. The order of things for each state:

    received, checked (term, base, digest)  ->  applied by the daemon  ->  in the cache, on disk  ->  acknowledged

so what is acknowledged is live and outlives a restart. Two tasks, which live as long as the daemon: one talks
(:meth:`NodeClient.run`), and what it hears only replaces what is wanted; the other applies (:meth:`NodeClient.obey`),
one state at a time, and no connection that ends, no new certificate and no newer order ends what it has begun.

A state that the daemon refuses is acknowledged with the reason; the one before serves on, and the refused one is tried
again, soon and then now and then, for what was in its way may go. So is what the daemon left out of a state that is
live otherwise. Orders that come from a manager which is no longer the one are refused: see :func:`refusal_of`.
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

from lb.daemon.log import get_logger
from lb.daemon.supervise import describe, first
from lb.errors import AccessError, IoError, MessageError, VipmuxError
from lb.node.cache import Cache, Cached
from lb.node.identity import Identity, ManagerUnreachableError, TokenText, unreachable
from lb.node.lazy_section import pack_sections
from lb.node.messages import (
    LEFT_OUT_KEY_MAX,
    LEFT_OUT_MAX,
    LEFT_OUT_REASON_MAX,
    TEXT_MAX,
    TO_NODE_MAX,
    Ack,
    Delta,
    DeltaMessage,
    Digest,
    Examination,
    ExamineQuestion,
    FlowAnswer,
    FlowNewsMessage,
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
    ToNode,
    UnknownMessage,
    apply,
    diff,
    encode,
    keys_of,
    parse_to_node,
)
from lb.node.outbox import Outbox

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
#: What was refused or left out is tried again after these times, the last of them again and again, seconds.
RETRIES = (0.5, 1.0, 2.0, 5.0, 10.0)
#: Once no order came for so long, what is on the disk is put in order, seconds.
LULL = 1.0
#: So many entries are looked at in the event loop: it takes less time than to ask a thread.
SMALL = 100
#: Messages longer than this are parsed beside the event loop.
_LARGE = 1 << 16

log = get_logger()


@dataclass(slots=True)
class _WantedState:
    """The newest order, whether it is live or not, and its digest to be carried on."""

    cached: Cached
    sum: Digest | None  #: None: not yet known
    base: Cached  #: what was live when ``keys`` were counted
    keys: Keys | None  #: where it may differ from the base; None: anywhere
    acknowledged: bool = False


def refusal_of(message: Order, highest: Cached) -> str | None:
    """Why an order is not to be obeyed, or None. ``highest``: the marks of the newest order that was.

    A lower term: a manager that is no longer the one. The same history at an earlier point, whatever the term: a backup
    was put back. Another history in a term that is not higher: a store was lost and begun anew, or copied.
    """
    if message.term < highest.term:
        return f"an order of term {message.term}; this node has orders of term {highest.term}"
    if not message.lineage or not highest.lineage:
        return None
    if message.lineage == highest.lineage:
        if message.revision < highest.revision:
            return (
                f"an order of version {message.revision} of the manager's store; this node has had orders of version "
                f"{highest.revision}: the store is older than it was (see lb-manager take-over)"
            )
        return None
    if message.term == highest.term:
        return (
            f"an order from another store than before, in the same term {message.term}: the manager's store was "
            "replaced (see lb-manager take-over)"
        )
    return None


class NodeClient:
    """One node's connection to its manager."""

    def __init__(
        self,
        url: str,
        identity: Identity,
        cache: Cache,
        apply: Callable[[NodeState, Delta], Awaitable[Mapping[str, str]]],
        settings: Callable[[], Mapping[str, Any]],
        *,
        token: TokenText | None = None,
        lease: float = LEASE,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``apply`` makes a state live, of which the delta tells what differs from the one that was live. It returns
        what it had to leave out, and why (see :class:`~lb.node.messages.Ack`), or raises VipmuxError, with all as it
        was. ``settings`` is what hello says."""
        self.url = url
        self.identity = identity
        #: Every report of the node, for a manager that knows none.
        self.reports: Callable[[], Sequence[HealthReport]] | None = None
        #: Is handed what is said about flows, in order; returns at once.
        self.letters: Callable[[FlowsToNode], None] | None = None
        #: Called when a connection has come about: what was said before may be lost.
        self.joined: Callable[[], None] | None = None
        #: Answers what the manager asks of a flow; only MUXes are asked.
        self.answer: Callable[[FlowQuestion], FlowAnswer] | None = None
        #: Is handed the manager's wish to have this node examined; returns at once, see :meth:`send_examination`.
        self.examine: Callable[[ExamineQuestion], None] | None = None
        self.connected = False
        #: By the loop's clock: since when there is no connection; None while there is one.
        self.away_since: float | None = None
        self._no_connection: str | None = "not connected yet"
        self._not_kept: str | None = None
        self._cache = cache
        self._apply = apply
        self._settings = settings
        self._token = token
        self._lease = lease
        self.wall = wall
        self._outbox = Outbox(lease, wall)
        self._wake = asyncio.Event()
        self._live = Cached(0, 0, "", {})
        self._kept: Cached | None = None  # on the disk, by us
        self._highest = Cached(0, 0, "", {})  # marks of the newest order that was obeyed
        self._tip: _WantedState | None = None  # what the next change on this connection builds upon
        self._wanted: _WantedState | None = None
        self._news = asyncio.Event()  # something is to be applied, or tried again
        self._applying = asyncio.Lock()  # one state at a time
        self._attempts = 0  # in vain, one after the other
        self._refused: str | None = None
        self._disobeyed = ""
        self._left_out: Mapping[str, str] = {}
        self._renewed = -math.inf
        self._held_since = time.monotonic()  # by a clock that nobody sets: the certificate is here since then, at least

    # -- for the daemon -----------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Of the state that is live."""
        return self._live.generation

    @property
    def term(self) -> int:
        """The highest seen."""
        return self._highest.term

    @property
    def problem(self) -> str | None:
        """Why there is no connection, or what else is not as it should be, for people."""
        return self._no_connection or self._not_kept

    @property
    def left_out(self) -> Mapping[str, str]:
        """What of the live state this node does not serve, and why."""
        return self._left_out

    @property
    def refused(self) -> str | None:
        """Why the newest state is not live."""
        return self._refused

    def begin_with(self, cached: Cached, problem: str | None = None) -> None:
        """The daemon began with this state of the cache, or would have but for the problem."""
        self._highest = replace(cached, state={})
        self._live = cached if problem is None else Cached(0, 0, "", {})

    def began_without(self, left_out: Mapping[str, str]) -> None:
        """The daemon began with the state of the cache but for these."""
        self._tell_left_out(_bounded(left_out))

    def retry(self) -> None:
        """Something changed at the node: what was refused or left out is tried again at once."""
        self._attempts = 0
        self._news.set()

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

    def send_examination(self, examination: Examination) -> None:
        """What this node's own doctor finds, as was asked."""
        self._outbox.answer(examination)
        self._wake.set()

    async def run(self) -> None:
        """Talks to the manager; returns never, whatever becomes of that."""
        delay = BACKOFF_MIN
        self._gone()
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
            self._lost(self._doubts(reason))
            if time.monotonic() - started > BACKOFF_MAX:
                delay = BACKOFF_MIN
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  spreads nodes, hides nothing
            delay = min(2 * delay, BACKOFF_MAX)

    def _lost(self, reason: str) -> None:
        """One line for each reason, not for each attempt."""
        if self.connected or reason != self._no_connection:
            log.warning("no manager", reason=reason, serving="the last good state", generation=self.generation)
        self._gone()
        self._no_connection = reason

    def _gone(self) -> None:
        self.connected = False
        if self.away_since is None:
            self.away_since = asyncio.get_running_loop().time()

    # -- identity -----------------------------------------------------------------------------------------------

    async def _ready_identity(self) -> None:
        if self.identity.usable(self.wall()):
            return
        if self._token is not None:
            await self.join()
        elif self.identity.held is None:
            raise AccessError(f"this node has no certificate: {self.identity.how_to_join}")

    def _doubts(self, reason: str) -> str:
        """With what this machine's clock says of our certificate: the manager may refuse it for that, or the clock is
        what is wrong."""
        now = self.wall()
        doubt = self.identity.doubted(now)
        if doubt is None:
            return reason
        says = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
        return (
            f"this node's certificate {doubt}: {self.identity.how_to_join}, unless it is this machine's clock that is "
            f"wrong (it says {says}); {reason}"
        )

    async def join(self) -> None:
        """Uses the token. Raises AccessError or ManagerUnreachableError."""
        assert self._token is not None  # noqa: S101
        try:
            await self.identity.join(self.url, self._token)
        except AccessError:
            self._token = None  # it would be refused again
            raise
        self._token = None
        # Another authority counts its terms from the beginning. What its predecessor wanted is no order any more, but
        # for what is being applied just now.
        self._wanted = None
        async with self._applying:
            self._highest = Cached(0, 0, "", {})
            self._live = Cached(0, 0, self._live.digest, self._live.state)
            try:
                await asyncio.to_thread(self._cache.forget_term)
            except IoError as error:  # the next state that can be kept says its term
                log.error("state not kept", reason=str(error))
        log.info("joined", manager=self.url, certificate=self.identity.common_name)

    async def _renewals(self) -> None:
        """Returns when there is a new certificate, and the connection should be made anew with it."""
        while self.identity.held is not None:
            held = self.identity.held
            now = self.wall()
            life = held.not_after - held.not_before
            age = time.monotonic() - self._held_since
            if held.renewal_due(now, age) and time.monotonic() - self._renewed > life / 20:  # a wrong clock: no storm
                self._renewed = time.monotonic()
                try:
                    await self.identity.renew(self.url, now)
                except (AccessError, IoError, ManagerUnreachableError) as error:
                    log.warning("certificate not renewed", reason=str(error), seconds_left=int(held.not_after - now))
                else:
                    self._held_since = time.monotonic()
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
                    ssl=self.identity.context(self.wall()),
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
        self._tip = _WantedState(self._live, None, self._live, {})
        await first(self._renewals(), self._receive(stream), self._send(stream), self._lease_renewals())

    def _hello(self, *, whole: bool) -> Hello:
        """``whole``: asks for the whole state, whatever we hold."""
        generation, digest = (0, "") if whole else (self._live.generation, self._live.digest)
        marks = self._highest
        return Hello(
            marks.term,
            generation,
            digest,
            dict(self._settings()),
            _version(),
            marks.lineage,
            marks.revision,
            self._left_out,
        )

    async def _send(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages = self._outbox.take()
            while messages:
                try:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await stream.send_str(encode(messages[0]))
                except TimeoutError:
                    self._outbox.put_back(messages)
                    raise ManagerUnreachableError("takes no more messages") from None
                except BaseException:  # also where the connection ended elsewhere
                    self._outbox.put_back(messages)
                    raise
                del messages[0]

    async def _lease_renewals(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            self._outbox.renew_lease()
            self._wake.set()

    async def _receive(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in stream:
            if frame.type is aiohttp.WSMsgType.ERROR:
                break  # it does not answer any more
            if frame.type is not aiohttp.WSMsgType.TEXT:
                raise MessageError("the manager sent what is no text frame")
            text = frame.data
            large = len(text) > _LARGE
            message = await asyncio.to_thread(parse_to_node, text) if large else parse_to_node(text)
            await self._read(message)
            del frame, text, message  # they may be large, and the next may be long in coming
        error = stream.exception()
        if error is not None:
            raise unreachable(error)
        raise ManagerUnreachableError("closed the connection")

    async def _read(self, message: ToNode) -> None:
        match message:
            case RefusedMessage(reason):
                raise AccessError(f"the manager refused: {reason}")
            case UnknownMessage():
                return
            case FlowsMessage() | FlowsWantedMessage() | FlowsDoneMessage() | FlowNewsMessage():
                if self.letters is not None:
                    self.letters(message)
            case FlowQuestion():
                self._asked(message)
            case ExamineQuestion():
                if self.examine is not None:
                    self.examine(message)
            case StateMessage() | DeltaMessage():
                if not self.connected:
                    self.connected, self._no_connection, self.away_since = True, None, None
                    log.info("manager connected", manager=self.url, term=message.term, generation=message.generation)
                    if self.joined is not None:
                        self.joined()
                await self._hear(message)

    def _asked(self, question: FlowQuestion) -> None:
        """Whatever goes wrong in answering is the answer; a question is no reason to stop forwarding."""
        if self.answer is None:
            return
        try:
            answer = self.answer(question)
        except Exception as error:
            if not isinstance(error, VipmuxError):
                log.error("question not answered", asked="flow", reason=describe(error), exc_info=error)
            answer = FlowAnswer(question.serial, error=describe(error)[:TEXT_MAX])
        self._outbox.answer(answer)
        self._wake.set()

    # -- orders -------------------------------------------------------------------------------------------------

    async def _hear(self, message: Order) -> None:
        """Checks an order and makes it what is wanted; or refuses it, or asks for it anew."""
        reason = refusal_of(message, self._highest)
        if reason is not None:
            if reason != self._disobeyed:
                log.error("order refused", reason=reason)
            self._disobeyed = reason
            self._say(Ack(message.term, message.generation, reason))
            return
        self._disobeyed = ""
        lineage, revision = message.lineage, message.revision
        if not lineage:  # an older manager, which does not know them: they are no others for that
            lineage, revision = self._highest.lineage, self._highest.revision
        self._highest = Cached(message.term, 0, "", {}, lineage, revision)
        try:
            if isinstance(message, StateMessage):
                wanted: _WantedState | None = await self._whole(message)
            else:
                wanted = await self._changed(message)
        except (UnicodeEncodeError, RecursionError, AttributeError, TypeError):
            raise MessageError("the manager sent a state that cannot be hashed") from None
        if wanted is None:
            self._outbox.greet(self._hello(whole=True))
            self._wake.set()
            return
        self._tip = self._wanted = wanted
        self._attempts = 0
        self._news.set()

    async def _whole(self, message: StateMessage) -> _WantedState:
        state = await asyncio.to_thread(pack_sections, message.body)
        total = await asyncio.to_thread(Digest, state)
        if str(total) != message.digest:
            raise MessageError("a state that is not what its digest says")
        return _WantedState(self._labelled(message, state), total, self._live, None)

    async def _changed(self, message: DeltaMessage) -> _WantedState | None:
        """None: it does not fit to what we have."""
        tip = self._tip
        if tip is None or message.base != tip.cached.generation:
            held = tip.cached.generation if tip is not None else "nothing"
            log.info("whole state asked for", reason=f"a change of {message.base}, and this is {held}")
            return None
        before = tip.cached
        if tip.sum is None:
            tip.sum = await asyncio.to_thread(Digest, before.state)
        fresh = keys_of(message.delta)
        small = sum(map(len, fresh.values())) <= SMALL
        put = pack_sections(message.set) if small else await asyncio.to_thread(pack_sections, message.set)
        delta = {"set": put, "remove": message.remove}
        total = tip.sum.copy()
        total.update(before.state, delta)
        if str(total) != message.digest:
            log.warning("whole state asked for", reason="a change does not lead to what its digest says")
            return None
        # Taken only now: while we waited, what the change builds upon may have become live.
        return _WantedState(
            self._labelled(message, apply(before.state, delta)), total, tip.base, _united(tip.keys, fresh)
        )

    def _labelled(self, message: Order, state: NodeState) -> Cached:
        marks = self._highest
        return Cached(message.term, message.generation, message.digest, state, marks.lineage, marks.revision)

    async def obey(self) -> None:
        """Makes live what is wanted, one state at a time; returns never. Not to be cancelled while a state is being
        applied: the daemon sees to it."""
        self._news.set()  # should a life before this one have ended in the middle
        while True:
            while self._kept is self._live and self._cache.due and await self._lull():
                await self._keep(self._live, None)  # else an acknowledgement would wait for it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._news.wait()
            self._news.clear()
            async with self._applying:
                if self._wanted is not None:
                    await self._make_live(self._wanted)
                elif self._left_out:
                    await self._make_live(_WantedState(self._live, None, self._live, {}, acknowledged=True))

    async def _lull(self) -> bool:
        """Whether nothing is to be done for a while."""
        if self._patience() is not None:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LULL):
                await self._news.wait()
        return not self._news.is_set()

    def _patience(self) -> float | None:
        """Until the next try, seconds."""
        if self._refused is None and not self._left_out:
            return None
        return RETRIES[min(self._attempts, len(RETRIES) - 1)]

    async def _make_live(self, wanted: _WantedState) -> None:
        """Applied, then on disk, then acknowledged."""
        cached, before = wanted.cached, self._live
        keys = wanted.keys if wanted.base is before else None
        small = sum(map(len, cached.state.values() if keys is None else keys.values())) <= SMALL
        delta = (
            diff(before.state, cached.state, keys)
            if small
            else await asyncio.to_thread(diff, before.state, cached.state, keys)
        )
        # What is equal stays the same object, so that the daemon sees at a glance what is new.
        cached = replace(cached, state=apply(before.state, delta))
        left_out = self._left_out
        # Else a manager that came back, with another number.
        if cached.digest != before.digest or left_out or self._refused is not None:
            try:
                left_out = _bounded(await self._apply(cached.state, delta))
            except Exception as error:
                self._refuse(cached, error)
                return
        self._attempts = self._attempts + 1 if left_out else 0
        fresh, news = cached.label != before.label, not wanted.acknowledged or left_out != self._left_out
        self._live, self._refused = cached, None
        self._tell_left_out(left_out)
        self._became_live(wanted, cached, before, keys_of(delta))
        if fresh:
            await self._keep(cached, delta)
        if news:
            wanted.acknowledged = True
            self._say(Ack(cached.term, cached.generation, None, left_out))

    def _became_live(self, wanted: _WantedState, cached: Cached, before: Cached, keys: Keys) -> None:
        """What differs from what is live is counted anew from here."""
        newest = self._wanted
        if newest is wanted:
            wanted.cached, wanted.base, wanted.keys = cached, cached, {}
        elif newest is not None and newest.base is before:
            newest.base, newest.keys = cached, _united(newest.keys, keys)

    def _refuse(self, cached: Cached, error: Exception) -> None:
        refusal = describe(error) if not isinstance(error, VipmuxError) else str(error)
        self._attempts += 1
        if refusal != self._refused:
            meant = isinstance(error, VipmuxError)
            log.error(
                "state refused",
                generation=cached.generation,
                reason=refusal,
                **({} if meant else {"exc_info": error}),
            )
        self._refused = refusal
        self._say(Ack(cached.term, cached.generation, refusal[:TEXT_MAX], self._left_out))

    def _tell_left_out(self, left_out: Mapping[str, str]) -> None:
        """Once for each, and when it is over."""
        for name, reason in left_out.items():
            if self._left_out.get(name) != reason:
                log.error("left out", what=name, reason=reason, then="everything else goes on; it is tried again")
        for name in self._left_out.keys() - left_out.keys():
            log.info("no longer left out", what=name)
        self._left_out = left_out

    async def _keep(self, cached: Cached, delta: Mapping[str, Any] | None) -> None:
        """A disk that cannot be written must not stop the pool; it is said loudly instead."""
        try:
            await asyncio.to_thread(self._cache.save, cached, delta)
        except IoError as error:
            if str(error) != self._not_kept:
                log.error("state not kept", reason=str(error))
                self.send_event(f"state not kept: {error}")
            self._not_kept = str(error)
        else:
            self._kept, self._not_kept = cached, None

    def _say(self, ack: Ack) -> None:
        self._outbox.ack(ack)
        self._wake.set()


def _united(one: Keys | None, other: Keys) -> Keys | None:
    if one is None:
        return None
    return {section: {*one.get(section, ()), *other.get(section, ())} for section in one.keys() | other.keys()}


def _bounded(left_out: Mapping[str, str]) -> dict[str, str]:
    """As much of it as a message holds."""
    shown = sorted(left_out)[:LEFT_OUT_MAX]
    return {name[:LEFT_OUT_KEY_MAX]: " ".join(left_out[name].split())[:LEFT_OUT_REASON_MAX] for name in shown}


def _version() -> str:
    try:
        return version("vipmux")
    except PackageNotFoundError:
        return ""
