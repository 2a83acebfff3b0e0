# SPDX-License-Identifier: Apache-2.0
"""What ``lb-mux`` and ``lb-agent`` share in following a manager: identity, cache, client, and services out of states.

A daemon makes one :class:`Follower`, begins with :meth:`Follower.begin` (the last good state, before anything answers),
runs :meth:`Follower.run` as a task, and is handed each state with its services already checked. Everything of it is in
``<state_dir>/identity`` and ``<state_dir>/node``, which one process at a time uses: the daemon's lock sees to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.config.load import parse_service_tables
from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from lb.errors import AccessError, ConfigError
from lb.model import AgentSettings, MuxSettings, Service
from lb.model.service_diff import ServiceDiff
from lb.node.cache import Cache, Cached
from lb.node.client import SMALL, NodeClient
from lb.node.examiner import Examiner
from lb.node.identity import Identity, ManagerUnreachableError, TokenText
from lb.node.messages import Delta, NodeState, keys_of

#: Makes a state live, with what differs of its services; returns what it had to leave out, and why (names of services,
#: and ``section/key`` of other sections); raises VipmuxError, with all as it was, where it cannot.
Take = Callable[[NodeState, ServiceDiff], Awaitable[Mapping[str, str]]]
#: How often it is looked whether the status is another, seconds; and at most this part of the time is spent on it.
STATUS_INTERVAL = 1.0
STATUS_SHARE = 0.05

log = get_logger()

_NOTHING: Mapping[str, str] = {}


class ServiceTables:
    """Services out of a state's tables; only those that differ from the state taken last are read.

    A table that is not right here (a key of a newer version, a family that this node has no address of) is left out
    alone, and is read again with each state.
    """

    def __init__(self, owner: MuxSettings | AgentSettings) -> None:
        self._owner = owner
        self.taken: Mapping[str, Service] = {}  #: by name, in the order of the tables
        self.left_out: Mapping[str, str] = {}  #: of the tables taken last, and why
        self._services: tuple[Service, ...] = ()

    def read(self, tables: Mapping[str, Any], names: Collection[str] | None = None) -> Reading:
        """``names``: of those that differ, come or go; None: look at all."""
        if names is not None:
            names = {*names, *self.left_out}
            if not names:
                return Reading(self.taken, ServiceDiff(self._services, self._services, (), ()), {})
        names = list(dict.fromkeys([*tables, *self.taken])) if names is None else sorted(names)
        fresh = [name for name in names if name in tables]
        parsed, left_out = self._parse(tables, fresh)
        by_name = dict(self.taken)
        for name in names:
            if name not in parsed:
                by_name.pop(name, None)
        by_name.update(parsed)
        gone = tuple(self.taken[name] for name in names if name in self.taken)
        if not gone and not parsed:  # what was left out still is
            return Reading(self.taken, ServiceDiff(self._services, self._services, (), ()), left_out)
        change = ServiceDiff(self._services, tuple(by_name.values()), gone, tuple(parsed.values()))
        return Reading(by_name, change, left_out)

    def _parse(self, tables: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Service], dict[str, str]]:
        """Those that are right, and what is wrong with the others."""
        # One by one: the tables of ten thousand services would take more memory than the services.
        with contextlib.suppress(ConfigError):
            read = parse_service_tables((_named(name, tables[name]) for name in names), self._owner)
            return dict(zip(names, read, strict=True)), {}
        parsed: dict[str, Service] = {}
        left_out: dict[str, str] = {}
        for name in names:
            try:
                (parsed[name],) = parse_service_tables([_named(name, tables[name])], self._owner)
            except ConfigError as error:
                left_out[name] = "; ".join(line.removeprefix("service[0].") for line in error.lines)
        return self._without_clashes(parsed, left_out)

    def _without_clashes(
        self, parsed: dict[str, Service], left_out: dict[str, str]
    ) -> tuple[dict[str, Service], dict[str, str]]:
        """What is right alone may still not go together: the later of two is left out."""
        places: dict[object, str] = {}
        for name, service in list(parsed.items()):
            place = (service.vip, service.protocol, service.ports)
            other = places.setdefault(place, name)
            if other != name:
                left_out[name] = f"service {other} has the same VIP, protocol and port"
                del parsed[name]
        return parsed, left_out

    @property
    def services(self) -> tuple[Service, ...]:
        """Those that are taken."""
        return self._services

    def take(self, reading: Reading, left_out: Mapping[str, str] = _NOTHING) -> None:
        """They are live, but for those that the daemon left out: what comes next is compared to them."""
        without = [name for name in left_out if name in reading.by_name]
        self.taken, self._services = reading.by_name, reading.change.services
        if without:
            self.taken = {name: service for name, service in reading.by_name.items() if name not in left_out}
            self._services = tuple(self.taken.values())
        self.left_out = {**reading.left_out, **{name: left_out[name] for name in without}}


@dataclass(frozen=True, slots=True)
class Reading:
    """The services of a state."""

    by_name: Mapping[str, Service]
    change: ServiceDiff
    left_out: Mapping[str, str]


def _named(name: str, table: object) -> object:
    """A retiring service may go by another key than its own name; keys are unique."""
    return {**table, "name": name} if isinstance(table, dict) and table.get("name") != name else table


def last_services(kind: str, settings: MuxSettings | AgentSettings) -> tuple[Service, ...]:
    """What a node that does not run would begin with, for whoever examines it."""
    cached = Cache(Path(settings.state_dir) / "node", f"{kind}:{settings.name}").load()
    tables = cached.state.get("services", {}) if cached is not None else {}
    return ServiceTables(settings).read(tables).change.services


class Follower:
    """One node's life with a manager."""

    def __init__(
        self,
        url: str,
        token: str | None,
        kind: str,
        settings: MuxSettings | AgentSettings,
        take: Take,
        *,
        config: Path,
    ) -> None:
        """``token``: as given to ``--token``; raises RequestError if it is none. ``config``: the daemon's file, by
        which its doctor examines this machine."""
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
        self._examiner = Examiner.of(config, url, self.client.send_examination)
        self.client.examine = self._examiner.ask

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
        reading = self._tables.read(cached.state.get("services", {}))
        self.client.begin_with(cached)
        self._tables.take(reading)
        self._cached = cached
        if reading.left_out:
            self.client.began_without(reading.left_out)
        services = reading.change.services
        log.info("last good state", term=cached.term, generation=cached.generation, services=len(services))
        return cached.state, services

    @property
    def services(self) -> tuple[Service, ...]:
        """Those that are live, as the manager said them."""
        return self._tables.services

    @property
    def incomplete(self) -> str | None:
        """Why the state that :meth:`begin` gave is an older one than the last; None: it is not."""
        return self._cache.incomplete

    def begun_without(self, left_out: Mapping[str, str]) -> None:
        """The daemon began with the last good state but for these; they are tried again."""
        if self._cached is None:
            return
        services = self._tables.services
        reading = Reading(self._tables.taken, ServiceDiff(services, services, (), ()), self._tables.left_out)
        self._tables.take(reading, left_out)
        self.client.began_without(self._tables.left_out)

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
                    f"this node has no certificate in {self._identity.file.parent}: it never joined, or what its "
                    f"state_dir held was lost, and then it joins again: {self._identity.how_to_join}"
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

    def begin_tasks(self, tasks: Tasks) -> None:
        """All that is done for as long as the daemon lives."""
        tasks.restarted("manager", self.client.run)
        tasks.restarted("states of the manager", self.client.obey)
        tasks.restarted("status for the manager", self._statuses)
        tasks.restarted("examinations for the manager", self._examiner.run)

    async def _statuses(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(STATUS_INTERVAL, took / STATUS_SHARE))
            if self.status is not None and self.client.connected:
                started = time.monotonic()
                self.client.send_status(self.status())
                took = time.monotonic() - started

    async def _apply(self, state: NodeState, delta: Delta) -> Mapping[str, str]:
        names = keys_of(delta).get("services", ())
        read, tables = self._tables.read, state.get("services", {})
        few = len(names) + len(self._tables.left_out) <= SMALL
        reading = read(tables, names) if few else await asyncio.to_thread(read, tables, names)
        left_out = await self._take(state, reading.change)
        self._tables.take(reading, left_out)
        return {**reading.left_out, **left_out}

    def _hello(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "name": settings.name,
            "address": str(settings.address) if settings.address is not None else None,
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
            "left_out": dict(client.left_out),
        }
