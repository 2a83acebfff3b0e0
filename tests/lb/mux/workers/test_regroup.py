# SPDX-License-Identifier: Apache-2.0
"""More workers and fewer, and flows whose packets come to another worker than before: real flow tables, no network.

Every flow here is one that its backends have left behind: only its entry says where it goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.dataplane import FlowTuple, IoStats, LinkHeader, regroup
from lb.dataplane.compile.compiler import Compiler
from lb.errors import DataplaneError
from lb.model import Protocol, Service
from lb.mux.workers import engine as engine_module
from lb.mux.workers.engine import Engine
from tests.lb.mux.workers.test_flow_sync import CLIENTS, DRAIN, UP
from tests.native.test_flow_table_scan import services
from tests.native.test_pipeline import SMALL
from tests.packets.build import CLIENT, icmp, ipv4, tcp

SECOND = 10**9


class Group:
    """An engine without workers; its pipelines are fed by hand, each as if the kernel had chosen it."""

    def __init__(self, workers: int = 1, flows: int = 1000) -> None:
        self.settings = replace(SMALL, flows=flows, workers=workers)
        self.compiler = Compiler(self.settings)
        self.engine = Engine(self.settings, LinkHeader.NONE, self.compiler.compile(services(UP, UP)))
        self.compiler.follow(self.engine)
        self.now = 0
        self.engine._now = lambda: self.now  # type: ignore[method-assign]

    def publish(self, told: tuple[Service, ...]) -> None:
        self.engine.publish(self.compiler.compile(told), {})

    def went(self, flags: str, worker: int = 0, clients: Iterable[int] = CLIENTS, now: float = 1) -> list[str | None]:
        """Where the packets of these clients go; ``now`` in seconds."""
        self.now = int(now * SECOND)
        snapshot = self.engine.forwarding.offline_snapshot()
        packets = [ipv4(tcp(flags, sport=client)) for client in clients]
        rows = [(packet, len(packet), self.now) for packet in packets]
        results = self.engine._pipelines[worker].process(snapshot, rows)
        return [self.engine.forwarding.names(result.service_id, result.backend)[1] for result in results]

    def known(self, worker: int = 0) -> list[str | None]:
        """Flows that Maglev would now send elsewhere in part, and where they go."""
        went = self.went("S", worker)
        self.went("A", worker, now=2)
        self.publish(services(UP, UP, UP, UP))
        assert Group.fresh() != went
        return went

    @staticmethod
    def fresh() -> list[str | None]:
        """What Maglev says to new flows."""
        group = Group()
        group.publish(services(UP, UP, UP, UP))
        return group.went("S")

    def live(self) -> list[int]:
        return [sum(pipeline.counters().flows.live) for pipeline in self.engine._pipelines]

    def sound(self) -> bool:
        return all(pipeline.check() is None for pipeline in self.engine._pipelines)


@pytest.mark.parametrize("inherited", [False, True], ids=["at once", "when all has moved"])
def test_from_one_worker_to_four_to_two_every_flow_stays_whichever_worker_sees_it(inherited: bool) -> None:
    group = Group()
    went = group.known()
    for step, workers in enumerate((4, 2)):
        group.engine.resize(workers)
        if inherited:
            assert group.engine.inherit() == len(went)
            assert sum(group.live()) == len(went)
        split = {worker: [c for c in CLIENTS if (c * 7 + step) % workers == worker] for worker in range(workers)}
        for worker, clients in split.items():
            assert group.went("A", worker, clients, now=3 + step) == [went[client - 1] for client in clients]
        group.engine.tend()  # what was taken over is told before the rest moves
        group.engine.inherit()
        group.engine.tend()
        assert sum(group.live()) == len(went), "each flow is known once"
        for worker, clients in split.items():
            assert group.live()[worker] == len(clients), "and by the worker that sees it"
        assert group.sound()


def test_a_flow_that_comes_back_to_a_worker_goes_where_its_last_packet_went() -> None:
    group = Group(workers=2)
    went = group.known(0)
    group.engine.resize(3)
    group.engine.inherit()
    for turn in range(6):
        assert group.went("A", turn % 3, now=3 + turn) == went
        group.engine.tend()
    assert sum(group.live()) == len(went)
    assert group.sound()


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 0)])
def test_of_two_that_know_a_flow_the_one_that_saw_it_last_is_believed(first: int, last: int) -> None:
    group = Group(workers=3)
    before = group.known(first)
    later = group.went("S", last, now=5)
    group.went("A", last, now=6)
    assert later != before
    group.engine.expect_strangers()
    assert group.went("A", 2, now=7) == later


def test_a_flow_that_goes_from_hand_to_hand_is_never_forgotten_by_all() -> None:
    group = Group(workers=4)
    went = group.known(0)
    group.engine.expect_strangers()
    for turn in range(12):
        for worker in ((turn + 1) % 4, (turn + 3) % 4):
            assert group.went("A", worker, now=3 + turn) == went
        group.engine.tend()
        group.engine.tend()
    assert group.sound()


def test_who_took_a_flow_over_and_lost_it_again_makes_nobody_forget_it() -> None:
    group = Group(workers=2)
    went = group.known(0)
    group.engine.expect_strangers()
    assert group.went("A", 1, now=3) == went
    keys = regroup.claims(group.engine._members[1])
    assert len(keys) == len(CLIENTS)
    for worker in (0, 1):  # the second takes them over again, and loses them
        assert group.went("A", worker, now=4) == went
    assert regroup.release(group.engine._members[1], keys) == len(keys)
    assert group.went("A", 1, now=5) == went
    assert regroup.release(group.engine._members[1], keys) == len(keys)
    group.engine.tend()
    assert group.went("A", 0, now=6) == went


def test_what_was_taken_over_is_told_also_when_others_are_asked_from_then_on() -> None:
    group = Group(workers=2)
    went = group.known(0)
    group.engine.expect_strangers()
    assert group.went("A", 1, now=3) == went
    group.engine._meet()  # as when a table of before is empty
    group.engine.tend()
    assert group.live() == [0, len(went)]


def test_what_moves_keeps_its_trust_and_its_age() -> None:
    group = Group()
    group.known()
    group.now = 12 * SECOND
    group.engine.resize(2)
    group.engine.inherit()
    flow = FlowTuple(Protocol.TCP, ip_address(CLIENT), 7, ip_address("203.0.113.10"), 80)
    trusted = [pipeline.counters().flows.live[2] for pipeline in group.engine._running]
    assert sum(trusted) == len(CLIENTS)
    assert min(trusted) > len(CLIENTS) // 3, "each has its part"
    answers = [pipeline.lookup(group.engine.snapshot, flow).flow for pipeline in group.engine._running]
    assert [(answer.flow_class, round(answer.age)) for answer in answers if answer is not None] == [("tcp_trusted", 10)]


def test_counters_go_on_and_never_back() -> None:
    group = Group()
    group.known()
    before = group.engine.totals()
    packets = sum(group.engine.backend_packets(counter) for counter in range(8))
    for workers in (3, 1, 2):
        group.engine.resize(workers)
        group.engine.inherit()
        after = group.engine.totals()
        assert (after.received, after.reasons) == (before.received, before.reasons)
        assert sum(group.engine.backend_packets(counter) for counter in range(8)) == packets
    assert group.engine.totals().live == len(CLIENTS)


def test_an_io_that_goes_on_with_another_worker_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Idle] = []
    monkeypatch.setattr(engine_module, "Worker", lambda *_: made.append(_Idle()) or made[-1])
    group = Group()
    stays, comes = _Counts(5), _Counts(7)
    group.engine.start([stays])  # type: ignore[list-item]
    group.engine.regroup([stays, comes])  # type: ignore[list-item]
    assert [worker.closed for worker in made] == [True, False, False]
    group.engine._workers = []
    assert group.engine.totals().io.received == 12
    group.engine._end_workers(going_on=[stays])  # type: ignore[list-item]
    assert group.engine._closed_ios.received == 7


def test_workers_that_cannot_be_begun_end_and_no_flow_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    went = group.known()

    def fails(*_: object) -> None:
        raise DataplaneError("Cannot make a worker: out of memory")

    monkeypatch.setattr(engine_module, "Worker", fails)
    with pytest.raises(DataplaneError):
        group.engine.regroup([_Counts(0), _Counts(0)])  # type: ignore[list-item]
    assert group.engine.bursts() == ()
    assert group.went("A", 1, now=3) == went


class _Counts:
    """An io that has received so much."""

    def __init__(self, received: int) -> None:
        self._received = received

    def stats(self) -> IoStats:
        return IoStats(received=self._received)


class _Idle:
    """A worker that does nothing."""

    closed = False

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_evictions_and_refusals_of_workers_that_were_are_counted_on() -> None:
    group = Group(workers=2)
    group.went("S", 0, range(1, 60_000))
    group.went("S", 1, range(1, 60_000), now=2)
    group.went("S", 1, range(1, 10), now=90)
    before = group.engine.totals()
    group.engine.resize(1)
    after = group.engine.totals()
    assert (after.evicted, after.expired, after.refused) == (before.evicted, before.expired, before.refused)


def test_expired_flows_and_those_of_services_that_are_gone_do_not_move() -> None:
    group = Group()
    group.known()
    group.went("S", 0, range(1000, 1010), now=299)
    group.went("A", 0, range(1000, 1010), now=300)
    group.now = 310 * SECOND  # the others are silent since second 2
    group.engine.resize(2)
    assert group.engine.inherit() == 10
    group.publish(())
    group.engine.resize(3)
    assert group.engine.inherit() == 0


def test_flows_of_a_backend_that_is_gone_do_not_move() -> None:
    """Its number may be another's soon."""
    group = Group()
    went = group.known()
    group.publish(services(UP))
    group.engine.resize(2)
    assert group.engine.inherit() == went.count("b1") < len(went)


def test_numbers_are_not_lent_again_while_a_former_workers_table_remembers_them() -> None:
    group = Group()
    group.known()
    old = group.engine.forgotten()
    group.engine.resize(2)
    for worker in range(2):
        for second in range(3, 70):  # whole sweeps of the new tables
            group.went("A", worker, range(9000, 9001), now=second)
    assert group.engine.forgotten() <= old
    group.engine.inherit()
    for worker in range(2):
        for second in range(70, 137):
            group.went("A", worker, range(9000, 9001), now=second)
    assert group.engine.forgotten() > old


def test_nobody_asks_where_no_flow_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the steady state a worker answers by its own table alone."""
    met: list[int] = []
    meet = engine_module.regroup.meet
    monkeypatch.setattr(
        engine_module.regroup,
        "meet",
        lambda member, tables, *, asked: (met.append(len(tables) * asked), meet(member, tables, asked=asked)),
    )
    group = Group(workers=2)
    group.engine.resize(2)
    assert met == [0, 0], "there are no flows yet"
    went = group.known(0)
    group.engine.resize(3)
    assert met[-3:] == [4, 4, 4], "two others and two of before"
    group.engine.inherit()
    assert met[-3:] == [2, 2, 2]
    group.engine.tend()
    assert met[-3:] == [2, 2, 2], "as long as a flow may live"
    monkeypatch.setattr(engine_module.time, "monotonic", lambda clock=engine_module.time.monotonic: clock() + 301)
    group.engine.tend()
    assert met[-3:] == [0, 0, 0]
    holder = max(range(3), key=lambda worker: group.live()[worker])
    assert group.went("A", (holder + 1) % 3, now=4) != went


def errors(clients: Iterable[int]) -> list[bytes]:
    """What routers say of a packet from the VIP to each of these clients."""
    sent = [ipv4(tcp("A", sport=80, dport=client), source="203.0.113.10", to=CLIENT) for client in clients]
    return [ipv4(icmp(3, 4, 1300, packet[:28]), source="198.51.100.254") for packet in sent]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_icmp_error_goes_to_the_flows_backend_whichever_worker_gets_it_and_changes_nothing(workers: int) -> None:
    """In the steady state, when nobody asks anybody for flows. Maglev would send some of them elsewhere."""
    group = Group(workers=workers)
    group.engine.resize(workers)
    went = group.known(0)
    live, snapshot = group.live(), group.engine.forwarding.offline_snapshot()
    for worker in range(workers):
        rows = [(error, len(error), 3 * SECOND) for error in errors(CLIENTS)]
        results = group.engine._pipelines[worker].process(snapshot, rows)
        assert {(result.reason, result.flow) for result in results} == {("icmp_error", "known")}
        assert [group.engine.forwarding.names(r.service_id, r.backend)[1] for r in results] == went
    assert group.live() == live
    assert group.sound()


def test_an_icmp_error_keeps_no_flow_alive_and_makes_none() -> None:
    group = Group(workers=2)
    group.engine.resize(2)
    went = group.known(0)
    fresh, snapshot = group.fresh(), group.engine.forwarding.offline_snapshot()
    answers: list[list[str | None]] = []
    for now in (3, 200, 290, 303, 310):  # a flow lives for 300 seconds after its last packet
        for worker in range(2):
            rows = [(error, len(error), now * SECOND) for error in errors(CLIENTS)]
            results = group.engine._pipelines[worker].process(snapshot, rows)
            answers.append([group.engine.forwarding.names(r.service_id, r.backend)[1] for r in results])
    assert answers == [went] * 6 + [fresh] * 4


def test_an_icmp_error_makes_no_flow_trusted() -> None:
    """One SYN and then errors: the flow is forgotten as soon as any that was seen once."""
    group = Group()
    group.went("S", 0)
    group.publish(services(UP, UP, UP, UP))
    snapshot = group.engine.forwarding.offline_snapshot()
    for now in (2, 5, 9, 13):
        rows = [(error, len(error), now * SECOND) for error in errors(CLIENTS)]
        results = group.engine._pipelines[0].process(snapshot, rows)
    assert {result.flow for result in results} == {"untracked"}


def test_what_is_told_by_another_mux_has_one_place_and_whoever_sees_it_finds_it() -> None:
    one, other = Group(), Group(workers=4, flows=4000)
    went = one.known()
    other.publish(services(UP, UP, UP, UP))
    _, found = one.engine.unsynchronised(1000)
    told = 0
    for (service, backend), records in found.records.items():
        outcome = other.engine.adopt(service, backend, records)
        told += outcome.taken
    assert told == found.total == sum(other.live())
    for client, backend in zip(CLIENTS, went, strict=True):
        assert other.went("A", client % 4, [client], now=3) == [backend]
    other.engine.tend()
    assert sum(other.live()) == len(went)


def test_what_is_told_goes_to_the_worker_that_knows_an_older_tale() -> None:
    one, other = Group(), Group(workers=3)
    went = one.known()
    other.publish(services(DRAIN, UP, UP, UP))
    other.went("S", 1, now=1)
    other.went("A", 1, now=2)
    other.now = 100 * SECOND
    other.publish(services(UP, UP, UP, UP))
    one.went("A", now=100)
    _, found = one.engine.unsynchronised(1000)
    before = other.live()
    for (service, backend), records in found.records.items():
        other.engine.adopt(service, backend, records)
    assert other.live() == before, "no second entry of a flow"
    told = [number for number, fresh in enumerate(Group.fresh()) if fresh != went[number]]
    goes = other.went("A", 1, now=101)
    assert len(told) == found.total
    assert [goes[number] for number in told] == [went[number] for number in told]


def test_of_what_is_told_that_which_nobody_knows_goes_to_one_worker_as_it_was_told() -> None:
    one, other = Group(), Group(workers=3, flows=3000)
    went = one.known()
    other.publish(services(UP, UP, UP, UP))
    other.went("S", 1, CLIENTS[::2], now=1)
    other.now = 3 * SECOND
    _, found = one.engine.unsynchronised(1000)
    for (service, backend), records in found.records.items():
        other.engine.adopt(service, backend, records)
    fresh = Group.fresh()
    told = {client for client in CLIENTS if fresh[client - 1] != went[client - 1]}
    assert sum(other.live()) == len(told | set(CLIENTS[::2]))


def test_a_question_is_answered_by_the_youngest_memory() -> None:
    group = Group(workers=2)
    group.engine._workers = [_Answers(5.0, 1), _Answers(0.5, 2)]  # type: ignore[list-item]
    answer = group.engine.lookup(FlowTuple(Protocol.TCP, ip_address(CLIENT), 7, ip_address("203.0.113.10"), 80))
    assert answer.flow is not None
    assert answer.flow.backend == 2


class _Answers:
    """A worker whose table knows the flow."""

    def __init__(self, age: float, backend: int) -> None:
        self._age, self._backend = age, backend

    def lookup(self, *_: object) -> object:
        from lb.dataplane import FlowEntry, LookupAnswer

        return LookupAnswer(0, 1, 0, FlowEntry(self._backend, "tcp_trusted", self._age))
