# SPDX-License-Identifier: Apache-2.0
"""Every daemon inside what its systemd unit allows, with the test in the place of systemd.

Whole labs run that way: a managed one with BGP, and a standalone one with TUN devices. What the units hold off is done
by :mod:`tests.lab.sandbox`; what the daemons say of themselves comes by a real ``$NOTIFY_SOCKET``.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lb.model import DecapMode, IoMode
from tests.lab.fleet import Fleet, exabgp_of
from tests.lab.freeze import thread_stopped, worker_of
from tests.lab.pace import allowed
from tests.lab.process import Process, wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import PROGRAMS, Lab, Node
from tests.lab.traffic import run

pytestmark = pytest.mark.lab

UNITS = Path("deploy/systemd").absolute()
#: Short, so that the tests are; the units say 20 and 30 s. A worker counts as still after 3 s.
WATCHDOG = 4.0


class Ears:
    """A ``$NOTIFY_SOCKET``, and what was said there with the time it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._said: list[str] = []

    def said(self) -> list[str]:
        """Everything so far, a line each."""
        with suppress(BlockingIOError):
            while True:
                self._said += self._socket.recv(4096).decode().splitlines()
        return self._said

    def wait(self, beginning: str, seconds: float = 20.0) -> None:
        wait_for(lambda: any(line.startswith(beginning) for line in self.said()), f"{beginning} to be said", seconds)

    def forget(self) -> None:
        self.said()
        self._said = []

    def pings(self) -> int:
        return self.said().count("WATCHDOG=1")

    def status(self) -> str:
        return next((line for line in reversed(self.said()) if line.startswith("STATUS=")), "").removeprefix("STATUS=")

    def close(self) -> None:
        self._socket.close()


class UnitLab(Lab):
    """A lab whose daemons run as their units say."""

    ears: dict[str, Ears]

    def run(self, node: Node, program: str, *arguments: str | Path) -> Process:
        ears = self.ears[node.name] = Ears(node.directory / "notify")
        self._exits.callback(ears.close)
        argv: list[str | Path] = [sys.executable, "-m", "tests.lab.sandbox", UNITS / f"{program}.service"]
        argv += ["--writable", node.directory, "--", PROGRAMS / program, *arguments]
        environment = {"NOTIFY_SOCKET": str(ears.path), "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
        log = node.directory / f"{program}.log"
        process = Process(f"{program} on {node.name}", node.namespace, argv, log, environment)
        node.processes[program.removeprefix("lb-")] = process
        return process


class UnitFleet(UnitLab, Fleet):
    """With a manager."""


@pytest.fixture(scope="module")
def pool() -> Iterator[UnitFleet]:
    """Manager, MUX with BGP to a real router, host."""
    why = missing(Routers.BIRD)
    if why is not None:
        pytest.skip(why)
    with UnitFleet(Routers.BIRD, muxes=1, hosts=1) as lab:
        lab.ears = {}
        lab.start((web(lab.hosts),))
        wait_for(lambda: answer(lab), "the first answer")
        yield lab


@pytest.fixture(scope="module")
def plain() -> Iterator[UnitLab]:
    """No manager; packets go through TUN devices on MUX and host, and a worker of ours on both."""
    with UnitLab(muxes=1, hosts=1, io=IoMode.TUN, decap=DecapMode.TUN) as lab:
        lab.ears = {}
        lab.start((web(lab.hosts),))
        yield lab


def answer(lab: Lab) -> str:
    return run(lab, "curl", "-s", "-m", "2", f"http://{WEB_VIP}/").stdout.strip()


def machine(fleet: UnitFleet, name: str) -> Node:
    return next(node for node in (*fleet.nodes, fleet.manager) if node.name == name)


def daemon(node: Node) -> Process:
    return next(node.processes[name] for name in ("mux", "agent", "manager") if name in node.processes)


def is_silent(ears: Ears, after: float) -> bool:
    """Whether no sign of life comes for most of the time allowed, from ``after`` seconds on."""
    time.sleep(after)
    ears.forget()
    time.sleep(WATCHDOG * 0.75)
    return ears.pings() == 0


def test_a_managed_pool_serves_within_what_the_units_allow(pool: UnitFleet) -> None:
    assert answer(pool) == "host1"
    assert pool.status(pool.muxes[0])["io"] == "packet"
    assert pool.get(pool.hosts[0], "agents")[0]["mode"] == "bpf"
    assert [row["state"] for row in pool.get(pool.muxes[0], "peers")] == ["established"]


def test_a_standalone_pool_serves_through_tun_devices_within_what_the_units_allow(plain: UnitLab) -> None:
    assert answer(plain) == "host1"
    assert plain.status(plain.muxes[0])["io"] == "tun"
    assert plain.get(plain.hosts[0], "agents")[0]["mode"] == "tun"


@pytest.mark.parametrize("name", ["mux1", "host1", "manager"])
def test_a_daemon_is_ready_gives_signs_of_life_and_says_how_it_is(pool: UnitFleet, name: str) -> None:
    ears = pool.ears[name]
    assert ears.said().count("READY=1") >= 1
    ears.forget()
    wait_for(lambda: ears.pings() >= 3, "three signs of life", allowed(WATCHDOG * 2))
    wanted = {
        "mux1": "1 of 1 BGP session established",
        "host1": "decapsulation by bpf",
        "manager": "2 of 2 nodes connected",
    }
    assert wanted[name] in status_of(daemon(machine(pool, name)), ears, wanted[name])


def status_of(process: Process, ears: Ears, wanted: str) -> str:
    """What it says of itself now: a change of anything has it said again."""
    if wanted not in ears.status():
        process.signal(signal.SIGHUP)
        wait_for(lambda: wanted in ears.status(), f"{process.name} to say {wanted!r}, not {ears.status()!r}")
    return ears.status()


@pytest.mark.parametrize("name", ["mux1", "host1", "manager"])
def test_a_daemon_that_is_stopped_gives_no_sign_of_life(pool: UnitFleet, name: str) -> None:
    process, ears = daemon(machine(pool, name)), pool.ears[name]
    process.signal(signal.SIGSTOP)
    try:
        assert is_silent(ears, 0.2)
    finally:
        process.signal(signal.SIGCONT)
    wait_for(lambda: ears.pings() > 0, "a sign of life", allowed(WATCHDOG * 2))


@pytest.mark.parametrize("name", ["mux1", "host1"])
def test_a_daemon_whose_worker_hangs_gives_no_sign_of_life_although_it_answers(plain: UnitLab, name: str) -> None:
    node, ears = plain.node(name), plain.ears[name]
    with thread_stopped(worker_of(daemon(node).pid)):
        wait_for(lambda: "still" in ears.status(), "it to say that its worker stands still")
        assert is_silent(ears, 0.0)
        assert plain.get(node, "peers" if node in plain.muxes else "agents") is not None
    wait_for(lambda: ears.pings() > 0, "a sign of life", allowed(WATCHDOG * 2))
    assert answer(plain) == "host1"


@pytest.mark.parametrize("name", ["mux1", "host1"])
def test_a_reload_is_said_with_its_time_and_ends_in_ready(plain: UnitLab, name: str) -> None:
    ears = plain.ears[name]
    ears.forget()
    daemon(plain.node(name)).signal(signal.SIGHUP)
    ears.wait("READY=1")
    said = [line.partition("=")[0] for line in ears.said() if not line.startswith(("WATCHDOG", "STATUS"))]
    assert said == ["RELOADING", "MONOTONIC_USEC", "READY"]


def test_ready_is_said_once_the_daemon_answers_and_forwards(plain: UnitLab) -> None:
    mux = plain.muxes[0]
    plain.stop_mux(mux)
    process = plain.run(mux, "lb-mux", "--config", mux.config)
    plain.ears[mux.name].wait("READY=1")
    assert plain.status(mux)["state"] == "ready"  # at once, without waiting
    assert [row["name"] for row in plain.get(mux, "services")] == ["web"]
    plain.guardian.announce(mux.name, str(mux.address), process.pid)
    assert answer(plain) == "host1"


def test_a_stop_is_said_before_it_happens_and_nothing_is_left(pool: UnitFleet) -> None:
    """Last: it ends the pool. ExaBGP is ended by lb-mux, as KillMode=mixed leaves it to."""
    exabgp = exabgp_of(pool.muxes[0])
    for node in (pool.muxes[0], pool.hosts[0], pool.manager):
        process, ears = daemon(node), pool.ears[node.name]
        ears.forget()
        process.signal(signal.SIGTERM)
        ears.wait("STOPPING=1")
        assert process.wait() == 0
    assert not Path(f"/proc/{exabgp}").exists()
