# SPDX-License-Identifier: Apache-2.0
"""The rows of events, of the audit and of the versions of the desired state. On a terminal they are texts, not tables;
see :mod:`lb.cli.tables.row_tables`."""

from typing import Annotated, Any

from lb.rows.row import Column, Row, Time, shown
from lb.tables.values import cell, clock


class EventRow(Row, kw_only=True, gc=False):
    """Something that happened."""

    KEY = ("id",)

    id: Annotated[int, shown("counts on over the lives of a manager")]
    at: Annotated[Time, shown(None, Column("Time", lambda row: clock(row.at)))]
    subject: Annotated[
        str,
        shown(
            '"backend web/web-1", "vip 203.0.113.10/32", "mux mux1", "agent host1", "service web"',
            Column("Subject", place=101),
        ),
    ]
    text: Annotated[str, shown(None, Column("Event", place=102))]
    bad: Annotated[bool, shown("it is bad news", Column("", lambda row: row.mark(), place=100))]

    def mark(self) -> str:
        return "!" if self.bad else ""


class VersionRow(Row, kw_only=True, gc=False):
    """A version of the desired state, and the change that made it."""

    KEY = ("version",)

    version: Annotated[
        int,
        shown(
            "of the desired state once it was done: tokens and certificates leave it",
            Column("Version", lambda row: str(row.version), number=True),
        ),
    ]
    at: Annotated[Time, shown(None, Column("Time", lambda row: clock(row.at)))]
    who: Annotated[str, shown(None, Column("Who"))]
    what: Annotated[str, shown(None, Column("What", lambda row: cell(row.done())))]
    why: Annotated[str, shown("in the words of whoever did it")]

    def done(self) -> str:
        return f"{self.what} ({self.why})" if self.why else self.what


class AuditLine(VersionRow, kw_only=True, gc=False):
    """A change of the desired state, or of who takes part."""

    change: Annotated[
        dict[str, Any] | None, shown("null where an answer with it would be too long: ask for fewer lines")
    ]
