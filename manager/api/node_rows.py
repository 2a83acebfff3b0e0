# SPDX-License-Identifier: Apache-2.0
"""Rows of MUXes and agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lb.rows.node import AgentRow, MuxRow, SessionRow
from manager.api.reader import Reader, node_state
from manager.nodes.hub import Entry, rows
from manager.observed.drains import announced
from manager.plan.model import AGENT, MUX

#: What of its row a MUX tells itself.
_TOLD = ("io", "mode", "flows", "forwarded", "dropped", "missed", "saturated")


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in _TOLD}


class NodeRows(Reader):
    """Of each node that has ever joined."""

    def muxes(self) -> list[MuxRow]:
        return [self._mux(entry, self._mux_row(entry)) for entry in self.entries(MUX)]

    def _mux(self, entry: Entry, told: Mapping[str, Any]) -> MuxRow:
        """``told``: what it tells of itself."""
        return MuxRow(
            **self._node(entry),
            differs=self._controller.pools.differs.get(entry.record.name),
            drain=self._drain(entry.record.name),
            announces=len((entry.state or {}).get("announcements", {})),
            announced=announced(entry),
            handover=self._flow_sync(entry),
            **_told(told),
            peers=[
                SessionRow(**{name: row.get(name) for name in SessionRow.__struct_fields__})
                for row in rows(entry.status, "peers")
            ],
        )

    def agents(self) -> list[AgentRow]:
        return [
            AgentRow(**self._node(entry), services=len((entry.state or {}).get("services", {})))
            for entry in self.entries(AGENT)
        ]

    def _node(self, entry: Entry) -> dict[str, Any]:
        return {
            "name": entry.record.name,
            "state": node_state(entry),
            "address": entry.record.address,
            "address6": entry.record.address6,
            "since": entry.since,
            "generation": entry.live_generation if entry.live is not None else None,
            "wanted": entry.generation,
            "refused": entry.refused,
            "left_out": dict(entry.left_out),
            "repaired": self._repaired(entry),
            "clock": self._controller.skews.differs.get(entry.id),
            "version": entry.record.version,
            "clock_skew": None if entry.clock_skew is None else round(entry.clock_skew, 1),
            "certificate_expires": entry.expires,
        }

    def _drain(self, mux: str) -> str | None:
        waits = self._controller.plan.drains.get(mux, "no")
        return None if waits == "no" else waits or "told to drain"

    @staticmethod
    def _flow_sync(entry: Entry) -> str | None:
        """In words, what became of the flows that only this MUX knew, when it last went or came."""
        told = entry.status.get("handover")
        return told if isinstance(told, str) else None

    @staticmethod
    def _repaired(entry: Entry) -> str | None:
        """In words, what the node lately put back into its kernel, or cannot."""
        row = entry.status.get(entry.record.kind)
        told = row.get("repaired") if isinstance(row, dict) else None
        return told if isinstance(told, str) else None

    @staticmethod
    def _mux_row(entry: Entry) -> Mapping[str, Any]:
        found = entry.status.get("mux")
        return found if isinstance(found, dict) else {}
