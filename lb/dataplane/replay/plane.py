# SPDX-License-Identifier: Apache-2.0
"""The real data plane as :mod:`lb.dataplane.replay.run` sees it: one pipeline in memory, published to between
packets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mmh3

from lb.dataplane import Answers, LinkHeader, Pipeline, Result
from lb.dataplane.compile.compiler import Compiler
from lb.model import MuxSettings, Service


class NativePlane:
    """Owns the flow table of one replay. All that it does follows from the settings and the packets."""

    def __init__(self, settings: MuxSettings, *, raw_ip: bool) -> None:
        self._compiler = Compiler(settings)
        first_id = mmh3.hash(settings.seed, signed=False) & 0xFFFF
        link = LinkHeader.NONE if raw_ip else LinkHeader.SWAP
        self._pipeline = Pipeline(settings.flows, link, first_id=first_id, answers=Answers.of(settings))
        self._compiler.follow(_Lender(self._pipeline))

    def publish(self, services: Sequence[Service]) -> None:
        self._forwarding = self._compiler.compile(services)
        self._snapshot = self._forwarding.offline_snapshot()

    def process(self, packets: Sequence[tuple[bytes, int, int]]) -> list[Result]:
        return self._pipeline.process(self._snapshot, packets)

    def names(self, outcome: Result) -> tuple[str | None, str | None]:
        return self._forwarding.names(outcome.service_id, outcome.backend)


@dataclass(frozen=True, slots=True)
class _Lender:
    """Of numbers (:class:`lb.dataplane.compile.numbers.NumberUsers`); nobody asks a replay's counters."""

    pipeline: Pipeline

    def forgotten(self) -> int:
        return self.pipeline.forgotten

    def lent_counter(self, counter: int) -> None:
        """Nothing to do."""

    def lent_service(self, service_id: int) -> None:
        """Nothing to do."""
