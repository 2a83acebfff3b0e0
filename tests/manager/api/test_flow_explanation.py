# SPDX-License-Identifier: Apache-2.0
"""``lb describe flow``: sentences out of what MUXes say, and the way that questions and answers go."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from lb.config.load import parse_service_tables
from lb.errors import RequestError
from lb.model import Backend, BackendState, Protocol, Service
from lb.node.messages import FlowAnswer, FlowQuestion
from manager.api.flow_explanation import AskedFlow, goes_to, mux_words, nearest, taker, together
from manager.nodes.node_requests import OPEN_MAX, Questions
from manager.plan.model import BackendPlan
from tests.manager.api.test_server import api
from tests.manager.fleet import service
from tests.manager.stage import StageManager, StageNode, until

CLIENT = IPv4Address("198.51.100.7")
VIP = IPv4Address("203.0.113.10")
TCP = AskedFlow(Protocol.TCP, CLIENT, 4711, VIP, 80)
UDP = AskedFlow(Protocol.UDP, CLIENT, 4711, VIP, 80)


def item(name: str, state: str = "up") -> BackendPlan:
    backend = Backend(name, IPv4Address("10.0.3.1"))
    return BackendPlan("web", backend, "10.0.3.1", "host1", BackendState(state), state, "it is so", 0.0, True)


BACKENDS = {"a": item("a"), "b": item("b"), "d": item("d", "drain"), "x": item("x", "down")}


def answer(new: str | None = "a", remembered: str | None = None, **fields: Any) -> FlowAnswer:
    fields = {"slot": 7} | fields
    if remembered is not None:
        fields = {"flow_class": "tcp_trusted", "age": 12.0} | fields
    return FlowAnswer(1, "web", new=new, remembered=remembered, **fields)


@pytest.mark.parametrize(
    ("flow", "said", "words", "next_to"),
    [
        (TCP, answer(), "does not remember it; a new flow gets a (slot 7)", "a"),
        (TCP, answer(None), "does not remember it; no backend of it takes new flows (slot 7)", None),
        (
            TCP,
            answer("a", "a"),
            "(seen in both a first and a later packet; its last packet was 12 s ago): it stays there, and a new",
            "a",
        ),
        (
            TCP,
            answer("a", "b", flow_class="tcp_untrusted"),
            "with b (seen only once so far; its last packet was 12 s ago): it stays there; a new flow gets a",
            "b",
        ),
        (TCP, answer("a", "d"), "it stays there until it ends, though that drains; a new flow gets a", "d"),
        (
            UDP,
            answer("a", "d", flow_class="udp_trusted"),
            "that drains, and UDP moves at once: the next packet goes to a",
            "a",
        ),
        (TCP, answer("a", "x"), "that is down (it is so): the next packet goes to a", "a"),
        (TCP, answer(None, "x"), "the next packet goes to no backend, for none takes new flows", None),
        (
            TCP,
            answer("a", flow_class="tcp_trusted", age=1.0),
            "with a backend that is no more, so it goes where new ones",
            "a",
        ),
        (TCP, FlowAnswer(1), "has no service for it", None),
        (TCP, FlowAnswer(1, error="no"), "cannot say: no", None),
    ],
)
def test_each_muxes_word_says_where_the_flow_goes_and_why(
    flow: AskedFlow, said: FlowAnswer, words: str, next_to: str | None
) -> None:
    assert words in mux_words(flow, said, BACKENDS)
    assert goes_to(flow, said, BACKENDS) == next_to


def test_muxes_that_agree_are_said_to() -> None:
    assert together(TCP, {"mux1": answer(), "mux2": answer()}, BACKENDS, ()) == (True, ["All MUXes agree."])
    assert together(TCP, {"mux1": answer()}, BACKENDS, ()) == (None, [])


@pytest.mark.parametrize(
    ("one", "other", "behind", "words", "agree"),
    [
        (answer("a"), answer("b"), ["mux2"], "mux2 has not taken the latest state yet", False),
        (answer("a"), answer("b", slot=9), [], "their seeds or slots in [mux] differ", False),
        (answer("a"), answer("b"), [], "something other differs", False),
        (answer("a", "b"), answer("a", "a"), [], "remember it with different backends (mux2: a; mux1: b)", False),
        (
            answer("a", "b"),
            answer("a"),
            [],
            "Only mux1 knows that it is at b; mux2 would send it to a. It breaks if",
            False,
        ),
        (answer("a", "a"), answer("a"), [], "All MUXes agree.", True),
        (answer("a", "x"), answer("a"), [], "All MUXes agree.", True),
    ],
)
def test_where_muxes_differ_it_is_said_why_that_may_be(
    one: FlowAnswer, other: FlowAnswer, behind: list[str], words: str, agree: bool
) -> None:
    found, said = together(TCP, {"mux1": one, "mux2": other}, BACKENDS, behind)
    assert found is agree
    assert words in " ".join(said)


def test_without_a_word_of_any_mux_that_is_said() -> None:
    assert "No MUX has joined yet" in together(TCP, {}, {}, ())[1][0]
    assert "No MUX answers" in together(TCP, {"mux1": "it is not connected"}, {}, ())[1][0]


def services(*tables: dict[str, Any]) -> list[Service]:
    return list(parse_service_tables(list(tables)))


def test_the_most_specific_service_takes_a_flow_and_others_are_near() -> None:
    known = services(
        service("net", "203.0.113.0/24", port=0),
        service("range", "203.0.113.10", port="80-90"),
        service("web", "203.0.113.10", port=80),
        service("dns", "203.0.113.10", port=53, protocol="udp"),
        service("far", "203.0.112.1", port=80),
        {"name": "six", "vip": "2001:db8::1", "protocol": "tcp", "port": 80},
    )
    found = taker(TCP, known)
    assert found is not None
    assert (found.name, found.vip) == ("web", ip_network("203.0.113.10/32"))
    assert taker(AskedFlow(Protocol.UDP, CLIENT, 1, VIP, 80), known) is None
    near = nearest(AskedFlow(Protocol.UDP, CLIENT, 1, VIP, 80), known)
    assert near[0] == 'service "dns" is for port 53'
    assert 'service "web" is for tcp' in near
    assert near[-1] == 'service "far" is at 203.0.112.1 and is for tcp'


# --- the way of a question -------------------------------------------------------------------------------------------


class Mux:
    """A connection that answers, or does not."""

    def __init__(self, questions: Questions, name: str, answers: int = 1, takes: bool = True) -> None:
        self._questions, self._name, self._answers, self._takes = questions, name, answers, takes

    def tell(self, letter: FlowQuestion) -> bool:
        for _ in range(self._answers):
            answer = FlowAnswer(letter.serial, "web", 7, self._name)
            asyncio.get_running_loop().call_soon(self._questions.answered, self._name, answer)
        return self._takes


ASKED = {"protocol": "tcp", "source": "1.1.1.1", "source_port": 1, "destination": "2.2.2.2", "destination_port": 2}


async def test_every_mux_answers_or_it_is_said_why_not() -> None:
    questions: Questions[FlowAnswer] = Questions(FlowQuestion)
    muxes = {"mux1": Mux(questions, "mux1", 2), "mux2": Mux(questions, "mux2", 0), "mux3": None}
    muxes["mux4"] = Mux(questions, "mux4", 0, takes=False)
    found = await questions.ask(muxes, ASKED, 0.1)
    assert isinstance(found["mux1"], FlowAnswer)
    assert found["mux2"] == "it did not answer within 0.1 s"
    assert found["mux3"] == "it is not connected"
    assert found["mux4"] == "it takes no more questions just now"
    questions.answered("mux2", FlowAnswer(1))  # too late
    questions.answered("mux2", FlowAnswer(99))


async def test_only_so_many_questions_are_open() -> None:
    questions: Questions[FlowAnswer] = Questions(FlowQuestion)
    silent = {"mux1": Mux(questions, "mux1", 0)}
    asking = [asyncio.create_task(questions.ask(silent, ASKED, 5.0)) for _ in range(OPEN_MAX)]
    for _ in range(50):  # turns of the loop, until all have asked
        await asyncio.sleep(0)
    with pytest.raises(RequestError, match="too many ask at once"):
        await questions.ask(silent, ASKED, 5.0)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert (await questions.ask({}, ASKED, 0.1)) == {}


def test_a_question_goes_to_a_node_and_its_answer_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        manager = StageManager(tmp_path)
        manager.hub.state = {"services": {}}
        async with manager.serving(), StageNode(manager, "mux1", await manager.token()).running() as node:
            node.client.answer = lambda question: FlowAnswer(question.serial, "web", 7, question.source)
            await until(lambda: "mux:mux1" in manager.hub.lives, "the state")
            manager.streams.connections["mux:mux1"].tell(FlowQuestion(5, **ASKED))
            await until(lambda: manager.hub.answers, "the answer")
            assert manager.hub.answers == [FlowAnswer(5, "web", 7, "1.1.1.1")]

    asyncio.run(main())


async def test_a_flow_is_described_by_what_muxes_say(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.ask("POST", "/v1/apply", {"services": [service()], "wait": 5})
        first, second = client.site.muxes
        hub = first.hub
        assert hub is not None
        for mux in (first, second):
            mux.told = lambda letter, mux=mux: hub.answered(mux, FlowAnswer(letter.serial, "web", 7, "web-1"))
        query = "source=198.51.100.7&source_port=4711&destination=203.0.113.10&destination_port=80"
        found = await client.get(f"/v1/flow?protocol=tcp&{query}")
        assert (found["agree"], found["words"]) == (True, ["All MUXes agree."])
        assert [(row["mux"], row["goes_to"]) for row in found["muxes"]] == [("mux1", "web-1"), ("mux2", "web-1")]
        assert found["service"]["name"] == "web"
        found = await client.get(f"/v1/flow?protocol=udp&{query}")
        assert found["words"] == [
            "No service takes udp 198.51.100.7:4711 → 203.0.113.10:80.",
            'service "web" is for tcp',
        ]
        assert (await client.get("/v1/vips/203.0.113.10"))["services"][0]["name"] == "web"
        status, said = await client.ask("GET", "/v1/vips/203.0.113.99")
        assert (status, said["error"]) == (404, "no service is at 203.0.113.99; there are 203.0.113.10")
        status, said = await client.ask("GET", "/v1/flow?source=x")
        assert (status, said["error"]) == (400, 'source must be an IP address, not "x"')
