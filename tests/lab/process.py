# SPDX-License-Identifier: Apache-2.0
"""One program running in a namespace, with its output in a file, and waiting for things with deadlines.

Called by the topology and the tests. A :class:`Process` owns its child: whoever started it calls :meth:`stop` or
:meth:`kill`; if we die first, the child gets SIGTERM from the kernel.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from tests.lab.netns import LabError

T = TypeVar("T")


def wait_for(question: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """Asks again and again until the answer is true, and returns it; after the deadline, says what did not happen."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s for {what}")
        time.sleep(0.005)


def in_namespace(namespace: str, argv: Sequence[str | Path]) -> list[str]:
    """The command line that runs a program in the namespace, and ends it when we end."""
    return ["ip", "netns", "exec", namespace, "setpriv", "--pdeathsig", "TERM", "--", *map(str, argv)]


class Process:
    """A child in a namespace. Its output (both streams) goes to ``log``."""

    def __init__(
        self,
        name: str,
        namespace: str,
        argv: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.log = log
        self._start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                in_namespace(namespace, argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def output(self) -> str:
        """What it has printed since this start."""
        with self.log.open("rb") as handle:
            handle.seek(self._start)
            return handle.read().decode(errors="replace")

    def wait_output(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """Waits until its output matches; a child that ends before that is an error that quotes its last words."""
        expression = re.compile(pattern, re.MULTILINE)

        def look() -> re.Match[str] | None:
            ended = not self.running
            found = expression.search(self.output())
            if ended and not found:
                raise LabError(f"{self.name} ended with {self._child.returncode}: {self.output().strip()[-2000:]}")
            return found

        try:
            found = wait_for(look, f"{self.name} to print /{pattern}/", seconds)
        except LabError as error:
            if self.running:
                raise LabError(f"{error}; it printed: {self.output().strip()[-2000:]}") from None
            raise
        assert found is not None
        return found

    def stamps(self, pattern: str, since: float = 0.0) -> list[float]:
        """When our daemon logged lines like this, by its own clock, from ``since`` (Unix time) on."""
        lines = re.findall(rf"^timestamp=(\S+) .*{pattern}", self.output(), re.MULTILINE)
        moments = (datetime.fromisoformat(line).timestamp() for line in lines)
        return [at for at in moments if at >= since]

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        """Waits for its end and returns the exit code."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} did not end within {seconds:g} s: {self.output()[-2000:]}") from None

    def stop(self, seconds: float = 30.0) -> int:
        """Asks it to end (SIGTERM); after the deadline kills its whole session. Returns the exit code."""
        if self.running:
            self.signal(signal.SIGTERM)
            try:
                self._child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._child.returncode

    def kill(self) -> None:
        """SIGKILL for the child and what it has started, then waits until it is gone."""
        if self.running:
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait(10)
