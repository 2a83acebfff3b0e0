# SPDX-License-Identifier: Apache-2.0
"""Drains: of a backend, until its last connection ends; of a MUX, while unsynchronised flows live. And a MUX that dies.

The backends change before, so that for more than half of the connections Maglev's choice is another one than when they
began; with nothing told to other MUXes, each of these breaks once its packets come to another one.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lb.model import BackendState, Service
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet
from tests.lab.prediction import choices
from tests.lab.process import in_namespace, wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import PROGRAMS, Node
from tests.lab.traffic import Flow, KeepAlive

pytestmark = pytest.mark.lab

CONNECTIONS, INTERVAL = 300, 0.2


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    if why := missing(Routers.BIRD):
        pytest.skip(why)
    with Fleet(Routers.BIRD) as started:
        started.start([web(started.hosts[:2])])
        started.wait_hops(WEB_VIP, *started.muxes)
        yield started


@pytest.fixture
def load(fleet: Fleet) -> Iterator[KeepAlive]:
    """Connections to two backends; then one of them drains, and a third is added."""
    before, after = web(fleet.hosts[:2]), web(fleet.hosts)
    fleet.lb("undrain", "web/web-host1")
    fleet.apply([before])
    fleet.wait_live([before])
    started = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL).start()
    try:
        fleet.apply([after])
        fleet.lb("drain", "web/web-host1")
        fleet.wait_states("web", {"web-host1": "drain", "web-host2": "up", "web-host3": "up"})
        yield started
    finally:
        started.close()
    assert unbalanced(fleet) == []


def current(fleet: Fleet) -> Service:
    """What Maglev knows now."""
    backends = [
        replace(backend, state=BackendState.DRAIN) if backend.name == "web-host1" else backend
        for backend in web(fleet.hosts).backends
    ]
    return replace(web(fleet.hosts), backends=tuple(backends))


def unsynchronised(fleet: Fleet, flows: Sequence[Flow]) -> set[int]:
    """Source ports of the connections that Maglev would send elsewhere now."""
    chosen = choices(fleet.mux_settings(fleet.muxes[0]), [current(fleet)], flows)
    return {flow.source_port for flow in flows if chosen[flow.source_port] != f"web-{flow.host}"}


def counted(fleet: Fleet, mux: Node, column: str) -> int:
    return sum(int(row[column]) for row in fleet.get(mux, "backends"))


def all_know(fleet: Fleet, unsynchronised: int) -> None:
    """Every MUX remembers each of the flows, whichever of them forwards it."""
    wait_for(
        lambda: all(counted(fleet, mux, "exceptional") == unsynchronised for mux in fleet.muxes),
        f"every MUX to count {unsynchronised} unsynchronised flows, and none that ended before",
        seconds=90,
    )


def say(fleet: Fleet, mux: Node) -> str:
    return str(next(row for row in fleet.ask("muxes") if row["name"] == mux.name)["handover"])


def settled(fleet: Fleet, load: KeepAlive) -> None:
    """Both MUXes announced, and every connection was answered since."""
    fleet.wait_hops(WEB_VIP, *fleet.muxes)
    load.one_more_answer()


def test_the_wait_for_a_drained_backend_ends_with_its_last_connection(fleet: Fleet, load: KeepAlive) -> None:
    left = sum(flow.host == "host1" for flow in load.flows())
    all_know(fleet, len(unsynchronised(fleet, load.flows())))
    done = drain(fleet, "web/web-host1", "--timeout", "6s")
    assert done.returncode == 1
    assert re.search(rf"lb: after 6 s web/web-host1 drains: {left} flows left \(mux", done.stderr), done
    row = backend(fleet)
    assert (row["state"], row["flows"], row["empty_since"]) == ("drain", left, None)
    load.close()
    done = drain(fleet, "web/web-host1", "--timeout", "60s")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "web/web-host1 is drained: no flow is left"
    row = backend(fleet)
    assert row["flows"] == 0
    assert row["empty_since"] is not None
    told = "no flow is left: it may be stopped"
    wait_for(lambda: told in [row["text"] for row in fleet.ask("events")], "the event")
    shown = fleet.lb("get", "backends")
    assert re.search(r"web-host1 +drained ", shown)
    assert "no flow left for" in shown
    assert "drained: no flow left since" in fleet.lb("describe", "service", "web")
    assert left > 0


def test_a_mux_drained_restarted_and_back_breaks_no_connection_also_none_that_it_alone_knew(
    fleet: Fleet, load: KeepAlive
) -> None:
    mux, other = fleet.muxes
    moved = unsynchronised(fleet, load.flows())
    assert len(moved) > CONNECTIONS / 3, "the lab would show nothing"
    all_know(fleet, len(moved))
    alone = counted(fleet, mux, "exceptional")

    said = fleet.lb("drain", "mux", mux.name, "--wait", "--timeout", "40s")
    assert f"{alone} flows sent to 1 MUX" in said
    assert said.rstrip().endswith(f"{mux.name} is withdrawn; no packet comes any more; {alone} flows sent to 1 MUX")
    load.one_more_answer()
    wait_for(lambda: counted(fleet, other, "exceptional") == len(moved), "the other MUX to know all of them")

    fleet.lb("undrain", "mux", mux.name)
    settled(fleet, load)
    wait_for(lambda: "received" in say(fleet, mux), "the manager to be told of it")
    lines = [f"drained: {alone} of {len(moved)} unsynchronised flows sent", f"undrained: {say(fleet, mux)}"]

    mux.processes["mux"].stop()
    load.one_more_answer()
    lines.append("stopped: " + _last(mux, r'event="flow sync".*what="([^"]*)"'))
    fleet.start_daemons([mux])
    settled(fleet, load)
    wait_for(lambda: "received" in say(fleet, mux), "the manager to be told of it")
    lines.append(f"started: {say(fleet, mux)}")

    broken = [flow for flow in load.flows() if flow.broken]
    print(
        "", *lines, f"broken: {len(broken)} of {CONNECTIONS} connections, {len(moved)} of them unsynchronised", sep="\n"
    )
    assert broken == []
    assert "received from 1 MUX" in say(fleet, mux)
    events = " ".join(str(row["text"]) for row in fleet.ask("events"))
    assert "that only it knew to 1 other MUX" in events


@pytest.mark.parametrize("without", ["", "manager"])
def test_a_mux_killed_after_a_change_breaks_no_connection(fleet: Fleet, load: KeepAlive, without: str) -> None:
    mux, other = fleet.muxes
    moved = unsynchronised(fleet, load.flows())
    assert len(moved) > CONNECTIONS / 3, "the lab would show nothing"
    all_know(fleet, len(moved))
    if without:
        fleet.manager.processes["manager"].kill()
    fleet.kill_mux(mux)
    fleet.wait_hops(WEB_VIP, other)
    load.one_more_answer()
    broken = [flow for flow in load.flows() if flow.broken]
    if without:
        fleet.revive(fleet.manager)
    fleet.revive(mux)
    settled(fleet, load)
    wait_for(lambda: fleet.connected() == len(fleet.nodes), "every node to be connected again", 60)
    broken += [flow for flow in load.flows() if flow.broken]
    print(f"\nbroken: {len(broken)} of {CONNECTIONS} connections, {len(moved)} of them unsynchronised")
    assert broken == []


def test_without_a_manager_a_stop_waits_for_nobody(fleet: Fleet) -> None:
    mux = fleet.muxes[0]
    fleet.manager.processes["manager"].kill()
    process = mux.processes["mux"]
    wait_for(lambda: 'event="no manager"' in process.output(), "the MUX to miss its manager")
    began = time.monotonic()
    process.stop()
    took = time.monotonic() - began
    assert 'event="no flow sync"' in process.output()
    fleet.start_daemons([mux])
    fleet.wait_hops(WEB_VIP, *fleet.muxes)
    fleet.revive(fleet.manager)
    wait_for(lambda: fleet.connected() == len(fleet.nodes), "every node to be connected again", 60)
    print(f"\nSIGTERM to the end without a manager: {took:.2f} s")


def drain(fleet: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = in_namespace(fleet.manager.namespace, [PROGRAMS / "lb", "drain", *arguments, "--wait"])
    return subprocess.run(argv, env=fleet.environment, capture_output=True, text=True, check=False, timeout=90)


def backend(fleet: Fleet) -> dict[str, Any]:
    return next(row for row in fleet.ask("backends") if row["name"] == "web-host1")


def _last(mux: Node, pattern: str) -> str:
    """What the MUX's daemon logged last of this kind."""
    return str(re.findall(pattern, mux.processes["mux"].output())[-1])
