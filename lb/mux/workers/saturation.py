# SPDX-License-Identifier: Apache-2.0
"""Whether the data plane keeps up with what comes, and what to tell of it when it does not.

A worker that does not keep up loses packets before it sees them: the kernel's ring (queue, in TUN mode) is full and
drops what comes, whosever it is. The kernel counts that, see ``missed`` of native/machine/io.h. One full ring is no
news: a worker that lost its core for some milliseconds has one. So a MUX is *saturated* from when more than one packet
of a thousand was lost throughout a second and a half, until less than one of ten thousand was for five seconds.

Pure; the daemon's care loop feeds it, and tells what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lb.dataplane import IoStats
from lb.mux.workers.shedding import Traffic

#: Of all packets that come, the share lost from which on a MUX does not keep up, and for how long; seconds.
BEGIN_SHARE, BEGIN = 1e-3, 1.5
#: The share below which it does, and for how long.
END_SHARE, END = 1e-4, 5.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What is lost. Rates in packets per second, of the last look that found a loss."""

    since: float  #: by the caller's clock
    lost: float
    offered: float
    total: int  #: packets, since it began
    workers: tuple[int, ...] = ()  #: those that do not keep up
    of: int = 1  #: so many there are
    shed: float = 0.0  #: of what is lost, so much by choice
    heaviest: str | None = None  #: the service that most of the packets are for
    part: float = 0.0  #: its part of them

    @property
    def words(self) -> str:
        """What is lost where, and what to do."""
        many = f"{len(self.workers)} of its {self.of} workers {'is' if len(self.workers) == 1 else 'are'} saturated"
        who = "its worker is saturated" if self.of == 1 else many
        whose = f"; service {self.heaviest} has {self.part:.0%} of the packets" if self.heaviest else ""
        remedy = "add a MUX" if len(self.workers) == self.of else "spread its queues (`workers`), or add a MUX"
        shed = f" ({self.shed:,.0f} of them shed, so that others are served)" if self.shed else ""
        return f"loses {self.lost:,.0f} of {self.offered:,.0f} packets/s{shed}, {who}{whose}; {remedy}"


@dataclass(frozen=True, slots=True)
class Ended:
    """It keeps up again."""

    seconds: float  #: so long it did not
    total: int  #: packets lost meanwhile


@dataclass(slots=True)
class Saturation:
    """Watches what workers receive and what the kernel drops before them."""

    now: Loss | None = None  #: None: it keeps up
    traffic: Traffic | None = None  #: of the last look, while it was :attr:`losing` before it
    _at: float = 0.0
    _before: Sequence[IoStats] = ()
    _losing: float | None = None  # since when, without a pause
    _fine: float | None = None
    _total: int = 0
    _services: dict[str, int] = field(default_factory=dict)
    _shed: int = 0

    @property
    def losing(self) -> bool:
        """Something was lost at the last look: whose packets they are is worth asking."""
        return self._losing is not None or self.now is not None

    def look(
        self, at: float, ios: Sequence[IoStats], services: dict[str, int] | None = None, shed: int = 0
    ) -> Loss | Ended | None:
        """``ios``: each worker's, as counted so far; ``services``: packets that came for each so far, asked for while
        :attr:`losing`; ``shed``: packets dropped by choice so far. Returns news: it began, or it ended."""
        seconds, self.traffic = at - self._at, None
        if len(ios) != len(self._before) or seconds <= 0:  # other workers: nothing to compare with
            self._at, self._before, self._shed = at, ios, shed
            return None
        missed = [max(0, new.missed - old.missed) for new, old in zip(ios, self._before, strict=True)]
        received = sum(max(0, new.received - old.received) for new, old in zip(ios, self._before, strict=True))
        by_choice = shed - self._shed
        lost, offered = sum(missed) + by_choice, received + sum(missed)
        came = self._came(services or {})
        if came:
            self.traffic = Traffic(seconds, came, by_choice, sum(missed) > offered * BEGIN_SHARE)
        began, self._at, self._before, self._shed = self._at, at, ios, shed
        share = lost / offered if offered else 0.0
        self._losing = (self._losing if self._losing is not None else began) if share > BEGIN_SHARE else None
        self._total = self._total + lost if self.losing else 0
        if self.now is None and (self._losing is None or at - self._losing < BEGIN):
            return None
        if self.now is not None and share < END_SHARE:
            return self._ended(self.now, at, began)
        self._fine = None
        before = self.now
        since = before.since if before is not None else self._losing if self._losing is not None else began
        workers = tuple(number for number, one in enumerate(missed) if one) or (before.workers if before else ())
        self.now = Loss(
            since,
            lost / seconds,
            offered / seconds,
            self._total,
            workers,
            len(ios),
            by_choice / seconds,
            *heaviest(came),
        )
        return self.now if before is None else None

    def _ended(self, now: Loss, at: float, began: float) -> Ended | None:
        """Nothing was lost from ``began`` on, or earlier."""
        if self._fine is None:
            self._fine = began
        if at - self._fine < END:
            return None
        ended = Ended(self._fine - now.since, self._total)
        self.now, self._total, self._fine = None, 0, None
        return ended

    def _came(self, services: dict[str, int]) -> dict[str, int]:
        """Since the last look, for those that were there then as well."""
        before, self._services = self._services, services
        return {name: max(0, count - before[name]) for name, count in services.items() if name in before}


def heaviest(came: Mapping[str, int]) -> tuple[str | None, float]:
    """The service with most of the packets, and its part of them."""
    total = sum(came.values())
    if not total:
        return None, 0.0
    name = max(came, key=lambda name: came[name])
    return name, came[name] / total
