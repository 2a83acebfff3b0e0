# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says of where it ran: processor, kernel and source, and what else the machine did meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

#: Of the fixed loop, some milliseconds.
_PROBE = 200_000


def cpu_name() -> str:
    """The processor's name, as the kernel knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else "unknown"


def commit_name() -> str:
    """The commit of a source tree, with ``+`` if it was changed since; else the version that is installed."""
    root = Path(__file__).resolve().parents[3]
    if (root / ".git").exists():
        try:
            done = subprocess.run(
                ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
                cwd=root,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return done.stdout.strip()
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("vipmux")
    except PackageNotFoundError:
        return "unknown"


def kernel_name() -> str:
    """``Linux 6.1.0-18-amd64``."""
    name = os.uname()
    return f"{name.sysname} {name.release}"


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Of the CPUs that we may use, in ticks since the machine began."""

    all: int
    idle: int
    stolen: int

    @classmethod
    def now(cls) -> CpuTime:
        ours = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        everything = idle = stolen = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *words = line.split()
            if name in ours:
                fields = [int(word) for word in words[:8]]  # what guests had is in the first two already
                everything, idle, stolen = everything + sum(fields), idle + fields[3] + fields[4], stolen + fields[7]
        return cls(everything, idle, stolen)

    def busy_ms_until(self, later: CpuTime) -> float:
        ticks = (later.all - later.idle - later.stolen) - (self.all - self.idle - self.stolen)
        return ticks * 1000 / os.sysconf("SC_CLK_TCK")

    def steal_until(self, later: CpuTime) -> float:
        """As a part of all."""
        return (later.stolen - self.stolen) / max(later.all - self.all, 1)


def probe_ms() -> float:
    """A fixed loop: how fast this core is just now."""
    began = time.perf_counter()
    sum(range(_PROBE))
    return (time.perf_counter() - began) * 1e3
