# SPDX-License-Identifier: Apache-2.0
"""Which rows of a table ``lb get`` shows: those of some names, or those that are not as they should be. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lb.errors import NotFoundError

Row = dict[str, Any]

#: What one of them is called.
SINGULAR = {
    "service": "services",
    "backend": "backends",
    "mux": "muxes",
    "agent": "agents",
    "announcement": "announcements",
    "event": "events",
}
#: Those of which some can be chosen by name.
NAMED = ("services", "backends", "muxes", "agents")


def by_name(what: str, rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Those of these names; a backend's is "web/web-1", and "web" all of a service. Each name must have some."""
    found: list[Row] = []
    for name in names:
        some = [row for row in rows if name in _names(what, row)]
        if not some:
            one = {"muxes": "MUX"}.get(what, what.removesuffix("s"))
            raise NotFoundError(f'there is no {one} "{name}"; `lb get {what}` lists all')
        found += [row for row in some if row not in found]
    return found


def _names(what: str, row: Row) -> tuple[str, ...]:
    if what == "backends":
        return str(row.get("service")), f"{row.get('service')}/{row.get('name')}"
    return (str(row.get("name")),)


def amiss(what: str, rows: Sequence[Row]) -> list[Row]:
    """Those that somebody should look at. What operators drain is as they want it."""
    return [row for row in rows if _AMISS[what](row)]


def _service(row: Row) -> bool:
    return row.get("state") not in ("up", "new", "retiring") or bool(row.get("note"))


def _backend(row: Row) -> bool:
    return row.get("state") not in ("up", "drain")


def _node(row: Row) -> bool:
    return row.get("state") != "ready" or any(row.get(key) for key in ("refused", "left_out", "repaired", "clock"))


def _mux(row: Row) -> bool:
    said = any(row.get(key) for key in ("differs", "saturated"))
    down = any(peer.get("state") != "established" for peer in row.get("peers") or ())
    wanted, now = row.get("announces"), row.get("announced")
    lacks = row.get("drain") is None and now is not None and now != wanted
    return _node(row) or said or down or lacks


def _announcement(row: Row) -> bool:
    if not row.get("wanted"):
        return row.get("state") in ("announced", "draining")
    return row.get("state") != "announced" and (row.get("peer") is not None or "BGP" not in str(row.get("reason")))


_AMISS: dict[str, Callable[[Row], bool]] = {
    "services": _service,
    "backends": _backend,
    "muxes": _mux,
    "agents": _node,
    "announcements": _announcement,
}
#: Tables of which what is amiss can be chosen.
JUDGED = tuple(_AMISS)
