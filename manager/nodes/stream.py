# SPDX-License-Identifier: Apache-2.0
"""The manager's end of the node stream: connections of MUXes and agents, and what goes over them.

Moves messages between connections and the :class:`Hub` (:class:`manager.nodes.hub.NodeHub`), which knows what every
node should have and hears what it has. Decides only who may be connected. A connection has no queue: it remembers what
it sent last and, when woken, sends what makes the newest state of that. So 10,000 services are sent once, then changes;
and a node that reads slowly skips states instead of making the manager remember them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks, first
from lb.errors import AccessError, MessageError, VipmuxError
from lb.node.messages import (
    FROM_NODE_MAX,
    Ack,
    Answer,
    DeltaMessage,
    Digest,
    EventMessage,
    Examination,
    FlowAnswer,
    FlowNewsMessage,
    FlowsFromNode,
    FlowsMessage,
    FlowsTakenMessage,
    FlowsToNode,
    FlowsWantedMessage,
    FromNode,
    HealthMessage,
    Hello,
    NodeState,
    Question,
    RefusedMessage,
    StateMessage,
    StatusMessage,
    ToNode,
    UnknownMessage,
    diff,
    encode,
)
from manager.nodes.node_budget import PAUSE_MAX, PER_BYTE, PER_MESSAGE, PER_STATE, PER_STREAM, Dues, NodeLedger
from manager.nodes.refused import DuplicateError
from manager.nodes.status import read
from manager.store.lineage import Marks
from manager.trust import bounded_listener as door
from manager.trust.joining import address_of, certificate_of
from manager.trust.trust import Peer, Trust, peer_of

#: A connection that says nothing for so long is asked whether it lives, and given up after half of it again, seconds.
HEARTBEAT = 10.0
#: A node says something every few seconds; one that did not for so long does not keep its name from another, seconds.
SILENT = 8.0
#: Until a node must have said hello, seconds.
HELLO_TIMEOUT = 10.0
#: Until a node that takes nothing is given up, seconds.
SEND_TIMEOUT = 30.0
#: States under way to one node; the next one waits for an acknowledgement.
UNDER_WAY_MAX = 16
#: How often revocations and expiries are looked at, seconds.
CHECK_INTERVAL = 1.0
#: Letters about flows that wait to be sent to one node; a hand-over of the most flows there can be has 25 parts, and a
#: million flows that become unsynchronised at once have 250. Nodes share them.
LETTERS_MAX = 512
#: Connections of one node that have not said hello yet.
SILENT_MAX = 2
#: After so much of it others have a turn, of the same length at least, seconds: no node has more than half of the core,
#: at first neither.
TURN = 0.005
#: Longer messages are read beside the event loop, characters.
LONG = 64 * 1024
#: A node that is let go has so long to say that it heard why, seconds: what it says meanwhile is read for nothing.
CLOSING = 0.3
#: Larger states are made text beside the event loop, entries.
_LARGE = 200

log = get_logger()


class Hub(Protocol):
    """What a connection needs of the one who knows all nodes. Called in the event loop; returns at once."""

    @property
    def term(self) -> int: ...

    @property
    def lineage(self) -> str: ...

    @property
    def revision(self) -> int: ...

    def wanted(self, kind: str, name: str) -> tuple[int, NodeState]:
        """The generation and the state that a node should have. What is unchanged is the same object as before.
        Generation 0: nobody knows yet; the connection waits until it is woken, and the node goes on with what it has.
        """
        ...

    def arrived(self, connection: StreamConnection) -> None:
        """It said hello. May raise AccessError with a reason to refuse it."""
        ...

    def left(self, connection: StreamConnection) -> None: ...

    def refused_at_door(self, kind: str, name: str, address: str, reason: str, *, duplicate: bool) -> None:
        """A node that did not get as far as that. ``duplicate``: somebody else has its name or address."""
        ...

    def live(
        self, connection: StreamConnection, generation: int, state: NodeState, left_out: Mapping[str, str]
    ) -> None:
        """This state is live at the node, and on its disk, but for what it leaves out; again where that differs."""
        ...

    def refused(self, connection: StreamConnection, generation: int, reason: str) -> None:
        """The node could not make it live, and serves on with the one before."""
        ...

    def health(self, connection: StreamConnection, message: HealthMessage) -> None: ...

    def status(self, connection: StreamConnection, body: Mapping[str, Any]) -> None:
        """As :func:`manager.nodes.status.checked` lets it through."""
        ...

    def event(self, connection: StreamConnection, text: str) -> None: ...

    def answered(self, connection: StreamConnection, answer: Answer) -> None:
        """To a question that was told to it."""
        ...

    def flows(self, connection: StreamConnection, message: FlowsFromNode) -> None:
        """A part of a hand-over; only MUXes say such."""
        ...


@dataclass(slots=True)
class _SentState:
    """What was sent last, and its digest to be carried on."""

    generation: int
    state: NodeState
    sum: Digest


class StreamConnection:
    """One node's connection, from its hello to its end."""

    def __init__(
        self,
        peer: Peer,
        address: str,
        hello: Hello,
        socket: web.WebSocketResponse,
        dues: Dues | None = None,
    ) -> None:
        self.peer = peer
        self.dues = dues or Dues(time.monotonic)  #: what hearing it costs
        self.address = address  #: where it comes from
        self.settings: Mapping[str, Any] = hello.settings
        self.version = hello.version
        self.marks = Marks(hello.term, hello.generation, hello.lineage, hello.revision)
        self.since = time.time()
        self.heard = time.monotonic()
        self._hello: Hello | None = hello
        self._live: tuple[int, NodeState] | None = None  #: what it acknowledged last
        self._socket = socket
        self._wake = asyncio.Event()
        self._sent: _SentState | None = None
        self._under_way: dict[int, NodeState] = {}
        self._letters: deque[FlowsToNode | Question] = deque()

    @property
    def kind(self) -> str:
        return self.peer.kind

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def id(self) -> str:
        return str(self.peer)

    @property
    def expires(self) -> float | None:
        """When its certificate does."""
        return self.peer.expires

    def wake(self) -> None:
        """The node should have another state, or may be it should: the hub is asked again."""
        self._wake.set()

    def tell(self, letter: FlowsToNode | Question) -> bool:
        """Passes a letter on, after the state that the node should have; False: too many wait already."""
        if len(self._letters) >= LETTERS_MAX:
            return False
        self._letters.append(letter)
        self._wake.set()
        return True

    async def refuse(self, reason: str) -> None:
        """Says why, and closes."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self._socket.send_str(encode(RefusedMessage(reason[:1000])))
        await self._socket.close()

    async def end(self) -> None:
        """The manager stops; the node goes on by itself, and looks for the next one."""
        await self._socket.close(code=WSCloseCode.GOING_AWAY)

    # -- to the node --------------------------------------------------------------------------------------------

    async def send_states(self, hub: Hub) -> None:
        """Keeps the node at what the hub wants for it; returns never."""
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            message = await self._next(hub)
            if message is not None and not await self._send(message):
                return
            while self._letters:
                if not await self._send(self._letters.popleft()):
                    return

    async def _send(self, message: ToNode) -> bool:
        """False: the node takes nothing."""
        text, spent = await _text(message)
        if isinstance(message, StateMessage):  # it asked for that; of changes it is told by us
            self.dues.spend(spent + len(text) * PER_BYTE)
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._socket.send_str(text)
        except TimeoutError:
            log.warning("node dropped", node=self.id, reason=f"took nothing for {SEND_TIMEOUT:.0f} s")
            return False
        return True

    async def _next(self, hub: Hub) -> ToNode | None:
        generation, state = hub.wanted(self.kind, self.name)
        if generation == 0:
            return None
        if self._hello is not None:
            hello, self._hello = self._hello, None
            return await self._first(hub, hello, generation, state)
        sent = self._sent
        if sent is None or generation == sent.generation or len(self._under_way) >= UNDER_WAY_MAX:
            return None  # nothing new, or an acknowledgement will wake us
        delta = diff(sent.state, state)
        sent.sum.update(sent.state, delta)
        message = DeltaMessage(
            hub.term,
            sent.generation,
            generation,
            str(sent.sum),
            delta["set"],
            delta["remove"],
            hub.lineage,
            hub.revision,
        )
        self._note(generation, state, sent.sum)
        return message

    async def _first(self, hub: Hub, hello: Hello, generation: int, state: NodeState) -> ToNode:
        """What answers a hello: the whole state, or word that the node has it already."""
        total, digest, spent = await asyncio.to_thread(_digested, state)
        self.dues.spend(spent + PER_STATE)
        self._under_way = {}
        self._note(generation, state, total)
        if hello.digest == digest and hello.term <= hub.term:
            return DeltaMessage(hub.term, hello.generation, generation, digest, {}, {}, hub.lineage, hub.revision)
        return StateMessage(hub.term, generation, digest, state, hub.lineage, hub.revision)

    def _note(self, generation: int, state: NodeState, total: Digest) -> None:
        self._sent = _SentState(generation, state, total)
        self._under_way[generation] = state

    # -- from the node ------------------------------------------------------------------------------------------

    def said(self, hub: Hub, message: FromNode) -> None:
        """One message after the first; raises AccessError for what this node may not say."""
        self.heard = time.monotonic()
        match message:
            case Ack():
                self._acknowledged(hub, message)
            case HealthMessage():
                source = "tunnel" if self.kind == "mux" else "agent"
                if any(report.source != source for report in message.reports):
                    raise AccessError(f"{self.id} reports what is not its to know: it may only say source {source!r}")
                hub.health(self, message)
            case StatusMessage(body):
                hub.status(self, body)
            case EventMessage(text):
                hub.event(self, text)
            case FlowsMessage() | FlowsWantedMessage() | FlowsTakenMessage() | FlowNewsMessage():
                if self.kind != "mux":
                    raise AccessError(f"{self.id} speaks of flows, which only MUXes have")
                hub.flows(self, message)
            case FlowAnswer() | Examination():
                hub.answered(self, message)
            case Hello():
                self._hello = message
                self._wake.set()
            case UnknownMessage(type=newer):
                log.debug("message passed over", node=self.id, type=newer, reason="a newer version's")

    def _acknowledged(self, hub: Hub, ack: Ack) -> None:
        state = self._under_way.get(ack.generation)
        if state is None and self._live is not None and self._live[0] == ack.generation:
            state = self._live[1]  # it leaves out something else of it now
        if ack.term != hub.term or state is None:
            if ack.error is not None:
                hub.refused(self, ack.generation, ack.error)
            return
        # It takes the newest of those that wait, so what went before is done with.
        for generation in [generation for generation in self._under_way if generation <= ack.generation]:
            del self._under_way[generation]
        if ack.error is None:
            self._live = ack.generation, state
            hub.live(self, ack.generation, state, ack.left_out)
        else:
            hub.refused(self, ack.generation, ack.error)
            self._under_way[ack.generation] = state  # the node tries again by itself, and may say so later
        self._wake.set()


class Streams:
    """All connections, and who may have one."""

    def __init__(self, hub: Hub, trust: Trust) -> None:
        self._hub = hub
        self._trust = trust
        self._connections: dict[str, StreamConnection] = {}
        self._silent: Counter[str] = Counter()  #: connections before their hello, of each node
        self._ledger = NodeLedger(time.monotonic)
        self._endings = Tasks()  #: of connections that another took the place of

    @property
    def connections(self) -> Mapping[str, StreamConnection]:
        """By ``kind:name``."""
        return self._connections

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/stream", self.handle)]

    def wake(self) -> None:
        """The plan is another: every connection asks for its state."""
        for connection in self._connections.values():
            connection.wake()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One connection's whole life."""
        address = address_of(request)
        certificate = certificate_of(request)
        try:
            peer = self._trust.node(certificate, address)
        except AccessError as error:
            self._tell_hub(peer_of(certificate) if certificate else None, address, error)
            return web.json_response({"error": str(error)}, status=403)
        dues = self._ledger.of(str(peer))
        dues.spend(PER_STREAM)
        if self._silent[str(peer)] >= SILENT_MAX:  # as an answer: of what is no stream yet nothing is read
            return _not_now(request, f"{SILENT_MAX} connections of {peer} have not said hello yet", 2.0)
        if (wait := dues.barred()) > 0:
            return _not_now(request, f"{peer} has to wait, for what it said before", wait)
        self._silent[str(peer)] += 1
        door.metered(request, dues.read)
        socket = web.WebSocketResponse(timeout=2.0, heartbeat=HEARTBEAT, max_msg_size=FROM_NODE_MAX, compress=False)
        try:
            await socket.prepare(request)
        except asyncio.CancelledError:
            self._spoke(peer)
            raise
        except Exception:
            self._spoke(peer)
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the node left while its connection was set up") from None
            raise
        refused = None
        try:
            await self._serve(socket, peer, address, dues)
        except MessageError as error:
            refused = str(error)
            wait = dues.let_go()
            log.warning("node dropped", node=str(peer), peer=address, reason=refused, not_again_for=f"{wait:g} s")
            self._hub.refused_at_door(peer.kind, peer.name, address, refused, duplicate=False)
        except AccessError as error:
            refused = str(error)
            if not isinstance(error, DuplicateError):  # then it may be another machine's doing
                dues.let_go()
            self._trust.refused("node stream", address, refused, who=str(peer))
            self._tell_hub(peer, address, error)
        if refused is not None:  # by now nothing holds what it said
            await _say_refused(socket, refused)
        return socket

    def _tell_hub(self, peer: Peer | None, address: str, error: AccessError) -> None:
        """Two machines with certificates of one name: the later to join made the earlier's worthless."""
        if peer is not None and peer.kind in ("mux", "agent"):
            duplicate = isinstance(error, DuplicateError) or str(error).endswith(f"{peer.name} joined anew")
            self._hub.refused_at_door(peer.kind, peer.name, address, str(error), duplicate=duplicate)

    def _spoke(self, peer: Peer) -> None:
        """One connection of it said hello, or will not."""
        self._silent[str(peer)] -= 1
        if not self._silent[str(peer)]:
            del self._silent[str(peer)]

    async def _serve(self, socket: web.WebSocketResponse, peer: Peer, address: str, dues: Dues) -> None:
        try:
            await asyncio.sleep(dues.pause())
            hello = await _hello(socket, dues)
        finally:
            self._spoke(peer)
        if hello is None:
            return
        claimed = hello.settings.get("name", peer.name)
        if claimed != peer.name:
            raise AccessError(f"the node calls itself {str(claimed)[:80]!r} and has the certificate of {peer}")
        connection = StreamConnection(peer, address, hello, socket, dues)
        self._admit(connection)
        try:
            with _paid(dues):
                self._hub.arrived(connection)
        except AccessError:
            del self._connections[connection.id]
            raise
        dues.came(len(self._hub.wanted(peer.kind, peer.name)[1].get("services", ())))
        log.info("node connected", node=connection.id, peer=address, generation=hello.generation, term=hello.term)
        try:
            with contextlib.suppress(ConnectionError):
                await first(connection.send_states(self._hub), self._receive(socket, connection))
        finally:
            if self._connections.get(connection.id) is connection:
                del self._connections[connection.id]
                with _paid(dues):
                    self._hub.left(connection)
                log.info("node disconnected", node=connection.id, peer=address)

    async def _receive(self, socket: web.WebSocketResponse, connection: StreamConnection) -> None:
        dues, owed, slow = connection.dues, 0.0, False
        async for frame in socket:
            if frame.type is WSMsgType.ERROR:
                log.warning("node dropped", node=connection.id, reason="it does not answer any more")
                return
            if frame.type is not WSMsgType.TEXT:
                raise MessageError("a message must be a text frame")
            spent = dues.spent
            reading = _read(frame.data, dues)
            del frame  # of a long message nothing is kept, not by the traceback of its refusal either
            message = await reading
            with _paid(dues):
                connection.said(self._hub, message)
                del message  # before the next is there
            owed += dues.spent - spent
            # It is heard more slowly, then; what it sends meanwhile waits in its own kernel.
            pause = dues.pause()
            if pause >= PAUSE_MAX and not slow:
                slow = True
                self._hub.event(connection, "says so much that it is heard slowly")
            if pause > 0 or owed > TURN:
                await asyncio.sleep(min(PAUSE_MAX, max(pause, owed)))
                owed = 0.0

    def _admit(self, connection: StreamConnection) -> None:
        """One connection for each name: the newer is refused, unless the older is dead, or was its own."""
        older = self._connections.get(connection.id)
        if older is not None:
            same = (older.address, older.peer.serial) == (connection.address, connection.peer.serial)
            silent = time.monotonic() - older.heard
            if not same and silent < SILENT:
                raise DuplicateError(f"{connection.id} is connected already, from {older.address}")
            log.info("node came back", node=connection.id, reason="its connection before had not ended yet")
            self._connections[connection.id] = connection
            self._hub.left(older)
            self._endings.retried(f"end of {older.id}", lambda: older.refuse("this node connected anew"))
        self._connections[connection.id] = connection

    async def watch(self) -> None:
        """Ends connections whose certificate was revoked or has expired; returns never."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            try:
                await self._trust.refresh()
            except VipmuxError as error:
                log.error("revocations not read", reason=str(error))
            for connection in list(self._connections.values()):
                reason = self._trust.standing(connection.peer)
                if reason is not None:
                    self._trust.refused("node stream", connection.address, reason, who=connection.id)
                    await connection.refuse(reason)

    async def close(self) -> None:
        """At the manager's end."""
        await self._endings.close()
        await asyncio.gather(*(connection.end() for connection in self._connections.values()), return_exceptions=True)


@contextlib.contextmanager
def _paid(dues: Dues) -> Iterator[None]:
    """What is done here at once is the node's doing."""
    began = time.thread_time()
    try:
        yield
    finally:
        dues.spend(time.thread_time() - began)


def _not_now(request: web.Request, reason: str, seconds: float) -> web.Response:
    """As an answer before there is a stream; one that goes on asking does not fill the log."""
    door.turned_away(request, reason)
    return web.json_response({"error": reason}, status=429, headers={"Retry-After": str(math.ceil(seconds))})


async def _hello(socket: web.WebSocketResponse, dues: Dues) -> Hello | None:
    """The first message; None if the node left."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT):
            frame = await socket.receive()
    except TimeoutError:
        raise MessageError(f"no hello within {HELLO_TIMEOUT:.0f} s") from None
    if frame.type is not WSMsgType.TEXT:
        return None
    reading = _read(frame.data, dues)
    del frame
    message = await reading
    if not isinstance(message, Hello):
        raise MessageError("the first message must be hello")
    return message


async def _read(text: str, dues: Dues) -> FromNode:
    """What a node says, checked; raises MessageError. It pays for either."""
    message, spent = await asyncio.to_thread(_parsed, text) if len(text) > LONG else _parsed(text)
    dues.spend(spent + PER_MESSAGE)  # its bytes were paid for as they came
    del text
    if isinstance(message, MessageError):
        raise message
    return message


def _parsed(text: str) -> tuple[FromNode | MessageError, float]:
    began = time.thread_time()
    message: FromNode | MessageError
    try:
        message = read(text)
    except MessageError as error:
        message = MessageError(str(error))  # without the frames, which hold the text
    return message, time.thread_time() - began


async def _say_refused(socket: web.WebSocketResponse, reason: str) -> None:
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(2.0):
            await socket.send_str(encode(RefusedMessage(reason[:1000])))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSING):
            await socket.close()


def _digested(state: NodeState) -> tuple[Digest, str, float]:
    """And the CPU seconds that it took, in a thread of its own: how long it waited there is not the node's doing."""
    began = time.thread_time()
    total = Digest(state)
    return total, str(total), time.thread_time() - began


async def _text(message: ToNode) -> tuple[str, float]:
    """And the CPU seconds that it took."""
    size = 0
    if isinstance(message, StateMessage):
        size = sum(len(entries) for entries in message.body.values())
    return await asyncio.to_thread(_encoded, message) if size > _LARGE else _encoded(message)


def _encoded(message: ToNode) -> tuple[str, float]:
    began = time.thread_time()
    text = encode(message)
    return text, time.thread_time() - began
