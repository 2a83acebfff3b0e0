# SPDX-License-Identifier: Apache-2.0
"""Rows that are kept as text are the rows that the view makes, whatever happened since they were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lb.config.render import service_table
from lb.config.toml import format_tables
from lb.rows.announcement import AnnouncementRow
from lb.rows.backend import BackendRow
from lb.rows.row import Row
from lb.rows.service import ServiceRow
from lb.rows.table import Listing, listed, listing
from manager.api.kept_rows import Drawer, KeptRows
from manager.api.view import View
from manager.controller.controller import Controller
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import service, with_probe

WHO = "operator:alice"


class Both:
    """Texts that are kept, and a view that makes each row anew."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.view = View(controller)
        self.kept = KeptRows(controller, self.view)
        self.drawers = {row_type: Drawer() for row_type in (ServiceRow, BackendRow, AnnouncementRow)}

    def agree(self) -> tuple[list[ServiceRow], list[BackendRow]]:
        """Services and backends, within one turn of the loop."""
        for names in (None, ["web", "nono"], []):
            services, backends = self.view.services.rows(names), self.view.services.backends(names)
            assert self.kept.services(names) == services
            assert self.kept.backends(names) == backends
            self._same(ServiceRow, services, self.kept.list_services(names))
            self._same(BackendRow, backends, self.kept.list_backends(names))
        self._same(AnnouncementRow, self.view.announcements.rows(), self.kept.list_announcements())
        wanted = self.controller.desired.services
        tables = [service_table(wanted[name]) for name in sorted(wanted)]
        assert json.loads(self.kept.tables()) == tables
        assert self.kept.file().decode() == format_tables(tables)
        return self.view.services.rows(), self.view.services.backends()

    def _same(self, row_type: type[Row], rows: Sequence[Any], made: Listing) -> None:
        assert self.drawers[row_type].draw(made) == "\n".join(listed(listing(row_type, rows)))


async def test_kept_rows_follow_everything_that_changes_them(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        both = Both(controller)
        assert both.agree() == ([], [])
        controller.tasks.end("plan")  # for a moment
        await controller.writer.apply(
            [with_probe(service()), service("dns", "203.0.113.11"), service("none", hosts=(), port=9)], WHO
        )
        counted = [{"service": "web", "name": "web-1", "packets": 1, "flows": 1}]
        controller.hub.status(site.muxes[0], {"services": [], "backends": counted})
        assert both.agree()[0][2].state == "new", "not planned yet"
        controller.tasks.fatal("plan", controller.planner.run)
        await controller.followers.wait(5)
        assert [row.state for row in both.agree()[1]] == ["up", "up", "unknown", "unknown"]
        site.hosts[0].report("web", "web-1", True)
        site.hosts[1].report("web", "web-2", False, 'it says "no", ünd\n')
        await until(lambda: both.agree()[1][3].state == "down")
        for packets in (1, 2):
            rows = [{"name": "web", "packets": packets, "bytes": 3, "flows_new": 4, "flows": 5}]
            backends = [{"service": "web", "name": "web-1", "packets": packets, "flows": None}]
            for mux in site.muxes:
                controller.hub.status(mux, {"services": rows, "backends": backends})
            services, _ = both.agree()
            assert (services[2].packets, services[0].packets) == (2 * packets, None)
        await controller.writer.drain_backend("web", "web-1", WHO, drain=True)
        await until(lambda: both.agree()[1][2].state == "drain")
        for mux in site.muxes:
            drains = [{"service": "web", "name": "web-1", "flows": 0}]
            controller.hub.status(mux, {"services": rows, "backends": [], "drains": drains})
        await until(lambda: both.agree()[1][2].empty_since is not None, "nothing is left of it")
        await controller.writer.drain_backend("web", "web-1", WHO, drain=False)
        await until(lambda: both.agree()[1][2].state == "up")
        site.muxes[0].answers = False
        await controller.writer.delete_services(["dns"], WHO)
        await until(lambda: [row.state for row in both.agree()[0]][-1:] == ["retiring"])
        await controller.writer.apply([service("web", "203.0.113.20", hosts=(3,))], WHO)
        both.agree()
        await until(lambda: both.agree()[0][1].vip == "203.0.113.20")
