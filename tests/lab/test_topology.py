# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what it promises to the tests and the demo, with plain kernel routing and no daemon of ours."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import netns
from tests.lab.guardian import Guardian
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.topology import Lab
from tests.lab.traffic import Capture, KeepAlive, requests

pytestmark = pytest.mark.lab

VIP = "203.0.113.1"

STANDING_LAB = """
import signal
from tests.lab.topology import Lab
with Lab() as lab:
    lab.start_nginx()
    print(lab.prefix, flush=True)
    signal.pause()
"""

REFUSED_LAB = """
import os
from tests.lab.topology import Lab, LabError
os.setgroups([])
os.setresuid(65534, 65534, 65534)  # only now: another user may not reach the folder that this lies in
try:
    Lab().__enter__()
except LabError as error:
    print(error)
"""


@pytest.fixture
def plain() -> Iterator[Lab]:
    """A lab whose hosts hold the VIP and get it straight from the router."""
    with Lab() as lab:
        lab.start_nginx()
        for host in lab.hosts:
            netns.batch([f"addr add {VIP}/32 dev lo"], host.namespace)
        yield lab


@pytest.fixture
def routed(plain: Lab) -> Iterator[tuple[Lab, Guardian]]:
    """The same, with a guardian that watches the nginx processes as it watches MUXes."""
    guardian = Guardian(plain.router, "brh")
    guardian.serve((VIP,))
    for host in plain.hosts:
        guardian.announce(host.name, str(host.address), host.processes["nginx"].pid)
    yield plain, guardian
    guardian.close()


def test_router_spreads_connections_over_its_routes(routed: tuple[Lab, Guardian]) -> None:
    served = requests(routed[0], f"http://{VIP}/", 300)
    assert set(served) == {"host1", "host2", "host3"}
    assert min(served.values()) > 60


def test_dead_process_leaves_the_routes_within_300_ms(routed: tuple[Lab, Guardian]) -> None:
    lab, guardian = routed
    killed = time.monotonic()
    lab.hosts[0].processes["nginx"].kill()
    withdrawn = wait_for(lambda: guardian.withdrawn_at("host1", killed), "the guardian to notice")
    assert withdrawn is not None
    assert withdrawn - killed <= allowed(0.3)
    assert "host1" not in requests(lab, f"http://{VIP}/", 100)


def test_keep_alive_counts_the_connections_of_a_killed_server(routed: tuple[Lab, Guardian]) -> None:
    lab, guardian = routed
    keep_alive = KeepAlive(lab, VIP, 80, count=30).start()
    with guardian.blind():  # the router would move others' flows too
        lab.hosts[0].processes["nginx"].kill()
        flows = keep_alive.stop()
    assert {flow.host for flow in flows if flow.broken} == {"host1"}
    assert {flow.host for flow in flows if not flow.broken} == {"host2", "host3"}


def test_capture_sees_a_reset(plain: Lab) -> None:
    capture = Capture(plain)
    host = str(plain.hosts[0].address)
    with pytest.raises(ConnectionRefusedError):
        netns.inside(plain.client, lambda: __import__("socket").create_connection((host, 99), 5))
    wait_for(lambda: capture.resets(host), "the reset to be captured")
    capture.close()


def test_interrupted_lab_takes_itself_down() -> None:
    """SIGTERM at any moment leaves neither namespace nor directory."""
    child = subprocess.Popen([sys.executable, "-c", STANDING_LAB], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    prefix = child.stdout.readline().strip()
    assert (netns.NETNS / f"{prefix}-c").exists()
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 128 + signal.SIGTERM
    child.stdout.close()
    assert list(netns.NETNS.glob(f"{prefix}-*")) == []
    assert not (Path(tempfile.gettempdir()) / prefix).exists()


def test_reaper_removes_what_a_killed_lab_left_and_nothing_else(plain: Lab) -> None:
    child = subprocess.Popen([sys.executable, "-c", STANDING_LAB], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    prefix = child.stdout.readline().strip()
    child.kill()
    child.wait()
    child.stdout.close()
    left = netns.reap()
    assert f"{prefix}-c" in left
    assert not (Path(tempfile.gettempdir()) / prefix).exists()
    assert all((netns.NETNS / namespace).exists() for namespace in plain.namespaces)


def test_lab_says_that_it_needs_root() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED_LAB], capture_output=True, text=True, check=False)
    assert "run it as root" in done.stdout, done.stderr
