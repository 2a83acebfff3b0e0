# SPDX-License-Identifier: Apache-2.0
"""Compiling changes of services gives what compiling them from the beginning gives, and looks at nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import DataplaneError
from lb.model import Backend, BackendState, MuxSettings, PortRange, Protocol, Service

MUX = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(range(16)), "eth0", slots=251)

BACKENDS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([1, 1, 3]),
        st.sampled_from(list(BackendState)),
        st.sampled_from([None, 8080]),
    ),
    max_size=4,
    unique_by=lambda item: item[0],
)
#: VIP's last byte -> its backends.
CONFIGURATIONS = st.dictionaries(st.integers(1, 5), BACKENDS, max_size=5)


def service(last: int, backends: list[tuple[int, int, BackendState, int | None]]) -> Service:
    return Service(
        f"s{last}",
        IPv4Network(f"203.0.113.{last}"),
        Protocol.TCP,
        PortRange(80, 80),
        tuple(
            Backend(f"b{n}", IPv4Address("10.0.3.0") + n, port, weight, state) for n, weight, state, port in backends
        ),
    )


def answers(forwarding: Forwarding) -> list[tuple[str | None, str | None, int | None]]:
    """What some flows to every VIP get, by names and addresses; numbers inside may differ."""
    found = []
    for last in range(1, 7):
        for port in range(20):
            to = IPv4Address(f"203.0.113.{last}")
            answer = forwarding.lookup(Protocol.TCP, IPv4Address("192.0.2.1"), 1000 + port, to, 80)
            found.append(
                (
                    answer.service.name if answer.service else None,
                    str(answer.address) if answer.address else None,
                    answer.slot,
                )
            )
    return found


@settings(deadline=None)
@given(st.lists(CONFIGURATIONS, min_size=2, max_size=5))
def test_any_sequence_of_changes_ends_where_a_fresh_start_does(sequence: list[dict[int, list]]) -> None:  # type: ignore[type-arg]
    compiler = Compiler(MUX)
    known: dict[int, tuple[object, Service]] = {}
    for configuration in sequence:
        # What did not change stays the same object, as when a manager sends changes.
        known = {
            last: known[last] if last in known and known[last][0] == backends else (backends, service(last, backends))
            for last, backends in configuration.items()
        }
        services = [item for _, item in known.values()]
        forwarding = compiler.compile(services)
        fresh = Compiler(MUX).compile(services)
        assert answers(forwarding) == answers(fresh)
        assert set(forwarding.hop_addresses) == set(fresh.hop_addresses)
        assert {forwarding.ids[n].name for n in forwarding.draining} == {fresh.ids[n].name for n in fresh.draining}
        assert forwarding.services == fresh.services


def many(count: int) -> list[Service]:
    return [
        Service(
            f"s{n}",
            IPv4Network((int(IPv4Address("203.0.0.0")) + n, 32)),
            Protocol.TCP,
            PortRange(80, 80),
            tuple(Backend(f"b{n}-{m}", IPv4Address("10.9.0.0") + (n + m) % 200) for m in range(2)),
        )
        for n in range(count)
    ]


def test_a_change_of_one_service_among_many_costs_a_fraction_of_all() -> None:
    services = many(4000)
    compiler = Compiler(MUX)
    before = time.process_time()
    compiler.compile(services)
    whole = time.process_time() - before
    changed = []
    for turn in range(5):
        services[7] = replace(services[7], mtu=1400 + turn)
        before = time.process_time()
        compiler.compile(services)
        changed.append(time.process_time() - before)
    assert min(changed) < whole / 4


def test_addresses_that_stay_are_the_same_object_so_that_nobody_need_look() -> None:
    services = many(10)
    compiler = Compiler(MUX)
    all_of_them = compiler.compile(services).hop_addresses
    services[2] = replace(services[2], mtu=1400)
    assert compiler.compile(services).hop_addresses is all_of_them
    fewer = compiler.compile(services[:8]).hop_addresses
    assert fewer == all_of_them[:9]
    assert set(compiler.compile(services).hop_addresses) == set(all_of_them)


def test_services_that_are_read_again_are_the_ones_that_it_knows() -> None:
    compiler = Compiler(MUX)
    before = compiler.compile(many(3))
    after = compiler.compile(many(4))
    assert [after.id_of(service) for service in after.services] == [0, 1, 2, 3]
    assert [after.id_of(service) for service in before.services] == [None] * 3
    assert [after.service(number) for number in range(4)] == list(after.services)


def test_a_machine_that_left_is_no_next_hop_any_more() -> None:
    compiler = Compiler(MUX)
    services = many(10)
    left = services[0].backends[0].address
    assert left in compiler.compile(services).hop_addresses
    without = [
        replace(item, backends=tuple(backend for backend in item.backends if backend.address != left))
        for item in services
    ]
    assert left not in compiler.compile(without).hop_addresses


def test_a_refused_configuration_leaves_the_compiler_as_it_was() -> None:
    compiler = Compiler(MUX)
    services = many(3)
    good = answers(compiler.compile(services))
    with pytest.raises(DataplaneError, match=r"service 203\.0\.0\.0/32 port 80"):
        compiler.compile([*services, replace(services[0], name="other")])
    assert answers(compiler.compile(services)) == good


def _numbers(compiler: Compiler, **backends: str) -> tuple[Forwarding, dict[str, int]]:
    """A service whose backends have these names and addresses, and the numbers by address."""
    found = tuple(Backend(name, IPv4Address(address)) for name, address in backends.items())
    web = Service("web", IPv4Network("203.0.113.1"), Protocol.TCP, PortRange(80, 80), found)
    forwarding = compiler.compile([web])
    service_id = forwarding.id_of(web)
    assert service_id is not None
    return forwarding, {str(b.address): forwarding.number(service_id, b.name) or 0 for b in found}


def test_flows_stay_with_the_machine_whatever_it_is_called() -> None:
    compiler = Compiler(MUX)
    one, two, three = "10.0.3.1", "10.0.3.2", "10.0.3.3"
    _, first = _numbers(compiler, a=one, b=two)
    for backends in (
        {"x": one, "b": two},
        {"y": one, "z": two},
        {"z": one, "y": two},
        {"a": one, "b": two, "c": three},
    ):
        _, now = _numbers(compiler, **backends)
        assert {address: now[address] for address in first} == first
    _, now = _numbers(compiler, a=three, c=one)
    assert now[one] == first[one], "the flows of who is called c now"
    assert now[three] not in first.values(), "no flow of another machine is its own"
    _, back = _numbers(compiler, a=one, b=two, c=three)
    assert back[one] == first[one]
    assert len(set(back.values())) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), min_size=1), min_size=2, max_size=6))
def test_whoever_stays_at_an_address_keeps_its_number(versions: list[dict[str, int]]) -> None:
    compiler = Compiler(MUX)
    before: dict[str, int] = {}
    for version in versions:
        unique = {name: f"10.0.3.{n}" for name, n in version.items() if list(version.values()).count(n) == 1}
        _, now = _numbers(compiler, **unique)
        assert len(set(now.values())) == len(now)
        assert all(before.get(address, number) == number for address, number in now.items())
        assert all(number not in before.values() for address, number in now.items() if address not in before)
        before = now
