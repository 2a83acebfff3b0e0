# SPDX-License-Identifier: Apache-2.0
"""A worker's life beside its packets: heartbeat, published snapshots, questions, stop and start. No network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from lb._dataplane import ffi
from lb._dataplane import lib as c

from lb.dataplane import FlowTuple, LinkHeader, Pipeline, Snapshot, Worker
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import DataplaneError
from lb.model import Backend, MuxSettings, PortRange, Protocol, Service

SETTINGS = MuxSettings(name="mux1", address=IPv4Address("10.0.1.11"), seed=bytes(range(16)), interface="eth0")
FLOW = FlowTuple(Protocol.TCP, ip_address("192.0.2.1"), 4000, ip_address("203.0.113.10"), 80)


class SilentIo:
    """An io that never receives anything; the worker spins on it."""

    def __init__(self) -> None:
        out = ffi.new("struct io **")
        assert c.io_memory_open(0, out) == 0
        self._c: Any = ffi.gc(out[0], c.io_close)


def compiled(*names: str) -> Forwarding:
    backends = tuple(Backend(name, ip_address(f"10.0.3.{number}")) for number, name in enumerate(names, 1))
    service = Service(
        "web", ip_network("203.0.113.10/32"), Protocol.TCP, PortRange(80, 80), backends=backends, slots=251
    )
    return Compiler(SETTINGS).compile([service])


def wait_until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(Pipeline(1000, LinkHeader.NONE), SilentIo(), compiled("a").offline_snapshot())  # type: ignore[arg-type]
    made.start()
    yield made
    made.close()


def test_the_heartbeat_goes_on_without_packets(worker: Worker) -> None:
    before = worker.counters()
    assert before.running
    wait_until(lambda: worker.counters().bursts > before.bursts + 10)


def test_replaced_snapshots_are_let_go_once_a_later_burst_began(worker: Worker) -> None:
    for _ in range(200):
        worker.publish(compiled("a", "b").offline_snapshot())
    wait_until(lambda: worker.reclaim() == 0)
    assert worker.counters().retired == 0


def test_snapshots_published_to_a_stopped_worker_are_let_go_at_once(worker: Worker) -> None:
    worker.stop()
    for _ in range(10):
        worker.publish(compiled("a").offline_snapshot())
    assert worker.reclaim() == 0
    assert not worker.counters().running


def test_a_worker_can_be_stopped_and_started_again(worker: Worker) -> None:
    worker.stop()
    bursts = worker.counters().bursts
    worker.stop()
    worker.start()
    worker.start()
    wait_until(lambda: worker.counters().bursts > bursts)


@pytest.mark.parametrize("running", [True, False])
def test_questions_are_answered_between_bursts_and_when_stopped(worker: Worker, running: bool) -> None:
    if not running:
        worker.stop()
    snapshot = compiled("a").offline_snapshot()
    answer = worker.lookup(snapshot, FLOW)
    assert (answer.service_id, answer.backend, answer.flow) == (0, 0, None)
    counters = worker.pipeline_counters()
    assert counters.received == sum(counters.reasons) == 0


def test_threads_may_ask_publish_and_reclaim_at_once(worker: Worker) -> None:
    failures: list[BaseException] = []

    def use(snapshot: Snapshot) -> None:
        try:
            for _ in range(100):
                worker.publish(snapshot)
                assert worker.lookup(snapshot, FLOW).service_id == 0
                worker.reclaim()
                worker.counters()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=use, args=(compiled("a", "b").offline_snapshot(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_until(lambda: worker.reclaim() == 0)


def test_a_cpu_that_does_not_exist_is_one_sentence() -> None:
    worker = Worker(Pipeline(0, LinkHeader.NONE), SilentIo(), None, cpu=4096)  # type: ignore[arg-type]
    with pytest.raises(DataplaneError, match="Cannot start a worker on CPU 4096: Invalid argument"):
        worker.start()
    worker.close()
