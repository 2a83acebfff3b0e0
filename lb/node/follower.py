# SPDX-License-Identifier: Apache-2.0
"""What ``lb-mux`` and ``lb-agent`` share in following a manager: identity, cache, client, and services out of states.

A daemon makes one :class:`Follower`, begins with :meth:`Follower.begin` (the last good state, before anything answers),
runs :meth:`Follower.run` as a task, and is handed each state with its services already checked. Everything of it is in
``<state_dir>/identity`` and ``<state_dir>/node``, which one process at a time uses: the daemon's lock sees to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.changes import Change
from lb.config import parse_service_tables
from lb.errors import AccessError, ConfigError, VipmuxError
from lb.log import get_logger
from lb.model import AgentSettings, MuxSettings, Service
from lb.node.cache import Cache, Cached
from lb.node.client import SMALL, NodeClient
from lb.node.identity import Identity, ManagerUnreachableError, TokenText
from lb.node.messages import Delta, NodeState, keys_of

#: Makes a state live, with what differs of its services; raises VipmuxError, with all as it was, where it cannot.
Take = Callable[[NodeState, Change], Awaitable[None]]
#: How often it is looked whether the status is another, seconds; and at most this part of the time is spent on it.
STATUS_INTERVAL = 1.0
STATUS_SHARE = 0.05

log = get_logger()


class ServiceTables:
    """Services out of a state's tables; only those that differ from the state taken last are read."""

    def __init__(self, owner: MuxSettings | AgentSettings) -> None:
        self._owner = owner
        self.taken: Mapping[str, Service] = {}  #: by name, in the order of the tables
        self._services: tuple[Service, ...] = ()

    def read(self, tables: Mapping[str, Any], names: Collection[str] | None = None) -> Reading:
        """``names``: of those that differ, come or go; None: look at all. Raises ConfigError with every mistake. What
        several services share was checked by the manager."""
        if names is not None and not names:
            return Reading(self.taken, Change(self._services, self._services, (), ()))
        names = list(dict.fromkeys([*tables, *self.taken])) if names is None else sorted(names)
        fresh = [name for name in names if name in tables]
        # One by one: the tables of ten thousand services would take more memory than the services.
        parsed = parse_service_tables((_named(name, tables[name]) for name in fresh), self._owner)
        by_name = dict(self.taken)
        for name in names:
            if name not in tables:
                by_name.pop(name, None)
        by_name.update(zip(fresh, parsed, strict=True))
        gone = tuple(self.taken[name] for name in names if name in self.taken)
        return Reading(by_name, Change(self._services, tuple(by_name.values()), gone, parsed))

    def take(self, reading: Reading) -> None:
        """They are live: what comes next is compared to them."""
        self.taken, self._services = reading.by_name, reading.change.services


@dataclass(frozen=True, slots=True)
class Reading:
    """The services of a state."""

    by_name: Mapping[str, Service]
    change: Change


def _named(name: str, table: object) -> object:
    """A retiring service may go by another key than its own name; keys are unique."""
    return {**table, "name": name} if isinstance(table, dict) and table.get("name") != name else table


class Follower:
    """One node's life with a manager."""

    def __init__(
        self,
        url: str,
        token: str | None,
        kind: str,
        settings: MuxSettings | AgentSettings,
        take: Take,
    ) -> None:
        """``token``: as given to ``--token``; raises RequestError if it is none."""
        directory = Path(settings.state_dir)
        self._settings = settings
        self._take = take
        self._tables = ServiceTables(settings)
        self._identity = Identity(directory / "identity", kind, settings.name)
        self._cache = Cache(directory / "node", f"{kind}:{settings.name}")
        self._token = TokenText.parse(token) if token is not None else None
        #: What the manager is told of this node; None: nothing yet.
        self.status: Callable[[], Mapping[str, Any]] | None = None
        self._cached: Cached | None = None
        self.client = NodeClient(url, self._identity, self._cache, self._apply, self._hello, token=self._token)

    # -- start ----------------------------------------------------------------------------------------------------

    async def begin(self) -> tuple[NodeState, tuple[Service, ...]]:
        """The last good state and its services, at once; or, where there is none, nothing, and first joins.

        Raises AccessError if there is no state to serve from, and neither a certificate nor a way to one.
        """
        state, services = await asyncio.to_thread(self._last)
        try:
            joining = self._must_join()
            if joining and not state:
                await self.client.join()
        except AccessError as error:
            if not state:
                raise
            log.error("no certificate", reason=str(error), serving="the last good state")
        except ManagerUnreachableError as error:
            log.warning("not joined yet", manager=self.client.url, reason=str(error), then="it is tried again")
        return state, services

    def _last(self) -> tuple[NodeState, tuple[Service, ...]]:
        cached = self._cache.load()
        if cached is None:
            return {}, ()
        try:
            reading = self._tables.read(cached.state.get("services", {}))
        except ConfigError as error:
            log.error("cached state not used", reason=str(error))
            self.client.begin_with(cached, str(error))
            return {}, ()
        self.client.begin_with(cached)
        self._tables.take(reading)
        self._cached = cached
        services = reading.change.services
        log.info("last good state", term=cached.term, generation=cached.generation, services=len(services))
        return cached.state, services

    def not_begun(self, reason: str) -> None:
        """The daemon could not begin with the last good state."""
        log.error("cached state not used", reason=reason)
        self._tables = ServiceTables(self._settings)
        if self._cached is not None:
            self.client.begin_with(self._cached, reason)

    def _must_join(self) -> bool:
        """Whether the token is needed; raises AccessError if it would be, and there is none."""
        try:
            found = self._identity.load()
        except AccessError:
            if self._token is None:
                raise
            found = False
        if self._token is None:
            if not found:
                raise AccessError(
                    "this node has no certificate of the manager yet: make a token with `lb-manager token`, and start "
                    "once with --token"
                )
            return False
        if found and not self._identity.belongs_to(self._token):
            log.info("joining anew", reason="the token is of another manager than our certificate")
            self._identity.held = None
        if self._identity.usable(self.client.wall()):
            log.info("token not needed", reason="this node has a certificate")
            return False
        return True

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Returns never."""
        await asyncio.gather(self.client.run(), self._statuses())

    async def _statuses(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(STATUS_INTERVAL, took / STATUS_SHARE))
            if self.status is not None and self.client.connected:
                started = time.monotonic()
                self.client.send_status(self.status())
                took = time.monotonic() - started

    async def _apply(self, state: NodeState, delta: Delta) -> str | None:
        try:
            names = keys_of(delta).get("services", ())
            read, tables = self._tables.read, state.get("services", {})
            reading = read(tables, names) if len(names) <= SMALL else await asyncio.to_thread(read, tables, names)
            await self._take(state, reading.change)
            self._tables.take(reading)
        except VipmuxError as error:
            return str(error)
        return None

    def _hello(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "name": settings.name,
            "address": str(settings.address),
            "address6": str(settings.address6) if settings.address6 is not None else None,
        }

    def row(self) -> dict[str, Any]:
        """The connection, for people. From any thread."""
        client = self.client
        return {
            "url": client.url,
            "connected": client.connected,
            "problem": client.problem,
            "term": client.term,
            "generation": client.generation,
            "refused": client.refused,
        }
