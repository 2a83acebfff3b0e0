# SPDX-License-Identifier: Apache-2.0
"""What ``make lab`` does when labs failed: the few that did run once more, by themselves, and the output says so.

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

#: So many files may have failures to be run again.
FEW = 2
#: pytest's exit status for "tests ran, some failed".
SOME_FAILED = 1


def worth_another_run(status: int, failed: Iterable[str]) -> bool:
    """Whether a run that ended with this status failed in a few files only; ``failed`` are node ids of pytest."""
    files = {name.partition("::")[0] for name in failed}
    return status == SOME_FAILED and 0 < len(files) <= FEW


def main(status: int) -> int:
    """Returns the exit status of the whole: 0 if all that had failed passes now."""
    cache = Path(".pytest_cache/v/cache/lastfailed")
    failed = list(json.loads(cache.read_text())) if cache.exists() else []
    if not worth_another_run(status, failed):
        return status
    print(f"run once more, by themselves: {' '.join(failed)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "pytest", "--quiet", "-m", "lab", *failed], check=False)
    if done.returncode == 0:
        print(f"FAILED ONCE, passed the second time, and is to be looked into: {' '.join(failed)}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
