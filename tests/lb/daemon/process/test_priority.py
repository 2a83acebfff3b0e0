# SPDX-License-Identifier: Apache-2.0
"""Who goes first within a daemon: the threads' own niceness, as the kernel has it."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from lb.daemon.process import priority


def nice_of_this_thread() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_a_thread(run: object) -> None:
    """So that the tests' own thread keeps its place."""
    thread = threading.Thread(target=run)  # type: ignore[arg-type]
    thread.start()
    thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_NICE")
def test_control_goes_first_and_its_helpers_stay_behind_whoever_starts_them() -> None:
    found: list[object] = []

    async def daemon() -> None:
        asyncio.get_running_loop().set_default_executor(priority.helpers())
        found.append(priority.control_first())
        found.append(nice_of_this_thread())
        found.append(await asyncio.to_thread(nice_of_this_thread))
        late = await asyncio.create_subprocess_exec("nice", stdout=asyncio.subprocess.PIPE)
        found.append(int((await late.communicate())[0]))

    in_a_thread(lambda: asyncio.run(daemon()))
    assert found == [None, priority.CONTROL_NICE, 0, priority.CONTROL_NICE]
    assert nice_of_this_thread() != priority.CONTROL_NICE, "it is a thread's own"


def test_who_may_not_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refused)
    assert priority.control_first() == "it needs CAP_SYS_NICE"
