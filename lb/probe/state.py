# SPDX-License-Identifier: Apache-2.0
"""What follows from the outcomes of one probe: unknown, up or down. Pure; called by :mod:`lb.probe.scheduler`.

:func:`step` is the whole machine:

    health   outcome                                     then      said
    unknown  success                                     up        up, with the reason
    unknown  failure, fewer than ``fall`` in a row       unknown   -
    unknown  failure, the ``fall``-th in a row           down      down, with the reason
    up       success                                     up        -
    up       failure, fewer than ``fall`` in a row       up        -
    up       failure, the ``fall``-th in a row           down      down, with the reason; a flap
    down     success, fewer than needed in a row         down      why it waits, if it is being damped
    down     success, as many as needed in a row         up        up, with the reason
    down     failure                                     down      the reason, if it is another

``rise`` successes are needed to come up again. What flaps (goes down ``flaps`` times within ``window`` seconds) needs
twice as many, and with each further flap twice as many again, up to ``rise_limit`` times; each ``window`` without a
flap halves that. A backend of unknown state comes up at once: nobody was harmed by it yet.

Times are seconds of any clock that does not go back.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class ProbeHealth(enum.Enum):
    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """How one probe ended, as whoever asked saw it."""

    success: bool
    reason: str  #: in words, without figures that change from probe to probe
    silent: bool = False  #: it failed since nothing came back
    made: bool = True  #: else it could not be asked, for a want of our own: that is no news of the backend
    refused: bool = False  #: it failed, but the machine at the address says so itself
    news: bool = True  #: else it says nothing, neither good nor bad


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one probe ended, and when: the event."""

    at: float
    success: bool
    reason: str
    refused: bool = False  #: as in :class:`ProbeAnswer`


@dataclass(frozen=True, slots=True)
class ProbePolicy:
    """How many outcomes change a health."""

    rise: int = 3
    fall: int = 3
    flaps: int = 3  #: as often down within the window counts as flapping
    window: float = 600.0
    rise_limit: int = 8  #: flapping multiplies rise by no more than this


@dataclass(frozen=True, slots=True)
class ProbeState:
    """All that is remembered of one probe; of bounded size."""

    health: ProbeHealth = ProbeHealth.UNKNOWN
    reason: str = "not probed yet"
    refused: bool = False  #: down, and the last answer was that nobody listens
    since: float = 0.0  #: of the health
    against: int = 0  #: outcomes in a row that speak against the health
    falls: tuple[float, ...] = ()  #: when it went from up to down, the last few times
    factor: int = 1  #: what rise is multiplied with
    damped: float = 0.0  #: when the factor last changed, or would have


@dataclass(frozen=True, slots=True)
class Say:
    """To be told to whoever asked for the probe: the action."""

    health: ProbeHealth
    reason: str
    changed: bool  #: the health is another; otherwise only the reason is


def step(state: ProbeState, event: Outcome, policy: ProbePolicy) -> tuple[ProbeState, tuple[Say, ...]]:  # noqa: PLR0911  a table
    """The state after an outcome, and what to say; see the table above."""
    state = _calm(state, event.at, policy)
    match state.health, event.success:
        case ProbeHealth.UNKNOWN, True:
            return _become(state, ProbeHealth.UP, event)
        case ProbeHealth.UNKNOWN, False:
            if state.against + 1 >= policy.fall:
                return _become(state, ProbeHealth.DOWN, event)
            return replace(state, against=state.against + 1, reason=event.reason), ()
        case ProbeHealth.UP, True:
            return replace(state, against=0), ()
        case ProbeHealth.UP, False:
            if state.against + 1 >= policy.fall:
                return _become(_flap(state, event.at, policy), ProbeHealth.DOWN, event)
            return replace(state, against=state.against + 1), ()
        case ProbeHealth.DOWN, True:
            if state.against + 1 >= needed(state, policy):
                return _become(state, ProbeHealth.UP, event)
            return _explain(replace(state, against=state.against + 1), _waiting(state, event, policy), state.refused)
        case _:
            return _explain(replace(state, against=0), event.reason, event.refused)


def needed(state: ProbeState, policy: ProbePolicy) -> int:
    """Successes in a row that bring a backend up again."""
    return policy.rise * state.factor


def _become(state: ProbeState, health: ProbeHealth, event: Outcome) -> tuple[ProbeState, tuple[Say, ...]]:
    new = replace(state, health=health, reason=event.reason, refused=event.refused, since=event.at, against=0)
    return new, (Say(health, event.reason, changed=True),)


def _explain(state: ProbeState, reason: str, refused: bool) -> tuple[ProbeState, tuple[Say, ...]]:
    if (reason, refused) == (state.reason, state.refused):
        return state, ()
    return replace(state, reason=reason, refused=refused), (Say(state.health, reason, changed=False),)


def _waiting(state: ProbeState, event: Outcome, policy: ProbePolicy) -> str:
    """While it is not damped, the reason why it went down still says all."""
    if state.factor == 1:
        return state.reason
    successes = needed(state, policy)
    return f"{event.reason}, but it went up and down too often: it comes up after {successes} successes in a row"


def _flap(state: ProbeState, now: float, policy: ProbePolicy) -> ProbeState:
    falls = (*(at for at in state.falls if now - at < policy.window), now)[-policy.flaps :]
    factor = min(state.factor * 2, policy.rise_limit) if len(falls) >= policy.flaps else state.factor
    return replace(state, falls=falls, factor=factor, damped=now)


def _calm(state: ProbeState, now: float, policy: ProbePolicy) -> ProbeState:
    """Each window without a flap halves the factor."""
    while state.factor > 1 and now - state.damped >= policy.window:
        state = replace(state, factor=state.factor // 2, damped=state.damped + policy.window)
    return state
