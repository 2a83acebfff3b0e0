# SPDX-License-Identifier: Apache-2.0
"""Who is waited for: a node that is away for the hold time is not, but a manager that just began waits for all."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from lb.daemon.clocks import Clocks
from lb.errors import AccessError
from lb.node.client import BACKOFF_MAX
from manager.nodes.hub import OTHERS_KEPT, NodeHub, NodeListener
from manager.plan.model import AGENT, MUX
from manager.store.interface import NodeRecord
from manager.store.lineage import StoreStanding
from tests.manager.fake_nodes import FakeNode

HOLD = 3.0
NOW = [100.0]


@pytest.fixture
def hub() -> NodeHub:
    """Of a manager that begins at second 100 and knows one MUX."""
    NOW[0] = 100.0
    found = NodeHub(StoreStanding(1), 1, Mock(spec=NodeListener), HOLD, Clocks(lambda: NOW[0], lambda: NOW[0]))
    found.load([NodeRecord(MUX, "mux1", "192.0.2.1", None, 0.0, 0.0)])
    return found


def time() -> float:
    return NOW[0]


def awaited_at(hub: NodeHub, now: float) -> bool:
    NOW[0] = now
    hub.tick()
    return hub.entries["mux:mux1"].may_follow


def test_a_manager_that_begins_waits_until_nodes_had_the_time_to_come_back(hub: NodeHub) -> None:
    """One that failed to connect just before the manager began tries again after its longest pause."""
    assert awaited_at(hub, 100.0 + HOLD + BACKOFF_MAX - 0.1)
    assert not awaited_at(hub, 100.0 + HOLD + BACKOFF_MAX + 0.1)


def test_a_mux_that_leaves_later_is_awaited_for_the_hold_time(hub: NodeHub) -> None:
    node = FakeNode(MUX, "mux1", "192.0.2.1")
    NOW[0] = 200.0
    hub.arrived(node)
    assert awaited_at(hub, 300.0)
    hub.left(node)
    assert awaited_at(hub, 300.0 + HOLD - 0.1)
    assert not awaited_at(hub, 300.0 + HOLD + 0.1)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "is nobody's"),
        ("127.0.0.1", "is every machine's own"),
        ("224.0.0.5", "is that of many"),
        ("255.255.255.255", "is that of many"),
        ("203.0.113.10", "is a service's"),
        ("ten", "that is none"),
    ],
)
def test_a_node_does_not_say_just_any_address(address: str, why: str) -> None:
    served = ["203.0.113.10"]
    hub = NodeHub(
        StoreStanding(1),
        0,
        Mock(spec=NodeListener),
        HOLD,
        Clocks(time, time),
        served=lambda found: str(found) in served,
    )
    with pytest.raises(AccessError, match=why):
        hub.arrived(FakeNode(MUX, "mux1", address))
    assert hub.entries == {}


def test_the_address_of_another_machine_is_not_taken_by_a_node_of_another_kind(hub: NodeHub) -> None:
    mux, agent = FakeNode(MUX, "mux1", "192.0.2.1"), FakeNode(AGENT, "host1", "192.0.2.1")
    mux.address, agent.address = "192.0.2.1", "192.0.2.9"
    hub.arrived(mux)
    with pytest.raises(AccessError, match="which is that of mux:mux1"):
        hub.arrived(agent)
    agent.address = "192.0.2.1"  # both on one machine
    hub.arrived(agent)


def test_rows_of_services_that_there_are_not_are_heard_by_nobody() -> None:
    listener = Mock(spec=NodeListener)
    knows, announced = "web".__eq__, "203.0.113.10/32".__eq__
    hub = NodeHub(StoreStanding(1), 0, listener, HOLD, Clocks(time, time), known=knows, known_vip=announced)
    node = FakeNode(MUX, "mux1", "10.0.1.11")
    hub.arrived(node)
    body = {
        "at": 1.0,
        "services": [{"name": "web", "packets": 1}, {"name": "other", "packets": 2}],
        "backends": [{"service": "other", "name": "a"}, {"service": "web", "name": "b"}],
        "drains": [{"service": "other", "name": "a"}],
        "announcements": [
            *({"vip": f"10.{n >> 8}.{n & 255}.1"} for n in range(3 * OTHERS_KEPT)),
            {"vip": "203.0.113.10"},
        ],
    }
    hub.status(node, body)
    vips = [{"vip": "203.0.113.10"}, *body["announcements"][:OTHERS_KEPT]]
    kept = {**body, "services": body["services"][:1], "backends": body["backends"][1:], "drains": []}
    kept["announcements"] = vips
    assert hub.entries["mux:mux1"].status == kept
    listener.told.assert_called_once_with(hub.entries["mux:mux1"], kept)
