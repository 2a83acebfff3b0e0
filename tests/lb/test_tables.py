# SPDX-License-Identifier: Apache-2.0
"""Tables of ``lb get`` with names as people give them: they fit 80 columns, and what is too long stands below."""

from __future__ import annotations

from typing import Any

import pytest

from lb.cli.tables import STATS, TABLES

WHY = "its agent says: connect: connection refused (3 of 3 checks failed), and the tunnel probe of mux-fra-2 times out"
SERVICE: dict[str, Any] = {
    "name": "checkout-frontend",
    "vip": "203.0.113.110",
    "protocol": "tcp",
    "port": "443",
    "state": "degraded",
    "backends": 12,
    "healthy": 11,
    "announced_by": ["mux-fra-1", "mux-fra-2", "mux-fra-3"],
    "flows_new": 1234567,
    "flows": 45678,
    "packets": 987654321,
    "bytes": 123456789012,
}
BACKEND: dict[str, Any] = {
    "service": "checkout-frontend",
    "vip": "203.0.113.110",
    "protocol": "tcp",
    "service_port": "443",
    "name": "checkout-frontend-12",
    "address": "10.200.31.120",
    "port": "8443",
    "weight": 100,
    "state": "down",
    "healthy": False,
    "flows": 12345,
    "packets": 1234567890,
    "empty_since": None,
    "reason": WHY,
}
NODE: dict[str, Any] = {
    "name": "host-fra-r12-u07",
    "state": "following",
    "since": 0.0,
    "address": "10.200.31.120",
    "generation": 12344,
    "wanted": 12345,
    "services": 123,
    "announces": 10_234,
    "flows": 456_789,
    "io": "packet",
    "peers": [{"state": "established"}, {"state": "active"}],
    "refused": "service[0].vip: is local here",
    "drain": None,
    "handover": "gave 1,234 flows to 2 MUXes",
}
ANNOUNCED = {
    "vip": "203.0.113.110/32",
    "mux": "mux-fra-1",
    "wanted": True,
    "peer": "router-fra-1",
    "state": "announced",
}
WITHHELD = {"vip": "2001:db8:100:200::53/128", "mux": "mux-fra-2", "wanted": False, "reason": WHY}

ROWS: dict[str, list[dict[str, Any]]] = {
    "services": [SERVICE],
    "backends": [BACKEND, {**BACKEND, "state": "up", "healthy": True}],
    "muxes": [NODE],
    "agents": [NODE],
    "announcements": [ANNOUNCED, WITHHELD, {**WITHHELD, "vip": "203.0.113.9/32"}],
}


def table(lines: list[str]) -> list[str]:
    """Without what stands below."""
    return lines[: lines.index("")] if "" in lines else lines


@pytest.mark.parametrize("what", ROWS)
def test_a_table_fits_80_columns(what: str) -> None:
    lines = table(TABLES[what](ROWS[what]))
    assert len(lines) > len(ROWS[what])
    assert max(map(len, lines)) <= 80, lines


def test_reasons_stand_below_and_only_where_something_is_wrong() -> None:
    assert TABLES["backends"](ROWS["backends"])[-2:] == ["", f"checkout-frontend/checkout-frontend-12 down: {WHY}"]
    assert TABLES["backends"]([{**BACKEND, "state": "up", "healthy": True}])[-1].startswith("  -> ")
    assert TABLES["agents"](ROWS["agents"])[-1] == (
        "host-fra-r12-u07: has generation 12,344 of 12,345; refused its state: service[0].vip: is local here; "
        "gave 1,234 flows to 2 MUXes"
    )
    assert TABLES["announcements"](ROWS["announcements"])[-1] == f"mux-fra-2, 2 VIPs: {WHY}"


def test_stats_are_exact() -> None:
    assert "987,654,321" in STATS["services"]([SERVICE])[1]
    assert "1,234,567,890" in STATS["backends"]([BACKEND])[-1]
    assert STATS["backends"]([BACKEND])[-1].endswith(WHY)
