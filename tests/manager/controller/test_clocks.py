# SPDX-License-Identifier: Apache-2.0
"""Somebody sets the wall's clock, an hour ahead or back: nothing that is decided changes, only what people read."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lb.daemon.clocks import Clocks
from manager.api.view import View
from manager.controller.controller import Controller
from manager.desired.state import Desired, Order, Pending
from manager.plan.plan import drain_muxes
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import Fleet, plain, service, with_probe

VIP, WHO = "203.0.113.10/32", "operator:alice"
HOUR = 3600.0


class Hands:
    """Clocks whose hands a test moves."""

    def __init__(self) -> None:
        self.wrong = 0.0
        self.passed = 0.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(
            lambda: time.time() + self.passed + self.wrong, lambda: time.monotonic() + self.passed, "this boot"
        )


@asynccontextmanager
async def serving(directory: Path, hands: Hands, **keys: float) -> AsyncIterator[tuple[Controller, Site]]:
    async with running(directory, clocks=hands.clocks, **keys) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([{**with_probe(service()), "slow_start": 3000}], WHO)
        for n in (1, 2):
            site.hosts[n - 1].report("web", f"web-{n}", True)
        await until(lambda: all(mux.announces() == {VIP} for mux in site.muxes))
        assert await controller.followers.wait(5.0) == []
        yield controller, site


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_jump_changes_no_verdict_no_mux_and_no_weight(tmp_path: Path, jump: float) -> None:
    hands = Hands()
    async with serving(tmp_path, hands, health_lease=10.0, hold=9.0) as (controller, site):
        site.hosts[0].report("web", "web-1", False)
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "down")
        site.hosts[0].report("web", "web-1", True)  # slow start: it begins with a part of its weight
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "up")
        site.muxes[1].leave()
        assert await controller.followers.wait(5.0) == ["mux:mux2"]
        states = [node.state for node in site.nodes]
        generation = controller.hub.generation
        events = [event.text for event in controller.events.latest(100)]
        hands.wrong = jump
        controller.hub.tick()
        controller.planner.tick(controller.clocks.steady())
        await controller.heartbeat()
        assert controller.hub.generation == generation
        assert [node.state for node in site.nodes] == states
        assert [event.text for event in controller.events.latest(100)] == events
        assert [row["state"] for row in plain(View(controller).nodes.muxes())] == ["ready", "away"]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_host_that_is_silent_is_believed_for_its_lease_and_a_mux_for_the_hold_time(
    tmp_path: Path, jump: float
) -> None:
    """Set back, the wall's clock would have kept both alive for an hour."""
    hands = Hands()
    async with serving(tmp_path, hands, health_lease=10.0, hold=9.0) as (controller, site):
        hands.wrong = jump
        site.hosts[0].leave()
        site.muxes[1].leave()
        hands.passed = 20.0
        await until(
            lambda: "no report" in plain(View(controller).services.backends(["web"]))[0]["reason"],
            "its word still counts",
        )
        await until(lambda: plain(View(controller).nodes.muxes())[1]["state"] == "gone", "it is waited for still")


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_ten_minutes_to_confirm_are_ten_minutes(tmp_path: Path, jump: float) -> None:
    hands = Hands()
    async with running(tmp_path, clocks=hands.clocks) as controller:
        await controller.writer.apply([service()], WHO, confirm=600)
        hands.wrong = jump
        hands.passed = 590.0
        assert not await controller.writer.end_confirmation()
        left = plain(View(controller).manager.status())
        assert 0 < left["confirm"]["until"] - left["now"] <= 10
    async with running(tmp_path, clocks=hands.clocks) as controller:  # and for a manager that starts anew
        assert controller.desired.unconfirmed is not None
        hands.passed = 601.0
        await until(lambda: controller.desired.unconfirmed is None)
        assert controller.desired.services == {}


@pytest.mark.parametrize(
    ("wall", "steady", "boot", "left"),
    [
        (1100.0, 150.0, "a", 50.0),
        (9999.0, 150.0, "a", 50.0),  # the wall's clock is of no account within a boot
        (1100.0, 5.0, "b", 500.0),  # and all there is after it
        (1700.0, 5.0, "b", -100.0),
        (0.0, 5.0, "b", 600.0),  # set back meanwhile: never more than the whole
    ],
)
def test_what_is_left_of_the_time_to_confirm(wall: float, steady: float, boot: str, left: float) -> None:
    pending = Pending("ada", 1000.0, 1600.0, 600.0, "a", 200.0)
    assert pending.left(wall, steady, boot) == left
    assert Pending("ada", 1000.0, 1600.0).left(1500.0, 5.0, "b") == 100.0, "of a version that kept no more"


async def test_a_slow_start_goes_on_in_the_next_manager_and_begins_anew_after_a_boot(tmp_path: Path) -> None:
    hands = Hands()
    async with serving(tmp_path, hands) as (controller, site):
        site.hosts[0].report("web", "web-1", False)
        await until(lambda: site.muxes[0].backends("web")["web-1"] == "down")
        site.hosts[0].report("web", "web-1", True)
        await until(lambda: ramp(controller) is not None)
        begun = ramp(controller)
    hands.wrong = -HOUR
    async with running(tmp_path, clocks=hands.clocks) as controller:
        assert ramp(controller) == begun
    other = replace(hands.clocks, boot="the next boot", steady=lambda: 7.0)
    async with running(tmp_path, clocks=other) as controller:
        assert ramp(controller) == 7.0


def ramp(controller: Controller) -> float | None:
    return controller.plan.memory.backends["web", "web-1", "10.0.3.1"].ramp_begun


async def test_a_mux_that_drains_goes_on_when_the_next_order_is_of_an_earlier_hour(tmp_path: Path) -> None:
    hands = Hands()
    async with serving(tmp_path, hands) as (controller, _):
        await controller.node_orders.drain_mux("mux2", WHO, drain=True)
        hands.wrong = -HOUR
        await controller.node_orders.drain_mux("mux1", WHO, drain=True)
        orders = controller.desired.mux_drains
        assert orders["mux2"].at < orders["mux1"].at
        fleet = Fleet()
        fleet.desired = Desired(mux_drains={name: Order(WHO, order.at) for name, order in orders.items()})
        assert drain_muxes(fleet.world())["mux2"] is None
