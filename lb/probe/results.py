# SPDX-License-Identifier: Apache-2.0
"""What probes know of backends: which probe stands for which backends, what is shown, logged and reported.

A :class:`Board` is owned by the agent (``source`` agent) and by the MUX (``source`` tunnel), each of which says what it
wants to know, as often as its services change. Backends with equal checks share one
probe. It runs in the event loop; :meth:`Board.known` may be called from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar

from lb.daemon.log import get_logger
from lb.daemon.process.fault_counts import VITALS
from lb.model import Probe
from lb.node.messages import HealthReport
from lb.probe.scheduler import Scheduler
from lb.probe.state import ProbeAnswer, ProbeHealth, Say

#: Names of services in one line of the log.
SHOWN = 5

#: A backend: service and name.
Label = tuple[str, str]

log = get_logger()


class Check(Protocol):
    """What is asked, and where; equal ones are one probe. Hashable."""

    @property
    def probe(self) -> Probe: ...

    @property
    def place(self) -> str:
        """In words, for the log."""

    @property
    def host(self) -> bool:
        """Whether the answer tells of the backend's machine alone."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class NotProbed:
    """A backend that nobody asks, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a backend."""

    health: ProbeHealth
    reason: str
    since: float  #: Unix time
    refused: bool = False  #: down, and its machine itself says that nobody listens there
    took: float | None = None  #: the last probe, until its answer or its time-out, seconds; None: there was none


CheckT = TypeVar("CheckT", bound=Check)


class Board(Generic[CheckT]):
    """See the module's text. ``send`` hears of what changed; ``unprobed`` is the health of who is not probed."""

    def __init__(
        self,
        source: Literal["agent", "tunnel"],
        ask: Callable[[CheckT], Awaitable[ProbeAnswer]],
        send: Callable[[Sequence[HealthReport]], None],
        *,
        unprobed: ProbeHealth,
    ) -> None:
        self._source = source
        self._send = send
        self._unprobed = unprobed
        self._scheduler: Scheduler[CheckT] = Scheduler(ask, self._said, count_unmade=partial(VITALS.unasked, source))
        self._wanted: dict[Label, CheckT | NotProbed] = {}
        self._labels: dict[CheckT, dict[Label, None]] = {}  # the backends of each probe; a set that keeps its order
        self._rested: dict[Label, float] = {}  # those that are not probed: since when (Unix time)
        self._overload = 1.0

    def update(self, wanted: Mapping[Label, CheckT | NotProbed]) -> None:
        """From now on exactly these backends."""
        self.change(wanted, self._wanted.keys() - wanted.keys())

    def change(self, wanted: Mapping[Label, CheckT | NotProbed], gone: Iterable[Label]) -> None:
        """From now on these as well, and no longer those. A check that was wanted before keeps what is known."""
        different = {label: check for label, check in wanted.items() if self._wanted.get(label) != check}
        dropped = {self._forget(label) for label in (*gone, *(label for label in different if label in self._wanted))}
        for label, check in different.items():
            self._wanted[label] = check
            if isinstance(check, NotProbed):
                self._rested[label] = round(time.time(), 3)
            else:
                self._labels.setdefault(check, {})[label] = None
                self._scheduler.want(check, check.probe)
        for lost in dropped:
            if lost is not None and lost not in self._labels:
                self._scheduler.drop(lost)
        self._tell(list(different))
        self._mention_overload()

    def known(self) -> dict[Label, Known]:
        """Of every backend. That its machine is there says nothing of the backend itself."""
        return {label: _of_backend(self._known(label, check), check) for label, check in self._wanted.copy().items()}

    def reports(self) -> list[HealthReport]:
        """Of every backend that something is known of."""
        return self._reports(list(self._wanted))

    def __len__(self) -> int:
        """How many probes run."""
        return len(self._scheduler)

    async def run(self) -> None:
        """Returns never; raises what a probe raised, which is a programming error."""
        await self._scheduler.failed()

    async def close(self) -> None:
        await self._scheduler.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _forget(self, label: Label) -> CheckT | None:
        """Returns its check, which may have lost its last backend."""
        check = self._wanted.pop(label, None)
        self._rested.pop(label, None)
        if check is None or isinstance(check, NotProbed):
            return None
        labels = self._labels[check]
        del labels[label]
        if not labels:
            del self._labels[check]
        return check

    def _known(self, label: Label, check: CheckT | NotProbed) -> Known:
        if isinstance(check, NotProbed):
            return Known(self._unprobed, check.reason, self._rested.get(label, 0.0))
        state, unmade = self._scheduler.state(check), self._scheduler.unmade(check)
        reason = state.reason if unmade is None else f"{state.reason}; not asked just now: {unmade}"
        took = self._scheduler.took(check)
        return Known(state.health, reason, self._scheduler.since(check), state.refused, took)

    def _reports(self, labels: Sequence[Label]) -> list[HealthReport]:
        found = []
        for label in labels:
            known = self._known(label, self._wanted[label])
            if known.health is not ProbeHealth.UNKNOWN:
                up = known.health is ProbeHealth.UP
                check = self._wanted[label]
                host = not isinstance(check, NotProbed) and check.host
                found.append(HealthReport(*label, self._source, up, known.reason, known.since, host, known.refused))
        return found

    def _tell(self, labels: Sequence[Label]) -> None:
        reports = self._reports(labels)
        if reports:
            self._send(reports)

    def _said(self, check: CheckT, say: Say) -> None:
        labels = list(self._labels[check])
        if say.changed:
            write = log.info if say.health is ProbeHealth.UP else log.warning
            write(f"backend_{say.health.value}", backend=_some(labels), probe=check.place, reason=say.reason)
        self._tell(labels)

    def _mention_overload(self) -> None:
        """Once for each time that it changes much."""
        overload = self._scheduler.overload
        if overload > 1 and overload > 1.2 * self._overload:
            log.warning(
                "probes_late",
                probes=len(self._scheduler),
                reason=f"they are too many: each is asked {overload:.1f} times less often than its interval says",
            )
        self._overload = overload


def _of_backend(known: Known, check: Check | NotProbed) -> Known:
    machine_alone = not isinstance(check, NotProbed) and check.host and known.health is ProbeHealth.UP
    return replace(known, health=ProbeHealth.UNKNOWN) if machine_alone else known


def _some(labels: Sequence[Label]) -> str:
    shown = ", ".join("/".join(label) for label in labels[:SHOWN])
    more = len(labels) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
