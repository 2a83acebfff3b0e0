# SPDX-License-Identifier: Apache-2.0
"""The row of an announcement: of a VIP by a MUX to a router."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from lb.rows.row import Column, Row, shown
from lb.tables.values import cell

#: MUX and reason -> the VIPs of which that is true.
Withheld = dict[tuple[str, str], list[str]]


class AnnouncementRow(Row, kw_only=True, gc=False):
    """Whether a VIP is announced by a MUX to a router; null: the MUX has not told."""

    KEY = ("vip", "mux", "peer")

    vip: Annotated[str, shown(None, Column("VIP"))]
    mux: Annotated[str, shown(None, Column("MUX"))]
    wanted: Annotated[bool, shown("the manager wants it announced", Column("Wanted"))]
    peer: Annotated[str | None, shown("the router's name", Column("Peer"))]
    state: Annotated[str | None, shown("what the MUX tells of it", Column("State"))]
    reason: Annotated[str | None, shown("why it is not announced, or not yet")]

    @property
    def amiss(self) -> bool:
        if not self.wanted:
            return self.state in ("announced", "draining")
        return self.state != "announced" and (self.peer is not None or "BGP" not in str(self.reason))

    @classmethod
    def notes(cls, rows: Sequence[Self]) -> list[str]:
        return announcement_notes(withheld(rows))


def withheld(rows: Iterable[AnnouncementRow]) -> Withheld:
    """What a VIP is not announced for, or not yet."""
    found: Withheld = {}
    for row in rows:
        if row.reason:
            found.setdefault((cell(row.mux), cell(row.reason)), []).append(cell(row.vip))
    return found


def announcement_notes(because: Withheld) -> list[str]:
    return [
        f"{mux}, {vips[0] if len(vips) == 1 else f'{len(vips):,} VIPs'}: {why}" for (mux, why), vips in because.items()
    ]
