# SPDX-License-Identifier: Apache-2.0
"""What ``lb diff`` foretells of live connections is what happens; and what nobody confirms is taken back under load."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.config.render import format_config
from lb.model import Service
from tests.lab.fleet import Fleet
from tests.lab.process import wait_for
from tests.lab.routers import Routers
from tests.lab.services import WEB_VIP, web, weighted
from tests.lab.traffic import KeepAlive

pytestmark = pytest.mark.lab

CONNECTIONS = 240


@pytest.fixture(scope="module")
def pool() -> Iterator[Fleet]:
    with Fleet(Routers.STATIC, muxes=2, hosts=3) as started:
        started.start((web(started.hosts),))
        yield started


@pytest.fixture
def load(pool: Fleet) -> Iterator[KeepAlive]:
    started = KeepAlive(pool, WEB_VIP, 80, count=CONNECTIONS, interval=0.1).start()
    try:
        yield started
    finally:
        started.close()


def write(pool: Fleet, service: Service) -> str:
    path: Path = pool.directory / "change.toml"
    path.write_text(format_config((service,)))
    return str(path)


def hosts_of(load: KeepAlive) -> Counter[str]:
    return Counter(flow.host for flow in load.flows() if flow.broken is None)


def counted(pool: Fleet) -> dict[str, int | None]:
    """Live flows of each backend over all MUXes, as the manager knows."""
    return {row["name"].removeprefix("web-"): row["flows"] for row in pool.ask("backends")}


def weights(pool: Fleet) -> list[dict[str, int]]:
    return [{row["name"]: row["weight"] for row in pool.get(mux, "backends")} for mux in pool.muxes]


def test_a_change_that_nobody_confirms_is_taken_back_though_the_manager_was_killed(
    pool: Fleet, load: KeepAlive
) -> None:
    before = weights(pool)
    path = write(pool, weighted(web(pool.hosts), "host1", 5))
    done = pool.try_lb("apply", "-f", path, "--confirm", "4s", "--wait", "3")
    assert done.returncode == 0, done
    assert "live on every node" in done.stdout
    deadline = time.time() + 4
    assert [found["web-host1"] for found in weights(pool)] == [5, 5]
    pool.manager.processes["manager"].kill()
    wait_for(lambda: time.time() > deadline, "the deadline to pass")
    assert [found["web-host1"] for found in weights(pool)] == [5, 5], "MUXes go on with what they have"
    pool.start_manager()
    wait_for(lambda: weights(pool) == before, "every MUX to have the weights from before")
    assert json.loads(pool.lb("get", "status", "-o", "json"))["confirm"] is None
    load.one_more_answer()
    assert [flow for flow in load.flows() if flow.broken] == []


def test_the_connections_that_a_change_breaks_are_those_that_were_foretold(pool: Fleet, load: KeepAlive) -> None:
    pool.wait_followed()
    wait_for(lambda: counted(pool) == dict(hosts_of(load)), "the census to have counted every connection", 20)
    there = hosts_of(load)
    path = write(pool, web(pool.hosts[:2]))
    told = json.loads(pool.try_lb("diff", "-f", path, "-o", "json").stdout)
    assert told["flows"] == {"break": there["host3"], "drain": 0, "move": told["flows"]["move"]}
    slots = told["services"][0]["slots"]
    assert 1 / 3 <= slots["share"] < 0.5
    # Of those that stay some change their slot, and live on all the same.
    assert told["flows"]["move"] == pytest.approx((slots["share"] - 1 / 3) * CONNECTIONS, abs=CONNECTIONS / 10)
    assert pool.try_lb("apply", "-f", path, "--wait").returncode == 0
    wait_for(lambda: sum(1 for flow in load.flows() if flow.broken) >= there["host3"], "host3's connections to end", 20)
    load.one_more_answer()
    broken = Counter(flow.host for flow in load.flows() if flow.broken)
    assert broken == {"host3": there["host3"]}
    assert pool.try_lb("rollback", "--wait").returncode == 0
    assert len(pool.get(pool.muxes[0], "backends")) == 3
