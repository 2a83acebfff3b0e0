# SPDX-License-Identifier: Apache-2.0
"""A node applies one state at a time for as long as it lives; managers and certificates come and go beside it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.errors import IoError
from lb.node import cache as caching
from lb.node import client as client_module
from lb.node.cache import Cache, Cached
from lb.node.client import refusal_of
from lb.node.messages import Ack, Delta, EventMessage, FlowAnswer, FlowQuestion, Hello, NodeState, StateMessage
from lb.node.outbox import EVENTS_MAX, Outbox
from manager.nodes.stream import StreamConnection
from tests.manager.stage import StageManager, StageNode, until


def state(number: int) -> NodeState:
    return {"services": {"web": {"vip": f"203.0.113.{number}"}, f"s{number}": {"n": number}}}


class SlowNode(StageNode):
    """Applying takes until it is let go, as a helper thread's work does: nothing ends it from outside."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.let_go = asyncio.Event()
        self.now = self.most = self.begun = self.cancelled = 0
        self.left_out: dict[str, str] = {}
        self.errors: list[Exception] = []

    async def _apply(self, state: NodeState, delta: Delta) -> dict[str, str]:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.let_go.wait()
            if self.errors:
                raise self.errors.pop(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        assert self.state is None or delta, "what differs from what was live"
        await super()._apply(state, delta)
        return self.left_out


def run(tmp_path: Path, test: Callable[[StageManager], Awaitable[None]], **options: Any) -> list[dict[str, Any]]:
    async def main() -> None:
        async with asyncio.timeout(30):
            await test(StageManager(tmp_path, **options))

    with capture_logs() as logs:
        asyncio.run(main())
    return [dict(line) for line in logs]


def test_a_manager_that_starts_again_ends_no_apply_and_begins_no_second(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = state(1)
        token = await manager.token()
        node = SlowNode(manager, "mux1", token)
        async with node.running():
            async with manager.serving():
                await until(lambda: node.now == 1, "the apply to begin")
            await until(lambda: not node.client.connected, "the manager's end")
            manager.hub.state, manager.hub.generation = state(2), 2
            async with manager.serving(term=2):
                await until(lambda: node.client.connected, "the next manager")
                await asyncio.sleep(0.2)
                assert (node.begun, node.now) == (1, 1)
                assert node.state is None
                node.let_go.set()
                await until(lambda: node.state == state(2), "the newest state")
                await until(lambda: manager.hub.lives.get("mux:mux1") == (2, state(2)), "the acknowledgement")
                kept = node.cache.load()
                assert kept is not None
                assert (kept.term, kept.generation, kept.state) == (2, 2, state(2))
            assert (node.cancelled, node.most, node.begun) == (0, 1, 2)

    run(tmp_path, test)


def test_a_new_certificate_ends_no_apply(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = state(1)
        node = SlowNode(manager, "mux1", await manager.token())
        async with manager.serving(), node.running():
            await until(lambda: node.now == 1, "the apply to begin")
            await until(lambda: len(manager.store.signed) >= 3, "two renewals", 20)
            assert (node.begun, node.now, node.cancelled) == (1, 1, 0)
            node.let_go.set()
            await until(lambda: manager.hub.lives.get("mux:mux1") == (1, state(1)), "the acknowledgement")
            assert node.most == 1

    run(tmp_path, test, lifetime=6.0)


def test_of_what_comes_during_an_apply_the_newest_is_next(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = state(1)
        node = SlowNode(manager, "mux1", await manager.token())
        async with manager.serving(), node.running():
            await until(lambda: node.now == 1, "the apply to begin")
            for number in (2, 3, 4):
                manager.want(state(number))
                await asyncio.sleep(0.05)
            node.let_go.set()
            await until(lambda: manager.hub.lives.get("mux:mux1", (0,))[0] == 4, "the newest")
            assert (node.state, node.begun) == (state(4), 2)
            manager.want(state(5))  # and changes are counted from what is live
            await until(lambda: manager.hub.lives["mux:mux1"][0] == 5, "the change after it")
            assert node.state == state(5)

    assert [line for line in run(tmp_path, test) if line["event"] == "whole state asked for"] == []


def test_another_authority_waits_for_the_apply_under_way(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = state(1)
        first = SlowNode(manager, "mux1", await manager.token())
        first.let_go.set()
        async with manager.serving(term=5), first.running():
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
        (tmp_path / "new").mkdir()
        successor = StageManager(tmp_path / "new")
        successor.hub.state = state(2)
        shutil.rmtree(tmp_path / "mux1" / "identity")
        shutil.copytree(tmp_path / "mux1", tmp_path / "new" / "mux1")
        async with successor.serving(term=1):
            node = SlowNode(successor, "mux1", await successor.token())
            node.let_go.set()
            async with node.running():
                await until(lambda: node.state == state(2), "the new manager's state")
                await until(lambda: "mux:mux1" in successor.hub.lives, "the acknowledgement")
                kept = node.cache.load()
                assert kept is not None
                assert kept.term == 1

    run(tmp_path, test)


def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        on_disk: list[int] = []
        save = node.cache.save

        def saved(cached: Cached, delta: Any = None) -> None:
            assert cached.generation not in acknowledged
            save(cached, delta)
            on_disk.append(cached.generation)

        acknowledged: list[int] = []
        live = manager.hub.live

        def hear(connection: StreamConnection, generation: int, held: NodeState, left_out: Mapping[str, str]) -> None:
            acknowledged.append(generation)
            assert generation in on_disk
            live(connection, generation, held, left_out)

        monkeypatch.setattr(node.cache, "save", saved)
        monkeypatch.setattr(manager.hub, "live", hear)
        async with manager.serving(), node.running():
            for number in (1, 2, 3):
                manager.want(state(number))
                await until(lambda: acknowledged[-1:] == [manager.hub.generation], "the acknowledgement")
        assert on_disk == acknowledged

    run(tmp_path, test)


def test_no_acknowledgement_waits_for_the_file_of_changes_to_be_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes a fifth of a second for ten thousand services; it is done once nothing else is to do."""
    monkeypatch.setattr(caching, "_FOLD_FROM", 100)
    monkeypatch.setattr(caching, "_PATIENCE", 1000)
    monkeypatch.setattr(client_module, "LULL", 0.05)

    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        saved: list[tuple[int, bool]] = []
        said: list[tuple[int, bool]] = []
        save, say = node.cache.save, node.client._say

        def saving(cached: Cached, delta: Any = None) -> None:
            save(cached, delta)
            saved.append((cached.generation, delta is None))

        def saying(ack: Ack) -> None:
            said.append(saved[-1])
            say(ack)

        monkeypatch.setattr(node.cache, "save", saving)
        monkeypatch.setattr(node.client, "_say", saying)
        async with manager.serving(), node.running():
            for number in range(1, 7):
                manager.want(state(number))
                await until(lambda: len(said) == number, "the acknowledgement")  # noqa: B023
            await until(lambda: saved[-1] == (manager.hub.generation, True), "a whole state")
            assert not node.cache.due
        assert [whole for _, whole in said] == [False] * 6, "each waited for its own change alone"
        found = Cache(node.directory / "node", "mux:mux1").load()
        assert found is not None
        assert (found.generation, found.state) == (manager.hub.generation, state(6))

    run(tmp_path, test)


def test_what_failed_is_tried_again_until_it_is_live(tmp_path: Path) -> None:
    """Also what nobody meant to happen, such as a key that is missing in the middle of an apply."""

    async def test(manager: StageManager) -> None:
        manager.hub.state = state(1)
        node = SlowNode(manager, "mux1", await manager.token())
        node.let_go.set()
        node.errors = [IoError("No such file or directory"), KeyError("web")]
        async with manager.serving(), node.running():
            await until(lambda: node.state == state(1), "the third try")
            await until(lambda: manager.hub.lives.get("mux:mux1") == (1, state(1)), "the acknowledgement")
        assert [reason for _, _, reason in manager.hub.refusals] == ["No such file or directory", "KeyError: 'web'"]

    logs = run(tmp_path, test)
    refused = [line for line in logs if line["event"] == "state refused"]
    assert ["exc_info" in line for line in refused] == [False, True]


def test_what_is_left_out_is_acknowledged_and_tried_again_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acks: list[Ack] = []
    hellos: list[Hello] = []
    said = StreamConnection._acknowledged

    def heard(self: StreamConnection, hub: Any, ack: Ack) -> None:
        acks.append(ack)
        said(self, hub, ack)

    monkeypatch.setattr(StreamConnection, "_acknowledged", heard)
    began = StreamConnection.__init__

    def begin(self: StreamConnection, peer: Any, address: str, hello: Hello, *others: Any) -> None:
        hellos.append(hello)
        began(self, peer, address, hello, *others)

    monkeypatch.setattr(StreamConnection, "__init__", begin)

    async def test(manager: StageManager) -> None:
        manager.hub.state = state(1)
        node = SlowNode(manager, "mux1", await manager.token())
        node.let_go.set()
        node.left_out = {"web": "no\nroom " + "x" * 300}
        async with node.running():
            async with manager.serving():
                await until(lambda: acks, "the acknowledgement")
                assert manager.hub.lives["mux:mux1"][0] == 1, "everything else is live"
                assert acks[0].left_out.keys() == {"web"}
                assert acks[0].left_out["web"].startswith("no room xxx")
                assert len(acks[0].left_out["web"]) == 200
                await until(lambda: node.applied >= 3, "it to be tried again")
                assert len(acks) == 1, "nothing new, nothing said"
            async with manager.serving():
                await until(lambda: len(hellos) == 2, "the next connection")
                assert hellos[1].left_out.keys() == {"web"}
                node.left_out = {}
                node.client.retry()
                await until(lambda: acks[-1].left_out == {}, "that it is over")
                assert acks[-1].error is None

    logs = run(tmp_path, test)
    assert [line["what"] for line in logs if line["event"] == "left out"] == ["web"]
    assert [line["what"] for line in logs if line["event"] == "no longer left out"] == ["web"]


# -- whose orders are obeyed ------------------------------------------------------------------------------------------


def order(term: int, lineage: str, revision: int) -> StateMessage:
    return StateMessage(term, 1, "", {}, lineage, revision)


@pytest.mark.parametrize(
    ("term", "lineage", "revision", "reason"),
    [
        (5, "a", 10, None),
        (5, "a", 11, None),
        (6, "a", 10, None),
        (5, "", 0, None),  # a manager that knows no marks
        (4, "a", 11, "an order of term 4"),
        (5, "a", 9, "the store is older than it was"),  # a backup put back in the same term
        (6, "a", 9, "the store is older than it was"),  # and started twice since
        (5, "b", 1, "from another store than before"),
        (6, "b", 1, None),  # take-over
    ],
)
def test_orders_are_obeyed_along_one_history(term: int, lineage: str, revision: int, reason: str | None) -> None:
    found = refusal_of(order(term, lineage, revision), Cached(5, 7, "", {}, "a", 10))
    assert found is None if reason is None else reason in str(found)
    assert refusal_of(order(5, lineage, revision), Cached(5, 7, "", {})) is None, "this node knows no marks"


# -- words that were not said -----------------------------------------------------------------------------------------


def test_events_of_a_connection_that_ended_are_told_on_the_next() -> None:
    outbox = Outbox(10.0)
    for number in range(3):
        outbox.event(f"event {number}")
    taken = outbox.take()
    assert [message.text for message in taken if isinstance(message, EventMessage)] == ["event 0", "event 1", "event 2"]
    outbox.event("event 3")
    outbox.put_back(taken[1:])
    outbox.begin(Hello(0, 0, "", {}), ())
    again = [message.text for message in outbox.take() if isinstance(message, EventMessage)]
    assert again == ["event 1", "event 2", "event 3"]


def test_of_too_many_events_that_are_put_back_it_is_said_how_many_are_lost() -> None:
    outbox = Outbox(10.0)
    for number in range(EVENTS_MAX):
        outbox.event(f"event {number}")
    taken = outbox.take()
    outbox.event("newest")
    outbox.put_back(taken)
    texts = [message.text for message in outbox.take() if isinstance(message, EventMessage)]
    assert texts[0] == "1 events before these were too many to keep"
    assert (texts[1], texts[-1], len(texts)) == ("event 1", "newest", EVENTS_MAX + 1)


@pytest.mark.parametrize("error", [IoError("no worker runs now"), IndexError("list index out of range")])
def test_a_question_that_cannot_be_answered_is_answered_with_why(tmp_path: Path, error: Exception) -> None:
    def answer(question: FlowQuestion) -> FlowAnswer:
        raise error

    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        node.client.answer = answer
        async with manager.serving(), node.running():
            await until(lambda: manager.streams.connections and node.client.connected, "the connection")
            question = FlowQuestion(7, "tcp", "192.0.2.1", 1, "203.0.113.1", 80)
            manager.streams.connections["mux:mux1"].tell(question)
            await until(lambda: manager.hub.answers, "the answer")
            assert (manager.hub.answers[0].serial, str(error) in str(manager.hub.answers[0].error)) == (7, True)
            assert node.client.connected

    run(tmp_path, test)
