# SPDX-License-Identifier: Apache-2.0
"""Every background task of every daemon, under one policy, so that none ends without a word.

A daemon makes one :class:`Tasks` and begins each task of its own with a name and one of three policies:

    policy     when it fails                       when it returns
    fatal      the daemon ends, and says of what   the same: it should not
    restarted  begun anew, after a pause           the same: it should not
    retried    begun anew, after a pause           it is done

A failure is logged with the task's name and the reason, once for each reason in a row, and counted
(``lb_task_crashes_total``, ``lb_task_restarts_total``). What is an error of ours on purpose is a sentence; of anything
else, which is a programming error, the log has the traceback as well. Groups of exceptions are looked into. Pauses are
doubled from one failure to the next, and begin anew once the task has run for a while.

What lives no longer than its caller needs no name here: :func:`first` and :func:`until` run several coroutines and
leave none of them behind. Nothing else in the daemons makes tasks; a test reads the sources for it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn

from lb.daemon.log import get_logger
from lb.daemon.process.fault_counts import VITALS, Vitals
from lb.errors import VipmuxError

#: The pause before a task is begun anew, seconds: doubled with each failure up to the last.
PAUSE_FIRST, PAUSE_LAST = 0.1, 30.0
#: A task that ran for so long before it failed begins with the first pause again, seconds.
STEADY = 60.0

log = get_logger()

#: Makes the task's coroutine, each time that it is begun.
Work = Callable[[], Coroutine[Any, Any, object]]


class RestartPolicy(enum.Enum):
    FATAL = "fatal"
    RESTARTED = "restarted"
    RETRIED = "retried"


class TaskFailedError(VipmuxError):
    """A task that the daemon cannot be without failed; the sentence names it. The log has more."""

    def __init__(self, task: str, reason: str) -> None:
        self.task = task
        super().__init__(f"the task {task!r} failed, and nothing goes on without it: {reason}")


@dataclass(slots=True, eq=False)
class _Task:
    name: str
    policy: RestartPolicy
    work: Work
    handle: asyncio.Task[None] | None = None


class Tasks:
    """The background tasks of one daemon, from their beginning to :meth:`close`. Used in the event loop."""

    def __init__(
        self,
        *,
        tell: Callable[[str], None] | None = None,
        vitals: Vitals = VITALS,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """``tell`` hears, in one line, of a fatal failure before the daemon ends: whoever started it wants to know."""
        self._tell = tell
        self._vitals = vitals
        self._sleep = sleep
        self._tasks: dict[str, _Task] = {}
        self._failure: asyncio.Future[NoReturn] | None = None

    # -- beginning ----------------------------------------------------------------------------------------------

    def fatal(self, name: str, work: Work) -> None:
        """Must not end: the daemon ends with it."""
        self._begin(name, RestartPolicy.FATAL, work)

    def restarted(self, name: str, work: Work) -> None:
        """Must not end: it is begun anew."""
        self._begin(name, RestartPolicy.RESTARTED, work)

    def retried(self, name: str, work: Work) -> None:
        """Until it returns: it is begun anew as long as it fails. One of the same name that is under way is ended."""
        self.end(name)
        self._begin(name, RestartPolicy.RETRIED, work)

    def end(self, name: str) -> None:
        """Cancels the task of this name, if there is one; returns at once."""
        task = self._tasks.pop(name, None)
        if task is not None and task.handle is not None:
            task.handle.cancel()

    def running(self, name: str) -> bool:
        """Whether there is a task of this name that has not ended for good."""
        return name in self._tasks

    # -- the daemon's -------------------------------------------------------------------------------------------

    async def failed(self) -> NoReturn:
        """Returns never; raises TaskFailedError as soon as a fatal task has failed, also one that did before."""
        await asyncio.shield(self._failing())
        raise AssertionError("the failure is an exception")

    async def close(self) -> None:
        """Cancels every task, and returns when all have ended."""
        tasks, self._tasks = list(self._tasks.values()), {}
        handles = [task.handle for task in tasks if task.handle is not None]
        for handle in handles:
            handle.cancel()
        await asyncio.gather(*handles, return_exceptions=True)
        if self._failure is not None and not self._failure.done():
            self._failure.cancel()

    # -- inside -------------------------------------------------------------------------------------------------

    def _begin(self, name: str, policy: RestartPolicy, work: Work) -> None:
        if name in self._tasks:
            raise AssertionError(f"there is a task {name!r} already")
        task = self._tasks[name] = _Task(name, policy, work)
        task.handle = asyncio.get_running_loop().create_task(self._live(task), name=name)

    def _failing(self) -> asyncio.Future[NoReturn]:
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure

    async def _live(self, task: _Task) -> None:
        loop = asyncio.get_running_loop()
        pause, said = PAUSE_FIRST, ""
        while True:
            began = loop.time()
            error: BaseException | None = None
            try:
                await task.work()
            except asyncio.CancelledError:
                if _cancelled():
                    raise
                error = RuntimeError("it was cancelled from within")
            except Exception as problem:
                error = unwrap(problem)
            if error is None and task.policy is RestartPolicy.RETRIED:
                self._forget(task)
                return
            reason = describe(error) if error is not None else "it ended, and should not"
            self._vitals.crashed(task.name)
            if task.policy is RestartPolicy.FATAL:
                self._fail(task, reason, error)
                return
            if loop.time() - began > STEADY:
                pause, said = PAUSE_FIRST, ""
            if reason != said:
                _say(task.name, reason, error, again_in=round(pause, 1))
            said = reason
            await self._sleep(pause)
            pause = min(2 * pause, PAUSE_LAST)
            self._vitals.restarted(task.name)

    def _forget(self, task: _Task) -> None:
        if self._tasks.get(task.name) is task:
            del self._tasks[task.name]

    def _fail(self, task: _Task, reason: str, error: BaseException | None) -> None:
        self._forget(task)
        _say(task.name, reason, error, then="the daemon ends")
        if self._tell is not None:
            self._tell(f"failed: {task.name}: {reason}")
        failure = self._failing()
        if not failure.done():
            failure.set_exception(TaskFailedError(task.name, reason))
            failure.exception()  # looked at, whether somebody waits or not


def unwrap(error: BaseException) -> BaseException:
    """The error itself, out of whatever groups it is in; of several the first that is a programming error."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [unwrap(inner) for inner in error.exceptions]
    return next((leaf for leaf in leaves if not isinstance(leaf, VipmuxError | OSError)), leaves[0])


def describe(error: BaseException) -> str:
    """In one line: an error of ours, or the system's, in its own words; any other with its kind."""
    error = unwrap(error)
    text = " ".join(str(error).split())
    if isinstance(error, VipmuxError) and text:
        return text
    if isinstance(error, OSError):
        return (error.strerror or text or type(error).__name__).lower()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _say(name: str, reason: str, error: BaseException | None, **more: object) -> None:
    """With the traceback where nobody meant the error to happen."""
    meant = error is None or isinstance(error, VipmuxError | OSError)
    log.error("task failed", task=name, reason=reason, **more, **({} if meant else {"exc_info": error}))


def _cancelled() -> bool:
    """Whether somebody wants this very task to end; else what it waited for was cancelled under its hands."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# -- tasks that end with their caller ---------------------------------------------------------------------------------


async def first(*works: Coroutine[Any, Any, object]) -> None:
    """Runs all until the first ends, then ends the others; raises what that one raised, out of its groups."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for task in tasks if task in done and (error := _error_of(task)) is not None]
    if errors:
        raise unwrap(errors[0])


def _error_of(task: asyncio.Task[object]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


async def until(end: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Runs ``work`` until it has ended, raising what it raised, or until ``end`` is set, cancelling it; whether it
    ended by itself."""
    task = asyncio.get_running_loop().create_task(work)
    told = asyncio.get_running_loop().create_task(end.wait())
    try:
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        ended = task.done()
        if not ended:
            task.cancel()
        await asyncio.gather(task, told, return_exceptions=True)
    if ended:
        await task
    return ended
