# SPDX-License-Identifier: Apache-2.0
"""A store that is older than the orders that were given out: nobody is led back by it, and everybody is told."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lb.doctor.fleet import check_history
from lb.errors import AccessError
from lb.node.messages import StateMessage, encode, parse_to_node
from manager.api.view import View
from manager.controller.controller import Controller
from manager.store.interface import ConflictError
from manager.store.lineage import Behind, Marks, StoreStanding, newer
from manager.store.sqlite import FILE, WITNESS, SqliteStore
from tests.manager.fake_nodes import FakeNode, Site, running, until
from tests.manager.fleet import plain, service

WHO = "operator:alice"
OURS = StoreStanding(5, "a", 60)
TAKEN_OVER = StoreStanding(9, "b", 60, floor=8)


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [
        (Marks(), OURS, None),
        (Marks(5, 7, "a", 60), OURS, None),
        (Marks(4, 9000, "a", 12), OURS, None),
        (Marks(5, 7, "a", 61), OURS, "orders of revision 61, and this store is of revision 60"),
        (Marks(4, 7, "a", 80), OURS, "orders of revision 80, and this store is of revision 60"),
        (Marks(6, 7, "a", 50), OURS, "orders of term 6, and this manager is of term 5"),
        (Marks(6, 7), OURS, "orders of term 6, and this manager is of term 5"),
        (Marks(3, 7, "b", 1), OURS, "orders of another store than this one"),
        (Marks(4, 7), OURS, None),  # a node of a version that knew no marks, of an earlier start
        (Marks(5, 7), OURS, None),
        (Marks(5, 101), OURS, "orders that this store knows nothing of"),
        (Marks(7, 7, "a", 80), TAKEN_OVER, None),
        (Marks(7, 7, "x", 800), TAKEN_OVER, None),
        (Marks(9, 7, "b", 61), TAKEN_OVER, "orders of revision 61, and this store is of revision 60"),
        (Marks(8, 7, "x", 1), TAKEN_OVER, "orders of another store than this one"),
        (Marks(4, 7, "a", 50), replace(OURS, ends={3: 40, 4: 50}), None),
        (
            Marks(4, 7, "a", 51),
            replace(OURS, ends={3: 40, 4: 50}),
            "orders of revision 51 of term 4, which in this store ended with 50",
        ),
    ],
)
def test_who_had_newer_orders(theirs: Marks, ours: StoreStanding, why: str | None) -> None:
    assert newer(theirs, ours, 100) == why


def marks_of(controller: Controller) -> Marks:
    hub = controller.hub
    return Marks(hub.term, hub.generation, hub.lineage, hub.revision)


def backup(source: Path, target: Path) -> None:
    """As docs/operating.md tells."""
    with sqlite3.connect(source / FILE) as database, sqlite3.connect(target) as copy:
        database.backup(copy)


def put_back(directory: Path, copy: Path) -> None:
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
        (directory / name).unlink(missing_ok=True)
    shutil.copy(copy, directory / FILE)


async def two_lives(directory: Path) -> tuple[Marks, Mapping[str, Any]]:
    """A service, a backup, and one service more; what nodes have in the end."""
    async with running(directory) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        backup(directory, directory / "backup")
        await controller.writer.apply([service("later", "203.0.113.11")], WHO)
        await until(lambda: all("later" in mux.state["services"] for mux in site.muxes))
        return marks_of(controller), site.muxes[0].state


@pytest.mark.parametrize("witness", [True, False], ids=["on the same machine", "on another"])
async def test_a_backup_of_the_same_term_leads_nobody_back(tmp_path: Path, witness: bool) -> None:
    marks, _ = await two_lives(tmp_path)
    put_back(tmp_path, tmp_path / "backup")
    if not witness:
        (tmp_path / WITNESS).unlink()
    async with running(tmp_path) as controller:
        assert bool(controller.hub.behind) is witness, "the file beside the store tells it before any node is there"
        site = Site()
        for node in site.nodes:
            node.marks = marks
        site.connect(controller)
        await asyncio.sleep(0.3)
        assert [node.states for node in site.nodes] == [[]] * 5, "somebody was told of an older state"
        with pytest.raises(ConflictError, match="mux:mux1 has orders of revision 2, and this store is of revision 1"):
            await controller.writer.apply([service("more", "203.0.113.12")], WHO)
        assert (await controller.writer.apply([service("more", "203.0.113.12")], WHO, dry_run=True)).change.lines
        status = plain(View(controller).manager.status())["history"]
        assert status["nodes"] == ["agent:host1", "agent:host2", "agent:host3", "mux:mux1", "mux:mux2"]
        assert "what was revoked since is valid again" in status["why"]
        assert [row["state"] for row in plain(View(controller).nodes.muxes())] == ["refused", "refused"]
        assert [finding.check for finding in check_history(status)] == ["history"]
        assert any("gets no orders" in event.text for event in controller.events.latest(50))
    store = await SqliteStore.open(tmp_path)
    term = await store.take_over(0)
    await store.close()
    assert term > marks.term
    async with running(tmp_path) as controller:
        for node in site.nodes:
            node.states.clear()
            node.connect(controller)
        await until(lambda: all(mux.states and "web" in mux.state["services"] for mux in site.muxes))
        assert controller.hub.lineage != marks.lineage
        assert not controller.hub.behind
        await controller.writer.apply([service("more", "203.0.113.12")], WHO)


@pytest.mark.parametrize("witness", [True, False])
async def test_an_empty_store_starts_serves_says_so_and_takes_no_change(tmp_path: Path, witness: bool) -> None:
    marks, _ = await two_lives(tmp_path)
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", *([] if witness else [WITNESS])):
        (tmp_path / name).unlink(missing_ok=True)
    async with running(tmp_path) as controller:
        assert bool(controller.hub.behind) is witness
        mux = FakeNode("mux", "mux1", "10.0.1.11")
        mux.marks = marks
        mux.connect(controller)
        await asyncio.sleep(0.2)
        assert mux.states == []
        with pytest.raises(ConflictError, match="the store is older than the orders that were given out"):
            await controller.writer.apply([service()], WHO)
    async with running(tmp_path) as controller:  # however often it is started, and before a node is there
        with pytest.raises(ConflictError, match="mux:mux1 has orders of another store than this one"):
            await controller.writer.apply([service()], WHO)
        mux.connect(controller)
        await asyncio.sleep(0.2)
        assert mux.states == []


async def test_a_lost_wal_is_an_older_store(tmp_path: Path) -> None:
    marks, _ = await two_lives(tmp_path)
    put_back(tmp_path, tmp_path / "backup")
    async with running(tmp_path) as controller:
        why = plain(View(controller).manager.status())["history"]["why"]
        assert "the file beside manager.db tells of orders of revision 2, and this store is of revision 1" in why
        assert marks.revision == 2


async def test_one_node_that_lies_stops_changes_until_it_is_deleted_and_no_verdict(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([{**service(), "probe": {"type": "tcp"}}], WHO)
        for n in (1, 2):
            site.hosts[n - 1].report("web", f"web-{n}", True)
        await until(lambda: site.muxes[0].announces() != set())
        liar = FakeNode("mux", "mux9", "10.0.1.19")
        liar.marks = Marks(10**12, 1, "x", 1)
        liar.connect(controller)
        with pytest.raises(ConflictError, match="mux:mux9 has orders of term 1000000000000"):
            await controller.writer.delete_services(["web"], WHO)
        site.hosts[0].report("web", "web-1", False)
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "down")
        liar.leave()
        await controller.node_orders.forget("mux", "mux9", WHO)
        await controller.writer.delete_services(["web"], WHO)
    async with running(tmp_path) as controller:
        assert not controller.hub.behind


@pytest.mark.parametrize("term", [2**53 - 1, 2**52 + 1])
async def test_a_node_that_says_a_term_that_never_was_is_not_let_in_and_uses_up_no_terms(
    tmp_path: Path, term: int
) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        liar = FakeNode("mux", "mux9", "10.0.1.19")
        liar.marks = Marks(term, 1, "x", 1)
        with pytest.raises(AccessError, match=f"mux:mux9 says that it has orders of term {term}, which no manager"):
            liar.connect(controller)
        assert not controller.hub.behind
        await controller.writer.apply([service()], WHO)
        await until(lambda: "web" in site.muxes[0].state.get("services", {}))
        controller.journal.behind({"nodes": {"mux:mux9": "orders"}, "term": term})  # of a version that let it in
    store = await SqliteStore.open(tmp_path)
    await store.take_over(0)
    await store.close()
    async with running(tmp_path) as controller:
        order = StateMessage(controller.hub.term, 1, "", {}, controller.hub.lineage, controller.hub.revision)
        assert parse_to_node(encode(order)) == order, "no node can read what this manager says any more"
        mux = FakeNode("mux", "mux1", "10.0.1.11").connect(controller)
        await until(lambda: bool(mux.states))
        mux.leave()
        mux.marks = marks_of(controller)  # and who was told of the high term is let in again
        mux.connect(controller)
        assert not controller.hub.behind


async def test_a_backup_that_was_changed_before_nodes_came_back_leads_nobody_astray(tmp_path: Path) -> None:
    """Its revision has the number that theirs has by then, and is another."""
    marks, _ = await two_lives(tmp_path)
    put_back(tmp_path, tmp_path / "backup")
    (tmp_path / WITNESS).unlink()
    async with running(tmp_path) as controller:
        await controller.writer.apply([service("other", "203.0.113.12")], WHO)
        assert controller.hub.revision == marks.revision
        mux = FakeNode("mux", "mux1", "10.0.1.11")
        mux.marks = marks
        mux.connect(controller)
        await asyncio.sleep(0.2)
        assert mux.states == [], "it was told of another history than its own"
        with pytest.raises(ConflictError, match="mux:mux1 has orders of revision 2 of term 1, which in this store"):
            await controller.writer.apply([service("more", "203.0.113.13")], WHO)


async def test_a_backup_is_noticed_also_where_the_manager_had_begun_anew_since_and_changes_came_first(
    tmp_path: Path,
) -> None:
    """Then both are of one term, and this store is of a later revision; nodes have orders that it never gave."""
    await two_lives(tmp_path)
    async with running(tmp_path) as controller:
        Site().connect(controller)
        await controller.writer.apply([service("last", "203.0.113.13")], WHO)
        marks = marks_of(controller)
    put_back(tmp_path, tmp_path / "backup")
    (tmp_path / WITNESS).unlink()
    async with running(tmp_path) as controller:
        assert controller.hub.term == marks.term
        for number in range(4):
            await controller.writer.apply([service(f"other{number}", f"203.0.113.{20 + number}")], WHO)
        assert controller.hub.revision > marks.revision
        mux = FakeNode("mux", "mux1", "10.0.1.11")
        mux.marks = marks
        mux.connect(controller)
        await asyncio.sleep(0.2)
        assert mux.states == [], "it was told of another history than its own"
        with pytest.raises(ConflictError, match="mux:mux1 has orders of term 2, which this manager did not give"):
            await controller.writer.apply([service("more", "203.0.113.14")], WHO)


async def test_a_node_that_was_forgotten_comes_back_with_the_orders_that_it_had(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        mux = FakeNode("mux", "mux1", "10.0.1.11").connect(controller)
        await controller.writer.apply([service()], WHO)
        await until(lambda: bool(mux.states) and "web" in mux.state.get("services", {}))
        mux.leave()
        await controller.node_orders.forget("mux", "mux1", WHO)
        mux.marks = marks_of(controller)
        mux.connect(controller)
        assert not controller.hub.behind


async def test_whoever_has_the_orders_of_an_earlier_start_of_this_store_is_welcome(tmp_path: Path) -> None:
    had = []
    for number in range(4):
        async with running(tmp_path) as controller:
            for marks in had:
                mux = FakeNode("mux", "mux1", "10.0.1.11")
                mux.marks = marks
                mux.connect(controller)
                await until(lambda found=mux: found.states != [])  # type: ignore[misc]
                mux.leave()
            await controller.writer.apply([service(port=80 + number)], WHO)
            had.append(marks_of(controller))
            other = await SqliteStore.open(tmp_path)
            await other.revoke([str(number)], 1.0, "lost")
            await other.close()
            await until(lambda: controller.hub.revision == len(had) + 1)
            had.append(marks_of(controller))


async def test_a_mux_is_forgotten_whole_whatever_else_is_behind(tmp_path: Path) -> None:
    """It was drained, and no change is taken."""
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        await controller.node_orders.drain_mux("mux2", WHO, drain=True)
        site.muxes[1].leave()
        liar = FakeNode("mux", "mux9", "10.0.1.19")
        liar.marks = Marks(10**12, 1, "x", 1)
        liar.connect(controller)
        await controller.node_orders.forget("mux", "mux2", WHO)
        liar.leave()
        await controller.node_orders.forget("mux", "mux9", WHO)
        assert controller.hub.entries.keys() == {"mux:mux1", "agent:host1", "agent:host2", "agent:host3"}
    async with running(tmp_path) as controller:
        assert not controller.hub.behind
        assert controller.hub.entries.keys() == {"mux:mux1", "agent:host1", "agent:host2", "agent:host3"}
        assert controller.desired.mux_drains == {}, "a MUX of that name that joins later would drain"


async def test_a_revocation_is_a_part_of_the_history(tmp_path: Path) -> None:
    """Also by another process; nodes hear of it though their orders are the same."""
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service()], WHO)
        assert await controller.followers.wait(5.0) == []
        before, states = marks_of(controller), len(site.muxes[0].states)
        other = await SqliteStore.open(tmp_path)
        await other.revoke(["AB"], 1.0, "lost")
        await other.close()
        await until(lambda: controller.hub.revision == before.revision + 1)
        await until(lambda: len(site.muxes[0].states) == states + 1, "nobody was told")
        assert site.muxes[0].states[-1] == site.muxes[0].states[-2]
    assert newer(replace(before, revision=before.revision + 1), StoreStanding(9, before.lineage, before.revision), 0)


def test_of_many_nodes_a_few_are_named() -> None:
    behind = Behind()
    for number in range(9):
        assert behind.add(f"mux:mux{number}", Marks(number), "orders of term 9")
    assert not behind.add("mux:mux1", Marks(3), "orders of term 9")
    assert "and 4 more nodes have newer ones" in behind.sentence
    assert behind.term == 8
