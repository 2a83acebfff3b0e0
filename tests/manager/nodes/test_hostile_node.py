# SPDX-License-Identifier: Apache-2.0
"""Random and mutated messages of every type from a node: none breaks an answer to others, and none ends a task.

``VIPMUX_MESSAGES`` is how many of each type are said; the default is for every day, 10000 is the whole, and ``make
fuzz-node`` says them with another ``VIPMUX_SEED`` each time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from lb.errors import AccessError, MessageError
from lb.node.messages import Examination, Hello, NodeFinding
from manager.controller.ticker import TICK
from manager.nodes.status import read
from manager.nodes.stream import StreamConnection
from manager.trust.trust import Peer
from tests.manager.fake_nodes import Site, running
from tests.manager.fleet import service
from tests.manager.nodes.test_status import ROW, every_answer

MESSAGES = int(os.environ.get("VIPMUX_MESSAGES", "200"))

VALID: Mapping[str, dict[str, Any]] = {
    "hello": {
        "term": 1,
        "generation": 1,
        "digest": "0" * 64,
        "settings": {"name": "mux1", "address": "10.0.1.11"},
        "version": "0.1.0",
        "left_out": {"services/web": "no room"},
    },
    "ack": {"term": 1, "generation": 1, "error": None, "left_out": {"services/web": "no room"}},
    "health": {
        "lease": 5.0,
        "clock": 1.0,
        "reports": [
            {"service": "web", "backend": "web-1", "source": "tunnel", "up": False, "reason": "refused", "since": 1.0}
        ],
    },
    "status": {
        "body": {
            "at": 12.5,
            "mux": {"name": "mux1", "flows": 7, "flow_capacity": 9, "unreachable": {"10.0.3.1": "no route"}},
            "services": [ROW],
            "backends": [{"service": "web", "name": "web-1", "packets": 5, "flows": 2}],
            "drains": [{"service": "web", "name": "web-1", "flows": 0}],
            "peers": [{"name": "r1", "address": "10.0.0.1", "state": "established", "error": None}],
            "announcements": [{"vip": "203.0.113.10/32", "peer": "r1", "state": "announced", "why": None}],
        }
    },
    "event": {"text": "something happened"},
    "flows": {
        "serial": 1,
        "mux": "",
        "pool": "p",
        "last": True,
        "left_out": 0,
        "groups": [["web", "web-1", "AAAAAAAAAAA="]],
    },
    "flows_wanted": {"serial": 1, "mux": ""},
    "flows_taken": {"serial": 1, "mux": "mux2", "taken": 1, "refused": 0},
    "flow_answer": {"serial": 1, "service": "web", "slot": 1, "new": "web-1", "age": 1.0, "error": None},
    "examination": msgspec.to_builtins(
        Examination(
            1, (NodeFinding("table", "fault", "it is flushed", "systemctl reload lb-mux", "table", ("web",)),), 20, 1
        )
    ),
    "of_a_newer_version": {"anything": [1]},
}

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 2**53, 2**63, 2**64, 10**400, "",
    "web", "web-1", "mux1", "*", "0.0.0.0",
    "../../etc/passwd", "\x00\x1b[2J", "\ud800", "x" * 2000, [], {}, [[]], [None], {"": None},
    [{"name": []}], {"a": {"b": [{}]}},
    [1] * 2000, {str(n): n for n in range(200)}, "203.0.113.10", "1" * 5000, "NaN",
]  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:
    """Somewhere within it something is odd, missing, twice, or more."""
    if chance.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return chance.choice(ODD)
    if isinstance(value, list):
        place = chance.randrange(len(value))
        turn = chance.random()
        if turn < 0.2:
            return value * chance.choice([0, 2, 50])
        return [*value[:place], mutated(value[place], chance), *value[place + 1 :]]
    key = chance.choice(list(value))
    turn = chance.random()
    if turn < 0.1:
        return {name: one for name, one in value.items() if name != key}
    if turn < 0.2:
        return {**value, str(chance.choice(ODD)): chance.choice(ODD)}
    return {**value, key: mutated(value[key], chance)}


def messages(kind: str, number: int) -> Any:
    """The texts of ``number`` messages of a type; of some even the JSON is broken."""
    chance = random.Random(f"{kind} {os.environ.get('VIPMUX_SEED', '1')}")  # the same ones each time
    for _ in range(number):
        body = VALID[kind]
        for _ in range(chance.randrange(4)):
            body = mutated(body, chance)
            if not isinstance(body, dict):
                break
        text = json.dumps({**body, "type": kind} if isinstance(body, dict) else body)
        if chance.random() < 0.1:
            place = chance.randrange(len(text))
            text = (
                text[:place] + chance.choice(["", "{", "]", '"', "\\", "9" * 400]) + text[place + chance.randrange(9) :]
            )
        yield text


@pytest.mark.parametrize("kind", VALID)
async def test_whatever_a_node_says_nobody_else_notices(kind: str, tmp_path: Path) -> None:
    refused = taken = 0
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service()], "operator:alice")
        hostile, hub = site.muxes[0], cast("Any", controller.hub)
        for number, text in enumerate(messages(kind, MESSAGES)):
            try:
                message = read(text)
                peer = Peer("mux", hostile.name)
                if isinstance(message, Hello):
                    connection = StreamConnection(peer, "10.0.1.11", message, cast("Any", None))
                    hub.arrived(connection)
                else:
                    hello = Hello(0, 0, "", {"name": hostile.name, "address": "10.0.1.11"})
                    connection = StreamConnection(peer, "10.0.1.11", hello, cast("Any", None))
                    controller.hub.entries[hostile.id].connection = connection
                    connection.said(hub, message)
                taken += 1
            except (MessageError, AccessError):  # the connection ends with this reason, and no other way
                refused += 1
            if number % 50 == 0 or number == MESSAGES - 1:
                every_answer(controller)
                await asyncio.sleep(0)
        await asyncio.sleep(2 * TICK)
        await asyncio.wait_for(controller.heartbeat(), 20)
        every_answer(controller)
        assert not controller.tasks._failing().done()
    assert taken > MESSAGES / 20
    assert refused > MESSAGES / 20 or kind in ("event", "of_a_newer_version")
