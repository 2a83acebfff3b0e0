# SPDX-License-Identifier: Apache-2.0
"""The manager has all nodes examined: one round at a time, each heard once, and none of them waited for for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lb.node.messages import Examination, ExamineQuestion, FlowAnswer, NodeFinding, Question
from manager.nodes.node_requests import Questions, Rounds
from tests.manager.api.test_server import api


class Node:
    """A connection that answers when it is let."""

    def __init__(self, questions: Questions[Examination], name: str) -> None:
        self._questions, self._name = questions, name
        self.asked: list[int] = []

    def tell(self, letter: ExamineQuestion) -> bool:
        self.asked.append(letter.serial)
        return True

    def answer(self, fine: int) -> None:
        self._questions.answered(self._name, Examination(self.asked[-1], fine=fine))


async def turns() -> None:
    """The loop turns until nobody has anything to do any more; a time would say nothing on a busy machine."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_those_who_ask_while_a_round_is_under_way_share_the_next_one() -> None:
    questions: Questions[Examination] = Questions(ExamineQuestion)
    rounds, node = Rounds(questions), Node(questions, "mux:mux1")

    def ask() -> asyncio.Task[Mapping[str, Examination | str]]:
        return asyncio.create_task(rounds.ask(lambda: {"mux:mux1": node}, 5.0))

    first = ask()
    await turns()
    later = [ask() for _ in range(20)]
    await turns()
    assert len(node.asked) == 1
    node.answer(1)
    assert (await first)["mux:mux1"] == Examination(node.asked[0], fine=1)
    await turns()
    assert len(node.asked) == 2
    node.answer(2)
    found = await asyncio.gather(*later)
    assert {answer["mux:mux1"] for answer in found} == {Examination(node.asked[1], fine=2)}
    assert len(node.asked) == 2


async def test_a_round_that_nobody_waits_for_any_more_is_no_obstacle() -> None:
    questions: Questions[Examination] = Questions(ExamineQuestion)
    rounds, node = Rounds(questions), Node(questions, "mux:mux1")
    first = asyncio.create_task(rounds.ask(lambda: {"mux:mux1": node}, 5.0))
    await turns()
    second = asyncio.create_task(rounds.ask(lambda: {"mux:mux1": node}, 5.0))
    await turns()
    first.cancel()
    await turns()
    node.answer(7)
    assert (await second)["mux:mux1"] == Examination(node.asked[-1], fine=7)


async def test_the_api_tells_what_each_node_says_or_why_it_does_not(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        first, second = client.site.muxes
        hub = first.hub
        assert hub is not None
        second.leave()
        full = NodeFinding("disk", "fault", "is full", "`df -h`", None, ("backend web/web-1",))

        def answer(letter: Question) -> None:
            hub.answered(first, FlowAnswer(letter.serial))  # which is no answer to this
            hub.answered(first, Examination(letter.serial, (full,), 12))

        first.told = answer
        for agent in client.site.hosts:
            agent.told = lambda letter, agent=agent: hub.answered(agent, Examination(letter.serial, error="no room"))
        rows = {(row["kind"], row["name"]): row for row in await client.get("/v1/examination")}
        found = msgspec.json.decode(msgspec.json.encode(full))
        assert rows["mux", "mux1"] == {
            "kind": "mux", "name": "mux1", "findings": [found], "fine": 12, "left_out": 0, "error": None,
        }  # fmt: skip
        assert rows["mux", "mux2"]["error"] == "it is not connected"
        assert {row["error"] for (kind, _), row in rows.items() if kind == "agent"} == {"no room"}
