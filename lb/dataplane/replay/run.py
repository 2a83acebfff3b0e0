# SPDX-License-Identifier: Apache-2.0
"""Runs the real data plane over a capture and says what became of each packet.

Called by ``lb replay`` and by tests. Everything that comes out is determined by the files that go in. The
caller owns the streams; a :class:`Replay` plays one capture, and its data plane keeps the flow table meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lb.dataplane.replay.pcap import CapturedPacket
from lb.errors import RequestError
from lb.model import MuxConfig, MuxSettings, Service

if TYPE_CHECKING:
    from lb.dataplane import Result

#: Packets handed over together; what comes out does not depend on it.
BATCH = 256

#: The data plane's name for what needs no reason.
PLAIN = "forwarded"


class ReplayPlane(Protocol):
    """The data plane as a replay sees it: :class:`lb.dataplane.replay.plane.NativePlane`, or a stand-in in tests."""

    def publish(self, services: Sequence[Service]) -> None:
        """Makes these the services for packets from now on; remembered flows stay."""

    def process(self, packets: Sequence[tuple[bytes, int, int]]) -> Sequence[Result]:
        """Packets as (bytes captured, length on the wire, time in ns), in order."""

    def names(self, outcome: Result) -> tuple[str | None, str | None]:
        """Service and backend that an outcome under the services of now is about."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Other services from packet ``n`` (counted from 0) on."""

    n: int
    services: tuple[Service, ...]


@dataclass(slots=True)
class ReplayTotals:
    """How a replay ended."""

    packets: int = 0
    sent: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  #: (verdict, reason)


def make_switch(n: int, config: MuxConfig, first: MuxSettings) -> Switch:
    """A switch to another file's services, which must be the same MUX's."""
    if config.mux != first:
        names = MuxSettings.__dataclass_fields__
        different = [name for name in names if getattr(config.mux, name) != getattr(first, name)]
        raise RequestError(f"--switch {n}: [mux] must be the same in both files; {', '.join(different)} differ")
    return Switch(n, config.services)


class Replay:
    """Plays one capture; ``write`` gets every packet sent, ``report`` a line for every packet received."""

    def __init__(
        self,
        plane: ReplayPlane,
        *,
        write: Callable[[CapturedPacket], None],
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._plane = plane
        self._write = write
        self._report = report
        self._clock = 0
        self.totals = ReplayTotals()

    def play(
        self, packets: Iterable[CapturedPacket], services: Sequence[Service], switches: Sequence[Switch] = ()
    ) -> ReplayTotals:
        """Plays the packets in order, each under the services that are current before it."""
        self._plane.publish(services)
        for batch, switch in _batches(packets, switches):
            if switch is not None:
                self._plane.publish(switch.services)
            outcomes = self._plane.process([self._timed(packet) for packet in batch])
            for packet, outcome in zip(batch, outcomes, strict=True):
                self._account(packet, outcome)
        return self.totals

    def _timed(self, packet: CapturedPacket) -> tuple[bytes, int, int]:
        """A time that goes back counts as the latest seen."""
        self._clock = max(self._clock, packet.time)
        return packet.data, packet.wire_len, self._clock

    def _account(self, packet: CapturedPacket, outcome: Result) -> None:
        """Writes what was sent for one packet, and its line of the report."""
        totals = self.totals
        first = totals.sent
        for data in outcome.out:
            self._write(CapturedPacket(data, len(data), packet.time))
            totals.sent += 1
        verdict = outcome.verdict.name.lower()
        # A plain forward needs no reason, and has none in the report.
        reason = None if outcome.reason == PLAIN else outcome.reason
        totals.verdicts[verdict] += 1
        if reason is not None:
            totals.reasons[verdict, reason] += 1
        if self._report is not None:
            service, backend = self._plane.names(outcome)
            self._report(
                {
                    "n": totals.packets,
                    "verdict": verdict,
                    "reason": reason,
                    "service": service,
                    "backend": backend,
                    "flow": outcome.flow,
                    "out": list(range(first, totals.sent)),
                }
            )
        totals.packets += 1


def _batches(
    packets: Iterable[CapturedPacket], switches: Sequence[Switch]
) -> Iterator[tuple[list[CapturedPacket], Switch | None]]:
    """Runs of packets under one set of services, each with the switch that comes before it."""
    pending = sorted(switches, key=lambda switch: switch.n)
    batch: list[CapturedPacket] = []
    due: Switch | None = None
    for n, packet in enumerate(packets):
        if len(batch) == BATCH or (pending and pending[0].n == n):
            if batch:
                yield batch, due
                batch, due = [], None
            while pending and pending[0].n == n:
                due = pending.pop(0)  # of two before the same packet, the last one given counts
        batch.append(packet)
    if batch:
        yield batch, due
