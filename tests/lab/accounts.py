# SPDX-License-Identifier: Apache-2.0
"""Adding up counters: a MUX's own, and every place between client and backend where a packet can be lost.

Called by the tests; reads, and changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.lab import netns
from tests.lab.topology import Lab, Node


def unbalanced(lab: Lab) -> list[str]:
    """The MUXes whose counters do not add up, each with its figures."""
    rows = [lab.status(mux) for mux in lab.muxes if "mux" in mux.processes and mux.processes["mux"].running]
    return [
        f"{row['name']}: {row}"
        for row in rows
        if row["received"] != row["forwarded"] + row["passed"] + row["replied"] + row["dropped"]
    ]


@dataclass(frozen=True, slots=True)
class Losses:
    """Packets lost so far, by who counted them."""

    mux: int  #: a MUX's drops, and what its receive ring had no room for
    devices: int  #: network devices, both ends, all nodes
    backlog: int  #: softnet backlog of all CPUs

    @property
    def total(self) -> int:
        return self.mux + self.devices + self.backlog

    def since(self, before: Losses) -> Losses:
        return Losses(self.mux - before.mux, self.devices - before.devices, self.backlog - before.backlog)


def losses(lab: Lab) -> Losses:
    """Adds up every counter of lost packets on the way from the client to the hosts."""
    mux = sum(lost_in_mux(lab, node) for node in lab.muxes if node.processes["mux"].running)
    devices = sum(_device_drops(namespace) for namespace in lab.namespaces)
    backlog = sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())
    return Losses(mux, devices, backlog)


def lost_in_mux(lab: Lab, mux: Node) -> int:
    row = lab.status(mux)
    return int(row["dropped"]) + int(row["missed"])


def _device_drops(namespace: str) -> int:
    links = json.loads(netns.ip("-n", namespace, "-s", "-j", "link", "show"))
    total = 0
    for link in links:
        stats = link.get("stats64", {})
        total += sum(stats.get(way, {}).get(word, 0) for way in ("rx", "tx") for word in ("dropped", "errors"))
    return total
