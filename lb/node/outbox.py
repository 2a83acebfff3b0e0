# SPDX-License-Identifier: Apache-2.0
"""What a node wants to tell its manager, bounded: of what is the same thing, only the newest is kept. Pure.

Owned by :class:`lb.node.client.NodeClient`. However long the manager is away and however much happens, what waits is at
most one acknowledgement, one status, one report for each backend, the last events, and no letter about flows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lb.node.messages import (
    REPORTS_MAX,
    TEXT_MAX,
    Ack,
    Answer,
    EventMessage,
    FlowsFromNode,
    FromNode,
    HealthMessage,
    HealthReport,
    Hello,
    StatusMessage,
)

EVENTS_MAX = 200
ANSWERS_MAX = 64
#: Parts of hand-overs of flows; the largest has 25.
LETTERS_MAX = 64


class Outbox:
    """Messages to be sent, in the order of their weight."""

    def __init__(self, lease: float, wall: Callable[[], float] | None = None) -> None:
        """``wall``: the node's clock, which health messages tell of."""
        self._lease = lease
        self._wall = wall
        self._hello: Hello | None = None
        self._ack: Ack | None = None
        self._renewal = False
        self._reports: dict[tuple[str, str, str], HealthReport] = {}
        self._status: Mapping[str, Any] | None = None
        self._sent_status: Mapping[str, Any] | None = None
        self._events: deque[str] = deque(maxlen=EVENTS_MAX)
        self._lost_events = 0
        self._letters: deque[FlowsFromNode] = deque()
        self._answers: deque[Answer] = deque(maxlen=ANSWERS_MAX)

    def begin(self, hello: Hello, reports: Iterable[HealthReport]) -> None:
        """A new connection: the manager may have forgotten everything."""
        self._hello = hello
        self._ack = None
        self._answers.clear()
        self._letters.clear()  # a hand-over that had begun is over
        self._reports |= {report.key: report for report in reports}
        self._status = self._status or self._sent_status
        self._sent_status = None

    def greet(self, hello: Hello) -> None:
        """Once more on the same connection: asks for the whole state."""
        self._hello = hello

    def ack(self, ack: Ack) -> None:
        self._ack = ack

    def health(self, reports: Iterable[HealthReport]) -> None:
        self._reports |= {report.key: report for report in reports}

    def renew_lease(self) -> None:
        """Nothing new: what was said stands."""
        self._renewal = True

    def status(self, body: Mapping[str, Any]) -> None:
        """The newest. Of it are said the sections that are others than those said before; each has all of them."""
        self._status = body

    def event(self, text: str) -> None:
        self._lost_events += len(self._events) == EVENTS_MAX
        self._events.append(text[:TEXT_MAX])

    def answer(self, answer: Answer) -> None:
        """To a question; of too many at once the first go unanswered."""
        self._answers.append(answer)

    def letter(self, letter: FlowsFromNode) -> bool:
        """A part of a hand-over, said in order; False: too many wait."""
        if len(self._letters) >= LETTERS_MAX:
            return False
        self._letters.append(letter)
        return True

    def put_back(self, messages: Iterable[FromNode]) -> None:
        """Of what was taken, what could not be said, as far as nobody would say it again by himself. The first of them
        may have been heard: an event is rather told twice than never."""
        events, reports = deque[str](), dict[tuple[str, str, str], HealthReport]()
        for message in messages:
            if isinstance(message, EventMessage):
                events.append(message.text)
            elif isinstance(message, HealthMessage):
                reports |= {report.key: report for report in message.reports}
        self._reports = reports | self._reports
        events += self._events
        self._lost_events += max(0, len(events) - EVENTS_MAX)
        self._events = deque(events, EVENTS_MAX)

    def take(self) -> list[FromNode]:
        """All that waits; it counts as said, but for what is put back."""
        messages: list[FromNode] = []
        if self._hello is not None:
            messages.append(self._hello)
        if self._ack is not None:
            messages.append(self._ack)
        reports = list(self._reports.values())
        for start in range(0, len(reports), REPORTS_MAX):
            messages.append(HealthMessage(self._lease, tuple(reports[start : start + REPORTS_MAX]), self._now()))
        if self._renewal and not reports:
            messages.append(HealthMessage(self._lease, clock=self._now()))
        if self._status is not None:
            news = _news(self._sent_status, self._status)
            if news:
                messages.append(StatusMessage(news))
            self._sent_status = self._status
        if self._lost_events:
            messages.append(EventMessage(f"{self._lost_events} events before these were too many to keep"))
        messages += [EventMessage(text) for text in self._events]
        messages += self._answers
        self._answers.clear()
        messages += self._letters
        self._letters.clear()
        self._hello = self._ack = self._status = None
        self._renewal = False
        self._reports = {}
        self._events.clear()
        self._lost_events = 0
        return messages

    def _now(self) -> float | None:
        return self._wall() if self._wall is not None else None


def _news(said: Mapping[str, Any] | None, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a status differs: VIPs of ten thousand services are not told each second that a packet comes."""
    if said is None:
        return body
    return {key: value for key, value in body.items() if key not in said or said[key] != value}
