# SPDX-License-Identifier: Apache-2.0
"""The plan: what nodes are told, in which order, for which reason; and what holds for any history."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lb.config.load import parse_service_tables
from lb.model import Probe, ProbeType
from lb.node.messages import digest
from lb.probe.scheduler import spread
from manager.desired.state import DesiredChange, Order, delete_services, drain_backend, drain_mux, purge
from manager.plan.health import Report, Source
from manager.plan.model import Plan, PlanMemory
from manager.plan.plan import plan, replan
from manager.plan.previous import HANDOVER, served
from tests.manager.fleet import Fleet, service, with_probe

VIP = "203.0.113.10/32"


def settled(*tables: dict[str, Any], **shape: Any) -> Fleet:
    """A fleet that has these services, all healthy."""
    fleet = Fleet(**shape)
    fleet.apply(*tables)
    fleet.plan()
    fleet.take()
    fleet.all_healthy()
    fleet.settle()
    return fleet


# --- install before announce -----------------------------------------------------------------------------------------


def test_a_new_service_is_installed_everywhere_before_it_is_announced() -> None:
    fleet = Fleet()
    fleet.apply(service())
    fleet.plan()
    assert fleet.table() is not None
    assert fleet.table(node="agent:host1") is not None
    assert fleet.announced() == set()
    assert fleet.withheld("mux1") == "it has not installed service web yet"
    fleet.take("mux1", "mux2")
    fleet.plan()
    assert fleet.announced() == set()
    assert fleet.withheld("mux1") == "agent host1 has not installed service web yet"
    fleet.take("host1", "host2")
    fleet.plan()
    assert fleet.announced("mux1") == fleet.announced("mux2") == {VIP}


def test_a_backend_takes_no_traffic_before_its_agent_has_it() -> None:
    fleet = settled(service(hosts=(1,)))
    fleet.apply(service(hosts=(1, 2)))
    fleet.plan()
    assert fleet.states() == {"web-1": "up", "web-2": "down"}
    assert fleet.shown()["web-2"] == "installing"
    fleet.take("host2")
    fleet.plan()
    assert fleet.states() == {"web-1": "up", "web-2": "up"}


def test_agents_get_only_what_is_theirs() -> None:
    fleet = settled(service(hosts=(1, 2)), service("dns", "203.0.113.11", hosts=(3,)))
    table = fleet.table(node="agent:host2")
    assert table is not None
    assert [backend["name"] for backend in table["backend"]] == ["web-2"]
    assert fleet.table("dns", "agent:host2") is None
    assert fleet.last.states["agent:host2"]["muxes"] == {
        "mux1": {"address": "10.0.1.11", "address6": None},
        "mux2": {"address": "10.0.1.12", "address6": None},
    }


def test_an_agent_that_does_not_answer_holds_up_nobody_else() -> None:
    fleet = Fleet()
    fleet.apply(service())
    fleet.plan()
    fleet.take("mux1", "mux2", "host1")
    fleet.set("host2", late=True)
    fleet.plan()
    assert fleet.announced() == {VIP}
    assert fleet.states() == {"web-1": "up", "web-2": "down"}
    fleet.set("host2", late=False, refused="nft is not installed")
    fleet.plan()
    assert fleet.reason("web-2") == "agent host2 refused it: nft is not installed"


def test_a_new_mux_announces_once_agents_accept_its_tunnels() -> None:
    fleet = settled(service())
    mux = replace(fleet.muxes["mux1"], name="mux3", address=None, live={})
    fleet.muxes["mux3"] = mux
    fleet.plan()
    fleet.take("mux3")
    fleet.plan()
    assert fleet.announced("mux3") == set()
    assert fleet.withheld("mux3") == "agent host1 does not accept its tunnels yet"
    fleet.take()
    fleet.plan()
    assert fleet.announced("mux3") == {VIP}


def test_a_backend_without_an_agent_is_the_operators_word() -> None:
    fleet = settled(service(hosts=(1, 200)))
    assert fleet.states() == {"web-1": "up", "web-200": "up"}
    assert "no agent has joined for 10.0.3.200" in fleet.reason("web-200")


# --- a place that is served is served on -----------------------------------------------------------------------------


def test_a_port_that_a_service_of_its_own_takes_from_a_range_is_served_until_that_is_ready() -> None:
    fleet = settled(service("wide", hosts=(1,), port="8000-8099"))
    fleet.apply(service("own", hosts=(2,), port=8050))
    fleet.replan(VIP)
    assert fleet.states("own") == {"own-2": "down", "wide-1": "up"}
    fleet.take("host2")
    fleet.replan(VIP)
    assert fleet.states("own") == {"own-2": "up", "wide-1": "drain"}


@pytest.mark.parametrize("idle", [{"weight": 0}, {"state": "drain"}])
def test_who_is_told_to_idle_takes_flows_until_who_comes_in_the_same_change_can(idle: dict[str, Any]) -> None:
    fleet = settled(service(hosts=(1,)))
    table = service(hosts=(1, 2))
    table["backend"][0] |= idle
    fleet.apply(table)
    fleet.replan(VIP)
    fleet.replan(VIP)
    told = fleet.table()
    assert told is not None
    assert told["backend"][0] == service(hosts=(1,))["backend"][0], "as before"
    fleet.take("host2")
    fleet.replan(VIP)
    told = fleet.table()
    assert told is not None
    assert told["backend"][0] == table["backend"][0]
    assert fleet.states()["web-2"] == "up"


def test_a_name_is_planned_together_with_the_vip_that_it_comes_from() -> None:
    fleet = settled(service("a", "203.0.113.10"), service("b", "203.0.113.11", port=81))
    fleet.apply(service("a", "203.0.113.11"), service("b", "203.0.113.10", port=81))
    fleet.replan("203.0.113.10/32")  # a turn that has no room for the other
    found = {name: table["vip"] for name, table in fleet.last.states["mux:mux1"]["services"].items() if name in "ab"}
    assert found == {"a": "203.0.113.11", "b": "203.0.113.10"}


def test_what_was_said_of_a_name_at_another_address_does_not_count() -> None:
    fleet = settled(with_probe(service(hosts=(1, 2))))
    table = with_probe(service(hosts=(1, 3)))
    table["backend"][1]["name"] = "web-2"  # the name goes to another host, with what MUXes said of it
    for mux in fleet.muxes:
        report = Report(True, "answers", fleet.now, address=IPv4Address("10.0.3.2"))
        fleet.reports.heard(Source.TUNNEL, mux, {("web", "web-2"): report}, fleet.now, 10)
    fleet.reports.heard(Source.AGENT, "host2", {}, fleet.now, 10)
    fleet.apply(table)
    fleet.plan()
    fleet.take()
    fleet.replan(VIP)
    assert fleet.shown()["web-2"] == "unknown"
    assert fleet.states()["web-2"] == "down"


# --- withdraw before remove ------------------------------------------------------------------------------------------


def test_a_deleted_service_is_withdrawn_everywhere_before_it_is_removed() -> None:
    fleet = settled(service())
    fleet.apply(only=True)
    fleet.plan()
    assert fleet.announced() == set()
    assert fleet.table() is not None
    fleet.take("mux1")
    fleet.plan()
    assert fleet.table() is not None, "mux2 may still announce it"
    fleet.take("mux2")
    fleet.plan()
    assert fleet.table() is None
    assert fleet.table(node="agent:host1") is not None, "MUXes may still send to it"
    fleet.take("mux1", "mux2")
    fleet.plan()
    assert fleet.table(node="agent:host1") is None
    assert fleet.last.vips["203.0.113.10/32"].done == ("web",)
    fleet.settle()
    assert fleet.desired.retiring == {}


def test_a_mux_that_is_gone_for_longer_than_the_hold_time_holds_nobody_up() -> None:
    fleet = settled(service())
    fleet.set("mux2", connected=False)
    fleet.apply(only=True)
    fleet.plan()
    fleet.take()
    fleet.plan()
    assert fleet.table() is not None
    fleet.set("mux2", gone=True)
    fleet.settle()
    assert fleet.desired.retiring == {}


def test_a_service_that_moves_to_another_vip_keeps_the_old_one_until_it_is_withdrawn() -> None:
    fleet = settled(service())
    fleet.apply(service(vip="203.0.113.11"))
    fleet.plan()
    tables = fleet.last.states["mux:mux1"]["services"]
    assert {table["vip"] for table in tables.values()} == {"203.0.113.10", "203.0.113.11"}
    assert fleet.announced() == set()
    fleet.settle()
    assert fleet.announced() == {"203.0.113.11/32"}
    assert list(fleet.last.states["mux:mux1"]["services"]) == ["web"]
    assert list(fleet.last.states["agent:host1"]["services"]) == ["web"]


def test_a_removed_backend_stays_on_its_agent_until_no_mux_sends_to_it() -> None:
    fleet = settled(service(hosts=(1, 2)))
    fleet.apply(service(hosts=(1,)))
    fleet.plan()
    assert fleet.states() == {"web-1": "up"}
    assert fleet.table(node="agent:host2") is not None
    fleet.take("mux1")
    fleet.plan()
    assert fleet.table(node="agent:host2") is not None
    fleet.take("mux2")
    fleet.plan()
    assert fleet.table(node="agent:host2") is None


def test_one_of_two_services_at_a_vip_can_go_without_a_withdrawal() -> None:
    fleet = settled(service(), service("tls", port=443))
    fleet.apply(service(), only=True)
    fleet.plan()
    assert fleet.announced() == {VIP}
    assert fleet.table("tls") is None
    assert fleet.table(f"tls~{VIP}", "agent:host1") is not None
    fleet.settle()
    assert fleet.table(f"tls~{VIP}", "agent:host1") is None
    assert fleet.desired.retiring == {}


# --- a manager that starts anew --------------------------------------------------------------------------------------


def restarted(fleet: Fleet) -> Fleet:
    """The manager lost all but the store: nodes are not connected, nothing is reported."""
    anew = Fleet(0, 0)
    anew.desired = fleet.desired
    known = fleet.last.memory
    anew.last = Plan(
        memory=PlanMemory(known.backends, known.granted, served=served(fleet.desired), leaving=known.leaving)
    )
    for name, node in fleet.muxes.items():
        anew.muxes[name] = replace(node, connected=False, live=None)
    for name, node in fleet.agents.items():
        anew.agents[name] = replace(node, connected=False, live=None)
    return anew


def test_a_manager_that_starts_anew_changes_nothing() -> None:
    fleet = settled(with_probe(service()), with_probe(service("dns", "203.0.113.11", hosts=(3,))))
    fleet.report("host2", "web", "web-2", False)
    fleet.settle()
    anew = restarted(fleet)
    assert anew.plan().states == fleet.last.states
    for name in ("mux1", "host1", "mux2"):
        anew.set(name, connected=True)
        assert anew.plan().states == fleet.last.states
    anew.take()
    assert anew.plan().states == fleet.last.states


def test_a_half_done_deletion_goes_on_after_a_start() -> None:
    fleet = settled(service())
    fleet.apply(only=True)
    fleet.plan()
    anew = restarted(fleet)
    anew.plan()
    assert anew.table() is not None
    assert anew.announced() == set()
    for name in [*anew.muxes, *anew.agents]:
        anew.set(name, connected=True)
    anew.take()
    anew.settle()
    assert anew.desired.retiring == {}


# --- health ----------------------------------------------------------------------------------------------------------


def test_the_first_success_brings_an_unknown_backend_up() -> None:
    fleet = Fleet()
    fleet.apply(with_probe(service(), policy="any-backend"))
    fleet.plan()
    fleet.take()
    fleet.plan()
    assert fleet.shown() == {"web-1": "unknown", "web-2": "unknown"}
    assert fleet.states() == {"web-1": "down", "web-2": "down"}
    assert fleet.withheld("mux1") == "web has 0 healthy backends and its policy any-backend asks for 1"
    fleet.report("host1", "web", "web-1", True)
    fleet.plan()
    assert fleet.states() == {"web-1": "up", "web-2": "down"}
    assert fleet.announced() == {VIP}
    assert fleet.last.vips["203.0.113.10/32"].panic == {}


def test_silence_changes_nothing() -> None:
    fleet = settled(with_probe(service(hosts=(1, 2))))
    fleet.report("host2", "web", "web-2", False)
    fleet.settle()
    fleet.reports.expire(fleet.now + 60)
    fleet.set("host1", connected=False)
    fleet.plan()
    assert fleet.states() == {"web-1": "up", "web-2": "down"}
    assert fleet.reason("web-1") == "no report from an agent or a MUX; it stays as it was"


def test_probes_take_out_half_and_no_more() -> None:
    fleet = settled(with_probe(service(hosts=(1, 2, 3, 4)), policy="any-backend"), hosts=4)
    for host in (1, 2):
        fleet.report(f"host{host}", "web", f"web-{host}", False)
        fleet.settle()
    assert fleet.states() == {"web-1": "down", "web-2": "down", "web-3": "up", "web-4": "up"}
    fleet.report("host3", "web", "web-3", False)
    fleet.settle()
    assert fleet.states()["web-3"] == "up"
    assert fleet.shown() == {"web-1": "down", "web-2": "down", "web-3": "panic", "web-4": "up"}
    assert "PANIC" in fleet.last.states["mux:mux1"]["options"]["panic"]["web"]
    assert digest(fleet.last.states["mux:mux1"])
    fleet.report("host4", "web", "web-4", False)
    fleet.settle()
    assert [name for name, state in fleet.states().items() if state == "up"] == ["web-3", "web-4"]
    assert fleet.announced() == set(), "no backend is healthy, and the policy asks for one"
    for host in (1, 2):
        fleet.report(f"host{host}", "web", f"web-{host}", True)
        fleet.settle()
    assert fleet.shown() == {"web-1": "up", "web-2": "up", "web-3": "down", "web-4": "down"}
    assert fleet.announced() == {VIP}


def test_all_backends_failing_at_once_keeps_the_last_good_set_and_the_vip_of_policy_always() -> None:
    fleet = settled(with_probe(service()))
    for host in (1, 2):
        fleet.report(f"host{host}", "web", f"web-{host}", False)
    fleet.settle()
    assert fleet.states() == {"web-1": "up", "web-2": "up"}
    assert set(fleet.shown().values()) == {"panic"}
    assert fleet.announced() == {VIP}


#: By the names of docs/health.md's table: weights, what became of each backend (d: it times out, r: it refuses), the
#: service's own ``panic``; what MUXes are told.
PANIC_CASES: dict[str, tuple[tuple[int, ...], str, float | None, tuple[str, ...]]] = {
    "3:1 heavy silent": ((3, 1), "d.", None, ("down", "up")),  # by number half is left
    "3:1 heavy refuses": ((3, 1), "r.", None, ("down", "up")),
    "3:1 light silent": ((3, 1), ".d", None, ("up", "down")),
    "3:1 both silent": ((3, 1), "dd", None, ("up", "up")),
    "1:1:1 one silent": ((1, 1, 1), "d..", None, ("down", "up", "up")),
    "1:1:1 one refuses": ((1, 1, 1), "r..", None, ("down", "up", "up")),
    "1:1:1 two silent": ((1, 1, 1), "dd.", None, ("up", "up", "up")),  # too few: probes are not believed
    "1:1:1 two refuse": ((1, 1, 1), "rr.", None, ("down", "down", "up")),  # but who refuses is dead beyond doubt
    "1:1:1 one refuses, one silent": ((1, 1, 1), "rd.", None, ("down", "up", "up")),
    "1:1:1 all silent": ((1, 1, 1), "ddd", None, ("up", "up", "up")),
    "1:1:1 all refuse": ((1, 1, 1), "rrr", None, ("up", "up", "up")),
    "1:1:1 two silent, panic 0": ((1, 1, 1), "dd.", 0.0, ("down", "down", "up")),  # never
    "1:1:1 all silent, panic 0": ((1, 1, 1), "ddd", 0.0, ("down", "down", "down")),
    "1:1:1 one silent, panic 0.9": ((1, 1, 1), "d..", 0.9, ("up", "up", "up")),
    "10:1:1 all but a light one silent": ((10, 1, 1), "dd.", None, ("up", "up", "up")),
    "1:1:1 two silent, panic 0.3": ((1, 1, 1), "dd.", 0.3, ("down", "down", "up")),
}


def test_the_table_of_the_health_page_has_each_of_these_cases_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "health.md").read_text()
    named = re.findall(r"^\| `([\d:]+ [^`]*)` \|", page, re.MULTILINE)
    assert named == list(PANIC_CASES)


@pytest.mark.parametrize(("weights", "fates", "panic", "told"), PANIC_CASES.values(), ids=PANIC_CASES)
def test_what_is_taken_out_and_when_too_few_are_left(
    weights: tuple[int, ...], fates: str, panic: float | None, told: tuple[str, ...]
) -> None:
    table = with_probe(service(hosts=tuple(range(1, len(weights) + 1))))
    for backend, weight in zip(table["backend"], weights, strict=True):
        backend["weight"] = weight
    fleet = settled(table if panic is None else {**table, "panic": panic})
    for number, fate in enumerate(fates, 1):
        if fate != ".":
            fleet.report(f"host{number}", "web", f"web-{number}", False, refused=fate == "r")
    fleet.settle()
    assert tuple(fleet.states().values()) == told
    kept = sum(state == "up" and fate != "." for state, fate in zip(told, fates, strict=True))
    assert bool(fleet.last.vips["203.0.113.10/32"].panic) == bool(kept), "who stays although dead is said to be"


def test_a_service_without_a_probe_goes_by_what_its_agent_finds_when_it_connects() -> None:
    fleet = settled(service(hosts=(1, 2)))
    assert "its agent says" in fleet.reason("web-1")
    fleet.report("host1", "web", "web-1", False, "connection refused", refused=True)
    fleet.settle()
    assert fleet.states() == {"web-1": "down", "web-2": "up"}
    assert fleet.reason("web-1") == "its agent says: connection refused"


def test_a_backend_without_a_probe_takes_traffic_once_its_agent_reached_it() -> None:
    fleet = Fleet()
    fleet.report("host1", "web", "web-1", False, "connection refused", refused=True)
    fleet.apply(service(hosts=(1, 2)))
    fleet.settle()
    assert fleet.states() == {"web-1": "down", "web-2": "up"}, "not for a moment"


def test_without_a_probe_and_without_an_agent_a_backend_is_taken_to_be_well() -> None:
    fleet = Fleet(hosts=1)
    fleet.apply(service(hosts=(1, 2)))
    fleet.settle()
    assert fleet.states()["web-2"] == "up"
    assert "no agent has joined for 10.0.3.2" in fleet.reason("web-2")


def test_a_lost_host_takes_services_without_a_probe_with_it() -> None:
    fleet = settled(with_probe(service(hosts=(1, 2))), service("plain", "203.0.113.11", hosts=(1, 2)))
    fleet.set("host1", connected=False)
    fleet.now += 20  # the agent's word has ended
    for backend in ("web-1", "web-2"):
        for mux in fleet.muxes:
            fleet.report(mux, "web", backend, backend == "web-2")
    fleet.reports.expire(fleet.now)
    fleet.settle()
    assert fleet.states("plain") == {"plain-1": "down", "plain-2": "up"}
    assert "cannot reach web/web-1 on its host" in fleet.reason("plain-1")


def test_a_minority_of_muxes_cannot_take_a_backend_out_for_all() -> None:
    fleet = settled(with_probe(service()), muxes=3)
    for mux in ("mux1", "mux2", "mux3"):
        for backend in ("web-1", "web-2"):
            fleet.report(mux, "web", backend, True)
    fleet.report("mux1", "web", "web-1", False, "timed out")
    fleet.settle()
    assert fleet.states() == {"web-1": "up", "web-2": "up"}
    assert "1 of 3 MUXes cannot reach it through the tunnel (mux1: timed out)" in fleet.reason("web-1")
    fleet.report("mux2", "web", "web-1", False, "timed out")
    fleet.settle()
    assert fleet.states() == {"web-1": "down", "web-2": "up"}


#: Until words of MUXes on a probe with the default times are of one age, and a little more.
SETTLED = spread(Probe(ProbeType.TCP)) + 0.1


def reached(**shape: Any) -> Fleet:
    """A fleet with two backends that every MUX reaches and has reached for long."""
    fleet = settled(with_probe(service()), **shape)
    tell(fleet, *fleet.muxes, up=True)
    fleet.settle()
    fleet.now += 60
    return fleet


def tell(fleet: Fleet, *nodes: str, up: bool) -> None:
    """MUXes say the same of both backends, agents of their own."""
    for node in nodes:
        for number in (1, 2):
            if node in fleet.muxes or node == f"host{number}":
                fleet.report(node, "web", f"web-{number}", up)


def test_a_mux_that_reaches_nothing_withdraws_once_the_others_would_have_noticed_too() -> None:
    fleet = reached(muxes=3)
    tell(fleet, "mux1", up=False)
    fleet.settle()
    assert fleet.announced("mux1") == {VIP}, "the others may say the same in a moment"
    due = fleet.last.vips[VIP].due
    assert due is not None
    assert fleet.now < due <= fleet.now + SETTLED
    fleet.now = due
    fleet.settle()
    assert [fleet.announced(f"mux{n}") for n in (1, 2, 3)] == [set(), {VIP}, {VIP}]
    assert fleet.withheld("mux1") == "it reaches no healthy backend through the tunnel, other MUXes do"
    assert fleet.last.vips[VIP].due is None
    tell(fleet, "mux1", up=True)
    fleet.settle()
    assert fleet.announced("mux1") == {VIP}


def test_no_more_blind_muxes_withdraw_than_withdraw_cap_allows() -> None:
    fleet = reached(muxes=4, withdraw_cap=0.25)
    tell(fleet, "mux1", "mux2", up=False)
    fleet.now += SETTLED
    fleet.settle()
    assert [fleet.announced(f"mux{n}") for n in (1, 2, 3, 4)] == [set(), {VIP}, {VIP}, {VIP}]


def test_a_mux_that_reaches_nothing_keeps_its_vip_where_no_other_reaches_anything() -> None:
    fleet = settled(with_probe(service()), muxes=3)
    tell(fleet, "mux1", up=False)
    for _ in range(3):
        fleet.now += SETTLED
        fleet.settle()
        assert fleet.announced("mux1") == {VIP}
    assert fleet.last.vips[VIP].due is None


@pytest.mark.parametrize("order", list(itertools.permutations(("mux1", "mux2", "host1", "host2"))))
def test_nothing_is_withdrawn_while_all_backends_fail_and_return_whoever_notices_first(order: tuple[str, ...]) -> None:
    """Under policy "always". The last to notice is later than the first by no more than the probe allows."""
    fleet = reached()
    for up in (False, True):
        for node in order:
            tell(fleet, node, up=up)
            fleet.settle()
            assert fleet.announced("mux1") == fleet.announced("mux2") == {VIP}
            fleet.now += (SETTLED - 0.2) / len(order)
        fleet.now += 60
        fleet.settle()
        assert fleet.announced("mux1") == fleet.announced("mux2") == {VIP}


def test_an_old_word_is_not_held_against_a_mux_when_the_others_come_up_first() -> None:
    fleet = reached()
    tell(fleet, "mux1", "mux2", "host1", "host2", up=False)
    fleet.settle()
    fleet.now += 600
    tell(fleet, "mux2", "host1", "host2", up=True)
    fleet.settle()
    assert fleet.announced("mux1") == {VIP}
    fleet.now += SETTLED
    fleet.settle()
    assert fleet.announced("mux1") == set(), "now it has had its time"


def test_a_mux_that_reaches_nothing_is_not_given_a_vip() -> None:
    fleet = Fleet()
    fleet.apply(with_probe(service()))
    fleet.plan()
    fleet.take()
    fleet.all_healthy()
    tell(fleet, "mux2", up=True)
    tell(fleet, "mux1", up=False)
    fleet.settle()
    assert (fleet.announced("mux1"), fleet.announced("mux2")) == (set(), {VIP})


def test_min_healthy_counts() -> None:
    fleet = settled(with_probe(service(hosts=(1, 2, 3)), policy="min-healthy", n=2))
    fleet.report("host1", "web", "web-1", False)
    fleet.settle()
    assert fleet.announced() == {VIP}
    fleet.report("host2", "web", "web-2", False)
    fleet.settle()
    assert fleet.announced() == set()
    assert fleet.withheld("mux2") == "web has 1 healthy backends and its policy min-healthy asks for 2"


@pytest.mark.parametrize(("policy", "announced"), [({"policy": "any-backend"}, set()), ({}, {VIP})])
def test_who_takes_no_new_flows_is_no_reason_to_announce(policy: dict[str, Any], announced: set[str]) -> None:
    table = with_probe(service(), **policy)
    fleet = settled(table)
    assert fleet.announced() == {VIP}
    for backend in table["backend"]:
        backend["weight"] = 0
    fleet.apply(table)
    fleet.settle()
    assert set(fleet.shown().values()) == {"up"}
    assert fleet.announced() == announced
    if not announced:
        words = (
            "web has 0 healthy backends, beside 2 of weight 0, which take no new flows and its policy any-backend asks"
        )
        assert fleet.withheld("mux1") == f"{words} for 1"


def test_flows_of_backends_that_drain_are_a_reason_to_announce() -> None:
    fleet = settled(with_probe(service(), policy="any-backend"))
    for name in ("web-1", "web-2"):
        fleet.desired = drain_backend(fleet.desired, "web", name, Order("alice", 5.0)).new
    fleet.settle()
    assert fleet.announced() == {VIP}


# --- what a node cannot serve ----------------------------------------------------------------------------------------


def test_a_mux_that_leaves_out_a_service_does_not_announce_its_vip_where_others_serve_it() -> None:
    fleet = settled(service(), service("dns", "203.0.113.11", hosts=(3,)))
    fleet.set("mux1", left_out={"web": "is of a newer version"})
    fleet.settle()
    assert fleet.announced("mux1") == {"203.0.113.11/32"}
    assert fleet.announced("mux2") == {VIP, "203.0.113.11/32"}
    assert fleet.withheld("mux1") == "it leaves out service web: is of a newer version"
    fleet.set("mux1", left_out={})
    fleet.settle()
    assert fleet.announced("mux1") == {VIP, "203.0.113.11/32"}


def test_one_service_that_no_mux_can_serve_takes_no_vip_from_others_and_gets_none_alone() -> None:
    fleet = settled(service(), service("tls", port=443), service("dns", "203.0.113.11", hosts=(3,)))
    for mux in ("mux1", "mux2"):
        fleet.set(mux, left_out={"tls": "is of a newer version", "dns": "is of a newer version"})
    fleet.settle()
    assert fleet.announced("mux1") == fleet.announced("mux2") == {VIP}


def test_what_a_host_leaves_out_counts_as_not_ready_and_freezes_nothing_else() -> None:
    fleet = settled(service(hosts=(1, 2)))
    fleet.set("host1", left_out={"web": "two ports"})
    fleet.settle()
    assert fleet.states() == {"web-1": "down", "web-2": "up"}
    assert fleet.reason("web-1") == "not set up on host1: two ports"
    assert fleet.announced() == {VIP}
    fleet.apply(service(hosts=(2,)))
    fleet.settle()
    assert fleet.states() == {"web-2": "up"}


def _udp(name: str, vip: str, host: int) -> dict[str, Any]:
    return service(name, vip, hosts=(host, 3)) | {"protocol": "udp", "probe": {"type": "udp"}}


@pytest.mark.parametrize(
    ("connected", "reached", "state"), [(False, False, "down"), (False, True, "up"), (True, False, "up")]
)
def test_a_host_that_is_lost_loses_its_udp_backends_too(connected: bool, reached: bool, state: str) -> None:
    """A host whose agent alone has stopped does not."""
    fleet = settled(with_probe(service()), _udp("dns", "203.0.113.11", 1))
    fleet.all_reached()
    fleet.reports.forget(Source.TUNNEL, "mux1")
    fleet.reports.forget(Source.TUNNEL, "mux2")
    fleet.settle()
    fleet.now += 20
    fleet.reports.expire(fleet.now)
    fleet.set("host1", connected=connected)
    for mux in fleet.muxes:
        fleet.report(mux, "web", "web-1", reached, "connect timed out")
    fleet.plan()
    assert fleet.states("dns")["dns-1"] == state
    if state == "down":
        assert fleet.reason("dns-1") == (
            "no report from its agent, and 2 of 2 MUXes cannot reach web/web-1 on its host: connect timed out"
        )


def _machines(fleet: Fleet, up: bool) -> None:
    for mux in fleet.muxes:
        report = Report(up, "its machine is there" if up else "its machine does not answer", fleet.now, host=True)
        fleet.reports.heard(Source.TUNNEL, mux, {("dns", "dns-1"): report}, fleet.now, lease=10)


@pytest.mark.parametrize(
    ("agent", "machine", "state"),
    [("well", False, "up"), ("silent", False, "down"), ("silent", True, "up"), ("ill", True, "down")],
)
def test_a_host_with_udp_services_alone_is_lost_when_nothing_is_heard_of_it(
    agent: str, machine: bool, state: str
) -> None:
    """What MUXes say of a machine counts only without its agent's word, and only against a backend."""
    fleet = settled(_udp("dns", "203.0.113.11", 1))
    fleet.now += 20
    fleet.reports.expire(fleet.now)
    if agent != "silent":
        fleet.report("host1", "dns", "dns-1", agent == "well")
    fleet.set("host1", connected=agent != "silent")
    _machines(fleet, machine)
    fleet.plan()
    assert fleet.states("dns")["dns-1"] == state
    if (agent, machine) == ("silent", False):
        why = "no report from an agent, and 2 of 2 MUXes hear nothing (mux1: its machine does not answer)"
        assert fleet.reason("dns-1") == why
        fleet.set("host1", connected=True)
        fleet.report("host1", "dns", "dns-1", True)
        fleet.plan()
        assert fleet.states("dns")["dns-1"] == "up", "its agent is back"


def test_a_machine_without_an_agent_is_not_judged_by_whether_it_is_there() -> None:
    fleet = settled(_udp("dns", "203.0.113.11", 1))
    del fleet.agents["host1"]
    fleet.reports.forget(Source.AGENT, "host1")
    fleet.plan()
    before = fleet.states("dns")["dns-1"]
    _machines(fleet, False)
    fleet.plan()
    assert fleet.states("dns")["dns-1"] == before


# --- drains ----------------------------------------------------------------------------------------------------------


def test_a_drained_backend_keeps_its_flows_and_the_reason_names_who() -> None:
    fleet = settled(service())
    fleet.desired = drain_backend(fleet.desired, "web", "web-1", Order("alice", 5.0)).new
    fleet.settle()
    assert fleet.states() == {"web-1": "drain", "web-2": "up"}
    assert fleet.reason("web-1").startswith("drained by alice; up: ")
    fleet.desired = drain_backend(fleet.desired, "web", "web-1", None).new
    fleet.settle()
    assert fleet.states() == {"web-1": "up", "web-2": "up"}


@pytest.mark.parametrize(("muxes", "gone", "told"), [(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 2), (2, 1, 0)])
def test_only_so_many_muxes_drain_at_once(muxes: int, gone: int, told: int) -> None:
    fleet = settled(service(), muxes=muxes)
    for n in range(gone):
        fleet.set(f"mux{muxes - n}", gone=True, connected=False)
    for n in range(1, muxes + 1 - gone):
        fleet.desired = drain_mux(fleet.desired, f"mux{n}", Order("alice", float(n))).new
    fleet.plan()
    draining = [name for name, state in fleet.last.states.items() if state.get("options", {}).get("drain")]
    assert draining == [f"mux:mux{n}" for n in range(1, told + 1)]
    assert sum("waits" in (reason or "") for reason in fleet.last.drains.values()) == muxes - gone - told


# --- whatever happens ------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("apply"), st.sampled_from(["a", "b", "c"]), st.sampled_from([10, 11]), st.sets(st.integers(1, 3))
        ),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("take"), st.sampled_from(["mux1", "mux2", "host1", "host2", "host3"])),
        st.tuples(st.just("settle"), st.integers(1, 3)),
        st.tuples(st.just("connect"), st.sampled_from(["mux1", "mux2", "host1", "host2"]), st.booleans()),
        st.tuples(st.just("gone"), st.sampled_from(["mux1", "mux2"])),
        st.tuples(st.just("report"), st.sampled_from(["a", "b"]), st.integers(1, 3), st.booleans()),
        st.tuples(
            st.just("tunnel"),
            st.sampled_from(["mux1", "mux2"]),
            st.sampled_from(["a", "b"]),
            st.integers(1, 3),
            st.booleans(),
        ),
        st.tuples(st.just("time"), st.integers(1, 20)),
    ),
    max_size=25,
)
PORTS = {"a": 80, "b": 81, "c": 82}


def step(fleet: Fleet, event: tuple[Any, ...]) -> None:
    kind, *rest = event
    if kind == "apply":
        name, vip, hosts = rest
        fleet.apply(
            with_probe(service(name, f"203.0.113.{vip}", tuple(sorted(hosts)), PORTS[name]), policy="any-backend")
        )
    elif kind == "delete":
        left = [name for name in fleet.desired.services if name != rest[0]]
        if len(left) < len(fleet.desired.services):
            fleet.desired = delete_services(fleet.desired, [rest[0]]).new
    elif kind == "take":
        fleet.take(rest[0])
    elif kind == "settle":
        for _ in range(rest[0]):  # as a controller would, with no look in between
            fleet.take()
            fleet.plan()
    elif kind == "connect":
        node = {**fleet.muxes, **fleet.agents}[rest[0]]
        fleet.set(rest[0], connected=rest[1], gone=node.gone and not rest[1])
    elif kind == "gone":
        if not fleet.muxes[rest[0]].connected:
            fleet.set(rest[0], gone=True)
    elif kind == "tunnel":
        mux, name, number, up = rest
        fleet.report(mux, name, f"{name}-{number}", up)
    elif kind == "time":
        fleet.now += rest[0]
    else:
        fleet.report(f"host{rest[1]}", rest[0], f"{rest[0]}-{rest[1]}", rest[2])


def check(fleet: Fleet, before: Plan) -> None:
    """No plan announces what is not installed, or removes what is not withdrawn; and nodes can be told all of it."""
    world = fleet.world()
    for state in fleet.last.states.values():
        digest(state)  # of plain JSON
    for mux in fleet.muxes.values():
        state = fleet.last.states[mux.id]
        tables = {table["vip"] for table in state.get("services", {}).values()}
        for prefix in state.get("announcements", {}):
            vip = prefix
            assert vip in fleet.desired.by_vip
            if mux.name in before.memory.granted.get(vip, frozenset()):
                continue
            for name in fleet.desired.by_vip[vip]:
                installed = mux.has("services", name)
                assert installed is not None, "announced before it was installed"
                assert installed["vip"] == vip.removesuffix("/32")
                for backend in fleet.desired.services[name].backends:
                    agent = fleet.agents.get(world.agent_at.get(backend.address, ""))
                    if agent is not None and agent.connected:
                        assert agent.has("services", name) is not None
                        assert agent.has("muxes", mux.name) is not None
        for prefix in (mux.live or {}).get("announcements", {}):
            if mux.gone:
                continue
            address = prefix.removesuffix("/32")
            assert address in tables, "removed from a MUX before it was withdrawn"
            for other in fleet.agents.values():
                has = [t for t in (other.live or {}).get("services", {}).values() if t["vip"] == address]
                kept = [t for t in fleet.last.states[other.id].get("services", {}).values() if t["vip"] == address]
                assert kept or not has or prefix in fleet.desired.by_vip
    parse_all(fleet)


def parse_all(fleet: Fleet) -> None:
    """Whatever a node is told is a configuration that it can read: a service goes by its key."""
    for state in fleet.last.states.values():
        parse_service_tables([{**table, "name": key} for key, table in state.get("services", {}).items()])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([("apply", "b", 10, {1}), ("report", "b", 1, True), ("settle", 2), ("apply", "b", 10, set()), ("delete", "b")])
@example([("apply", "b", 10, {1}), ("report", "b", 1, True), ("settle", 2), ("apply", "b", 11, set())])
@given(STEPS)
def test_any_history_is_safe_and_comes_to_rest(events: list[tuple[Any, ...]]) -> None:
    fleet = Fleet()
    fleet.plan()
    for event in events:
        step(fleet, event)
        before = fleet.last
        fleet.plan()
        check(fleet, before)
        assert plan(replace(fleet.world(), tables=None)).states == fleet.last.states, "planning again changes nothing"
        done = [key for found in fleet.last.vips.values() for key in found.done]
        fleet.desired = purge(fleet.desired, done).new
    for name in [*fleet.muxes, *fleet.agents]:
        fleet.set(name, connected=True, gone=False)
    fleet.all_healthy()
    fleet.all_reached()
    fleet.settle(8)
    fleet.now += HANDOVER  # who was kept for those that come has gone by then
    fleet.settle(8)
    assert fleet.desired.retiring == {}
    for mux in fleet.muxes:
        state = fleet.last.states[f"mux:{mux}"]
        assert state.get("services", {}).keys() == fleet.desired.services.keys()
        wanted = {str(s.vip) for s in fleet.desired.services.values() if s.backends}
        assert state.get("announcements", {}).keys() == wanted
    for agent in fleet.agents.values():
        own = {s.name for s in fleet.desired.services.values() if agent.address in {b.address for b in s.backends}}
        assert fleet.last.states[agent.id].get("services", {}).keys() == own


_MOVED = [("apply", "c", 10, {1}), ("take", "mux1"), ("apply", "a", 10, set())]


@settings(max_examples=150, deadline=None)
@example([*_MOVED, ("delete", "c"), ("apply", "c", 11, set())])
@example([*_MOVED, ("apply", "c", 11, set()), ("delete", "c")])
@given(STEPS)
def test_planning_only_what_was_touched_gives_the_same(events: list[tuple[Any, ...]]) -> None:
    fleet = Fleet()
    fleet.plan()
    for event in events:
        old = fleet.desired
        step(fleet, event)
        touched: set[Any] | None = None
        if event[0] in ("apply", "delete"):
            names = frozenset(old.services) | fleet.desired.services.keys()
            touched = DesiredChange(old, fleet.desired, (), names).vips()
        elif event[0] in ("report", "tunnel"):
            found = fleet.desired.services.get(event[1] if event[0] == "report" else event[2])
            touched = {str(found.vip)} if found else set()
        incremental = replan(fleet.last, fleet.world(), touched)
        assert incremental == plan(replace(fleet.world(), tables=None))
        fleet.tell(incremental, touched)


# --- QUIC ------------------------------------------------------------------------------------------------------------


def h3(*server_ids: tuple[int, str | None]) -> dict[str, Any]:
    """A service with connection ids, and backends with these server ids."""
    found = service("h3", hosts=tuple(host for host, _ in server_ids), protocol="udp", quic=[{"id": 0}])
    for backend, (_, server_id) in zip(found["backend"], server_ids, strict=True):
        backend.update({} if server_id is None else {"server_id": server_id})
    return found


def test_muxes_are_told_of_connection_ids_and_hosts_are_not() -> None:
    fleet = settled(h3((1, "0a0b0c0d"), (2, None)))
    mux, agent = fleet.table("h3"), fleet.table("h3", node="agent:host1")
    assert mux is not None
    assert agent is not None
    assert mux["quic"] == [{"id": 0}]
    assert [backend.get("server_id") for backend in mux["backend"]] == ["0a0b0c0d", None]
    assert "quic" not in agent
    assert "server_id" not in agent["backend"][0]


def test_who_comes_in_the_place_of_one_that_leaves_has_its_server_id() -> None:
    fleet = settled(h3((1, "0a0b0c0d")))
    fleet.apply(h3((2, "0a0b0c0d")))
    fleet.plan()
    table = fleet.table("h3")
    assert table is not None
    assert [b["name"] for b in table["backend"] if b.get("server_id") == "0a0b0c0d"] == ["h3-2"]
    parse_service_tables([table])
