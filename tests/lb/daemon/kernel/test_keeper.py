# SPDX-License-Identifier: Apache-2.0
"""The keeper with a kernel made of a set, and with a watch that tells what a test says; in real, short time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import structlog
from structlog.testing import capture_logs

from lb.daemon.kernel.keeper import Keeper, metrics
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.watch import Area, ChangingProgram, KernelNotices
from lb.errors import IoError


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        async def inner() -> None:
            await test()

        asyncio.run(inner())

    return run


class Told:
    """A watch that the test is the kernel of."""

    def __init__(self) -> None:
        self.noticed = asyncio.Event()
        self.notices = KernelNotices()
        self.open = False

    def start(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False

    def take(self) -> KernelNotices:
        self.noticed.clear()
        taken, self.notices = self.notices, KernelNotices()
        return taken

    def tell(self, area: Area, program: ChangingProgram | None = None) -> None:
        self.notices.add(area, program)
        self.noticed.set()


class Part:
    """Keeps the names in ``wanted``."""

    areas = Area.ROUTE

    def __init__(self, *wanted: str, interval: float = 60.0) -> None:
        self.interval = interval
        self.wanted, self.there = set(wanted), set(wanted)
        self.looks = 0
        self.blind: str | None = None
        self.refuses: str | None = None

    async def look(self) -> Sequence[Difference]:
        self.looks += 1
        if self.blind:
            raise IoError(self.blind)
        return [Difference("route", name) for name in sorted(self.wanted - self.there)]

    async def put_back(self, differences: Sequence[Difference]) -> None:
        if self.refuses:
            raise IoError(self.refuses)
        self.there |= {difference.name for difference in differences}


@contextlib.asynccontextmanager
async def kept(*parts: Part) -> AsyncIterator[tuple[Told, Keeper]]:
    watch = Told()
    keeper = Keeper(parts, watch)
    task = asyncio.create_task(keeper.run())
    try:
        await until(lambda: all(part.looks for part in parts))
        yield watch, keeper
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not watch.open


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    structlog.reset_defaults()


@in_a_loop
async def test_what_the_kernel_tells_of_is_looked_at_and_put_back_at_once() -> None:
    part, other = Part("a", "b"), Part("c")
    other.areas = Area.ADDRESS
    with capture_logs() as logs:
        async with kept(part, other) as (watch, keeper):
            part.there.clear()
            watch.tell(Area.ROUTE, ChangingProgram("ip", 42))
            await until(lambda: part.there == part.wanted)
            await until(lambda: keeper.figures().repairs == {"route": 2})
            assert other.looks == 1, "what it is not about is left alone"
    (line,) = (line for line in logs if line["event"] == "put back")
    assert line == {
        "event": "put back",
        "log_level": "warning",
        "thing": "a, b",
        "reason": "it was removed",
        "by": "ip (pid 42)",
    }


@in_a_loop
async def test_what_nobody_told_of_is_found_by_comparing_now_and_then() -> None:
    part = Part("a", interval=0.05)
    async with kept(part):
        part.there.clear()
        await until(lambda: part.there == {"a"})


@in_a_loop
async def test_what_could_not_be_put_back_is_tried_again_without_a_notice() -> None:
    part = Part("a")
    part.refuses = "cannot add the route: no buffer space available"
    with capture_logs() as logs:
        async with kept(part) as (watch, keeper):
            part.there.clear()
            watch.tell(Area.ROUTE)
            await until(lambda: keeper.figures().amiss == 1)
            assert keeper.rows()[0]["failed"] == part.refuses
            part.refuses = None
            await until(lambda: part.there == {"a"})
            await until(lambda: keeper.figures().amiss == 0)
    assert [line["event"] for line in logs] == ["cannot be put back", "put back"]


@in_a_loop
async def test_a_part_that_cannot_be_looked_at_is_said_once_shown_and_keeps_nobody_waiting() -> None:
    blind, part = Part("a"), Part("b")
    blind.blind = "cannot ask for routes: interrupted"
    with capture_logs() as logs:
        async with kept(blind, part) as (watch, keeper):
            await until(lambda: blind.looks == 2)
            assert [row["failed"] for row in keeper.rows()] == [blind.blind]
            part.there.clear()
            watch.tell(Area.ROUTE)
            await until(lambda: part.there == {"b"})
            blind.blind = None
            await until(lambda: not [row for row in keeper.rows() if row["what"] == "look"])
    assert [line["reason"] for line in logs if line["log_level"] == "error"] == ["cannot ask for routes: interrupted"]


@in_a_loop
async def test_a_storm_of_notices_does_not_keep_the_keeper_looking() -> None:
    class Slow(Part):
        async def look(self) -> Sequence[Difference]:
            await asyncio.sleep(0.05)
            return await super().look()

    part = Slow("a")
    async with kept(part) as (watch, _):
        loop = asyncio.get_running_loop()
        before, began = part.looks, loop.time()
        while loop.time() < began + 1.5 or (part.looks - before < 2 and loop.time() < began + 30):
            watch.tell(Area.ROUTE)
            await asyncio.sleep(0.005)
        assert part.looks - before <= (loop.time() - began) / 0.25 + 1, "at most a fifth of the time"
        assert part.looks - before >= 2


@in_a_loop
async def test_a_programming_error_of_a_part_ends_the_keeper_and_closes_the_watch() -> None:
    class Wrong(Part):
        async def look(self) -> Sequence[Difference]:
            raise KeyError("a mistake of ours")

    watch = Told()
    with pytest.raises(KeyError):
        await Keeper([Wrong()], watch).run()
    assert not watch.open


@in_a_loop
async def test_figures_are_metrics_of_fixed_names() -> None:
    part = Part("a")
    async with kept(part) as (watch, keeper):
        part.there.clear()
        watch.tell(Area.ROUTE)
        await until(lambda: bool(keeper.figures().repairs))
        samples = {
            (s.name, *s.labels.values()): s.value for family in metrics(keeper.figures()) for s in family.samples
        }
    assert samples["lb_kernel_repairs_total", "route"] == 1
    assert samples["lb_kernel_fights",] == 0
    assert samples["lb_kernel_amiss",] == 0
