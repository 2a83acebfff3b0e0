# SPDX-License-Identifier: Apache-2.0
"""The page of the benchmarks says what was measured, what was not, and what was left out."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("lb._dataplane")
pytest.importorskip("matplotlib")

from tests.bench import measure, page, plots

FIGURES = {"keep_p50_us": 41.0, "keep_p99_us": 74.0, "wrk_per_second": 56_000.0, "cpu_ms": 4.9}
FIGURES |= {"get_30mb_mbit": 19_000.0, "put_30mb_mbit": 1700.0, "put_30mb_window_mbit": 1500.0}


def way(**figures: float) -> dict[str, Any]:
    spread = {name: {"median": value, "min": value * 0.9, "max": value * 1.1} for name, value in figures.items()}
    return {"words": "", "figures": spread, "errors": 0, "steal": 0.012, "noise": 0.3}


PEERS: dict[str, Any] = {
    "http": {
        "direct": way(**{name: FIGURES[name] for name in FIGURES if name != "cpu_ms"}),
        "vipmux-tun": way(**FIGURES),
    },
    "packets": {},
    "load": {},
    "left_out": {"ipvs": "this kernel has no IPVS"},
    "cpu": "a processor",
    "kernel": "Linux 6.1",
    "date": "2026-01-02",
    "rounds": 5,
    "load_average": 0.3,
}


def point(**of: Any) -> dict[str, Any]:
    return {**of, "ns_per_packet": 40.2, "runs": [38.0, 40.2, 45.0], "noise": 0.1, "cpu": "a processor"}


PIPELINE = {"curves": {name: [point(**of) for of in points] for name, points in measure.CURVES.items()}}


def test_page_has_figures_with_spread_and_where_they_come_from() -> None:
    text = page.text({"peers": PEERS})
    assert "| vipmux tun | 41 [37-45] | 74 [67-81] |" in text
    assert "sudo lb bench peers --part http --rounds 5 --offloads on --realtime" in text
    assert "a processor, Linux 6.1, 2026-01-02; 5 rounds, load average 0.3 before they began." in text
    assert "- ipvs: this kernel has no IPVS." in text


def test_what_was_not_measured_is_said() -> None:
    text = page.text({})
    assert [f"make bench ONLY={name}" in text for name in measure.SECTIONS] == [True] * len(measure.SECTIONS)


def test_what_the_measurer_remarked_stands_with_the_figures() -> None:
    answers = {"peers": {**PEERS, "remark": "Others were at work."}}
    assert "Others were at work." in page.text(answers)
    assert "Others were at work." not in page.text({"peers": PEERS})


def test_every_curve_is_a_table() -> None:
    text = page.text({"pipeline": PIPELINE})
    assert all(f"ns per packet by {what}" in text for what in measure.CURVES)
    assert "| hit, IPv6 | 40 [38-45] |" in text


STEP: dict[str, Any] = {
    "factor": 2.0,
    "offered": 2e6,
    "arrived": 1.9e6,
    "forwarded": 9e5,
    "ring": 1e5,
    "shed": 9e5,
    "steal": 0.01,
    "kept_p50_ms": 1.25,
    "kept_slowest_ms": 412.0,
    "new_slowest_ms": 1033.0,
    "requests": 320,
    "failed": 1,
    "first": ["ring after 0.1 s"],
    "worker_cpu": 0.9,
    "control_cpu": 0.023,
    "session": "stayed",
}
OVERLOAD: dict[str, Any] = {
    "modes": {
        io: {
            "capacity": 1e6,
            "steps": [STEP],
            "seconds": 8.0,
            "cpu": "a processor",
            "kernel": "Linux 6.1",
            "router": "BIRD",
        }
        for io in measure.MODES
    }
}


def test_overload_says_what_was_lost_where_and_what_was_not() -> None:
    text = page.text({"overload": OVERLOAD})
    assert "| tun, 2 times | 2,000 | 1,900 | 900 | 100 | 900 | ring after 0.1 s |" in text
    assert "| xdp, 2 times | 1.25 | 412 | 1,033 | 1 of 321 | 2.3% | stayed |" in text
    assert "sudo lb bench overload --io packet --seconds 8" in text


def test_plots_are_of_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    answers = {"peers": PEERS, "overload": OVERLOAD, "pipeline": PIPELINE}
    assert plots.draw(answers) == ["peers", "cpu", "transfers", "overload", "pipeline"]
    drawn = (tmp_path / "bench-peers.svg").read_text()
    assert re.search(r">\s*vipmux tun\s*<", drawn)
    assert plots.draw({}) == []


def test_answers_in_the_tree_can_be_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(plots, "IMAGES", tmp_path)
    found = measure.answers()
    assert found.keys() >= {"peers", "packets", "pipeline"}
    plots.draw(found)
    assert page.PAGE.read_text() == page.text(found)
