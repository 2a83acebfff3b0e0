# SPDX-License-Identifier: Apache-2.0
"""How the manager's answers look as tables: in the shape of ``ipvsadm -Ln --stats``, a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lb.cli.output import cell, size
from lb.cli.plain import ago, clock, columns, endpoint, rate

Row = dict[str, Any]


def services(rows: Sequence[Row]) -> list[str]:
    """``TCP  203.0.113.10:80  web  up  2/2 …``, within 80 columns."""
    return columns(
        ("Prot", "LocalAddress:Port", "Service", "State", "Up", "Flows", "Pkts", "MUXes"),
        [
            (
                str(row.get("protocol")).upper(),
                endpoint(row.get("vip"), row.get("port")),
                row.get("name"),
                row.get("state"),
                f"{row.get('healthy')}/{row.get('backends')}",
                rate(row.get("flows")),
                rate(row.get("packets")),
                len(row.get("announced_by") or ()),
            )
            for row in rows
        ],
        ("Up", "Flows", "Pkts", "MUXes"),
    )


def service_stats(rows: Sequence[Row]) -> list[str]:
    """Exact counters, as wide as they are; for ``--stats``."""
    return columns(
        (
            "Prot",
            "LocalAddress:Port",
            "Service",
            "State",
            "Healthy",
            "Conns",
            "Live",
            "InPkts",
            "InBytes",
            "Announced by",
        ),
        [
            (
                str(row.get("protocol")).upper(),
                endpoint(row.get("vip"), row.get("port")),
                row.get("name"),
                row.get("state"),
                f"{row.get('healthy')}/{row.get('backends')}",
                row.get("flows_new"),
                row.get("flows"),
                row.get("packets"),
                _bytes(row.get("bytes")),
                row.get("announced_by"),
            )
            for row in rows
        ],
        ("Healthy", "Conns", "Live", "InPkts", "InBytes"),
    )


def backends(rows: Sequence[Row]) -> list[str]:
    """A line for each service, and ``-> …`` below it for each of its backends; below all, why some take no flows."""
    return [*_backends(rows, rate), *_notes(_backend_note(row) for row in rows)]


def backend_stats(rows: Sequence[Row]) -> list[str]:
    """Exact counters, and every backend's reason beside it; for ``--stats``."""
    return _backends(rows, lambda value: value, ("Reason", _reason))


def _backends(rows: Sequence[Row], number: Callable[[Any], Any], *more: tuple[str, Callable[[Row], Any]]) -> list[str]:
    lines: list[tuple[Any, ...]] = []
    service = None
    for row in rows:
        if row.get("service") != service:
            service = row.get("service")
            place = endpoint(row.get("vip"), row.get("service_port"))
            blank = [""] * (4 + len(more))
            lines.append((f"{str(row.get('protocol')).upper():<4} {place}", service, *blank))
        lines.append(
            (
                f"  -> {endpoint(row.get('address'), row.get('port'))}",
                row.get("name"),
                "drained" if row.get("empty_since") is not None else row.get("state"),
                row.get("weight"),
                number(row.get("flows")),
                number(row.get("packets")),
                *(make(row) for _, make in more),
            )
        )
    header = ("Prot LocalAddress:Port", "Service", "State", "Weight", "Flows", "InPkts", *(name for name, _ in more))
    table = columns(header, lines, ("Weight", "Flows", "InPkts"))
    return [table[0], "  -> RemoteAddress:Port", *table[1:]]


def _backend_note(row: Row) -> str | None:
    """Of one that is up there is nothing to explain; `lb describe backend` does."""
    if row.get("state") in ("up", None) and row.get("healthy", True):
        return None
    return f"{cell(row.get('service'))}/{cell(row.get('name'))} {cell(row.get('state'))}: {cell(_reason(row))}"


def muxes(rows: Sequence[Row]) -> list[str]:
    table = columns(
        ("MUX", "State", "Since", "Address", "VIPs", "Flows", "IO", "BGP"),
        [
            (
                row.get("name"),
                row.get("state"),
                ago(row.get("since")),
                row.get("address") or row.get("address6"),
                row.get("announces"),
                rate(row.get("flows")),
                row.get("io"),
                _sessions(row),
            )
            for row in rows
        ],
        ("VIPs", "Flows"),
    )
    return [*table, *_notes(_node_note(row) for row in rows)]


def agents(rows: Sequence[Row]) -> list[str]:
    table = columns(
        ("Agent", "State", "Since", "Address", "Services"),
        [
            (
                row.get("name"),
                row.get("state"),
                ago(row.get("since")),
                row.get("address") or row.get("address6"),
                row.get("services"),
            )
            for row in rows
        ],
        ("Services",),
    )
    return [*table, *_notes(_node_note(row) for row in rows)]


def _node_note(row: Row) -> str | None:
    """What of a node is not as it should be, or worth knowing."""
    behind = row.get("generation") != row.get("wanted")
    words = [
        f"has generation {_generation(row)}" if behind else None,
        f"refused its state: {cell(row['refused'])}" if row.get("refused") else None,
        cell(row["drain"]) if row.get("drain") else None,
        cell(row["handover"]) if row.get("handover") else None,
    ]
    said = "; ".join(word for word in words if word)
    return f"{cell(row.get('name'))}: {said}" if said else None


def announcements(rows: Sequence[Row]) -> list[str]:
    table = columns(
        ("VIP", "MUX", "Wanted", "Peer", "State"),
        [tuple(row.get(key) for key in ("vip", "mux", "wanted", "peer", "state")) for row in rows],
    )
    because: dict[tuple[Any, Any], list[str]] = {}
    for row in rows:
        if row.get("reason"):
            because.setdefault((row.get("mux"), row["reason"]), []).append(cell(row.get("vip")))
    return [
        *table,
        *_notes(
            f"{cell(mux)}, {vips[0] if len(vips) == 1 else f'{len(vips):,} VIPs'}: {cell(reason)}"
            for (mux, reason), vips in because.items()
        ),
    ]


def _notes(notes: Iterable[str | None]) -> list[str]:
    """Sentences below a table, for a column is too narrow for them."""
    found = [note for note in notes if note]
    return ["", *found] if found else []


def events(rows: Sequence[Row]) -> list[str]:
    return columns(
        ("Time", "", "Subject", "Event"),
        [(clock(row.get("at")), "!" if row.get("bad") else "", row.get("subject"), row.get("text")) for row in rows],
    )


def audit(rows: Sequence[Row]) -> list[str]:
    return columns(
        ("Version", "Time", "Who", "What"),
        [(str(row.get("version")), clock(row.get("at")), row.get("who"), _done(row)) for row in rows],
        ("Version",),
    )


def _done(row: Row) -> str:
    why = row.get("why")
    return f"{row.get('what')}" + (f" ({why})" if why else "")


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "services": services,
    "backends": backends,
    "muxes": muxes,
    "agents": agents,
    "announcements": announcements,
    "events": events,
    "history": audit,
    "audit": audit,
}


#: With ``--stats``.
STATS: dict[str, Callable[[Sequence[Row]], list[str]]] = {"services": service_stats, "backends": backend_stats}


def _reason(row: Row) -> Any:
    empty = row.get("empty_since")
    return row.get("reason") if empty is None else f"no flow left for {ago(empty)}; {row.get('reason')}"


def _bytes(value: Any) -> str | None:
    return size(value) if isinstance(value, int) else None


def _generation(row: Row) -> str:
    live, wanted = row.get("generation"), row.get("wanted")
    return cell(live) if live == wanted else f"{cell(live)} of {cell(wanted)}"


def _sessions(row: Row) -> str | None:
    peers = row.get("peers") or []
    if not peers:
        return None
    up = sum(peer.get("state") == "established" for peer in peers)
    return f"{up}/{len(peers)}"
