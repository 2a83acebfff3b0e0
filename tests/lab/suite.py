# SPDX-License-Identifier: Apache-2.0
"""``make lab``: labs side by side, then those that measure time by themselves, then the few that failed once more.

Labs wait for daemons and timers more than they work, so two processes for each core take whole files of them. Labs
marked ``timed`` compare how long something takes and have the machine for themselves afterwards. ``make test`` runs the
same parts, with other tests beside the first (:mod:`tests.phases`).

A lab is made of real daemons and kernels on a machine that others may load; one in several hundred fails now and then
for a reason of its own. To throw a whole run away for it teaches no more than to run it again, as long as nobody
overlooks it: its first failure stands in the output, and its name again at the end. Where many fail that is no
accident, and counts at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

#: Side by side, whole files to each process, in the order that they are named in.
BESIDE = ("-n", "4", "--dist", "loadfile", "--no-loadscope-reorder")
#: What takes longest goes first, so that no process is left alone with it in the end.
FIRST = (
    "tests/lab/test_operations.py",
    "tests/lab/test_doctor.py",
    "tests/lab/test_manager_lab.py",
    "tests/lab/test_manager_away.py",
    "tests/lab/bgp/test_death.py",
    "tests/lab/test_probes.py",
    "tests/lab/bgp/test_sessions.py",
    "tests/lab/test_fleet.py",
    "tests/lab/test_upgrade.py",
    "tests/lab/test_doctor_fleet.py",
    "tests/packets/test_veth_lab.py",
    "tests/agent/test_lab.py",
)
#: The slowest are printed: what a run of all labs is spent on.
SLOWEST = ("--durations=15", "--durations-min=5")
#: So many files may have failures to be run again.
FEW = 2
#: pytest's exit statuses.
PASSED, SOME_FAILED, NONE_THERE = 0, 1, 5

#: Of labs alone: other tests run beside them, and keep what failed elsewhere.
_CACHE = Path(".build/labs")
_FAILED = _CACHE / "v/cache/lastfailed"


def beside(*options: str) -> tuple[str, ...]:
    """The command that runs all but those that measure time; ``options`` of pytest choose among them."""
    return _labs("lab and not timed", *BESIDE, *options, *files())


def timed(*options: str) -> tuple[str, ...]:
    return _labs("lab and timed", *options, *files())


def files() -> list[str]:
    """All that have labs: each process would spend ten seconds on collecting thousands of other tests."""
    found = [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if "mark.lab" in path.read_text()]
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def again(failed: Iterable[str]) -> tuple[str, ...]:
    return _labs("lab", *failed)


def _labs(which: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "--quiet", "-o", f"cache_dir={_CACHE}", *SLOWEST, "-m", which, *options)


def forget_failures() -> None:
    _FAILED.unlink(missing_ok=True)


def failures() -> list[str]:
    """What failed since :func:`forget_failures`, as node ids of pytest."""
    return list(json.loads(_FAILED.read_text())) if _FAILED.exists() else []


def worth_another_run(status: int, failed: Iterable[str]) -> bool:
    """Whether a run that ended with this status failed in a few files only; ``failed`` are node ids of pytest."""
    files = {name.partition("::")[0] for name in failed}
    return status == SOME_FAILED and 0 < len(files) <= FEW


def worst(statuses: Iterable[int]) -> int:
    """The exit status of several runs of pytest: that nothing was there counts only where nothing was anywhere."""
    ran = [status for status in statuses if status != NONE_THERE]
    return max(ran, default=NONE_THERE)


def main(options: list[str]) -> int:
    """``options`` of pytest choose among the labs; returns the exit status of the whole."""
    forget_failures()
    status = worst([_run(beside(*options)), _run(timed(*options))])
    failed = failures()
    if not worth_another_run(status, failed):
        return status
    print(f"run once more, by themselves: {' '.join(failed)}", flush=True)
    second = _run(again(failed))
    if second == PASSED:
        print(f"FAILED ONCE, passed the second time, and is to be looked into: {' '.join(failed)}", flush=True)
    return second


def _run(command: tuple[str, ...]) -> int:
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
