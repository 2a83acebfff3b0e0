# SPDX-License-Identifier: Apache-2.0
"""Whose packets a saturated MUX drops by choice, so that it can take the others'; see native/mux/shed.h.

As long as packets are lost in the ring, which may be anybody's, the service with most of the packets has more of its
own dropped; once no ring is full any more, by and by fewer, and none as soon as no more comes than could be taken.
First packets of flows that are new go, nearly all of them; only when that is not enough those of known flows as well,
half of them, three quarters, and so on. A new flow's second packet, a SYN sent again, is a known flow's.

A service is shed only if it has at least a quarter of the packets: where nobody stands out, the ring is as just as we
could be. And of the only service that gets packets no known flow's are dropped: nobody would be the better for it. One
that got some in the last ten seconds or so counts: whose packets are all lost in the ring sends fewer and fewer.

Pure: :mod:`lb.mux.workers.overload` feeds it, and has the engine do what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lb.dataplane import SHED_MAX

#: Part of all packets that a service has at least, to be shed.
HEAVY = 0.25
#: Of a look with losses the level goes up by this part of what is left; of one without it goes down by so much.
UP, DOWN = 0.5, 0.05
#: A service that had packets so many looks ago is one that gets some.
REMEMBERED = 20
#: A level up to 1 is the share of new flows' packets; what is beyond is the share of known flows'. Some always pass.
NEW_ONLY, MOST = 1.0, 1.98


@dataclass(frozen=True, slots=True)
class Rule:
    """Shares from 0 to 1 of a service's packets to drop."""

    service: str
    new: float
    known: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Since the last look."""

    seconds: float
    came: Mapping[str, int]  #: packets that workers got, by service, those that were shed included
    shed: int  #: of these
    lost: bool  #: more than a few did not get so far: a ring was full


@dataclass(slots=True)
class Shedding:
    """The levels, from look to look."""

    _levels: dict[str, float] = field(default_factory=dict)
    _looks: int = 0
    _seen: dict[str, int] = field(default_factory=dict)  # services, and the look in which each had packets last
    _room: float = 0.0  # packets per second that went on when a ring was full last

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(
            Rule(name, min(level, NEW_ONLY, MOST - NEW_ONLY), max(0.0, level - NEW_ONLY))
            for name, level in self._levels.items()
        )

    def look(self, traffic: Traffic | None, *, saturated: bool) -> tuple[Rule, ...]:
        """What happened since the last look, None: it is not known; ``saturated``: it loses packets, and did so for
        more than a moment. Returns what to drop until the next look."""
        if traffic is not None:
            self._note(traffic.came)
        if not saturated:
            self._levels = {}
        elif traffic is not None:
            self._look(traffic)
        return self.rules

    def _note(self, came: Mapping[str, int]) -> None:
        self._looks += 1
        lately = {name: at for name, at in self._seen.items() if self._looks - at < REMEMBERED}
        self._seen = lately | {name: self._looks for name, count in came.items() if count > 0}

    def _look(self, traffic: Traffic) -> None:
        came = sum(traffic.came.values()) / traffic.seconds
        if traffic.lost:
            self._room = came - traffic.shed / traffic.seconds
            self._more({name: count for name, count in traffic.came.items() if count > 0})
        elif came <= self._room:
            self._levels = {}
        else:
            lower = {name: level - DOWN for name, level in self._levels.items()}
            self._levels = {name: level for name, level in lower.items() if level > 0}

    def _more(self, came: Mapping[str, int]) -> None:
        most = NEW_ONLY if len(self._seen) == 1 else MOST
        total = sum(came.values())
        for name in sorted(came, key=lambda name: -came[name]):
            level = self._levels.get(name, 0.0)
            if came[name] < HEAVY * total or (not level and len(self._levels) == SHED_MAX):
                return
            if most - level > DOWN:  # else it is shed as far as it may: the next
                self._levels[name] = level + (most - level) * UP
                return
