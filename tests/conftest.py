# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on: tests marked ``lab`` run as root only, and say so where they are skipped."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

#: How long an example takes says how busy the machine is, and nothing about the example.
settings.register_profile("vipmux", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vipmux")

#: Programs that the labs run, and the Debian packages that bring them.
LAB_PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nginx": "nginx-light",
    "curl": "curl",
    "wrk": "wrk",
    "ethtool": "ethtool",
    "gcc": "gcc",
}


def pytest_configure() -> None:
    """Programs that we start begin as they would from a shell, whoever started us."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    os.environ.pop("COLUMNS", None)  # of pytest's terminal; what we start writes to pipes


def _why_no_lab() -> str | None:
    if os.geteuid():
        return "network namespaces need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for program, package in LAB_PROGRAMS.items() if not shutil.which(program, path=path)]
    return f"install these packages: {' '.join(missing)}" if missing else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_no_lab()
    if reason:
        for item in items:
            if item.get_closest_marker("lab"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _logs_as_nobody_configured() -> Iterator[None]:
    """A program that a test ran in this process may have silenced what the next one looks for."""
    yield
    structlog.reset_defaults()
