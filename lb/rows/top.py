# SPDX-License-Identifier: Apache-2.0
"""The rows of ``lb top``: rates over all MUXes, made of the last two reports of each; null: no MUX has reported twice
yet, or lately."""

from typing import Annotated, Any

from msgspec import Meta, field

from lb.rows.row import Column, Port, Row, Time, Transport, shown
from lb.tables.values import cell, endpoint, rate


class RateRow(Row, kw_only=True, gc=False):
    """RatesRow of one thing, or of all."""

    pps: Annotated[
        float | None, shown("packets forwarded per second", Column("PKT/S", lambda row: rate(row.pps), 10, number=True))
    ]
    bps: Annotated[
        float | None,
        shown(
            "bits of them per second, without the outer header",
            Column("BIT/S", lambda row: rate(row.bps), 11, number=True),
        ),
    ]
    cps: Annotated[
        float | None, shown("new flows per second", Column("NEW/S", lambda row: rate(row.cps), 12, number=True))
    ]
    dropped: Annotated[
        float | None,
        shown(
            "packets dropped per second",
            Column("DROP/S", lambda row: rate(row.dropped), 30, number=True, if_any=True),
        ),
    ]
    flows: Annotated[
        int | None,
        shown(
            "flows alive, as counted every few seconds",
            Column("FLOWS", lambda row: rate(row.flows), 13, number=True),
        ),
    ]


class TopService(RateRow, kw_only=True, gc=False):
    """RatesRow of a service."""

    service: Annotated[str, shown(None, Column("SERVICE", place=1))]
    vip: str
    protocol: Transport
    port: Annotated[
        Port, shown(None, Column("ADDRESS", lambda row: f"{endpoint(row.vip, row.port)}/{cell(row.protocol)}", 2))
    ]
    state: Annotated[str, shown(None, Column("STATE", place=20))]


class TopBackend(Row, kw_only=True, gc=False):
    """RatesRow of a backend."""

    service: Annotated[str, shown(None, Column("SERVICE"))]
    backend: Annotated[str, shown(None, Column("BACKEND"))]
    address: Annotated[str, shown(None, Column("ADDRESS"))]
    weight: Annotated[int, shown(None, Column("WEIGHT", number=True))]
    pps: Annotated[
        float | None, shown("packets forwarded per second", Column("PKT/S", lambda row: rate(row.pps), number=True))
    ]
    flows: Annotated[
        int | None,
        shown("flows alive, as counted every few seconds", Column("FLOWS", lambda row: rate(row.flows), number=True)),
    ]
    state: Annotated[str, shown(None, Column("STATE"))]


class TopMux(RateRow, kw_only=True, gc=False):
    """RatesRow of a MUX."""

    mux: Annotated[str, shown(None, Column("MUX", place=1))]
    state: Annotated[str, shown(None, Column("STATE", place=20))]
    received: Annotated[
        float | None,
        shown("packets received per second", Column("IN/S", lambda row: rate(row.received), 2, number=True)),
    ]
    capacity: Annotated[int | None, shown("flows that its table holds")]
    fill: Annotated[
        float | None,
        shown(
            "the part of it that is in use, 0 to 1",
            Column("TABLE", lambda row: cell(None) if row.fill is None else f"{row.fill:.1%}", 14, number=True),
        ),
    ]


class TopLocal(Row, kw_only=True, gc=False):
    """Rates of a service on one MUX; ``lb top --local``."""

    service: Annotated[str, shown(None, Column("SERVICE"))]
    vip: str
    port: Annotated[
        str,
        shown(
            "with the protocol: 80/tcp",
            Column("ADDRESS", lambda row: f"{cell(row.vip)} {cell(row.port).removesuffix('/tcp')}", 100),
        ),
    ]
    pps: Annotated[int, shown(None, Column("PKT/S", lambda row: rate(row.pps), number=True))]
    mbit: Annotated[float, shown(None, Column("BIT/S", lambda row: rate(row.mbit * 1e6), number=True))] = field(
        name="mbit/s"
    )
    fresh: Annotated[int, shown("new flows", Column("NEW/S", lambda row: rate(row.fresh), number=True))] = field(
        name="new/s"
    )
    dropped: int = field(name="dropped/s")
    flows: Annotated[int | None, shown(None, Column("FLOWS", lambda row: rate(row.flows), number=True))]
    packets: int | None


_KINDS = ("TopService", "TopBackend", "TopMux")


class Top(Row, kw_only=True, gc=False):
    """The busiest services, backends or MUXes."""

    at: Time
    by: Annotated[str, shown(None, values=("service", "backend", "mux"))]
    total: RateRow
    of: Annotated[int, shown("how many there are, shown or not")]
    rows: Annotated[
        list[Any],
        Meta(extra_json_schema={"items": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in _KINDS]}}),
    ]


class RatePoints(Row, kw_only=True, gc=False):
    """Each rate, the oldest point first; null where there was no report."""

    pps: list[float | None]
    bps: list[float | None]
    cps: list[float | None]
    dropped: list[float | None]
    flows: list[float | None]


class RatesRow(Row, kw_only=True, gc=False):
    """RatesRow of the last minutes."""

    step: Annotated[float, shown("seconds from one point to the next")]
    first: Annotated[Time, shown("Unix time of the first point")]
    points: Annotated[int, shown("how many there are in each array")]
    total: RatePoints
    muxes: dict[str, RatePoints]
    services: dict[str, RatePoints]
