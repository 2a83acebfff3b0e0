# SPDX-License-Identifier: Apache-2.0
"""A fleet whose manager is gone: everything serves and restarts without it, and its return makes nothing flap."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from lb.mux.probes.own_verdicts import PATIENCE
from lb.node.client import BACKOFF_MAX
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet
from tests.lab.process import wait_for
from tests.lab.services import PROBE, WEB_VIP, probed, web
from tests.lab.topology import PUBLISHED, Node
from tests.lab.traffic import KeepAlive, requests

pytestmark = pytest.mark.lab

NEW_VIP = "203.0.113.40"
#: Of ManagerSettings, seconds.
LEASE = 10.0
#: How long the manager is away: every lease and hold time of the fleet (10 s and 3 s) has ended, MUXes go by what they
#: find themselves (PATIENCE), and every node has waited its longest pause between two attempts to connect, more than
#: once. Minutes more would show nothing else.
AWAY = 2 * max(PATIENCE, LEASE) + 2 * BACKOFF_MAX


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet() as started:
        started.start(probed(started.hosts))
        yield started


@pytest.fixture
def whole(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet in service; afterwards the counters add up."""
    fleet.wait_in_service()
    yield fleet
    assert unbalanced(fleet) == []


def published(fleet: Fleet, number: int) -> int:
    return fleet.muxes[number].processes["mux"].output().count(PUBLISHED)


def settled(fleet: Fleet) -> list[int]:
    """How often each MUX has published, once its log has caught up: nothing new for a second."""
    counts: list[list[int]] = []

    def quiet() -> bool:
        time.sleep(1.0)
        counts.append([published(fleet, number) for number in (0, 1)])
        return counts[-1] == counts[-2] if len(counts) > 1 else False

    wait_for(quiet, "the MUXes to have published all")
    return counts[-1]


def state_of(host: Node, dead: Node) -> str:
    return "down" if host is dead else "up"


def test_without_the_manager_all_restart_and_serve_and_its_return_makes_nothing_flap(whole: Fleet) -> None:
    fleet = whole
    load = KeepAlive(fleet, WEB_VIP, 80).start()
    try:
        fleet.manager.processes["manager"].kill()
        fleet.muxes[0].processes["mux"].kill()
        fleet.hosts[0].processes["agent"].kill()
        fleet.start_daemons([fleet.muxes[0], fleet.hosts[0]])
        fleet.wait_in_service()
        load.one_more_answer()
        assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
        quiet_since, before = time.monotonic(), published(fleet, 1)
        fleet.revive(fleet.manager)
        wait_for(lambda: fleet.connected() == len(fleet.nodes), "every node to be connected again", 60)
        fleet.wait_in_service()
        load.one_more_answer()
    finally:
        load.close()
    assert [flow for flow in load.flows() if flow.broken] == []
    assert [change for change in fleet.watch.changes if change.at >= quiet_since] == []
    assert published(fleet, 1) == before


def test_a_manager_gone_for_long_is_not_missed_and_what_came_up_meanwhile_arrives(whole: Fleet) -> None:
    """One backend dies while it is away, and one that was dead returns; a change is applied right after its return."""
    fleet = whole
    one, dies, returns = fleet.hosts
    assert fleet.manager_settings().health_lease == LEASE
    returns.processes["nginx"].kill()
    for service in fleet.services:  # each is published by itself, one after the other
        fleet.wait_states(
            service.name, {f"{service.name}-{host.name}": state_of(host, returns) for host in fleet.hosts}
        )
    load = KeepAlive(fleet, WEB_VIP, 80).start()
    try:
        before = settled(fleet)
        quiet_since = time.monotonic()
        fleet.manager.processes["manager"].kill()
        wait_for(lambda: time.monotonic() - quiet_since > AWAY, "the time to pass", AWAY + 1)
        load.one_more_answer()
        assert [flow for flow in load.flows() if flow.broken] == [], "no client notices"
        assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
        assert [published(fleet, number) for number in (0, 1)] == before
        dies.processes["nginx"].kill()  # which MUXes will see for themselves
        fleet.start_web_server(returns)
        fleet.revive(fleet.manager)
        back = time.monotonic()
        new = replace(web([one, returns]), name="new", vip=ip_network(NEW_VIP), probe=PROBE)
        fleet.apply([*fleet.services, new])
        fleet.wait_states("web", {"web-host1": "up", "web-host2": "down", "web-host3": "up"})
        fleet.wait_hops(NEW_VIP, *fleet.muxes)
        print(f"\nmanager away for {back - quiet_since:.0f} s; all followed {time.monotonic() - back:.1f} s later")
        wait_for(lambda: requests(fleet, f"http://{NEW_VIP}/", 10)["failed"] == 0, "the new service")
        assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
        load.one_more_answer()
    finally:
        load.close()
        for host in (dies, returns):
            if not host.processes["nginx"].running:
                fleet.start_web_server(host)  # whatever failed, the next test finds a whole fleet
    assert {flow.host for flow in load.flows() if flow.broken} <= {dies.name}
    assert {change.vip for change in fleet.watch.changes if change.at >= quiet_since} == {NEW_VIP}, "nothing flaps"


def test_a_backend_that_dies_while_the_manager_is_away_gets_no_new_flows_for_long(whole: Fleet) -> None:
    """Each MUX goes by its own tunnel probes after a while, and by the manager's word again once that is back."""
    fleet = whole
    dies = fleet.hosts[2]

    def own() -> list[set[str]]:
        return [set(fleet.get(mux, "muxes")[0]["own_verdicts"]) for mux in fleet.muxes]

    began = time.monotonic()
    fleet.manager.processes["manager"].kill()
    dies.processes["nginx"].kill()
    wait_for(lambda: all("web/web-host3" in drained for drained in own()), "both MUXes to drain it", PATIENCE + 30)
    print(f"\ndrained by the MUXes themselves {time.monotonic() - began:.1f} s after both died")
    assert time.monotonic() - began > PATIENCE - 1
    assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
    fleet.revive(fleet.manager)
    wait_for(lambda: own() == [set(), set()], "the manager's word to count again", 60)
    fleet.wait_states("web", {"web-host1": "up", "web-host2": "up", "web-host3": "down"})
    assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
    fleet.start_web_server(dies)
