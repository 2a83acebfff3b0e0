# SPDX-License-Identifier: Apache-2.0
"""Tables of ``lb get`` with names as people give them: they fit 80 columns, and what is too long stands below."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from lb.cli.tables.row_tables import STATS, draw
from lb.rows.announcement import AnnouncementRow
from lb.rows.event import EventRow, VersionRow
from lb.rows.node import AgentRow, MuxRow, SessionRow
from lb.tables.layout import columns, hanging
from lb.tables.values import harmless
from tests.lb.rows.values import backend, service

WHY = "its agent says: connect: connection refused (3 of 3 checks failed), and the tunnel probe of mux-fra-2 times out"
SERVICE = service(
    name="checkout-frontend",
    vip="203.0.113.110",
    port="443",
    state="degraded",
    backends=12,
    healthy=11,
    announced_by=["mux-fra-1", "mux-fra-2", "mux-fra-3"],
    wanted_by=["mux-fra-1", "mux-fra-2", "mux-fra-3"],
    flows_new=1234567,
    flows=45678,
    packets=987654321,
    bytes=123456789012,
)
BACKEND = backend(
    service="checkout-frontend",
    vip="203.0.113.110",
    service_port="443",
    name="checkout-frontend-12",
    address="10.200.31.120",
    port="8443",
    weight=100,
    state="down",
    healthy=False,
    flows=12345,
    packets=1234567890,
    reason=WHY,
)
NODE: dict[str, Any] = {
    "name": "host-fra-r12-u07",
    "state": "following",
    "since": 0.0,
    "address": "10.200.31.120",
    "address6": None,
    "generation": 12344,
    "wanted": 12345,
    "refused": "service[0].vip: is local here",
    "version": "0.2.0",
    "clock_skew": None,
    "certificate_expires": None,
}
MUX = MuxRow(
    **NODE,
    drain=None,
    announces=10_234,
    announced=None,
    handover="gave 1,234 flows to 2 MUXes",
    io="packet",
    mode=None,
    flows=456_789,
    forwarded=None,
    dropped=None,
    peers=[SessionRow(state="established"), SessionRow(state="active")],
)
AGENT = AgentRow(**NODE, services=123)
ANNOUNCED = AnnouncementRow(
    vip="203.0.113.110/32", mux="mux-fra-1", wanted=True, peer="router-fra-1", state="announced", reason=None
)
WITHHELD = AnnouncementRow(
    vip="2001:db8:100:200::53/128", mux="mux-fra-2", wanted=False, peer=None, state=None, reason=WHY
)

ROWS: dict[str, list[Any]] = {
    "services": [SERVICE],
    "backends": [BACKEND, replace(BACKEND, state="up", healthy=True)],
    "muxes": [MUX],
    "agents": [AGENT],
    "announcements": [ANNOUNCED, WITHHELD, replace(WITHHELD, vip="203.0.113.9/32")],
}


EVENTS = [
    EventRow(id=1, at=1.7e9, subject="backend checkout-frontend/checkout-frontend-12", text=WHY, bad=True),
    EventRow(id=2, at=1.7e9, subject="mux mux-fra-2", text="connected", bad=False),
]
HISTORY = [
    VersionRow(
        version=1234,
        at=1.7e9,
        who="operator:ada.lovelace",
        what="; ".join(f"service checkout-{n} changed: weight of checkout-{n}-12 1 → 3" for n in range(20)),
        why="the hosts of row 12 are replaced",
    )
]
#: Where a terminal has 80 columns; with names and addresses that are too long for that, too.
LONG = {
    "service": "checkout-frontend-of-the-region-eu-central-1",
    "name": "checkout-frontend-of-the-region-eu-central-1-12",
}
NARROW: dict[str, list[Any]] = {
    **ROWS,
    "services": [SERVICE, replace(SERVICE, name=LONG["name"], vip="2001:db8:1234:5678:9abc:def0:1234:5678")],
    "backends": [
        *ROWS["backends"],
        replace(BACKEND, **LONG, address="2001:db8:1234:5678:9abc:def0:1234:5678", vip="2001:db8:1234:5678::1"),
    ],
    "muxes": [
        MUX,
        replace(MUX, name="mux-of-the-region-eu-central-1-row-12-unit-7", address="2001:db8:1234:5678:9abc::1"),
    ],
    "announcements": [*ROWS["announcements"], replace(ANNOUNCED, peer="router-of-the-region-eu-central-1-row-12")],
    "events": EVENTS,
    "history": HISTORY,
    "audit": HISTORY,
}


def table(lines: list[str]) -> list[str]:
    """Without what stands below."""
    return lines[: lines.index("")] if "" in lines else lines


@pytest.mark.parametrize("what", ROWS)
def test_a_table_fits_80_columns(what: str) -> None:
    lines = table(draw(what, ROWS[what]))
    assert len(lines) > len(ROWS[what])
    assert max(map(len, lines)) <= 80, lines


@pytest.mark.parametrize("what", NARROW)
def test_every_table_fits_a_terminal_of_80_columns(what: str) -> None:
    lines = draw(what, NARROW[what], 80)
    assert max(map(len, lines)) <= 80, lines
    if what != "history":  # which is cut, and says so
        assert _letters(lines) >= _letters(draw(what, NARROW[what])), "folded, and nothing lost"


@pytest.mark.parametrize("what", STATS)
def test_exact_counters_are_folded_as_far_as_numbers_allow(what: str) -> None:
    lines = draw(what, ROWS[what], 100, stats=True)
    assert max(map(len, lines)) <= 120, lines
    assert _letters(lines) >= _letters(draw(what, ROWS[what], stats=True))


def _letters(lines: list[str]) -> Counter[str]:
    return Counter(c for line in lines for c in line.lower() if c.isalnum())


def test_what_is_no_terminal_gets_a_line_for_each_row() -> None:
    for what, rows in NARROW.items():
        if what not in ("backends", "announcements", "muxes", "agents"):
            assert len(draw(what, rows)) == 1 + len(rows)


def test_a_column_is_folded_and_the_others_stay_where_they_are() -> None:
    lines = columns(("Name", "What", "N"), [("a", "one two three four five", 1), ("b", "x" * 25, 20)], ("N",), 20)
    assert lines == [
        "Name  What         N",
        "a     one two      1",
        "      three four",
        "      five",
        "b     xxxxxxxxxx  20",
        "      xxxxxxxxxx",
        "      xxxxx",
    ]


def test_a_long_sentence_hangs_from_its_beginning() -> None:
    assert hanging(["short", "  one two three four"], 12) == ["short", "  one two", "      three", "      four"]
    assert hanging(["one two three four"], 12, 6) == ["one two", "      three", "      four"]
    assert hanging(["one two three four"], None) == ["one two three four"]


def test_backends_of_one_fate_share_a_sentence() -> None:
    rows = [replace(BACKEND, name=f"b{n}") for n in range(9)]
    assert draw("backends", rows)[-1] == (
        f"checkout-frontend/b0, checkout-frontend/b1, checkout-frontend/b2 and 6 more down: {WHY}"
    )


def test_reasons_stand_below_and_only_where_something_is_wrong() -> None:
    assert draw("backends", ROWS["backends"])[-2:] == ["", f"checkout-frontend/checkout-frontend-12 down: {WHY}"]
    assert draw("backends", [replace(BACKEND, state="up", healthy=True)])[-1].startswith("  -> ")
    assert draw("muxes", ROWS["muxes"])[-1] == (
        "host-fra-r12-u07: has generation 12,344 of 12,345; refused its state: service[0].vip: is local here; "
        "gave 1,234 flows to 2 MUXes"
    )
    assert draw("announcements", ROWS["announcements"])[-1] == f"mux-fra-2, 2 VIPs: {WHY}"


def test_stats_are_exact() -> None:
    assert "987,654,321" in draw("services", [SERVICE], stats=True)[1]
    assert "1,234,567,890" in draw("backends", [BACKEND], stats=True)[-1]
    assert draw("backends", [BACKEND], stats=True)[-1].endswith(WHY)


# --- as text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "shown"), [("a  b\nc\n", "a  b\nc\n"), ("ä\x1b[2J\n\x07c", "ä?[2J\n?c")])
def test_what_a_terminal_could_take_for_an_order_is_not_shown(text: str, shown: str) -> None:
    assert harmless(text) == shown
