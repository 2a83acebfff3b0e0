# SPDX-License-Identifier: Apache-2.0
"""What ``make test`` does with its phases: what waits for what, what is printed, and that nothing goes on after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import phases
from tests.lab import suite
from tests.lab.process import wait_for
from tests.phases import Outcome, Phase, Run, once_more, startable

ROOT = Path(__file__).parents[1]
A, B = Phase("a", ("true",)), Phase("b", ("true",), after=("a",))
C = Phase("c", ("true",), needs=("a",))


def shell(name: str, script: str, **keywords: tuple[str, ...]) -> Phase:
    return Phase(name, ("sh", "-c", script), **keywords)


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(phases, "OUTPUT", tmp_path)
    return tmp_path


def test_a_phase_waits_for_others_and_is_left_out_where_one_that_it_needs_failed() -> None:
    assert startable([A, B, C], {}) == ([A], [])
    assert startable([B, C], {}) == ([], [])
    assert startable([B, C], {"a": True}) == ([B, C], [])
    assert startable([B, C], {"a": False}) == ([B], [C])


def test_every_phase_that_another_waits_for_is_there() -> None:
    for root in (True, False):
        made = phases.phases(20, root=root)
        names = {phase.name for phase in made}
        assert all({*phase.after, *phase.needs} <= names for phase in made)
    assert {"fast tests", "tests under sanitizers", "fuzzing"} <= names
    made = {phase.command: phase for phase in phases.phases(20, root=True)}
    labs, timed = made[suite.beside()], made[suite.timed()]
    before = [phase.name for phase in made.values() if phase.name in labs.after]
    others = [phase for phase in made.values() if phase.name not in (labs.name, timed.name, *before)]
    assert timed.after == (labs.name,)
    assert all(timed.name in phase.after or phase.needs or phase.name == "fuzzing" for phase in others), "by themselves"


def test_what_each_printed_comes_whole_at_its_end_and_a_failure_stops_nothing_else(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    done = tmp_path / "done"
    first = shell("first", f"echo one; until test -e {done}; do sleep 0.05; done; echo two; exit 3")
    second = shell("second", f"echo other >&2; touch {done}")
    outcomes = Run([first, second, shell("last", "echo late", after=("first",))])()
    assert {outcome.phase.name: outcome.status for outcome in outcomes} == {"first": 3, "second": 0, "last": 0}
    printed = capfdbinary.readouterr().out
    assert b"other\n" in printed
    assert printed.index(b"one\ntwo\n") < printed.index(b"late\n")
    assert b"FAILED (3)" in printed


def test_what_needs_a_phase_that_failed_is_not_run() -> None:
    outcomes = Run([shell("first", "exit 1"), shell("second", "exit 0", needs=("first",))])()
    assert [(outcome.phase.name, outcome.status, outcome.passed) for outcome in outcomes] == [
        ("first", 1, False),
        ("second", None, False),
    ]


def test_labs_that_pass_the_second_time_count_and_those_that_do_not_fail_the_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    labs, fast = Outcome(Phase("labs", suite.beside()), 1, 5.0), Outcome(A, 0, 5.0)
    monkeypatch.setattr(suite, "again", lambda failed: ("true",))
    assert all(outcome.passed for outcome in once_more([labs, fast], ["a.py::one"]))
    assert "FAILED ONCE" in capfd.readouterr().out
    monkeypatch.setattr(suite, "again", lambda failed: ("false",))
    assert [outcome.passed for outcome in once_more([labs, fast], ["a.py::one"])] == [False, True, False]
    many = [f"{name}.py::one" for name in "abc"]
    assert once_more([labs, fast], many) == [labs, fast]
    assert once_more([fast], []) == [fast]


def test_who_interrupts_it_ends_all_that_it_started(tmp_path: Path) -> None:
    """The shell would go on for a minute; it is told as by a terminal, and so is what it has started."""
    program = (
        "from tests import phases; from pathlib import Path\n"
        f"phases.OUTPUT = Path({str(tmp_path)!r})\n"
        "phases.Run([phases.Phase('long', ('sh', '-c', 'sleep 60 & echo $!; wait'))])()\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    started = tmp_path / "long.log"
    pid = int(wait_for(lambda: started.read_text() if started.exists() else "", "the phase to begin"))
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=50)
    assert run.returncode != 0
    assert time.monotonic() - began < 40
    wait_for(lambda: not alive(pid), "what it had started to end")


def alive(pid: int) -> bool:
    """Not a zombie that nobody has waited for yet."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
