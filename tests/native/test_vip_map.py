# SPDX-License-Identifier: Apache-2.0
"""The VIP map against the sentence it implements: of all services that match, the most specific one."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb.bgp.selftest import syn
from lb.dataplane import LinkHeader, Pipeline, Verdict
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import DataplaneError
from lb.model import Address, Backend, PortRange, Protocol, Service
from tests.model import services as model
from tests.native.compiled import library
from tests.packets.build import ethernet, ipv4, ipv6, ping, tcp, udp
from tests.packets.world import SETTINGS

BACKENDS = {4: (Backend("b", ip_address("10.0.0.1")),), 6: (Backend("b", ip_address("2001:db8:b::1")),)}


def a_service(name: str, vip: str, protocol: Protocol, first: int, last: int) -> Service:
    network = ip_network(vip, strict=False)
    return Service(name, network, protocol, PortRange(first, last), BACKENDS[network.version])


def tie(a: Service, b: Service) -> bool:
    """Neither is more specific, and some packet matches both."""
    same = a.vip == b.vip and a.protocol == b.protocol and (a.ports.exact, a.ports.any) == (b.ports.exact, b.ports.any)
    return same and a.ports.first <= b.ports.last and b.ports.first <= a.ports.last


# A small world, so that services and packets meet.
BITS4, BITS6 = st.integers(0, 255), st.integers(0, 255)
ADDRESSES: st.SearchStrategy[str] = st.one_of(
    BITS4.map(lambda n: f"203.0.{n >> 5}.{n & 31}"), BITS6.map(lambda n: f"2001:db8:{n >> 4:x}::{n & 15:x}")
)
PORTS = st.sampled_from([0, 1, 79, 80, 81, 8000, 8001, 8050, 8099, 8100, 65534, 65535])


@st.composite
def some_services(draw: st.DrawFn) -> list[Service]:
    chosen: list[Service] = []
    for n in range(draw(st.integers(0, 25))):
        address = draw(ADDRESSES)
        length = draw(
            st.sampled_from([0, 8, 24, 27, 30, 31, 32] if ":" not in address else [0, 32, 48, 64, 126, 127, 128])
        )
        first, last = sorted((draw(PORTS), draw(PORTS)))
        if draw(st.integers(0, 2)) == 0:
            first, last = 0, 65535
        service = a_service(f"s{n}", f"{address}/{length}", draw(st.sampled_from(Protocol)), first, last)
        if not any(tie(service, other) for other in chosen):
            chosen.append(service)
    return chosen


Packet = tuple[str, int, Protocol]
PACKETS: st.SearchStrategy[list[Packet]] = st.lists(
    st.tuples(ADDRESSES, PORTS, st.sampled_from(Protocol)), min_size=20, max_size=60
)


@settings(max_examples=150, deadline=None)
@given(some_services(), PACKETS)
@example([a_service("x", "203.0.113.1/32", Protocol.TCP, 0, 0)], [("203.0.113.1", 0, Protocol.TCP)])
def test_the_most_specific_service_wins(services: list[Service], packets: list[Packet]) -> None:
    forwarding = Compiler(SETTINGS).compile(services)
    for address, port, protocol in packets:
        destination = ip_address(address)
        client: Address = ip_address("192.0.2.1" if destination.version == 4 else "2001:db8:c::1")
        found = forwarding.lookup(protocol, client, 1, destination, port)
        assert found.service == model.match(services, protocol.number, destination, port)


def verdicts(forwarding: Forwarding, packets: Iterable[Packet]) -> list[tuple[Verdict, str, str | None]]:
    """What the data plane does with a packet to each place, and for which service."""
    probes = [syn(protocol, ip_address(address), 1024, port) for address, port, protocol in packets]
    results = Pipeline(0, LinkHeader.NONE).process(
        forwarding.offline_snapshot(), [(probe, len(probe), 0) for probe in probes]
    )
    return [(result.verdict, result.reason, forwarding.names(result.service_id, None)[0]) for result in results]


@settings(max_examples=100, deadline=None)
@given(some_services(), st.lists(st.sets(st.integers(0, 24)), min_size=1, max_size=6), PACKETS)
def test_a_map_that_was_changed_answers_as_one_that_was_made_anew(
    services: list[Service], steps: list[set[int]], packets: list[Packet]
) -> None:
    compiler = Compiler(SETTINGS)
    for step in steps:
        chosen = [service for n, service in enumerate(services) if n in step]
        assert verdicts(compiler.compile(chosen), packets) == verdicts(Compiler(SETTINGS).compile(chosen), packets)


@pytest.mark.parametrize("family", [4, 6])
def test_a_map_that_is_changed_again_and_again_holds_exactly_its_services(family: int) -> None:
    """Among many services rows of the tables stand in each other's way, and one that goes must not hide another."""
    chance = random.Random(4)
    pool = []
    for n in range(6000):
        parts = chance.randrange(4), n >> 9, n >> 1 & 255
        vip = "10.{}.{}.{}/32".format(*parts) if family == 4 else "2001:db8:{:x}:1::{:x}:{:x}/128".format(*parts)
        pool.append(a_service(f"s{n}", vip, Protocol.TCP, 80 + n % 2, 80 + n % 2))
    pool = list({(service.vip, service.ports): service for service in pool}.values())
    packets = [(str(service.vip.network_address), service.ports.first, Protocol.TCP) for service in pool]
    there = set(range(0, len(pool), 2))
    compiler = Compiler(SETTINGS)
    for turn in range(60):
        there ^= set(chance.sample(range(len(pool)), 1 if turn % 3 else 200))
        if turn == 40:
            there = set(sorted(there)[:30])  # small enough for smaller tables
        forwarding = compiler.compile([pool[n] for n in sorted(there)])
        if turn % 10 in (0, 9):
            vips = {pool[n].vip for n in there}
            for n, (verdict, _, name) in enumerate(verdicts(forwarding, packets)):
                expected = Verdict.FORWARD if n in there else Verdict.DROP if pool[n].vip in vips else Verdict.PASS
                assert verdict is expected
                assert name == (pool[n].name if n in there else None)


@pytest.mark.parametrize(
    ("first", "second"),
    [((80, 80), (80, 80)), ((0, 65535), (0, 65535)), ((10, 20), (20, 30)), ((10, 30), (15, 20)), ((10, 20), (5, 10))],
)
@pytest.mark.parametrize("vip", ["203.0.113.1/32", "2001:db8::7/128"])
def test_two_services_that_tie_are_refused(vip: str, first: tuple[int, int], second: tuple[int, int]) -> None:
    services = [a_service(str(n), vip, Protocol.TCP, *ports) for n, ports in enumerate((first, second))]
    assert tie(*services)
    # the compiler tells services apart by these very things, so equal ones are one; the map is asked directly
    with pytest.raises(DataplaneError):
        Compiler(SETTINGS).compile(services)


def test_ten_thousand_services_are_found() -> None:
    services = [
        a_service(str(n), f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32", Protocol.TCP, 80, 80) for n in range(10_000)
    ]
    forwarding = Compiler(SETTINGS).compile(services)
    for n in range(0, 10_000, 97):
        found = forwarding.lookup(Protocol.TCP, ip_address("192.0.2.1"), 1, services[n].vip.network_address, 80)
        assert found.service is services[n]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("first", "counted"),
    [("2001:db8::", 16), ("2001:db8::1", 14), ("2001:db8::1", 8), ("10.0.0.0", 4), ("10.0.0.1", 3)],
)
def test_vips_that_differ_in_a_few_bytes_are_spread_over_the_index(first: str, counted: int, exact: bool) -> None:
    """A quarter of the rows is taken: where VIPs are spread, some twenty in a row at most; where not, thousands."""
    address = ip_address(first)
    probe = library("index_probe.c", "services/vip/exact6_table.c")
    longest = probe.probe_longest(address.version, address.packed.ljust(16, b"\0"), counted, 5000, exact)
    elsewhere = exact and address.version == 4  # in the exact table
    assert (longest == 0) if elsewhere else (0 < longest < 100)


@pytest.mark.parametrize("link", [LinkHeader.NONE, LinkHeader.SWAP])
def test_many_services_are_found_in_a_burst_as_one_packet_at_a_time(link: LinkHeader) -> None:
    """So many that a burst asks for their rows ahead: of packets of any kind, and too short to have an address."""
    many = [a_service(f"s{n}", f"10.0.{n >> 8}.{n & 255}/32", Protocol.TCP, 80, 80) for n in range(5000)]
    forwarding = Compiler(SETTINGS).compile([*many, a_service("net", "203.0.113.0/24", Protocol.UDP, 0, 65535)])
    snapshot = forwarding.offline_snapshot()
    chance = random.Random(1)
    packets = []
    for _ in range(64 * 8):
        number = chance.randrange(6000)
        packet = ipv4(tcp(sport=chance.randrange(1, 65536)), to=f"10.0.{number >> 8}.{number & 255}")
        kind = chance.random()
        if kind < 0.1:
            packet = packet[: chance.randrange(len(packet))]
        elif kind < 0.2:
            packet = ipv4(
                tcp(dport=chance.choice([79, 81])), to=f"10.0.{number >> 8}.{number & 255}", options=b"\1" * 8
            )
        elif kind < 0.3:
            packet = chance.choice(
                [ipv6(udp()), ipv4(udp(dport=chance.randrange(65536)), to="203.0.113.77"), ipv4(ping())]
            )
        frame = packet if link is LinkHeader.NONE else ethernet(packet)
        packets.append((frame, len(frame), 0))
    together, alone = Pipeline(1000, link), Pipeline(1000, link)
    results = [together.process(snapshot, packets[at : at + 64]) for at in range(0, len(packets), 64)]
    assert [result for burst in results for result in burst] == [
        result for packet in packets for result in alone.process(snapshot, [packet])
    ]
    assert {"forwarded", "no_service", "not_vip"} <= {result.reason for burst in results for result in burst}
