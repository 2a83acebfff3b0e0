# SPDX-License-Identifier: Apache-2.0
"""A listening socket that strangers cannot exhaust: accepts, hands connections to aiohttp, and bounds what they cost.

:mod:`manager.trust.stranger_limits` decides who comes in; this does it. A stranger has so long for its handshake and
for each request, and may send so much; whoever does nothing is let go. Nothing is unpacked, and nobody's body is waited
for, before it is known who asks (:mod:`manager.api.server` says so by :func:`known`; a certificate says it by itself).
Where descriptors run out, accepting pauses. One line of the log a few seconds says how many were turned away. Made by
:mod:`manager.daemon`, one for each address that the manager listens on; used in the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import resource
import socket
import ssl
import time
from asyncio import sslproto
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

from aiohttp import web

from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from manager.trust.stranger_limits import Credit, Guests, Limits
from manager.trust.trust import note_peer

#: A handshake has to end within so long, and a stranger's next request to be there, seconds.
HANDSHAKE_TIMEOUT = 5.0
IDLE_STRANGER = 10.0
#: Whoever waits for its handshake, silent or not, is let go after so long, seconds.
WAIT_MAX = 10.0
#: Connections of somebody known stay open between two requests for so long, seconds.
IDLE_KNOWN = 75
#: All that a stranger may send over one connection, bytes: some requests of the largest heads there can be. What comes
#: in little pieces counts as if each were so large, for that is what costs.
STRANGER_BYTES, PIECE = 256 * 1024, 1024
#: Of what is read at once, and kept until somebody takes it, bytes.
READ_SIZE = 32 * 1024
#: Connections of one operator or node, and handshakes of it that are not counted against its address.
KNOWN_EACH = 256
KNOWN_BURST, KNOWN_RATE = 300.0, 20.0
#: Whoever reads so slowly that of an answer something is left after so long is let go, seconds.
UNREAD_MAX = 30.0
#: Answers that nobody takes may need so much in all, bytes; beyond it whoever has the most of it is let go, unless it
#: was answered less than so many seconds ago.
UNREAD_ALL, UNREAD_FRESH = 128 << 20, 2.0
#: So many are accepted in one go, others being served between. Whoever opens more than so many at once, and so many a
#: second after that, is accepted no faster: they wait so long for the next go, seconds.
ACCEPTS, ACCEPT_BURST, ACCEPT_RATE, ACCEPT_PAUSE = 64, 2048.0, 4300.0, 0.02
#: Nobody is accepted for so long where the machine has no room for more, seconds.
FULL_PAUSE = 0.25
#: How often time is looked at, and what was turned away is said, seconds.
SWEEP, SAY = 0.5, 10.0
#: Connections and requests of one node, at once and a second. One more request is refused; one more connection costs
#: its address so much more credit, for a handshake is dear, and nobody is known before it.
NODE_BURST, NODE_RATE, NODE_OVERDRAWN = 30.0, 1.0, 7.0
#: After an answer nobody's body is read on for longer, seconds.
LINGER = 1.0
_TOO_OFTEN = "asked too often before it was known who it is"
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Who a client's certificate is of, as verified; None: of nobody who may come in.
Recognise = Callable[[Mapping[str, Any]], str | None]
#: Is told how many bytes were read of a connection, in how many pieces, and the CPU seconds that the HTTP library took
#: for them; says for how long no more is to be read.
Meter = Callable[[int, int, float], float]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = get_logger()


class Guest(asyncio.Protocol):
    """One connection: aiohttp's protocol, and what is counted beside it."""

    __slots__ = (
        "_asked", "_door", "_held", "_inner", "_inner_full", "_pieces", "_spent", "_tls", "_transport",
        "address", "left", "meter", "serving", "since", "socket", "stranger", "who",
    )  # fmt: skip

    def __init__(self, door: Door, connection: socket.socket, address: str, now: float) -> None:
        self._door = door
        self._inner: web.RequestHandler | None = None
        self._transport: asyncio.Transport | None = None
        self._spent = 1  #: of its address's credit: the handshake with a first request, and further ones
        self._asked = False
        self._held = self._inner_full = False  # why nothing is read: it owes, or what was read waits for its turn
        self._tls: object = None  # counts its records (manager.trust), of which so many were told
        self._pieces = 0
        self.meter: Meter | None = None
        self.socket = connection
        self.address = address
        self.since = now  #: when it came, or the last request ended
        self.serving = 0  #: requests at work
        self.stranger = True
        self.left = STRANGER_BYTES
        self.who: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._tls = transport.get_extra_info("ssl_object")
        self._inner = self._door.opened(self, self._transport)
        self._inner.connection_made(cast("asyncio.Transport", _Reins(self, self._transport)))

    def data_received(self, data: bytes) -> None:
        if self.stranger:
            self.left -= max(len(data), PIECE)
            if self.left < 0:
                self._door.turned_away("sent too much before it was known who it is")
                self.drop()
                return
        if self._inner is None:
            return
        if self.meter is None:
            self._inner.data_received(data)
            return
        began = time.thread_time()
        self._inner.data_received(data)
        seconds = time.thread_time() - began
        before, self._pieces = self._pieces, getattr(self._tls, "reads", self._pieces + 1)
        self._hold(self.meter(len(data), self._pieces - before, seconds))

    def _hold(self, seconds: float) -> None:
        """Nothing more is read for so long: what it sends meanwhile waits in its own kernel."""
        if seconds > 0 and not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._release)

    def _release(self) -> None:
        self._held = False
        self._read_on()

    def inner_is(self, *, full: bool) -> None:
        """The HTTP library has as much as it can take, or no more."""
        self._inner_full = full
        if full and self._transport is not None:
            self._transport.pause_reading()
        self._read_on()

    def _read_on(self) -> None:
        if not self._held and not self._inner_full and self._transport is not None:
            self._transport.resume_reading()

    def eof_received(self) -> bool | None:
        if self._inner is not None:
            self._inner.eof_received()
        return None  # and the transport closes itself

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        inner, self._inner, self._transport, self._tls = self._inner, None, None, None
        if inner is not None:
            self._door.closed(self, inner)
            inner.connection_lost(error)

    def known(self, who: str) -> None:
        """It is somebody."""
        if self.stranger:
            self.stranger, self.who = False, who
            self._door.known(self, self._spent)

    def asks(self) -> bool:
        """One more request; False: too many."""
        first, self._asked = not self._asked, True
        if first:
            return True
        if not self.stranger:
            return self._door.may_ask(self.who or "")
        if not self._door.guests.asks(self.address):
            return False
        self._spent += 1
        return True

    def turned_away(self, reason: str) -> None:
        self._door.turned_away(reason)

    def stuck(self, now: float) -> bool:
        """It does not read what it asked for."""
        return self.unread > 0 and not self.serving and now - self.since > UNREAD_MAX

    @property
    def unread(self) -> int:
        """Bytes of its answers that it has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def drop(self) -> None:
        """At once, whatever it does."""
        if self._transport is not None:
            self._transport.abort()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class _Reins:
    """The transport as the HTTP library sees it: reading goes on when its guest is not held either."""

    __slots__ = ("_guest", "_transport")

    def __init__(self, guest: Guest, transport: asyncio.Transport) -> None:
        self._guest = guest
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self._guest.inner_is(full=True)

    def resume_reading(self) -> None:
        self._guest.inner_is(full=False)


#: Where a request keeps its connection.
GUEST: web.RequestKey[Guest] = web.RequestKey("guest", Guest)


def known(request: web.Request, who: str) -> None:
    """The request's sender is this operator or node: no bound of strangers is for it."""
    guest = request.get(GUEST)
    if guest is not None:
        guest.known(who)


def metered(request: web.Request, meter: Meter) -> None:
    """Whatever is read of the request's connection from now on is told to ``meter``."""
    guest = request.get(GUEST)
    if guest is not None:
        guest.meter = meter


def turned_away(request: web.Request, reason: str) -> None:
    """A line of the log for many of these, a few seconds later."""
    guest = request.get(GUEST)
    if guest is not None:
        guest.turned_away(reason)


class Door:
    """One listening socket. Use :func:`serving`."""

    def __init__(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        limits: Limits,
        recognise: Recognise,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._tls = tls
        self._recognise = recognise
        self._clock = clock
        self._make: Callable[[], web.RequestHandler] = _not_begun
        self.guests: Guests[Guest] = Guests(limits.for_descriptors(_descriptors()), clock)
        self._inside: dict[Guest, asyncio.Task[None]] = {}  # at their handshake
        self._open: dict[web.RequestHandler, Guest] = {}
        self._since: dict[Guest, float] = {}  # of those that wait
        self._identities: Counter[str] = Counter()
        self._credits: dict[str, Credit] = {}
        self._away: Counter[str] = Counter()
        self._said = clock()
        self._accepts = Credit(ACCEPT_BURST, ACCEPT_RATE, clock())
        self._pump: asyncio.TimerHandle | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    def start(self, make: Callable[[], web.RequestHandler]) -> None:
        """``make`` makes aiohttp's protocols."""
        self._make = make
        self._listener.setblocking(False)
        self._accept_again()
        self._tasks.restarted("door", self._sweep)

    def stop(self) -> None:
        """Nobody comes in any more."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        for handle in (self._pump, self._resume):
            if handle is not None:
                handle.cancel()
        for guest in self.guests.all_waiting():
            self._close(guest)
        self._listener.close()

    async def close(self) -> None:
        """The last is gone."""
        await self._tasks.close()
        handshakes = list(self._inside.values())
        for task in handshakes:
            task.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)
        for guest in list(self._open.values()):
            guest.drop()

    # -- who comes ----------------------------------------------------------------------------------------------

    def _accept_again(self) -> None:
        self._resume = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._resume = loop.call_later(seconds, self._accept_again)

    def _accept(self) -> None:
        now = self._clock()
        for _ in range(ACCEPTS):
            if not self._accepts.take(now):
                self._pause(ACCEPT_PAUSE)
                return
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._full(error)
                return
            self._came(connection, str(address[0]))

    def _full(self, error: OSError) -> None:
        """The machine has no room: whoever waits goes, and the rest is left to the kernel for a moment."""
        for guest in self.guests.all_waiting():
            self._reject(guest, "there was no room on this machine")
        self.turned_away(f"accepting paused: {(error.strerror or str(error)).lower()}")
        self._pause(FULL_PAUSE)

    def _came(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)
        now = self._clock()
        guest = Guest(self, connection, address, now)
        self._since[guest] = now
        asyncio.get_running_loop().add_reader(connection.fileno(), self._spoke, guest)
        for out in self.guests.came(guest, address):
            self._reject(out, "too many waited")

    def _spoke(self, guest: Guest) -> None:
        """It has begun its handshake, or has left."""
        asyncio.get_running_loop().remove_reader(guest.socket.fileno())
        try:
            there = guest.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            there = b""
        if there:
            self.guests.spoke(guest, guest.address)
            self._let_in()
        else:
            self.guests.left(guest, guest.address)
            self._close(guest)

    def _reject(self, guest: Guest, reason: str) -> None:
        """One that waited."""
        self._close(guest)
        self.turned_away(reason)

    def _close(self, guest: Guest) -> None:
        """Of one that waits no more."""
        self._since.pop(guest, None)
        asyncio.get_running_loop().remove_reader(guest.socket.fileno())
        guest.socket.close()

    def _let_in(self) -> None:
        """Whoever may begin its handshake does; looked at again in a moment where some wait."""
        while (found := self.guests.next()) is not None:
            guest, out = found
            self._since.pop(guest, None)
            for other in out:
                self.turned_away("was not known in time, and others came")
                self._put_out(other)
            note_peer(guest.address)  # for the log: the handshake runs in a copy of this context
            task = asyncio.get_running_loop().create_task(self._open_up(guest))
            self._inside[guest] = task
            task.add_done_callback(functools.partial(self._handshake_over, guest))
        if self._pump is None and self.guests.ready:
            self._pump = asyncio.get_running_loop().call_later(ACCEPT_PAUSE, self._pumped)

    def _handshake_over(self, guest: Guest, task: asyncio.Task[None]) -> None:
        self._inside.pop(guest, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a mistake of ours costs this guest alone, and is said
            log.error("a connection failed by itself", address=guest.address, exc_info=error)
            self.guests.left(guest, guest.address)
            guest.drop()

    def _pumped(self) -> None:
        self._pump = None
        self._let_in()

    def _put_out(self, guest: Guest) -> None:
        task = self._inside.get(guest)
        if task is not None:
            task.cancel()
        guest.drop()

    async def _open_up(self, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        limits = {"ssl_handshake_timeout": HANDSHAKE_TIMEOUT, "ssl_shutdown_timeout": 1.0} if self._tls else {}
        try:
            await loop.connect_accepted_socket(lambda: guest, guest.socket, ssl=self._tls, **limits)
        except OSError:  # of a certificate that is refused there is a line already
            self.guests.left(guest, guest.address)
            with contextlib.suppress(OSError):
                guest.socket.close()
        except asyncio.CancelledError:
            self.guests.left(guest, guest.address)
            raise

    # -- who is in ----------------------------------------------------------------------------------------------

    def opened(self, guest: Guest, transport: asyncio.Transport) -> web.RequestHandler:
        """Its handshake is over."""
        inner = self._make()
        self._open[inner] = guest
        guest.since = self._clock()
        certificate = transport.get_extra_info("peercert")
        who = self._recognise(certificate) if certificate else None
        if who is not None:
            guest.known(who)
        return inner

    def closed(self, guest: Guest, inner: web.RequestHandler) -> None:
        self._open.pop(inner, None)
        self.guests.left(guest, guest.address)
        if guest.who is not None:
            self._identities[guest.who] -= 1
            if not self._identities[guest.who]:
                del self._identities[guest.who]

    def known(self, guest: Guest, spent: int) -> None:
        who = guest.who or ""
        self._identities[who] += 1
        if self._credit_of(who).take(self._clock()):
            self.guests.known(guest, guest.address, spent)
        else:
            self.guests.known(guest, guest.address, -NODE_OVERDRAWN if _is_node(who) else 0)
        if self._identities[who] > KNOWN_EACH:
            self.turned_away(f"{who} has {KNOWN_EACH} connections already")
            guest.drop()
        self._let_in()

    def may_ask(self, who: str) -> bool:
        """One more request over a connection of somebody known. A node asks for little but its stream."""
        return not _is_node(who) or self._credit_of(who).take(self._clock())

    def _credit_of(self, who: str) -> Credit:
        credit = self._credits.get(who)
        if credit is None:
            if len(self._credits) > 20_000:
                self._credits.clear()
            limits = (NODE_BURST, NODE_RATE) if _is_node(who) else (KNOWN_BURST, KNOWN_RATE)
            credit = self._credits[who] = Credit(*limits, self._clock())
        return credit

    def turned_away(self, reason: str) -> None:
        """Counted, and said now and then: whoever is in a hurry must not fill the log."""
        self._away[reason] += 1
        if self._clock() - self._said > SAY:
            self._say()

    def _say(self) -> None:
        self._said = self._clock()
        for reason, times in self._away.items():
            log.warning("strangers turned away", times=times, reason=reason)
        self._away.clear()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = self._clock()
            late = [guest for guest, since in self._since.items() if now - since > WAIT_MAX]
            for guest in late:
                self.guests.left(guest, guest.address)
                self._reject(guest, f"waited for {WAIT_MAX:g} s")
            for guest in list(self._open.values()):
                if guest.stuck(now):
                    self.turned_away(f"took nothing of its answer for {UNREAD_MAX:g} s")
                    guest.drop()
                elif not guest.serving and now - guest.since > (IDLE_STRANGER if guest.stranger else IDLE_KNOWN):
                    guest.drop()
            self._make_room(now)
            if self._away and now - self._said > SAY:
                self._say()

    def _make_room(self, now: float) -> None:
        """Many who do not read need memory together, long before each has had its time."""
        unread = {guest: size for guest in self._open.values() if (size := guest.unread)}
        total = sum(unread.values())
        for guest in sorted(unread, key=unread.__getitem__, reverse=True):
            if total <= UNREAD_ALL:
                return
            if not guest.serving and now - guest.since > UNREAD_FRESH:
                total -= unread[guest]
                self.turned_away("took nothing of its answer, and others did neither")
                guest.drop()

    # -- every request ------------------------------------------------------------------------------------------

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The outermost of the application."""
        guest = self._open.get(request.protocol)
        if guest is None:
            return await handler(request)
        request[GUEST] = guest
        if not guest.asks():
            self.turned_away(f"{guest.who} asked too often" if guest.who else _TOO_OFTEN)
            answer = web.json_response(
                {"error": f"too many requests from {'you' if guest.who else 'this address'}; wait a moment"},
                status=429,
                headers={"Retry-After": "1"},
            )
            answer.force_close()
            return answer
        guest.serving += 1
        try:
            if request.headers.get("Content-Encoding", "identity").lower() != "identity":
                return web.json_response({"error": "a packed body is not taken; send it as it is"}, status=415)
            return await handler(request)
        finally:
            guest.serving -= 1
            guest.since = self._clock()


def _not_begun() -> web.RequestHandler:
    raise RuntimeError("Door.start() was not called")


def _is_node(who: str) -> bool:
    return who.startswith(("mux:", "agent:"))


def nobody(_: Mapping[str, Any]) -> str | None:
    """Where certificates tell nothing."""
    return None


@contextlib.asynccontextmanager
async def serving(
    app: web.Application,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    *,
    grace: float,
    limits: Limits | None = None,
    recognise: Recognise = nobody,
) -> AsyncIterator[Door]:
    """An application at a listening socket, until left; open requests get ``grace`` seconds then."""
    door = Door(listener, tls, limits or Limits(), recognise)
    app.middlewares.insert(0, door.middleware)
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=grace,
        auto_decompress=False,
        keepalive_timeout=IDLE_KNOWN,
        lingering_time=LINGER,
        read_bufsize=READ_SIZE,
    )
    await runner.setup()
    try:
        door.start(cast("web.Server", runner.server))
        yield door
    finally:
        door.stop()
        await runner.cleanup()
        await door.close()


def small_buffers() -> None:
    """Every TLS connection has a buffer of so much from its first moment; asyncio's own measure is eight times that.
    And as many descriptors as this process may have. Called once by the daemon."""
    sslproto.SSLProtocol.max_size = READ_SIZE
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _descriptors() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if limit != resource.RLIM_INFINITY else 1 << 20
