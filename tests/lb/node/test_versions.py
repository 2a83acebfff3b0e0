# SPDX-License-Identifier: Apache-2.0
"""Versions may be mixed while an upgrade lasts: what older ones said is understood, what newer ones say is passed over.

``recorded/`` has messages as older versions sent them over the real stream, one a line, ``{"from": "node", "text": …}``
or the manager. A version that is released adds its file; none is ever changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lb.errors import MessageError
from lb.node.messages import (
    Ack,
    DeltaMessage,
    EventMessage,
    FromNode,
    HealthMessage,
    Hello,
    RefusedMessage,
    StateMessage,
    StatusMessage,
    ToNode,
    UnknownMessage,
    digest,
    parse_from_node,
    parse_to_node,
)

FILES = sorted((Path(__file__).parent / "recorded").glob("*.jsonl"))
LINES = [json.loads(line) for file in FILES for line in file.read_text().splitlines()]
PARSERS = {"node": parse_from_node, "manager": parse_to_node}
FROM_NODE = {"hello": Hello, "ack": Ack, "health": HealthMessage, "status": StatusMessage, "event": EventMessage}
TO_NODE = {"state": StateMessage, "delta": DeltaMessage, "refused": RefusedMessage}
TYPES: dict[str, type] = {**FROM_NODE, **TO_NODE}


def read(line: dict[str, Any], **more: Any) -> FromNode | ToNode:
    return PARSERS[line["from"]](json.dumps({**json.loads(line["text"]), **more}))


def test_something_of_every_type_was_recorded() -> None:
    assert {json.loads(line["text"])["type"] for line in LINES} == TYPES.keys()


@pytest.mark.parametrize("line", LINES, ids=lambda line: json.loads(line["text"])["type"])
def test_what_an_older_version_said_is_understood(line: dict[str, Any]) -> None:
    message = read(line)
    assert type(message) is TYPES[json.loads(line["text"])["type"]]


@pytest.mark.parametrize("line", LINES, ids=lambda line: json.loads(line["text"])["type"])
def test_what_is_said_today_still_has_every_field_that_an_older_version_reads(line: dict[str, Any]) -> None:
    """An older peer reads the fields that it knows; they must be there, and of the same kind."""
    old, new = json.loads(line["text"]), msgspec.to_builtins(read(line))
    assert old.keys() <= new.keys()
    assert {key: json.loads(json.dumps(new[key])) for key in old} == old


@pytest.mark.parametrize("line", LINES, ids=lambda line: json.loads(line["text"])["type"])
def test_fields_of_a_newer_version_are_left_alone(line: dict[str, Any]) -> None:
    assert read(line, invented={"later": [1, 2]}, also=None) == read(line)


def test_a_recorded_state_is_what_its_digest_says() -> None:
    states = [message for message in map(read, LINES) if isinstance(message, StateMessage)]
    assert states
    assert all(digest(message.body) == message.digest for message in states)


def test_sections_of_a_newer_version_are_kept_for_the_digest_counts_them() -> None:
    body = {"services": {}, "invented": {"later": {"x": 1}}}
    text = json.dumps({"type": "state", "term": 1, "generation": 1, "digest": digest(body), "body": body})
    message = parse_to_node(text)
    assert isinstance(message, StateMessage)
    assert digest(message.body) == message.digest


@pytest.mark.parametrize("side", PARSERS)
def test_a_type_of_a_newer_version_is_passed_over(side: str) -> None:
    assert PARSERS[side]('{"type": "invented_later", "serial": 7}') == UnknownMessage("invented_later")


@pytest.mark.parametrize("side", PARSERS)
@pytest.mark.parametrize("wrong", [None, 1, "", "two words", "x" * 129, ["hello"]])
def test_what_cannot_be_a_type_is_a_mistake(side: str, wrong: object) -> None:
    with pytest.raises(MessageError, match="unknown type"):
        PARSERS[side](json.dumps({"type": wrong}))
