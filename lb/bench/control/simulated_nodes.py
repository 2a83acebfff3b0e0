# SPDX-License-Identifier: Apache-2.0
"""The simulated nodes of ``lb bench control``: a hundred agents and one MUX that only watches, in one process.

Started by :mod:`lb.bench.control.testbed` in a network namespace of its own; reads orders from standard input and
answers on standard output, one JSON object a line. Each node speaks the real node stream with the real client
(:class:`lb.node.client.NodeClient`): its own certificate, its own state on disk. What it does not do is to
install anything. The hosts' end of the tunnels is here as well, so that the MUXes' probes find their way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.daemon.log import only_warnings
from lb.node.cache import Cache
from lb.node.client import NodeClient
from lb.node.identity import Identity, TokenText
from lb.node.messages import Delta, FlowAnswer, HealthReport, NodeState, digest

#: What is still on its way once the last verdict was said gets so long, seconds.
SETTLE = 10.0
_IPIP = 4
_PACKET = 65536


@dataclass(frozen=True, slots=True)
class BackendPlace:
    """A backend that has a verdict."""

    service: str
    backend: str
    agent: str


class SimulatedNode:
    """One simulated node: takes every state at once."""

    def __init__(self, spec: dict[str, Any], url: str, directory: Path) -> None:
        self.kind, self.name, self.address = spec["kind"], spec["name"], spec["address"]
        self.state: NodeState = {}
        self.reports: dict[tuple[str, str, str], HealthReport] = {}
        self.changed: list[asyncio.Event] = []
        own = directory / f"{self.kind}-{self.name}"
        identity = Identity(own / "identity", self.kind, self.name)
        cache = Cache(own / "node", f"{self.kind}:{self.name}")
        token = TokenText.parse(spec["token"])
        self.client = NodeClient(url, identity, cache, self._apply, self._settings, token=token)
        self.client.answer = lambda question: FlowAnswer(question.serial, error="it forwards nothing")
        self.client.reports = lambda: tuple(self.reports.values())

    async def _apply(self, state: NodeState, _: Delta) -> dict[str, str]:
        self.state = state
        self._say_what_has_no_probe(state)
        for event in self.changed:
            event.set()
        return {}

    def _say_what_has_no_probe(self, state: NodeState) -> None:
        """Agents connect to those backends as well; here all of them are well."""
        tables = state.get("services", {}) if self.kind == "agent" else {}
        new = [
            HealthReport(name, backend["name"], "agent", True, "3 of 3 checks passed", time.time())
            for name, table in tables.items()
            for backend in (() if "probe" in table else table["backend"])
            if (name, backend["name"], "agent") not in self.reports
        ]
        self.reports |= {report.key: report for report in new}
        if new:
            self.client.send_health(new)

    def _settings(self) -> dict[str, Any]:
        return {"name": self.name, "address": self.address, "address6": None}

    def say(self, place: BackendPlace, up: bool, reason: str) -> None:
        report = HealthReport(place.service, place.backend, "agent", up, reason, time.time())
        self.reports[report.key] = report
        self.client.send_health([report])


class Nodes:
    """All of them, and the orders about them."""

    def __init__(self, spec: dict[str, Any]) -> None:
        directory = Path(spec["directory"])
        self._nodes = {entry["name"]: SimulatedNode(entry, spec["url"], directory) for entry in spec["nodes"]}
        self._watcher = self._nodes[spec["watcher"]]
        self._places = [BackendPlace(*entry) for entry in spec["places"]]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, names: list[str]) -> dict[str, Any]:
        """These nodes join, all at once; their first word on each backend is that it is well."""
        for name in names:
            client = self._nodes[name].client
            self._tasks += [asyncio.create_task(client.run(), name=name), asyncio.create_task(client.obey(), name=name)]
        for place in self._places:
            if place.agent in names:
                self._nodes[place.agent].say(place, True, "3 of 3 checks passed")
        return {}

    async def churn(self, seconds: float, rate: float, seed: int) -> dict[str, Any]:
        """Verdicts of agents at this rate, a backend down and up again, never two of a service at once."""
        chance = random.Random(seed)  # noqa: S311  the same in every run
        seen = asyncio.Event()
        self._watcher.changed.append(seen)
        ledger = _Ledger(self._watcher)
        async with asyncio.TaskGroup() as tasks:  # whoever looks and fails ends the measurement, with the reason
            looking = tasks.create_task(ledger.run(seen))
            started = time.monotonic()
            ledger.last = {place: up for place in self._places if (up := self._said(place)) is not None}
            down = {place.service: place for place, up in ledger.last.items() if not up}
            for count in range(int(seconds * rate)):
                await asyncio.sleep(max(0.0, started + count / rate - time.monotonic()))
                place = chance.choice(self._places)
                place = down.pop(place.service, place)
                up = ledger.last.get(place, True) is False
                if not up:
                    down[place.service] = place
                reason = f"{'3 of 3 checks passed' if up else 'connection refused'}, check {count}"
                self._nodes[place.agent].say(place, up, reason)
                ledger.said(place, up)
            took = time.monotonic() - started
            deadline = time.monotonic() + SETTLE
            while ledger.open and time.monotonic() < deadline:  # noqa: ASYNC110  emptied one by one
                await asyncio.sleep(0.01)
            looking.cancel()
        self._watcher.changed.clear()
        last = [[place.service, place.backend, up] for place, up in ledger.last.items()]
        return {
            "verdicts": int(seconds * rate),
            "seconds": took,
            "latencies": ledger.latencies,
            "said": ledger.said_at,
            "replaced": ledger.replaced,
            "lost": len(ledger.open),
            "last": last,
        }

    def _said(self, place: BackendPlace) -> bool | None:
        """An agent's last word on a backend."""
        found = self._nodes[place.agent].reports.get((place.service, place.backend, "agent"))
        return found.up if found is not None else None

    async def digests(self) -> dict[str, Any]:
        """Of the state that each node holds, and the generation that it has acknowledged."""
        found = {}
        for node in self._nodes.values():
            found[f"{node.kind}:{node.name}"] = [node.client.generation, await asyncio.to_thread(digest, node.state)]
        return {"digests": found}


class _Ledger:
    """Verdicts that were said, until the watching MUX has them."""

    def __init__(self, watcher: SimulatedNode) -> None:
        self._watcher = watcher
        self.open: dict[BackendPlace, tuple[float, bool]] = {}
        self.last: dict[BackendPlace, bool] = {}
        self.latencies: list[float] = []
        self.said_at: list[float] = []  #: when each of them began, by the clock that all processes share
        self._quick: set[BackendPlace] = set()
        self.replaced = 0  #: a later verdict on the same backend came before this one was seen

    def said(self, place: BackendPlace, up: bool) -> None:
        if self.open.pop(place, None) is not None:
            self.replaced += 1  # the one before is not measured, nor is this: the MUX may never see either
            self._quick.add(place)
        self.open[place] = (time.monotonic(), up)
        self.last[place] = up

    async def run(self, seen: asyncio.Event) -> None:
        while True:
            await seen.wait()
            seen.clear()
            now = time.monotonic()
            services = self._watcher.state.get("services", {})
            for place, (since, up) in list(self.open.items()):
                rows = services.get(place.service, {}).get("backend", ())
                state = next((row.get("state", "up") for row in rows if row["name"] == place.backend), None)
                if (state == "up") == up:
                    if place not in self._quick:
                        self.latencies.append(now - since)
                        self.said_at.append(since)
                    self._quick.discard(place)
                    del self.open[place]


class Tunnels:
    """The hosts' end: inner packets go to the VIPs on this machine's loopback, where somebody listens."""

    def __init__(self, port: int) -> None:
        self._outer = socket.socket(socket.AF_INET, socket.SOCK_RAW, _IPIP)
        self._outer.setblocking(False)
        self._inner = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._port = port

    async def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._outer, self._pass)
        await asyncio.start_server(self._served, "0.0.0.0", self._port, backlog=1024)  # noqa: S104  its own namespace

    def _pass(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                packet = self._outer.recv(_PACKET)
                inner = packet[(packet[0] & 15) * 4 :]
                self._inner.sendto(inner, (socket.inet_ntoa(inner[16:20]), 0))

    @staticmethod
    async def _served(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()


async def serve(spec: dict[str, Any]) -> None:
    """Until standard input ends."""
    nodes = Nodes(spec)
    if spec["places"]:
        await Tunnels(spec["port"]).start()
    orders: dict[str, Callable[..., Awaitable[Any]]] = {
        "start": nodes.start,
        "churn": nodes.churn,
        "digests": nodes.digests,
    }
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("{}", flush=True)
    while line := await reader.readline():
        order = json.loads(line)
        answer = await orders[order.pop("do")](**order)
        print(json.dumps(answer), flush=True)


def main() -> None:
    """``python -m lb.bench.control.simulated_nodes SPEC``"""
    only_warnings()
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
