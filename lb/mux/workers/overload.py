# SPDX-License-Identifier: Apache-2.0
"""Looks whether the workers keep up with what comes; tells when they do not, and when they do again; and has them drop,
of what they cannot take, packets of the service that has most of them.

:mod:`lb.mux.workers.saturation` and :mod:`lb.mux.workers.shedding` decide; this reads counters, and tells workers, log
and manager. Owned by :mod:`lb.mux.daemon`, whose event loop runs it; :mod:`lb.mux.status` shows
:attr:`OverloadWatch.words`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lb.daemon.log import get_logger
from lb.mux.workers.engine import Engine
from lb.mux.workers.saturation import Ended, Loss, Saturation
from lb.mux.workers.shedding import Shedding, Traffic

#: Between two looks, seconds.
INTERVAL = 0.5

log = get_logger()


class OverloadWatch:
    """Of one MUX."""

    def __init__(self, engine: Callable[[], Engine], send_event: Callable[[str], None] | None) -> None:
        """``send_event``: to the manager, where there is one."""
        self._engine = engine
        self._send_event = send_event
        self._saturation = Saturation()
        self._shedding = Shedding()

    @property
    def words(self) -> str | None:
        """What is lost, and why; None while nothing is to be told. From any thread."""
        now = self._saturation.now
        return now.words if now is not None else None

    async def run(self) -> None:
        """Returns never."""
        clock = asyncio.get_running_loop().time
        while True:
            self.look(clock())
            await asyncio.sleep(INTERVAL)

    def look(self, now: float) -> None:
        """One look, at this moment."""
        engine, saturation = self._engine(), self._saturation
        ios = engine.arrivals()
        # Before the first loss nobody asks whose packets they are: of ten thousand services that is some work.
        services = engine.came_for() if saturation.losing else None
        self._tell(saturation.look(now, ios, services, engine.shed_packets()))
        self._shed(engine, saturation.traffic, saturated=saturation.now is not None)

    def _shed(self, engine: Engine, traffic: Traffic | None, *, saturated: bool) -> None:
        before = {rule.service for rule in self._shedding.rules}
        rules = self._shedding.look(traffic, saturated=saturated)
        if rules or before:
            engine.shed(rules)
        for rule in rules:
            if rule.service not in before:
                log.warning(
                    "shedding", service=rule.service, reason="it has most of the packets, and others lose theirs"
                )
        for service in sorted(before - {rule.service for rule in rules}):
            log.info("no longer shedding", service=service)

    def _tell(self, news: Loss | Ended | None) -> None:
        if isinstance(news, Loss):
            log.warning(
                "saturated", reason=news.words, workers=" ".join(map(str, news.workers)), service=news.heaviest or "-"
            )
            self._event(f"saturated: {news.words}")
        elif isinstance(news, Ended):
            log.info("no longer saturated", seconds=round(news.seconds, 1), lost=news.total)
            self._event(f"no longer saturated; it lost {news.total:,} packets within {news.seconds:.0f} s")

    def _event(self, text: str) -> None:
        if self._send_event is not None:
            self._send_event(text)
