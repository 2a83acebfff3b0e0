# SPDX-License-Identifier: Apache-2.0
"""What happens, told: as events, in the log, and to who watches."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lb.daemon.log import get_logger
from manager.controller.shared_state import Core
from manager.controller.writer import Made
from manager.plan.model import Plan
from manager.store.events import differences

#: Of one plan, or one change, so many lines are worth a line of the log, or an event, each.
LINES = 100

log = get_logger()


class Chronicle:
    """Tells of changes, of plans and of the store."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def happened(self, subject: str, text: str, *, bad: bool = False) -> None:
        self._core.events.add(self._core.clocks.wall(), subject, text, bad=bad)
        self._core.changes.tables("events")
        say = log.warning if bad else log.info
        say("event", subject=subject, text=text)

    def tell(self, events: Iterable[tuple[str, str, bool]]) -> None:
        for subject, text, bad in events:
            self.happened(subject, text, bad=bad)

    def changed(self, made: Made) -> None:
        """An operator's change is an event of all that it touches; of a large one the audit has the rest."""
        terms, at = made.terms, self._core.clocks.wall()
        # What was taken back is bad news, and said as such.
        done = [line for line in made.change.lines if line.action not in ("unchanged", "rolled back")]
        for line in done[:LINES]:
            details = f": {', '.join(line.details)}" if line.details else ""
            why = f" ({terms.why})" if terms.why else ""
            self._core.events.add(at, line.name, f"{line.action} by {terms.who}{details}{why}", always=True)
        if len(done) > LINES:
            more = f"and {len(done) - LINES:,} more were changed by {terms.who}; `lb get audit` has all of it"
            self._core.events.add(at, f"version {made.version}", more, always=True)
        self._core.changes.tables("events")

    def store_problem(self, problem: str | None) -> None:
        if problem is None:
            self.happened("manager", "writes its store again")
        else:
            self.happened("manager", f"cannot write its store, and goes on without: {problem}", bad=True)

    def planned(self, old: Plan, new: Plan, vips: Collection[str]) -> None:
        """For the events, and for who watches."""
        at = self._core.clocks.wall()
        for count, (subject, text, bad) in enumerate(differences(old, new, sorted(vips))):
            self._core.events.add(at, subject, text, bad=bad)
            if bad or count < LINES:
                (log.warning if bad else log.info)("event", subject=subject, text=text)
            elif count == LINES:
                log.info("more events of this kind; `lb get events` has them")
            self._core.changes.tables("events")
        changed = {
            found: None
            for vip in vips
            if old.vips.get(vip) is not new.vips.get(vip)
            for plan in (old, new)
            if vip in plan.vips
            for found in plan.vips[vip].tables
        }
        if self._core.announced.planned(old, new, vips):
            changed |= dict.fromkeys(self._core.desired.services)
        self._core.changes.services(changed)
        self._core.changes.tables("muxes", "agents", "announcements", "status")
        self._core.changes.forget(self._core.desired.services, self._core.desired.retiring)

    def announced_anew(self, vips: Iterable[str]) -> None:
        """Of these VIPs others announce, or something else is to be said."""
        known = self._core.desired.by_vip
        self._core.changes.services(name for vip in vips for name in known.get(vip, ()))
