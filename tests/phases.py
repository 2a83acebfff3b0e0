# SPDX-License-Identifier: Apache-2.0
"""``make test``: its phases, in an order by which they leave each other alone.

The fast tests come first, for they tell most. Then labs have the machine for themselves, side by side, and those that
measure time one by one. The native tests under the sanitizers come last, and fuzzing goes on beside them with what they
leave. Then the few labs that failed run once more (:mod:`tests.lab.suite`).

Each phase writes into a file of ``.build/test``. All of it is printed when the phase ends, so that phases do not mix;
the summary at the end names what failed. A phase that fails stops no other, but for those that need it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab import suite

OUTPUT = Path(".build/test")
#: How long an interrupted phase may take to clean up after itself, seconds.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A command, and when it may run."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()  #: phases that must have ended, well or not
    needs: tuple[str, ...] = ()  #: phases that must have ended well, else it is left out
    niceness: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a phase: its exit status, or None where it was left out; seconds from its start to its end."""

    phase: Phase
    status: int | None
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status in (suite.PASSED, suite.NONE_THERE)

    def __str__(self) -> str:
        word = "not run" if self.status is None else "passed" if self.passed else f"FAILED ({self.status})"
        return f"{self.phase.name:<28}{word:<14}{int(self.seconds) // 60:>3}:{int(self.seconds) % 60:02}"


def _make(*words: str) -> tuple[str, ...]:
    return ("make", "--no-print-directory", *words)


def phases(fuzz_seconds: int, *, root: bool) -> list[Phase]:
    """What a whole run is made of, one after the other but for fuzzing. Without root there are no labs.

    Labs are of real daemons that must have a processor when they want one: beside other tests, on two, some fail by
    that alone."""
    labs = [
        Phase("labs side by side", suite.beside(), after=("fast tests",)),
        Phase("labs that measure time", suite.timed(), after=("labs side by side",)),
    ]
    last = (labs[-1].name,) if root else ("fast tests",)
    return [
        Phase("fast tests", _make("unit")),
        *(labs if root else ()),
        Phase("sanitizers, compiled", _make("sanitize-build"), after=last),
        Phase("tests under sanitizers", _make("sanitize-test"), needs=("sanitizers, compiled",)),
        Phase("fuzzing", _make("fuzz", f"SECONDS={fuzz_seconds}"), after=("sanitizers, compiled",), niceness=19),
    ]


def startable(waiting: Sequence[Phase], ended: Mapping[str, bool]) -> tuple[list[Phase], list[Phase]]:
    """Of the phases that wait, who may start now, and who never will. ``ended``: by name, whether well."""
    start: list[Phase] = []
    never: list[Phase] = []
    for phase in waiting:
        if any(not ended.get(name, True) for name in phase.needs):
            never.append(phase)
        elif all(name in ended for name in (*phase.after, *phase.needs)):
            start.append(phase)
    return start, never


class Run:
    """Phases that run at the same time, each in a process group of its own; prints as they end."""

    def __init__(self, waiting: Sequence[Phase]) -> None:
        self.outcomes: list[Outcome] = []
        self._waiting = list(waiting)
        self._changed = threading.Condition()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._interrupted = False

    def __call__(self) -> list[Outcome]:
        """Until all have ended, or somebody interrupts us."""
        with self._noticing_signals():
            try:
                while (self._waiting or self._processes) and not self._interrupted:
                    with self._changed:
                        if not self._start_some():
                            self._changed.wait(0.5)
            finally:
                self._end_all()
        if self._interrupted:
            raise KeyboardInterrupt
        return self.outcomes

    def _start_some(self) -> bool:
        """Whether anything is another than before."""
        ended = {outcome.phase.name: outcome.passed for outcome in self.outcomes}
        start, never = startable(self._waiting, ended)
        for phase in never:
            self._end(Outcome(phase, None, 0.0))
        for phase in start:
            self._start(phase)
        self._waiting = [phase for phase in self._waiting if phase not in start and phase not in never]
        return bool(start or never)

    def _start(self, phase: Phase) -> None:
        print(f"{_clock()} {phase.name}: {' '.join(phase.command)}", flush=True)
        command = ["nice", "-n", str(phase.niceness), *phase.command]
        with _output(phase).open("wb") as output:
            # A group of its own, so that who interrupts us is heard by us, and told to each. In the same session: the
            # kernel compares niceness within a session only (sched(7), autogroup).
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
            )
        self._processes[phase.name] = process
        threading.Thread(target=self._wait, args=(phase, process, time.monotonic()), daemon=True).start()

    def _wait(self, phase: Phase, process: subprocess.Popen[bytes], began: float) -> None:
        status = process.wait()
        with self._changed:
            del self._processes[phase.name]
            self._end(Outcome(phase, status, time.monotonic() - began))
            self._changed.notify()

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        print(f"{_clock()} ===== {outcome}", flush=True)
        if outcome.status is not None:
            sys.stdout.buffer.write(_output(outcome.phase).read_bytes())
            print(flush=True)

    @contextlib.contextmanager
    def _noticing_signals(self) -> Iterator[None]:
        """Signals are looked at between two steps: one in the middle of a start would leave a process to nobody."""

        def notice(*_: object) -> None:
            self._interrupted = True

        before = {sign: signal.signal(sign, notice) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _end_all(self) -> None:
        """However we end, no phase goes on: each is interrupted as by a terminal, and killed if that does not help."""
        left = list(self._processes.values())
        for sign in (signal.SIGINT, signal.SIGKILL):  # what a phase started may have survived it
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            deadline = time.monotonic() + PATIENCE
            while any(process.poll() is None for process in left) and time.monotonic() < deadline:
                time.sleep(0.1)


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _output(phase: Phase) -> Path:
    return OUTPUT / f"{phase.name.replace(' ', '-').replace(',', '')}.log"


def once_more(outcomes: Sequence[Outcome], failed: Sequence[str]) -> list[Outcome]:
    """The few labs that failed, by themselves; what came of it counts for the labs instead of what was before."""
    labs = [outcome for outcome in outcomes if outcome.phase.command in (suite.beside(), suite.timed())]
    if not suite.worth_another_run(suite.worst(outcome.status or 0 for outcome in labs), failed):
        return list(outcomes)
    (again,) = Run([Phase("labs that failed, again", suite.again(failed))])()
    if not again.passed:
        return [*outcomes, again]
    print(f"FAILED ONCE, passed the second time, and is to be looked into: {' '.join(failed)}", flush=True)
    others = [outcome if outcome not in labs else replace(outcome, status=suite.PASSED) for outcome in outcomes]
    return [*others, again]


def main(fuzz_seconds: int) -> int:
    """Returns the exit status of the whole."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    suite.forget_failures()
    root = os.geteuid() == 0
    began = time.monotonic()
    try:
        outcomes = Run(phases(fuzz_seconds, root=root))()
        if root:
            outcomes = once_more(outcomes, suite.failures())
    except KeyboardInterrupt:
        print(f"make test: interrupted; what each phase has printed is in {OUTPUT}", flush=True)
        return 130
    print(*outcomes, sep="\n")
    bad = [outcome.phase.name for outcome in outcomes if not outcome.passed]
    seconds = int(time.monotonic() - began)
    if bad:
        print(f"make test: FAILED after {seconds // 60}:{seconds % 60:02}: {', '.join(bad)}", flush=True)
        return 1
    how = "all passed" if root else 'all passed that needs no root; "sudo make test" runs the namespace labs too'
    print(f"make test: {how}, in {seconds // 60}:{seconds % 60:02}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
