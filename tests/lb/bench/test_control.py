# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the control plane says of the times it took."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import asdict
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lb.bench.control.control_plane import COMMANDS, ControlBench, Distribution, histogram, lines, service_tables
from lb.bench.control.simulated_nodes import BackendPlace, Nodes, SimulatedNode
from lb.bench.testbed.bird import ABSENT, Router, programs
from lb.cli.main import run
from lb.config.load import parse_service_tables
from tests.lb.cli.test_help import parse


def test_distribution_is_of_all_times_in_milliseconds() -> None:
    found = Distribution.of([0.001 * number for number in range(1, 101)])
    assert (found.count, found.min, found.median, found.worst) == (100, 1.0, 50.5, 100.0)
    assert found.p90 == 91.0
    assert found.p99 == 100.0


def test_no_times_are_no_mistake() -> None:
    assert Distribution.of([]).count == 0


def test_histogram_counts_every_time_once() -> None:
    rows = histogram([5, 10, 10.1, 60, 5000])
    assert [int(row[14:].split()[0]) for row in rows] == [2, 1, 1, 1]
    assert rows[-1].startswith("over 1000 ms")


def test_services_of_the_benchmark_are_right() -> None:
    services = parse_service_tables(service_tables(200, 6, 20))
    assert len({service.vip for service in services}) == 200
    assert {len(service.backends) for service in services} == {6}


def test_answer_fits_eighty_columns_before_anything_was_measured() -> None:
    assert all(len(line) <= 80 for line in lines(ControlBench(10_000, 6, 3, 100)))


ROWS = asdict(Distribution.of([0.25, 0.5]))


def test_bgp_is_told_of_as_it_was_used() -> None:
    used = {"router": "BIRD 2.0.12", "peers": 2, "first": 12.3, "announced": ROWS, "withdrawn": ROWS, "moved": 0}
    for wrong, words in (({}, "60,000 at the end, exactly the VIPs"), ({"router1": {"mux1": 3}}, "not exactly")):
        answer = ControlBench(10_000, 6, 3, 100, bgp={**used, "routes": 60_000, "wrong": wrong})
        shown = [line for line in lines(answer) if words in line]
        assert len(shown) == 1
        assert all(len(line) <= 80 for line in lines(answer) if not wrong)
    answer = ControlBench(10_000, 6, 3, 100, bgp={"router": None, "peers": 0, "why": ABSENT})
    (shown,) = [line for line in lines(answer) if ABSENT in line]
    assert len(shown) <= 80


def test_router_takes_the_vips_by_every_mux_and_passive_sessions_only(tmp_path: Path) -> None:
    if programs() is None:
        pytest.skip("install bird2")
    router = Router("router2", tmp_path, {"mux1": "10.0.1.11", "mux2": "10.0.1.12"}, IPv4Network("198.18.0.0/15"))
    bird, *_ = router.command()
    done = subprocess.run([bird, "-p", "-c", tmp_path / "router2.conf"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert router.config().count("passive on") == 2


def test_commands_are_shown_with_their_times() -> None:
    answer = ControlBench(10_000, 6, 3, 100, commands={f"lb {command}": 123.4 for command in COMMANDS})
    shown = lines(answer)
    assert all(len(line) <= 80 for line in shown)
    assert any(line.split()[:3] == ["lb", "get", "services"] and line.endswith(" 123") for line in shown)


def test_commands_that_are_timed_can_be_typed() -> None:
    for command in COMMANDS:
        arguments = command.format(service="web", backend="web-1", vip="203.0.113.10").split()
        assert "--help" in arguments or parse(arguments)


def test_what_somebody_did_not_get_is_bad_news() -> None:
    assert ControlBench(10_000, 6, 3, 100).sound
    assert ControlBench(10_000, 6, 3, 100, bgp={"wrong": {}}, churn={"lost": 0, "wrong": 0, "diverged": []}).sound
    assert not ControlBench(10_000, 6, 3, 100, bgp={"wrong": {"router1": {"mux1": 3}}}).sound
    for key, value in (("lost", 1), ("wrong", 1), ("diverged", ["mux:mux1"])):
        assert not ControlBench(10_000, 6, 3, 100, churn={key: value}).sound


def test_too_few_agents_for_a_backend_more_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "control", "--agents", "6"]) == 2
    assert "--agents 6: must be more than --backends" in capsys.readouterr().err


def test_a_measurement_whose_ledger_fails_ends_with_the_reason() -> None:
    """It would lose every verdict from then on, and blame the MUX."""
    place = BackendPlace("web", "web-1", "host1")
    watcher = SimpleNamespace(state={"services": {"web": {"backend": [{}]}}}, changed=[])

    def say(*_: object) -> None:
        for event in watcher.changed:
            event.set()

    nodes = Nodes.__new__(Nodes)
    nodes._watcher, nodes._places = cast("SimulatedNode", watcher), [place]
    nodes._nodes = {"host1": cast("SimulatedNode", SimpleNamespace(reports={}, say=say))}

    async def bounded() -> None:
        await asyncio.wait_for(nodes.churn(seconds=0.2, rate=50.0, seed=1), 60)

    with pytest.raises(ExceptionGroup) as found:
        asyncio.run(bounded())
    assert found.group_contains(KeyError, match="name")
