# SPDX-License-Identifier: Apache-2.0
"""Numbers of services, backends and counters are lent again, and never while somebody remembers who had them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from lb.dataplane import LinkHeader, Pipeline, Result
from lb.dataplane.compile import numbers as lending
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import DataplaneError
from lb.model import Backend, MuxSettings, PortRange, Protocol, Service
from lb.model.service_diff import ServiceDiff
from lb.mux.workers.engine import Engine
from tests.packets.build import ipv4, tcp

SECOND = 1_000_000_000
MUX = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(range(16)), "eth0", slots=61, flows=1)


def _address(n: int) -> IPv4Address:
    return IPv4Address("10.0.0.1") + n % (1 << 22)


def service(number: int, turn: int, backends: int = 5) -> Service:
    """With backends that no other turn has."""
    return Service(
        f"s{number}",
        IPv4Network((int(IPv4Address("203.0.113.0")) + number, 32)),
        Protocol.TCP,
        PortRange(80, 80),
        tuple(Backend(f"s{number}-{turn}-{n}", _address(turn * backends + n)) for n in range(backends)),
    )


@dataclass
class Tables:
    """As if flow tables forgot a few changes late."""

    late: int = 2
    serial: int = 0
    counters: list[int] = field(default_factory=list)
    services: list[int] = field(default_factory=list)

    def forgotten(self) -> int:
        return self.serial - self.late

    def lent_counter(self, counter: int) -> None:
        self.counters.append(counter)

    def lent_service(self, service_id: int) -> None:
        self.services.append(service_id)


def numbers_of(forwarding: Forwarding) -> dict[tuple[int, int], str]:
    """(service id, backend number) -> the backend's name."""
    found = {}
    for service_id, item in forwarding.ids.items():
        for backend in item.backends:
            number = forwarding.number(service_id, backend.name)
            assert number is not None
            found[service_id, number] = backend.name
    return found


def test_ten_thousand_roll_outs_with_fresh_names_need_no_more_numbers_than_a_few() -> None:
    tables, compiler = Tables(), Compiler(MUX)
    compiler.follow(tables)
    for turn in range(10_000):
        forwarding = compiler.compile([service(0, turn)])
        tables.serial = forwarding.vip_map.serial
    assert forwarding.counters <= 4 * 5
    assert max(number for _, number in numbers_of(forwarding)) < 4 * 5
    assert len(compiler._numbers._services) == 1
    assert len(next(iter(compiler._numbers._services.values())).backends) <= 4 * 5


def test_ten_thousand_services_that_come_and_go_need_no_more_numbers_than_a_few() -> None:
    tables, compiler = Tables(), Compiler(MUX)
    compiler.follow(tables)
    for turn in range(10_000):
        forwarding = compiler.compile([service(turn, 0)])
        tables.serial = forwarding.vip_map.serial
    assert forwarding.id_limit <= 4
    assert forwarding.counters <= 4 * 5
    assert set(tables.services) <= set(range(4))


def test_a_number_is_lent_again_only_once_its_flows_are_forgotten() -> None:
    """Any order of coming, going and coming back; states that never become live; tables that forget early or late."""
    walk = random.Random(3)
    tables, compiler = Tables(), Compiler(MUX)
    compiler.follow(tables)
    live = compiler.compile([])
    gone: dict[tuple[int, int], tuple[str, int]] = {}  # number -> who had it last, and the serial when it left
    for turn in range(400):
        there = {item.name: item for item in live.services}
        services = [
            there[f"s{n}"] if f"s{n}" in there and walk.random() < 0.5 else any_service(n, walk)
            for n in walk.sample(range(8), 5)
        ]
        change = change_to(live, services)
        if walk.random() < 0.2:
            with pytest.raises(DataplaneError):
                compiler.change(change_to(live, [*services, replace(service(0, 1), name="tie"), service(0, 2)]), live)
        forwarding = compiler.change(change, live)
        if walk.random() < 0.2:
            continue  # it could not be published
        was, now = numbers_of(live), numbers_of(forwarding)
        for number, name in was.items():
            if now.get(number) != name:
                gone[number] = (name, forwarding.vip_map.serial)
        for number, name in now.items():
            if number in gone and gone[number][0] != name:
                assert gone[number][1] <= tables.forgotten(), f"turn {turn}: {number} was lent too early"
            if number in gone and was.get(number) != name:
                del gone[number]
        live = forwarding
        if walk.random() < 0.6:
            tables.serial = live.vip_map.serial
    assert live.counters < 500


def any_service(number: int, walk: random.Random) -> Service:
    backends = tuple(Backend(f"b{n}", _address(n)) for n in walk.sample(range(200), 3))
    return replace(service(number, 0), backends=backends)


def change_to(live: Forwarding, services: Sequence[Service]) -> ServiceDiff:
    return ServiceDiff.between(live.services, services)


def test_without_anybody_who_tells_numbers_last_for_ever_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that left first is lent again, but only when there is no other."""
    monkeypatch.setattr(lending, "MAX_COUNTERS", 64)
    compiler = Compiler(MUX)
    for turn in range(300):
        forwarding = compiler.compile([service(n, turn) for n in range(3)] + [service(3 + turn % 50, 0)])
        counters = [forwarding.counter(i, b.name) for i, item in forwarding.ids.items() for b in item.backends]
        assert len(set(counters)) == len(counters) == 20
    with pytest.raises(DataplaneError, match="more than 64 backends"):
        compiler.compile([service(n, 0) for n in range(13)])
    assert len(numbers_of(compiler.compile([service(n, 0) for n in range(8)]))) == 40


def test_more_than_half_of_all_backends_can_be_replaced_at_once() -> None:
    compiler = Compiler(MUX)
    for turn in range(3):
        forwarding = compiler.compile([service(0, turn, backends=2500)])
        assert len(numbers_of(forwarding)) == 2500


# ---- with a flow table ----


class Mux:
    """An engine without workers, whose pipeline is fed by hand."""

    def __init__(self) -> None:
        self.compiler = Compiler(MUX)
        self.engine = Engine(MUX, LinkHeader.NONE, self.compiler.compile([]))
        self.compiler.follow(self.engine)
        self.pipeline: Pipeline = self.engine._pipelines[0]

    def publish(self, services: Sequence[Service]) -> None:
        self.engine.publish(self.compiler.compile(services), {})

    def send(self, flags: str, clients: range, now: float) -> list[Result]:
        packets = [ipv4(tcp(flags, sport=client), to="203.0.113.0") for client in clients]
        rows = [(packet, len(packet), int(now * SECOND)) for packet in packets]
        return self.pipeline.process(self.engine.forwarding.offline_snapshot(), rows)

    def names(self, results: Sequence[Result]) -> list[str | None]:
        return [self.engine.forwarding.names(result.service_id, result.backend)[1] for result in results]

    def counted(self) -> dict[str, int]:
        forwarding = self.engine.forwarding
        return {
            backend.name: self.engine.backend_packets(forwarding.counter(number, backend.name))
            for number, item in forwarding.ids.items()
            for backend in item.backends
        }


def test_a_year_of_roll_outs_beside_real_flows_mixes_up_nobody() -> None:
    """A roll-out every two seconds: flows of gone backends are never taken for those of new ones, and each counts from
    nothing."""
    mux, now, clients = Mux(), 0.0, range(1, 200)
    for turn in range(400):
        mux.publish([service(0, turn)])
        some = range(clients[turn % 199], clients[turn % 199] + 20)
        results = mux.send("S", some, now)
        fresh = mux.send("S", range(5000, 5001), now)
        assert {result.flow for result in results} <= {"new"}, f"turn {turn}: known at a backend that was never seen"
        counted = mux.counted()
        assert sum(counted.values()) == len(results) + len(fresh), f"turn {turn}: others' packets are counted"
        for _ in range(8):
            now += 0.27
            mux.send("A", range(6000, 6001), now)
    assert mux.engine.forwarding.counters < 100
    assert mux.pipeline.counters().flows.forgotten > 0
    assert mux.pipeline.check() is None


def test_flows_of_backends_that_stay_outlive_any_number_of_roll_outs() -> None:
    mux, now = Mux(), 0.0
    stays = Backend("stays", IPv4Address("10.0.3.99"))
    mux.publish([replace(service(0, 0), backends=(stays,))])
    clients = range(1, 500)
    mux.send("S", clients, now)
    for turn in range(100):
        item = service(0, turn)
        mux.publish([replace(item, backends=(*item.backends, stays))])
        for _ in range(16):
            now += 0.27
            mux.send("A", range(6000, 6001), now)
        if turn % 2 == 0:
            results = mux.send("A", clients, now)
            assert {result.flow for result in results} == {"known"}
            assert set(mux.names(results)) == {"stays"}
