# SPDX-License-Identifier: Apache-2.0
"""``lb doctor`` on a host that takes nothing in, once for each cause: it names that one, and its command mends it.

The causes are in :mod:`tests.lab.causes`. The second of the two hosts takes tunnels off by a TUN device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lb.doctor.examine import machine
from lb.doctor.model.findings import Finding, Severity, explained
from lb.errors import IoError
from lb.model import AgentSettings, DecapMode
from tests.lab import netns
from tests.lab.causes import CAUSES, Cause
from tests.lab.pace import allowed
from tests.lab.process import in_namespace, wait_for
from tests.lab.services import PROBE, files, web
from tests.lab.topology import Lab, Node

#: Alone: who undoes what again and again, and whether that is a fight, is a matter of time.
pytestmark = [pytest.mark.lab, pytest.mark.timed]

#: Until the agent has seen what there is to be seen, seconds.
PATIENCE = 20.0
#: The whole machine's, and so many are made in some seconds and some 300 MiB of the kernel's memory.
CONNTRACK_MAX, ENTRIES_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max"), 1 << 20


class Hosts(Lab):
    """One MUX and two hosts."""

    def agent_settings(self, host: Node) -> AgentSettings:
        settings = super().agent_settings(host)
        return replace(settings, decap=DecapMode.TUN) if host is self.hosts[1] else settings


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Hosts(1, 2) as started:
        started.start([replace(make(started.hosts), probe=PROBE) for make in (web, files)])
        yield started


def faults(host: Node) -> list[Finding]:
    """What it says on that host; what the agent's probes know comes later, or not at all, and is not looked at."""
    found = explained(netns.inside(host.namespace, lambda: machine(str(host.config))))
    return [finding for finding in found if finding.severity is Severity.FAULT and finding.check != "backend"]


def comes_to_find(host: Node, causes: list[str]) -> list[Finding]:
    """The faults, as soon as they are of these causes; what the agent tells of them it has to see first."""
    found: list[Finding] = []

    def look() -> bool:
        if found:
            time.sleep(0.2)
        found[:] = faults(host)
        return [finding.cause for finding in found] == causes

    try:
        wait_for(look, f"lb doctor to find {causes}", allowed(PATIENCE))
    except IoError as error:
        raise AssertionError(f"{error}; it found {found}") from None
    return found


def run(host: Node, command: str) -> None:
    done = subprocess.run(
        in_namespace(host.namespace, ["sh", "-c", command]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DIRECTORY": str(host.directory)},
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("cause", CAUSES, ids=[cause.name for cause in CAUSES])
def test_it_names_the_cause_and_what_mends_it(lab: Lab, cause: Cause) -> None:
    if any("iptables" in command for command in cause.make) and shutil.which("iptables-nft") is None:
        pytest.skip("iptables-nft is not installed here")
    if cause.cause == "conntrack_full" and int(CONNTRACK_MAX.read_text()) > ENTRIES_MAX:
        pytest.skip(f"{CONNTRACK_MAX} is larger than {ENTRIES_MAX:,}: too many entries to make")
    host = lab.hosts[cause.tun]
    if cause.agent_stopped:
        assert host.processes["agent"].stop() == 0
    try:
        for command in cause.make:
            run(host, command)
        (found,) = comes_to_find(host, [cause.cause])
        assert found.remedy is not None
        services = {name.removeprefix("backend ").partition("/")[0] for name in found.about}
        assert services == cause.about
        assert all(word in f"{found.what} {found.remedy}" for word in cause.words), found
        if cause.mends:
            run(host, found.remedy.split("`")[1])
            comes_to_find(host, [])
    finally:
        for command in cause.undo:
            run(host, command)
        if cause.agent_anew:
            host.processes["agent"].stop()
        if cause.agent_stopped or cause.agent_anew:
            lab.start_agent(host)
    if not cause.mends:
        comes_to_find(host, [])
