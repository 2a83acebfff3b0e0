# SPDX-License-Identifier: Apache-2.0
"""What routers learn from MUXes, and forget again: by file, by policy, with attributes, in both families."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from urllib.request import urlopen

import pytest

from lb.model import Announce, AnnouncePolicy, Backend, BackendState, PortRange, Protocol, Service
from tests.lab import netns
from tests.lab.bgp.conftest import BgpLab
from tests.lab.process import wait_for
from tests.lab.routers import Bird, Frr, Routers
from tests.lab.services import FILES_VIP, WEB_VIP, drained, files, web
from tests.lab.topology import PROGRAMS

pytestmark = pytest.mark.lab

SIX_VIP = "2001:db8::10"


@pytest.fixture(scope="module")
def bgp_lab(routers: Routers) -> Iterator[BgpLab]:
    with BgpLab(2, 2, routers, ipv6=True) as lab:
        lab.up((web(lab.hosts), files(lab.hosts), six(lab)))
        yield lab


@pytest.fixture
def announced(bgp_lab: BgpLab) -> BgpLab:
    """All three VIPs by both MUXes."""
    for mux in bgp_lab.muxes:
        if not mux.processes["mux"].running:
            bgp_lab.write_files(bgp_lab.services)
            bgp_lab.start_mux(mux)
    bgp_lab.publish((web(bgp_lab.hosts), files(bgp_lab.hosts), six(bgp_lab)))
    for vip in (WEB_VIP, FILES_VIP, SIX_VIP):
        bgp_lab.wait_hops(vip, *bgp_lab.muxes)
    both = frozenset(str(mux.address) for mux in bgp_lab.muxes)
    for vip in (WEB_VIP, FILES_VIP):
        wait_for(partial(bgp_lab.watch.settled, vip, both), f"{vip}'s way there to be heard")
    for mux in bgp_lab.muxes:  # to which ExaBGP says so after it told the router
        bgp_lab.wait_announced(mux, WEB_VIP, FILES_VIP, SIX_VIP)
    return bgp_lab


def six(lab: BgpLab) -> Service:
    backends = tuple(Backend(f"six-{host.name}", host.address6) for host in lab.hosts)
    return Service("six", ip_network(SIX_VIP), Protocol.TCP, PortRange(80, 80), backends)


def test_both_families_are_announced_over_one_session(announced: BgpLab) -> None:
    for mux in announced.muxes:
        assert {vip for vip, _ in announced.announcements(mux)} == {WEB_VIP, FILES_VIP, SIX_VIP}
        assert {row["state"] for row in announced.announcements(mux).values()} == {"announced"}
        assert announced.status(mux)["bgp"] == {"router": "established, 3 announced"}


def test_metrics_tell_what_each_peer_heard(announced: BgpLab) -> None:
    mux = announced.muxes[0]

    def scrape() -> str:
        with urlopen("http://127.0.0.1:9741/metrics", timeout=5) as page:
            return str(page.read().decode())

    text = netns.inside(mux.namespace, scrape)
    assert f'lb_announced{{peer="router",vip="{WEB_VIP}"}} 1.0' in text
    assert f'lb_announced{{peer="router",vip="{SIX_VIP}"}} 1.0' in text
    assert 'lb_bgp_session_up{peer="router"} 1.0' in text


def test_command_shows_announcements_and_peers(announced: BgpLab) -> None:
    mux = announced.muxes[0]

    def get(what: str) -> str:
        argv: list[str | Path] = [PROGRAMS / "lb", "get", what, "--local", "--config", mux.config]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert re.search(rf"{WEB_VIP}\s+router\s+announced", get("announcements"))
    assert re.search(r"router\s+10\.0\.1\.1\s+65000\s+external\s+established", get("peers"))


def test_removed_service_is_withdrawn_before_it_is_removed(announced: BgpLab) -> None:
    lab = announced
    before = time.monotonic()
    lab.publish((web(lab.hosts), six(lab)))
    published = time.monotonic()  # the reload has ended, the VIP is out of the table
    for mux in lab.muxes:
        assert lab.withdrawn_after(mux, [FILES_VIP], before) <= published - before
    lab.wait_hops(WEB_VIP, *lab.muxes)
    moved = lab.watch.changed(WEB_VIP, lambda hops: len(hops) < 2, before)
    assert moved is None, "other VIPs must not move"


def test_an_ipv6_vip_is_withdrawn_over_a_session_of_ipv4(announced: BgpLab) -> None:
    lab = announced
    lab.publish((web(lab.hosts), files(lab.hosts)))
    lab.wait_hops(SIX_VIP)


def test_policy_withdraws_without_healthy_backends_and_says_why(announced: BgpLab) -> None:
    lab = announced
    picky = replace(web(lab.hosts), announce=Announce(AnnouncePolicy.MIN_HEALTHY, n=2))
    lab.publish((picky, files(lab.hosts)))
    lab.wait_hops(WEB_VIP, *lab.muxes)
    lab.publish((drained(picky, "host1"), files(lab.hosts)))
    lab.wait_hops(WEB_VIP)
    lab.wait_hops(FILES_VIP, *lab.muxes)
    key = (WEB_VIP, None)
    wait_for(lambda: lab.announcements(lab.muxes[0]).get(key, {}).get("state") == "withdrawn", "the MUX to say so")
    why = lab.announcements(lab.muxes[0])[key]["why"]
    assert why == "web: 1 healthy backends, and the policy min-healthy asks for 2"


def test_always_is_announced_even_without_backends(announced: BgpLab) -> None:
    lab = announced
    down = [replace(backend, state=BackendState.DOWN) for backend in web(lab.hosts).backends]
    lab.publish((replace(web(lab.hosts), backends=tuple(down)), files(lab.hosts)))
    lab.wait_hops(WEB_VIP, *lab.muxes)


def test_attributes_reach_the_router(announced: BgpLab) -> None:
    lab = announced
    said = Announce(communities=("65000:77", "65000:1:2"), med=50, prepend=2)
    lab.publish((replace(web(lab.hosts), announce=said), files(lab.hosts)))
    router = lab.bgp_router
    assert isinstance(router, Bird | Frr)
    wait_for(lambda: "65000:1:2" in router.path(f"{WEB_VIP}/32").replace(", ", ":"), "the large community")
    text = router.path(f"{WEB_VIP}/32")
    assert re.search(r"65000[,:]77", text)
    assert re.search(r"65001 65001 65001", text)
    assert re.search(r"(?i)med[:a-z_ ]*\s*50|metric 50", text)


def test_a_worse_path_leaves_the_set_and_nothing_is_withdrawn(announced: BgpLab) -> None:
    lab = announced
    before = time.monotonic()
    lab.write_files((replace(web(lab.hosts), announce=Announce(prepend=2)), files(lab.hosts)), lab.muxes[:1])
    lab.reload(lab.muxes[:1], "mux", 'event="configuration published"')
    lab.wait_hops(WEB_VIP, lab.muxes[1])
    assert lab.watch.changed(WEB_VIP, lambda hops: not hops, before) is None


def test_planned_stop_moves_traffic_away_before_the_routes_go(announced: BgpLab) -> None:
    """GRACEFUL_SHUTDOWN: the router prefers the other MUX while this one still announces, and forwards."""
    lab, leaving = announced, announced.muxes[0]
    router = lab.bgp_router
    assert isinstance(router, Bird | Frr)
    process = leaving.processes["mux"]
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    moved = lab.withdrawn_after(leaving, [WEB_VIP, FILES_VIP], began)
    assert process.wait() == 0
    ended = time.monotonic() - began
    print(f"\n{lab.routers.value}: traffic moved after {moved * 1000:.0f} ms, lb-mux ended after {ended * 1000:.0f} ms")
    assert moved < ended - 0.5
    lab.wait_hops(WEB_VIP, lab.muxes[1])
    assert lab.watch.changed(WEB_VIP, lambda hops: not hops, began) is None, "there must always have been a route"


def test_last_mux_keeps_its_routes_until_the_withdrawal(announced: BgpLab) -> None:
    """GRACEFUL_SHUTDOWN makes a path the worst, not none."""
    lab = announced
    lab.stop_mux(lab.muxes[1])
    lab.wait_hops(WEB_VIP, lab.muxes[0])
    began = time.monotonic()
    lab.stop_mux(lab.muxes[0])
    gone = lab.withdrawn_after(lab.muxes[0], [WEB_VIP], began)
    assert gone >= 0.3
    wait_for(lambda: lab.watch.count() == 0, "the other VIPs' routes to be gone as well")
