# SPDX-License-Identifier: Apache-2.0
"""What is told of a MUX that does not keep up: log, manager, status; and nobody is asked for services in vain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from structlog.testing import capture_logs

from lb.dataplane import IoStats
from lb.mux.workers.engine import Engine
from lb.mux.workers.overload import INTERVAL, OverloadWatch
from lb.mux.workers.saturation import END
from lb.mux.workers.shedding import Rule


class Counters:
    """In the place of the engine."""

    def __init__(self) -> None:
        self.received = self.missed = self.web = self.asked = self.shed_by_choice = 0
        self.rules: list[tuple[Rule, ...]] = []

    def arrivals(self) -> tuple[IoStats, ...]:
        return (IoStats(received=self.received, missed=self.missed),)

    def shed_packets(self) -> int:
        return self.shed_by_choice

    def shed(self, rules: Sequence[Rule]) -> None:
        self.rules.append(tuple(rules))

    def came_for(self) -> dict[str, int]:
        self.asked += 1
        return {"web": self.web}


class Told:
    """A watch, with what it said."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.events: list[str] = []
        self.at = 0.0
        self.watch = OverloadWatch(lambda: cast("Engine", self.counters), self.events.append)

    def looks(self, seconds: float, *, lost: int = 0) -> list[Any]:
        with capture_logs() as logs:
            for _ in range(round(seconds / INTERVAL)):
                self.at += INTERVAL
                self.counters.received += 30_000
                self.counters.web += 30_000
                self.counters.missed += lost
                self.watch.look(self.at)
        return logs


def test_a_flood_is_told_once_to_log_manager_and_status_and_so_is_its_end() -> None:
    told = Told()
    assert (told.looks(5), told.watch.words, told.counters.asked) == ([], None, 0)
    line, shedding = told.looks(10, lost=10_000)
    assert (shedding["event"], shedding["service"]) == ("shedding", "web")
    words = "loses 20,000 of 80,000 packets/s, its worker is saturated; service web has 100% of the packets; add a MUX"
    assert (line["event"], line["log_level"], line["reason"], line["service"]) == ("saturated", "warning", words, "web")
    assert told.watch.words == words
    over, line = told.looks(2 * END)
    assert (over["event"], over["service"], told.counters.rules[-1]) == ("no longer shedding", "web", ())
    assert (line["event"], line["log_level"], line["lost"]) == ("no longer saturated", "info", 200_000)
    assert told.watch.words is None
    assert told.events == [f"saturated: {words}", "no longer saturated; it lost 200,000 packets within 10 s"]
    asked = told.counters.asked
    told.looks(5)
    assert told.counters.asked == asked, "of ten thousand services it is some work"
