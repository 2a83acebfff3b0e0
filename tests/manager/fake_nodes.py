# SPDX-License-Identifier: Apache-2.0
"""A controller on a real store, with nodes that answer at once, later, or never."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from lb.daemon.clocks import Clocks
from lb.model import ManagerSettings
from lb.node.messages import FlowsToNode, HealthMessage, HealthReport, NodeState, Question
from manager.controller.controller import Controller
from manager.nodes.hub import NodeHub
from manager.store.interface import Store
from manager.store.lineage import Marks
from manager.store.sqlite import SqliteStore


def settings_for(directory: Path, **keys: Any) -> ManagerSettings:
    prefixes = (IPv4Network("203.0.0.0/16"), IPv6Network("2001:db8:100::/48"))
    return ManagerSettings("m1", prefixes, "127.0.0.1:0", "127.0.0.1:0", str(directory), **keys)


@asynccontextmanager
async def running(
    directory: Path, store: Store | None = None, clocks: Clocks | None = None, **keys: Any
) -> AsyncIterator[Controller]:
    """A manager's inside, from its start to its stop."""
    opened = store or await SqliteStore.open(directory)
    controller = Controller(settings_for(directory, **keys), opened, clocks=clocks)
    try:
        await controller.start()
        yield controller
    finally:
        await controller.stop()
        await opened.close()


async def until(condition: Callable[[], bool], what: str = "", seconds: float = 30.0) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what or "what was waited for did not come"
        await asyncio.sleep(0.002)


class FakeNode:
    """A connection of a MUX or an agent, and the node at its other end."""

    def __init__(self, kind: str, name: str, address: str | None, **settings: Any) -> None:
        self.kind = kind
        self.name = name
        self.settings: Mapping[str, Any] = {"name": name, "address": address, **settings}
        self.address = "192.0.2.1"
        self.version = "0.1.0"
        self.expires: float | None = None
        self.marks = Marks()
        self.hub: NodeHub | None = None
        self.answers = True  #: acknowledges at once
        self.told: Callable[[Question], None] = lambda _: None  #: hears questions
        self.refuses: str | None = None
        self.leaves_out: Mapping[str, str] = {}
        self.generation = 0
        self.letters: list[FlowsToNode] = []
        self._reported: set[tuple[str, str]] = set()
        self.states: list[NodeState] = []  #: every state that it was told, the latest last

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def state(self) -> NodeState:
        return self.states[-1]

    def connect(self, controller: Controller) -> FakeNode:
        self.hub = controller.hub
        self.generation = 0
        self.hub.arrived(self)
        self.wake()
        return self

    def leave(self) -> None:
        assert self.hub is not None
        hub, self.hub = self.hub, None
        hub.left(self)

    def tell(self, letter: FlowsToNode | Question) -> bool:
        if isinstance(letter, Question):
            asyncio.get_running_loop().call_soon(self.told, letter)
        else:
            self.letters.append(letter)
        return True

    def wake(self) -> None:
        asyncio.get_running_loop().call_soon(self.take)

    def take(self) -> None:
        """Asks what it should have, and has it."""
        if self.hub is None or not self.answers:
            return
        generation, state = self.hub.wanted(self.kind, self.name)
        if generation == 0 or (generation == self.generation and self.states):
            return  # nobody knows yet, or it is the same
        if self.refuses is not None:
            self.hub.refused(self, generation, self.refuses)
            return
        self.generation = generation
        self.states.append(state)
        self.hub.live(self, generation, state, self.leaves_out)
        self._report_what_has_no_probe(state)

    def _report_what_has_no_probe(self, state: NodeState) -> None:
        """An agent connects to those backends as well; here they are always well, said once."""
        if self.kind == "mux":
            return
        for name, table in state.get("services", {}).items():
            for backend in () if "probe" in table else table["backend"]:
                if (name, backend["name"]) not in self._reported:
                    self._reported.add((name, backend["name"]))
                    self.report(name, backend["name"], True)

    def again(self) -> None:
        """Acknowledges what it has once more: it leaves out something else."""
        assert self.hub is not None
        self.hub.live(self, self.generation, self.state, self.leaves_out)

    def report(self, service: str, backend: str, up: bool, reason: str = "", lease: float = 10.0) -> None:
        assert self.hub is not None
        source = "tunnel" if self.kind == "mux" else "agent"
        why = reason or ("3 of 3 checks passed" if up else "3 of 3 checks timed out")
        self.hub.health(self, HealthMessage(lease, (HealthReport(service, backend, source, up, why, time.time()),)))

    def announces(self) -> set[str]:
        return set(self.state.get("announcements", {})) if self.states else set()

    def backends(self, service: str) -> dict[str, str]:
        """What it was told of a service's backends."""
        table = self.state["services"][service]
        return {backend["name"]: backend.get("state", "up") for backend in table["backend"]}


class Site:
    """Two MUXes and three hosts, at a controller."""

    def __init__(self, muxes: int = 2, hosts: int = 3) -> None:
        self.muxes = [FakeNode("mux", f"mux{n}", f"10.0.1.{10 + n}") for n in range(1, muxes + 1)]
        self.hosts = [FakeNode("agent", f"host{n}", f"10.0.3.{n}") for n in range(1, hosts + 1)]

    @property
    def nodes(self) -> list[FakeNode]:
        return [*self.muxes, *self.hosts]

    def connect(self, controller: Controller) -> Site:
        for node in self.nodes:
            node.connect(controller)
        return self
