# SPDX-License-Identifier: Apache-2.0
"""How fast counters grow: packets, bits, new flows and drops per second, of each MUX, service and backend. Pure.

MUXes tell their counters about once a second, with the time of their own clock at which they read them. A rate is the
difference of the last two tellings by that clock, so it does not matter how long either was under way. A MUX that
connects anew may have been started anew, with counters from 0: it has no rate before its second word. Whoever was not
heard for :data:`STALE` seconds counts for nothing, rather than for what it did last.

:class:`Rates` belongs to :mod:`manager.controller.controller`, which hands it what MUXes say and the time by its steady
clock, so that no rate hangs on the wall's; :mod:`manager.api.view` reads it. Its memory is bounded: the last two
tellings of each MUX, and rings of :data:`POINTS` points for the total, for :data:`MUXES_KEPT` MUXes and for the
:data:`SERVICES_KEPT` busiest services.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

#: A MUX that was not heard for so long has no rate any more, seconds.
STALE = 5.0
#: Two tellings nearer than this are too near for a rate, which stays as it was; seconds.
NEAR = 0.1
#: History: seconds between two points, and how many points there are: five minutes.
STEP = 2.0
POINTS = 150
SERVICES_KEPT = 50
MUXES_KEPT = 64
#: The largest that a point can be: what a float of 32 bits holds.
_POINT_MAX = 3e38
#: Of how busy something was of late, so much is how busy it is at this step.
_NEWS = 0.02

Row = Mapping[str, Any]
K = TypeVar("K")
#: Service and backend.
Label = tuple[str, str]


class Rate(NamedTuple):
    """Of one thing, per second; ``flows`` are those alive."""

    pps: float = 0.0  #: packets forwarded
    bps: float = 0.0  #: bits of them, without the outer header
    cps: float = 0.0  #: new flows
    dropped: float = 0.0  #: packets
    flows: int = 0

    def plus(self, other: Rate) -> Rate:
        return Rate(
            self.pps + other.pps,
            self.bps + other.bps,
            self.cps + other.cps,
            self.dropped + other.dropped,
            self.flows + other.flows,
        )


class MuxRate(NamedTuple):
    """Of one MUX."""

    rate: Rate
    received: float
    capacity: int  #: of its flow table


FIELDS = Rate._fields
NONE = Rate()
IDLE = MuxRate(NONE, 0.0, 0)


@dataclass(slots=True)
class _Told:
    """What one MUX told last, and what that makes against the time before."""

    at: float | None = None  #: by its own clock
    heard: float = -math.inf  #: by ours
    mux: Row = field(default_factory=dict)
    services: Mapping[str, Row] = field(default_factory=dict)
    backends: Mapping[Label, Row] = field(default_factory=dict)
    known: bool = False  #: there are rates
    rate: MuxRate = IDLE
    by_service: Mapping[str, Rate] = field(default_factory=dict)
    by_backend: Mapping[Label, Rate] = field(default_factory=dict)


class Rates:
    """See the module's text."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self.history = History()

    # -- what is heard ------------------------------------------------------------------------------------------

    def heard(self, mux: str, body: Row, now: float) -> set[str]:
        """A status, or those sections of it that changed; returns the services whose counters are others than before.

        Whatever is in it may be missing or nonsense: then it counts for nothing.
        """
        old = self._told.get(mux, _Told())
        at = _number(body.get("at"))
        new = _Told(
            at,
            now,
            found if isinstance(found := body.get("mux"), dict) else old.mux,
            _by_name(body["services"]) if "services" in body else old.services,
            _by_label(body["backends"]) if "backends" in body else old.backends,
        )
        changed = _changed(old.services, new.services) | {label[0] for label in _changed(old.backends, new.backends)}
        seconds = at - old.at if at is not None and old.at is not None else -1.0
        if 0 <= seconds < NEAR:
            new.known, new.rate, new.by_service, new.by_backend = old.known, old.rate, old.by_service, old.by_backend
        elif seconds > 0 and not _restarted(old.mux, new.mux):
            _rate(old, new, seconds)
        self._told[mux] = new
        return changed

    def left(self, mux: str) -> None:
        """Its connection ended: its next word is its first."""
        self._told.pop(mux, None)

    def tick(self, now: float, wall: float | None = None) -> None:
        """Time passes; called more often than once a step. ``wall``: Unix time, for the axis of the charts."""
        if wall is not None:
            self.history.anchor(wall - now)
        if self.history.due(now):
            live = self._live(now)
            self.history.put(
                now,
                self.total(now),
                {name: told.rate.rate for name, told in live.items()},
                self.services(now),
            )

    # -- what is asked ------------------------------------------------------------------------------------------

    def _live(self, now: float) -> dict[str, _Told]:
        return {name: told for name, told in self._told.items() if told.known and now - told.heard <= STALE}

    def muxes(self, now: float) -> dict[str, MuxRate]:
        """Those that told of themselves lately, twice."""
        return {name: told.rate for name, told in self._live(now).items()}

    def total(self, now: float) -> Rate | None:
        """Over all MUXes; None: nobody told."""
        found = [told.rate.rate for told in self._live(now).values()]
        return _sum(found) if found else None

    def services(self, now: float) -> dict[str, Rate]:
        """Those that have packets or flows, summed over the MUXes."""
        return _merged(told.by_service for told in self._live(now).values())

    def backends(self, now: float, service: str | None = None) -> dict[Label, Rate]:
        """Bits, new flows and drops are not counted by backend: 0."""
        found = _merged(told.by_backend for told in self._live(now).values())
        return found if service is None else {label: rate for label, rate in found.items() if label[0] == service}


def _rate(old: _Told, new: _Told, seconds: float) -> None:
    new.known = True
    if new.services is old.services and not any(rate.pps or rate.dropped for rate in old.by_service.values()):
        new.by_service = old.by_service
    else:
        new.by_service = {
            name: rate
            for name, row in new.services.items()
            if (rate := _of_row(old.services.get(name, {}), row, seconds)) is not None
        }
    if new.backends is old.backends and not any(rate.pps for rate in old.by_backend.values()):
        new.by_backend = old.by_backend
    else:
        new.by_backend = {
            label: rate
            for label, row in new.backends.items()
            if (rate := _of_row(old.backends.get(label, {}), row, seconds)) is not None
        }
    inside = _sum(new.by_service.values())
    grown = {key: max(0.0, _count(new.mux, key) - _count(old.mux, key)) / seconds for key in _MUX_COUNTERS}
    flows = _count(new.mux, "flows")
    own = Rate(grown["forwarded"], inside.bps, inside.cps, grown["dropped"], flows)
    new.rate = MuxRate(own, grown["received"], _count(new.mux, "flow_capacity"))


_MUX_COUNTERS = ("received", "forwarded", "dropped")


def _of_row(old: Row, new: Row, seconds: float) -> Rate | None:
    """What is not there yet counted nothing; what counts less than before is another of that name, or began anew: it
    has no rate yet. None: nothing at all to tell."""
    grown = []
    for key in ("packets", "bytes", "flows_new", "dropped"):
        more = _count(new, key) - _count(old, key)
        if more < 0:
            grown = [0, 0, 0, 0]
            break
        grown.append(more)
    flows = _count(new, "flows")
    if not flows and not any(grown):
        return None
    packets, octets, fresh, dropped = grown
    return Rate(packets / seconds, octets * 8 / seconds, fresh / seconds, dropped / seconds, flows)


def _restarted(old: Row, new: Row) -> bool:
    return any(_count(new, key) < _count(old, key) for key in _MUX_COUNTERS)


def _count(row: Row, key: str) -> int:
    value = row.get(key)
    return value if type(value) is int and value >= 0 else 0


def _number(value: object) -> float | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if right else None  # type: ignore[arg-type]


def _by_name(found: object) -> dict[str, Row]:
    rows = found if isinstance(found, list) else []
    return {row["name"]: row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)}


def _by_label(found: object) -> dict[Label, Row]:
    rows = found if isinstance(found, list) else []
    return {
        (row["service"], row["name"]): row
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("service"), str) and isinstance(row.get("name"), str)
    }


def _changed(old: Mapping[K, Row], new: Mapping[K, Row]) -> set[K]:
    if old is new:
        return set()
    return {key for key, row in new.items() if old.get(key) != row} | (old.keys() - new.keys())


def _sum(rates: Iterable[Rate]) -> Rate:
    pps = bps = cps = dropped = 0.0
    flows = 0
    for rate in rates:
        pps += rate.pps
        bps += rate.bps
        cps += rate.cps
        dropped += rate.dropped
        flows += rate.flows
    return Rate(pps, bps, cps, dropped, flows)


def _merged(parts: Iterable[Mapping[K, Rate]]) -> dict[K, Rate]:
    total: dict[K, Rate] = {}
    for part in parts:
        for key, rate in part.items():
            before = total.get(key)
            total[key] = rate if before is None else before.plus(rate)
    return total


# --- history ---------------------------------------------------------------------------------------------------------


class Ring:
    """One thing's last points. A point that nobody told is no number."""

    __slots__ = ("_last", "_values", "weight")

    def __init__(self) -> None:
        self._values = {name: array("f", [math.nan]) * POINTS for name in FIELDS}
        self._last = -1  # number of the latest point
        self.weight = 0.0  #: packets per second of late

    def put(self, number: int, rate: Rate | None) -> None:
        for missed in range(max(self._last + 1, number - POINTS + 1), number) if self._last >= 0 else ():
            self._set(missed, None)
        self._set(number, rate)
        pps = rate.pps if rate is not None else 0.0
        self.weight = pps if self._last < 0 else self.weight + _NEWS * (pps - self.weight)
        self._last = number

    def _set(self, number: int, rate: Rate | None) -> None:
        for name, values in self._values.items():
            values[number % POINTS] = math.nan if rate is None else min(float(getattr(rate, name)), _POINT_MAX)

    def points(self, first: int, last: int) -> dict[str, list[float | None]]:
        """By field, from point ``first`` to point ``last``."""
        known = range(max(first, self._last - POINTS + 1), self._last + 1)
        return {
            name: [_point(values[number % POINTS]) if number in known else None for number in range(first, last + 1)]
            for name, values in self._values.items()
        }


def _point(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


class History:
    """Rings of the total, of MUXes and of the busiest services."""

    def __init__(self) -> None:
        self._total = Ring()
        self._muxes: dict[str, Ring] = {}
        self._services: dict[str, Ring] = {}
        self._last = -1
        self._first = -1
        self._ahead = 0.0  #: of the wall's clock, whole steps

    def anchor(self, ahead: float) -> None:
        """So far is the wall's clock ahead of the one that points are counted by. One that is set a little moves none
        of them; one that jumps moves all."""
        if abs(ahead - self._ahead) > STEP:
            self._ahead = round(ahead / STEP) * STEP

    def due(self, now: float) -> bool:
        return int(now // STEP) > self._last

    def put(self, now: float, total: Rate | None, muxes: Mapping[str, Rate], services: Mapping[str, Rate]) -> None:
        number = int(now // STEP)
        if self._first < 0 or number - self._last > POINTS:
            self._first = number
        self._last = number
        self._total.put(number, total)
        _keep(self._muxes, muxes, MUXES_KEPT)
        _keep(self._services, services, SERVICES_KEPT)
        for name, ring in self._muxes.items():
            ring.put(number, muxes.get(name))
        silent = None if total is None else NONE  # a service that nobody tells of while MUXes tell is idle
        for name, ring in self._services.items():
            ring.put(number, services.get(name, silent))

    def services(self) -> list[str]:
        """The busiest of late first."""
        return sorted(self._services, key=lambda name: (-self._services[name].weight, name))

    def read(self, since: float | None, services: Iterable[str]) -> dict[str, Any]:
        """Points after ``since`` (Unix time; None: all); for JSON."""
        first = max(self._last - POINTS + 1, self._first)
        if since is not None and math.isfinite(since):
            first = max(first, min(int((since - self._ahead) // STEP) + 1, self._last + 1))
        last = self._last
        return {
            "step": STEP,
            "first": first * STEP + self._ahead,
            "points": last - first + 1,
            "total": self._total.points(first, last),
            "muxes": {name: self._muxes[name].points(first, last) for name in sorted(self._muxes)},
            "services": {name: self._services[name].points(first, last) for name in services if name in self._services},
        }


def _keep(rings: dict[str, Ring], found: Mapping[str, Rate], most: int) -> None:
    """Rings for the busiest of those found; what was busy stays until something busier needs its place."""
    busy = [name for name, rate in found.items() if rate.pps or rate.flows or name in rings]
    top = heapq.nlargest(most, busy, key=lambda name: (found[name].pps, found[name].flows))
    for name in top:
        if name in rings:
            continue
        if len(rings) >= most:
            idlest = min(rings, key=lambda other: rings[other].weight)
            if rings[idlest].weight >= found[name].pps:
                continue
            del rings[idlest]
        rings[name] = Ring()
