# SPDX-License-Identifier: Apache-2.0
"""The manager's own row, events, and what a change would mean."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lb.rows.event import EventRow
from lb.rows.status import HeldServiceRow, LostHistory, Refusal, StatusRow, Unconfirmed
from manager.api.answers import LeftByDrain, ServicePreview
from manager.api.preview import live_flows, preview
from manager.api.reader import Reader, event_rows
from manager.desired.state import DesiredChange
from manager.store.events import ANY, Wanted


class StatusRows(Reader):
    """Of the manager itself."""

    def status(self) -> StatusRow:
        """The manager itself."""
        controller = self._controller
        connected = [entry for entry in controller.hub.entries.values() if entry.connection is not None]
        behind = [entry.id for entry in connected if entry.live is None or entry.live_generation < entry.generation]
        lost = controller.hub.behind.row()
        return StatusRow(
            name=controller.settings.name,
            version=controller.desired.version,
            term=controller.hub.term,
            generation=controller.hub.generation,
            services=len(controller.desired.services),
            nodes=len(controller.hub.entries),
            connected=len(connected),
            behind=sorted(behind),
            now=self._wall(),
            refusals=[Refusal(**row) for row in controller.hub.turned_away.rows()],
            confirm=self._unconfirmed(),
            history=None if lost is None else msgspec.convert(lost, LostHistory),
            held=[
                HeldServiceRow(service=name, served=held.served, why=held.why)
                for name, held in sorted(controller.writer.held.items())
            ],
        )

    def events(self, limit: int, wanted: Wanted = ANY) -> list[EventRow]:
        """The oldest first."""
        return event_rows(self._controller.events.latest(limit, wanted))

    def preview(self, change: DesiredChange) -> list[ServicePreview]:
        """What a change would mean to MUXes, and the live flows of what is there now. From any thread."""
        plan = self._controller.plan
        flows = live_flows(list(self._controller.hub.entries.values()), plan.drains, change.names | change.drained())
        return preview(change, plan, flows)

    def left_by(self, change: DesiredChange) -> list[LeftByDrain]:
        """Of each service of which a backend is drained, what is left of it, and what it has to finish."""
        controller, orders = self._controller, change.new.drains
        names = sorted(change.drained() & controller.desired.services.keys())
        flows = live_flows(list(controller.hub.entries.values()), controller.plan.drains, names)
        found = []
        for name in names:
            items = self.backend_plans(controller.desired.services[name])
            gone = [item.backend.name for item in items if f"{name}/{item.backend.name}" in orders]
            counts = [flows(name, backend) for backend in gone]
            found.append(
                LeftByDrain(
                    service=name,
                    backends=len(items),
                    takes_flows=sum(item.takes_flows and item.backend.name not in gone for item in items),
                    flows=None if None in counts else sum(count or 0 for count in counts),
                )
            )
        return found

    def _unconfirmed(self) -> Unconfirmed | None:
        waiting = self._controller.desired.unconfirmed
        if waiting is None:
            return None
        version, pending = waiting
        until = self._wall() + self._controller.writer.seconds_left(pending)
        return Unconfirmed(version=version, who=pending.who, at=pending.at, until=until)


def warn_of_drain(left: Iterable[LeftByDrain], what: str) -> list[str]:
    """What it means where a service has no other backend; ``left``: as of :meth:`StatusRows.left_by`; ``what`` is
    drained."""
    return [
        f"service {row.service} has no other backend that takes new flows: clients that come from now on are not "
        f"served; `lb undrain {what}` ends the drain"
        for row in left
        if not row.takes_flows
    ]
