# SPDX-License-Identifier: Apache-2.0
"""``lb bench io``, ``latency`` and ``peers`` answer with the names of the contract, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lb._dataplane")

from lb.bench.testbed import netns
from tests.lab.process import wait_for

ROOT = Path(__file__).parents[3]
KEYS = {"mpps", "ns_per_packet", "loss", "steal", "runs", "mode", "cpu", "commit"}
LATENCY_KEYS = {"direct_p50_us", "vip_p50_us", "direct_p99_us", "vip_p99_us", "runs"}
#: A ring of blocks gives packets out after so long.
TIMER_US = 1000


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lb.cli.main", "bench", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=90)


def left_by(pid: int) -> list[str]:
    """Namespaces and directories with the number of a process in their names."""
    places = (netns.NETNS, Path(tempfile.gettempdir()), netns.MEMORY)
    return [str(path) for place in places if place.is_dir() for path in place.glob(f"vipmux-{pid}-*")]


def mux_of(pid: int) -> int | None:
    """The lb-mux that a benchmark has started, once it has its control socket."""
    names = [path.name for path in netns.NETNS.glob(f"vipmux-{pid}-*-mux")] if netns.NETNS.is_dir() else []
    served = list(Path(tempfile.gettempdir()).glob(f"vipmux-{pid}-*/state/mux.sock"))
    found = netns.pids(names[0]) if names and served else []
    return found[0] if found else None


@pytest.mark.lab
def test_without_root_it_says_so() -> None:
    command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--", sys.executable, "-m", "lb.cli.main"]
    done = subprocess.run([*command, "bench", "io"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "root" in done.stderr


@pytest.mark.lab
@pytest.mark.parametrize("io", ["packet", "tun"])
def test_a_short_run_answers_as_the_contract_says_and_leaves_nothing(io: str) -> None:
    process = start("io", "--io", io, "--seconds", "1", "--json")
    out, error = finish(process)
    assert process.returncode == 0, error
    answer: dict[str, Any] = json.loads(out)
    assert answer.keys() >= KEYS
    assert len(answer["runs"]) >= 5
    assert answer["mpps"] == statistics.median(answer["runs"]) > 0.01
    assert 100 < answer["ns_per_packet"] < 100_000
    assert 0 <= answer["loss"] < 0.5
    assert 0 <= answer["steal"] <= 1
    assert answer["mode"]
    assert left_by(process.pid) == []


@pytest.mark.lab
@pytest.mark.timed
@pytest.mark.parametrize("io", ["packet", "tun"])
def test_latency_answers_as_the_contract_says_and_no_request_waits_for_a_timer(io: str) -> None:
    process = start("latency", "--io", io, "--seconds", "2", "--json")
    out, error = finish(process)
    assert process.returncode == 0, error
    answer: dict[str, Any] = json.loads(out)
    assert answer.keys() >= LATENCY_KEYS
    assert len(answer["runs"]) >= 5
    vip = [run["vip"]["p50"] for run in answer["runs"]]
    assert answer["vip_p50_us"] == statistics.median(vip) > answer["direct_p50_us"] > 1
    assert all(answer[f"{way}_p99_us"] >= answer[f"{way}_p50_us"] for way in ("direct", "vip"))
    assert answer["vip_p50_us"] - answer["direct_p50_us"] < TIMER_US / 2
    assert (answer["io"], answer["decap"]) == (io, "bpf")
    assert left_by(process.pid) == []


@pytest.mark.lab
@pytest.mark.timed
def test_overload_tells_what_is_lost_where_and_that_the_session_is_not() -> None:
    process = start("overload", "--io", "tun", "--times", "3", "--seconds", "4", "--json")
    out, error = finish(process)
    assert process.returncode == 0, error
    answer: dict[str, Any] = json.loads(out)
    assert answer["capacity"] > 1000
    (step,) = answer["steps"]
    assert (step["factor"], step["session"]) == (3, "stayed")
    assert step["offered"] >= step["arrived"] * 0.9 > 0
    assert step["requests"] > 0
    assert 0 < step["control_cpu"] < step["worker_cpu"] < 1.1
    assert left_by(process.pid) == []


@pytest.mark.lab
def test_all_measurements_come_in_one_table() -> None:
    out, error = finish(start("all", "--flows", "10000", "--seconds", "1"))
    first, *rows = out.splitlines()
    assert first.split()[0] == "measurement", error
    measured = ["hit", "flood", "mix", "stateless", "miss", "packet", "tun"]
    assert [row.split()[1] for row in rows[:-1]] == measured, error
    assert "10,000 flows" in rows[-1]


@pytest.mark.lab
def test_sigterm_in_the_middle_leaves_nothing() -> None:
    process = start("io", "--seconds", "60")
    mux = wait_for(lambda: mux_of(process.pid), "lb-mux of the benchmark", 30)
    process.terminate()
    out, _ = finish(process)
    assert process.returncode == 130
    assert out == ""
    assert left_by(process.pid) == []
    assert not Path(f"/proc/{mux}").exists()


@pytest.mark.lab
def test_what_a_killed_run_leaves_is_ended_by_the_kernel_and_removed_by_the_next() -> None:
    killed = start("io", "--seconds", "60")
    mux = wait_for(lambda: mux_of(killed.pid), "lb-mux of the benchmark", 30)
    os.kill(killed.pid, signal.SIGKILL)
    finish(killed)
    wait_for(lambda: not Path(f"/proc/{mux}").exists(), "the end of lb-mux", 20)
    # Its namespaces are removed by whoever makes some next; in a test run beside this one that may have happened.
    following = start("io", "--io", "tun", "--seconds", "1")
    _, error = finish(following)
    assert following.returncode == 0, error
    assert left_by(killed.pid) == []


@pytest.mark.lab
def test_peers_are_measured_in_one_run_which_leaves_nothing() -> None:
    only = [word for name in ("direct", "nft-dnat", "haproxy", "vipmux-packet") for word in ("--only", name)]
    process = start("peers", *only, "--rounds", "1", "--seconds", "0.1", "--json")
    out, error = finish(process)
    assert process.returncode == 0, error
    answer: dict[str, Any] = json.loads(out)
    left_out = answer["left_out"]
    assert {"direct", "nft-dnat", "haproxy", "vipmux-packet"} == answer["http"].keys() | left_out.keys() - {
        "haproxy (packets)"
    }
    for name in ("direct", "nft-dnat", "vipmux-packet"):
        figures = answer["http"][name]["figures"]
        assert all(figures[key]["median"] > 0 for key in figures if not key.startswith("cpu")), (name, figures)
        assert answer["http"][name]["errors"] == 0
    assert answer["packets"].keys() == {"nft-dnat", "vipmux-packet"}
    assert all(way["figures"]["mpps"]["median"] > 0.01 for way in answer["packets"].values())
    assert left_by(process.pid) == []
