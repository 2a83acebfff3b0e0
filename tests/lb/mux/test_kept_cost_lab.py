# SPDX-License-Identifier: Apache-2.0
"""What it costs to keep ten thousand VIPs in the kernel while nothing happens."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from lb.daemon.kernel.keeper import Keeper
from lb.daemon.kernel.main_rule import MainRule
from lb.daemon.kernel.watch import EVERYTHING, KernelWatch, OwnMarks
from lb.mux.hops.netlink import Netlink
from lb.mux.io.isolation import Isolation
from lb.mux.io.tun import ROUTE_PROTOCOL, Tun
from tests.lab import netns

pytestmark = [pytest.mark.lab, pytest.mark.timed]

FIRST = int(IPv4Address("198.18.0.0"))
VIPS = [IPv4Network((FIRST + 2 * number, 32)) for number in range(10_000)]  # no two are neighbours
#: Longer than the interval of comparisons.
SECONDS = 12.0


@pytest.fixture
def namespace() -> Iterator[str]:
    name = netns.unique_prefix()
    netns.ip("netns", "add", name)
    netns.ip("-n", name, "link", "set", "lo", "up")
    yield name
    netns.ip("netns", "del", name)


def cpu() -> float:
    """Of this process and of the programs that it ran, seconds."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


async def costs(keeper: Keeper) -> float:
    """Percent of a CPU, after the first looks."""
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(1.5)
    before, began = cpu(), time.monotonic()
    await asyncio.sleep(SECONDS)
    used = 100 * (cpu() - before) / (time.monotonic() - began)
    assert keeper.figures().repairs == {}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return used


def test_ten_thousand_vips_in_nftables_and_as_routes_cost_next_to_nothing(namespace: str, tmp_path: Path) -> None:
    async def test() -> float:
        async with Netlink() as netlink:
            own, tun = OwnMarks(), Tun(netlink, "mux1", tmp_path)
            isolation = Isolation("mux1", "lo", own)
            await isolation.install(VIPS)
            netns.ip("tuntap", "add", tun.name, "mode", "tun")
            await tun.set_up()
            netns.batch(
                f"route add {kind} proto {ROUTE_PROTOCOL}"
                for vip in VIPS
                for kind in (f"blackhole {vip} metric 4000000000", f"{vip} dev {tun.name} metric 10")
            )
            await tun.cover(VIPS)
            watch = KernelWatch(EVERYTHING, own=own, tables=[isolation.table], protocols=[ROUTE_PROTOCOL])
            used = await costs(Keeper([MainRule(), isolation, tun, tun.settings], watch))
            netns.ip("link", "del", tun.name)
            await tun.remove()  # closes its socket as well
            return used

    idle = netns.inside(namespace, lambda: asyncio.run(test()))
    print(f"\n10,000 VIPs as nftables elements and as 20,000 routes are kept for {idle:.2f} % of a CPU")
    assert idle < 0.5
