# SPDX-License-Identifier: Apache-2.0
"""Background tasks under one policy: begun anew, or the daemon's end, but never without a word."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ParamSpec

import pytest
from structlog.testing import capture_logs

from lb.daemon.process.fault_counts import Vitals
from lb.daemon.supervise import PAUSE_FIRST, PAUSE_LAST, TaskFailedError, Tasks, describe, first, until, unwrap
from lb.errors import IoError

ROOT = Path(__file__).resolve().parents[3]
P = ParamSpec("P")


def in_a_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: P.args, **keys: P.kwargs) -> None:
        async def main() -> None:
            async with asyncio.timeout(30):
                await test(*args, **keys)

        asyncio.run(main())

    return run


class Pauses:
    """In place of sleep: remembers, and lets others have their turn."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def supervised(vitals: Vitals, pauses: Pauses, said: list[str] | None = None) -> AsyncIterator[Tasks]:
    tasks = Tasks(vitals=vitals, sleep=pauses, tell=said.append if said is not None else None)
    try:
        yield tasks
    finally:
        await tasks.close()


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Failing:
    """Fails the first few times; then waits for ever, or returns."""

    def __init__(self, times: int, error: BaseException, *, returns: bool = False) -> None:
        self.left, self.error, self.returns = times, error, returns
        self.begun = 0

    async def __call__(self) -> None:
        self.begun += 1
        if self.begun <= self.left:
            raise self.error
        if not self.returns:
            await asyncio.Event().wait()


@in_a_loop
async def test_a_task_that_fails_is_begun_anew_after_ever_longer_pauses_and_counted() -> None:
    vitals, pauses, work = Vitals(), Pauses(), Failing(12, IoError("no descriptors"))
    with capture_logs() as lines:
        async with supervised(vitals, pauses) as tasks:
            tasks.restarted("probes", work)
            await turns()
            assert work.begun == 13
            assert tasks.running("probes")
    assert pauses.taken == [min(PAUSE_FIRST * 2**n, PAUSE_LAST) for n in range(12)]
    assert vitals.restarts == {"probes": 12}
    assert vitals.crashes == {"probes": 12}
    assert [(line["event"], line["task"], line["reason"]) for line in lines] == [
        ("task failed", "probes", "no descriptors")
    ]
    assert "exc_info" not in lines[0]


@in_a_loop
async def test_a_programming_error_has_its_traceback_in_the_log() -> None:
    with capture_logs() as lines:
        async with supervised(Vitals(), Pauses()) as tasks:
            tasks.restarted("probes", Failing(1, KeyError("web")))
            await turns()
    assert lines[0]["reason"] == "KeyError: 'web'"
    assert isinstance(lines[0]["exc_info"], KeyError)


@in_a_loop
async def test_a_fatal_task_ends_the_daemon_by_name_and_whoever_started_it_is_told() -> None:
    said: list[str] = []
    vitals = Vitals()
    async with supervised(vitals, Pauses(), said) as tasks:
        tasks.fatal("plan", Failing(1, ValueError("odd")))
        with pytest.raises(TaskFailedError, match=r"'plan' failed.*ValueError: odd"):
            await tasks.failed()
        with pytest.raises(TaskFailedError):  # whoever asks later hears of it too
            await tasks.failed()
    assert said == ["failed: plan: ValueError: odd"]
    assert vitals.crashes == {"plan": 1}
    assert vitals.restarts == {}


@in_a_loop
async def test_a_task_that_must_not_end_and_does_is_a_failure() -> None:
    async with supervised(Vitals(), Pauses()) as tasks:
        tasks.fatal("plan", Failing(0, ValueError(), returns=True))
        with pytest.raises(TaskFailedError, match="it ended, and should not"):
            await tasks.failed()


@in_a_loop
async def test_a_retried_task_is_done_when_it_returns() -> None:
    vitals, work = Vitals(), Failing(3, IoError("busy"), returns=True)
    async with supervised(vitals, Pauses()) as tasks:
        tasks.retried("first announcements", work)
        await turns()
        assert work.begun == 4
        assert not tasks.running("first announcements")
    assert vitals.restarts == {"first announcements": 3}


@in_a_loop
async def test_groups_are_looked_into() -> None:
    group = BaseExceptionGroup("unhandled", [ExceptionGroup("inner", [OSError(24, "Too many open files")])])
    assert describe(group) == "too many open files"
    both = ExceptionGroup("", [IoError("meant"), ValueError("not meant")])
    assert isinstance(unwrap(both), ValueError)
    with capture_logs() as lines:
        async with supervised(Vitals(), Pauses()) as tasks:
            tasks.restarted("BGP", Failing(1, group))
            await turns()
    assert lines[0]["reason"] == "too many open files"


@in_a_loop
async def test_closing_is_no_failure_and_leaves_nothing_behind() -> None:
    vitals = Vitals()
    with capture_logs() as lines:
        async with supervised(vitals, Pauses()) as tasks:
            tasks.restarted("one", Failing(0, ValueError()))
            tasks.fatal("other", Failing(0, ValueError()))
            await turns(3)
    assert lines == []
    assert vitals.crashes == {}
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


@in_a_loop
async def test_a_cancellation_from_within_is_a_failure_like_any_other() -> None:
    work = Failing(1, asyncio.CancelledError())
    async with supervised(Vitals(), Pauses()) as tasks:
        tasks.restarted("one", work)
        await turns()
        assert work.begun == 2


@in_a_loop
async def test_the_first_to_end_ends_the_others_and_its_error_is_bare() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ExceptionGroup("", [IoError("gone")])

    with pytest.raises(IoError, match="gone"):
        await first(waits(), fails())
    assert ended == ["waits"]


@pytest.mark.parametrize("ends", [True, False])
@in_a_loop
async def test_until_says_whether_the_work_ended_by_itself(ends: bool) -> None:
    end = asyncio.Event()

    async def work() -> None:
        if not ends:
            asyncio.get_running_loop().call_soon(end.set)
            await asyncio.Event().wait()

    assert await until(end, work()) is ends


# -- nothing makes tasks of its own -----------------------------------------------------------------------------------

#: Who may, and why.
MAKERS = {
    "lb/daemon/supervise.py": "it is what all others use",
    "lb/probe/scheduler.py": "thousands of short tasks, whose failures it hands to the task that awaits failed()",
    "manager/trust/bounded_listener.py": "one short task for each handshake; a failure costs its guest, and is said",
    "lb/bench/control/simulated_nodes.py": "a benchmark, and no daemon",
}


def makers() -> dict[str, list[int]]:
    """Where in the daemons' sources tasks are made, other than in a group that waits for them."""
    found: dict[str, list[int]] = {}
    for package in ("lb", "agent", "manager"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and _makes_a_task(node.func):
                    found.setdefault(str(path.relative_to(ROOT)), []).append(node.lineno)
    return found


def _makes_a_task(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id in ("create_task", "ensure_future")
    if not isinstance(called, ast.Attribute):
        return False
    of_a_group = isinstance(called.value, ast.Name) and called.value.id in ("tasks", "group")
    return called.attr == "ensure_future" or (called.attr == "create_task" and not of_a_group)


def test_tasks_are_made_by_supervision_alone() -> None:
    found = makers()
    assert "lb/daemon/supervise.py" in found, "the search finds nothing at all"
    assert {path: lines for path, lines in found.items() if path not in MAKERS} == {}
