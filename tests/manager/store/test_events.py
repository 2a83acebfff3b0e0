# SPDX-License-Identifier: Apache-2.0
"""Events: which are wanted, how many are kept, and that they outlive the manager."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from manager.controller.controller import Controller
from manager.store.events import FOR_BAD, KEPT, PER_MINUTE, Events, Wanted
from manager.store.interface import Event, StoreError
from manager.store.sqlite import SqliteStore
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import service

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
        events.add(float(n), f"mux mux{n}", "it happened")
    taken = events.take_unkept()
    events.add(1.0, "mux mux1", "the last")
    events.not_kept(taken)
    waiting = events.take_unkept()
    assert len(waiting) == KEPT
    assert waiting[-1].text == "the last"
    assert events.take_unkept() == []


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_object_that_flaps_pushes_nobody_else_out() -> None:
    """Twice a second for a day, while something happened to another at its beginning."""
    clock = Clock()
    events = Events(clock)
    events.add(0.0, "mux mux1", "is connected")
    for half in range(2 * 86_400):
        clock.now = 1000.0 + half / 2
        events.add(half / 2, "backend web/web-1", f"flap {half}", bad=half % 2 == 0)
    found = events.latest(KEPT)
    assert found[0].text == "is connected"
    minutes = 24 * 60
    assert len(found) == 1 + PER_MINUTE + 2 * (minutes - 1)
    assert [one.id for one in found] == list(range(1, len(found) + 1)), "numbers have no gaps"


def test_what_is_left_out_is_counted_and_the_last_of_it_is_told() -> None:
    clock = Clock()
    events = Events(clock)
    for n in range(PER_MINUTE):
        assert events.add(float(n), "backend web/web-1", f"flap {n}", bad=True) is not None
    assert events.add(20.0, "backend web/web-1", "down", bad=True) is None
    assert events.add(21.0, "backend web/web-1", "up") is None
    assert events.add(22.0, "backend web/web-2", "up") is not None, "another is free to speak"
    assert events.add(23.0, "backend web/web-1", "drained by ada", always=True) is not None
    clock.now += 59.9
    assert not events.tick(59.9)
    clock.now += 0.1
    assert events.tick(60.0)
    assert not events.tick(60.0)
    (said,) = events.latest(1)
    assert (said.at, said.subject, said.bad) == (60.0, "backend web/web-1", True)
    assert said.text == "2 more, which the log has, were left out within a minute; the last: up"
    assert events.add(61.0, "backend web/web-1", "down", bad=True) is not None, "one at once"
    assert events.add(62.0, "backend web/web-1", "up") is None
    clock.now += 60
    assert events.tick(120.0)
    clock.now += 60
    assert not events.tick(180.0), "a minute of quiet"
    assert all(events.add(200.0, "backend web/web-1", f"flap {n}") for n in range(PER_MINUTE - FOR_BAD))
    assert events._minutes.keys() == {"backend web/web-1"}, "nothing is remembered of the others"


def test_good_news_takes_no_bad_news_place() -> None:
    """A MUX that tells much while it comes and goes, and is lost in the end."""
    events = Events(Clock())
    for n in range(3 * PER_MINUTE):
        events.add(float(n), "mux mux2", f"received flow {n}")
    lost = [events.add(61.0, "mux mux2", f"lost {n}", bad=True) for n in range(FOR_BAD + 1)]
    assert None not in lost[:FOR_BAD]
    assert lost[FOR_BAD] is None


async def test_what_a_node_says_without_end_is_bounded_and_outlives_the_manager(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        for n in range(100):
            controller.hub.event(site.muxes[0], f"no. {n}")
    async with running(tmp_path) as controller:
        texts = [one.text for one in controller.events.latest(KEPT, Wanted("mux mux1"))]
    assert len(texts) == PER_MINUTE - FOR_BAD + 1
    assert texts[-1].endswith("were left out within a minute; the last: no. 99")


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
        await controller.writer.apply([service()], WHO)
        await until(lambda: controller.events.last > 5)
        last = controller.events.last
    async with running(tmp_path) as controller:
        texts = {(one.subject, one.text) for one in controller.events.latest(100)}
        assert ("service web", "created by operator:ada: 203.0.113.10 tcp 80, 2 backends") in texts
        assert any(subject == "mux mux1" and "connected from" in text for subject, text in texts)
        assert controller.events.last >= last
        controller.chronicle.happened("mux mux1", "and on")
        assert controller.events.latest(1)[0].id == controller.events.last > last


async def test_a_manager_that_is_killed_loses_at_most_the_last_moment(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    async with running(tmp_path, store) as controller:
        controller.chronicle.happened("mux mux1", "an hour ago")
        other = await SqliteStore.open(tmp_path)  # what another process would find now
        for _ in range(100):
            if await other.events():
                break
            await asyncio.sleep(0.05)
        assert [one.text for one in await other.events()] == ["an hour ago"]
        await other.close()


async def test_an_operators_change_is_an_event_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        await controller.writer.apply([service()], WHO)
        table = service()
        table["backend"][0]["weight"] = 3
        await controller.writer.apply([table], WHO, why="more memory")
        await controller.writer.drain_backend("web", "web-2", WHO, drain=True)
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
            controller.chronicle.happened("mux mux1", "while it was full")
            await controller.journal.write()
            assert await store.events() == []
        await controller.journal.write()
        kept = [one.text for one in await store.events()]
        assert kept[0] == "while it was full"
        assert kept[1].startswith("cannot write its store, and goes on without: the disk is full")
