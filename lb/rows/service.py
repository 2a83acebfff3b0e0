# SPDX-License-Identifier: Apache-2.0
"""The row of a service."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from lb.rows.row import Column, PageColumn, Port, Row, Transport, shown
from lb.tables.values import cell, endpoint, rate, size, some

#: The worst first.
STATES = ("PANIC", "down", "degraded", "new", "up", "retiring")


class ServiceRow(Row, kw_only=True, gc=False):
    """A service, who announces it, and what MUXes count of it, summed; null: none has reported it."""

    name: Annotated[
        str, shown(None, Column("Service", place=3, stats=None), PageColumn("Service", "service", 2, "name"))
    ]
    vip: Annotated[str, shown(None, PageColumn("VIP", "endpoint", 3))]
    protocol: Annotated[Transport, shown(None, Column("Prot", lambda row: cell(row.protocol).upper(), 1, stats=None))]
    port: Annotated[
        Port, shown(None, Column("LocalAddress:Port", lambda row: endpoint(row.vip, row.port), 2, stats=None))
    ]
    state: Annotated[
        str,
        shown(
            None,
            Column("State", place=4, stats=None),
            PageColumn("State", "state", 1, "state"),
            values=STATES,
        ),
    ]
    backends: int
    healthy: Annotated[
        int,
        shown(
            None,
            Column("Up", lambda row: f"{row.healthy}/{row.backends}", 5, number=True),
            Column("Healthy", lambda row: f"{row.healthy}/{row.backends}", 5, number=True, stats=True),
            PageColumn("Healthy", "healthy", 4, "number"),
        ),
    ]
    announced_by: Annotated[
        list[str],
        shown(
            "MUXes that announce the VIP to a router, by their own reports; of one without BGP counts what it has "
            "live, and of one that is not connected nothing is known",
            Column("MUXes", lambda row: row.muxes(), 10, number=True),
            Column("Announced by", place=10, stats=True),
            PageColumn("Announced by", "announced", 5, "extra"),
        ),
    ]
    wanted_by: Annotated[list[str], shown("MUXes that should announce the VIP")]
    unreached: Annotated[bool, shown("it is announced, and the manager's own connections do not get through")] = False
    note: Annotated[
        str | None,
        shown(
            "what clients may notice: that nobody, one MUX alone or not all that should announce it for some seconds, "
            "or that no backend takes new flows; and why"
        ),
    ] = None
    flows_new: Annotated[int | None, shown("flows that began", Column("Conns", place=6, number=True, stats=True))] = (
        None
    )
    flows: Annotated[
        int | None,
        shown(
            "flows alive",
            Column("Flows", lambda row: rate(row.flows), 7, number=True, counted=True),
            Column("Live", place=7, number=True, stats=True),
            PageColumn("Flows", "number", 8, "number"),
        ),
    ] = None
    packets: Annotated[
        int | None,
        shown(
            None,
            Column("Pkts", lambda row: rate(row.packets), 8, number=True, counted=True),
            Column("InPkts", place=8, number=True, stats=True),
        ),
    ] = None
    bytes: Annotated[
        int | None,
        shown(None, Column("InBytes", lambda row: cell(size(row.bytes)), 9, number=True, stats=True)),
    ] = None

    def muxes(self) -> str:
        """How many MUXes announce it; and of how many that should, where these are others."""
        by, wanted = self.announced_by, self.wanted_by
        return str(len(by)) if set(by) == set(wanted) else f"{len(by)}/{len(wanted)}"

    @property
    def amiss(self) -> bool:
        return self.state not in ("up", "new", "retiring") or bool(self.note)

    @classmethod
    def notes(cls, rows: Sequence[Self]) -> list[str]:
        found: dict[str, list[str]] = {}
        for row in rows:
            if row.note:
                found.setdefault(row.note, []).append(row.name)
        return service_notes(found)


def service_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """``notes``: what is to be said, and of which services."""
    return [f"{cell(some(names))}: {cell(note)}" for note, names in notes.items()]


#: What MUXes count of a service.
COUNTERS = ("flows_new", "flows", "packets", "bytes")
