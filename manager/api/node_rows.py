# SPDX-License-Identifier: Apache-2.0
"""Rows of MUXes and agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manager.api.reader import Reader, Row, node_state
from manager.nodes.hub import Entry, rows
from manager.observed.drains import announced
from manager.plan.model import AGENT, MUX


class NodeRows(Reader):
    """Of each node that has ever joined."""

    def muxes(self) -> list[Row]:
        differs = self._controller.pools.differs
        return [
            {
                **self._node(entry),
                "differs": differs.get(entry.record.name),
                "drain": self._drain(entry.record.name),
                "announces": len((entry.state or {}).get("announcements", {})),
                "announced": announced(entry),
                "handover": self._flow_sync(entry),
                "io": self._mux_row(entry).get("io"),
                "mode": self._mux_row(entry).get("mode"),
                "flows": self._mux_row(entry).get("flows"),
                "forwarded": self._mux_row(entry).get("forwarded"),
                "dropped": self._mux_row(entry).get("dropped"),
                "missed": self._mux_row(entry).get("missed"),
                "saturated": self._mux_row(entry).get("saturated"),
                "peers": [
                    {key: row.get(key) for key in ("name", "address", "state", "announced", "error")}
                    for row in rows(entry.status, "peers")
                ],
            }
            for entry in self.entries(MUX)
        ]

    def agents(self) -> list[Row]:
        return [
            {**self._node(entry), "services": len((entry.state or {}).get("services", {}))}
            for entry in self.entries(AGENT)
        ]

    def _node(self, entry: Entry) -> Row:
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
