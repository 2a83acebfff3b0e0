# SPDX-License-Identifier: Apache-2.0
"""Flows of another MUX have the ages that they are told with, whatever the clock of the table that takes them says."""

from __future__ import annotations

from dataclasses import replace

from lb.dataplane import Link, Pipeline, exceptional_flows
from lb.forwarding import Compiler
from lb.model import BackendState
from tests.native.test_pressure import FORWARDING, SNAPSHOT, WEB, packet
from tests.packets.world import SETTINGS

SECOND = 1_000_000_000
DRAINED = (
    Compiler(SETTINGS)
    .compile([replace(WEB, backends=(replace(WEB.backends[0], state=BackendState.DRAIN), *WEB.backends[1:]))])
    .offline_snapshot()
)


def test_a_table_that_had_no_packet_for_hours_takes_flows_that_live_on() -> None:
    first, second = Pipeline(1, Link.NONE), Pipeline(1, Link.NONE)
    flows, now = range(500), 100_000 * SECOND
    for turn, flags in enumerate("SA"):
        first.process(SNAPSHOT, [(packet(flags, flow), 40, now + turn * SECOND) for flow in flows])
    second.process(SNAPSHOT, [(packet("S", 1000), 40, SECOND)])  # its clock stands there
    told = exceptional_flows(first, DRAINED, 1000)
    assert told.total > 20
    now += 2 * SECOND
    for (service, backend), records in told.records.items():
        found = second.adopt(DRAINED, service, backend, records, now_ns=now)
        assert (found.taken, found.useless) == (len(records) // 8, 0)
    results = second.process(DRAINED, [(packet("A", flow), 40, now + SECOND) for flow in flows])
    assert sum(result.flow == "known" for result in results) == told.total
    name = FORWARDING.names(0, next(iter(told.records))[1])[1]
    assert name == WEB.backends[0].name
    assert second.check() is None
