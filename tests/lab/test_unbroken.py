# SPDX-License-Identifier: Apache-2.0
"""Changes of the backends and deaths of MUXes close together, in either order, at random: no connection breaks.

Each change makes some hundred connections unsynchronised, and a MUX that dies leaves a third of all to the others.
``VIPMUX_ROUNDS=100`` for more of them, ``VIPMUX_SEED=N`` for others; ``pytest -s`` shows each.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.fleet import Fleet
from tests.lab.routers import Routers, missing
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import Node
from tests.lab.traffic import KeepAlive

pytestmark = pytest.mark.lab

ROUNDS = int(os.environ.get("VIPMUX_ROUNDS", "4"))
SEED = int(os.environ.get("VIPMUX_SEED", "1"))
CONNECTIONS, INTERVAL = 300, 0.2
#: From a change to a death, seconds. A MUX tells the others within some 60 ms; here it may have to wait its turn.
SOONEST, LATEST = 1.0, 2.0
HOSTS = 3  #: that serve when a round begins


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    if why := missing(Routers.BIRD):
        pytest.skip(why)
    with Fleet(Routers.BIRD, muxes=3, hosts=HOSTS + 2) as started:
        started.start([web(started.hosts[:HOSTS])])
        started.wait_hops(WEB_VIP, *started.muxes)
        yield started


def changes(fleet: Fleet, chance: random.Random) -> Callable[[], object]:
    """One backend more, or two; or one drains."""
    if chance.random() < 0.5:
        more = fleet.hosts[: HOSTS + chance.randint(1, 2)]
        return lambda: fleet.apply([web(more)], wait=None)
    name = chance.choice(fleet.hosts[:HOSTS]).name
    return lambda: fleet.lb("drain", f"web/web-{name}")


def as_before(fleet: Fleet) -> None:
    for host in fleet.hosts[:HOSTS]:
        fleet.lb("undrain", f"web/web-{host.name}")
    fleet.apply([web(fleet.hosts[:HOSTS])])
    fleet.wait_states("web", {f"web-{host.name}": "up" for host in fleet.hosts[:HOSTS]})


def strike(fleet: Fleet, chance: random.Random) -> tuple[str, Node]:
    """A change and a death; what and how, and who died."""
    mux, pause = chance.choice(fleet.muxes), chance.uniform(SOONEST, LATEST)
    change, death = changes(fleet, chance), lambda: fleet.kill_mux(mux)
    first, second, words = (change, death, "then") if chance.random() < 0.7 else (death, change, "after")
    first()
    time.sleep(pause)
    second()
    return f"a change, {words} {mux.name} died, {pause:.2f} s between", mux


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_change_and_a_death_break_no_connection(fleet: Fleet, number: int) -> None:
    chance = random.Random(f"{SEED} {number}")
    load = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL).start()
    try:
        how, mux = strike(fleet, chance)
        fleet.wait_hops(WEB_VIP, *(other for other in fleet.muxes if other is not mux))
        load.one_more_answer()
        fleet.revive(mux)
        fleet.wait_hops(WEB_VIP, *fleet.muxes)
        load.one_more_answer()
        broken = [flow for flow in load.flows() if flow.broken]
        print(f"\nVIPMUX_SEED={SEED}, round {number}: {how}: {len(broken)} broken", end="")
        assert broken == []
    finally:
        load.close()
        as_before(fleet)
