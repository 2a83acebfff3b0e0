# SPDX-License-Identifier: Apache-2.0
"""Tables of ``lb get`` with names as people give them: they fit 80 columns, and what is too long stands below."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.cli.tables.manager_rows import STATS, TABLES
from lb.tables.layout import columns, hanging
from lb.tables.manager_tables import Listing, harmless
from lb.tables.values import cell

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


EVENTS = [
    {"id": 1, "at": 1.7e9, "subject": "backend checkout-frontend/checkout-frontend-12", "text": WHY, "bad": True},
    {"id": 2, "at": 1.7e9, "subject": "mux mux-fra-2", "text": "connected", "bad": False},
]
HISTORY = [
    {
        "version": 1234,
        "at": 1.7e9,
        "who": "operator:ada.lovelace",
        "what": "; ".join(f"service checkout-{n} changed: weight of checkout-{n}-12 1 → 3" for n in range(20)),
        "why": "the hosts of row 12 are replaced",
    }
]
#: Where a terminal has 80 columns; with names and addresses that are too long for that, too.
LONG = {
    "service": "checkout-frontend-of-the-region-eu-central-1",
    "name": "checkout-frontend-of-the-region-eu-central-1-12",
}
NARROW: dict[str, list[dict[str, Any]]] = {
    **ROWS,
    "services": [SERVICE, {**SERVICE, "name": LONG["name"], "vip": "2001:db8:1234:5678:9abc:def0:1234:5678"}],
    "backends": [
        *ROWS["backends"],
        {**BACKEND, **LONG, "address": "2001:db8:1234:5678:9abc:def0:1234:5678", "vip": "2001:db8:1234:5678::1"},
    ],
    "muxes": [
        NODE,
        {**NODE, "name": "mux-of-the-region-eu-central-1-row-12-unit-7", "address": "2001:db8:1234:5678:9abc::1"},
    ],
    "announcements": [*ROWS["announcements"], {**ANNOUNCED, "peer": "router-of-the-region-eu-central-1-row-12"}],
    "events": EVENTS,
    "history": HISTORY,
    "audit": HISTORY,
}


def table(lines: list[str]) -> list[str]:
    """Without what stands below."""
    return lines[: lines.index("")] if "" in lines else lines


@pytest.mark.parametrize("what", ROWS)
def test_a_table_fits_80_columns(what: str) -> None:
    lines = table(TABLES[what](ROWS[what]))
    assert len(lines) > len(ROWS[what])
    assert max(map(len, lines)) <= 80, lines


@pytest.mark.parametrize("what", TABLES)
def test_every_table_fits_a_terminal_of_80_columns(what: str) -> None:
    lines = TABLES[what](NARROW[what], 80)
    assert max(map(len, lines)) <= 80, lines
    if what != "history":  # which is cut, and says so
        assert _letters(lines) >= _letters(TABLES[what](NARROW[what], None)), "folded, and nothing lost"


@pytest.mark.parametrize("what", STATS)
def test_exact_counters_are_folded_as_far_as_numbers_allow(what: str) -> None:
    lines = STATS[what](ROWS[what], 100)
    assert max(map(len, lines)) <= 120, lines
    assert _letters(lines) >= _letters(STATS[what](ROWS[what], None))


def _letters(lines: list[str]) -> Counter[str]:
    return Counter(c for line in lines for c in line.lower() if c.isalnum())


def test_what_is_no_terminal_gets_a_line_for_each_row() -> None:
    for what, rows in NARROW.items():
        if what not in ("backends", "announcements", "muxes", "agents"):
            assert len(TABLES[what](rows, None)) == 1 + len(rows)


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
    rows = [{**BACKEND, "name": f"b{n}"} for n in range(9)]
    assert TABLES["backends"](rows, None)[-1] == (
        f"checkout-frontend/b0, checkout-frontend/b1, checkout-frontend/b2 and 6 more down: {WHY}"
    )


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


# --- as text ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\n"), max_size=5)] * 3), max_size=8),
    st.lists(st.text(max_size=20), max_size=3),
)
def test_a_listing_is_what_it_was_before_it_was_sent(rows: list[tuple[str, ...]], notes: list[str]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * 3
    found = Listing.parse(Listing(("A", "B", "C"), columns, notes).text())
    assert found == Listing(("A", "B", "C"), [list(map(cell, column)) for column in columns], list(map(cell, notes)))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"header": ["A"], "rows": 2, "notes": []}\na', '{"header": 1}', "\0"]
)
def test_what_is_no_listing_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Listing.parse(text)


@pytest.mark.parametrize(("text", "shown"), [("a  b\nc\n", "a  b\nc\n"), ("ä\x1b[2J\n\x07c", "ä?[2J\n?c")])
def test_what_a_terminal_could_take_for_an_order_is_not_shown(text: str, shown: str) -> None:
    assert harmless(text) == shown
