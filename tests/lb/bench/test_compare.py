# SPDX-License-Identifier: Apache-2.0
"""``lb bench peers``: what it makes of its samples, and that nothing is left out silently."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("lb._dataplane")

from lb.bench.compare import comparison
from lb.bench.compare.comparison import Figure, Measured, PeersBench, bench_peers, cell, lines, names
from lb.bench.compare.forwarders import Return, ways
from lb.bench.compare.http_load import Load, read_wrk
from lb.bench.testbed import netns
from lb.bench.testbed.daemons import NICE, lift_session, real_time
from lb.errors import IoError, PrivilegeError, RequestError
from lb.model import IoMode

WRK = """\
Running 1s test @ http://10.0.0.1/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   442.54us  252.13us   5.67ms   93.80%
  Latency Distribution
     50%  412.00us
     75%  501.00us
     90%  640.00us
     99%    1.42ms
  40321 requests in 1.10s, 6.15MB read
  Socket errors: connect 0, read 3, write 1, timeout 0
  Non-2xx or 3xx responses: 7
Requests/sec:  36655.20
Transfer/sec:      5.59MB
"""


def result(**changed: object) -> PeersBench:
    values: dict[str, object] = {
        "http": {"direct": Measured("no load balancer", {"keep_p50_us": Figure.of([71.0, 62.0, 88.0])}, steal=0.021)},
        "packets": {},
        "load": {},
        "left_out": {"ipvs": "this kernel has no IPVS (module ip_vs)"},
        "offloads": False,
        "rounds": 3,
        "seconds": 1.0,
        "load_average": 0.2,
        "cpu": "a processor",
        "kernel": "Linux 6.1",
        "date": "2026-01-02",
        "commit": "0.1.0",
    }
    return PeersBench(**(values | changed))  # type: ignore[arg-type]


def test_every_io_mode_of_the_project_is_a_way() -> None:
    assert {way.io for way in ways() if way.io} == set(IoMode) - {IoMode.AUTO}


def test_names_are_told_apart() -> None:
    assert len(set(names())) == len(names()) == len(ways()) + 1


def test_what_ends_connections_forwards_no_packets() -> None:
    assert {way.name for way in ways() if not way.forwards} == {"haproxy", "nginx", "ipvs"}


def test_rules_of_the_kernels_ways_name_vip_and_backend() -> None:
    for way in ways():
        if way.rules is not None:
            text = way.rules("198.18.0.1", "10.2.0.1")
            assert "198.18.0.1" in text
            assert "10.2.0.1" in text
            assert way.back is Return.THROUGH


def test_an_unknown_way_is_refused_with_all_names() -> None:
    with pytest.raises(RequestError, match=r"--only lvs: no such way; there are direct, kernel, .*vipmux-tun"):
        bench_peers(only=["lvs"], parts=("http",), rounds=1, seconds=1.0, offloads=True, say=print)


def test_figures_have_median_and_spread() -> None:
    figure = Figure.of([71.0, 62.0, 88.0])
    assert (figure.median, figure.min, figure.max) == (71.0, 62.0, 88.0)
    assert cell(figure, 0) == "71 [62-88]"
    assert cell(None, 0) == "-"


def test_the_table_says_spread_steal_and_what_was_left_out() -> None:
    text = "\n".join(lines(result()))
    assert "direct  71 [62-88]" in text
    assert "2.1%" in text
    assert "ipvs was left out: this kernel has no IPVS (module ip_vs)" in text
    assert "offloads off" in text
    assert "a processor, Linux 6.1, 2026-01-02, commit 0.1.0" in text


def test_real_time_priority_is_said() -> None:
    assert "real-time" not in "\n".join(lines(result()))
    assert "offloads off; HTTP at real-time priority" in "\n".join(lines(result(realtime=True)))


def _may_be_real_time() -> bool:
    tried = subprocess.run(["chrt", "-f", "1", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


@pytest.mark.skipif(not _may_be_real_time(), reason="real-time priority needs CAP_SYS_NICE")
def test_all_that_is_started_at_real_time_priority_has_it_and_we_no_longer() -> None:
    before = os.sched_getscheduler(0)
    with real_time():
        asked = subprocess.run(["chrt", "-p", "0"], capture_output=True, text=True, check=True).stdout
    assert "SCHED_FIFO" in asked
    assert os.sched_getscheduler(0) == before


@pytest.mark.skipif(not _may_be_real_time(), reason="real-time priority needs CAP_SYS_NICE")
@pytest.mark.parametrize(("realtime", "policy"), [(False, os.SCHED_OTHER), (True, os.SCHED_FIFO)])
def test_http_is_measured_at_real_time_priority_where_asked(
    monkeypatch: pytest.MonkeyPatch, realtime: bool, policy: int
) -> None:
    seen: list[int] = []

    def measured(*_: object, **__: object) -> dict[str, Measured]:
        seen.append(os.sched_getscheduler(0))
        return {}

    monkeypatch.setattr(comparison, "needs", lambda *_: None)
    monkeypatch.setattr(comparison, "_http", measured)
    monkeypatch.setattr(comparison, "_load", measured)
    monkeypatch.setattr(comparison, "_packets", measured)
    ran = bench_peers(
        only=(), parts=comparison.PARTS, rounds=1, seconds=1.0, offloads=True, say=print, realtime=realtime
    )
    assert seen == [policy, policy, os.SCHED_OTHER]  # packets have cores of their own
    assert ran.realtime is realtime


def test_where_there_is_no_real_time_priority_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with pytest.raises(PrivilegeError, match="no real-time priority for the benchmark"), real_time():
        pass


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/proc/self/autogroup").exists(), reason="no sessions that share the CPU, or no root"
)
def test_a_session_of_its_own_is_lifted() -> None:
    lifted, other = (subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2))
    try:
        lift_session(lifted.pid)
        nice = [Path(f"/proc/{child.pid}/autogroup").read_text().split()[-1] for child in (lifted, other)]
        assert nice == [str(NICE), "0"]
    finally:
        for child in (lifted, other):
            child.kill()
            child.wait()


def test_failed_requests_are_said_and_make_the_run_unsound() -> None:
    failed = result(http={"nginx": Measured("nginx stream", errors=3)})
    assert "nginx: 3 requests of wrk failed" in lines(failed)
    assert not failed.sound
    assert result().sound


def test_what_a_killed_run_left_in_memory_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(netns, "MEMORY", tmp_path)
    monkeypatch.setattr(netns, "NETNS", tmp_path / "none")
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, running = tmp_path / f"vipmux-{ended.pid}-0abc", tmp_path / f"vipmux-{os.getpid()}-0abc"
    left.mkdir()
    running.mkdir()
    netns.reap()
    assert (left.exists(), running.exists()) == (False, True)


def test_wrk_is_read_with_all_its_errors() -> None:
    assert read_wrk(WRK) == Load(36655.2, 40321, 11, 412.0, 1420.0)


def test_wrk_that_says_something_else_is_an_error() -> None:
    with pytest.raises(IoError, match="unable to connect"):
        read_wrk("unable to connect to 10.0.0.1:80 Connection refused")
