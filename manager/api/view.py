# SPDX-License-Identifier: Apache-2.0
"""What operators see: the rows of ``lb get`` and the words of ``lb describe``. Reads the controller, never changes it.

Used by :mod:`manager.api.server`. Packets and flows are what MUXes last told, summed over them; what nobody told is
null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lb.rows.row import Row
from manager.api.announcement_rows import VipRows
from manager.api.busiest import Busiest
from manager.api.explanations import Explanations
from manager.api.node_rows import NodeRows
from manager.api.service_rows import ServiceRows
from manager.api.status_rows import StatusRows
from manager.controller.controller import Controller


class View:
    """What operators see of one controller, in parts."""

    def __init__(self, controller: Controller) -> None:
        self.services = ServiceRows(controller)
        self.nodes = NodeRows(controller)
        self.announcements = VipRows(controller)
        self.manager = StatusRows(controller)
        self.busiest = Busiest(controller)
        self.explanations = Explanations(controller, self.services, self.announcements)

    def table(self, name: str) -> Sequence[Row]:
        """The rows of a table that is watched, and has none for each service; of those see
        :mod:`manager.api.kept_rows`."""
        tables: dict[str, Callable[[], Sequence[Row]]] = {
            "muxes": self.nodes.muxes,
            "agents": self.nodes.agents,
            "announcements": self.announcements.rows,
            "status": lambda: [self.manager.status()],
        }
        return tables[name]()
