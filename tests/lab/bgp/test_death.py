# SPDX-License-Identifier: Apache-2.0
"""Whatever dies, the router's kernel forgets the routes in time, and they return by themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import netns
from tests.lab.bgp.conftest import BUDGET, BgpLab, stopped
from tests.lab.fleet import exabgp_of, helper_of
from tests.lab.freeze import thread_stopped, worker_of
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.routers import Routers
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import Node

pytestmark = pytest.mark.lab

VIPS = (WEB_VIP, FILES_VIP)


@pytest.fixture(scope="module")
def bgp_lab(routers: Routers) -> Iterator[BgpLab]:
    with BgpLab(2, 1, routers) as lab:
        lab.up((web(lab.hosts), files(lab.hosts)))
        yield lab


@pytest.fixture
def announced(bgp_lab: BgpLab) -> BgpLab:
    for vip in VIPS:
        bgp_lab.wait_hops(vip, *bgp_lab.muxes)
    return bgp_lab


def lb_mux_of(mux: Node) -> int:
    return mux.processes["mux"].pid


VICTIMS: dict[str, Callable[[Node], int]] = {"lb-mux": lb_mux_of, "exabgp": exabgp_of, "helper": helper_of}


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_part_withdraws_within_the_budget_and_everything_returns(announced: BgpLab, victim: str) -> None:
    lab, mux = announced, announced.muxes[0]
    exabgp, helper = exabgp_of(mux), helper_of(mux)
    at = time.monotonic()
    os.kill(VICTIMS[victim](mux), signal.SIGKILL)
    took = lab.withdrawn_after(mux, VIPS, at)
    wait_for(lambda: not (_alive(exabgp) or _alive(helper)), "ExaBGP and its helper to be gone")
    if victim == "lb-mux":
        mux.processes["mux"].wait()
        lab.start_daemons([mux])
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes)
    back = time.monotonic() - at
    print(f"\n{lab.routers.value}: SIGKILL of {victim}: withdrawn after {took * 1000:.0f} ms, back after {back:.1f} s")
    assert took <= allowed(BUDGET[lab.routers])
    for vip in VIPS:
        assert lab.watch.changed(vip, lambda hops: not hops, at) is None, "the other MUX must have stayed"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_exabgp_and_helper_have_no_capability(announced: BgpLab) -> None:
    mux = announced.muxes[0]
    for pid in (exabgp_of(mux), helper_of(mux)):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"


def test_frozen_lb_mux_vouches_for_nothing_and_the_helper_withdraws(announced: BgpLab) -> None:
    lab, mux = announced, announced.muxes[0]
    at = time.monotonic()
    with stopped(lb_mux_of(mux)):
        took = lab.withdrawn_after(mux, VIPS, at)
    print(f"\n{lab.routers.value}: SIGSTOP of lb-mux: withdrawn after {took * 1000:.0f} ms")
    assert took <= allowed(2.0)
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes)


def test_frozen_exabgp_is_killed_and_started_again(announced: BgpLab) -> None:
    """Its sessions would live on for the hold time, whatever lb-mux wants announced."""
    lab, mux = announced, announced.muxes[0]
    frozen = exabgp_of(mux)
    at = time.monotonic()
    with stopped(frozen):
        wait_for(lambda: not _alive(frozen), "the frozen ExaBGP to be killed", 15)
        took = time.monotonic() - at
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes)
    assert exabgp_of(mux) != frozen
    print(f"\n{lab.routers.value}: SIGSTOP of exabgp: killed after {took:.1f} s")


def test_worker_that_stands_still_withdraws_and_returns_when_it_turns(announced: BgpLab) -> None:
    """The data plane dies although lb-mux, ExaBGP and the sessions live."""
    lab, mux = announced, announced.muxes[0]
    at = time.monotonic()
    with thread_stopped(worker_of(lb_mux_of(mux))):
        took = lab.withdrawn_after(mux, VIPS, at)
        assert {row["why"] for row in lab.get(mux, "announcements")} == {"the data plane stands still"}
        assert lab.peer(mux)["state"] == "established"
    print(f"\n{lab.routers.value}: worker stopped: withdrawn after {took * 1000:.0f} ms")
    assert took <= allowed(1.5)
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes)


def test_lost_interface_withdraws_and_its_return_announces_again(announced: BgpLab) -> None:
    """A MUX whose VIP interface is gone must not wait for a hold timer to say so; here it carries the session, too."""
    lab, mux = announced, announced.muxes[0]
    netns.ip("-n", mux.namespace, "link", "set", "eth0", "down")
    try:
        wait_for(lambda: {row["state"] for row in lab.get(mux, "announcements")} == {"held"}, "the VIPs to be held")
        assert "eth0" in lab.get(mux, "announcements")[0]["why"]
        lab.wait_hops(WEB_VIP, lab.muxes[1])
    finally:
        netns.batch(["link set eth0 up", "route replace default via 10.0.1.1"], mux.namespace)
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes, seconds=30)


def test_a_router_that_dies_and_returns_learns_everything_again(announced: BgpLab) -> None:
    lab = announced
    assert lab.bgp_router is not None
    lab.bgp_router.stop()
    lab.wait_peer(lab.muxes[0], lambda row: row["state"] == "connecting" and bool(row["error"]), "the session is down")
    lab.bgp_router.start(lab.neighbours())
    began = time.monotonic()
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes, seconds=30)
    print(f"\n{lab.routers.value}: routes back {time.monotonic() - began:.1f} s after the router's return")
