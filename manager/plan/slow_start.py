# SPDX-License-Identifier: Apache-2.0
"""Slow start: a backend that takes flows again comes to its whole weight in steps. Pure; called by
:mod:`manager.plan.plan`.

What weighs is a backend's share of the others' weight, and weights are whole numbers, often all 1. So while one of a
service's backends ramps, MUXes are told all weights of that service times the same factor: a Maglev table depends on
their ratio alone, so that by itself moves no slot, and when the ramp is over the operator's own numbers come back.
Each step moves the slots of new flows; flows that are remembered stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lb.model import Backend

#: Steps from almost nothing to the whole weight; each costs every MUX one table.
STEPS = 10
#: The largest weight that a table may hold (see lb.config.tables).
WEIGHT_MAX = 1000


@dataclass(frozen=True, slots=True)
class Ramp:
    """A backend on its way up."""

    begun: float  #: by the manager's steady clock
    seconds: float  #: from ``begun`` to the whole weight
    step: int  #: 1 to STEPS - 1; tenths of its weight

    @property
    def next_at(self) -> float:
        """When the next step is due."""
        return self.begun + self.step * self.seconds / STEPS

    @property
    def share(self) -> float:
        return self.step / STEPS


def ramp(begun: float, seconds: float, now: float) -> Ramp | None:
    """Where it stands; None: at its whole weight. A clock that began anew makes it begin anew, and wait no longer."""
    begun = min(begun, now)
    step = 1 + int((now - begun) * STEPS / seconds)
    return Ramp(begun, seconds, step) if step < STEPS else None


def weights(backends: Sequence[Backend], ramps: Sequence[Ramp | None]) -> tuple[int, ...]:
    """What MUXes are told. A backend that has a weight keeps at least 1: it is to take something."""
    heaviest = max((backend.weight for backend in backends), default=0)
    if heaviest == 0 or not any(ramps):
        return tuple(backend.weight for backend in backends)
    factor = WEIGHT_MAX // heaviest
    return tuple(
        _part(backend.weight * factor, ramp) if ramp is not None else backend.weight * factor
        for backend, ramp in zip(backends, ramps, strict=True)
    )


def _part(weight: int, ramp: Ramp) -> int:
    return max(1, weight * ramp.step // STEPS) if weight else 0
