# SPDX-License-Identifier: Apache-2.0
"""Flows of another MUX have the ages that they are told with, whatever the clock of the table that takes them says."""

from __future__ import annotations

import struct
from dataclasses import replace

from lb.dataplane import LinkHeader, Pipeline, unsynchronised_flows
from lb.dataplane.compile.compiler import Compiler
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
    first, second = Pipeline(1, LinkHeader.NONE), Pipeline(1, LinkHeader.NONE)
    flows, now = range(500), 100_000 * SECOND
    for turn, flags in enumerate("SA"):
        first.process(SNAPSHOT, [(packet(flags, flow), 40, now + turn * SECOND) for flow in flows])
    second.process(SNAPSHOT, [(packet("S", 1000), 40, SECOND)])  # its clock stands there
    told = unsynchronised_flows(first, DRAINED, 1000)
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


def test_a_flow_that_had_a_packet_since_it_was_told_is_not_forgotten() -> None:
    pipeline = Pipeline(1, LinkHeader.NONE)
    for turn, flags in enumerate("SA"):
        pipeline.process(SNAPSHOT, [(packet(flags, flow), 40, turn * SECOND) for flow in range(500)])
    now = 10 * SECOND
    pipeline.process(DRAINED, [(packet("A", 1000), 40, now)])  # the table's clock goes on
    told = unsynchronised_flows(pipeline, DRAINED, 1000)
    assert told.total > 20
    live = sum(pipeline.counters().flows.live)
    pipeline.process(DRAINED, [(packet("A", flow), 40, now) for flow in range(0, 500, 2)])
    forgotten = sum(
        pipeline.forget(DRAINED, service, backend, records, now_ns=now)
        for (service, backend), records in told.records.items()
    )
    assert 0 < forgotten < told.total
    assert sum(pipeline.counters().flows.live) == live - forgotten
    results = pipeline.process(DRAINED, [(packet("A", flow), 40, now + SECOND) for flow in range(0, 500, 2)])
    assert {result.flow for result in results} == {"known"}


def test_what_was_told_is_told_again_with_the_same_age() -> None:
    first, second = Pipeline(1, LinkHeader.NONE), Pipeline(1, LinkHeader.NONE)
    for turn, flags in enumerate("SA"):
        first.process(SNAPSHOT, [(packet(flags, flow), 40, turn * SECOND) for flow in range(500)])
    now = 10 * SECOND
    for pipeline in (first, second):
        pipeline.process(DRAINED, [(packet("A", 1000), 40, now)])  # their clocks go on
    told = unsynchronised_flows(first, DRAINED, 1000)
    for (service, backend), records in told.records.items():
        second.adopt(DRAINED, service, backend, records, now_ns=now)
    again = unsynchronised_flows(second, DRAINED, 1000)
    for owner, records in told.records.items():
        assert set(struct.iter_unpack("<Q", records)) == set(struct.iter_unpack("<Q", again.records[owner]))
