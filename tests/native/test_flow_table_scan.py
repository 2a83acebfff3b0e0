# SPDX-License-Identifier: Apache-2.0
"""Flows counted from beside, told to another MUX and taken over by it, against the Python model that remembers all."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings

from lb.dataplane import Adoption, BackendFlows, Census, LinkHeader, Pipeline, Snapshot, unsynchronised_flows, with_age
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.model import BackendState, HashMode, Protocol, Service
from tests.model import flows
from tests.model.mux import Mux, Options
from tests.native.test_pipeline import BATCHES, SECOND, SHAPES, SMALL, V4, V6, Batch, Event
from tests.packets.build import ipv4, tcp, udp
from tests.packets.world import FIRST_ID

WEB, DNS, RANGE, STICKY = SHAPES[:4]
CLIENTS = range(1, 401)


def census(pipeline: Pipeline, forwarding: Forwarding, snapshot: Snapshot) -> Census:
    found = Census(forwarding.counters)
    found.add(pipeline, snapshot)
    return found


def counted(found: Census, forwarding: Forwarding) -> dict[tuple[str, str], BackendFlows]:
    """By service and backend; those without flows left out."""
    rows = {
        (service.name, backend.name): found.of(forwarding.counter(number, backend.name))
        for number, service in forwarding.ids.items()
        for backend in service.backends
    }
    return {label: row for label, row in rows.items() if row != BackendFlows()}


# ---- against the model ----


def expected(model: Mux) -> dict[tuple[str, str], BackendFlows]:
    """What the model remembers, judged by the rules of docs/flow.md."""
    rows: dict[tuple[str, str], BackendFlows] = {}
    for key, flow in model.flows.entries.items():
        service = next((s for s in model.services if (s.vip, s.protocol, s.ports) == key.service), None)
        backend = next((b for b in service.backends if b.name == flow.backend), None) if service else None
        if service is None or backend is None or backend.state is BackendState.DOWN:
            continue
        is_udp, chosen = service.protocol is Protocol.UDP, model.choice(service, key)
        idle = model.settings.idle
        life = service.idle or (idle.udp if is_udp else idle.tcp)
        if not is_udp and not flow.trusted:
            life = idle.tcp_untrusted
        if model.flows.tick - flow.seen >= flows.ticks(life):
            continue
        if backend.state is BackendState.DRAIN and is_udp and chosen is not None:
            continue
        unsynchronised = chosen is None or chosen.name != backend.name
        if service.hash is HashMode.SOURCE and backend.state is not BackendState.DRAIN:
            unsynchronised = flow.trusted  # the shape's keys are wide: they do not tell
        was = rows.get((service.name, backend.name), BackendFlows())
        rows[service.name, backend.name] = BackendFlows(
            was.tcp + (not is_udp), was.udp + is_udp, was.unsynchronised + unsynchronised
        )
    return rows


def without_ends(events: Iterable[Event]) -> list[Event]:
    """The model knows no end of a conversation: FIN and RST are left to tests of their own."""

    def ends(packet: bytes) -> bool:
        if len(packet) < 40:
            return False
        protocol, at = (packet[9], (packet[0] & 15) * 4) if packet[0] >> 4 == 4 else (packet[6], 40)
        return protocol == 6 and len(packet) > at + 13 and packet[at + 13] & 5 != 0

    return [(packet, max(0.0, step)) for packet, step in events if not ends(packet)]


@settings(max_examples=80, deadline=None)
@given(BATCHES)
def test_flows_are_counted_where_their_next_packet_would_go(batches: list[Batch]) -> None:
    compiler, pipeline = Compiler(SMALL), Pipeline(SMALL.flows, LinkHeader.NONE, first_id=FIRST_ID)
    model, now = Mux(SMALL, Options(first_id=FIRST_ID)), 1_000_000 * SECOND
    for services, events, _ in batches:
        forwarding = compiler.compile(services)
        snapshot = forwarding.offline_snapshot()
        model.publish(services)
        for packet, step in without_ends(events):
            now += int(step * SECOND)
            pipeline.process(snapshot, [(packet, len(packet), now)])
            model.process(packet, len(packet), now)
        assert counted(census(pipeline, forwarding, snapshot), forwarding) == expected(model)
        assert pipeline.check() is None


# ---- by hand ----


def services(*states: BackendState, shape: Service = WEB) -> tuple[Service, ...]:
    pool = V4 if shape.vip.version == 4 else V6
    backends = tuple(replace(backend, state=state) for backend, state in zip(pool, states, strict=False))
    return (replace(shape, backends=backends),)


UP, DRAIN, DOWN = BackendState.UP, BackendState.DRAIN, BackendState.DOWN


class Half:
    """One MUX: a pipeline with its compiler, so with numbers of its own."""

    def __init__(self, *before: tuple[Service, ...]) -> None:
        """``before``: what it was told earlier; its numbers differ from another's by that."""
        self.compiler = Compiler(SMALL)
        self.pipeline = Pipeline(1000, LinkHeader.NONE)
        self.now = SECOND
        for told in before:
            self.publish(told)

    def publish(self, wanted: Sequence[Service]) -> None:
        self.forwarding = self.compiler.compile(wanted)
        self.snapshot = self.forwarding.offline_snapshot()

    def send(self, flags: str, clients: Iterable[int] = CLIENTS, *, port: int = 80, size: int = 0) -> list[str | None]:
        """Where the packets of these clients went."""
        segment = [tcp(flags, sport=client, dport=port, payload=bytes(size)) for client in clients]
        return self._send(segment)

    def send_udp(self, clients: Iterable[int] = CLIENTS) -> list[str | None]:
        return self._send([udp(sport=client, dport=53) for client in clients])

    def _send(self, segments: list[bytes]) -> list[str | None]:
        packets = [(packet, len(packet), self.now) for packet in map(ipv4, segments)]
        results = self.pipeline.process(self.snapshot, packets)
        return [self.forwarding.names(result.service_id, result.backend)[1] for result in results]

    def counted(self) -> dict[tuple[str, str], BackendFlows]:
        assert self.pipeline.check() is None
        return counted(census(self.pipeline, self.forwarding, self.snapshot), self.forwarding)

    def live(self) -> int:
        return sum(row.live for row in self.counted().values())

    def unsynchronised(self, most: int = 10_000) -> dict[tuple[str, str], bytes]:
        """Records by names."""
        found = unsynchronised_flows(self.pipeline, self.snapshot, most)
        return {_names(self.forwarding, owner): records for owner, records in found.records.items()}

    def adopt(self, told: dict[tuple[str, str], bytes]) -> Adoption:
        total = Adoption()
        for (service_name, backend), records in told.items():
            number = next(n for n, service in self.forwarding.ids.items() if service.name == service_name)
            numbers = {self.forwarding.names(number, n)[1]: n for n in range(16)}
            total += self.pipeline.adopt(self.snapshot, number, numbers.get(backend, 4000), records)
        assert self.pipeline.check() is None
        return total


def _names(forwarding: Forwarding, owner: tuple[int, int]) -> tuple[str, str]:
    service, backend = forwarding.names(*owner)
    assert service is not None
    assert backend is not None
    return service, backend


def test_a_conversation_that_its_client_ended_counts_ten_seconds_more_and_is_remembered_as_long_as_any() -> None:
    mux = Half(services(UP, UP))
    went = [mux.send("S"), mux.send("A"), mux.send("FA"), mux.send("A")][0]
    assert mux.live() == len(CLIENTS)
    mux.now += 11 * SECOND
    mux.send("S", [999])  # time passes with packets
    assert mux.live() == 1
    mux.publish(services(UP, UP, UP))
    assert mux.send("PA", size=3) == went, "an ended conversation was forgotten"
    assert mux.live() == len(CLIENTS) + 1, "data goes on with a conversation that seemed to end"


def test_flows_of_a_draining_backend_are_unsynchronised_until_they_end() -> None:
    mux = Half(services(UP, UP))
    went = mux.send("S")
    mux.send("A")
    mux.publish(services(DRAIN, UP))
    left = went.count("b1")
    assert mux.counted() == {
        ("web", "b1"): BackendFlows(left, 0, left),
        ("web", "b2"): BackendFlows(len(CLIENTS) - left, 0, 0),
    }
    mux.send("R", [client for client, backend in zip(CLIENTS, went, strict=True) if backend == "b1"])
    mux.now += 11 * SECOND
    mux.send("A", [client for client, backend in zip(CLIENTS, went, strict=True) if backend == "b2"])
    assert mux.counted() == {("web", "b2"): BackendFlows(len(CLIENTS) - left, 0, 0)}


def test_udp_flows_of_a_draining_backend_count_only_where_no_other_backend_takes_them() -> None:
    mux = Half(services(UP, UP, shape=DNS))
    went = mux.send_udp()
    mux.publish(services(DRAIN, UP, shape=DNS))
    assert mux.counted() == {("dns", "b2"): BackendFlows(0, went.count("b2"), 0)}
    mux.publish(services(DRAIN, DRAIN, shape=DNS))
    assert mux.live() == len(CLIENTS)


def test_flows_of_a_backend_that_is_down_or_gone_count_nowhere() -> None:
    mux = Half(services(UP, UP))
    went = mux.send("S")
    for now in (services(DOWN, UP), services(UP, UP)[:0]):
        mux.publish(now)
        assert mux.live() == (went.count("b2") if now else 0)


@pytest.mark.parametrize("shape", [WEB, RANGE], ids=["narrow keys", "wide keys"])
def test_another_mux_takes_over_exactly_the_flows_that_it_would_send_elsewhere(shape: Service) -> None:
    port = shape.ports.first
    one, other = Half(services(UP, UP, shape=shape)), Half(services(UP, UP, UP, UP), services(UP, shape=DNS))
    went = one.send("S", port=port)
    one.send("A", port=port)
    late = (replace(shape, name="newer", backends=tuple(reversed(services(DRAIN, UP, UP, shape=shape)[0].backends))),)
    one.publish(late)
    other.publish(late)
    would = Half(late).send("A", port=port)
    moved = sum(a != b for a, b in zip(went, would, strict=True))
    told = one.unsynchronised()
    assert 0 < moved < len(CLIENTS)
    assert sum(len(records) for records in told.values()) == 8 * moved
    assert other.adopt(told) == Adoption(taken=moved)
    assert other.send("A", port=port) == went
    assert other.adopt(told) == Adoption(known=moved), "twice told is once"


def test_what_was_handed_over_is_as_old_as_it_was() -> None:
    one, other = Half(services(UP, UP)), Half(services(DRAIN, UP))
    one.send("S"), one.send("A")
    one.now += 200 * SECOND  # of 300
    one.publish(services(DRAIN, UP))
    one.send("S", [999])
    told = one.unsynchronised()
    taken = other.adopt(told).taken
    assert other.live() == taken > 0
    other.now += 110 * SECOND
    other.send("S", [999])
    assert other.live() == 1


def test_the_mux_that_saw_a_flow_later_knows_better() -> None:
    one, other = Half(services(UP, UP)), Half(services(UP, UP, UP))
    went = one.send("S")
    one.send("A")
    other.send("S"), other.send("A")
    one.publish(services(UP, UP, UP))
    for half in (one, other):
        half.now += 30 * SECOND
        half.send("A", [1])  # time passes with packets
    one.send("A")
    assert other.adopt(one.unsynchronised()).known <= 1
    assert other.send("A", CLIENTS[1:]) == went[1:]
    one.publish(services(UP, UP, UP, UP))
    stale = one.unsynchronised()
    for half in (one, other):
        half.now += 30 * SECOND
        half.send("A")
    assert other.adopt(stale).taken == 0, "an older word replaced a newer one"


def test_only_what_got_no_packet_for_so_long_is_forgotten() -> None:
    mux = Half(services(UP, UP))
    went = mux.send("S")
    mux.send("A")
    mux.publish(services(DRAIN, UP))
    mux.now += 20 * SECOND
    mux.send("A", [999])
    left = [client for client, backend in zip(CLIENTS, went, strict=True) if backend == "b1"]
    told = unsynchronised_flows(mux.pipeline, mux.snapshot, 10_000).records
    mux.send("A", left[:5])
    for (service, backend), of_all in told.items():
        assert mux.pipeline.forget(mux.snapshot, service, backend, with_age(of_all, 30)) == 0
        records = with_age(of_all, 10)
        assert mux.pipeline.forget(mux.snapshot, service, backend + 1, records) == 0, "they are at another backend"
        assert mux.pipeline.forget(mux.snapshot, service, backend, records) == len(left) - 5
        assert mux.pipeline.forget(mux.snapshot, 7, backend, records) == 0
    assert mux.counted()["web", "b1"] == BackendFlows(5, 0, 5)


def test_nothing_is_taken_over_that_its_next_packet_would_move() -> None:
    one = Half(services(UP, UP))
    one.send("S"), one.send("A")
    one.publish(services(DRAIN, UP))
    told = one.unsynchronised()
    count = sum(len(records) // 8 for records in told.values())
    for wanted in (services(DOWN, UP), (replace(services(UP, UP)[0], backends=services(UP, UP)[0].backends[1:]),)):
        assert Half(wanted).adopt(told) == Adoption(useless=count)
    dns = Half(services(DRAIN, UP, shape=DNS))
    assert dns.adopt({("dns", "b1"): told["web", "b1"]}).taken == 0, "TCP flows of a UDP service"


def test_no_more_flows_are_told_than_asked_for_and_all_are_counted() -> None:
    one = Half(services(UP, UP))
    one.send("S"), one.send("A")
    one.publish(services(DRAIN, DRAIN))
    found = unsynchronised_flows(one.pipeline, one.snapshot, 100)
    assert found.total == len(CLIENTS)
    assert sum(len(records) for records in found.records.values()) == 800


def test_flows_of_a_service_whose_keys_do_not_tell_are_all_handed_over() -> None:
    shape = replace(STICKY, protocol=Protocol.TCP, name="sticky6")
    one, other = Half(services(UP, UP, shape=shape)), Half(services(UP, UP, UP, shape=shape))
    went = one.send("S", port=80)
    one.send("A", port=80)
    assert other.adopt(one.unsynchronised()) == Adoption(taken=len(CLIENTS))
    assert other.send("A", port=80) == went


@pytest.mark.parametrize("numbers", [(0,), (2**64 - 1,), tuple(range(0, 2**64, 2**57))])
def test_any_record_is_taken_or_left_and_breaks_nothing(numbers: tuple[int, ...]) -> None:
    mux = Half(services(UP, UP))
    mux.send("S")
    for service_id in (0, 1, 32767, 2**32 - 1):
        for backend in (0, 1, 2, 4095, 2**32 - 1):
            records = struct.pack(f"<{len(numbers)}Q", *numbers)
            mux.pipeline.adopt(mux.snapshot, service_id, backend, records)
            mux.pipeline.forget(mux.snapshot, service_id, backend, records)
            assert mux.pipeline.check() is None


def test_a_pipeline_without_a_flow_table_has_no_flows() -> None:
    pipeline, forwarding = Pipeline(0, LinkHeader.NONE), Compiler(SMALL).compile(services(UP, UP))
    snapshot = forwarding.offline_snapshot()
    assert counted(census(pipeline, forwarding, snapshot), forwarding) == {}
    assert unsynchronised_flows(pipeline, snapshot, 10).total == 0
    assert pipeline.adopt(snapshot, 0, 0, bytes(8)) == Adoption(useless=1)
