# SPDX-License-Identifier: Apache-2.0
"""``make lab``: labs side by side, then those that measure time by themselves, then the few that failed once more.

Labs wait for daemons and timers more than they work, so a process for each core takes whole files of them. Labs marked
``timed`` compare how long something takes and have the machine for themselves afterwards.

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
BESIDE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
#: What takes longest goes first, so that no process is left alone with it in the end.
ALL = (
    "tests/lab/test_operations.py",
    "tests/lab/bgp/test_death.py",
    "tests/lab/test_fleet.py",
    "tests/lab/test_upgrade.py",
    "tests/lab/test_manager_lab.py",
    "tests",
)
#: The slowest are printed: what a run of all labs is spent on.
SLOWEST = ("--durations=15", "--durations-min=5")
#: So many files may have failures to be run again.
FEW = 2
#: pytest's exit statuses.
PASSED, SOME_FAILED, NONE_THERE = 0, 1, 5

_FAILED = Path(".pytest_cache/v/cache/lastfailed")


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
    _FAILED.unlink(missing_ok=True)
    status = worst([_labs("lab and not timed", *BESIDE, *options, *ALL), _labs("lab and timed", *options)])
    failed = list(json.loads(_FAILED.read_text())) if _FAILED.exists() else []
    if not worth_another_run(status, failed):
        return status
    print(f"run once more, by themselves: {' '.join(failed)}", flush=True)
    again = _labs("lab", *failed)
    if again == PASSED:
        print(f"FAILED ONCE, passed the second time, and is to be looked into: {' '.join(failed)}", flush=True)
    return again


def _labs(which: str, *options: str) -> int:
    command = [sys.executable, "-m", "pytest", "--quiet", *SLOWEST, "-m", which, *options]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
