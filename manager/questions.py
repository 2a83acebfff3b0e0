# SPDX-License-Identifier: Apache-2.0
"""Questions that MUXes are asked over the node stream, and their answers: each is for one flow, and bounded in time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any, Protocol

from lb.errors import RequestError
from lb.node.messages import FlowAnswer, FlowQuestion

#: So many questions may be open at once.
OPEN_MAX = 32


class Asked(Protocol):
    """A MUX's connection."""

    def tell(self, letter: FlowQuestion) -> bool: ...


class Questions:
    """Those that are open. Used in the event loop only."""

    def __init__(self) -> None:
        self._serials = itertools.count(1)
        self._open: dict[int, dict[str, asyncio.Future[FlowAnswer]]] = {}

    async def ask(
        self, muxes: Mapping[str, Asked | None], question: Mapping[str, Any], seconds: float
    ) -> dict[str, FlowAnswer | str]:
        """By MUX its answer, or why there is none. A MUX that is not connected is None."""
        if len(self._open) >= OPEN_MAX:
            raise RequestError("too many ask at once; try again in a moment")
        serial = next(self._serials)
        letter = FlowQuestion(serial, **question)
        loop = asyncio.get_running_loop()
        found: dict[str, FlowAnswer | str] = {name: "it is not connected" for name, asked in muxes.items()}
        waiting: dict[str, asyncio.Future[FlowAnswer]] = {}
        for name, asked in muxes.items():
            if asked is None:
                continue
            if asked.tell(letter):
                waiting[name] = loop.create_future()
            else:
                found[name] = "it takes no more questions just now"
        self._open[serial] = waiting
        try:
            if waiting:
                await asyncio.wait(waiting.values(), timeout=seconds)
        finally:
            del self._open[serial]
        for name, future in waiting.items():
            found[name] = future.result() if future.done() else f"it did not answer within {seconds:g} s"
            future.cancel()
        return found

    def answered(self, mux: str, answer: FlowAnswer) -> None:
        """Late, unknown and second answers count for nothing."""
        future = self._open.get(answer.serial, {}).get(mux)
        if future is not None and not future.done():
            future.set_result(answer)
