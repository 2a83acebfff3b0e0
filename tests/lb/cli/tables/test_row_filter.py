# SPDX-License-Identifier: Apache-2.0
"""Which rows ``lb get NAME`` and ``lb get --problems`` show."""

from __future__ import annotations

from typing import Any

import pytest

from lb.cli.tables.row_filter import JUDGED, amiss, by_name
from lb.errors import NotFoundError

UP = {"state": "established"}
FINE: dict[str, dict[str, Any]] = {
    "services": {"name": "web", "state": "up", "note": None},
    "backends": {"service": "web", "name": "web-1", "state": "up"},
    "muxes": {"name": "mux1", "state": "ready", "announces": 2, "announced": 2, "drain": None, "peers": [UP]},
    "agents": {"name": "host1", "state": "ready", "refused": None, "left_out": {}},
    "announcements": {"vip": "203.0.113.10", "wanted": True, "peer": "r1", "state": "announced"},
}


@pytest.mark.parametrize(
    ("what", "differs"),
    [
        ("services", {"state": "PANIC"}),
        ("services", {"state": "down"}),
        ("services", {"note": "announced by mux1 alone"}),
        ("backends", {"state": "down"}),
        ("backends", {"state": "installing"}),
        ("muxes", {"state": "away"}),
        ("muxes", {"announced": 1}),
        ("muxes", {"differs": "its seed is not that of the others"}),
        ("muxes", {"peers": [UP, {"state": "active"}]}),
        ("agents", {"left_out": {"web": "no address"}}),
        ("agents", {"refused": "no room"}),
        ("announcements", {"state": "waiting"}),
        ("announcements", {"wanted": False}),
    ],
)
def test_what_is_not_as_it_should_be_is_chosen(what: str, differs: dict[str, Any]) -> None:
    row = FINE[what] | differs
    assert amiss(what, [FINE[what], row]) == [row]


def test_what_is_fine_or_wanted_so_is_not() -> None:
    assert set(JUDGED) == set(FINE)
    for what, row in FINE.items():
        assert amiss(what, [row]) == []
    assert amiss("backends", [FINE["backends"] | {"state": "drain"}]) == []
    assert amiss("muxes", [FINE["muxes"] | {"announced": 0, "drain": "told to drain"}]) == []
    no_bgp = {"wanted": True, "peer": None, "state": None, "reason": "it speaks no BGP, so what it has live counts"}
    assert amiss("announcements", [no_bgp]) == []


def test_rows_by_name_in_the_order_that_was_asked_for() -> None:
    rows = [{"service": s, "name": f"{s}-{n}"} for s in ("dns", "web") for n in (1, 2)]
    assert by_name("backends", rows, ["web/web-2", "dns"]) == [rows[3], rows[0], rows[1]]
    with pytest.raises(NotFoundError, match='there is no MUX "mux9"; `lb get muxes` lists all'):
        by_name("muxes", [{"name": "mux1"}], ["mux9"])
