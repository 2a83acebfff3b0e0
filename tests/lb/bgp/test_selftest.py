# SPDX-License-Identifier: Apache-2.0
"""The self-test passes every right table, and tells what is wrong with the others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from lb.bgp.selftest import checksum, prove, syn
from lb.dataplane import NO_MAC, Hop
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.model import Address, Backend, BackendState, MuxSettings, Protocol, Service
from tests.lb.bgp.values import service

SETTINGS = MuxSettings(
    name="mux1",
    address=IPv4Address("10.0.1.11"),
    address6=IPv6Address("fd00:1::11"),
    seed=bytes(range(16)),
    interface="eth0",
    slots=251,
)


def backends(count: int, network: str = "10.0.3.{}") -> list[Backend]:
    return [Backend(f"b{n}", ip_address(network.format(n))) for n in range(1, count + 1)]


def hops(forwarding: Forwarding) -> dict[Address, Hop]:
    return {address: Hop(address, NO_MAC) for address in forwarding.hop_addresses}


def judge(*services: Service, reachable: set[Address] | None = None) -> dict[str, str]:
    forwarding = Compiler(SETTINGS).compile(services)
    ways = {address: hop for address, hop in hops(forwarding).items() if reachable is None or address in reachable}
    return prove(forwarding, forwarding.snapshot(ways), ways.keys(), services)


def test_right_tables_pass_whatever_they_hold() -> None:
    assert judge(
        service("web", "203.0.113.10", *backends(3)),
        replace(service("dns", "203.0.113.10", *backends(3), port=53), protocol=Protocol.UDP),
        service("range", "203.0.113.11", *backends(2), port=8000, last=8099),
        service("any", "203.0.113.12", *backends(2), port=0, last=65535),
        service("prefix", "198.51.100.0/24", *backends(2)),
        service("six", "2001:db8::10", *backends(3, "fd00:3::{}")),
    ) == {}  # fmt: skip


def test_a_service_whose_packets_more_specific_ones_take_passes() -> None:
    assert judge(
        service("all", "203.0.113.10/31", *backends(1)),
        service("one", "203.0.113.10", *backends(1)),
        service("two", "203.0.113.11", *backends(1)),
    ) == {}  # fmt: skip


def test_one_reachable_backend_of_many_is_enough() -> None:
    assert judge(service("web", "203.0.113.10", *backends(100)), reachable={ip_address("10.0.3.57")}) == {}


def test_nothing_is_to_be_proved_where_no_backend_takes_flows() -> None:
    drained = [replace(backend, state=BackendState.DRAIN) for backend in backends(2)]
    assert judge(service("a", "203.0.113.10"), service("b", "203.0.113.11", *drained)) == {}
    assert judge(service("web", "203.0.113.10", *backends(2)), reachable=set()) == {}


def test_a_snapshot_without_the_service_fails() -> None:
    web = service("web", "203.0.113.10", *backends(2))
    forwarding = Compiler(SETTINGS).compile([web])
    empty = Compiler(SETTINGS).compile([])
    assert prove(forwarding, empty.snapshot({}), hops(forwarding).keys(), [web]) == {"web": "pass: not_vip"}


def test_a_snapshot_without_next_hops_fails() -> None:
    web = service("web", "203.0.113.10", *backends(2))
    forwarding = Compiler(SETTINGS).compile([web])
    failed = prove(forwarding, forwarding.snapshot({}), hops(forwarding).keys(), [web])
    assert failed == {"web": "drop: no_next_hop"}


def test_a_table_that_sends_to_another_backend_fails() -> None:
    """The snapshot's tunnels lead elsewhere than the configuration says."""
    web = service("web", "203.0.113.10", *backends(1))
    forwarding = Compiler(SETTINGS).compile([web])
    moved = Compiler(SETTINGS).compile([replace(web, backends=(Backend("b1", ip_address("10.0.3.99")),))])
    failed = prove(forwarding, moved.snapshot(hops(moved)), hops(forwarding).keys(), [web])
    assert failed == {"web": "a packet went to backend b1 in a tunnel that does not lead to 10.0.3.1"}


def test_a_table_with_another_service_in_its_place_fails() -> None:
    web, other = service("web", "203.0.113.10", *backends(1)), service("other", "203.0.113.11", *backends(1))
    forwarding = Compiler(SETTINGS).compile([web, other])
    swapped = Compiler(SETTINGS).compile([replace(web, vip=other.vip), replace(other, vip=web.vip)])
    failed = prove(forwarding, swapped.snapshot(hops(swapped)), hops(forwarding).keys(), [web, other])
    assert failed == {"web": "a packet went to service other instead", "other": "a packet went to service web instead"}


def test_packets_have_right_checksums() -> None:
    for protocol in Protocol:
        four = syn(protocol, ip_address("203.0.113.10"), 1024, 80)
        assert checksum(four[:20]) == 0
        pseudo = four[12:20] + bytes([0, protocol.number]) + len(four[20:]).to_bytes(2, "big")
        assert checksum(pseudo + four[20:]) == 0
        six = syn(protocol, ip_address("2001:db8::10"), 1024, 80)
        pseudo = six[8:40] + len(six[40:]).to_bytes(4, "big") + bytes([0, 0, 0, protocol.number])
        assert checksum(pseudo + six[40:]) == 0
