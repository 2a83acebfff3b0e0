# SPDX-License-Identifier: Apache-2.0
"""Labs for the tests: brought up once per module and variant, taken down on every exit, counters checked at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import netns
from tests.lab.accounts import unbalanced
from tests.lab.services import files, load, web
from tests.lab.topology import Lab


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every test module leaves the machine without namespaces of this process."""
    yield
    mine = netns.unique_prefix().rpartition("-")[0]
    left = [entry.name for entry in netns.NETNS.glob(f"{mine}-*")] if netns.NETNS.is_dir() else []
    assert left == []


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two MUXes, three hosts, every service on every host."""
    with Lab() as started:
        started.start((web(started.hosts), files(started.hosts), load(started.hosts)))
        yield started


@pytest.fixture(autouse=True)
def counters_add_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test with a lab: received = forwarded + passed + replied + dropped on each MUX that runs."""
    yield
    if "lab" in request.fixturenames:
        assert unbalanced(request.getfixturevalue("lab")) == []


@pytest.fixture
def all_running(lab: Lab) -> Lab:
    """The lab with every service as it was at first, and every daemon running."""
    for host in lab.hosts:
        if not host.processes["agent"].running:
            lab.start_agent(host)
    services = (web(lab.hosts), files(lab.hosts), load(lab.hosts))
    lab.write_files(services)
    for mux in lab.muxes:
        if not mux.processes["mux"].running:
            lab.start_mux(mux)
    lab.publish(services)
    return lab
