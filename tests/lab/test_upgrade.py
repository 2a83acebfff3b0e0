# SPDX-License-Identifier: Apache-2.0
"""The drill of docs/upgrade.md: manager, agents and MUXes go to another version one by one under load, and back.

Old and new programs are in environments of their own, installed from wheels. ``VIPMUX_UPGRADE_FROM=COMMIT`` comes from
that commit; else from the last release, and as long as there is none from the same version in another place. No
connection may break; the table that the page shows is printed (``pytest -s``).
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lb.model import IoMode
from tests.lab import environments
from tests.lab.fleet import Fleet
from tests.lab.pace import reachable
from tests.lab.process import wait_for
from tests.lab.routers import Routers
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import Node
from tests.lab.traffic import KeepAlive

pytestmark = pytest.mark.lab

#: About 2,000 requests a second; each connection ends in peace after a few seconds, and another takes its place.
CONNECTIONS, INTERVAL, REQUESTS = 220, 0.1, 60
RATE = 2000
#: A reset follows the packet that caused it, and each connection sends one every INTERVAL, seconds.
AFTER = 1.0
#: The drill, as docs/upgrade.md shows it.
STEPS = [
    *("manager", "agent on host1", "agent on host2", "mux1, drained", "mux2, drained"),
    *("back: mux1, drained", "back: agent on host1", "back: manager"),
]


class Versions(Fleet):
    """A fleet whose nodes run one version or the other."""

    def __init__(self, old: Path, new: Path) -> None:
        super().__init__(Routers.BIRD, muxes=2, hosts=2)
        self.io = IoMode.PACKET
        self.old, self.new = old, new
        self.upgraded: set[str] = set()

    def programs(self, node: Node) -> Path:
        return self.new if node.name in self.upgraded else self.old

    def form(self) -> int:
        """Which form the manager's store has."""
        with contextlib.closing(sqlite3.connect(self.manager.state_dir / "manager.db")) as store:
            return int(store.execute("PRAGMA user_version").fetchone()[0])

    # The steps, as the page has them.

    def change(self, node: Node, program: str, *, back: bool = False) -> None:
        """``systemctl restart``, with /opt/vipmux/current on the other version."""
        assert node.processes[program].stop(30) == 0
        (self.upgraded.discard if back else self.upgraded.add)(node.name)
        self.revive(node)
        wait_for(lambda: self.connected() == len(self.nodes), "every node to follow the manager", 60)

    def change_mux(self, mux: Node, *, back: bool = False) -> None:
        self.lb("drain", "mux", mux.name, "--wait", "--timeout", "45s")
        self.change(mux, "mux", back=back)
        self.lb("undrain", "mux", mux.name)
        self.wait_hops(WEB_VIP, *self.muxes)

    def steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What is done, under the names in :data:`STEPS`."""
        part = functools.partial
        host, mux, form = self.hosts[0], self.muxes[0], self.form()
        yield "manager", part(self.change, self.manager, "manager")
        for each in self.hosts:
            yield f"agent on {each.name}", part(self.change, each, "agent")
        for each in self.muxes:
            yield f"{each.name}, drained", part(self.change_mux, each)
        yield f"back: {mux.name}, drained", part(self.change_mux, mux, back=True)
        yield f"back: agent on {host.name}", part(self.change, host, "agent", back=True)
        if self.form() == form:  # else the page says to put the copy of the store back
            yield "back: manager", part(self.change, self.manager, "manager", back=True)


@dataclass(frozen=True, slots=True)
class Row:
    """What one step did to clients."""

    what: str
    seconds: float
    answers: int
    broken: int


@pytest.fixture(scope="module")
def versions() -> Iterator[tuple[Path, Path, str]]:
    directory = environments.scratch()
    try:
        yield environments.two_versions(directory)
    finally:
        environments.remove(directory)


@pytest.fixture
def fleet(versions: tuple[Path, Path, str]) -> Iterator[Versions]:
    with Versions(*versions[:2]) as started:
        started.start([web(started.hosts)])
        started.wait_hops(WEB_VIP, *started.muxes)
        yield started


def broken(load: KeepAlive) -> int:
    return sum(life.flow.broken is not None for life in load.lives())


def test_an_upgrade_of_everything_and_back_breaks_no_connection(
    fleet: Versions, versions: tuple[Path, Path, str]
) -> None:
    load = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL, requests=REQUESTS).start()
    rows: list[Row] = []
    began = time.monotonic()
    try:
        for what, step in fleet.steps():
            start, answers, before = time.monotonic(), load.answers, broken(load)
            step()
            took = time.monotonic() - start
            time.sleep(AFTER)
            rows.append(Row(what, took, load.answers - answers, broken(load) - before))
        rate = load.answers / (time.monotonic() - began)
    finally:
        load.close()
    print(f"\nfrom {versions[2]}\n\n{table(rows)}")
    print(f"\n{len(load.lives()):,} connections, {rate:,.0f} requests/s, longest wait {load.slowest * 1000:,.0f} ms")
    assert [row.what for row in rows] == STEPS[: len(rows)]
    assert [life.flow for life in load.lives() if life.flow.broken] == []
    assert rate >= reachable(0.75 * RATE)


def table(rows: Sequence[Row]) -> str:
    lines = ["| step | took | answers | broken |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.what} | {row.seconds:.1f} s | {row.answers:,} | {row.broken} |" for row in rows]
    return "\n".join(lines)
