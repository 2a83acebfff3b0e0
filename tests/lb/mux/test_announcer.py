# SPDX-License-Identifier: Apache-2.0
"""When a MUX stands behind a VIP, and when its workers count as alive."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from lb.mux.announcer import Ground
from lb.mux.workers.heartbeat import STILL, Pulse

VIP = ip_network("203.0.113.10")
SOLID = Ground(alive=True, proved=frozenset({VIP}))


def test_a_proved_vip_of_a_living_data_plane_may_be_announced() -> None:
    assert SOLID.why_not(VIP, None) is None


def test_each_doubt_holds_the_vip_and_says_so() -> None:
    doubts = {
        "the data plane stands still": replace(SOLID, alive=False),
        "the self-test failed: drop: no_next_hop": replace(
            SOLID, proved=frozenset(), failed={VIP: "drop: no_next_hop"}
        ),
        "no service here has this VIP, or the self-test still runs": replace(SOLID, proved=frozenset()),
        "it is being removed from this MUX": replace(SOLID, released=frozenset({VIP})),
        "this MUX is drained": replace(SOLID, away=True),
    }
    assert {why: ground.why_not(VIP, None) for why, ground in doubts.items()} == {why: why for why in doubts}
    assert SOLID.why_not(VIP, "the interface eth0 is gone") == "the interface eth0 is gone"


def test_nothing_is_announced_before_anything_is_known() -> None:
    assert Ground().why_not(VIP, None) is not None


def test_turning_workers_are_alive() -> None:
    pulse = Pulse()
    assert all(pulse.look((n, n // 2)) for n in range(100))  # one turns half as often as it is looked at


def test_one_worker_that_stands_still_is_enough() -> None:
    pulse = Pulse()
    looks = [pulse.look((n, 7)) for n in range(STILL + 2)]
    assert looks == [True] * STILL + [False] * 2
    assert pulse.look((99, 8))


def test_no_workers_is_no_life() -> None:
    pulse = Pulse()
    pulse.look((1,))
    assert not pulse.look(())


def test_new_workers_begin_afresh() -> None:
    pulse = Pulse()
    for _ in range(STILL + 1):
        pulse.look((5,))
    assert not pulse.look((5,))
    assert pulse.look((5, 5))
