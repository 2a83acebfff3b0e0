# SPDX-License-Identifier: Apache-2.0
"""What a MUX cannot serve of a manager's state is left out alone; the table of everything else is as ever."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

import pytest

from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import ConfigError, DataplaneError
from lb.model import Backend, MuxSettings, PortRange, Protocol, Service
from lb.model.service_diff import ServiceDiff
from lb.mux.rules.unservable import compile_most, local_vips, readable

MUX = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(range(16)), "eth0", slots=251)


def service(last: int, port: int = 80) -> Service:
    backends = (Backend("a", IPv4Address("10.0.3.1")), Backend("b", IPv4Address("10.0.3.2")))
    return Service(f"s{last}", IPv4Network(f"203.0.113.{last}"), Protocol.TCP, PortRange(port, port), backends)


class Narrow(Compiler):
    """Has no room for some services."""

    def __init__(self, *no_room: str) -> None:
        super().__init__(MUX)
        self.no_room = set(no_room)
        self.calls = 0

    def change(self, change: ServiceDiff, before: Forwarding) -> Forwarding:
        self.calls += 1
        if any(service.name in self.no_room for service in change.come):
            raise DataplaneError("no memory for a Maglev table")
        return super().change(change, before)


def names(forwarding: Forwarding) -> set[str]:
    return {service.name for service in forwarding.services}


@pytest.mark.parametrize(
    "no_room", [(), ("s1",), ("s7", "s8"), ("s1", "s5", "s9"), tuple(f"s{n}" for n in range(1, 10))]
)
def test_those_without_room_are_left_out_and_all_others_are_served(no_room: tuple[str, ...]) -> None:
    compiler = Narrow()
    before = compiler.compile([service(20), service(21)])
    compiler.no_room = set(no_room)
    come = tuple(service(number) for number in range(1, 10))
    change = ServiceDiff.between(before.services, (before.services[0], *come))
    forwarding, left_out = compile_most(compiler, change, before)
    assert left_out == dict.fromkeys(no_room, "no memory for a Maglev table")
    assert names(forwarding) == {"s20", *(f"s{n}" for n in range(1, 10))} - set(no_room), "and what goes has gone"
    for served in forwarding.services:
        found = forwarding.lookup(Protocol.TCP, IPv4Address("192.0.2.1"), 1, served.vip.network_address, 80)
        assert found.service is served
        assert found.backend is not None


def test_of_a_thousand_one_is_found_by_halves() -> None:
    compiler = Narrow("s77")
    come = tuple(
        Service(f"s{n}", IPv4Network(f"203.0.{n >> 8}.{n & 255}"), Protocol.TCP, PortRange(80, 80)) for n in range(1000)
    )
    forwarding, left_out = compile_most(compiler, ServiceDiff.between((), come), compiler.compile(()))
    assert list(left_out) == ["s77"]
    assert len(forwarding.services) == 999
    assert compiler.calls < 30


def test_two_services_at_one_place_cost_the_second_alone() -> None:
    compiler = Compiler(MUX)
    twin = Service("twin", service(1).vip, Protocol.TCP, PortRange(80, 80))
    come = (service(1), service(2), twin)
    forwarding, left_out = compile_most(compiler, ServiceDiff.between((), come), compiler.compile(()))
    assert (names(forwarding), set(left_out)) == ({"s1", "s2"}, {"twin"})


def test_where_nothing_comes_a_failure_is_one_of_the_whole() -> None:
    class Broken(Narrow):
        def change(self, change: ServiceDiff, before: Forwarding) -> Forwarding:
            if change.gone:
                raise DataplaneError("no memory")
            return super().change(change, before)

    compiler = Broken()
    before = compiler.compile([service(1)])
    with pytest.raises(DataplaneError, match="no memory"):
        compile_most(compiler, ServiceDiff.between(before.services, ()), before)


def test_a_vip_that_is_local_is_left_out_unless_it_is_served_already() -> None:
    local = {ip_address("203.0.113.1"): "lo", ip_address("203.0.113.2"): "lo"}
    found = local_vips([service(1), service(2), service(3)], local, {service(2).vip})
    assert found.keys() == {"s1"}
    assert "a VIP must not be local to a MUX" in found["s1"]


def test_what_of_a_section_cannot_be_read_is_left_out_and_the_rest_stays_the_same_object() -> None:
    def check(section: Mapping[str, Any]) -> None:
        wrong = [(key, "unknown key") for key, entry in section.items() if entry.get("colour")]
        if wrong:
            raise ConfigError(wrong)

    good: dict[str, Any] = {"203.0.113.1/32": {"med": 1}}
    assert readable(good, check) == (good, {})
    assert readable(good, check)[0] is good
    found, left_out = readable({**good, "203.0.113.2/32": {"colour": "red"}}, check)
    assert found == good
    assert left_out == {"203.0.113.2/32": "unknown key"}
