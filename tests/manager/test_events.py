# SPDX-License-Identifier: Apache-2.0
"""Events: which are wanted, how many are kept, and that they outlive the manager."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from manager.controller import Controller
from manager.events import KEPT, Events, Wanted
from manager.sqlite import SqliteStore
from manager.store import Event, StoreError
from tests.manager.fleet import service
from tests.manager.nodes import Site, running, until

WHO = "operator:ada"


def event(number: int, subject: str = "mux mux1", *, bad: bool = False) -> Event:
    return Event(number, float(number), subject, "it happened", bad)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [1, 2, 3, 4, 5]),
        (Wanted(bad=True), [2, 5]),
        (Wanted(since=3.0), [3, 4, 5]),
        (Wanted(after=3), [4, 5]),
        (Wanted("web"), [1, 2]),
        (Wanted("service web"), [1]),
        (Wanted("backend web/web-1"), [2]),
        (Wanted("web/web-1"), [2]),
        (Wanted("mux"), [4]),
        (Wanted("mux1"), [4]),
        (Wanted("203.0.113.10"), [5]),
        (Wanted("vip 203.0.113.10"), [5]),
        (Wanted("vip 203.0.113.10/32", bad=True), [5]),
        (Wanted("web-1"), []),
        (Wanted("web", bad=True, since=1.0), [2]),
    ],
)
def test_those_that_are_wanted_are_found(wanted: Wanted, found: list[int]) -> None:
    events = Events()
    events.load(
        [
            event(1, "service web"),
            event(2, "backend web/web-1", bad=True),
            event(3, "backend dns/dns-1"),
            event(4, "mux mux1"),
            event(5, "vip 203.0.113.10/32", bad=True),
        ]
    )
    assert [one.id for one in events.latest(10, wanted)] == found


def test_only_so_many_wait_for_a_store_that_fails() -> None:
    events = Events()
    for n in range(KEPT + 5):
        events.add(float(n), "mux mux1", "it happened")
    taken = events.take_unkept()
    events.add(1.0, "mux mux1", "the last")
    events.not_kept(taken)
    waiting = events.take_unkept()
    assert len(waiting) == KEPT
    assert waiting[-1].text == "the last"
    assert events.take_unkept() == []


async def test_the_store_keeps_the_last_ones(tmp_path: Path) -> None:
    for start in (1, 8):
        store = await SqliteStore.open(tmp_path)
        await store.keep({}, [], [event(n, bad=n == 9) for n in range(start, start + 7)], 5)
        await store.close()
    store = await SqliteStore.open(tmp_path)
    assert await store.events() == [event(n, bad=n == 9) for n in range(10, 15)]
    await store.close()


async def test_events_outlive_the_manager_and_count_on(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        Site().connect(controller)
        await controller.apply([service()], WHO)
        await until(lambda: controller.events.last > 5)
        last = controller.events.last
    async with running(tmp_path) as controller:
        texts = {(one.subject, one.text) for one in controller.events.latest(100)}
        assert ("service web", "created by operator:ada: 203.0.113.10 tcp 80, 2 backends") in texts
        assert any(subject == "mux mux1" and "connected from" in text for subject, text in texts)
        assert controller.events.last >= last
        controller.happened("mux mux1", "and on")
        assert controller.events.latest(1)[0].id == controller.events.last > last


async def test_a_manager_that_is_killed_loses_at_most_the_last_moment(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with running(tmp_path, store) as controller:
        controller.happened("mux mux1", "an hour ago")
        other = await SqliteStore.open(tmp_path)  # what another process would find now
        for _ in range(100):
            if await other.events():
                break
            await asyncio.sleep(0.05)
        assert [one.text for one in await other.events()] == ["an hour ago"]
        await other.close()


async def test_an_operators_change_is_an_event_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        await controller.apply([service()], WHO)
        table = service()
        table["backend"][0]["weight"] = 3
        await controller.apply([table], WHO, why="more memory")
        await controller.drain_backend("web", "web-2", WHO, drain=True)
        assert said(controller, "service web")[-1] == "changed by operator:ada: weight of web-1 1 → 3 (more memory)"
        assert any(text == "drained by operator:ada" for text in said(controller, "backend web/web-2"))


def said(controller: Controller, subject: str) -> list[str]:
    return [one.text for one in controller.events.latest(100, Wanted(subject))]


async def test_events_that_a_full_disk_refused_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(tmp_path)
    async with running(tmp_path, store) as controller:

        async def full(*_: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(store, "keep", full)
            controller.happened("mux mux1", "while it was full")
            await controller.journal.write()
            assert await store.events() == []
        await controller.journal.write()
        kept = [one.text for one in await store.events()]
        assert kept[0] == "while it was full"
        assert kept[1].startswith("cannot write its store, and goes on without: the disk is full")
