# SPDX-License-Identifier: Apache-2.0
"""What the data plane refuses to be made of, though the configuration's checks would never let it through."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from lb.dataplane import NO_MAC, BackendEntry, Hop, HopRow, HopTable, ServiceEntry, Snapshot, VipMap
from lb.dataplane.maglev import Maglev, MaglevMember
from lb.errors import DataplaneError
from lb.model import Protocol

TABLE = Maglev(7, [MaglevMember(0, 1, 1, 0)])
GOOD = ServiceEntry(
    id=0,
    first_port=80,
    last_port=80,
    protocol=Protocol.TCP,
    vip=ip_address("203.0.113.10"),
    prefix_length=32,
    hash_source=False,
    idle_seconds=60,
    mtu=9216,
    maglev=TABLE,
    backends=[BackendEntry(0, 0, 1)],
)
HOP = HopRow(ip_address("10.0.0.1"), Hop(ip_address("10.0.3.1"), NO_MAC))
HOP6 = HopRow(ip_address("2001:db8::1"), Hop(ip_address("2001:db8:3::1"), NO_MAC))


def a_map(service: ServiceEntry) -> VipMap:
    return VipMap(bytes(16), 10, [service])


def test_a_plain_service_is_taken() -> None:
    Snapshot(a_map(GOOD), HopTable([HOP]), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 32768},
        {"first_port": 81},
        {"prefix_length": 33},
        {"prefix_length": 24},
        {"mtu": 9217},
        {"backends": [BackendEntry(0, 0, 1)] * 4096},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_service_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataplaneError):
        a_map(replace(GOOD, **change))  # type: ignore[arg-type]


def test_the_same_id_twice_is_refused() -> None:
    with pytest.raises(DataplaneError):
        VipMap(bytes(16), 10, [GOOD, replace(GOOD, vip=ip_network("203.0.113.11").network_address)])


def test_a_service_that_is_not_there_cannot_go() -> None:
    with pytest.raises(DataplaneError):
        a_map(GOOD).changed([1], [])
    with pytest.raises(DataplaneError):
        a_map(GOOD).changed([0, 0], [])


def test_a_service_may_go_and_come_in_one_change() -> None:
    before = a_map(GOOD)
    after = before.changed([0], [replace(GOOD, first_port=81, last_port=81)])
    Snapshot(after, HopTable([HOP]), 0)
    with pytest.raises(DataplaneError):
        after.changed([], [replace(GOOD, id=1, first_port=81, last_port=81)])


@pytest.mark.parametrize(
    "hops",
    [[], [HOP._replace(tunnel=3, port=6080)], [HOP._replace(tunnel=1, port=0)]],
    ids=["no such hop", "no such tunnel", "a tunnel over UDP without a port"],
)
def test_a_backend_without_its_hop_is_refused(hops: list[HopRow]) -> None:
    with pytest.raises(DataplaneError):
        Snapshot(a_map(GOOD), HopTable(hops), 0)


@pytest.mark.parametrize("tunnel", [0, 1, 2])
def test_a_hop_may_be_of_the_other_family_and_of_any_tunnel(tunnel: int) -> None:
    Snapshot(a_map(GOOD), HopTable([HOP6._replace(tunnel=tunnel, port=6080)]), 0)


def test_backends_that_are_no_more_need_no_hop() -> None:
    Snapshot(a_map(replace(GOOD, backends=[BackendEntry(9, 0, 0), BackendEntry(0, 0, 1)])), HopTable([HOP]), 0)


def test_a_counter_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataplaneError):
        Snapshot(a_map(replace(GOOD, backends=[BackendEntry(0, 1 << 20, 1)])), HopTable([HOP]), 0)
