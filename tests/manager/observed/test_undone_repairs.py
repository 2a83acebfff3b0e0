# SPDX-License-Identifier: Apache-2.0
"""What somebody undoes on a node again and again is an event, and stands on the page, until it is over."""

from __future__ import annotations

from pathlib import Path

from lb.daemon.kernel.repairs import goes_on
from manager.api.view import View
from manager.observed.undone_repairs import Undone
from manager.web.fleet_overview import Overview
from tests.manager.fake_nodes import Site, running
from tests.manager.fleet import plain

FIGHT = "another program undoes table inet vipmux_agent again and again by nft (pid 7)"
BROKEN = "cannot put back table inet vipmux_agent: nft is not installed"
ONCE = "put back table inet vipmux_agent, which was removed"


def test_it_is_said_when_it_begins_and_when_it_ends() -> None:
    undone = Undone()
    assert list(undone.heard("agent host1", None)) == []
    assert list(undone.heard("agent host1", ONCE)) == []
    assert list(undone.heard("agent host1", FIGHT)) == [("agent host1", FIGHT, True)]
    assert list(undone.heard("agent host1", FIGHT)) == []
    assert list(undone.heard("mux mux1", BROKEN)) == [("mux mux1", BROKEN, True)]
    assert list(undone.heard("agent host1", BROKEN)) == []  # something goes on there, as before
    assert undone.nodes == {"agent host1": BROKEN, "mux mux1": BROKEN}
    over = "what it keeps in its kernel is left alone again"
    assert list(undone.heard("agent host1", ONCE)) == [("agent host1", over, False)]
    assert undone.nodes == {"mux mux1": BROKEN}


def test_what_a_node_says_may_be_anything() -> None:
    assert [goes_on(said) for said in (None, 7, {}, "", ONCE)] == [False] * 5


async def test_lb_get_the_page_and_the_events_tell_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site, view = Site().connect(controller), View(controller)
        for said, there in ((FIGHT, True), (ONCE, False)):
            controller.hub.status(site.hosts[0], {"agent": {"repaired": said}})
            (row,) = [row for row in plain(view.nodes.agents()) if row["name"] == "host1"]
            assert row["repaired"] == said
            overview = Overview(controller, view)
            overview.refresh()
            summary = overview.summary(overview.muxes(), overview.hosts())
            assert ("agent host1", FIGHT) in [(one["subject"], one["text"]) for one in summary["problems"]] or not there
            assert ("what host1 keeps in the kernel is undone" in summary["text"]) == there
        texts = [(event.text, event.bad) for event in controller.events.latest(9) if event.subject == "agent host1"]
        assert (FIGHT, True) in texts
        assert texts[-1] == ("what it keeps in its kernel is left alone again", False)
