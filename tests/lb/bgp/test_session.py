# SPDX-License-Identifier: Apache-2.0
"""Sessions as ExaBGP's events tell of them, and their errors in words."""

from __future__ import annotations

from typing import Any

import pytest

from lb.bgp.session import BgpSession, SessionState, in_words, peer_of, started, step, stopped
from tests.lb.bgp.values import OUTSIDE


def event(state: str, reason: str = "") -> dict[str, Any]:
    """As ExaBGP 5 writes them."""
    about = {"address": {"local": "10.0.1.11", "peer": "10.0.1.1"}, "asn": {"local": 65001, "peer": 65000}}
    return {"exabgp": "5.0.15", "time": 1.0, "type": "state", "neighbor": {**about, "state": state, "reason": reason}}


def test_a_session_comes_up_and_forgets_its_error() -> None:
    session = started(stopped(BgpSession(OUTSIDE), "ExaBGP ended", 1.0), 2.0)
    session = step(step(session, event("connected"), 3.0), event("up"), 3.5)
    assert (session.state, session.since, session.error, session.established) == (
        SessionState.ESTABLISHED,
        3.5,
        None,
        1,
    )


def test_a_session_that_ends_keeps_why() -> None:
    up = step(BgpSession(OUTSIDE), event("up"), 1.0)
    down = step(up, event("down", "peer reset, message [notification sent (4,0)] error[hold timer expired]"), 5.0)
    assert (down.state, down.since) == (SessionState.CONNECTING, 5.0)
    assert down.error == "told 10.0.1.1: the hold timer expired: nothing arrived in time (notification 4/0)"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("notification received (2,2)", "10.0.1.1 says: another AS number is expected"),
        ("notification received (6,5)", "10.0.1.1 says: the connection is refused"),
        ("notification received (6,99)", "10.0.1.1 says: the session was ended (notification 6/99)"),
        ("notification received (99,1)", "an unknown code"),
        ("closing connection", "10.0.1.1 closed the connection"),
        ("", "the session with 10.0.1.1 ended"),
        ("\x1b[31mred\n", "the session with 10.0.1.1 ended (?[31mred?)"),
    ],
)
def test_reasons_are_sentences(reason: str, words: str) -> None:
    assert words in in_words(reason, OUTSIDE.address)


def test_a_connection_that_closes_before_a_session_was_up_is_told_as_refused() -> None:
    session = step(step(BgpSession(OUTSIDE), event("connected"), 1.0), event("down", "closing connection"), 1.0)
    assert session.error is not None
    assert session.error.startswith("10.0.1.1 refuses the connection or closes it at once")
    up = step(step(session, event("up"), 2.0), event("down", "closing connection"), 3.0)
    assert up.error == "10.0.1.1 closed the connection"


def test_a_session_that_never_connects_is_explained_after_a_while() -> None:
    session = started(BgpSession(OUTSIDE), 10.0)
    assert session.why(11.0) is None
    why = session.why(20.0)
    assert why is not None
    assert "10.0.1.1 has not taken a connection to port 179 for 10 s" in why
    assert "password" in why


def test_events_of_another_shape_change_nothing() -> None:
    session = started(BgpSession(OUTSIDE), 1.0)
    odd: list[dict[str, Any]] = [{}, {"type": "state"}, {"type": "state", "neighbor": []}, {"type": "notification"}]
    for each in [*odd, event("dancing")]:
        assert step(session, each, 2.0) == session
        peer_of(each)


def test_the_peer_of_an_event() -> None:
    assert peer_of(event("up")) == "10.0.1.1"
    assert peer_of({"type": "notification", "notification": "shutdown"}) is None
