# SPDX-License-Identifier: Apache-2.0
"""Reports and leases, and the verdict that they add up to."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from manager.plan.health import Evidence, Health, Report, Reports, Source, judge

UP, DOWN = Report(True, "200 OK", 0.0), Report(False, "timed out", 0.0)


@pytest.mark.parametrize(
    ("agent", "tunnels", "muxes", "expected", "words"),
    [
        (UP, {}, 3, Health.UP, "its agent says: 200 OK"),
        (UP, {"m1": UP, "m2": UP}, 2, Health.UP, "its agent says: 200 OK"),
        (UP, {"m1": DOWN}, 3, Health.UP, "but 1 of 3 MUXes cannot reach it through the tunnel (m1: timed out)"),
        (UP, {"m1": DOWN, "m2": DOWN, "m3": UP}, 3, Health.DOWN, "2 of 3 MUXes cannot reach it"),
        (UP, {"m1": DOWN, "m2": UP}, 2, Health.UP, "1 of 2 MUXes cannot reach it"),
        (UP, {"m1": DOWN}, 1, Health.DOWN, "1 of 1 MUXes cannot reach it"),
        (DOWN, {"m1": UP, "m2": UP}, 2, Health.DOWN, "its agent says: timed out"),
        (None, {"m1": UP, "m2": DOWN}, 2, Health.UP, "no report from an agent; 1 of 2 MUXes reach it"),
        (None, {"m1": DOWN, "m2": DOWN}, 3, Health.DOWN, "2 of 3 MUXes cannot reach it"),
        (None, {"m1": DOWN}, 3, Health.UNKNOWN, "no report from an agent or a MUX"),
        (None, {}, 3, Health.UNKNOWN, "no report"),
    ],
)
def test_verdicts(agent: Report | None, tunnels: dict[str, Report], muxes: int, expected: Health, words: str) -> None:
    verdict = judge(Evidence(agent, tunnels, muxes))
    assert verdict.health is expected
    assert words in verdict.reason


KEY = ("web", "web-1")


def test_reports_are_believed_until_the_lease_ends_and_any_message_renews_it() -> None:
    reports = Reports()
    assert reports.heard(Source.AGENT, "host1", {KEY: UP}, now=0, lease=10) == {"web"}
    assert reports.heard(Source.AGENT, "host1", {}, now=0, lease=15) == set()
    assert reports.expire(12) == set()
    assert reports.agent("host1", KEY) == UP
    assert reports.expire(15) == {"web"}
    assert reports.agent("host1", KEY) is None
    assert reports.expire(16) == set()


def test_a_node_that_speaks_again_is_believed_again() -> None:
    reports = Reports()
    reports.heard(Source.TUNNEL, "mux1", {KEY: UP, ("dns", "d"): DOWN}, now=0, lease=10)
    assert reports.expire(10) == {"web", "dns"}
    assert reports.tunnels(KEY) == {}
    assert reports.heard(Source.TUNNEL, "mux1", {KEY: UP}, now=0, lease=20) == {"web", "dns"}
    assert reports.tunnels(("dns", "d")) == {"mux1": DOWN}


def test_a_backend_turned_if_it_is_up_or_down_now_and_was_not_whatever_the_words() -> None:
    reports = Reports()

    def turned(report: Report) -> bool:
        found = reports.turned(Source.TUNNEL, "mux1", {KEY: report})
        reports.heard(Source.TUNNEL, "mux1", {KEY: report}, now=0, lease=10)
        return found == {KEY}

    assert turned(DOWN), "nothing was said of it before"
    assert not turned(replace(DOWN, reason="no route to host", refused=True))
    assert turned(UP)
    assert turned(replace(UP, address=ip_address("10.0.3.9"))), "it is another of that name"
    reports.expire(10)
    assert turned(replace(UP, address=ip_address("10.0.3.9"))), "what it said was no longer believed"


def test_only_news_counts_as_a_change() -> None:
    reports = Reports()
    reports.heard(Source.AGENT, "host1", {KEY: UP}, now=0, lease=10)
    assert reports.heard(Source.AGENT, "host1", {KEY: Report(True, "200 OK", 5.0)}, now=0, lease=12) == set()
    assert reports.heard(Source.AGENT, "host1", {KEY: DOWN}, now=0, lease=14) == {"web"}


def test_a_node_that_is_forgotten_says_nothing() -> None:
    reports = Reports()
    reports.heard(Source.TUNNEL, "mux1", {KEY: UP}, now=0, lease=10)
    assert reports.forget(Source.TUNNEL, "mux1") == {"web"}
    assert reports.tunnels(KEY) == {}
    assert reports.expire(now=100) == set()


def test_what_was_passed_over_is_counted_for_each_node_until_it_is_forgotten() -> None:
    reports = Reports()
    for count in (2, 0, 3):
        reports.pass_over(Source.TUNNEL, "mux1", count)
    assert reports.passed_over(Source.TUNNEL, "mux1") == 5
    assert reports.passed_over(Source.AGENT, "mux1") == 0
    reports.forget(Source.TUNNEL, "mux1")
    assert reports.passed_over(Source.TUNNEL, "mux1") == 0


def test_backends_that_are_gone_are_forgotten() -> None:
    reports = Reports()
    reports.heard(Source.AGENT, "host1", {KEY: UP}, now=0, lease=10)
    reports.keep_only(lambda service, backend: (service, backend) == ("web", "web-2"))
    assert reports.agent("host1", KEY) is None
