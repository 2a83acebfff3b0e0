# SPDX-License-Identifier: Apache-2.0
"""The two clocks of a daemon: the wall's, which people set, and the machine's own, which only goes on.

Leases, hold times, delays and whatever else decides something go by ``steady``: seconds since the machine was booted
(CLOCK_BOOTTIME, so a machine that slept has aged). It is the same for every process until the next boot, whose id is
``boot``: a moment that is kept on disk with it is understood by the process that comes after. ``wall`` (Unix time) is
for people, for certificates, and for what must be known across a boot. A daemon makes one :class:`Clocks`, and tests
make their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _steady() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both clocks; from any thread."""

    wall: Callable[[], float] = time.time  #: Unix time, seconds; may jump
    steady: Callable[[], float] = _steady  #: seconds since the boot; never goes back
    boot: str = ""  #: which boot; "": not known, so nothing is understood across processes

    @classmethod
    def of_machine(cls) -> Clocks:
        try:
            return cls(boot=_BOOT_ID.read_text().strip())
        except OSError:
            return cls()
