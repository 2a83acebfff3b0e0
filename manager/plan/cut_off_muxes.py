# SPDX-License-Identifier: Apache-2.0
"""Which MUXes reach none of a VIP's healthy backends, while other MUXes do. Pure; called by
:mod:`manager.plan.announcers`.

Probers are not in step: each finds a change at its own next turns. When all backends fail at once, one MUX says so up
to a second before the others do, and when they come back, one says so after the others: for that time it looks blind
and is not. So MUXes' words are compared only once they are of one age. :func:`lb.probe.scheduler.spread` is how far
apart the first and the last of them may be, and a MUX counts as blind only when the difference has lasted for that:

    it has said "down" of every healthy backend for so long: who was to find the same has found it
    another MUX has said "up" of one of them for so long: who was to come up again has come up

This is for taking an announcement away. A MUX that does not announce yet takes no traffic, so one that says "down" of
all of them is not given one either, whatever the age of its words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lb.model import Probe
from lb.probe.scheduler import spread
from manager.plan.health import Report


@dataclass(frozen=True, slots=True)
class Sight:
    """A healthy backend, as MUXes see it through their tunnels."""

    probe: Probe
    reports: Mapping[str, Report]


def sees_nothing(mux: str, sights: Sequence[Sight]) -> bool:
    """It says "down" of every one of them."""
    return bool(sights) and all(mux in sight.reports and not sight.reports[mux].up for sight in sights)


def blind_from(mux: str, sights: Sequence[Sight], serving: Collection[str]) -> float:
    """For a MUX that sees nothing: from when on that counts, if nobody's word changes until then; perhaps never."""
    own = max(_settled(sight, sight.reports[mux]) for sight in sights)
    others = [
        _settled(sight, report)
        for sight in sights
        for name, report in sight.reports.items()
        if report.up and name in serving
    ]
    return max(own, min(others, default=math.inf))


def _settled(sight: Sight, report: Report) -> float:
    """When everybody has found what this one found."""
    return report.heard + spread(sight.probe)
