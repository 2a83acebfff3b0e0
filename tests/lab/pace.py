# SPDX-License-Identifier: Apache-2.0
"""How much longer things may take because this machine is busy with others, or is only slow at the moment.

Budgets are those of an idle machine. Where processes wait for a core all the time, as beside two busy loops on two
cores, each gets half of one and wakes late: there a lab's chain of processes may take up to three times as long. What
is asserted about order, counts and loss knows no pace. Rates that a lab's own load must reach shrink alike.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

#: What a budget may grow by on a machine that seems idle: cores that a hypervisor lends are away for moments.
IDLE, BUSY = 1.25, 3.0

_PRESSURE = Path("/proc/pressure/cpu")


def allowed(seconds: float) -> float:
    """A budget in seconds, as this machine can keep it now."""
    return seconds * (IDLE + (BUSY - IDLE) * waiting())


def reachable(rate: float) -> float:
    """A rate, per second, that load from this machine reaches now."""
    return rate / (1 + (BUSY - 1) * waiting())


def waiting() -> float:
    """The share of the last ten seconds (0 to 1) in which something waited for a core."""
    try:
        return share(_PRESSURE.read_text())
    except OSError:  # a kernel that does not count it: more than one task for each core, and all of them wait
        cores = os.cpu_count() or 1
        return min(max(os.getloadavg()[0] / cores - 0.5, 0.0), 1.0)


def share(pressure: str) -> float:
    """Of ``/proc/pressure/cpu``: "some avg10=12.50 avg60=…" is 0.125."""
    found = re.match(r"some avg10=([0-9.]+) ", pressure)
    return min(float(found[1]) / 100, 1.0) if found else 1.0
