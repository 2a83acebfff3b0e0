# SPDX-License-Identifier: Apache-2.0
"""The demos are the first things that a newcomer sees: they must succeed, be short, and fit a terminal."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.lab.pace import allowed

pytestmark = [pytest.mark.lab, pytest.mark.timed]


@pytest.mark.parametrize(
    ("command", "io"),
    [("tests.lab.demo_fleet", "packet"), ("tests.lab.demo", "packet"), ("tests.lab.demo_fleet --io xdp", "xdp")],
)
def test_demo_succeeds_within_a_minute_and_80_columns(command: str, io: str) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert time.monotonic() - began < allowed(60)
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert "kill mux1 with SIGKILL" in done.stdout
    assert f"mux1 ({io}), mux2 ({io})" in done.stdout
