# SPDX-License-Identifier: Apache-2.0
"""The node stream, both ends: states and changes, acknowledgements, terms, duplicates, and a manager that goes away."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import msgspec
import pytest
from aiohttp import WSMsgType, web
from structlog.testing import capture_logs

from lb.errors import MessageError
from lb.node import client as client_module
from lb.node.cache import Cached
from lb.node.messages import Ack, FlowGroup, FlowsMessage, HealthReport, Hello, NodeState, StatusMessage, digest, encode
from manager.nodes import stream as stream_module
from manager.nodes.node_budget import PER_MESSAGE, Dues
from manager.nodes.stream import StreamConnection
from manager.trust.trust import Peer
from tests.manager.stage import StageManager, StageNode, until

STATE: NodeState = {"services": {"web": {"vip": "203.0.113.10"}, "dns": {"vip": "203.0.113.53"}}}
OTHER: NodeState = {"services": {"web": {"vip": "203.0.113.11"}, "dns": STATE["services"]["dns"]}}


def run(tmp_path: Path, test: Callable[[StageManager], Awaitable[None]], **options: Any) -> list[dict[str, Any]]:
    """A test with a manager that is not serving yet; returns the log."""

    async def main() -> None:
        async with asyncio.timeout(30):
            await test(StageManager(tmp_path, **options))

    with capture_logs() as logs:
        asyncio.run(main())
    return [dict(line) for line in logs]


def lines(logs: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == event]


def test_a_node_joins_gets_its_state_and_acknowledges_it(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: manager.hub.lives.get("mux:mux1") == (1, STATE), "the acknowledgement")
            assert node.state == STATE
            assert node.client.connected
            assert node.client.problem is None
            cached = node.cache.load()
            assert cached == Cached(1, 1, digest(STATE), STATE, "stage")

    run(tmp_path, test)


def test_a_change_is_sent_as_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        stream_module, "encode", lambda message: (sent.append(msgspec.to_builtins(message)), encode(message))[1]
    )

    async def test(manager: StageManager) -> None:
        many = {f"s{number}": {"vip": f"203.0.113.{number % 256}", "n": number} for number in range(10_000)}
        manager.hub.state = {"services": many}
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
            manager.want({"services": {**many, "s7": {"vip": "203.0.113.77"}}})
            await until(lambda: manager.hub.lives["mux:mux1"][0] == 2, "the change")
            assert node.state == manager.hub.state
        assert [message["type"] for message in sent] == ["state", "delta"]
        assert sent[1]["set"] == {"services": {"s7": {"vip": "203.0.113.77"}}}
        assert sent[1]["remove"] == {}

    run(tmp_path, test)


def test_a_refused_state_is_acknowledged_with_the_reason_and_the_one_before_stays(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
            node.refuse = "203.0.113.11 is local here"
            manager.want(OTHER)
            await until(lambda: manager.hub.refusals, "the refusal")
            assert manager.hub.refusals == [("mux:mux1", 2, "203.0.113.11 is local here")]
            assert node.client.refused == "203.0.113.11 is local here"
            assert (node.state, node.client.generation) == (STATE, 1)
            cached = node.cache.load()
            assert cached is not None
            assert cached.generation == 1
            # What was in the way goes: it is tried again, and a change of the refused state finds its base.
            node.refuse = None
            node.client.retry()
            await until(lambda: manager.hub.lives["mux:mux1"][0] == 2, "the second try")
            assert node.state == OTHER

    run(tmp_path, test)


def test_changes_on_top_of_a_refused_state_need_no_whole_state(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
            node.refuse = "no"
            manager.want(STATE)
            await until(lambda: manager.hub.refusals, "the refusal")
            node.refuse = None
            manager.want(OTHER)
            await until(lambda: node.state == OTHER, "the next state")

    assert lines(run(tmp_path, test), "whole state asked for") == []


def test_without_a_manager_the_last_state_stands_and_when_it_is_back_nothing_flaps(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running():
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
        # Both start anew; the manager comes late.
        node = StageNode(manager, "mux1")
        assert node.state == STATE
        async with node.running():
            await until(lambda: node.client.problem not in (None, "not connected yet"), "the first attempt to fail")
            manager.hub.lives.clear()
            async with manager.serving(term=2):
                await until(lambda: "mux:mux1" in manager.hub.lives, "the manager to know what is live")
                assert node.applied == 0
                assert node.client.term == 2
                manager.want(OTHER)
                await until(lambda: node.state == OTHER, "a change by the new manager")
            await until(lambda: not node.client.connected, "the node to see that it left")
            assert node.state == OTHER

    logs = run(tmp_path, test)
    reasons = [line["reason"] for line in lines(logs, "no manager")]
    assert len(reasons) == len([a for a, b in zip(reasons, [None, *reasons], strict=False) if a != b])  # each once


def test_orders_of_a_lower_term_are_refused(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        token = await manager.token()
        async with manager.serving(term=5), StageNode(manager, "mux1", token).running():
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
        manager.hub.state = OTHER
        node = StageNode(manager, "mux1")
        async with manager.serving(term=4), node.running():
            await until(lambda: manager.hub.refusals, "the refusal")
            assert "order of term 4; this node has orders of term 5" in manager.hub.refusals[0][2]
            assert node.state == STATE

    assert lines(run(tmp_path, test), "order refused")


def test_joining_another_authority_begins_with_terms_anew(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        token = await manager.token()
        async with manager.serving(term=5), StageNode(manager, "mux1", token).running():
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
        (tmp_path / "new").mkdir()
        successor = StageManager(tmp_path / "new")
        successor.hub.state = OTHER
        shutil.rmtree(tmp_path / "mux1" / "identity")
        shutil.copytree(tmp_path / "mux1", tmp_path / "new" / "mux1")
        async with successor.serving(term=1):
            node = StageNode(successor, "mux1", await successor.token())
            assert node.state == STATE
            async with node.running():
                await until(lambda: node.state == OTHER, "the new manager's state")

    run(tmp_path, test)


def test_health_status_and_events_arrive_and_the_newest_wins(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        def report(up: bool) -> HealthReport:
            return HealthReport("web", "web-1", "tunnel", up, "why", 1.0)

        node = StageNode(manager, "mux1")
        for number in range(1000):
            node.client.send_status({"n": number})
            node.client.send_health([report(number % 2 == 1)])
            node.client.send_event(f"event {number}")
        async with manager.serving():
            await node.identity.join(manager.url, await manager.token())
            async with node.running():
                await until(lambda: manager.hub.events[-1:] == ["event 999"], "what was said last")
                assert manager.hub.statuses == [{"n": 999}]
                assert manager.hub.reports["mux:mux1"] == [report(True)]
                assert manager.hub.events[0] == "800 events before these were too many to keep"
                assert len(manager.hub.events) == 201
                node.client.send_status({"n": 999})
                node.client.send_status({"n": 1000})
                await until(lambda: len(manager.hub.statuses) == 2, "the next status")
                assert manager.hub.statuses[1] == {"n": 1000}

    run(tmp_path, test)


def test_the_lease_is_renewed_and_a_new_manager_hears_every_report(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1")
        node.client._lease = 0.3
        node.client.reports = lambda: [HealthReport("web", "web-1", "tunnel", True, "fine", 1.0)]
        async with manager.serving():
            await node.identity.join(manager.url, await manager.token())
            async with node.running():
                await until(lambda: manager.hub.leases.get("mux:mux1", 0) >= 3, "renewals")
                assert len(manager.hub.reports["mux:mux1"]) == 1

    run(tmp_path, test)


def test_a_mux_may_not_speak_as_an_agent(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: node.client.connected, "the connection")
            node.client.send_health([HealthReport("web", "web-1", "agent", False, "lies", 1.0)])
            await until(lambda: "not its to know" in (node.client.problem or ""), "the refusal")
            assert manager.hub.reports.get("mux:mux1", []) == []

    assert any("not its to know" in line["reason"] for line in lines(run(tmp_path, test), "refused"))


def test_parts_of_a_hand_over_arrive_in_order_and_only_muxes_speak_of_flows(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        heard: list[object] = []
        said = [
            FlowsMessage(7, "", "ab", part == 19, 0, (FlowGroup("tcp 203.0.113.10/32 80", "web-1", bytes(8 * 4096)),))
            for part in range(20)
        ]
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            assert not node.client.send_letter(said[0]), "there is no manager yet"
            await until(lambda: node.client.connected, "the connection")
            node.client.letters = heard.append
            assert all(node.client.send_letter(message) for message in said)
            await until(lambda: len(heard) == 20, "all parts")
            assert heard == said
        async with (
            manager.serving(),
            StageNode(manager, "host1", await manager.token("agent"), "agent").running() as node,
        ):
            await until(lambda: node.client.connected, "the connection")
            node.client.send_letter(said[0])
            await until(lambda: "speaks of flows" in (node.client.problem or ""), "the refusal")

    run(tmp_path, test)


def test_a_node_with_the_certificate_of_another_is_refused(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        node.claims = "mux2"
        async with manager.serving(), node.running():
            await until(lambda: "has the certificate of mux:mux1" in (node.client.problem or ""), "the refusal")
            turned_away = "mux:mux1 turned away: the node calls itself 'mux2' and has the certificate of mux:mux1"
            assert set(manager.hub.log) == {turned_away}
            assert node.state is None

    assert any("calls itself 'mux2'" in line["reason"] for line in lines(run(tmp_path, test), "refused"))


def test_the_newer_of_two_with_one_name_is_refused(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as first:
            await until(lambda: first.client.connected, "the first")
            # A copy of the machine, elsewhere: same certificate, another address.
            shutil.copytree(tmp_path / "mux1", tmp_path / "copy", ignore=shutil.ignore_patterns("*.new"))
            manager.streams.connections["mux:mux1"].address = "10.9.9.9"
            second = StageNode(manager, "mux1")
            async with second.running():
                await until(lambda: "is connected already" in (second.client.problem or ""), "the refusal")
            assert first.client.connected
            refusal = "mux:mux1 turned away as a duplicate: mux:mux1 is connected already, from 10.9.9.9"
            assert manager.hub.log[0] == "mux:mux1 arrived"
            assert set(manager.hub.log[1:]) == {refusal}

    run(tmp_path, test)


def test_a_node_that_died_unnoticed_comes_back_at_once(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        async with manager.serving():
            node = StageNode(manager, "mux1", await manager.token())
            async with node.running():
                await until(lambda: node.client.connected, "the first life")
                again = StageNode(manager, "mux1")  # the first one's connection still stands
                async with again.running():
                    await until(lambda: manager.hub.log.count("mux:mux1 arrived") == 2, "the second life")

    run(tmp_path, test)


def test_revoking_ends_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CHECK_INTERVAL", 0.05)

    async def test(manager: StageManager) -> None:
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: node.client.connected, "the connection")
            await manager.store.revoke(list(manager.store.signed), time.time(), "stolen")  # by another process
            await until(lambda: not manager.streams.connections, "the end of the connection")
            await until(lambda: node.client.problem is not None, "the node to know")

    assert any("was revoked: stolen" in line["reason"] for line in lines(run(tmp_path, test), "refused"))


def test_a_certificate_is_renewed_before_it_expires_and_nothing_is_applied_again(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        node = StageNode(manager, "mux1", await manager.token())
        async with manager.serving(), node.running():
            await until(lambda: node.client.connected, "the connection")
            held = node.identity.held
            assert held is not None
            await until(lambda: len(manager.store.signed) >= 4, "three renewals", 20)
            assert node.applied == 1
            assert node.identity.held is not None
            assert node.identity.held.serial != held.serial

    logs = run(tmp_path, test, lifetime=6.0)
    assert lines(logs, "no manager") == []
    assert lines(logs, "refused") == []


def test_an_expired_certificate_says_what_to_do(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        async with manager.serving():
            await node.client.join()
            held = node.identity.held
            assert held is not None
            await asyncio.sleep(max(0.0, held.not_after - time.time() + 1.1))  # it is valid to its last second
            again = StageNode(manager, "mux1")
            async with again.running():
                await until(lambda: "has expired: make a token" in (again.client.problem or ""), "the problem")

    run(tmp_path, test, lifetime=1.0)


@pytest.mark.parametrize("off", [7200.0, -7200.0])
def test_a_clock_that_is_wrong_costs_no_node_its_manager(tmp_path: Path, off: float) -> None:
    """By the node's clock its certificate has expired, or begins in the future; by the manager's it is good."""

    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        node = StageNode(manager, "mux1", await manager.token())
        async with manager.serving():
            await node.client.join()
            again = StageNode(manager, "mux1")
            again.client.wall = lambda: time.time() + off
            async with again.running():
                await until(lambda: manager.hub.lives.get("mux:mux1") == (1, STATE), "the state")
                await until(lambda: len(manager.store.signed) == 2, "a new certificate, for nobody knows the time")
                await until(lambda: again.client.connected, "the connection with it")
                await asyncio.sleep(0.5)
                assert len(manager.store.signed) == 2, "and no storm of them"

    run(tmp_path, test, lifetime=3600)


def test_a_certificate_is_renewed_in_time_by_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """Since it was got a third of its life has passed, whatever the wall clock says."""

    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        began = time.time()
        node.client.wall = lambda: began + 0.1  # it stands still
        async with manager.serving(), node.running():
            await until(lambda: len(manager.store.signed) >= 2, "a renewal")

    run(tmp_path, test, lifetime=6.0)


class Slow:
    """A socket that takes what it is given, and is never acknowledged."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def send_str(self, text: str) -> None:
        self.texts.append(text)


def test_a_node_that_never_acknowledges_makes_the_manager_remember_no_more_than_a_few_states(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        from manager.trust.trust import Peer

        socket: Any = Slow()
        connection = StreamConnection(Peer("mux", "mux1", "1"), "-", Hello(0, 0, "", {}), socket)
        sending = asyncio.create_task(connection.send_states(manager.hub))
        for number in range(100):
            manager.hub.generation += 1
            manager.hub.state = {"services": {"web": number}}
            count = len(socket.texts)
            connection.wake()
            if count < stream_module.UNDER_WAY_MAX:
                await until(lambda count=count: len(socket.texts) > count, "the change to be sent")
            else:
                await asyncio.sleep(0)
        assert len(socket.texts) == stream_module.UNDER_WAY_MAX
        # Once it answers, it gets the newest at once and none of those between.
        last = json.loads(socket.texts[-1])
        connection.said(manager.hub, Ack(1, last["generation"]))
        await until(lambda: len(socket.texts) > stream_module.UNDER_WAY_MAX, "the newest")
        newest = json.loads(socket.texts[-1])
        assert (newest["base"], newest["generation"]) == (last["generation"], manager.hub.generation)
        assert newest["set"] == {"services": {"web": 99}}
        sending.cancel()

    run(tmp_path, test)


async def raw(manager: StageManager, node: StageNode, *texts: str) -> list[str]:
    """Says this on a connection of its own, and returns what comes back until the manager closes."""
    answers = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(manager.url + "/v1/stream", ssl=node.identity.context()) as stream,
    ):
        for text in texts:
            await stream.send_str(text)
        async for frame in stream:
            answers.append(frame.data)
    return answers


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["nonsense"], "a message must be one JSON object"),
        ([encode(Ack(1, 1))], "the first message must be hello"),
        ([encode(Hello(0, 0, "", {})), "{}"], "unknown type"),
    ],
)
def test_what_is_no_message_ends_the_connection_with_the_reason(tmp_path: Path, texts: list[str], reason: str) -> None:
    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        async with manager.serving():
            await node.client.join()
            answers = await raw(manager, node, *texts)
            assert reason in json.loads(answers[-1])["reason"]
            assert not manager.streams.connections

    assert any(reason in line["reason"] for line in lines(run(tmp_path, test), "node dropped"))


def test_a_change_that_does_not_lead_to_its_digest_is_not_applied(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        manager.hub.state = STATE
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
            connection = manager.streams.connections["mux:mux1"]
            assert connection._sent is not None
            connection._sent.state = {"services": {"web": {}}}  # the manager errs about what the node has
            manager.want(OTHER)
            await until(lambda: node.state == OTHER, "the whole state, asked for")

    assert lines(run(tmp_path, test), "whole state asked for")


def test_a_wrong_authority_is_told_apart_from_no_network(tmp_path: Path) -> None:
    async def test(manager: StageManager) -> None:
        node = StageNode(manager, "mux1", await manager.token())
        async with manager.serving():
            await node.client.join()
        (tmp_path / "x").mkdir()
        impostor = StageManager(tmp_path / "x")
        impostor.port = manager.port
        async with impostor.serving(), node.running():
            await until(lambda: "not to be trusted" in (node.client.problem or ""), "the refusal")
            assert impostor.hub.log == []

    run(tmp_path, test)


def test_backoff_is_bounded() -> None:
    assert client_module.BACKOFF_MIN < client_module.BACKOFF_MAX <= 5


async def test_a_node_that_leaves_while_its_connection_is_set_up_is_no_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp asserts then that there is a transport; any other failure stays what it is."""
    manager = StageManager(tmp_path)
    monkeypatch.setattr(manager.trust, "node", lambda *_: Peer("mux", "mux1"))

    async def left(_: web.WebSocketResponse, request: Mock) -> None:
        request.transport = None
        raise AssertionError

    async def broken(_: web.WebSocketResponse, __: Mock) -> None:
        raise AssertionError

    monkeypatch.setattr(web.WebSocketResponse, "prepare", left)
    with pytest.raises(ConnectionResetError, match="left while its connection was set up"):
        await manager.streams.handle(Mock())
    monkeypatch.setattr(web.WebSocketResponse, "prepare", broken)
    request = Mock()
    request.transport.is_closing.return_value = False
    with pytest.raises(AssertionError):
        await manager.streams.handle(request)


@pytest.mark.parametrize("size", [1, 2 * stream_module.LONG])
async def test_others_have_half_of_the_time_while_a_node_is_heard_that_never_stops(tmp_path: Path, size: int) -> None:
    """Its messages are there already, so nothing of them would be waited for."""
    frame = Mock(type=WSMsgType.TEXT, data=encode(StatusMessage({"at": 1.0, "newer": ["x" * 1000] * (size // 1000)})))
    heard: list[float] = []

    class Socket:
        async def __aiter__(self) -> AsyncIterator[Mock]:
            for _ in range(20):
                yield frame

    def status(connection: StreamConnection, body: Mapping[str, Any]) -> None:
        assert "newer" in body
        end = time.thread_time() + 0.01
        while time.thread_time() < end:  # as long as it takes
            pass
        heard.append(time.monotonic())

    manager = StageManager(tmp_path)
    manager.hub.status = status  # type: ignore[method-assign]
    peer = Peer("mux", "mux1", "1", time.time() + 60)
    connection = StreamConnection(peer, "test", Hello(0, 0, "", {}), Socket())  # type: ignore[arg-type]
    turns: list[float] = []

    async def others() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0.001)

    beside = asyncio.create_task(others())
    await manager.streams._receive(Socket(), connection)  # type: ignore[arg-type]
    beside.cancel()
    assert len(heard) == 20
    between = [sum(first < turn < second for turn in turns) for first, second in itertools.pairwise(heard)]
    assert min(between) >= 1
    assert heard[-1] - heard[0] >= 19 * 2 * 0.01


async def test_a_status_that_no_node_of_ours_says_is_refused_before_anybody_hears_it() -> None:
    dues = Dues(time.monotonic)
    for rows in ([{"name": []}], [{"name": "web", "more": "x" * 100_000}]):
        with pytest.raises(MessageError):
            await stream_module._read(encode(StatusMessage({"services": rows})), dues)
    assert dues.spent >= 2 * PER_MESSAGE  # and is paid for
