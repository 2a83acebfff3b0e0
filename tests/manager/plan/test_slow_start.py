# SPDX-License-Identifier: Apache-2.0
"""Slow start: who ramps, how weights go up, and that nothing else moves meanwhile."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.dataplane.maglev import Maglev, MaglevMember, permutation
from lb.model import Backend
from manager.desired.state import Order, drain_backend
from manager.plan.slow_start import STEPS, WEIGHT_MAX, Ramp, ramp, weights
from manager.store.events import about
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import Fleet, service, with_probe

SLOT_COUNT = 4093
ORDER = Order("ada", 0.0)


def backends(*weights_: int) -> list[Backend]:
    return [Backend(f"b{i}", IPv4Address(f"10.0.3.{i}"), weight=weight) for i, weight in enumerate(weights_, 1)]


def slots(found: list[Backend], told: tuple[int, ...]) -> list[int]:
    rows = [
        MaglevMember(*permutation(bytes(16), backend.name, SLOT_COUNT), weight, i)
        for i, (backend, weight) in enumerate(zip(found, told, strict=True))
    ]
    return list(Maglev(SLOT_COUNT, rows).slots())


# --- the ramp --------------------------------------------------------------------------------------------------------


def test_a_ramp_goes_up_in_equal_steps_and_ends() -> None:
    steps = [found.step if (found := ramp(100.0, 20.0, 100.0 + 2 * i + 0.1)) else None for i in range(11)]
    assert steps == [*range(1, STEPS), None, None]
    first = ramp(100.0, 20.0, 100.0)
    assert first is not None
    assert first.next_at == 102.0


def test_a_clock_that_was_set_back_does_not_make_a_ramp_longer_than_a_new_one() -> None:
    found = ramp(5000.0, 20.0, 100.0)
    assert found == Ramp(100.0, 20.0, 1)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.data())
def test_told_weights_are_valid_and_those_of_nobody_else_change_in_proportion(
    own: list[int], data: st.DataObject
) -> None:
    found = backends(*own)
    ramps = [data.draw(st.none() | st.builds(Ramp, st.just(0.0), st.just(10.0), st.integers(1, 9))) for _ in own]
    told = weights(found, ramps)
    assert all(0 <= weight <= WEIGHT_MAX for weight in told)
    assert [weight == 0 for weight in told] == [weight == 0 for weight in own]
    whole = [(now, before) for now, before, slow in zip(told, own, ramps, strict=True) if slow is None and before]
    assert len({now // before for now, before in whole}) <= 1
    assert all(now % before == 0 for now, before in whole)


def test_a_larger_scale_of_all_weights_moves_no_slot() -> None:
    found = backends(1, 2, 3)
    assert slots(found, (1, 2, 3)) == slots(found, (333, 666, 999))


def test_each_step_takes_slots_for_the_returning_backend_alone() -> None:
    found = backends(1, 1, 1)
    before = slots(found, weights(found, [None, None, Ramp(0.0, 10.0, 1)]))
    assert Counter(before)[2] == pytest.approx(SLOT_COUNT * 0.1 / 2.1, rel=0.02)
    for step in range(2, STEPS):
        after = slots(found, weights(found, [None, None, Ramp(0.0, 10.0, step)]))
        assert Counter(after)[2] == pytest.approx(SLOT_COUNT * step / (20 + step), rel=0.02)
        between_others = sum(1 for was, now in zip(before, after, strict=True) if was != now and 2 not in (was, now))
        assert between_others < 0.03 * SLOT_COUNT
        before = after


# --- the plan --------------------------------------------------------------------------------------------------------


def serving(seconds: float | None = 20.0) -> Fleet:
    keys = {} if seconds is None else {"slow_start": seconds}
    fleet = Fleet()
    fleet.apply(with_probe(service(hosts=(1, 2, 3), **keys)))
    fleet.plan()
    fleet.take()
    fleet.all_healthy()
    fleet.settle()
    return fleet


def drain(fleet: Fleet, backend: str, order: Order | None) -> None:
    fleet.desired = drain_backend(fleet.desired, "web", backend, order).new
    fleet.settle()


def told(fleet: Fleet) -> list[int]:
    table = fleet.table()
    assert table is not None
    assert "slow_start" not in table
    return [backend.get("weight", 1) for backend in table["backend"]]


def test_a_service_that_begins_has_its_whole_weights_at_once() -> None:
    assert told(serving()) == [1, 1, 1]


def test_after_undrain_the_weight_goes_up_step_by_step_to_the_whole() -> None:
    fleet = serving()
    drain(fleet, "web-3", ORDER)
    assert told(fleet) == [1, 1, 1]
    drain(fleet, "web-3", None)
    seen = []
    for _ in range(STEPS + 1):
        seen.append(told(fleet))
        fleet.now += 2.0
        fleet.plan()
    assert seen == [*([1000, 1000, 100 * step] for step in range(1, STEPS)), [1, 1, 1], [1, 1, 1]]


def test_without_slow_start_the_weight_is_whole_at_once() -> None:
    fleet = serving(None)
    drain(fleet, "web-3", ORDER)
    drain(fleet, "web-3", None)
    assert told(fleet) == [1, 1, 1]


def test_a_backend_that_was_down_returns_slowly_as_well() -> None:
    fleet = serving()
    fleet.report("host2", "web", "web-2", False)
    fleet.settle()
    fleet.now += 5.0
    fleet.report("host2", "web", "web-2", True)
    fleet.settle()
    assert told(fleet) == [1000, 100, 1000]


def test_the_only_backend_that_takes_flows_has_its_whole_weight_at_once() -> None:
    fleet = serving()
    for backend in ("web-1", "web-2", "web-3"):
        drain(fleet, backend, ORDER)
    drain(fleet, "web-2", None)
    assert told(fleet) == [1, 1, 1]
    drain(fleet, "web-1", None)
    assert told(fleet) == [100, 1000, 1000]


def test_a_drain_ends_the_ramp_and_the_next_undrain_begins_anew() -> None:
    fleet = serving()
    drain(fleet, "web-3", ORDER)
    drain(fleet, "web-3", None)
    fleet.now += 10.0
    drain(fleet, "web-3", ORDER)
    assert told(fleet) == [1, 1, 1]
    drain(fleet, "web-3", None)
    assert told(fleet) == [1000, 1000, 100]


def test_slow_start_taken_from_the_service_ends_the_ramp() -> None:
    fleet = serving()
    drain(fleet, "web-3", ORDER)
    drain(fleet, "web-3", None)
    fleet.apply(with_probe(service(hosts=(1, 2, 3))))
    fleet.settle()
    assert told(fleet) == [1, 1, 1]


# --- the manager -----------------------------------------------------------------------------------------------------


async def test_a_manager_that_starts_anew_goes_on_with_the_ramp(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service(slow_start=3600.0)], "ada")
        await until(lambda: all(mux.announces() for mux in site.muxes), "the VIP is not announced")
        await controller.writer.drain_backend("web", "web-2", "ada", drain=True)
        assert await controller.followers.wait(5.0) == []
        await controller.writer.drain_backend("web", "web-2", "ada", drain=False)
        assert await controller.followers.wait(5.0) == []
        before = site.muxes[0].state["services"]["web"]
        assert [backend.get("weight", 1) for backend in before["backend"]] == [1000, 100]
    async with running(tmp_path) as controller:
        site.connect(controller)
        assert await controller.followers.wait(5.0) == []
        assert site.muxes[0].state["services"]["web"] == before


async def test_time_alone_brings_the_next_step_and_the_end_is_an_event(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([service(slow_start=1.0)], "ada")
        await until(lambda: all(mux.announces() for mux in site.muxes), "the VIP is not announced")
        await controller.writer.drain_backend("web", "web-2", "ada", drain=True)
        assert await controller.followers.wait(5.0) == []
        await controller.writer.drain_backend("web", "web-2", "ada", drain=False)
        await until(
            lambda: (
                [b.get("weight", 1) for b in site.muxes[0].state["services"]["web"]["backend"]] == [1, 1]
                and any("slow start is over" in event.text for event in controller.events.latest(50))
            ),
            "the whole weight",
        )
        texts = [event.text for event in controller.events.latest(50, about(["backend web/web-2"]))]
        assert "slow start: it comes to its weight, 1, within 1 s" in texts
        told = [b.get("weight", 1) for state in site.muxes[0].states if "web" in state.get("services", {})
                for b in state["services"]["web"]["backend"] if b["name"] == "web-2"]  # fmt: skip
        assert len({weight for weight in told if 1 < weight < WEIGHT_MAX}) >= 3
