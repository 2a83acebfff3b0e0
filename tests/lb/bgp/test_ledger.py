# SPDX-License-Identifier: Apache-2.0
"""What is still to be said, kept by what differs, is what a look at everything would say."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from lb.bgp.ledger import AnnouncementLedger
from lb.bgp.routes import ExabgpCommand, Key, plan
from tests.lb.bgp.values import INSIDE, OUTSIDE, key

PEERS = (OUTSIDE.address, INSIDE.address)
ONE, TWO = key("10.0.1.1", "203.0.113.1"), key("10.0.1.1", "203.0.113.2")
PLAIN, MED = "next-hop self", "next-hop self med 5"


def left(ledger: AnnouncementLedger) -> tuple[ExabgpCommand, ...]:
    """All that is still to be said, from everything."""
    possible = {key: text for key, text in ledger.wanted.items() if ledger.refused.get(key) != text}
    return plan(ledger.accepted, possible)


def said(ledger: AnnouncementLedger, most: int = 1000) -> list[str]:
    """What is said until nothing is left, all of it taken."""
    lines = []
    while commands := ledger.next(most):
        for command in commands:
            lines.append(command.line)
            ledger.answered(command, taken=True)
    return lines


def test_only_what_differs_is_said_and_withdrawals_come_first() -> None:
    ledger = AnnouncementLedger(PEERS)
    assert ledger.want(ONE, PLAIN)
    assert said(ledger) == ["neighbor 10.0.1.1 announce attributes next-hop self nlri 203.0.113.1/32"]
    assert not ledger.want(ONE, PLAIN)
    assert ledger.settled
    ledger.want(TWO, PLAIN)
    ledger.want(ONE, None)
    assert said(ledger) == [
        "neighbor 10.0.1.1 withdraw attributes next-hop self nlri 203.0.113.1/32",
        "neighbor 10.0.1.1 announce attributes next-hop self nlri 203.0.113.2/32",
    ]
    assert ledger.counts == {OUTSIDE.address: 1, INSIDE.address: 0}


def test_what_is_refused_is_not_said_again_until_it_is_another() -> None:
    ledger = AnnouncementLedger(PEERS)
    ledger.want(ONE, PLAIN)
    (command,) = ledger.next(10)
    ledger.answered(command, taken=False)
    assert ledger.settled
    ledger.forget()
    assert ledger.settled
    ledger.want(ONE, MED)
    assert said(ledger) == ["neighbor 10.0.1.1 announce attributes next-hop self med 5 nlri 203.0.113.1/32"]


def test_what_is_wanted_otherwise_while_it_is_said_is_said_again() -> None:
    ledger = AnnouncementLedger(PEERS)
    ledger.want(ONE, PLAIN)
    (command,) = ledger.next(10)
    ledger.want(ONE, None)
    ledger.answered(command, taken=True)
    assert said(ledger) == ["neighbor 10.0.1.1 withdraw attributes next-hop self nlri 203.0.113.1/32"]


def test_a_new_exabgp_is_told_everything() -> None:
    ledger = AnnouncementLedger(PEERS)
    for each in (ONE, TWO):
        ledger.want(each, PLAIN)
    said(ledger)
    ledger.forget()
    assert set(ledger.counts.values()) == {0}
    assert said(ledger) == ["neighbor 10.0.1.1 announce attributes next-hop self nlri 203.0.113.1/32 203.0.113.2/32"]


KEYS = st.builds(
    Key, st.sampled_from(PEERS), st.integers(0, 60).map(lambda n: ip_network(f"203.0.113.{n}"))
)  # fmt: skip
TEXTS = st.sampled_from([None, PLAIN, MED])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.dictionaries(KEYS, TEXTS, max_size=60)),
        st.tuples(st.just("say"), st.integers(1, 40), st.lists(st.booleans(), min_size=1, max_size=4)),
        st.just(("forget",)),
    ),
    max_size=12,
)


@given(STEPS, st.integers(1, 100))
def test_any_story_leaves_to_be_said_what_a_look_at_everything_says(steps: list[tuple[object, ...]], most: int) -> None:
    ledger = AnnouncementLedger(PEERS)
    for what, *rest in steps:
        if what == "want":
            for each, text in rest[0].items():  # type: ignore[attr-defined]
                ledger.want(each, text)
        elif what == "say":
            for number, command in enumerate(ledger.next(rest[0])):  # type: ignore[arg-type]
                ledger.answered(command, taken=rest[1][number % len(rest[1])])  # type: ignore[index]
        else:
            ledger.forget()
        assert ledger.next(10_000) == left(ledger)
        assert ledger.left == sum(len(command.keys) for command in left(ledger))
        assert ledger.settled is (left(ledger) == ())
        assert ledger.counts == {peer: sum(each.peer == peer for each in ledger.accepted) for peer in PEERS}
    said(ledger, most)
    possible = {each: text for each, text in ledger.wanted.items() if ledger.refused.get(each) != text}
    assert ledger.accepted == possible
