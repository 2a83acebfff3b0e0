# SPDX-License-Identifier: Apache-2.0
"""The fleet by its manager's word: rows in, findings out; whatever the rows hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from lb.doctor.fleet import (
    FleetSeen,
    check_announcements,
    check_fleet,
    check_node,
    check_pool,
    check_refusals,
    check_service,
    check_sessions,
)
from lb.doctor.model.findings import Finding, Severity

FAULT, WARNING, UNKNOWN, OK = Severity
NOW = 1e9
NODE = {
    "name": "mux1", "address": "10.0.1.11", "state": "ready", "since": NOW - 60, "refused": None, "generation": 7,
    "wanted": 7, "clock_skew": 0.1, "certificate_expires": NOW + 20 * 86400,
}  # fmt: skip


def wrong(findings: Iterable[Finding]) -> list[tuple[str, Severity]]:
    return [(f.check, f.severity) for f in findings if f.severity is not OK]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"state": "away"}, [("node", FAULT)]),
        ({"state": "gone"}, [("node", FAULT)]),
        ({"state": "away", "certificate_expires": NOW - 60}, [("certificate", FAULT)]),
        ({"state": "refused", "refused": "203.0.113.11 is local here"}, [("node_state", FAULT)]),
        ({"state": "late"}, [("node_state", FAULT)]),
        ({"clock_skew": 600}, [("clock", FAULT)]),
        ({"clock_skew": -5.0}, [("clock", WARNING)]),
        ({"clock_skew": None, "certificate_expires": None}, []),
        ({"certificate_expires": NOW + 3600}, [("certificate", WARNING)]),
    ],
)
def test_what_is_wrong_with_a_node_is_named(changed: dict[str, Any], expected: list[tuple[str, Severity]]) -> None:
    assert wrong(check_node("mux", {**NODE, **changed}, NOW)) == expected


def fleet_of(*muxes: dict[str, Any]) -> FleetSeen:
    return FleetSeen({"now": NOW}, muxes, (), (), (), ())


def test_a_mux_that_does_not_keep_up_is_named_and_one_that_is_away_is_not_asked() -> None:
    words = "loses 9 of 10 packets/s, its worker is saturated; add a MUX"
    found = [f for f in check_fleet(fleet_of({**NODE, "saturated": words})) if f.check == "saturated"]
    assert [(f.severity, f.what) for f in found] == [(FAULT, f"MUX mux1 (10.0.1.11) {words}")]
    quiet = [
        check_fleet(fleet_of({**NODE, **row}))
        for row in ({"state": "away", "saturated": words}, {"saturated": None}, {})
    ]
    assert [f.severity for findings in quiet for f in findings if f.check == "saturated"] == [OK]


def test_muxes_of_another_seed_are_one_finding_and_the_last_that_came_is_looked_at_first() -> None:
    why = "its seed differs from that of mux1"
    three = [{**NODE, "name": f"mux{n}", "since": NOW - n} for n in (3, 2, 1)]
    assert wrong(check_pool(three)) == []
    three[0]["differs"] = why
    (found,) = check_pool(three)
    assert (found.severity, found.what) == (
        FAULT,
        f"MUX mux3 (10.0.1.11) chooses other backends than the others: {why}",
    )
    three[1]["differs"] = three[2]["differs"] = why
    (found,) = check_pool(three)
    assert found.what.startswith("MUX mux1 (10.0.1.11) chooses other backends than the others (and so do mux2, mux3): ")
    assert "`lb drain mux mux1`" in (found.remedy or "")
    assert wrong(check_pool([{**row, "state": "away"} for row in three])) == []


def test_what_operators_wished_is_taken_back_by_the_remedy() -> None:
    row = {"name": "web", "state": "down", "announced_by": ["mux1"], "wanted_by": ["mux1"]}
    note = {**row, "note": "no backend takes new flows: all 1 drained"}
    backend = {"service": "web", "name": "a", "state": "drain", "weight": 1}
    fleet = FleetSeen({"now": NOW}, [NODE], [], [note], [backend], [])
    (found,) = [one for one in check_fleet(fleet) if one.severity is FAULT]
    assert (found.remedy or "").startswith("`lb undrain backend web/a`; ")
    none = replace(fleet, backends=[{**backend, "state": "up", "weight": 0}])
    (found,) = [one for one in check_fleet(none) if one.severity is FAULT]
    assert (found.remedy or "").startswith("`lb set weight web/a 1`; ")
    alone = {**row, "state": "up", "note": "announced by mux1 alone; mux2: it drains"}
    drained = replace(fleet, muxes=[NODE, {**NODE, "name": "mux2", "drain": "told to drain"}], services=[alone])
    (found,) = [one for one in check_fleet(drained) if one.severity is WARNING]
    assert (found.remedy or "").startswith("`lb undrain mux mux2` when its work is done; ")
    held = {"vip": "203.0.113.10", "mux": "mux2", "wanted": True, "peer": "tor1", "state": "held", "reason": "drained"}
    assert [one for one in check_fleet(replace(drained, announcements=[held])) if one.severity is WARNING] == [found]


def refusal(**changed: Any) -> dict[str, Any]:
    row = {"node": "mux:mux1", "address": "10.0.1.12", "reason": "mux:mux1 is connected already, from 10.0.1.11"}
    return {**row, "duplicate": True, "first": NOW - 60, "last": NOW - 2, "count": 9, **changed}


@pytest.mark.parametrize(
    "refused",
    ["the store is older than it was (see lb-manager take-over)", "it has orders of term 2, and goes on with them"],
)
def test_nodes_with_newer_orders_than_the_store_are_no_findings_beside_that_of_the_store(refused: str) -> None:
    node = {**NODE, "state": "refused", "refused": refused}
    (found,) = [one for one in check_fleet(FleetSeen({"now": NOW}, [node], [], [], [], [])) if one.severity is FAULT]
    assert (found.about, found.cause) == (("history",), None)


def test_of_the_sessions_of_a_mux_that_is_away_nothing_is_said() -> None:
    peer = {"name": "tor1", "address": "10.0.1.1", "state": "connecting", "error": "refused"}
    away = {**NODE, "state": "away", "peers": [peer]}
    assert wrong(check_fleet(FleetSeen({"now": NOW}, [away], [], [], [], []))) == [("node", FAULT)]


def test_two_machines_of_one_name_are_told_with_both_addresses_and_what_to_do() -> None:
    (found,) = check_refusals([refusal()], NOW)
    assert (found.check, found.severity) == ("duplicate_name", FAULT)
    assert 'MUX "mux1"' in found.what
    assert "10.0.1.12" in found.what
    assert "10.0.1.11" in found.what
    assert "--kind mux --name NEWNAME" in (found.remedy or "")


def test_refusals_that_are_over_are_not_told() -> None:
    assert wrong(check_refusals([refusal(last=NOW - 600)], NOW)) == []
    assert wrong(check_refusals([refusal(duplicate=False)], NOW)) == [("refused", FAULT)]
    assert wrong(check_refusals(None, NOW)) == []


def test_sessions_services_backends_and_announcements_are_judged() -> None:
    peer = {"name": "tor1", "address": "10.0.1.1", "state": "connecting", "error": "refused"}
    assert wrong(check_sessions({"name": "mux1", "peers": [peer, {**peer, "state": "established"}]})) == [
        ("bgp", FAULT)
    ]
    for state, severity in (("PANIC", FAULT), ("down", FAULT), ("degraded", OK), ("up", OK)):
        (found,) = check_service({"name": "web", "state": state, "healthy": 1, "backends": 3})
        assert found.severity is severity
    row = {"vip": "203.0.113.10/32", "mux": "mux1", "wanted": True, "peer": "tor1", "state": "held", "reason": "x"}
    assert wrong(check_announcements([row, {**row, "state": "announced"}])) == [("announcement", WARNING)]
    assert wrong(check_announcements([{**row, "peer": None}])) == []  # without BGP


def test_a_fleet_that_is_well_has_no_fault_and_an_empty_one_is_said() -> None:
    backend = {"service": "web", "name": "a", "state": "up"}
    fleet = FleetSeen({"now": NOW, "refusals": []}, [NODE], [{**NODE, "name": "host1"}], [], [backend], [])
    assert wrong(check_fleet(fleet)) == []
    assert wrong(check_fleet(FleetSeen({"now": NOW}, [], [], [], [], []))) == [("node", WARNING)]


def test_rows_of_an_older_manager_or_of_nonsense_raise_nothing() -> None:
    nonsense: list[dict[str, Any]] = [{}, {"peers": "x", "state": 7, "since": "never", "clock_skew": "fast"}]
    fleet = FleetSeen(
        {"refusals": [{}, 3, refusal(node=None, last="x")]}, nonsense, nonsense, nonsense, nonsense, nonsense
    )
    assert list(check_fleet(fleet))
