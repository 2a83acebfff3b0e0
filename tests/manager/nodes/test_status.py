# SPDX-License-Identifier: Apache-2.0
"""What nodes say of themselves: one that says what no node of ours does is let go, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lb.errors import MessageError
from lb.node.messages import StatusMessage
from manager.api.kept_rows import KeptRows
from manager.api.metrics import ManagerCollector
from manager.api.view import View
from manager.controller.controller import Controller
from manager.controller.ticker import TICK
from manager.nodes.status import DEPTH_MAX, ROWS_MAX, SECTIONS_MAX, TEXT_MAX, checked, read
from manager.observed.rates import Rate, Ring
from manager.web.fleet_overview import Overview
from tests.manager.fake_nodes import Site, running
from tests.manager.fleet import plain, service

ROW = {"name": "web", "packets": 1, "bytes": 2, "flows_new": 3, "flows": 4, "dropped": 5}


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


FINE: list[dict[str, Any]] = [
    {},
    {"at": 12.5, "mux": {"name": "mux1", "flows": 2**40, "unreachable": {"10.0.3.1": "no route"}, "rejected": None}},
    {"services": [ROW, {**ROW, "of_a_newer_version": {"a": [1, "b"]}}], "backends": []},
    {"backends": [{"service": "web", "name": "web-1", "packets": 2**63, "flows": None}]},
    {"peers": [{"name": "r1", "address": None, "state": "established", "error": None, "families": ["ipv4"]}]},
    {"announcements": [{"vip": "203.0.113.10", "peer": None, "state": "announced", "why": None}]},
    {"drains": [{"service": "web", "name": "web-1", "flows": 0}], "handover": None},
    {"of_a_newer_version": {"anything": [True, 1.5, None, "text"]}},
]

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("a number of four hundred digits", {"mux": {"flows": 10**400}}),
    ("one that is not finite", {"at": math.inf}),
    ("one that is none", {"at": "soon"}),
    ("a flag for a number", {"at": True}),
    ("a count below zero", {"mux": {"flows": -1}}),
    ("a count with a fraction", {"mux": {"dropped": 1.5}}),
    ("a count of a service beyond all", {"services": [{**ROW, "packets": 10**400}]}),
    ("a list for a name", {"services": [{**ROW, "name": ["web"]}]}),
    ("a table for a name", {"backends": [{"service": {}, "name": "web-1"}]}),
    ("no name", {"services": [{"packets": 1}]}),
    ("a name without end", {"services": [{**ROW, "name": "w" * 200}]}),
    ("a list for a peer's name", {"peers": [{"name": ["r1"], "state": "established"}]}),
    ("a table for a state", {"peers": [{"name": "r1", "state": {}}]}),
    ("a list for a VIP", {"announcements": [{"vip": [], "state": "announced"}]}),
    ("a number for a peer", {"announcements": [{"vip": "203.0.113.10", "peer": 5}]}),
    ("rows that are none", {"services": 5}),
    ("a row that is none", {"drains": [7]}),
    ("a MUX that is a list", {"mux": []}),
    ("words that are none", {"handover": ["gone"]}),
    ("half of a surrogate pair", {"handover": "\ud800"}),
    ("a text without end", {"mux": {"reason": "x" * (TEXT_MAX + 1)}}),
    ("nothing but depth", {"newer": deep(DEPTH_MAX + 1)}),
    ("more sections than there are", {f"s{n}": 1 for n in range(SECTIONS_MAX + 1)}),
    ("rows without end", {"drains": [{"service": "a", "name": "b"}] * (ROWS_MAX + 1)}),
    ("a number without end in what is newer", {"newer": {"a": [10**400]}}),
    ("an endless one", {"newer": -math.inf}),
]


@pytest.mark.parametrize("body", FINE, ids=lambda body: ",".join(body) or "nothing")
def test_what_ours_say_is_taken_as_it_is(body: dict[str, Any]) -> None:
    assert checked(body) is body


@pytest.mark.parametrize(("_", "body"), WRONG, ids=[name for name, _ in WRONG])
def test_what_ours_never_say_is_refused_in_one_line(_: str, body: dict[str, Any]) -> None:
    with pytest.raises(MessageError) as caught:
        checked(body)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("_", "body"), WRONG, ids=[name for name, _ in WRONG])
async def test_one_that_says_it_breaks_nobodys_answer_and_ends_no_task(
    _: str, body: dict[str, Any], tmp_path: Path
) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service()], "operator:alice")
        good = {"mux": {"flows": 7}, "services": [ROW]}
        for mux in site.muxes:
            controller.hub.status(mux, good)
        with pytest.raises(MessageError):
            controller.hub.status(site.muxes[0], status_of(body))
        await asyncio.sleep(2 * TICK)
        await asyncio.wait_for(controller.heartbeat(), 5)
        assert every_answer(controller)["services"][0]["packets"] == 2
        assert not controller.tasks._failing().done()


async def test_what_nobody_reads_is_not_remembered(tmp_path: Path) -> None:
    """Each message is bounded; a thousand of them, each with other sections, must be as well."""
    async with running(tmp_path) as controller:
        mux = Site().connect(controller).muxes[0]
        for number in range(1000):
            controller.hub.status(mux, {f"newer{number}": ["x"] * 10, "mux": {"flows": number}, "agent": {"a": 1}})
        assert controller.hub.entries[mux.id].status == {"mux": {"flows": 999}, "agent": {"a": 1}}


def status_of(body: dict[str, Any]) -> Mapping[str, Any]:
    """As it comes in."""
    message = read(json.dumps({"type": "status", "body": body}))
    assert isinstance(message, StatusMessage)
    return message.body


def every_answer(controller: Controller) -> dict[str, Any]:
    view = View(controller)
    overview = Overview(controller, view)
    overview.refresh()
    overview.muxes()
    list(ManagerCollector(controller).collect())
    KeptRows(controller, view).list_announcements()
    msgspec.json.encode(
        [
            view.announcements.rows(),
            view.nodes.agents(),
            view.manager.status(),
            view.busiest.top("mux", "pps", 10),
            view.explanations.service("web"),
        ]
    )
    return {"services": plain(view.services.rows()), "muxes": plain(view.nodes.muxes())}


def test_a_chart_takes_whatever_rate_there_is() -> None:
    ring = Ring()
    ring.put(0, Rate(1e300, 1e308, 0.0, 0.0, 2**64))
    assert ring.points(0, 0)["pps"][0] == pytest.approx(3e38)
