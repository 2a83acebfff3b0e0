# SPDX-License-Identifier: Apache-2.0
"""The row of a backend. In a table they stand in the shape of ``ipvsadm -Ln``: a line for their service, and below it
``-> address:port`` for each of them."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from lb.rows.row import Column, PageColumn, Port, Row, Time, Transport, shown
from lb.tables.values import ago, cell, endpoint, rate, some

#: State and reason -> the backends of which that is true, each with its service.
Because = dict[tuple[str, str], list[str]]


class BackendRow(Row, kw_only=True, gc=False):
    """A backend of a service, why it is in its state, and what MUXes count of it; null: none has reported it."""

    KEY = ("service", "name")
    GROUP = "service"

    service: str
    vip: str
    protocol: Transport
    service_port: Port
    name: Annotated[
        str, shown(None, Column("Service", place=2, stats=None), PageColumn("Backend", "backend", 2, "name"))
    ]
    address: Annotated[
        str,
        shown(
            None,
            Column(
                "Prot LocalAddress:Port", lambda row: f"  -> {endpoint(row.address, row.port)}", place=1, stats=None
            ),
        ),
    ]
    port: Port
    weight: Annotated[
        int,
        shown(None, Column("Weight", place=4, number=True, stats=None), PageColumn("Weight", "number", 4, "number")),
    ]
    slow_start: Annotated[
        float | None, shown("the part of its weight that a backend which returned has by now; null: all of it")
    ]
    server_id: Annotated[
        str | None,
        shown("its name in QUIC connection ids, hex digits, one of each length; null: ids of its service name nobody"),
    ] = None
    state: Annotated[
        str,
        shown(
            None,
            Column("State", lambda row: "drained" if row.empty_since is not None else cell(row.state), 3, stats=None),
            PageColumn("State", "state-since", 1, "state"),
            values=("up", "down", "drain", "panic", "unknown", "installing"),
        ),
    ]
    takes_flows: bool
    healthy: bool
    agent: str | None
    since: Time
    empty_since: Annotated[Time | None, shown("Unix time since when a drain left no flow here")]
    reason: Annotated[
        str,
        shown(
            None, Column("Reason", lambda row: cell(row.why()), stats=True), PageColumn("Reason", "reason", 3, "reason")
        ),
    ]
    flows: Annotated[
        int | None,
        shown(
            "flows alive",
            Column("Flows", lambda row: rate(row.flows), 5, number=True, counted=True),
            Column("Flows", place=5, number=True, stats=True),
            PageColumn("Flows", "number", 8, "number"),
        ),
    ] = None
    packets: Annotated[
        int | None,
        shown(
            None,
            Column("InPkts", lambda row: rate(row.packets), 6, number=True, counted=True),
            Column("InPkts", place=6, number=True, stats=True),
        ),
    ] = None

    def why(self) -> str:
        """Why it is in its state."""
        return self.reason if self.empty_since is None else f"no flow left for {ago(self.empty_since)}; {self.reason}"

    @property
    def amiss(self) -> bool:
        return self.state not in ("up", "drain")

    @classmethod
    def notes(cls, rows: Sequence[Self]) -> list[str]:
        return backend_notes(unwell(rows))


class OneBackend(BackendRow, kw_only=True, gc=False):
    """A backend, and what is left of it while it drains."""

    left: Annotated[
        "list[FlowsLeft]", shown("while it drains: the flows that each MUX has left, null where it has not reported")
    ]
    tunnels: Annotated[
        "list[TunnelTold]",
        shown("what ICMP told MUXes of their tunnels to it: the MTU, null where it is as configured, or unreachable"),
    ]


class TunnelTold(Row, kw_only=True, gc=False):
    """What routers and hosts told a MUX of its tunnel to a backend, while the MUX remembers it."""

    mux: str
    mtu: int | None
    unreachable: bool
    reason: str


class FlowsLeft(Row, kw_only=True, gc=False):
    """Of a backend that drains, on one MUX."""

    mux: str
    flows: int | None
    why: str | None


#: Stands below the header of a table of backends.
BELOW_HEADER = "  -> RemoteAddress:Port"
#: What MUXes count of a backend.
COUNTERS = ("flows", "packets")


def head_cells(first: BackendRow, width: int) -> tuple[str, ...]:
    """The line of a service above its backends, of which this is one; ``width`` columns."""
    place = f"{cell(first.protocol).upper():<4} {endpoint(first.vip, first.service_port)}"
    return (place, cell(first.service), *[""] * (width - 2))


def unwell(rows: Iterable[BackendRow]) -> Because:
    """Of backends that are up there is nothing to explain; `lb describe backend` does."""
    found: Because = {}
    for row in rows:
        if row.state != "up" or not row.healthy:
            why = cell(row.state), cell(row.why())
            found.setdefault(why, []).append(f"{cell(row.service)}/{cell(row.name)}")
    return found


def backend_notes(because: Because) -> list[str]:
    return [f"{some(names)} {state}: {why}" for (state, why), names in because.items()]
