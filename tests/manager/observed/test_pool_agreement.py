# SPDX-License-Identifier: Apache-2.0
"""MUXes with another seed, or other slots, are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lb.doctor.fleet import check_pool
from lb.doctor.model.findings import Severity
from manager.api.metrics import ManagerCollector
from manager.api.view import View
from manager.observed.pool_agreement import Pools, disagreements
from manager.web.fleet_overview import Overview
from tests.manager.fake_nodes import Site, running
from tests.manager.fleet import plain


def row(pool: str = "a", slots: int = 65537) -> dict[str, Any]:
    return {"pool": pool, "slots": slots}


def test_muxes_that_agree_are_fine_and_one_that_does_not_tell_is_not_judged() -> None:
    assert disagreements({}) == {}
    assert disagreements({"mux1": row()}) == {}
    assert disagreements({"mux1": row(), "mux2": row(), "old": {}}) == {}


def test_who_differs_from_most_is_named_and_where_there_is_no_majority_all_are() -> None:
    found = disagreements({"mux1": row(), "mux2": row("b"), "mux3": row()})
    assert found == {"mux2": "its seed differs from that of mux1, mux3: flows that routers move here or away break"}
    assert disagreements({"mux1": row(), "mux2": row("b")}).keys() == {"mux1", "mux2"}
    assert disagreements({"mux1": row(), "mux2": row("b"), "mux3": row("c")}).keys() == {"mux1", "mux2", "mux3"}
    both = disagreements({"mux1": row(), "mux2": row("b", 4093), "mux3": row()})
    assert both.keys() == {"mux2"}
    assert "its seed differs from that of mux1, mux3, and its default of slots differs" in both["mux2"]


def test_it_is_an_event_once_and_its_end_is_another() -> None:
    pools = Pools()
    assert [*pools.heard("mux1", row()), *pools.heard("mux2", row()), *pools.heard("mux3", row())] == []
    ((subject, text, bad),) = pools.heard("mux2", row("b"))
    assert (subject, bad) == ("mux mux2", True)
    assert "its seed differs" in text
    assert list(pools.heard("mux2", row("b"))) == []
    assert list(pools.left("mux2")) == []
    assert pools.differs == {}
    (again,) = [*pools.heard("mux2", row("b"))]
    assert again[2] is True
    assert list(pools.heard("mux2", row())) == [("mux mux2", "chooses the same backends as the others again", False)]


async def test_commands_page_and_doctor_tell_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site(muxes=3).connect(controller)
        for mux, pool in zip(site.muxes, "aab", strict=True):
            controller.hub.status(mux, {"mux": row(pool)})
        view = View(controller)
        rows = {found["name"]: found for found in plain(view.nodes.muxes())}
        assert [name for name, found in rows.items() if found["differs"]] == ["mux3"]
        bad = [event.text for event in controller.events.latest(50) if event.subject == "mux mux3" and event.bad]
        assert any(
            "chooses other backends than the others: its seed differs from that of mux1, mux2" in it for it in bad
        )
        (family,) = [found for found in ManagerCollector(controller).collect() if found.name == "lb_mux_differs"]
        assert {s.labels["mux"]: s.value for s in family.samples} == {"mux1": 0, "mux2": 0, "mux3": 1}
        (finding,) = check_pool(plain(view.nodes.muxes()))
        assert finding.severity is Severity.FAULT
        assert finding.what.startswith("MUX mux3 ")
        assert "put the pool's `seed` and `slots` into its file" in (finding.remedy or "")
        overview = Overview(controller, view)
        overview.refresh()
        summary = overview.summary(overview.muxes(), overview.hosts())
        assert "mux3 chooses other backends than the others" in str(summary)
