# SPDX-License-Identifier: Apache-2.0
"""Which rows ``lb get NAME`` and ``lb get --problems`` show."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from lb.cli.tables.row_filter import JUDGED, by_name
from lb.errors import NotFoundError
from lb.rows.announcement import AnnouncementRow
from lb.rows.node import AgentRow, MuxRow, SessionRow
from lb.rows.row import Row
from tests.lb.rows.values import backend, service

UP = SessionRow(state="established")
NODE: dict[str, Any] = {
    **dict.fromkeys(("address", "address6", "generation", "refused", "clock_skew", "certificate_expires")),
    "state": "ready",
    "since": 0.0,
    "wanted": 1,
    "version": "0.2.0",
}
MUX: dict[str, Any] = dict.fromkeys(("drain", "handover", "io", "mode", "flows", "forwarded", "dropped"))
FINE: dict[str, Row] = {
    "services": service(),
    "backends": backend(),
    "muxes": MuxRow(**NODE, **MUX, name="mux1", announces=2, announced=2, peers=[UP]),
    "agents": AgentRow(**NODE, name="host1", services=1),
    "announcements": AnnouncementRow(
        vip="203.0.113.10", mux="mux1", wanted=True, peer="r1", state="announced", reason=None
    ),
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
        ("muxes", {"peers": [UP, SessionRow(state="active")]}),
        ("agents", {"left_out": {"web": "no address"}}),
        ("agents", {"refused": "no room"}),
        ("announcements", {"state": "waiting"}),
        ("announcements", {"wanted": False}),
    ],
)
def test_what_is_not_as_it_should_be_is_chosen(what: str, differs: dict[str, Any]) -> None:
    assert not FINE[what].amiss
    assert replace(FINE[what], **differs).amiss


def test_what_is_fine_or_wanted_so_is_not() -> None:
    assert set(JUDGED) == set(FINE)
    assert not replace(FINE["backends"], state="drain").amiss
    assert not replace(FINE["muxes"], announced=0, drain="told to drain").amiss
    why = "it speaks no BGP, so what it has live counts"
    assert not replace(FINE["announcements"], peer=None, state=None, reason=why).amiss


def test_rows_by_name_in_the_order_that_was_asked_for() -> None:
    rows = [backend(service=s, name=f"{s}-{n}") for s in ("dns", "web") for n in (1, 2)]
    assert by_name("backends", rows, ["web/web-2", "dns"]) == [rows[3], rows[0], rows[1]]
    with pytest.raises(NotFoundError, match='there is no MUX "mux9"; `lb get muxes` lists all'):
        by_name("muxes", [FINE["muxes"]], ["mux9"])
