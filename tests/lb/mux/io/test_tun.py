# SPDX-License-Identifier: Apache-2.0
"""The plan of routes of the TUN mode."""

from __future__ import annotations

import asyncio
import errno
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.daemon.kernel import sysctls
from lb.errors import IoError
from lb.mux.io import tun as module
from lb.mux.io.tun import Tun, VipRoute, device_name, plan_routes

A, B = ip_network("203.0.113.10/32"), ip_network("203.0.113.128/25")


def test_a_blackhole_stands_behind_a_vip_before_its_route_exists() -> None:
    plan = plan_routes([], [B, A])
    assert plan.add == (VipRoute(A, True), VipRoute(B, True), VipRoute(A, False), VipRoute(B, False))
    assert plan.delete == ()


def test_the_route_goes_before_its_blackhole() -> None:
    plan = plan_routes([VipRoute(A, True), VipRoute(A, False)], [])
    assert plan.delete == (VipRoute(A, False), VipRoute(A, True))


def test_what_is_there_is_left_alone() -> None:
    present = [VipRoute(A, True), VipRoute(A, False)]
    plan = plan_routes(present, [A])
    assert (plan.add, plan.delete) == ((), ())


def test_a_crash_leaves_blackholes_and_only_routes_are_added() -> None:
    assert plan_routes([VipRoute(A, True)], [A]).add == (VipRoute(A, False),)


def test_device_names_fit_the_kernel() -> None:
    assert device_name("mux1") == "lb-mux1"
    assert device_name("a very long name/indeed") == "lb-a-very-long-"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tun:
    """On a machine of which there are the settings alone."""
    monkeypatch.setattr(sysctls, "SYSCTLS", tmp_path / "net")
    (tmp_path / "net/ipv6/conf/all").mkdir(parents=True)
    (tmp_path / "net/ipv6/conf/all/forwarding").write_text("0")
    (tmp_path / "state").mkdir()
    netlink: Any = None
    made = Tun(netlink, "mux1", tmp_path / "state")

    async def changed(*_: object) -> None:
        pass

    monkeypatch.setattr(made, "_present", lambda _: [])
    monkeypatch.setattr(made, "_change", changed)
    return made


VIP6 = [ip_network("2001:db8::10/128")]


def test_a_full_disk_keeps_no_vip_from_being_served(
    device: Tun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of what a setting was serves a clean stop alone; what it had stays whole."""
    (tmp_path / "state/restore.json").write_text('{"ipv4/ip_forward": "0"}')

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with capture_logs() as logs:
        asyncio.run(device.cover(VIP6))
    assert (tmp_path / "net/ipv6/conf/all/forwarding").read_text() == "1"
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("settings not remembered", "no space left on device")
    ]
    assert (tmp_path / "state/restore.json").read_text() == '{"ipv4/ip_forward": "0"}'


def test_a_setting_that_is_not_there_is_a_sentence(device: Tun, tmp_path: Path) -> None:
    (tmp_path / "net/ipv6/conf/all/forwarding").unlink()
    with pytest.raises(IoError, match=r"cannot read net.ipv6.conf.all.forwarding: no such file"):
        asyncio.run(device.cover(VIP6))


def test_what_a_setting_was_is_remembered(device: Tun, tmp_path: Path) -> None:
    asyncio.run(device.cover(VIP6))
    assert (tmp_path / "state" / module.RESTORE_FILE).read_text() == '{"ipv6/conf/all/forwarding":"0"}'
