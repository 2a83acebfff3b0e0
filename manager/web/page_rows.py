# SPDX-License-Identifier: Apache-2.0
"""The rows of the web page's tables: those of ``lb get``, with what the page alone shows; and the page's columns, which
follow from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

from lb.rows.backend import BackendRow
from lb.rows.row import PageColumn, Row, shown
from lb.rows.service import ServiceRow
from lb.rows.table import columns_of
from manager.api.answers import AnnouncementWords

_PPS = shown("packets forwarded per second; null: none has reported", PageColumn("Packets/s", "short", 7, "number"))


class PageService(ServiceRow, kw_only=True, gc=False):
    """A service in the page's list."""

    backend_states: Annotated[dict[str, int], shown("how many backends are in which state")]
    why: Annotated[
        str | None,
        shown("why it is in its state, in one sentence; null: all is well", PageColumn("Why", "text", 6, "reason")),
    ]
    pps: Annotated[float | None, _PPS]


class PageBackend(BackendRow, kw_only=True, gc=False):
    """A backend of the service that is shown."""

    pps: Annotated[float | None, _PPS]


#: The page's tables.
TABLES: dict[str, type[Row]] = {
    "services": PageService,
    "backends": PageBackend,
    "announcements": AnnouncementWords,
}


def columns_script() -> str:
    """A JavaScript module with the columns of each table, in their order: what the row's key is, and how it is drawn
    (see static/table.js)."""
    found = {
        name: [
            {"key": key, **{part: value for part, value in asdict(column).items() if part != "place"}}
            for key, column in sorted(columns_of(row_type, PageColumn), key=lambda item: item[1].place)
        ]
        for name, row_type in TABLES.items()
    }
    return f"// Made of lb/rows by manager/web/page_rows.py.\nexport const COLUMNS = {json.dumps(found, indent=1)};\n"
