# SPDX-License-Identifier: Apache-2.0
"""How the manager's answers look as tables: in the shape of ``ipvsadm -Ln --stats``, a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lb.cli.output import cell, size
from lb.cli.plain import ago, clock, columns, endpoint, hanging, rate

Row = dict[str, Any]

#: Backends that one sentence names.
_NAMED = 3
#: Where an event's subject begins, after date, time and mark.
_TEXT_AT = 23


def services(rows: Sequence[Row], width: int | None = None) -> list[str]:
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
        width,
    )


def service_stats(rows: Sequence[Row], width: int | None = None) -> list[str]:
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
        width,
    )


def backends(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """A line for each service, and ``-> …`` below it for each of its backends; below all, why some take no flows."""
    because: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        # Of one that is up there is nothing to explain; `lb describe backend` does.
        if row.get("state") not in ("up", None) or not row.get("healthy", True):
            why = cell(row.get("state")), cell(_reason(row))
            because.setdefault(why, []).append(f"{cell(row.get('service'))}/{cell(row.get('name'))}")
    notes = (f"{_some(names)} {state}: {reason}" for (state, reason), names in because.items())
    return [*_backends(rows, width, rate), *_notes(notes, width)]


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


def backend_stats(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Exact counters, and every backend's reason beside it; for ``--stats``."""
    return _backends(rows, width, lambda value: value, ("Reason", _reason))


def _backends(
    rows: Sequence[Row],
    width: int | None,
    number: Callable[[Any], Any],
    *more: tuple[str, Callable[[Row], Any]],
) -> list[str]:
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
    table = columns(header, lines, ("Weight", "Flows", "InPkts"), width)
    return [table[0], "  -> RemoteAddress:Port", *table[1:]]


def muxes(rows: Sequence[Row], width: int | None = None) -> list[str]:
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
        width,
    )
    return [*table, *_notes((_node_note(row) for row in rows), width)]


def agents(rows: Sequence[Row], width: int | None = None) -> list[str]:
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
        width,
    )
    return [*table, *_notes((_node_note(row) for row in rows), width)]


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


def announcements(rows: Sequence[Row], width: int | None = None) -> list[str]:
    table = columns(
        ("VIP", "MUX", "Wanted", "Peer", "State"),
        [tuple(row.get(key) for key in ("vip", "mux", "wanted", "peer", "state")) for row in rows],
        width=width,
    )
    because: dict[tuple[Any, Any], list[str]] = {}
    for row in rows:
        if row.get("reason"):
            because.setdefault((row.get("mux"), row["reason"]), []).append(cell(row.get("vip")))
    return [
        *table,
        *_notes(
            (
                f"{cell(mux)}, {vips[0] if len(vips) == 1 else f'{len(vips):,} VIPs'}: {cell(reason)}"
                for (mux, reason), vips in because.items()
            ),
            width,
        ),
    ]


def _notes(notes: Iterable[str | None], width: int | None) -> list[str]:
    """Sentences below a table, for a column is too narrow for them."""
    found = hanging((note for note in notes if note), width)
    return ["", *found] if found else []


def events(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Columns for programs; on a terminal the text goes on beside its subject, for both are often long."""
    if width is None:
        return columns(
            ("Time", "", "Subject", "Event"),
            [(clock(row.get("at")), _mark(row), row.get("subject"), row.get("text")) for row in rows],
        )
    head = f"{'Time':<{_TEXT_AT}}Subject: event"
    lines = [
        f"{clock(row.get('at'))} {_mark(row):<1}  {cell(row.get('subject'))}: {cell(row.get('text'))}" for row in rows
    ]
    return [head, *hanging(lines, width, _TEXT_AT)]


def _mark(row: Row) -> str:
    return "!" if row.get("bad") else ""


def audit(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """As of events: what was done may be long."""
    if width is None:
        return columns(
            ("Version", "Time", "Who", "What"),
            [(str(row.get("version")), clock(row.get("at")), row.get("who"), _done(row)) for row in rows],
            ("Version",),
        )
    lines = [
        f"{row.get('version')!s:>7}  {clock(row.get('at'))}  {cell(row.get('who'))}: {cell(_done(row))}" for row in rows
    ]
    return [f"Version  {'Time':<19}  Who: what", *hanging(lines, width, 9)]


def _done(row: Row) -> str:
    why = row.get("why")
    return f"{row.get('what')}" + (f" ({why})" if why else "")


#: Rows, and how wide a line may be (None: as wide as it gets).
Draw = Callable[[Sequence[Row], int | None], list[str]]

TABLES: dict[str, Draw] = {
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
STATS: dict[str, Draw] = {"services": service_stats, "backends": backend_stats}


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
