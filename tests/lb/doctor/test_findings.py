# SPDX-License-Identifier: Apache-2.0
"""Findings as values: which symptoms a cause explains, and how they travel."""

from __future__ import annotations

import json

import pytest

from lb.doctor.model.findings import Finding, Severity, explained, fault, of_row, ok, row, unknown, warning

FIREWALL = fault(
    "host_firewall", "drops TCP 8080", "`nft …`", cause="host_firewall", about=["backend web/a", "backend files/a"]
)
SILENT = fault("protocol_4", "nothing comes back", "…", about=["backend web/a"])


def test_a_symptom_goes_where_a_cause_is_known_for_all_that_it_is_about() -> None:
    assert explained([SILENT, FIREWALL]) == [FIREWALL]
    assert explained([SILENT]) == [SILENT]


def test_of_a_symptom_that_is_explained_in_part_the_rest_stays() -> None:
    wide = fault("protocol_4", "nothing comes back", "…", about=["backend web/a", "backend web/b"])
    (kept, _) = explained([wide, FIREWALL])
    assert kept.about == ("backend web/b",)


def test_what_is_only_likely_or_fine_explains_nothing_and_what_is_about_nothing_stays() -> None:
    likely = warning("host_firewall", "may drop TCP 8080", "…", cause="host_firewall", about=["backend web/a"])
    others = [SILENT, likely, ok("path", "fine"), unknown("fleet", "not seen"), fault("disk", "full", "…")]
    assert explained(others) == others


@pytest.mark.parametrize("finding", [FIREWALL, SILENT, ok("path", "fine"), unknown("ntp", "not seen")])
def test_a_finding_is_the_same_after_a_journey(finding: Finding) -> None:
    assert of_row(json.loads(json.dumps(row(finding)))) == finding


def test_a_finding_of_an_older_version_has_no_cause() -> None:
    old = {"check": "disk", "severity": "fault", "what": "full", "remedy": None}
    assert of_row(old) == Finding("disk", Severity.FAULT, "full")
