# SPDX-License-Identifier: Apache-2.0
"""A MUX machine that is lost silently: without BFD the hold timer finds out, with BFD the budget's 300 ms hold.

The machine keeps its carrier and nothing is heard of it any more. BFD is spoken by a BIRD on the MUX that has the
shipped ``deploy/routers/bird-bfd-on-mux.conf``, and by the router's; BGP is ExaBGP's in both cases.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.bgp.conftest import BgpLab
from tests.lab.bgp.test_examples import EXAMPLES
from tests.lab.pace import allowed
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.routers import HOLD, Routers, missing
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import Node

pytestmark = [pytest.mark.lab, pytest.mark.timed]

VIPS = (WEB_VIP, FILES_VIP)
#: From the last frame to the router's kernel, seconds, at the median of so many.
BUDGET, TRIES = 0.3, 5


@pytest.fixture(scope="module")
def bgp_lab() -> Iterator[BgpLab]:
    """The router asks both MUXes for BFD; mux1 alone has somebody who answers."""
    if why := missing(Routers.BIRD):
        pytest.skip(why)
    lab = BgpLab(2, 1, Routers.BIRD)
    lab.neighbour_changes = {mux.name: {"bfd": True} for mux in lab.muxes}
    with lab:
        speak_bfd(lab.muxes[0])
        lab.up((web(lab.hosts), files(lab.hosts)))
        yield lab


def speak_bfd(mux: Node) -> None:
    """BIRD on the MUX, as shipped, but for where it logs."""
    config = mux.directory / "bird-bfd.conf"
    config.write_text((EXAMPLES / "bird-bfd-on-mux.conf").read_text().replace("log syslog", "log stderr"))
    argv: list[str | Path] = [
        "bird",
        "-f",
        "-c",
        config,
        "-s",
        mux.directory / "bird.ctl",
        "-P",
        mux.directory / "bird.pid",
    ]
    mux.processes["bird"] = Process(f"bird on {mux.name}", mux.namespace, argv, mux.directory / "bird.log")


def bfd_is_up(lab: BgpLab, mux: Node) -> bool:
    """By the router's word."""
    assert lab.bgp_router is not None
    argv: list[str | Path] = ["birdc", "-s", lab.bgp_router.directory / "bird.ctl", "show bfd sessions"]
    done = subprocess.run(in_namespace(lab.router, argv), capture_output=True, text=True, check=False, timeout=10)
    return any(line.split()[0] == str(mux.address) and " Up " in line for line in done.stdout.splitlines() if line)


@contextlib.contextmanager
def silent(lab: BgpLab, mux: Node) -> Iterator[float]:
    """The switch drops all that comes from the MUX and goes there; yields since when."""

    def port(state: int) -> None:
        subprocess.run(
            ["bridge", "-n", lab.router, "link", "set", "dev", f"to{mux.name}", "state", str(state)], check=True
        )

    port(0)
    try:
        yield time.monotonic()
    finally:
        port(3)


@pytest.fixture
def announced(bgp_lab: BgpLab) -> BgpLab:
    for vip in VIPS:
        bgp_lab.wait_hops(vip, *bgp_lab.muxes, seconds=30)
    return bgp_lab


def test_a_mux_lost_silently_is_withdrawn_by_bfd_within_300_ms(announced: BgpLab) -> None:
    lab, mux, took = announced, announced.muxes[0], []
    for _ in range(TRIES):
        wait_for(lambda: bfd_is_up(lab, mux), "the BFD session", 15)
        for vip in VIPS:
            lab.wait_hops(vip, *lab.muxes, seconds=30)
        with silent(lab, mux) as since:
            took.append(lab.withdrawn_after(mux, VIPS, since))
    shown = " ".join(f"{seconds * 1000:.0f}" for seconds in sorted(took))
    print(f"\nMUX lost silently, with BFD 80 ms x 3: withdrawn after {shown} ms (sorted)")
    assert statistics.median(took) <= allowed(BUDGET)


def test_a_mux_lost_silently_without_bfd_is_withdrawn_by_the_hold_timer(announced: BgpLab) -> None:
    lab, mux = announced, announced.muxes[1]
    assert not bfd_is_up(lab, mux), "a router that asks for BFD does without where nobody answers"
    with silent(lab, mux) as since:
        took = lab.withdrawn_after(mux, VIPS, since)
    print(f"\nMUX lost silently, hold time {HOLD} s: withdrawn after {took:.2f} s")
    assert BUDGET < took <= HOLD + allowed(1.0)


def test_a_dead_bfd_speaker_withdraws_its_mux_and_its_return_announces_again(announced: BgpLab) -> None:
    """What docs/bgp.md says it costs: BFD is alive as long as its speaker is, whatever the MUX does."""
    lab, mux = announced, announced.muxes[0]
    wait_for(lambda: bfd_is_up(lab, mux), "the BFD session", 15)
    since = time.monotonic()
    mux.processes["bird"].kill()
    took = lab.withdrawn_after(mux, VIPS, since)
    print(f"\nBFD speaker killed: withdrawn after {took * 1000:.0f} ms")
    speak_bfd(mux)
    for vip in VIPS:
        lab.wait_hops(vip, *lab.muxes, seconds=30)
