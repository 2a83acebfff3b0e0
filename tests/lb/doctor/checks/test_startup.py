# SPDX-License-Identifier: Apache-2.0
"""What daemons say of their machine at the start, from the real machine."""

from __future__ import annotations

from pathlib import Path

from lb.doctor.checks.startup import look_around
from lb.doctor.model.facts import Role


def test_an_mtu_that_is_too_small_is_said_and_one_that_is_not_is_no_line(tmp_path: Path) -> None:
    """Every machine has lo, of 65,536 bytes at most."""
    (found,) = look_around(Role.MUX, str(tmp_path), interface="lo", mtu=70_000)
    assert found.check == "mtu"
    assert (found.remedy or "").startswith("`ip link set dev lo mtu 70000`")
    assert look_around(Role.MUX, str(tmp_path), interface="lo", mtu=1500) == []
    assert look_around(Role.MANAGER, str(tmp_path / "not" / "made" / "yet")) == []


def test_an_interface_that_is_not_there_is_said(tmp_path: Path) -> None:
    (found,) = look_around(Role.AGENT, str(tmp_path), interface="nosuch0", mtu=1500)
    assert found.check == "interface"
    assert "nosuch0 does not exist" in found.what
