# SPDX-License-Identifier: Apache-2.0
"""A verdict waits for nothing: no disk, no operator's change, no node that joins; and nothing is lost for that."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from manager.controller import planner as planner_module
from manager.controller.controller import Controller
from manager.controller.planner import TURN
from manager.desired.state import DesiredChange
from manager.plan import plan as plan_module
from manager.store.interface import ConflictError, StoreError
from manager.store.sqlite import SqliteStore
from tests.manager.fake_nodes import FakeNode, Site, running, until
from tests.manager.fleet import service, with_probe

VIP, WHO = "203.0.113.10/32", "operator:alice"
#: Far more than a verdict needs, and far less than whatever it must not wait for, which a test ends by itself; seconds.
SOON = 2.0


@asynccontextmanager
async def serving(directory: Path, store: SqliteStore | None = None) -> AsyncIterator[tuple[Controller, Site]]:
    """A service with a probe, healthy and announced."""
    async with running(directory, store or await SqliteStore.open(directory)) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([with_probe(service())], WHO)
        for n in (1, 2):
            site.hosts[n - 1].report("web", f"web-{n}", True)
        await until(lambda: all(mux.announces() == {VIP} for mux in site.muxes), "the VIP is not announced")
        assert await controller.followers.wait(5.0) == []
        yield controller, site


@contextmanager
def held(store: SqliteStore) -> Iterator[None]:
    """The store's thread has something large to do, for as long as this lasts."""
    goes_on = threading.Event()
    store._thread.submit(goes_on.wait)
    try:
        yield
    finally:
        goes_on.set()


async def reaches_every_mux(site: Site, up: bool) -> None:
    state = "up" if up else "down"
    site.hosts[0].report("web", "web-1", up)
    told = lambda: all(mux.backends("web")["web-1"] == state for mux in site.muxes)  # noqa: E731
    await until(told, f"no MUX was told that web-1 is {state}", seconds=SOON)


async def test_a_verdict_waits_for_no_disk(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, site):
        with held(store):
            await reaches_every_mux(site, up=False)
            await reaches_every_mux(site, up=True)
            await reaches_every_mux(site, up=False)
    async with running(tmp_path) as controller:
        assert not controller.plan.memory.backends["web", "web-1", "10.0.3.1"].healthy, "it is kept all the same"


async def test_a_verdict_waits_for_no_change_that_is_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while something retires, which is a change of its own that waits for its turn."""
    working, goes_on = threading.Event(), threading.Event()
    async with serving(tmp_path) as (controller, site):
        apply = controller.writer._given.apply

        def slowly(*what: Any, **how: Any) -> DesiredChange:
            working.set()
            goes_on.wait()
            return apply(*what, **how)

        await controller.writer.apply([service("old", "203.0.113.99")], WHO)
        await until(lambda: all("203.0.113.99/32" in mux.announces() for mux in site.muxes))
        monkeypatch.setattr(controller.writer._given, "apply", slowly)
        await controller.writer.delete_services(["old"], WHO)
        large = [service(f"s{n}", f"203.0.1.{n}") for n in range(1, 101)]
        applying = asyncio.create_task(controller.writer.apply(large, WHO))
        try:
            await asyncio.to_thread(working.wait, SOON)
            await until(lambda: all("old" not in mux.state["services"] for mux in site.muxes), "it does not retire")
            await reaches_every_mux(site, up=False)
            assert not applying.done()
        finally:
            goes_on.set()
        await applying
        await until(lambda: not controller.desired.retiring, "what has retired stays")


async def test_a_verdict_is_told_before_a_change_of_thousands_is_committed(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, site):
        before = controller.desired.version
        with held(store):
            large = [service(f"s{n}", f"203.0.{n // 200 + 1}.{n % 200 + 1}") for n in range(500)]
            applying = asyncio.create_task(controller.writer.apply(large, WHO))
            await asyncio.sleep(0.05)
            await reaches_every_mux(site, up=False)
            assert controller.desired.version == before
        assert (await applying).version == before + 1


@pytest.mark.parametrize("why", ["touched", "acknowledged"])
async def test_a_verdict_passes_what_is_planned_for_thousands(tmp_path: Path, why: str) -> None:
    """At most one turn for the many lies between, whether they are changed or nodes have them."""
    async with serving(tmp_path) as (controller, site):
        many = {f"203.0.{n // 250}.{n % 250}/32" for n in range(40 * TURN)}
        getattr(controller.node_events, why)(many)
        await asyncio.sleep(0)
        site.hosts[0].report("web", "web-1", False)
        begun = controller.planner.turns
        while site.muxes[0].backends("web")["web-1"] != "down":  # noqa: ASYNC110  turns are what is counted
            await asyncio.sleep(0)
        assert controller.planner.turns - begun <= 4
        assert controller.planner.busy
        assert await controller.followers.wait(5.0) == [], "the many are planned as well"


@pytest.mark.parametrize("own", [False, True], ids=["of others", "of its own as well"])
async def test_who_waits_for_a_change_waits_for_it_alone_though_reports_never_end(tmp_path: Path, own: bool) -> None:
    """More is touched all the while than can be planned; what the change touched is planned and followed in between."""
    async with serving(tmp_path) as (controller, site):
        new = "203.0.113.11/32"
        many = {f"203.0.{n // 250}.{n % 250}/32" for n in range(40 * TURN)} | ({new} if own else set())

        async def report() -> None:
            while True:
                controller.node_events.touched(many)
                await asyncio.sleep(0)

        reporting = asyncio.create_task(report())
        try:
            await asyncio.sleep(0)
            applied = await controller.writer.apply([service("dns", "203.0.113.11")], WHO)
            assert await controller.followers.wait(10.0, applied.change.vips()) == []
            assert all(mux.announces() == {VIP, new} for mux in site.muxes), "it is followed to its end"
            assert controller.planner.unplanned(many), "the planner had no rest"
            site.muxes[1].answers = False
            applied = await controller.writer.apply([service("dns", "203.0.113.11", hosts=(1,))], WHO)
            behind = await controller.followers.wait(0.5, applied.change.vips())
            assert set(behind) - {"manager"} == {"mux:mux2"}, "who does not answer is named"
            assert await controller.followers.wait(5.0, {VIP}) == [], "and holds up nobody whom it owes nothing"
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)


async def test_a_mux_whose_probes_fail_in_other_words_has_no_more_planned_than_their_services(tmp_path: Path) -> None:
    """Whether a host is lost matters to all that it serves, and only where its agent was there and is away."""
    async with serving(tmp_path) as (controller, site):
        await controller.writer.apply([service("dns", "203.0.113.11")], WHO)
        assert await controller.followers.wait(5.0) == []
        touched: list[set[str]] = []
        controller.planner.touched = lambda vips: touched.append(set(vips or ()))  # type: ignore[method-assign]

        def report(reason: str, up: bool = False) -> set[str]:
            touched.clear()
            site.muxes[0].report("web", "web-1", up, reason)
            return set().union(*touched)

        assert report("connect timed out") == {VIP}, "its agent has the word"
        site.hosts[0].leave()
        assert report("no route to host") == {VIP}, "it was down before"
        assert report("TCP connects", up=True) == {VIP, "203.0.113.11/32"}
        assert report("connect timed out") == {VIP, "203.0.113.11/32"}
        await controller.node_orders.forget("agent", "host1", WHO)
        assert report("TCP connects", up=True) == {VIP}, "of a host that has no agent nobody asks"


async def test_a_node_owes_word_of_what_is_new_to_it_and_of_nothing_else(tmp_path: Path) -> None:
    """Else each answer would have all planned again that was planned beside it, and verdicts would wait for that."""
    async with serving(tmp_path) as (controller, site):
        await controller.writer.apply([service("dns", "203.0.113.11")], WHO)
        assert await controller.followers.wait(5.0) == []
        told: list[set[str]] = []
        want = controller.hub.want

        def noted(states: Any, vips: Any, **how: Any) -> list[str]:
            changed = want(states, vips, **how)
            told.extend([set(vips)] * bool(changed))
            return changed

        controller.hub.want = noted  # type: ignore[method-assign]
        controller.node_events.touched({VIP, "203.0.113.11/32"})
        await reaches_every_mux(site, up=False)
        assert told[0] == {VIP}


async def test_an_agent_that_accepts_another_mux_has_all_its_vips_planned(tmp_path: Path) -> None:
    """Whose tunnels it takes is of no VIP, and every VIP waits for it."""
    async with serving(tmp_path) as (controller, site):
        host = site.hosts[0]
        before = controller.hub.entries[host.id].live
        controller.hub.entries[host.id].live = {**before, "muxes": {}} if before else None
        touched: list[set[str]] = []
        controller.planner.touched = lambda vips: touched.append(set(vips or ()))  # type: ignore[method-assign]
        controller.hub.live(host, controller.hub.entries[host.id].live_generation, before or {})
        assert {VIP} in touched


async def test_a_verdict_waits_for_no_thousand_nodes_that_join(tmp_path: Path) -> None:
    """And all of them are in the store in a few transactions."""
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, site):
        with held(store):
            joined = [FakeNode("agent", f"new{n}", f"10.1.{n // 250}.{n % 250 + 1}") for n in range(1000)]
            for node in joined:
                node.connect(controller)
            await reaches_every_mux(site, up=False)
        writes = 0
        keep = store.keep

        async def counted(*what: Any) -> None:
            nonlocal writes
            writes += 1
            await keep(*what)

        store.keep = counted  # type: ignore[method-assign]
        assert await controller.followers.wait(10.0) == []
        assert writes < 20
    async with running(tmp_path) as controller:
        assert len(controller.hub.entries) == 1005


async def test_a_full_disk_holds_announcements_up_for_one_attempt(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, site):

        async def full(*_: object) -> None:
            raise StoreError("the disk is full")

        keep, store.keep = store.keep, full  # type: ignore[method-assign]
        await controller.writer.apply([service("dns", "203.0.113.11")], WHO)
        await until(lambda: all("203.0.113.11/32" in mux.announces() for mux in site.muxes))
        store.keep = keep  # type: ignore[method-assign]
        await until(lambda: not controller.journal.failing, "the disk is not tried again")
    async with running(tmp_path) as controller:
        assert controller.plan.vips["203.0.113.11/32"].granted == {"mux1", "mux2"}, "what was granted is remembered"


async def test_nodes_may_join_while_a_change_of_thousands_is_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the thread looks at are values: it never walks through what the event loop changes."""
    loops: list[bool] = []
    async with serving(tmp_path) as (controller, _):
        addresses, as_told = controller.hub.addresses, controller.planner.as_told

        def noted(function: Any) -> Any:
            def called() -> Any:
                loops.append(threading.current_thread() is threading.main_thread())
                return function()

            return called

        monkeypatch.setattr(controller.hub, "addresses", noted(addresses))
        monkeypatch.setattr(controller.planner, "as_told", noted(as_told))
        large = [service(f"s{n}", f"203.0.1.{n}") for n in range(1, 101)]
        await controller.writer.apply(large, WHO)
        await controller.writer.rollback(None, WHO)
        assert len(loops) >= 2
        assert all(loops)


async def test_what_is_committed_is_told_whatever_becomes_of_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The asker leaves while it is being committed; or what is to be said about it cannot be said."""
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, site):
        with held(store):
            asking = asyncio.create_task(controller.writer.apply([service("dns", "203.0.113.11")], WHO))
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: all("dns" in mux.state["services"] for mux in site.muxes), "it is committed, and not told")

        def fails(*_: object) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr(controller.chronicle, "changed", fails)
        with pytest.raises(BrokenPipeError):
            await controller.writer.apply([service("more", "203.0.113.12")], WHO)
        await until(lambda: all("more" in mux.state["services"] for mux in site.muxes), "it is committed, and not told")
        assert (await store.load()).version == controller.desired.version
        monkeypatch.undo()
        await controller.writer.apply([service("last", "203.0.113.13")], WHO)


async def test_whoever_leaves_before_a_change_is_begun_has_asked_for_nothing(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, _):
        with held(store):
            first = asyncio.create_task(controller.writer.apply([service("dns", "203.0.113.11")], WHO))
            second = asyncio.create_task(controller.writer.apply([service("more", "203.0.113.12")], WHO))
            await asyncio.sleep(0.05)
            second.cancel()
        await first
        await asyncio.sleep(0.05)
        assert controller.desired.services.keys() == {"web", "dns"}


async def test_a_store_that_somebody_else_changed_is_read_anew(tmp_path: Path) -> None:
    """The one change is refused; what is there by now is served, and the next change is taken."""
    store = await SqliteStore.open(tmp_path)
    async with serving(tmp_path, store) as (controller, site):
        other = await SqliteStore.open(tmp_path)
        table = {**service("dns", "203.0.113.11"), "port": 53}
        await other.commit(controller.desired.version, {"set": {"services": {"dns": table}}}, WHO, "elsewhere", 1.0)
        await other.close()
        with pytest.raises(ConflictError, match="it was read anew, so try again"):
            await controller.writer.apply([service("more", "203.0.113.12")], WHO)
        await until(lambda: all("dns" in mux.state["services"] for mux in site.muxes), "nobody was told of it")
        await controller.writer.apply([service("more", "203.0.113.12")], WHO)
        assert controller.desired.services.keys() == {"web", "dns", "more"}


# --- one VIP that cannot be planned ----------------------------------------------------------------------------------


def breaks(monkeypatch: pytest.MonkeyPatch, vip: str) -> set[str]:
    """Planning this VIP fails, for as long as it is in what is returned."""
    broken = {vip}

    def unwanted(services: list[Any], backends: list[Any]) -> str | None:
        if broken & {f"{found.vip}/32" for found in services}:
            raise ZeroDivisionError("a mistake of ours")
        return known(services, backends)

    known = plan_module.unwanted_by_policy
    monkeypatch.setattr(plan_module, "unwanted_by_policy", unwanted)
    return broken


async def test_a_vip_that_cannot_be_planned_stays_as_it_is_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (controller, site):
        broken = breaks(monkeypatch, "203.0.113.11/32")
        await controller.writer.apply([service("odd", "203.0.113.11"), service("new", "203.0.113.12")], WHO)
        await until(lambda: "new" in site.muxes[0].state["services"], "others wait for it")
        await reaches_every_mux(site, up=False)
        assert "odd" in site.muxes[0].state["services"], "what its tables say was to do"
        assert any("cannot be planned" in event.text for event in controller.events.latest(100))
        broken.clear()
        broken.add(VIP)  # one that is announced, and of which more is known
        site.hosts[0].report("web", "web-1", True)
        await asyncio.sleep(0.2)
        assert VIP in site.muxes[0].announces()
        assert site.muxes[0].backends("web")["web-1"] == "down", "it stays as it was"
        await controller.writer.apply([service("more", "203.0.113.13")], WHO)
        await until(lambda: "more" in site.muxes[0].state["services"], "others wait for it")
        broken.clear()
        controller.node_events.touched(None)
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "up", "it is planned no more")
        assert any("can be planned again" in event.text for event in controller.events.latest(100))


async def test_a_manager_starts_with_a_vip_that_cannot_be_planned_and_withdraws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path):
        pass
    broken = breaks(monkeypatch, VIP)
    monkeypatch.setattr(planner_module, "AGAIN", 0.2, raising=False)
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await until(lambda: all(mux.states for mux in site.muxes))
        assert [mux.announces() for mux in site.muxes] == [{VIP}, {VIP}]
        assert "web" in site.hosts[0].state["services"]
        broken.clear()
        for n in (1, 2):
            site.hosts[n - 1].report("web", f"web-{n}", n == 2)
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "down", "it is not tried again")
