# SPDX-License-Identifier: Apache-2.0
"""The manager's inside with nodes at its seam: changes reach them in order, and nothing that fails loses anything."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lb.cli.commands import describe
from lb.cli.tables.row_tables import draw
from lb.errors import AccessError, ConfigError, NotFoundError
from lb.node.messages import HealthMessage, StatusMessage
from manager.api.metrics import ManagerCollector
from manager.api.view import View
from manager.controller.controller import Controller
from manager.store.events import about
from manager.store.interface import StoreError
from manager.store.sqlite import SqliteStore
from manager.web.fleet_overview import Overview
from tests.manager.fake_nodes import FakeNode, Site, running, until
from tests.manager.fleet import plain, service, with_probe

VIP = "203.0.113.10/32"
WHO = "operator:alice"


async def served(controller: Controller, *tables: dict[str, Any]) -> Site:
    """A site with services that are announced."""
    site = Site().connect(controller)
    await controller.writer.apply(list(tables) or [service()], WHO)
    for table in tables:
        if "probe" in table:
            for backend in table["backend"]:
                host = site.hosts[int(backend["address"].rpartition(".")[2]) - 1]
                host.report(table["name"], backend["name"], True)
    await until(lambda: all(mux.announces() for mux in site.muxes), "the VIP is not announced")
    assert await controller.followers.wait(5.0) == []
    return site


async def test_an_applied_service_reaches_every_node_and_is_announced(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        began = time.monotonic()
        site = await served(controller)
        assert time.monotonic() - began < 2.0
        assert site.muxes[0].announces() == {VIP}
        assert site.muxes[0].backends("web") == {"web-1": "up", "web-2": "up"}
        assert site.hosts[2].state.get("services") is None
        for mux in site.muxes:
            first = next(state for state in mux.states if "announcements" in state)
            before = mux.states[: mux.states.index(first)]
            assert any("web" in state.get("services", {}) for state in before), "announced before it was installed"


async def test_a_manager_that_starts_anew_does_not_disturb_anybody(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service(), policy="any-backend"))
        site.hosts[1].report("web", "web-2", False)
        await until(lambda: site.muxes[0].backends("web")["web-2"] == "down")
        before = {node.id: (node.state, controller.hub.entries[node.id].generation) for node in site.nodes}
        term = controller.hub.term
    for node in site.nodes:
        node.states.clear()
    async with running(tmp_path) as controller:
        assert controller.hub.term > term
        site.connect(controller)
        assert await controller.followers.wait(5.0) == []
        site.hosts[0].report("web", "web-1", True)
        site.hosts[1].report("web", "web-2", False)
        await asyncio.sleep(0.3)
        for node in site.nodes:
            assert all(state == before[node.id][0] for state in node.states), node.id
            assert controller.hub.entries[node.id].generation > before[node.id][1]


async def test_what_was_so_before_a_start_is_no_event(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        await served(controller)
    before = controller.events.latest(100)  # nothing happens any more
    async with running(tmp_path) as controller:
        assert controller.events.latest(100) == before
        assert plain(View(controller).services.rows())[0]["state"] == "up"


async def test_a_new_node_gets_its_state_with_the_first_question(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        await served(controller)
        late = FakeNode("mux", "mux9", "10.0.1.19").connect(controller)
        await until(lambda: bool(late.states))
        assert "web" in late.states[0]["services"]
        await until(lambda: late.announces() == {VIP})


async def test_a_failing_backend_is_out_on_every_mux_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service()))
        took = []
        for _ in range(9):
            site.hosts[0].report("web", "web-1", True)
            await until(lambda: all(mux.backends("web")["web-1"] == "up" for mux in site.muxes))
            began = time.monotonic()
            site.hosts[0].report("web", "web-1", False, "connection refused")
            await until(lambda: all(mux.backends("web")["web-1"] == "down" for mux in site.muxes))
            took.append(time.monotonic() - began)
        assert statistics.median(took) <= 0.1, took
        row = plain(View(controller).services.backends(["web"]))[0]
        assert (row["state"], row["reason"]) == ("down", "its agent says: connection refused")
        assert any(e.text.startswith("up → down: its agent says") for e in controller.events.latest(10))


async def test_silence_is_no_news_until_the_lease_ends(tmp_path: Path) -> None:
    async with running(tmp_path, health_lease=1.0) as controller:
        site = await served(controller, with_probe(service()))
        site.hosts[0].leave()
        view = View(controller)
        assert plain(view.services.backends(["web"]))[0]["reason"] == "its agent says: 3 of 3 checks passed"
        await until(lambda: "no report" in plain(view.services.backends(["web"]))[0]["reason"], seconds=3)
        assert site.muxes[0].backends("web") == {"web-1": "up", "web-2": "up"}


async def test_panic_shows_in_view_events_metrics_and_on_muxes(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service()))
        for host, backend in zip(site.hosts, ("web-1", "web-2"), strict=False):
            host.report("web", backend, False)
        await until(lambda: "options" in site.muxes[0].state)
        assert site.muxes[0].backends("web") == {"web-1": "up", "web-2": "up"}
        view = View(controller)
        assert plain(view.services.rows())[0]["state"] == "PANIC"
        said = plain(view.explanations.service("web"))
        assert said["panic"].startswith("PANIC: only 0 of 2 backends are healthy")
        assert "web-1 is not healthy, but kept in service: its agent says" in said["explanation"][0]
        assert any(event["bad"] and "PANIC" in event["text"] for event in said["events"])
        assert figures(controller)["lb_panic", ("web",)] == 1


async def test_deleting_withdraws_first_and_leaves_an_audit(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with running(tmp_path, store) as controller:
        site = await served(controller)
        site.muxes[1].answers = False
        await controller.writer.delete_services(["web"], WHO)
        await until(lambda: site.muxes[0].announces() == set())
        assert "web" in site.muxes[0].state["services"], "mux2 may still announce it"
        assert plain(View(controller).services.rows())[0]["state"] == "retiring"
        site.muxes[1].answers = True
        site.muxes[1].wake()
        await until(lambda: not controller.desired.retiring)
        assert all("services" not in node.state for node in site.nodes)
        said = [(line.who, line.what) for line in await store.audit(5)]
        assert said[:2] == [("manager", "service web removed: withdrawn everywhere"), (WHO, "service web deleted")]


async def test_a_change_with_mistakes_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        with pytest.raises(ConfigError) as caught:
            await controller.writer.apply([service(), service("far", "198.51.100.1"), service("web2", colour=1)], WHO)
        assert len(caught.value.mistakes) == 3
        assert (controller.desired.version, controller.desired.services) == (0, {})


async def test_changes_at_the_same_time_are_made_one_after_the_other(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        tables = [service(f"s{n}", f"203.0.113.{n}") for n in range(1, 21)]
        done = await asyncio.gather(*(controller.writer.apply([table], WHO) for table in tables))
        assert sorted(item.version for item in done) == list(range(1, 21))
        assert len(controller.desired.services) == 20


class Slow(SqliteStore):
    """A disk that takes its time to keep what the plan must remember."""

    goes_on: asyncio.Event
    waits = False

    async def keep(self, *what: Any) -> None:
        self.waits = not self.goes_on.is_set()
        await self.goes_on.wait()
        await super().keep(*what)


async def test_nobody_is_said_to_have_followed_before_anybody_was_told(tmp_path: Path) -> None:
    store = await Slow.open(tmp_path)
    assert isinstance(store, Slow)
    store.goes_on = asyncio.Event()
    store.goes_on.set()
    async with running(tmp_path, store) as controller:
        site = await served(controller)
        store.goes_on.clear()
        await controller.writer.apply([service("dns", "203.0.113.11")], WHO)
        await until(lambda: all("dns" in mux.state["services"] for mux in site.muxes), "what needs no disk is told")
        await until(lambda: store.waits, "the announcement is planned, and waits for the disk")
        assert await controller.followers.wait(0.1) == ["manager"]
        assert all(mux.announces() == {VIP} for mux in site.muxes)
        store.goes_on.set()
        assert await controller.followers.wait(5.0) == []
        assert all(mux.announces() == {VIP, "203.0.113.11/32"} for mux in site.muxes)


class Failing(SqliteStore):
    """A disk that is full, from some moment on."""

    full = False

    async def keep(self, *what: Any) -> None:
        if self.full:
            raise StoreError("disk full")
        await super().keep(*what)

    async def commit(
        self, expected: int, change: Mapping[str, Any], who: str, what: str, at: float, *, why: str = ""
    ) -> int:
        if self.full:
            raise StoreError("disk full")
        return await super().commit(expected, change, who, what, at, why=why)


async def test_with_a_full_disk_changes_are_refused_but_health_goes_on(tmp_path: Path) -> None:
    store = await Failing.open(tmp_path)
    assert isinstance(store, Failing)
    async with running(tmp_path, store) as controller:
        site = await served(controller, with_probe(service()))
        store.full = True
        with pytest.raises(StoreError):
            await controller.writer.apply([service("more", "203.0.113.11")], WHO)
        assert controller.desired.services.keys() == {"web"}
        site.hosts[0].report("web", "web-1", False)
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "down")
        assert any("cannot write its store" in event.text for event in controller.events.latest(20))
        store.full = False
        site.hosts[0].report("web", "web-1", True)
        await until(lambda: any("writes its store again" in event.text for event in controller.events.latest(20)))
    async with running(tmp_path) as controller:
        assert controller.plan.memory.backends["web", "web-1", "10.0.3.1"].healthy


# --- nodes -----------------------------------------------------------------------------------------------------------


async def test_a_node_that_refuses_its_state_is_said_everywhere(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller)
        site.muxes[1].refuses = "no memory for 1 Maglev table"
        await controller.writer.apply([service("dns", "203.0.113.11")], WHO)
        await until(lambda: controller.hub.entries["mux:mux2"].refused is not None)
        view = View(controller)
        await until(lambda: site.muxes[0].announces() == {VIP, "203.0.113.11/32"})
        assert [row["state"] for row in plain(view.nodes.muxes())] == ["ready", "refused"]
        words = plain(view.explanations.service("dns"))["announcements"]
        assert words[1] == {
            "mux": "mux2",
            "announces": False,
            "reason": "it refused its state: no memory for 1 Maglev table",
            "peers": [],
        }
        assert await controller.followers.wait(0.1) == ["mux:mux2"]
        site.muxes[1].refuses = None
        site.muxes[1].take()
        await until(lambda: site.muxes[1].announces() == {VIP, "203.0.113.11/32"})


async def test_a_node_may_not_take_the_address_or_the_backends_of_another(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service()))
        with pytest.raises(AccessError, match=r"says address 10\.0\.3\.1, which is that of agent:host1"):
            FakeNode("agent", "host7", "10.0.3.1").connect(controller)
        for address in ("no address", None):
            with pytest.raises(AccessError, match="agent:host8 says"):
                FakeNode("agent", "host8", address).connect(controller)
        site.hosts[2].report("web", "web-1", False)
        await asyncio.sleep(0.1)
        assert site.muxes[0].backends("web")["web-1"] == "up", "host3 spoke for host1's backend"


async def test_the_clock_of_a_node_is_compared_with_the_managers_at_its_best_word(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller)
        mux, view = site.muxes[0], View(controller)
        assert mux.hub is not None
        assert plain(view.nodes.muxes())[0]["clock_skew"] is None
        for late in (0.0, 4.0, 1.0):  # words that waited on their way seem to come from a clock that is behind
            mux.hub.health(mux, HealthMessage(10.0, clock=time.time() + 600 - late))
        assert 595 < plain(view.nodes.muxes())[0]["clock_skew"] < 601
        for _ in range(4):  # set right
            mux.hub.health(mux, HealthMessage(10.0, clock=time.time()))
        assert abs(plain(view.nodes.muxes())[0]["clock_skew"]) < 2


async def test_a_machine_of_a_name_that_is_taken_shows_in_status_and_events(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        await served(controller)
        for _ in range(3):
            controller.hub.refused_at_door("mux", "mux1", "10.9.9.9", "mux:mux1 is connected already", duplicate=True)
        (row,) = plain(View(controller).manager.status())["refusals"]
        assert (row["node"], row["address"], row["count"], row["duplicate"]) == ("mux:mux1", "10.9.9.9", 3, True)
        said = [event.text for event in controller.events.latest(50) if "turned away" in event.text]
        assert said == [
            "another machine of this name or address, at 10.9.9.9, was turned away: mux:mux1 is connected already"
        ]


async def test_words_of_a_connection_that_was_replaced_do_not_count(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller)
        old, hub = site.muxes[0], controller.hub
        new = FakeNode("mux", "mux1", "10.0.1.11")
        hub.left(old)
        new.connect(controller)
        hub.refused(old, 10**6, "too late")
        hub.left(old)
        assert hub.entries["mux:mux1"].connection is new
        assert hub.entries["mux:mux1"].refused is None


async def test_a_mux_is_drained_and_forgotten_by_name(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller)
        with pytest.raises(NotFoundError, match='there is no MUX "mux7"; known are mux1, mux2'):
            await controller.node_orders.drain_mux("mux7", WHO, drain=True)
        await controller.node_orders.drain_mux("mux1", WHO, drain=True)
        await until(lambda: site.muxes[0].state.get("options") == {"drain": True})
        await controller.node_orders.drain_mux("mux2", WHO, drain=True)
        await until(lambda: "waits" in (plain(View(controller).nodes.muxes())[1]["drain"] or ""))
        with pytest.raises(AccessError, match="mux1 is connected; stop it first"):
            await controller.node_orders.forget("mux", "mux1", WHO)
        site.muxes[0].leave()
        await controller.node_orders.forget("mux", "mux1", WHO)
        assert controller.desired.mux_drains.keys() == {"mux2"}
        await until(lambda: site.muxes[1].state.get("options") == {"drain": True}, "the only one may drain")
        await until(lambda: site.hosts[0].state["muxes"].keys() == {"mux2"})


async def test_status_of_muxes_is_summed_and_sessions_are_events(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller)
        for mux, state in zip(site.muxes, ("established", "connecting"), strict=True):
            body = {
                "mux": {"io": "packet", "flows": 5},
                "services": [{"name": "web", "packets": 10, "bytes": 1000, "flows_new": 2}],
                "peers": [{"name": "r1", "address": "10.0.0.1", "state": state, "error": None}],
                "announcements": [{"vip": "203.0.113.10", "peer": "r1", "state": "announced", "why": None}],
            }
            controller.hub.status(mux, StatusMessage(body).body)
        view = View(controller)
        assert [plain(view.services.rows())[0][key] for key in ("packets", "bytes", "flows_new")] == [20, 2000, 4]
        assert [row["io"] for row in plain(view.nodes.muxes())] == ["packet", "packet"]
        assert plain(view.announcements.rows())[0] == {
            "vip": VIP,
            "mux": "mux1",
            "wanted": True,
            "peer": "r1",
            "state": "announced",
            "reason": None,
        }
        assert "BGP session with r1 is established" in [event.text for event in controller.events.latest(5)]
        found = figures(controller)
        assert found["lb_announced", ("203.0.113.10", "r1", "mux1")] == 1
        assert found["lb_backend_up", ("web", "web-1")] == 1
        assert found["lb_generation", ("mux", "mux1")] == found["lb_generation_wanted", ("mux", "mux1")] > 0
        assert found["lb_panic", ("web",)] == 0


async def test_what_operators_drain_is_a_figure_and_clear_names_stand_beside_the_old_ones(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service()))
        site.muxes[0].expires = 2e9
        site.muxes[0].leave()
        site.muxes[0].connect(controller)
        await controller.node_orders.drain_mux("mux1", WHO, drain=True)
        await controller.writer.drain_backend("web", "web-1", WHO, drain=True)
        await controller.writer.drain_backend("web", "web-2", WHO, drain=True, now=True)
        await until(lambda: [b.shown for b in controller.plan.vips["203.0.113.10/32"].backends] == ["drain", "down"])
        found = figures(controller)
        assert [found["lb_backend_drained", ("web", f"web-{n}")] for n in (1, 2)] == [1, 1]
        assert [found["lb_backend_takes_flows", ("web", f"web-{n}")] for n in (1, 2)] == [0, 0]
        assert [found["lb_backend_healthy", ("web", f"web-{n}")] for n in (1, 2)] == [1, 0]
        assert {n: found["lb_mux_drained", (f"mux{n}",)] for n in (1, 2)} == {1: 1, 2: 0}
        ends = [found[f"lb_node_certificate_expires_{name}seconds", ("mux", "mux1")] for name in ("", "timestamp_")]
        assert ends == [2e9, 2e9]
        await controller.writer.drain_backend("web", "web-1", WHO, drain=False)
        await until(lambda: figures(controller)["lb_backend_drained", ("web", "web-1")] == 0)


async def test_a_clock_that_differs_is_said_everywhere_and_so_is_its_end(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = await served(controller, service())
        view = View(controller)
        entry = controller.hub.entries["agent:host1"]
        said = "its clock is 3,600 s ahead of the manager's"
        entry.clocks.extend([3600.0] * 30)
        await until(lambda: controller.skews.differs == {"agent:host1": said})
        (row,) = [row for row in view.nodes.agents() if row.name == "host1"]
        assert row.clock == said
        assert any(said in line for line in draw("agents", [row], 80))
        assert (said, True) in [
            (event.text, event.bad) for event in controller.events.latest(9, about(["agent host1"]))
        ]
        overview = Overview(controller, view)
        overview.refresh()
        summary = overview.summary(overview.muxes(), overview.hosts())
        assert "clock of host1 not the manager's" in summary["text"]
        assert any((it["subject"], it["text"]) == ("agent host1", said) for it in summary["problems"])
        assert figures(controller)["lb_node_clock_skew_seconds", ("agent", "host1")] == 3600
        entry.clocks.extend([0.1] * 30)
        await until(lambda: not controller.skews.differs)
        texts = [event.text for event in controller.events.latest(9, about(["agent host1"]))]
        assert "its clock agrees with the manager's again" in texts
        assert len(site.hosts) == 3


def figures(controller: Controller) -> dict[tuple[str, tuple[str, ...]], float]:
    """All samples, by name and the values of their labels."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in ManagerCollector(controller).collect()
        for sample in family.samples
    }


async def test_what_a_node_was_not_told_of_it_may_not_speak_of(tmp_path: Path) -> None:
    """Else one MUX that is broken could have the manager keep names without end."""
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service()))
        reports = controller.planner.reports
        (mux, *_), (host, other, *_) = site.muxes, site.hosts
        for number in range(100):
            mux.report("web", f"web-{number + 100}", False)
            mux.report(f"web{number}", "web-1", False)
        mux.report("web", "web-1", False)
        host.report("web", "web-2", False)  # another host's
        other.report("dns", "dns-1", False)
        mux.report("web", "web-2", True)
        assert set(reports.tunnels(("web", "web-1"))) == set(reports.tunnels(("web", "web-2"))) == {mux.name}
        assert {key for known in reports._of.values() for key in known} == {("web", "web-1"), ("web", "web-2")}
        assert reports._tunnels.keys() == {("web", "web-1"), ("web", "web-2")}
        found = figures(controller)
        name = "lb_node_reports_passed_over_total"
        assert found[name, ("mux", mux.name)] == 200
        assert (found[name, ("agent", host.name)], found[name, ("agent", other.name)]) == (1, 1)


async def test_what_is_said_of_a_deleted_service_counts_as_long_as_nodes_have_it(tmp_path: Path) -> None:
    """It is here again before they have heard that it went, and they say nothing twice."""
    async with running(tmp_path) as controller:
        site = await served(controller, with_probe(service()))
        for mux in site.muxes:
            mux.answers = False
        await controller.writer.delete_services(["web"], WHO)
        site.hosts[0].report("web", "web-1", False, "connection refused")
        for mux in site.muxes:
            mux.report("web", "web-2", False, "timed out")
        await controller.writer.apply([with_probe(service())], WHO)
        reports = controller.planner.reports
        said = reports.agent(site.hosts[0].name, ("web", "web-1"))
        assert said is not None
        assert said.reason == "connection refused"
        assert {report.reason for report in reports.tunnels(("web", "web-2")).values()} == {"timed out"}


async def test_what_a_node_leaves_out_is_shown_said_and_waited_for_no_longer(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site(muxes=2, hosts=2).connect(controller)
        mux = site.muxes[0]
        mux.leaves_out = {"web": "is of a newer version"}
        applied = await controller.writer.apply([service()], "alice")
        assert await controller.followers.wait(5) == []
        await until(lambda: bool(site.muxes[1].announces()), "mux2 announces")
        assert mux.announces() == set()
        why = {"mux:mux1": "it leaves out service web: is of a newer version"}
        assert controller.followers.without(applied.change.names) == why
        mux.leaves_out = {}
        mux.again()
        await until(lambda: bool(mux.announces()), "mux1 announces as well")
        assert controller.followers.without(["web"]) == {}
        said = [event.text for event in controller.events.latest(100) if event.subject == "mux mux1"]
        assert "leaves out web, and serves the rest: is of a newer version" in said
        assert "leaves out web no more" in said


async def test_what_a_node_leaves_out_is_told_of_the_service_of_its_vip_and_of_the_node(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        assert await controller.followers.wait(5.0) == []
        view, mux = View(controller), site.muxes[0]
        assert "Left out" not in [
            *describe.service(plain(view.explanations.service("web"))),
            *describe.node(plain(view.nodes.muxes())[0]),
        ]
        entry = controller.hub.entries[mux.id]
        left_out = {"web": "no room", "other": "not of this service"}
        controller.hub.live(mux, entry.live_generation, entry.live or {}, left_out)
        told = [{"node": "mux:mux1", "what": "web", "reason": "no room"}]
        assert (
            plain(view.explanations.service("web"))["left_out"]
            == plain(view.explanations.vip(ip_address("203.0.113.10")))["left_out"]
            == told
        )
        line = "  mux:mux1 does not serve web: no room"
        assert line in list(describe.service(plain(view.explanations.service("web"))))
        assert line in list(describe.vip(plain(view.explanations.vip(ip_address("203.0.113.10")))))
        assert "  mux1 does not serve web: no room" in list(describe.node(plain(view.nodes.muxes())[0]))
