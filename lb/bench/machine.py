# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says of where it ran: processor and source."""

from __future__ import annotations

import subprocess
from pathlib import Path


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
    root = Path(__file__).resolve().parents[2]
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
