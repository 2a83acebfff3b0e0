# SPDX-License-Identifier: Apache-2.0
"""Flows seen from beside, while workers go on: how many each backend has, and which no other MUX knows."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lb.dataplane.binding import c, ffi
from lb.dataplane.pipeline import Pipeline
from lb.dataplane.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class BackendFlows:
    """Live flows of one backend of one service; ``unsynchronised``: those that Maglev would send elsewhere now."""

    tcp: int = 0
    udp: int = 0
    unsynchronised: int = 0

    @property
    def live(self) -> int:
        return self.tcp + self.udp


class Census:
    """How many live flows each backend has, counted while workers go on; see native/control/flow_table_scan.h."""

    def __init__(self, counters: int) -> None:
        """``counters``: how many counter indices are in use."""
        self._rows = ffi.new("struct flow_scan_row[]", max(counters, 1))
        self._numbers = memoryview(ffi.buffer(self._rows)).cast("B").cast("I")
        self._counters = counters

    def add(self, pipeline: Pipeline, snapshot: Snapshot) -> None:
        """Adds a pipeline's flows, whether a worker runs it or not. Takes a while, and lets other threads run."""
        c.flow_scan_count(pipeline._c, snapshot._c, self._rows, self._counters)

    def of(self, counter: int) -> BackendFlows:
        """Of a backend, by its counter index; none where it is newer than the census."""
        if counter >= self._counters:
            return BackendFlows()
        tcp, udp, unsynchronised = self._numbers[3 * counter : 3 * counter + 3]
        return BackendFlows(tcp, udp, unsynchronised)


@dataclass(frozen=True, slots=True)
class Unsynchronised:
    """Unsynchronised flows by (service id, backend number), each as records; ``total`` counts those left out as
    well."""

    records: dict[tuple[int, int], bytes]
    total: int


def unsynchronised_flows(pipeline: Pipeline, snapshot: Snapshot, most: int) -> Unsynchronised:
    """No more than ``most`` of them. Read from beside, as a :class:`Census` is."""
    records, owners = ffi.new("uint64_t[]", max(most, 1)), ffi.new("uint32_t[]", max(most, 1))
    total = int(c.flow_scan_unsynchronised(pipeline._c, snapshot._c, records, owners, most))
    found: dict[tuple[int, int], list[int]] = {}
    for owner, record in zip(ffi.unpack(owners, min(total, most)), records, strict=False):
        found.setdefault((owner >> 12, owner & 0xFFF), []).append(record)
    return Unsynchronised({owner: struct.pack(f"<{len(rows)}Q", *rows) for owner, rows in found.items()}, total)
