# SPDX-License-Identifier: Apache-2.0
"""Which failures of labs are run once more."""

from __future__ import annotations

from tests.lab.again import worth_another_run


def test_a_few_failures_are_run_again_and_many_are_not() -> None:
    assert worth_another_run(1, ["a.py::one"])
    assert worth_another_run(1, ["a.py::one", "a.py::two", "b.py::one"])
    assert not worth_another_run(1, ["a.py::one", "b.py::one", "c.py::one"])


def test_what_was_interrupted_or_could_not_be_collected_is_not_run_again() -> None:
    assert not worth_another_run(2, ["a.py::one"])
    assert not worth_another_run(1, [])
