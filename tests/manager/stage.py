# SPDX-License-Identifier: Apache-2.0
"""A manager's node stream with a hub in memory, and nodes that run the real client, on loopback over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from lb.errors import IoError
from lb.node.cache import Cache
from lb.node.client import NodeClient
from lb.node.identity import Identity, TokenText
from lb.node.messages import Delta, FlowAnswer, FlowsFromNode, FlowsMessage, HealthMessage, NodeState
from manager.nodes.stream import StreamConnection, Streams
from manager.trust import joining
from manager.trust.bounded_listener import serving
from manager.trust.ca import CertificateAuthority
from manager.trust.trust import Trust, listener, peer_of
from tests.manager.memory import MemoryTrust

NOTHING: Mapping[str, str] = {}


async def until(true: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Waits for a condition; fails with what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            while not true():  # noqa: ASYNC110  of several things, none of which is an event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds} s for {what}") from None


class MemoryHub:
    """What :class:`manager.nodes.stream.Hub` asks for, with one state for all nodes."""

    def __init__(self, term: int = 1) -> None:
        self.term = term
        self.generation = 1
        self.lineage = "stage"
        self.revision = 0
        self.state: NodeState = {}
        self.lives: dict[str, tuple[int, NodeState]] = {}
        self.left_out: dict[str, dict[str, str]] = {}
        self.refusals: list[tuple[str, int, str]] = []
        self.reports: dict[str, list[Any]] = {}
        self.leases: dict[str, int] = {}
        self.statuses: list[Mapping[str, Any]] = []
        self.events: list[str] = []
        self.answers: list[FlowAnswer] = []
        self.log: list[str] = []

    def wanted(self, kind: str, name: str) -> tuple[int, NodeState]:
        return self.generation, self.state

    def arrived(self, connection: StreamConnection) -> None:
        self.log.append(f"{connection.id} arrived")

    def left(self, connection: StreamConnection) -> None:
        self.log.append(f"{connection.id} left")

    def refused_at_door(self, kind: str, name: str, address: str, reason: str, *, duplicate: bool) -> None:
        self.log.append(f"{kind}:{name} turned away{' as a duplicate' if duplicate else ''}: {reason}")

    def live(
        self, connection: StreamConnection, generation: int, state: NodeState, left_out: Mapping[str, str] = NOTHING
    ) -> None:
        self.lives[connection.id] = (generation, state)
        self.left_out[connection.id] = dict(left_out)

    def refused(self, connection: StreamConnection, generation: int, reason: str) -> None:
        self.refusals.append((connection.id, generation, reason))

    def health(self, connection: StreamConnection, message: HealthMessage) -> None:
        self.reports.setdefault(connection.id, []).extend(message.reports)
        self.leases[connection.id] = self.leases.get(connection.id, 0) + 1

    def status(self, connection: StreamConnection, body: Mapping[str, Any]) -> None:
        self.statuses.append(body)

    def answered(self, connection: StreamConnection, answer: FlowAnswer) -> None:
        self.answers.append(answer)

    def event(self, connection: StreamConnection, text: str) -> None:
        self.events.append(text)

    def flows(self, connection: StreamConnection, message: FlowsFromNode) -> None:
        """Back to whoever said it, for others are of no interest here."""
        if isinstance(message, FlowsMessage):
            connection.tell(message)


class StageManager:
    """A manager that can be stopped, and started again with another term."""

    def __init__(self, directory: Path, lifetime: float = 3600) -> None:
        self.directory = directory
        self.authority = CertificateAuthority.create(directory / "ca")
        self.store = MemoryTrust()
        self.trust = Trust(self.authority, self.store, lifetime)
        self.hub = MemoryHub()
        self.streams = Streams(self.hub, self.trust)
        with listener("127.0.0.1:0") as free:
            self.port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def serving(self, term: int = 1) -> AsyncIterator[StageManager]:
        self.hub.term = term
        self.streams = Streams(self.hub, self.trust)
        app = web.Application()
        app.add_routes([*joining.routes(self.trust), *self.streams.routes()])
        tls = self.trust.server_context("m1", "127.0.0.1:0")
        server = listener(f"127.0.0.1:{self.port}")
        async with serving(app, server, tls, grace=0.1, recognise=self._recognise):
            watch = asyncio.create_task(self.streams.watch())
            try:
                yield self
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
                await self.streams.close()

    def _recognise(self, certificate: Mapping[str, Any]) -> str | None:
        peer = peer_of(certificate)
        return str(peer) if peer is not None and self.trust.standing(peer) is None else None

    def want(self, state: NodeState) -> None:
        self.hub.state = state
        self.hub.generation += 1
        self.streams.wake()

    async def token(self, kind: str = "mux", name: str | None = None) -> TokenText:
        return TokenText.parse(await self.trust.make_token(kind, name, 900, "operator:test"))


class StageNode:
    """A node that applies states to a variable."""

    def __init__(self, manager: StageManager, name: str, token: TokenText | None = None, kind: str = "mux") -> None:
        self.directory = manager.directory / name
        self.identity = Identity(self.directory / "identity", kind, name)
        self.identity.load()
        self.cache = Cache(self.directory / "node", f"{kind}:{name}")
        self.state: NodeState | None = None
        self.applied = 0
        self.refuse: str | None = None
        self.claims = name
        self.client = NodeClient(
            manager.url, self.identity, self.cache, self._apply, lambda: {"name": self.claims}, token=token
        )
        cached = self.cache.load()
        if cached is not None:
            self.state = cached.state
            self.client.begin_with(cached)

    async def _apply(self, state: NodeState, _: Delta) -> dict[str, str]:
        if self.refuse is not None:
            raise IoError(self.refuse)
        self.state = state
        self.applied += 1
        return {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[StageNode]:
        tasks = [asyncio.create_task(self.client.run()), asyncio.create_task(self.client.obey())]
        try:
            yield self
        finally:
            ended = any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not ended, f"the client ended: {results}"
