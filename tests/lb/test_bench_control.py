# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the control plane says of the times it took."""

from lb.bench_control import COMMANDS, ControlBench, Distribution, histogram, lines, service_tables
from lb.config import parse_service_tables
from tests.lb.test_help import parse


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


def test_commands_are_shown_with_their_times() -> None:
    answer = ControlBench(10_000, 6, 3, 100, commands={f"lb {command}": 123.4 for command in COMMANDS})
    shown = lines(answer)
    assert all(len(line) <= 80 for line in shown)
    assert any(line.split()[:3] == ["lb", "get", "services"] and line.endswith(" 123") for line in shown)


def test_commands_that_are_timed_can_be_typed() -> None:
    for command in COMMANDS:
        arguments = command.format(service="web", backend="web-1", vip="203.0.113.10").split()
        assert "--help" in arguments or parse(arguments)
