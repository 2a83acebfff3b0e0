# SPDX-License-Identifier: Apache-2.0
"""Measures the data plane in memory: nanoseconds per packet on one core, beside a fixed loop that shows the noise.

Called by ``lb bench pipeline`` and by tests. The C benchmark makes the packets and takes the times; here its
services are made up and its samples are summed up.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from queue import SimpleQueue
from typing import Any

from lb.bench.testbed.machine import commit_name, cpu_name
from lb.dataplane import (
    BENCH_FRAMES,
    BENCH_SEGMENT,
    Bench,
    BenchMode,
    BenchSample,
    Census,
    LinkHeader,
    Pipeline,
    Snapshot,
    flow_table_bytes,
)
from lb.dataplane.compile.compiler import Compiler
from lb.errors import RequestError
from lb.model import DEFAULT_SLOTS, Backend, MuxSettings, PortRange, Protocol, Service

#: Runs that a measurement is divided into; their median counts.
RUNS = 5
#: What memory alone demands is measured between them, for a part of the time.
_FLOOR = 0.2
#: One address in 10.0.0.0/8 for each of a service's backends; VIPs in 198.18.0.0/15, which is for benchmarks.
_FIRST_BACKEND = int(IPv4Address("10.1.0.0"))
_FIRST_VIP = int(IPv4Address("198.18.0.0"))
#: The same of IPv6; 2001:2::/48 is for benchmarks.
_FIRST_BACKEND6 = int(IPv6Address("fd00:1::"))
_FIRST_VIP6 = int(IPv6Address("2001:2::1:0"))
#: With the default size, ten thousand services of a hundred backends would want a gigabyte of tables.
_SLOTS_ONE, _SLOTS_MANY = DEFAULT_SLOTS, 4093


@dataclass(frozen=True, slots=True)
class PipelineBench:
    """The answer of ``lb bench pipeline``; the names are a contract."""

    ns_per_packet: float  #: median of the runs
    runs: list[float]
    packets_per_run: int
    bytes_per_flow: float
    noise: float  #: spread of a fixed loop: how much slower its slowest tenth is than its median
    cpu: str
    commit: str
    mode: str
    flows: int
    backends: int
    services: int
    family: int  #: of IP: 4 or 6
    ring: int  #: frames that packets lie in
    floor_ns: float  #: what memory alone demands of the same packets, measured between the runs; median
    workers: int
    mpps: float  #: all workers together, million packets per second
    census_ms: float  #: to count all flows by backend, once; 0 without a flow table

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_pipeline(
    *,
    flows: int,
    mode: str,
    backends: int,
    services: int,
    seconds: float,
    family: int = 4,
    ring: int = BENCH_FRAMES,
    workers: int = 1,
) -> PipelineBench:
    """Measures for so long, after the tables are filled. ``ring`` is a multiple of :data:`BENCH_SEGMENT`.

    ``workers`` run at once, each on a CPU of its own, with its part of the flows; RequestError: there are fewer CPUs.
    """
    cpus = _cpus(workers)
    settings = MuxSettings(
        name="bench",
        address=IPv4Address("192.0.2.1"),
        address6=IPv6Address("2001:db8::1") if family == 6 else None,
        seed=bytes(range(16)),
        interface="",
        flows=flows,
        slots=_SLOTS_ONE if services == 1 else _SLOTS_MANY,
    )
    # Kept here, for C keeps pointers into it.
    forwarding = Compiler(settings).compile(bench_services(services, backends, family))
    snapshot = forwarding.offline_snapshot()
    share = -(-flows // workers)
    table = 0 if mode == "stateless" else share
    pipelines = [Pipeline(table, LinkHeader.SWAP) for _ in range(workers)]
    benches = [Bench(pipeline, snapshot, BenchMode[mode.upper()], share, ring) for pipeline in pipelines]
    runs, rates, floors, probes, packets = [], [], [], [], []
    with _pinned(cpus) as together:
        for _ in range(RUNS):
            each = list(together(lambda bench: bench.run(seconds / RUNS * (1 - _FLOOR)), benches))
            for found in together(lambda bench: bench.floor(seconds / RUNS * _FLOOR), benches):
                floors += [sample.ns for sample in found]
            samples = [sample for found in each for sample in found]
            runs.append(round(statistics.median(sample.ns for sample in samples), 2))
            rates.append(sum(1000 / statistics.median(sample.ns for sample in found) for found in each))
            probes += [sample.probe for sample in samples]
            packets.append(len(samples) * BENCH_SEGMENT)
    return PipelineBench(
        ns_per_packet=statistics.median(runs),
        runs=runs,
        packets_per_run=round(statistics.median(packets)),
        bytes_per_flow=round(flow_table_bytes(share) / share, 2) if table else 0.0,
        noise=round(_spread(probes), 4),
        cpu=cpu_name(),
        commit=commit_name(),
        mode=mode,
        flows=flows,
        backends=backends,
        services=services,
        family=family,
        ring=ring,
        floor_ns=round(statistics.median(floors), 2),
        workers=workers,
        mpps=round(statistics.median(rates), 3),
        census_ms=round(_census_seconds(pipelines[0], snapshot, forwarding.counters) * 1e3, 1) if table else 0.0,
    )


def _cpus(workers: int) -> list[int] | None:
    """One for each; None: the caller's thread goes on where it is."""
    allowed = sorted(os.sched_getaffinity(0))
    if workers > len(allowed):
        raise RequestError(f"--workers {workers} wants as many CPUs, and this process has {len(allowed)}")
    return allowed[-workers:] if workers > 1 else None


@contextlib.contextmanager
def _pinned(cpus: list[int] | None) -> Iterator[Callable[..., Iterable[list[BenchSample]]]]:
    """As ``map()``, at once, with a thread on each CPU."""
    if cpus is None:
        yield map
        return
    queue: SimpleQueue[int] = SimpleQueue()
    for cpu in cpus:
        queue.put(cpu)
    with ThreadPoolExecutor(len(cpus), initializer=lambda: os.sched_setaffinity(0, {queue.get()})) as pool:
        yield pool.map


def _census_seconds(pipeline: Pipeline, snapshot: Snapshot, counters: int) -> float:
    """The median of a few."""
    took = []
    for _ in range(RUNS):
        census, began = Census(counters), time.perf_counter()
        census.add(pipeline, snapshot)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def bench_services(count: int, backends: int, family: int = 4) -> list[Service]:
    """Services of one port each, all with the same machines but backends of their own name."""
    return [
        Service(
            name=f"service-{i}",
            vip=IPv6Network(_FIRST_VIP6 + i) if family == 6 else IPv4Network(_FIRST_VIP + i),
            protocol=Protocol.TCP,
            ports=PortRange(80, 80),
            backends=tuple(Backend(f"backend-{i}-{j}", _machine(j, family)) for j in range(backends)),
        )
        for i in range(count)
    ]


def _machine(number: int, family: int) -> IPv4Address | IPv6Address:
    return IPv6Address(_FIRST_BACKEND6 + number) if family == 6 else IPv4Address(_FIRST_BACKEND + number)


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    return statistics.quantiles(values, n=10)[-1] / statistics.median(values) - 1
