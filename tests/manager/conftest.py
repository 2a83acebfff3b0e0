# SPDX-License-Identifier: Apache-2.0
"""Tests that are coroutines run in a loop of their own, with a limit on their time."""

from __future__ import annotations

import asyncio
import inspect

import pytest

#: Seconds; a test that waits for what never comes ends here. It is no budget: beside ten others at work, what computes
#: for three seconds takes thirty.
LIMIT = 180.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run() -> None:
        async with asyncio.timeout(LIMIT):
            await function(**arguments)

    asyncio.run(run())
    return True
