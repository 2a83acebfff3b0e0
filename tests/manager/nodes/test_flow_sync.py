# SPDX-License-Identifier: Apache-2.0
"""Who is told of flows, who is waited for, and what is said in the end; whoever is silent holds nobody up for long."""

from __future__ import annotations

from lb.node.messages import (
    FlowGroup,
    FlowsDoneMessage,
    FlowsMessage,
    FlowsTakenMessage,
    FlowsWantedMessage,
)
from manager.nodes.flow_sync import ALL, MOST, PATIENCE, FlowSyncStep, Handovers

OTHERS = ["mux2", "mux3"]


def part(serial: int = 7, mux: str = "", flows: int = 1, *, last: bool = True, left_out: int = 0) -> FlowsMessage:
    groups = (FlowGroup("tcp 203.0.113.10/32 80", "web-1", bytes(8 * flows)),) if flows else ()
    return FlowsMessage(serial, mux, "ab", last, left_out, groups)


def done(answer: FlowSyncStep) -> list[tuple[str, int, int]]:
    """To whom, how many did their part, how many are waited for."""
    return [(to, m.muxes, m.waiting) for to, m in answer.letters if isinstance(m, FlowsDoneMessage)]


def told(answer: FlowSyncStep) -> list[tuple[str, str]]:
    """To whom, and from whom."""
    return [(to, m.mux) for to, m in answer.letters if isinstance(m, FlowsMessage)]


def tell_one_another(office: Handovers, serial: int) -> None:
    """mux2 and mux3, which stay: routers may move flows between them as well."""
    for teller, taker in (("mux2", "mux3"), ("mux3", "mux2")):
        assert told(office.said(teller, part(serial, ALL), [], 0.0)) == [(taker, teller)]
        assert office.said(taker, FlowsTakenMessage(serial, teller, 1), [], 0.0) == FlowSyncStep()


def test_those_that_stay_tell_one_another_before_it_is_over() -> None:
    office = Handovers()
    asked = office.said("mux1", part(), OTHERS, 0.0)
    assert [letter for letter in asked.letters if isinstance(letter[1], FlowsWantedMessage)] == [
        ("mux2", FlowsWantedMessage(7, ALL)),
        ("mux3", FlowsWantedMessage(7, ALL)),
    ]
    for mux in OTHERS:
        assert done(office.said(mux, FlowsTakenMessage(7, "mux1", 1), [], 0.1)) == []
    assert told(office.said("mux2", part(mux=ALL, last=False), [], 0.1)) == [("mux3", "mux2")]
    assert told(office.said("mux2", part(mux=ALL), [], 0.1)) == [("mux3", "mux2")]
    office.said("mux3", FlowsTakenMessage(7, "mux2", 1), [], 0.2)
    assert done(office.left("mux3")) == [("mux1", 2, 0)], "nobody is left to tell or be told"


def test_a_mux_that_leaves_tells_all_others_and_hears_when_they_have_its_flows() -> None:
    office = Handovers()
    first = office.said("mux1", part(last=False), OTHERS, 0.0)
    tell_one_another(office, 7)
    assert done(first) == [("mux1", 0, 2)], "the manager is there"
    assert told(first) == [("mux2", "mux1"), ("mux3", "mux1")]
    second = office.said("mux1", part(flows=2), OTHERS, 0.1)
    assert (done(second), told(second)) == ([], [("mux2", "mux1"), ("mux3", "mux1")])
    assert office.said("mux2", FlowsTakenMessage(7, "mux1", 3), [], 0.2) == FlowSyncStep()
    assert office.said("mux2", FlowsTakenMessage(7, "mux1", 3), [], 0.2) == FlowSyncStep(), "said twice counts once"
    last = office.said("mux3", FlowsTakenMessage(7, "mux1", 2, 1), [], 0.3)
    assert done(last) == [("mux1", 2, 0)]
    assert last.words == [
        ("mux mux1", "sent 3 flows that only it knew to 2 other MUXes", False),
        ("mux mux1", "1 flows found no room at another MUX: raise flows in its [mux]", True),
    ]


def test_a_mux_that_comes_is_told_by_all_others_and_then_that_this_was_all() -> None:
    office = Handovers()
    asked = office.said("mux1", FlowsWantedMessage(7), OTHERS, 0.0)
    assert [letter for letter in asked.letters if letter[0] != "mux1"] == [
        ("mux2", FlowsWantedMessage(7, ALL)),
        ("mux3", FlowsWantedMessage(7, ALL)),
    ]
    assert done(asked) == [("mux1", 0, 2)]
    assert told(office.said("mux2", part(mux=ALL, last=False), [], 0.1)) == [("mux3", "mux2"), ("mux1", "mux2")]
    assert done(office.said("mux2", part(mux=ALL), [], 0.1)) == []
    assert told(office.said("mux3", part(mux=ALL, flows=0), [], 0.1)) == [("mux2", "mux3"), ("mux1", "mux3")]
    assert office.said("mux2", FlowsTakenMessage(7, "mux3", 0), [], 0.2) == FlowSyncStep(), "mux3 has not said so yet"
    last = office.said("mux3", FlowsTakenMessage(7, "mux2", 2), [], 0.2)
    assert done(last) == [("mux1", 2, 0)]
    assert last.words == [("mux mux1", "received 2 flows from 2 other MUXes", False)]


def test_a_mux_alone_is_done_at_once() -> None:
    assert done(Handovers().said("mux1", part(), [], 0.0)) == [("mux1", 0, 0)]
    assert done(Handovers().said("mux1", FlowsWantedMessage(7), [], 0.0)) == [("mux1", 0, 0)]


def test_nothing_to_hand_over_is_no_event() -> None:
    office = Handovers()
    office.said("mux1", part(flows=0), ["mux2"], 0.0)
    answer = office.said("mux2", FlowsTakenMessage(7, "mux1", 0), [], 0.1)
    assert (done(answer), answer.words) == ([("mux1", 1, 0)], [])


def test_flows_beyond_the_limit_are_said_loudly() -> None:
    office = Handovers()
    office.said("mux1", part(left_out=9000), ["mux2"], 0.0)
    answer = office.said("mux2", FlowsTakenMessage(7, "mux1", 1), [], 0.1)
    assert answer.words[1] == (
        "mux mux1",
        "9,000 more flows were too many to send: they may break where routers move them",
        True,
    )


def test_whoever_is_silent_or_leaves_is_waited_for_no_longer() -> None:
    office = Handovers()
    office.said("mux1", part(), OTHERS, 0.0)
    assert office.left("mux2") == FlowSyncStep()
    assert office.tick(PATIENCE) == FlowSyncStep()
    late = office.tick(PATIENCE + 0.1)
    assert done(late) == [("mux1", 0, 0)]
    assert late.words[0] == ("mux mux1", "flow sync: no answer from mux3", True)
    office.said("mux1", FlowsWantedMessage(8), ["mux2"], 10.0)
    assert done(office.left("mux2")) == [("mux1", 0, 0)]
    assert office.said("mux2", part(8, "mux1"), [], 10.1) == FlowSyncStep(), "it comes too late"


def test_nobody_tells_what_nobody_asked_for() -> None:
    office = Handovers()
    assert office.said("mux2", part(1, "mux1"), ["mux1"], 0.0) == FlowSyncStep()
    office.said("mux1", part(2), ["mux2"], 0.0)
    assert office.said("mux2", part(2, "mux1"), ["mux1"], 0.0) == FlowSyncStep(), "mux1 gives, and asked for nothing"
    assert office.said("mux3", FlowsTakenMessage(2, "mux1", 5), [], 0.0) == FlowSyncStep(), "it was told nothing"


def test_what_is_remembered_is_bounded() -> None:
    office = Handovers()
    for serial in range(10 * MOST):
        office.said("mux1", FlowsWantedMessage(serial), ["mux2"], 0.0)
    assert len(office.tick(100.0).words) == MOST
    assert office.tick(200.0) == FlowSyncStep()
