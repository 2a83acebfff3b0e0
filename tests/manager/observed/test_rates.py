# SPDX-License-Identifier: Apache-2.0
"""Rates out of counters: by the MUX's clock, never negative, never of somebody who is silent, and bounded in memory."""

from __future__ import annotations

import random
from typing import Any

import pytest

from manager.observed.rates import MUXES_KEPT, POINTS, SERVICES_KEPT, STALE, STEP, Rate, Rates


def status(at: float, packets: int, *, flows: int = 3, name: str = "web") -> dict[str, Any]:
    """What a MUX with one busy service tells."""
    row = {"name": name, "packets": packets, "bytes": packets * 100, "flows_new": packets // 10, "dropped": 0}
    return {
        "at": at,
        "mux": {"received": packets + 5, "forwarded": packets, "dropped": 5, "flows": flows, "flow_capacity": 1000},
        "services": [{**row, "flows": flows}],
        "backends": [{"service": name, "name": "b1", "packets": packets, "flows": flows}],
    }


def test_a_rate_is_by_the_muxes_clock_however_late_its_word_comes() -> None:
    rates = Rates()
    rates.heard("mux1", status(100.0, 1000), 50.0)
    assert rates.total(50.0) is None
    rates.heard("mux1", status(102.0, 3000), 50.9)  # two seconds of its clock, less than one of ours
    assert rates.services(51.0)["web"] == Rate(1000.0, 800_000.0, 100.0, 0.0, 3)
    assert rates.backends(51.0)["web", "b1"].pps == 1000.0
    mux = rates.muxes(51.0)["mux1"]
    assert (mux.rate.pps, mux.rate.bps, mux.received, mux.capacity) == (1000.0, 800_000.0, 1000.0, 1000)


def test_services_are_summed_over_the_muxes() -> None:
    rates = Rates()
    for mux in ("mux1", "mux2"):
        rates.heard(mux, status(1.0, 0), 0.0)
        rates.heard(mux, status(2.0, 500), 1.0)
    assert rates.services(1.0)["web"].pps == 1000.0
    assert rates.services(1.0)["web"].flows == 6
    total = rates.total(1.0)
    assert total is not None
    assert (total.pps, total.cps) == (1000.0, 100.0)


def test_what_did_not_change_is_not_told_again_and_stands_still() -> None:
    rates = Rates()
    rates.heard("mux1", status(1.0, 0), 0.0)
    rates.heard("mux1", status(2.0, 500), 1.0)
    assert rates.heard("mux1", {"at": 3.0}, 2.0) == set()
    assert rates.services(2.0)["web"] == Rate(flows=3)
    total = rates.total(2.0)
    assert total is not None
    assert (total.pps, total.flows) == (0.0, 3)
    assert rates.heard("mux1", {"at": 4.0}, 3.0) == set()
    assert rates.heard("mux1", status(5.0, 600), 4.0) == {"web"}
    assert rates.services(4.0)["web"].pps == 100.0


def test_a_mux_that_began_anew_has_no_rate_and_never_a_negative_one() -> None:
    rates = Rates()
    rates.heard("mux1", status(1.0, 10_000), 0.0)
    rates.heard("mux1", status(2.0, 20_000), 1.0)
    rates.heard("mux1", status(3.0, 7), 2.0)
    assert rates.total(2.0) is None
    assert rates.services(2.0) == {}
    rates.heard("mux1", status(4.0, 107), 3.0)
    assert rates.services(3.0)["web"].pps == 100.0
    rates.left("mux1")
    rates.heard("mux1", status(5.0, 1_000_000), 4.0)  # it may have been started anew, and been busy since
    assert rates.total(4.0) is None


def test_a_service_that_was_deleted_and_made_anew_has_no_rate_and_spoils_no_other() -> None:
    rates = Rates()
    both = status(1.0, 1000)
    both["services"].append({"name": "dns", "packets": 50_000, "bytes": 1, "flows_new": 1, "flows": 1})
    rates.heard("mux1", both, 0.0)
    later = status(2.0, 2000)
    later["services"].append({"name": "dns", "packets": 10, "bytes": 1, "flows_new": 1, "flows": 1})
    rates.heard("mux1", later, 1.0)
    assert rates.services(1.0)["web"].pps == 1000.0
    assert rates.services(1.0)["dns"] == Rate(flows=1)


def test_a_silent_mux_counts_for_nothing() -> None:
    rates = Rates()
    rates.heard("mux1", status(1.0, 0), 0.0)
    rates.heard("mux1", status(2.0, 500), 1.0)
    assert rates.total(1.0 + STALE) is not None
    assert rates.total(1.1 + STALE) is None


def test_two_words_at_nearly_one_time_make_no_rate_of_their_own() -> None:
    rates = Rates()
    rates.heard("mux1", status(1.0, 0), 0.0)
    rates.heard("mux1", status(2.0, 500), 1.0)
    rates.heard("mux1", status(2.01, 600), 1.0)
    assert rates.services(1.0)["web"].pps == 500.0
    rates.heard("mux1", status(3.01, 700), 2.0)
    assert rates.services(2.0)["web"].pps == pytest.approx(100.0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"at": "x"},
        {"at": True, "services": 5},
        {"at": 1, "services": [5, {"name": []}, {"name": "web", "packets": "many", "flows": -4}]},
        {"at": 1e300, "mux": [], "backends": {"a": 1}},
        {"at": 2, "backends": [{"service": "web"}, {"service": 1, "name": "x"}]},
    ],
)
def test_nonsense_counts_for_nothing(body: dict[str, Any]) -> None:
    rates = Rates()
    rates.heard("mux1", status(0.5, 100), 0.0)
    rates.heard("mux1", body, 1.0)
    rates.heard("mux1", body, 2.0)
    rates.tick(2.0)
    assert all(rate.pps >= 0 for rate in rates.services(2.0).values())


# --- history ---------------------------------------------------------------------------------------------------------


def run(rates: Rates, seconds: int, pps: int) -> None:
    for second in range(seconds):
        now = 1000.0 + second
        rates.heard("mux1", status(float(second), second * pps), now)
        rates.tick(now)


def test_history_has_a_point_for_each_step_and_only_the_last_minutes() -> None:
    rates = Rates()
    run(rates, 20, 100)
    found = rates.history.read(None, ["web", "nono"])
    assert (found["step"], found["first"], found["points"]) == (STEP, 1000.0, 10)
    assert found["total"]["pps"] == [None, *[100.0] * 9]
    assert found["services"]["web"]["bps"] == [None, *[80_000.0] * 9]
    assert found["services"].keys() == {"web"}
    assert found["muxes"]["mux1"]["cps"][-1] == 10.0
    run(rates, 400, 100)
    assert rates.history.read(None, [])["points"] == POINTS
    newest = rates.history.read(1000.0 + 395, ["web"])
    assert newest["points"] == 2
    assert newest["total"]["pps"] == [100.0, 100.0]
    assert rates.history.read(5000.0, [])["points"] == 0


def test_a_time_when_nobody_told_is_a_gap_and_no_zero() -> None:
    rates = Rates()
    run(rates, 6, 100)
    for now in range(1006, 1020):
        rates.tick(float(now))
    points = rates.history.read(None, ["web"])
    assert points["total"]["pps"][-1] is None
    assert points["services"]["web"]["pps"][-1] is None
    assert points["total"]["pps"][2] == 100.0


def test_the_busiest_services_are_kept_and_memory_is_bounded() -> None:
    rates = Rates()
    rng = random.Random(3)
    names = [f"s{n}" for n in range(400)]
    total = dict.fromkeys(names, 0)
    for second in range(120):
        for name in names:
            total[name] += 1000 if name == "s7" else rng.randrange(100)
        rows = [{"name": name, "packets": count, "flows": 1} for name, count in total.items()]
        for mux in range(MUXES_KEPT + 10):
            body = {"at": float(second), "mux": {"forwarded": second}, "services": rows if mux == 0 else []}
            rates.heard(f"mux{mux}", body, float(second))
        rates.tick(float(second))
    found = rates.history.services()
    assert len(found) == SERVICES_KEPT
    assert found[0] == "s7"
    assert len(rates.history.read(None, [])["muxes"]) == MUXES_KEPT
