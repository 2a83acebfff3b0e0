# SPDX-License-Identifier: Apache-2.0
"""What a budget becomes on a busy machine."""

from __future__ import annotations

import pytest

from tests.lab import pace


@pytest.mark.parametrize(("waiting", "factor"), [("0.00", 1.25), ("50.00", 2.125), ("100.00", 3.0)])
def test_a_budget_grows_with_the_share_of_time_in_which_something_waited(
    waiting: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"some avg10={waiting} avg60=7.00 avg300=9.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"
    monkeypatch.setattr(pace, "waiting", lambda: pace.share(text))
    assert pace.allowed(2.0) == pytest.approx(2.0 * factor)
    assert pace.reachable(100.0) == pytest.approx(100.0 / (1 + 2 * float(waiting) / 100))


def test_the_pressure_of_this_machine_is_a_share() -> None:
    assert 0.0 <= pace.waiting() <= 1.0
