# SPDX-License-Identifier: Apache-2.0
"""The unit files, as systemd itself reads them. What they do to the daemons is tried in tests/lab/test_units.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.sandbox import read_unit

UNITS = Path("deploy/systemd")
NAMES = ("lb-mux", "lb-agent", "lb-manager")
#: What systemd says at most of each, from 0 to 10 (unprotected). The first two are root, and change the network.
#: lb-mux loads BPF programs at its start (CAP_BPF, bpf(2)) and opens AF_XDP sockets: 0.2 of it.
EXPOSURE = {"lb-mux": 3.7, "lb-agent": 2.8, "lb-manager": 1.4}
INSTALLED = "/opt/vipmux/current/bin"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "info", "SYSTEMD_COLORS": "0"}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)


def installed(name: str, directory: Path, more: str = "") -> Path:
    """The unit with the programs of this environment, where systemd finds that they exist."""
    text = (UNITS / f"{name}.service").read_text()
    assert text.count(INSTALLED) == 1
    unit = directory / f"{name}.service"
    unit.write_text(
        text.replace(INSTALLED, str(Path(sys.executable).parent)).replace("[Service]\n", f"[Service]\n{more}")
    )
    return unit


def complaints(unit: Path) -> str:
    """All that systemd-analyze says; its exit code is 0 for a key that does not exist."""
    done = run("systemd-analyze", "verify", "--man=no", unit)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say_of_the_unit(name: str, tmp_path: Path) -> None:
    assert complaints(installed(name, tmp_path)) == ""


def test_a_mistake_in_a_unit_would_be_seen(tmp_path: Path) -> None:
    assert "NoNewPrivilege" in complaints(installed("lb-mux", tmp_path, more="NoNewPrivilege=yes\n"))
    assert "AF_NOTHING" in complaints(installed("lb-agent", tmp_path, more="RestrictAddressFamilies=AF_NOTHING\n"))


@pytest.mark.parametrize("name", NAMES)
def test_exposure_stays_below_its_bound(name: str, tmp_path: Path) -> None:
    bound = f"--threshold={round(EXPOSURE[name] * 10)}"
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", bound, installed(name, tmp_path))
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= EXPOSURE[name]
    assert done.returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_says_what_the_daemon_expects(name: str) -> None:
    unit = read_unit(UNITS / f"{name}.service")
    assert unit["Type"] == ["notify"]
    assert unit["KillMode"] == ["mixed"]  # lb-mux ends ExaBGP itself, after routers were told
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["2"]  # a wrong file
    assert int(unit["WatchdogSec"][0]) >= 10  # a worker is reported after three seconds


def test_the_accounts_are_as_sysusers_takes_them(tmp_path: Path) -> None:
    """In a root directory of our own: nobody is added here."""
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", (UNITS / "vipmux.sysusers.conf").absolute())
    assert done.returncode == 0, done.stderr
    accounts = dict(line.split(":", 1) for line in (tmp_path / "etc/passwd").read_text().splitlines())
    assert set(accounts) == {"lb-manager", "lb-bgp"}
    assert all(rest.endswith("nologin") for rest in accounts.values())
