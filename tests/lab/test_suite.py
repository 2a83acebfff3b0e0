# SPDX-License-Identifier: Apache-2.0
"""What ``make lab`` makes of the runs of pytest that it is made of."""

from __future__ import annotations

from pathlib import Path

from tests.lab.suite import FIRST, files, worst, worth_another_run


def test_a_few_failures_are_run_again_and_many_are_not() -> None:
    assert worth_another_run(1, ["a.py::one"])
    assert worth_another_run(1, ["a.py::one", "a.py::two", "b.py::one"])
    assert not worth_another_run(1, ["a.py::one", "b.py::one", "c.py::one"])


def test_what_was_interrupted_or_could_not_be_collected_is_not_run_again() -> None:
    assert not worth_another_run(2, ["a.py::one"])
    assert not worth_another_run(1, [])


def test_a_failure_in_one_part_is_one_of_the_whole() -> None:
    assert worst([0, 0]) == 0
    assert worst([1, 0]) == worst([0, 1]) == 1
    assert worst([1, 2]) == 2


def test_a_part_of_which_nothing_was_chosen_is_no_failure_but_a_name_that_no_lab_has_is() -> None:
    assert worst([0, 5]) == worst([5, 0]) == 0
    assert worst([5, 1]) == 1
    assert worst([5, 5]) == 5


def test_what_goes_first_is_there_and_goes_first() -> None:
    found = files()
    assert found[: len(FIRST)] == list(FIRST)
    assert len(set(found)) == len(found) > len(FIRST)
    assert all(Path(name).is_file() for name in found)
