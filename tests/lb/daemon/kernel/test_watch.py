# SPDX-License-Identifier: Apache-2.0
"""What the kernel itself tells, in a namespace of its own: each kind of change is heard, with who made it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from lb.daemon.kernel import nftables
from lb.daemon.kernel.watch import EVERYTHING, Area, KernelNotices, KernelWatch, OwnMarks
from tests.lab import netns

OURS = 118
TABLE = "table netdev vipmux_t { chain c { type filter hook ingress device v0 priority 0; ip daddr 1.2.3.4 drop; }; }"


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = netns.unique_prefix()
    netns.ip("netns", "add", name)
    netns.ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    netns.ip("-n", name, "link", "set", "v0", "up")
    yield name
    netns.ip("netns", "del", name)


async def heard_of(watch: KernelWatch, *command: str) -> KernelNotices:
    """What is told of while the command runs, and shortly after it."""
    watch.take()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0, command
    heard = KernelNotices()
    async with asyncio.timeout(30):
        quiet = False
        while not quiet:
            try:
                async with asyncio.timeout(0.1):
                    await watch.noticed.wait()
            except TimeoutError:
                quiet = not watch.noticed.is_set()  # on a busy machine both are there at once
            taken = watch.take()
            heard.areas |= taken.areas
            heard.programs |= taken.programs
    return heard


@pytest.mark.lab
def test_each_kind_of_change_is_heard(namespace: str) -> None:
    cases = [
        (Area.LINK, "ip link set v1 up"),
        (Area.ADDRESS, "ip addr add 10.118.0.1/24 dev v0"),
        (Area.ROUTE, f"ip route add 10.119.0.0/24 dev v0 proto {OURS}"),
        (Area.ROUTE, f"ip route flush proto {OURS}"),
        (Area.RULE, "ip rule add fwmark 118 table 118"),
        (Area.RULE, "ip rule flush"),
        (Area.RULE, "ip -6 rule add fwmark 118 table 118"),
        (Area.FILTER, "tc qdisc add dev v0 clsact"),
        (Area.FILTER, "tc filter add dev v0 ingress bpf bytecode 1,6~0~0~0"),
        (Area.FILTER, "tc qdisc del dev v0 clsact"),
        (Area.NFTABLES, "nft " + TABLE),
        (Area.NFTABLES, "nft flush chain netdev vipmux_t c"),
        (Area.NFTABLES, "nft flush ruleset"),
    ]

    async def test() -> None:
        watch = KernelWatch(EVERYTHING, tables=["vipmux_t"], protocols=[OURS])
        watch.start()
        try:
            for area, command in cases:
                words = command.split(" ", 1) if command.startswith("nft") else command.split()
                heard = await heard_of(watch, *(word.replace("~", " ") for word in words))
                assert area in heard.areas, command
                if area is Area.NFTABLES:
                    assert str(heard.program(area)).startswith("nft (pid "), command
        finally:
            watch.close()

    netns.inside(namespace, lambda: asyncio.run(test()))


@pytest.mark.lab
def test_what_is_not_ours_or_was_done_by_us_is_no_hint(namespace: str) -> None:
    async def test() -> None:
        own = OwnMarks()
        watch = KernelWatch(Area.ROUTE | Area.NFTABLES, own=own, tables=["vipmux_t"], protocols=[OURS])
        watch.start()
        try:
            for command in (
                "ip route add 10.120.0.0/24 dev v0 proto 99",
                "nft add table inet other",
                "nft flush ruleset",
            ):
                heard = await heard_of(watch, *command.split())
                assert heard.areas == Area(0), command
            done = await nftables.run("-f", "-", text=TABLE, own=own)
            assert done.code == 0, done.complaint
            assert (await heard_of(watch, "true")).areas == Area(0), "own transactions are known by their process"
            assert (await heard_of(watch, "nft", "delete table netdev vipmux_t")).areas == Area.NFTABLES
        finally:
            watch.close()

    netns.inside(namespace, lambda: asyncio.run(test()))


@pytest.mark.lab
def test_where_notices_were_lost_everything_counts_as_changed(namespace: str) -> None:
    routes = [f"route add 10.200.{number}.0/24 dev v0 proto {OURS}" for number in range(100)]

    async def test() -> None:
        watch = KernelWatch(Area.ROUTE | Area.ADDRESS, protocols=[OURS])
        watch.start()
        watch._sockets[0].setsockopt(1, 8, 2048)  # SO_RCVBUF: a reader that sleeps too long
        try:
            netns.batch(routes)  # and the loop stands still
            async with asyncio.timeout(30):
                await watch.noticed.wait()
            assert watch.take().areas == Area.ROUTE | Area.ADDRESS
        finally:
            watch.close()

    netns.inside(namespace, lambda: asyncio.run(test()))
