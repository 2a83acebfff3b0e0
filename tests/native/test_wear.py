# SPDX-License-Identifier: Apache-2.0
"""What hours and floods do to the flow table; small here, large by ``lb bench wear`` and ``lb bench acks``."""

from __future__ import annotations

import pytest

from lb.bench.pipeline import bench_services
from lb.bench.wear import ACK, FIN, FLOOD, PSH, SECOND, START, SYN, bench_acks, bench_rollouts, bench_wear
from lb.dataplane import FLOW_TIERS, LinkHeader, Pipeline, Script
from lb.dataplane.compile.compiler import Compiler
from tests.packets.world import SETTINGS

#: Places of the smallest table there is: 65,536 lines of six.
ROOM = 393_216
TICK = 1 << 28
SNAPSHOT = Compiler(SETTINGS).compile(bench_services(1, 8)).offline_snapshot()


def test_closed_connections_leave_their_places_and_a_drain_moves_nobody() -> None:
    """Twice as many connections as there are places, all of them younger than the idle timeout."""
    found = bench_wear(connections_per_second=5000, hours=160 / 3600, flows=1, live=2000)
    assert found.packets > 2 * ROOM
    assert found.untracked == 0
    assert (found.forgotten, found.broken) == (0, 0)
    assert sum(row.ended for row in found.intervals) > ROOM // 2
    assert sum(row.trusted for row in found.intervals) == 0
    assert found.sound


@pytest.mark.parametrize("apart_ms", [0, 300])
def test_a_flood_of_doubled_acks_displaces_nobody_and_leaves_room(apart_ms: int) -> None:
    """Two at once look like a conversation that has begun; two a tick apart like one that goes on."""
    found = bench_acks(rate=1_000_000, seconds=1.5, apart_ms=apart_ms, flows=1, live=2000, new=2000)
    assert found.packets == 1_500_000
    assert (found.displaced, found.broken) == (0, 0)
    assert found.remembered == 2000, "a minute later new flows find no place"
    assert found.known > 1800
    assert found.sound


def test_roll_outs_with_fresh_names_mislead_no_flow_and_use_no_more_numbers() -> None:
    """Each a second or two after the one before, and the same clients come back each time."""
    found = bench_rollouts(rollouts=300, services=2, backends=3, seconds=1.5)
    assert found.mislead == 0
    assert found.names == 1800
    assert found.counters < 120
    assert found.highest < 60
    assert found.sound


def full_of_trusted(script: Script, now: int) -> int:
    """Fills every place; the time when the last packet came."""
    for turn in range(16):
        flows = range(FLOOD + turn * ROOM // 8, FLOOD + (turn + 1) * ROOM // 8)
        for _ in range(3):
            script.send(SNAPSHOT, flows, ACK, now)
            now += TICK
    return now


def test_a_flow_without_a_place_does_not_pay_for_looking_each_time() -> None:
    """All its places are taken by flows that were seen lately; it costs about what no flow table costs at all."""
    pipeline = Pipeline(1, LinkHeader.SWAP)
    script = Script(pipeline, SNAPSHOT)
    now = full_of_trusted(script, START)
    flows = range(20_000)
    script.send(SNAPSHOT, flows, ACK, now)
    moved = pipeline.counters().flows.moved
    fates = [script.send(SNAPSHOT, flows, ACK, now) for _ in range(5)]
    assert all(fate.untracked > 0.95 * len(flows) for fate in fates)
    assert pipeline.counters().flows.moved == moved, "it was tried again"
    stateless = Script(Pipeline(0, LinkHeader.SWAP), SNAPSHOT)
    stateless.send(SNAPSHOT, flows, ACK, now)
    plain = min(stateless.send(SNAPSHOT, flows, ACK, now).ns for _ in range(5))
    assert min(fate.ns for fate in fates) < 5 * plain
    assert pipeline.check() is None


def test_half_a_minute_later_those_that_were_silent_longest_make_room() -> None:
    pipeline = Pipeline(1, LinkHeader.SWAP)
    script = Script(pipeline, SNAPSHOT)
    now = full_of_trusted(script, START)
    busy, quiet = range(FLOOD, FLOOD + 1000), range(FLOOD + 1000, FLOOD + 2000)
    busy_homes, quiet_homes = (script.backends(SNAPSHOT, flows, ACK, now) for flows in (busy, quiet))
    now += 31 * SECOND
    script.send(SNAPSHOT, busy, ACK, now)
    fresh = range(20_000)
    assert script.send(SNAPSHOT, fresh, SYN, now).new == len(fresh)
    assert pipeline.counters().flows.tiers[FLOW_TIERS.index("trusted")] > 0.5 * len(fresh)
    assert script.send(SNAPSHOT, busy, ACK, now).known >= 990
    # Who is forgotten is one that Maglev sends where it was: nothing breaks.
    assert script.backends(SNAPSHOT, busy, ACK, now) == busy_homes
    assert script.backends(SNAPSHOT, quiet, ACK, now) == quiet_homes
    assert pipeline.check() is None


def test_a_forged_end_costs_a_live_flow_its_place_only_where_there_is_no_other() -> None:
    """Ended and silent, it goes before conversations that go on; while any place is free, it stays."""
    pipeline = Pipeline(1, LinkHeader.SWAP)
    script = Script(pipeline, SNAPSHOT)
    mine = range(1000)
    for flags, now in ((SYN, START), (PSH | ACK, START + TICK), (FIN | ACK, START + TICK)):
        script.send(SNAPSHOT, mine, flags, now)
    script.send(SNAPSHOT, range(FLOOD, FLOOD + ROOM // 3), SYN, START + 20 * SECOND)
    assert script.send(SNAPSHOT, mine, ACK, START + 20 * SECOND).known == 1000
    script.send(SNAPSHOT, range(FLOOD, FLOOD + 2 * ROOM), SYN, START + 25 * SECOND)
    assert script.send(SNAPSHOT, mine, ACK, START + 25 * SECOND).known == 1000, "silent for five seconds only"
    script.send(SNAPSHOT, range(FLOOD, FLOOD + 2 * ROOM), SYN, START + 40 * SECOND)
    assert script.send(SNAPSHOT, mine, ACK, START + 40 * SECOND).known < 500
