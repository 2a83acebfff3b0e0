# SPDX-License-Identifier: Apache-2.0
"""Nodes that were turned away, and why: two machines of one name, an address that is another's, a revoked certificate.

They try again every few seconds, so what counts is one line for each machine, with how often and when last. Bounded:
the one that was silent for longest makes room. Values only; owned by :class:`manager.nodes.hub.NodeHub`.
"""

from __future__ import annotations

from typing import Any

from lb.errors import AccessError

#: Machines that are remembered.
KEPT = 100


class DuplicateError(AccessError):
    """Somebody else has this name or address."""


class TurnedAway:
    """See the module's text."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, node: str, address: str, reason: str, now: float, *, duplicate: bool) -> bool:
        """Whether this is news."""
        before = self._rows.pop((node, address), None)
        same = before is not None and before["reason"] == reason
        self._rows[node, address] = {  # at the end: the newest
            "node": node,
            "address": address,
            "reason": reason,
            "duplicate": duplicate,
            "first": before["first"] if before is not None else now,
            "last": now,
            "count": before["count"] + 1 if before is not None else 1,
        }
        if len(self._rows) > KEPT:
            del self._rows[next(iter(self._rows))]
        return not same

    def came(self, node: str, address: str) -> None:
        """This one was let in after all."""
        self._rows.pop((node, address), None)

    def rows(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [dict(row) for row in reversed(self._rows.values())]
