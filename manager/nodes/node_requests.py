# SPDX-License-Identifier: Apache-2.0
"""Questions that nodes are asked over the node stream, and their answers; each is bounded in time.

Of flows MUXes are asked, whenever an operator asks; :class:`Rounds` has all nodes examined, one round at a time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from lb.errors import RequestError
from lb.node.messages import Answer, Examination, Question

#: So many questions may be open at once.
OPEN_MAX = 32


A = TypeVar("A", bound=Answer)


class Questionable(Protocol):
    """A node's connection."""

    def tell(self, letter: Any) -> bool: ...


class Questions(Generic[A]):
    """Those of one kind that are open. Used in the event loop only."""

    def __init__(self, letter: Callable[..., Question]) -> None:
        """``letter``: makes one of a serial and the fields of what is asked."""
        self._letter = letter
        self._serials = itertools.count(1)
        self._open: dict[int, dict[str, asyncio.Future[A]]] = {}

    async def ask(
        self, nodes: Mapping[str, Questionable | None], question: Mapping[str, Any], seconds: float
    ) -> dict[str, A | str]:
        """By node its answer, or why there is none. A node that is not connected is None."""
        if len(self._open) >= OPEN_MAX:
            raise RequestError("too many ask at once; try again in a moment")
        serial = next(self._serials)
        letter = self._letter(serial, **question)
        loop = asyncio.get_running_loop()
        found: dict[str, A | str] = dict.fromkeys(nodes, "it is not connected")
        waiting: dict[str, asyncio.Future[A]] = {}
        for name, asked in nodes.items():
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

    def answered(self, node: str, answer: A) -> None:
        """Late, unknown and second answers count for nothing."""
        future = self._open.get(answer.serial, {}).get(node)
        if future is not None and not future.done():
            future.set_result(answer)


class Rounds:
    """Examinations of all nodes. Each costs every node a second of a core, so there is one at a time, however many
    operators ask: who comes while one is under way shares the next with all who came meanwhile."""

    def __init__(self, questions: Questions[Examination]) -> None:
        self._questions = questions
        self._under_way = asyncio.Lock()
        self._begun = self._ended = 0
        self._found: dict[str, Examination | str] = {}

    async def ask(
        self, nodes: Callable[[], Mapping[str, Questionable | None]], seconds: float
    ) -> dict[str, Examination | str]:
        """By ``kind:name`` what its own doctor found, or why that is not known; begun after this was called."""
        mine = self._begun + 1
        async with self._under_way:
            if self._ended < mine:
                self._begun += 1
                self._found = await self._questions.ask(nodes(), {}, seconds)
                self._ended = self._begun
            return self._found
