# SPDX-License-Identifier: Apache-2.0
"""Messages of the node stream: what is right is read back the same, and nothing else gets through."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import MessageError
from lb.mux import status
from lb.node import messages
from lb.node.messages import (
    Ack,
    DeltaMessage,
    EventMessage,
    Examination,
    ExamineQuestion,
    FlowAnswer,
    FlowGroup,
    FlowQuestion,
    FlowsDoneMessage,
    FlowsMessage,
    FlowsTakenMessage,
    FlowsWantedMessage,
    FromNode,
    HealthMessage,
    HealthReport,
    Hello,
    NodeFinding,
    RefusedMessage,
    StateMessage,
    StatusMessage,
    ToNode,
    encode,
    parse_from_node,
    parse_to_node,
)

REPORT = HealthReport("web", "web-1", "agent", True, "HTTP 200", 1700000000.5)
WEB = FlowGroup("tcp 203.0.113.10/32 80", "web-1", bytes(range(8)))
FROM_NODE: list[FromNode] = [
    Hello(3, 41, "ab" * 32, {"address": "10.0.1.11"}, "0.1.0"),
    Ack(3, 41),
    Ack(3, 41, "service[0].vip: is local here"),
    HealthMessage(10.0, (REPORT,)),
    HealthMessage(10.0),
    HealthMessage(10.0, (), 1700000000.5),
    StatusMessage({"flows": 7}),
    EventMessage("next hop lost"),
    FlowsMessage(7, "", "ab" * 8, True, 12, (WEB, FlowGroup("udp 2001:db8::/64 0", "dns-1", b"\xff" * 16))),
    FlowsWantedMessage(7),
    FlowsTakenMessage(7, "mux2", 41, 1),
    FlowAnswer(7, "web", 4093, "web-1", "web-2", "tcp_trusted", 0.25),
    FlowAnswer(7, error="source must be an IP address"),
    Examination(7, (NodeFinding("disk", "fault", "is full", "`df -h`", "disk_full", ("web/web-1", "web")),), 12, 3),
    Examination(7, error="its examination did not end within 15 s"),
]
TO_NODE: list[ToNode] = [
    StateMessage(3, 41, "ab" * 32, {"services": {"web": {"vip": "203.0.113.10"}}}),
    DeltaMessage(3, 41, 42, "cd" * 32, {"services": {"web": {"vip": "203.0.113.11"}}}, {"services": ["dns"]}),
    RefusedMessage("this certificate was revoked"),
    FlowsMessage(7, "mux2", "ab" * 8, False, 0, (WEB,)),
    FlowsWantedMessage(7, "mux2"),
    FlowsDoneMessage(7, 1, 0),
    FlowQuestion(7, "tcp", "198.51.100.7", 4711, "203.0.113.10", 80),
    ExamineQuestion(7),
]


@pytest.mark.parametrize("message", FROM_NODE, ids=lambda message: type(message).__name__)
def test_what_a_node_says_is_read_back_the_same(message: FromNode) -> None:
    assert parse_from_node(encode(message)) == message


@pytest.mark.parametrize("message", TO_NODE, ids=lambda message: type(message).__name__)
def test_what_a_manager_says_is_read_back_the_same(message: ToNode) -> None:
    assert parse_to_node(encode(message)) == message


def _flows(groups: list[Any]) -> dict[str, Any]:
    return {"type": "flows", "serial": 1, "mux": "", "pool": "ab", "last": True, "left_out": 0, "groups": groups}


def _examination(**changed: Any) -> dict[str, Any]:
    finding = {"check": "disk", "severity": "fault", "what": "full", "remedy": None, "cause": None, "about": []}
    return {"type": "examination", "serial": 1, "fine": 0, "left_out": 0, "findings": [{**finding, **changed}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "unknown type"),
    ({"type": ["ack"]}, "unknown type"),
    ({"type": "state", "term": 1, "generation": 1, "digest": "", "body": {}}, "unknown type"),  # only a manager may
    ({"type": "ack", "term": -1, "generation": 1}, "term"),
    ({"type": "ack", "term": True, "generation": 1}, "term"),
    ({"type": "ack", "term": 1, "generation": 2**60}, "generation"),
    ({"type": "ack", "term": 1, "generation": 1, "error": "x" * 2000}, "error"),
    ({"type": "hello", "term": 1, "generation": 1, "digest": "", "settings": []}, "settings"),
    ({"type": "event", "text": "\ud800"}, "JSON object"),
    ({"type": "health", "lease": 10, "reports": [1]}, r"reports\[0\]"),
    ({"type": "health", "lease": 10, "reports": [{}] * 1001}, "reports"),
    ({"type": "health", "lease": 1e300, "reports": []}, "lease"),
    ({"type": "health", "lease": 10, "reports": [], "clock": "noon"}, "clock"),
    ({"type": "health", "lease": 10, "reports": [{"service": "x" * 129, "source": "agent"}]}, "service"),
    ({"type": "health", "lease": 10, "reports": [{"service": "x", "source": "rumour"}]}, "source"),
    ({"type": "flows_done", "serial": 1, "muxes": 1, "waiting": 0}, "unknown type"),  # only a manager may
    ({"type": "flows_taken", "serial": 1, "mux": "m", "taken": -1, "refused": 0}, "taken"),
    (_examination(severity="ok"), "severity"),
    (_examination(check="rm -rf"), "check"),
    (_examination(check="\x1b"), "check"),
    (_examination(cause=7), "cause"),
    (_examination(what="x" * 2001), "what"),
    (_examination(remedy=["x"]), "remedy"),
    (_examination(about=["x"] * 65), "about"),
    (_examination(about=[7]), "about"),
    (_examination() | {"findings": [7]}, r"findings\[0\]"),
    (_examination() | {"findings": [{}] * 101}, "findings"),
    (_examination() | {"fine": -1}, "fine"),
    (_examination() | {"newer": "x" * 70_000}, "none of ours is longer"),
    (_flows(groups=[]) | {"last": 1}, "last"),
    (_flows(groups=[["p", "b"]]), r"length 3, got 2 - at .*groups"),
    (_flows(groups=[["p" * 129, "b", "AAAAAAAAAAA="]]), r"groups.*\[0\]"),
    (_flows(groups=[["p", "b", "?"]]), "base64"),
    (_flows(groups=[["p", "b", ""]]), r"groups.*\[2\]"),
    (_flows(groups=[["p", "b", "AAAA"]]), r"groups.*\[2\]"),
    (_flows(groups=[["p", "b", "AAAAAAAAAAAAAAAA"]]), "8 bytes"),
    (_flows(groups=[["p", "b", "A" * 50_000]]), r"groups.*\[2\]"),
    (_flows(groups=[["p", "b", "AAAAAAAAAAA="]] * 4097), "groups"),
    (_flows(groups=[["p", "b", base64.b64encode(bytes(8 * 2049)).decode()]] * 2), "4098 flows"),
]


@pytest.mark.parametrize(("raw", "named"), WRONG, ids=lambda value: json.dumps(value)[:40])
def test_a_wrong_message_is_refused_in_words(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(MessageError, match=named):
        parse_from_node(json.dumps(raw))


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", "null", '{"type": "ack", "term": NaN}', "[" * 100_000, "9" * 5000]
)
def test_what_is_no_message_is_refused_in_words(text: str) -> None:
    for parse in (parse_from_node, parse_to_node):
        with pytest.raises(MessageError):
            parse(text)


def test_a_message_longer_than_any_of_ours_is_not_even_parsed() -> None:
    with pytest.raises(MessageError, match="longer"):
        parse_from_node(" " * (messages.FROM_NODE_MAX + 1))


@pytest.mark.parametrize("value", ["{},", "[],", "1,", '"",'])
def test_a_message_of_more_values_than_any_of_ours_is_not_even_parsed(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "VALUES_MAX", 1000)
    few, many = (f'{{"type": "newer", "x": [{value * number}0]}}' for number in (400, 1001))
    parse_from_node(few)
    monkeypatch.setattr(messages, "_FROM_NODE", None)
    with pytest.raises(MessageError, match="values; none of ours"):
        parse_from_node(many)


def test_as_many_rows_as_a_mux_ever_tells_of_are_a_message() -> None:
    row = {"service": "web", "name": "web-1", "peer": "r1", "state": "announced", "why": "", "more": 1}
    body = {f"section{number}": [row] * status.ROWS_MAX for number in range(4)}
    assert messages._values(json.dumps(body)) < messages.VALUES_MAX


def test_the_words_of_a_refusal_hold_no_control_characters() -> None:
    with pytest.raises(MessageError) as refusal:
        parse_from_node(json.dumps({"type": "\x1b[2J\n" + "x" * 1000}))
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "term",
    "generation",
    "digest",
    "settings",
    "version",
    "error",
    "lease",
    "reports",
    "clock",
    "body",
    "text",
    "base",
]
KEYS += ["set", "remove", "reason", "serial", "mux", "pool", "last", "left_out", "groups", "taken", "muxes", "waiting"]
TYPES = ["hello", "ack", "health", "status", "event", "state", "delta", "refused"]
TYPES += ["flows", "flows_wanted", "flows_taken", "flows_done"]
REPORTS = st.lists(
    st.dictionaries(st.sampled_from(["service", "backend", "source", "up", "reason", "since", "type"]), JSON),
    max_size=2,
)
MESSAGES = st.fixed_dictionaries({"type": st.sampled_from(TYPES) | JSON}, optional=dict.fromkeys(KEYS, JSON | REPORTS))


def tried(text: str) -> Iterator[FromNode | ToNode | str]:
    """What each side reads: a message, or why it is none."""
    for parse in (parse_from_node, parse_to_node):
        try:
            yield parse(text)
        except MessageError as error:
            yield str(error)


@given(MESSAGES)
def test_any_json_is_a_message_or_refused(raw: dict[str, Any]) -> None:
    for read in tried(json.dumps(raw)):
        if isinstance(read, str):
            assert read.isprintable()
        else:
            encode(read).encode(errors="surrogatepass")


@given(
    st.text()
    | st.sampled_from([encode(message) for message in FROM_NODE]).flatmap(
        lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.text(max_size=3)).map(
            lambda cut: text[: cut[0]] + cut[2] + text[cut[1] :]
        )
    )
)
def test_any_text_is_a_message_or_refused(text: str) -> None:
    assert all(read.isprintable() for read in tried(text) if isinstance(read, str))
