# SPDX-License-Identifier: Apache-2.0
"""A manager that is told ten thousand changes is as large as after the first: what it keeps is bounded."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from manager.controller.controller import Controller
from manager.desired import submitted
from manager.store import events
from tests.manager.fake_nodes import Site, running, until
from tests.manager.fleet import service, with_probe

WHO = "operator:alice"
#: What is bounded is full by then.
FULL, MORE = 250, 750


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are thousands; the same with hundreds shows the same sooner."""
    monkeypatch.setattr(events, "KEPT", 200)
    monkeypatch.setattr(submitted, "_GONE", 50)


async def roll_out(controller: Controller, site: Site, number: int) -> None:
    """All backends of a service have other names than ever before."""
    table = with_probe(service())
    table["backend"] = [{"name": f"web-{number}-{n}", "address": f"10.0.3.{n}"} for n in (1, 2)]
    await controller.writer.apply([table], WHO, why=f"roll-out {number}")
    for n in (1, 2):
        site.hosts[n - 1].report("web", f"web-{number}-{n}", True)
    await until(lambda: f"web-{number}-1" in site.muxes[0].backends("web"))
    for node in site.nodes:
        del node.states[:-2]


@pytest.mark.usefixtures("small")
async def test_roll_outs_with_ever_new_names_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as controller:
        site = Site().connect(controller)
        await controller.writer.apply([with_probe(service())], WHO)
        await until(lambda: bool(site.muxes[0].states) and "web" in site.muxes[0].state.get("services", {}))
        for number in range(FULL):
            await roll_out(controller, site, number)
        await controller.followers.wait(5.0)
        gc.collect()
        before = sys.getallocatedblocks()
        for number in range(FULL, FULL + MORE):
            await roll_out(controller, site, number)
        await controller.followers.wait(5.0)
        gc.collect()
        grown = sys.getallocatedblocks() - before
        assert grown < 2 * MORE, f"{grown / MORE:.1f} blocks for each roll-out"
        assert len(controller.plan.memory.backends) <= 4
        assert len((await controller.store.memory())["backends"]) <= 4
