# SPDX-License-Identifier: Apache-2.0
"""Has this node examined when its manager asks: by its own doctor, in a child process, bounded in time and size.

The child (:mod:`lb.doctor.report`) has the daemon's rights, which are few, and may be ended without harm. There is one
at a time, with a pause after each, however often the manager asks; who asks meanwhile gets the next one's answer.
Owned by :class:`lb.node.follower.Follower`; used in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from lb.daemon.log import get_logger
from lb.errors import MessageError
from lb.node.messages import EXAMINATION_MAX, TEXT_MAX, Examination, ExamineQuestion, FromNode, parse_from_node

#: An examination may take so long; after it there is none for a while; seconds.
EXAMINATION_TIME, PAUSE = 25.0, 0.5
#: Questions that may wait; of more the first are not answered.
WAITING_MAX = 8

log = get_logger()


class Examiner:
    """Questions in, answers out."""

    def __init__(
        self,
        argv: Sequence[str],
        tell: Callable[[Examination], None],
        *,
        seconds: float = EXAMINATION_TIME,
        pause: float = PAUSE,
    ) -> None:
        """``argv``: what prints an examination; ``tell`` hears each answer."""
        self._argv = tuple(argv)
        self._tell = tell
        self._seconds, self._pause = seconds, pause
        self._waiting: deque[int] = deque(maxlen=WAITING_MAX)
        self._asked = asyncio.Event()

    @classmethod
    def of(cls, config: Path, manager: str, tell: Callable[[Examination], None]) -> Examiner:
        """Of the machine that this is by its file."""
        return cls((sys.executable, "-m", "lb.doctor.report", str(config.absolute()), manager), tell)

    def ask(self, question: ExamineQuestion) -> None:
        """Returns at once."""
        self._waiting.append(question.serial)
        self._asked.set()

    async def run(self) -> None:
        """Answers; returns never."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            serials = list(self._waiting)
            self._waiting.clear()
            found = await self._look()
            for serial in serials:
                self._tell(msgspec.structs.replace(found, serial=serial))
            await asyncio.sleep(self._pause)

    async def _look(self) -> Examination:
        """Whatever goes wrong is the answer."""
        try:
            async with asyncio.timeout(self._seconds):
                code, output, errors = await self._run()
        except TimeoutError:
            return Examination(0, error=f"its examination did not end within {self._seconds:g} s")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return Examination(0, error=f"its examination cannot be started: {reason}")
        try:
            found = _read(output) if code == 0 else None
        except MessageError as error:
            found, errors = None, str(error)
        if found is not None:
            return found
        last = errors.strip().splitlines()[-1:] or [f"its examination ended with {code}"]
        log.warning("not examined", reason=last[0])
        return Examination(0, error=" ".join(last[0].split())[:TEXT_MAX])

    async def _run(self) -> tuple[int | None, str, str]:
        """Exit code and what it said."""
        process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in ("LB_TOKEN", "NOTIFY_SOCKET")},
        )
        try:
            output, errors = await asyncio.gather(_some(process.stdout), _some(process.stderr))
            return await process.wait(), output, errors
        finally:
            if process.returncode is None:
                await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """With what it has started, so that its pipes end as well. Its end is not told before theirs is, and that is behind
    what they hold."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await asyncio.gather(process.wait(), _some(process.stdout), _some(process.stderr))


async def _some(stream: asyncio.StreamReader | None) -> str:
    """As much as an examination may be; of what is more the writer never learns that it was not read."""
    assert stream is not None  # noqa: S101  asked for above
    kept = b""
    while data := await stream.read(1 << 16):
        kept = (kept + data)[: 4 * EXAMINATION_MAX]
    return kept.decode(errors="replace")


def _read(output: str) -> Examination | None:
    """What the manager would read of it; raises MessageError."""
    try:
        raw = msgspec.json.decode(output)
    except (ValueError, RecursionError):
        raise MessageError("its examination said nothing that can be read") from None
    if not isinstance(raw, dict):
        return None
    if "findings" not in raw:
        raise MessageError("its examination told no findings")
    message: FromNode = parse_from_node(msgspec.json.encode({**raw, "type": "examination", "serial": 0}).decode())
    return message if isinstance(message, Examination) else None
