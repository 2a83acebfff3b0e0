# SPDX-License-Identifier: Apache-2.0
"""Announced is what MUXes tell, wanted what the plan says; and where they differ, everybody is told in words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric

from lb.cli.options.change import lines
from lb.doctor.fleet import check_notes
from lb.doctor.model.findings import Severity
from manager.api.kept_rows import KeptRows
from manager.api.metrics import ManagerCollector
from manager.api.status_rows import warn_of_drain
from manager.api.view import View
from manager.controller.controller import Controller
from manager.observed import announcements
from manager.web.fleet_overview import Overview
from tests.manager.fake_nodes import FakeNode, Site, running, until
from tests.manager.fleet import plain, service

WHO = "operator:ada"
VIP = "203.0.113.10"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "LATE", 0.3)
    monkeypatch.setattr(announcements, "ANEW", 0.1)


def tell(
    controller: Controller, mux: FakeNode, *vips: str, state: str = "announced", session: str = "established"
) -> None:
    """What a MUX with one router tells."""
    rows = [{"vip": vip, "peer": "r1", "state": state} for vip in vips]
    controller.hub.status(mux, {"peers": [{"name": "r1", "state": session}], "announcements": rows})


async def test_what_is_told_of_a_few_vips_later_goes_before_what_was_told_of_all(tmp_path: Path) -> None:
    """Of ten thousand VIPs not all are told whenever one is another."""
    async with running(tmp_path) as controller:
        fleet, vip = Fleet(controller), f"{VIP}/32"
        for mux in (fleet.mux1, fleet.mux2):
            tell(controller, mux, "203.0.113.99")

        def later(mux: FakeNode, *rows: dict[str, Any]) -> list[Any]:
            controller.hub.status(mux, {"announcements_since": list(rows)})
            words = [
                fleet.controller.announced.by_vip(entry).get(vip)
                for entry in controller.hub.entries.values()
                if entry.record.kind == "mux"
            ]
            return [controller.announced.by.get(vip), *(row[0]["state"] for row in words if row)]

        row = {"vip": VIP, "peer": "r1", "state": "announced"}
        assert later(fleet.mux1, row) == [("mux1",), "announced"]
        assert later(fleet.mux2, row) == [("mux1", "mux2"), "announced", "announced"]
        assert later(fleet.mux2, {**row, "state": "withdrawn"}) == [("mux1",), "announced", "withdrawn"]
        tell(controller, fleet.mux2, "203.0.113.99", VIP)
        assert later(fleet.mux2) == [("mux1", "mux2"), "announced", "announced"]
        assert controller.announced.by["203.0.113.99/32"] == ("mux1", "mux2"), "told of once, and never again"


class Fleet:
    def __init__(self, controller: Controller, muxes: int = 2) -> None:
        self.controller = controller
        self.site = Site(muxes).connect(controller)
        self.mux1, self.mux2 = self.site.muxes[:2]
        self.view = View(controller)
        self.texts = KeptRows(controller, self.view)
        self.overview = Overview(controller, self.view)

    def row(self) -> dict[str, Any]:
        """As commands and the page have it, from what they kept."""
        (row,) = plain(self.view.services.rows(["web"]))
        assert plain(self.texts.services(["web"])) == [row]
        self.overview.refresh()
        (shown,) = [line.row for line in self.overview._sorted if line.row["name"] == "web"]
        assert {key: shown[key] for key in ("announced_by", "wanted_by", "note")} == {
            key: row[key] for key in ("announced_by", "wanted_by", "note")
        }
        return row

    async def noted(self, part: str) -> None:
        await until(lambda: part in (self.row()["note"] or ""), f"{part!r} in {self.row()['note']!r}")

    async def fine(self) -> None:
        await until(lambda: self.row()["note"] is None, f"{self.row()['note']!r} is over")

    def events(self, subject: str) -> list[tuple[str, bool]]:
        return [(event.text, event.bad) for event in self.controller.events.latest(100) if event.subject == subject]

    def summary(self) -> dict[str, Any]:
        self.overview.refresh()
        return self.overview.summary(self.overview.muxes(), self.overview.hosts())

    def metric(self, name: str) -> dict[str, float]:
        found: Iterator[Metric] = iter(ManagerCollector(self.controller).collect())
        (metric,) = [metric for metric in found if metric.name == name]
        return {next(iter(sample.labels.values())): sample.value for sample in metric.samples}


async def applied(controller: Controller, *tables: dict[str, Any], muxes: int = 2) -> Fleet:
    fleet = Fleet(controller, muxes)
    await controller.writer.apply(list(tables) or [service()], WHO)
    await controller.followers.wait(5)
    return fleet


async def test_announced_is_what_muxes_tell_and_a_mux_without_bgp_counts_by_what_it_has_live(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        await until(lambda: fleet.row()["wanted_by"] == ["mux1", "mux2"])
        await until(lambda: fleet.row()["announced_by"] == ["mux1", "mux2"], "neither tells of BGP")
        tell(controller, fleet.mux1, VIP)
        tell(controller, fleet.mux2, VIP, state="waiting", session="idle")
        assert (fleet.row()["announced_by"], fleet.row()["wanted_by"]) == (["mux1"], ["mux1", "mux2"])
        controller.hub.status(fleet.mux2, {"peers": [], "announcements": []})
        assert fleet.row()["announced_by"] == ["mux1", "mux2"]
        (words,) = [it for it in plain(fleet.view.explanations.service("web"))["announcements"] if it["mux"] == "mux2"]
        assert (words["announces"], words["reason"]) == (True, "wanted; it speaks no BGP, so what it has live counts")
        fleet.mux2.leave()
        assert fleet.row()["announced_by"] == ["mux1"], "of one that is away nothing is known"


async def test_what_differs_for_some_seconds_is_told_everywhere_and_so_is_its_end(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller, muxes=3)
        for mux in fleet.site.muxes:
            tell(controller, mux, VIP)
        await fleet.fine()
        cursor = controller.changes.cursor()
        tell(controller, fleet.mux2, VIP, state="waiting", session="idle")
        assert fleet.row()["note"] is None, "it may be mended in a moment"
        news, _ = await controller.changes.wait("services", cursor, 1)
        assert news.services == {"web"}
        note = "announced by mux1, mux3; mux2 should and does not: BGP session with r1 is down"
        await fleet.noted(note)
        text = f"does not announce {VIP}, which it should: BGP session with r1 is down"
        await until(lambda: (text, True) in fleet.events("mux mux2"))
        assert {"level": "warn", "subject": "mux mux2", "text": text, "since": None, "service": None} in (
            fleet.summary()["problems"]
        )
        assert fleet.metric("lb_announce_lacking") == {"mux1": 0, "mux2": 1, "mux3": 0}
        assert fleet.metric("lb_announced_by") == {VIP: 2}
        (finding,) = check_notes(plain(fleet.view.services.rows()))
        assert (finding.severity, note in finding.what) == (Severity.WARNING, True)
        assert list(fleet.texts.list_services().notes) == [f"web: {note}"]
        tell(controller, fleet.mux2, VIP)
        await fleet.fine()
        await until(lambda: ("announces all that it should again", False) in fleet.events("mux mux2"))
        assert list(check_notes(plain(fleet.view.services.rows()))) == []
        assert fleet.metric("lb_announce_lacking")["mux2"] == 0


async def test_a_router_that_does_not_take_the_route_is_told_everywhere_and_so_is_its_end(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        for mux in fleet.site.muxes:
            tell(controller, mux, VIP)
        await fleet.fine()
        why = f"connections from the manager to {VIP}:80 fail: no answer within 2 s"
        controller.announced.path(f"{VIP}/32", why)
        note = f"announced by mux1, mux2, but no client gets through: {why}"
        await fleet.noted(note)
        assert fleet.row()["unreached"]
        await until(lambda: (note, True) in fleet.events(f"vip {VIP}/32"))
        summary = fleet.summary()
        assert (summary["level"], f"no client gets through to {VIP}" in summary["text"]) == ("bad", True)
        assert "nobody announces" not in summary["text"]
        assert any(it["level"] == "bad" and it["text"] == note for it in summary["problems"])
        (finding,) = check_notes(plain(fleet.view.services.rows()))
        assert (finding.severity, note in finding.what) == (Severity.FAULT, True)
        assert "router" in finding.remedy
        assert list(fleet.texts.list_services().notes) == [f"web: {note}"]
        controller.announced.path(f"{VIP}/32", None)
        await fleet.fine()
        await until(lambda: ("clients get through again", False) in fleet.events(f"vip {VIP}/32"))


async def test_nobody_announces_what_two_should(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        for mux in fleet.site.muxes:
            tell(controller, mux, VIP, state="waiting", session="idle")
        await fleet.noted("nobody announces it: mux1, mux2 should and do not: BGP session with r1 is down")
        await until(lambda: any(bad and "nobody announces" in text for text, bad in fleet.events(f"vip {VIP}/32")))
        summary = fleet.summary()
        assert f"nobody announces {VIP}" in summary["text"]
        assert any(it["level"] == "bad" and it["subject"] == f"vip {VIP}" for it in summary["problems"])
        (finding,) = check_notes(plain(fleet.view.services.rows()))
        assert finding.severity is Severity.FAULT
        assert fleet.metric("lb_announced_by") == {VIP: 0}
        for mux in fleet.site.muxes:
            tell(controller, mux, VIP)
        await until(lambda: ("is announced by mux1, mux2 again", False) in fleet.events(f"vip {VIP}/32"))


async def test_one_mux_alone_of_several_is_told_whatever_the_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        for mux in fleet.site.muxes:
            tell(controller, mux, VIP)
        await controller.node_orders.drain_mux("mux2", WHO, drain=True)
        await until(lambda: fleet.row()["wanted_by"] == ["mux1"])
        assert fleet.row()["announced_by"] == ["mux1", "mux2"], "routers hear of it still"
        tell(controller, fleet.mux2, VIP, state="held")
        await fleet.noted("announced by mux1 alone; mux2: it drains")
        await until(lambda: f"one MUX alone announces {VIP}" in fleet.summary()["text"])
        assert [text for text, _ in fleet.events(f"vip {VIP}/32")][-1] == "announced by mux1 alone; mux2: it drains"
        await controller.node_orders.drain_mux("mux2", WHO, drain=False)
        tell(controller, fleet.mux2, VIP)
        await fleet.fine()
        fleet.mux2.leave()
        await fleet.noted("announced by mux1 alone; mux2 should, and is not connected")


async def test_a_mux_that_announces_what_it_should_not_is_named(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        tell(controller, fleet.mux1, VIP)
        tell(controller, fleet.mux2, VIP)
        await fleet.fine()
        fleet.mux2.leaves_out = {"web": "it cannot"}
        fleet.mux2.again()
        await fleet.noted("mux2 announces it and should not")


async def test_a_pool_of_one_mux_has_nothing_to_say(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site(1).connect(controller)
        await controller.writer.apply([service()], WHO)
        await controller.followers.wait(5)
        tell(controller, site.muxes[0], VIP)
        await until(lambda: plain(View(controller).services.rows())[0]["announced_by"] == ["mux1"])
        announced_now = controller.announced
        await until(lambda: announced_now._touched == set() and not announced_now._since)
        assert plain(View(controller).services.rows())[0]["note"] is None


async def test_of_many_vips_a_session_that_goes_is_one_event_and_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "GATHER", 60)  # however slow this machine is
    monkeypatch.setattr(announcements, "SLICE", 20)
    count = 50
    vips = [f"203.0.{n // 250}.{n % 250 + 1}" for n in range(count)]
    async with running(tmp_path) as controller:
        fleet = await applied(controller, *(service(f"s{n:05}", vip) for n, vip in enumerate(vips)))
        await controller.followers.wait(20)
        for mux in fleet.site.muxes:
            tell(controller, mux, *vips)
        quiet = controller.announced
        await until(lambda: quiet._touched == set() and not quiet._since, "all is well", seconds=20)
        began = time.process_time()
        tell(controller, fleet.mux2, *vips, state="waiting", session="idle")
        took = time.process_time() - began
        await until(lambda: len(quiet.notes) == count, seconds=20)
        text = f"does not announce {count:,} VIPs, which it should: BGP session with r1 is down"
        await until(lambda: (text, True) in fleet.events("mux mux2"), f"{fleet.events('mux mux2')}", seconds=20)
        assert len([it for it in controller.events.latest(500) if "alone" in it.text]) == 1
        assert len({id(note.text) for note in quiet.notes.values()}) == 1, "one text for all"
        assert took < 0.2, f"{took:.3f} s of CPU for a status of {count} VIPs"
        tell(controller, fleet.mux2, *vips)
        await until(lambda: not quiet.notes, seconds=20)
        await until(lambda: ("announces all that it should again", False) in fleet.events("mux mux2"), seconds=20)


def test_why_names_sessions_that_are_down_and_other_reasons() -> None:
    peers = [{"name": "r1", "state": "idle"}, {"name": "r2", "state": "established"}]
    told = [{"peer": "r1", "state": "waiting", "why": "the session is idle"}, {"peer": "r2", "state": "refused"}]
    assert announcements._why(told, announcements._down(peers)) == "BGP session with r1 is down; to r2: refused"
    held: Iterable[dict[str, Any]] = [
        {"peer": name, "state": "held", "why": "the data plane stands still"} for name in ("r1", "r2")
    ]
    assert announcements._why(list(held), announcements._down(peers)) == "the data plane stands still"


async def test_a_wait_says_what_is_announced_beside_what_is_live(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        tell(controller, fleet.mux1, VIP)
        tell(controller, fleet.mux2, VIP, state="waiting", session="idle")
        (row,), soon = fleet.view.announcements.of_vips({f"{VIP}/32"})
        assert not soon, "a session that is down is not waited for"
        assert (row.vips, row.announced_by, row.wanted_by) == ([VIP], ["mux1"], ["mux1", "mux2"])
        assert "mux2 should and does not: BGP session with r1 is down" in (row.note or "")
        answer = {"lines": [], "unchanged": 0, "changed": True, "dry_run": False, "version": 2, "behind": []}
        said = list(lines({**answer, "announced": [plain(row)]}))
        assert said[-2] == "live on every node"
        assert said[-1].startswith(
            f"{VIP}: announced by 1 of 2 MUXes; announced by mux1 alone; mux2 should and does not"
        )
        tell(controller, fleet.mux2, VIP, state="waiting")
        assert fleet.view.announcements.of_vips({f"{VIP}/32"})[1], "the session is there, so it comes in a moment"
        tell(controller, fleet.mux2, VIP)
        (row,), soon = fleet.view.announcements.of_vips({f"{VIP}/32"})
        assert (row.note, soon) == (None, False)


async def test_the_last_backend_that_drains_is_told_before_and_after(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        await until(lambda: fleet.row()["healthy"] == 2)

        async def warned(backend: str) -> list[str]:
            done = await controller.writer.drain_backend("web", backend, WHO, drain=True, dry_run=True)
            return warn_of_drain(fleet.view.manager.left_by(done.change), f"web/{backend}")

        assert await warned("web-1") == []
        await controller.writer.drain_backend("web", "web-1", WHO, drain=True)
        await until(lambda: controller.plan.vips[f"{VIP}/32"].backends[0].shown == "drain")
        (warning,) = await warned("web-2")
        assert "`lb undrain web/web-2` ends the drain" in warning
        await controller.writer.drain_backend("web", "web-2", WHO, drain=True)
        await until(lambda: fleet.row()["state"] == "down")
        note = "no backend takes new flows: all 2 drained"
        assert note in fleet.row()["note"]
        assert (note, True) in fleet.events("service web")
        (finding,) = check_notes(plain(fleet.view.services.rows()))
        assert (finding.severity, note in finding.what) == (Severity.FAULT, True)
        assert any(note in it["text"] for it in fleet.summary()["problems"])
        await controller.writer.drain_backend("web", "web-2", WHO, drain=False)
        await until(lambda: ("a backend takes new flows again", False) in fleet.events("service web"))
        assert fleet.row()["note"] is None


async def test_weights_of_nothing_take_a_service_down_in_words(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller)
        await until(lambda: fleet.row()["healthy"] == 2)
        idle = service()
        for backend in idle["backend"]:
            backend["weight"] = 0
        await controller.writer.apply([idle], WHO)
        await until(lambda: fleet.row()["state"] == "down")
        note = "no backend takes new flows: all 2 of weight 0"
        assert fleet.row()["note"] == note
        assert (note, True) in fleet.events("service web")
        assert "web down" in fleet.summary()["text"]
        await controller.writer.apply([service()], WHO)
        await until(lambda: ("a backend takes new flows again", False) in fleet.events("service web"))


async def test_a_drained_mux_is_in_the_pages_verdict(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        fleet = await applied(controller, muxes=3)
        await until(lambda: fleet.row()["healthy"] == 2)
        await fleet.fine()
        await controller.node_orders.drain_mux("mux2", WHO, drain=True)
        await until(lambda: controller.announced.drained == {"mux2"})
        summary = fleet.summary()
        assert (summary["level"], summary["text"]) == ("well", "All well: 1 service, 3 MUXes, 3 hosts; mux2 drained")


async def test_what_befell_a_host_is_one_line_of_the_page(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        names = [f"web{n}" for n in range(12)]
        fleet = await applied(controller, *(service(name, f"203.0.113.{20 + n}") for n, name in enumerate(names)))
        await until(lambda: all(row["healthy"] == 2 for row in plain(fleet.view.services.rows())))
        host = fleet.site.hosts[0]
        for name in names:
            host.report(name, f"{name}-1", False, "connect timed out")
        await until(lambda: all(row["healthy"] == 1 for row in plain(fleet.view.services.rows())))
        problems = [it for it in fleet.summary()["problems"] if "timed out" in it["text"]]
        assert [it["subject"] for it in problems] == ["host host1"]
        assert problems[0]["text"].startswith("12 backends down: its agent says: connect timed out (")
        assert fleet.summary()["more_problems"] == 0
