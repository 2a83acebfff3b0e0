# SPDX-License-Identifier: Apache-2.0
"""What is left of a drained backend: only a count of every MUX that may get packets makes it nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lb.node.messages import FlowsToNode
from manager.nodes.hub import Entry
from manager.observed.drains import Emptied, Left, announced, left_of, withdrawn
from manager.plan.model import AGENT, MUX
from manager.store.interface import NodeRecord

WEB = ("web", "web-1")


class Connected:
    """As much of a connection as is looked at: that it is there."""

    kind, name, version, address = MUX, "", "", ""
    settings: Mapping[str, Any] = {}

    def wake(self) -> None:
        raise AssertionError("nobody is woken")

    def tell(self, letter: FlowsToNode) -> bool:
        raise AssertionError("nobody is told of flows")


def mux(
    name: str,
    flows: object = None,
    *,
    copies: object = None,
    announces: int | None = 1,
    connected: bool = True,
    gone: bool = False,
) -> Entry:
    """``flows`` None: it has told nothing of the backend."""
    entry = Entry(NodeRecord(MUX, name, None, None, 0.0, 0.0, ""), 0.0, 0.0, None, None)
    entry.connection, entry.gone = Connected() if connected else None, gone
    row = {"service": "web", "name": "web-1", "flows": flows} | ({} if copies is None else {"copies": copies})
    told: dict[str, Any] = {} if flows is None else {"drains": [row]}
    if announces is not None:
        told["announcements"] = [
            {"vip": f"203.0.113.{n}", "peer": "tor", "state": "announced"} for n in range(announces)
        ]
    entry.status = told
    return entry


def test_flows_are_left_as_every_mux_tells() -> None:
    agent = Entry(NodeRecord(AGENT, "host1", None, None, 0.0, 0.0, ""), 0.0, 0.0, None, None)
    assert left_of(WEB, [mux("mux2", 3), mux("mux1", 0), agent], {}) == [Left("mux1", 0), Left("mux2", 3)]


def test_a_flow_that_several_muxes_know_is_left_once() -> None:
    known = [mux("mux1", 7, copies=4), mux("mux2", 7, copies=3)]
    assert left_of(WEB, known, {}) == [Left("mux1", 3), Left("mux2", 4)]


def test_flows_of_which_only_copies_are_there_are_left_where_most_are() -> None:
    """The MUX whose they were has died, and nothing has come of them since."""
    known = [mux("mux1", 2, copies=2), mux("mux2", 3, copies=3), mux("mux3", 0)]
    assert left_of(WEB, known, {}) == [Left("mux1", 0), Left("mux2", 3), Left("mux3", 0)]
    assert left_of(WEB, [mux("mux1", 2, copies="many")], {}) == [Left("mux1", 2)]
    assert left_of(WEB, [mux("mux1", 2, copies=9)], {}) == [Left("mux1", 2)], "no more than there are"


def test_a_mux_that_has_not_counted_or_is_away_is_not_nothing() -> None:
    emptied = Emptied()
    for silent in (mux("mux2"), mux("mux2", 0, connected=False), mux("mux2", "0"), mux("mux2", [])):
        assert left_of(WEB, [mux("mux1", 0), silent], {})[1].flows is None
        assert emptied.look(1.0, [mux("mux1", 0), silent], {}) == []
    assert emptied.since == {}


def test_muxes_that_no_router_sends_to_do_not_count() -> None:
    gone, away = mux("mux2", 7, connected=False, gone=True), mux("mux3", 7, announces=0)
    assert left_of(WEB, [mux("mux1", 0), gone, away], {"mux3": None}) == [Left("mux1", 0)]
    assert left_of(WEB, [away], {"mux3": "waits: 0 of 2 MUXes would be left"}) == [Left("mux3", 7)]
    assert left_of(WEB, [mux("mux3", 7)], {"mux3": None}) == [Left("mux3", 7)], "it is announced still"


def test_a_mux_is_withdrawn_once_it_says_so_and_not_before() -> None:
    assert announced(mux("mux1", announces=3)) == 3
    assert announced(mux("mux1", announces=None)) is None
    assert withdrawn(mux("mux1", announces=0), {"mux1": None})
    assert not withdrawn(mux("mux1", announces=None), {"mux1": None})
    assert not withdrawn(mux("mux1", announces=0), {})


def test_no_flow_left_is_said_once_and_taken_back_when_there_are_some_again() -> None:
    emptied = Emptied()
    both = [mux("mux1", 0), mux("mux2", 0)]
    assert emptied.look(5.0, [mux("mux1", 0), mux("mux2", 1)], {}) == []
    assert emptied.look(6.0, both, {}) == [(WEB, True)]
    assert emptied.look(7.0, both, {}) == []
    assert emptied.since == {WEB: 6.0}
    assert emptied.look(8.0, [mux("mux1", 0), mux("mux2", connected=False)], {}) == [], "no news is no news"
    assert emptied.since == {WEB: 6.0}
    assert emptied.look(9.0, [mux("mux1", 2), mux("mux2", 0)], {}) == [(WEB, False)]
    assert emptied.look(10.0, both, {}) == [(WEB, True)]
    assert emptied.look(11.0, [mux("mux1"), mux("mux2")], {}) == [], "the drain was taken back"
    assert emptied.since == {}


def test_whatever_a_mux_tells_breaks_nothing() -> None:
    odd = mux("mux1")
    odd.status = {"drains": [{"service": [], "name": {}, "flows": 0}, 7, {"service": "web"}], "announcements": "all"}
    assert Emptied().look(1.0, [odd], {}) == []
    assert announced(odd) == 0
