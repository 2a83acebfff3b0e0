# SPDX-License-Identifier: Apache-2.0
"""The benchmark and the list of reasons answer with the names that others rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lb._dataplane")

from lb.bench.pipeline import bench_services
from lb.dataplane import BENCH_FRAMES, BENCH_SEGMENT, REASONS, Bench, BenchMode, LinkHeader, Pipeline
from lb.dataplane.compile.compiler import Compiler
from lb.errors import DataplaneError
from lb.model import MuxSettings

ROOT = Path(__file__).parents[3]
SETTINGS = MuxSettings(
    name="bench",
    address=IPv4Address("192.0.2.1"),
    address6=IPv6Address("2001:db8::1"),
    seed=bytes(range(16)),
    interface="",
    flows=10_000,
    slots=4093,
)


def answer(*arguments: object) -> Any:
    command = [sys.executable, "-m", "lb.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["hit", "flood", "mix", "stateless", "miss"])
def test_bench_pipeline_answers_as_the_contract_says(mode: str) -> None:
    result = answer("bench", "pipeline", "--flows", 50_000, "--mode", mode, "--seconds", 0.2, "--json")
    assert {"ns_per_packet", "runs", "packets_per_run", "bytes_per_flow", "noise", "cpu", "commit"} <= set(result)
    assert min(result["runs"]) <= result["ns_per_packet"] <= max(result["runs"])
    assert result["packets_per_run"] > 0


def test_the_family_is_of_ones_choice() -> None:
    result = answer("bench", "pipeline", "--family", 6, "--flows", 20_000, "--seconds", 0.1, "--json")
    assert (result["family"], result["ns_per_packet"] > 0) == (6, True)


def test_several_workers_measure_at_once() -> None:
    cpus = len(os.sched_getaffinity(0))
    asked = ("bench", "pipeline", "--flows", 20_000, "--seconds", 0.2, "--json", "--workers")
    if cpus > 1:
        result = answer(*asked, 2)
        assert result["workers"] == 2
        assert result["mpps"] > 1200 / result["ns_per_packet"], "more than one does"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        answer(*asked, cpus + 1)
    assert f"--workers {cpus + 1} wants as many CPUs, and this process has {cpus}" in caught.value.stderr


def test_the_ring_is_of_ones_choice_and_a_figure_has_its_floor() -> None:
    result = answer("bench", "pipeline", "--ring", 3000, "--flows", 20_000, "--seconds", 0.2, "--json")
    assert result["ring"] == 4096
    assert 0 < result["floor_ns"] < result["ns_per_packet"]


@pytest.mark.parametrize("ring", [BENCH_SEGMENT, BENCH_FRAMES])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("mode", "reasons"), [(BenchMode.HIT, {"forwarded"}), (BenchMode.MISS, {"not_vip"})])
def test_packets_of_the_benchmark_are_what_it_says(family: int, mode: BenchMode, reasons: set[str], ring: int) -> None:
    """Or a benchmark of nothing would look fast."""
    forwarding = Compiler(SETTINGS).compile(bench_services(3, 5, family))
    pipeline = Pipeline(10_000, LinkHeader.SWAP)
    bench = Bench(pipeline, forwarding.offline_snapshot(), mode, 3000, ring)
    bench.run(0.05)
    packets = pipeline.counters().received
    bench.floor(0.01)
    counters = pipeline.counters()
    assert {reason.name for reason, packets in zip(REASONS, counters.reasons, strict=True) if packets} == reasons
    assert sum(counters.flows.live) == (3000 if mode is BenchMode.HIT else 0)
    assert counters.received == packets, "the floor is measured without the pipeline"


def test_a_ring_that_no_segment_fits_is_refused() -> None:
    forwarding = Compiler(SETTINGS).compile(bench_services(1, 1))
    with pytest.raises(DataplaneError, match="a ring of 1000 frames"):
        Bench(Pipeline(0, LinkHeader.SWAP), forwarding.offline_snapshot(), BenchMode.HIT, 1000, 1000)


def test_bench_takes_many_services_and_backends() -> None:
    size = ("--flows", 10_000, "--services", 300, "--backends", 7, "--seconds", 0.1)
    assert answer("bench", "pipeline", *size, "--json")["ns_per_packet"] > 0


def test_a_flow_takes_at_most_16_bytes_of_table() -> None:
    result = answer("bench", "pipeline", "--flows", 1_000_000, "--seconds", 0.1, "--json")
    assert 8 < result["bytes_per_flow"] <= 16


def test_every_reason_has_a_stable_name_a_verdict_and_a_sentence() -> None:
    reasons = answer("reasons", "--json")
    names = [reason["name"] for reason in reasons]
    assert len(set(names)) == len(names) >= 10
    assert {"truncated", "no_service", "no_backend"} <= set(names)
    for reason in reasons:
        assert set(reason) == {"name", "verdict", "help"}
        assert reason["name"].replace("_", "").isalnum()
        assert reason["name"].islower()
        assert reason["verdict"] in ("forward", "pass", "drop", "reply")
        assert reason["help"].endswith(".")
