# SPDX-License-Identifier: Apache-2.0
"""Which rows of a table ``lb get`` shows: those of some names, or those that are not as they should be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lb.errors import NotFoundError
from lb.rows.backend import BackendRow
from lb.rows.row import Row

R = TypeVar("R", bound=Row)

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
#: And those of which what is amiss can be.
JUDGED = (*NAMED, "announcements")


def by_name(what: str, rows: Sequence[R], names: Sequence[str]) -> list[R]:
    """Those of these names; a backend's is "web/web-1", and "web" all of a service. Each name must have some."""
    found: list[R] = []
    for name in names:
        some = [row for row in rows if name in _names(row)]
        if not some:
            one = {"muxes": "MUX"}.get(what, what.removesuffix("s"))
            raise NotFoundError(f'there is no {one} "{name}"; `lb get {what}` lists all')
        found += [row for row in some if row not in found]
    return found


def _names(row: Row) -> tuple[str, ...]:
    if isinstance(row, BackendRow):
        return row.service, f"{row.service}/{row.name}"
    return (str(getattr(row, "name", None)),)
