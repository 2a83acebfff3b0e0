# SPDX-License-Identifier: Apache-2.0
"""How the manager's answers look as tables: in the shape of ``ipvsadm -Ln --stats``, a line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lb.cli.output import cell, size
from lb.cli.plain import ago, clock, columns, endpoint

Row = dict[str, Any]


def services(rows: Sequence[Row]) -> list[str]:
    """``TCP  203.0.113.10:80  web  up  2/2 …``"""
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
    """A line for each service, and ``-> …`` below it for each of its backends."""
    lines: list[tuple[Any, ...]] = []
    service = None
    for row in rows:
        if row.get("service") != service:
            service = row.get("service")
            place = endpoint(row.get("vip"), row.get("service_port"))
            lines.append((f"{str(row.get('protocol')).upper():<4} {place}", service, "", "", "", "", ""))
        lines.append(
            (
                f"  -> {endpoint(row.get('address'), row.get('port'))}",
                row.get("name"),
                "drained" if row.get("empty_since") is not None else row.get("state"),
                row.get("weight"),
                row.get("flows"),
                row.get("packets"),
                _reason(row),
            )
        )
    header = ("Prot LocalAddress:Port", "Service", "State", "Weight", "Live", "InPkts", "Reason")
    table = columns(header, lines, ("Weight", "Live", "InPkts"))
    return [table[0], "  -> RemoteAddress:Port", *table[1:]]


def muxes(rows: Sequence[Row]) -> list[str]:
    return columns(
        ("MUX", "State", "Since", "Address", "Generation", "Announces", "Flows", "IO", "BGP sessions", "Note"),
        [
            (
                row.get("name"),
                row.get("state"),
                ago(row.get("since")),
                row.get("address"),
                _generation(row),
                row.get("announces"),
                row.get("flows"),
                row.get("io"),
                _sessions(row),
                row.get("refused") or _drain(row),
            )
            for row in rows
        ],
        ("Announces", "Flows"),
    )


def agents(rows: Sequence[Row]) -> list[str]:
    return columns(
        ("Agent", "State", "Since", "Address", "Generation", "Services", "Note"),
        [
            (
                row.get("name"),
                row.get("state"),
                ago(row.get("since")),
                row.get("address") or row.get("address6"),
                _generation(row),
                row.get("services"),
                row.get("refused"),
            )
            for row in rows
        ],
        ("Services",),
    )


def announcements(rows: Sequence[Row]) -> list[str]:
    return columns(
        ("VIP", "MUX", "Wanted", "Peer", "State", "Reason"),
        [tuple(row.get(key) for key in ("vip", "mux", "wanted", "peer", "state", "reason")) for row in rows],
    )


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


def _drain(row: Row) -> Any:
    """Whether and how far a MUX drains, and its last hand-over."""
    words = [row.get("drain"), row.get("handover")]
    return "; ".join(str(word) for word in words if word) or None


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
