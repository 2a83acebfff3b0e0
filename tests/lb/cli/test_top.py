# SPDX-License-Identifier: Apache-2.0
"""``lb top``'s figures and lines, and a terminal that is drawn on without flicker."""

from __future__ import annotations

import io
from typing import Any

import pytest

from lb.cli.commands.top import fleet_lines
from lb.cli.terminal.redraw import Screen, fitted
from lb.tables.values import rate

TOTAL = {"pps": 1234567.0, "bps": 9.87e9, "cps": 40_123.0, "dropped": 0.0, "flows": 999_999}
SERVICE = {
    "service": "checkout-frontend",
    "vip": "203.0.113.110",
    "protocol": "tcp",
    "port": "443",
    "state": "degraded",
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.4, "0.4"),
        (9.9, "9.9"),
        (12.3, "12"),
        (999.4, "999"),
        (999.9, "1.00k"),
        (1234, "1.23k"),
        (99_999, "100k"),
        (1.25e6, "1.25M"),
        (40e9, "40.0G"),
    ],
)
def test_rates_have_three_digits(value: Any, text: str) -> None:
    assert rate(value) == text


def test_the_fleets_tables_fit_80_columns() -> None:
    answers = {
        "service": {**SERVICE, **TOTAL},
        "backend": {
            "service": "checkout-frontend",
            "backend": "checkout-12",
            "address": "10.200.31.121",
            "state": "up",
            "weight": 100,
            "pps": 123_456.0,
            "flows": 123_456,
        },
        "mux": {"mux": "mux-fra-12", "state": "ready", "received": 1e6, "capacity": 1, "fill": 0.123, **TOTAL},
    }
    for by, row in answers.items():
        lines = list(fleet_lines({"by": by, "of": 1, "total": TOTAL, "rows": [row]}, "pps"))
        assert max(map(len, lines)) <= 80, lines
        assert any("1.23M" in line for line in lines)
    lines = list(fleet_lines({"by": "mux", "of": 0, "total": dict.fromkeys(TOTAL), "rows": []}, "pps"))
    assert lines[0].startswith("No MUX tells its counters")


def test_only_lines_that_changed_are_written() -> None:
    out = io.StringIO()
    drawn = Screen(out, lambda: (20, 5))
    drawn.draw(["one", "two", "three"])
    out.truncate(0)
    out.seek(0)
    drawn.draw(["one", "TWO", "three"])
    assert out.getvalue() == "\x1b[2;1HTWO\x1b[K"
    out.truncate(0)
    out.seek(0)
    drawn.draw(["one"])
    assert out.getvalue() == "\x1b[2;1H\x1b[J"
    out.truncate(0)
    out.seek(0)
    drawn.draw(["one"])
    assert out.getvalue() == ""


def test_what_does_not_fit_is_cut_and_said() -> None:
    assert fitted(["a" * 22, "b", "c"], 20, 2) == ["a" * 19 + "…", "… 2 more lines"]
    assert fitted(["a", "b"], 10, 2) == ["a", "b"]
