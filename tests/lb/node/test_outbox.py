# SPDX-License-Identifier: Apache-2.0
"""What a node says of its status: all of it once, then what changed."""

from __future__ import annotations

from typing import Any

from lb.node.messages import Hello, StatusMessage
from lb.node.outbox import Outbox

HELLO = Hello(1, 1, "", {})


def said(outbox: Outbox) -> list[dict[str, Any]]:
    return [dict(message.body) for message in outbox.take() if isinstance(message, StatusMessage)]


def test_only_the_sections_that_changed_are_said() -> None:
    outbox = Outbox(10.0)
    outbox.begin(HELLO, ())
    outbox.status({"at": 1.0, "mux": {"flows": 1}, "announcements": [{"vip": "a"}]})
    assert said(outbox) == [{"at": 1.0, "mux": {"flows": 1}, "announcements": [{"vip": "a"}]}]
    outbox.status({"at": 2.0, "mux": {"flows": 2}, "announcements": [{"vip": "a"}]})
    assert said(outbox) == [{"at": 2.0, "mux": {"flows": 2}}]
    outbox.status({"at": 2.0, "mux": {"flows": 2}, "announcements": [{"vip": "a"}]})
    assert said(outbox) == []


def test_of_several_statuses_that_wait_the_newest_is_compared_with_what_was_said() -> None:
    outbox = Outbox(10.0)
    outbox.status({"mux": 1, "peers": []})
    said(outbox)
    outbox.status({"mux": 2, "peers": ["r1"]})
    outbox.status({"mux": 3, "peers": []})
    assert said(outbox) == [{"mux": 3}]


def test_a_new_connection_is_told_everything() -> None:
    outbox = Outbox(10.0)
    outbox.status({"mux": 1, "peers": []})
    said(outbox)
    outbox.begin(HELLO, ())
    assert said(outbox) == [{"mux": 1, "peers": []}]
