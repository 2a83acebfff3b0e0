# SPDX-License-Identifier: Apache-2.0
"""Sessions: passwords, AS numbers, TTL security, silence, two kinds of peers, many routes; and errors in words."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from lb.model import Announce, AnnouncePeers, Backend, BgpFamily, BgpPeer, PeerKind, PortRange, Protocol, Service
from tests.lab import netns
from tests.lab.bgp.conftest import BUDGET, BgpLab
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.routers import HOLD, MUX_ASN, Bird, Neighbour, Routers, RouteWatch
from tests.lab.services import FILES_VIP, WEB_VIP, files, web

pytestmark = pytest.mark.lab

PASSWORD = "it's; {a} secret #1"  # noqa: S105  of the lab
INSIDE = IPv4Address("10.0.1.2")


class Disagreeing(BgpLab):
    """mux1 has the router's password and TTL, mux2 another password, mux3 another idea of the router's AS."""

    def __init__(self, routers: Routers) -> None:
        super().__init__(3, 1, routers)
        # FRR's configuration takes words only.
        password = PASSWORD if routers is Routers.BIRD else "s3cret"
        self.neighbour_changes = {"mux1": {"password": password, "gtsm": True}, "mux2": {"password": password}}
        self.peer_changes = {
            "mux1": {"password": password, "gtsm": True},
            "mux2": {"password": "wrong"},
            "mux3": {"asn": 64999},
        }


@pytest.fixture(scope="module")
def disagreeing(routers: Routers) -> Iterator[BgpLab]:
    with Disagreeing(routers) as lab:
        lab.up((web(lab.hosts),))
        yield lab


def test_right_password_and_ttl_give_a_session_and_wrong_ones_none(disagreeing: BgpLab) -> None:
    lab = disagreeing
    lab.wait_hops(WEB_VIP, lab.muxes[0])
    assert lab.peer(lab.muxes[0])["state"] == "established"
    mux = lab.muxes[1]
    lab.wait_peer(mux, lambda row: "another password" in str(row["error"]), "that the password may be wrong")
    assert lab.peer(mux)["state"] == "connecting"
    assert lab.announcements(mux)[WEB_VIP, "router"]["state"] == "waiting"
    lab.wait_hops(WEB_VIP, lab.muxes[0])


def test_wrong_as_number_is_said_in_words(disagreeing: BgpLab) -> None:
    lab, mux = disagreeing, disagreeing.muxes[2]
    lab.wait_peer(mux, lambda row: "AS number" in str(row["error"]), "that the AS number is wrong")
    assert "AS number" in lab.status(mux)["bgp"]["router"]


def test_silence_ends_the_session_after_the_hold_time_and_routes_return(disagreeing: BgpLab) -> None:
    """Nothing goes in or out, as in a fabric that lost the MUX. The router's hold timer begins anew with each message
    that it hears (RFC 4271, 4.4 and 8.2.2), so the last one before the silence began is the latest that counts."""
    lab, mux = disagreeing, disagreeing.muxes[0]
    lab.wait_hops(WEB_VIP, mux)
    hooks = [
        f"chain {hook} {{ type filter hook {hook} device eth0 priority -500; drop\n}}" for hook in ("ingress", "egress")
    ]
    netns.ip("netns", "exec", mux.namespace, "nft", "table netdev hole {\n" + "\n".join(hooks) + "\n}")
    at = time.monotonic()
    try:
        took = lab.withdrawn_after(mux, [WEB_VIP], at)
        lab.wait_peer(mux, lambda row: row["state"] != "established", "the session is down")
        lab.wait_peer(mux, lambda row: "hold timer" in str(row["error"]), "why")
    finally:
        netns.ip("netns", "exec", mux.namespace, "nft", "delete", "table", "netdev", "hole")
    healed = time.monotonic()
    lab.wait_hops(WEB_VIP, mux, seconds=60)
    back = time.monotonic() - healed
    print(f"\n{lab.routers.value}: silence: withdrawn after {took:.1f} s, back {back:.1f} s after it ended")
    assert took <= HOLD + allowed(1.5)


def test_a_password_that_was_mended_is_taken_by_a_reload(disagreeing: BgpLab) -> None:
    """The MUX forwards on meanwhile, with the same ExaBGP user and the same process of ours."""
    lab, mux = disagreeing, disagreeing.muxes[1]
    process = mux.processes["mux"]
    lab.peer_changes[mux.name] = {"password": lab.peer_changes["mux1"]["password"]}
    lab.write_files(lab.services, [mux])
    process.signal(signal.SIGHUP)
    lab.wait_peer(mux, lambda row: row["state"] == "established", "the session with the new password")
    lab.wait_hops(WEB_VIP, lab.muxes[0], mux)
    assert process.running
    process.wait_output('event="BGP passwords changed"')  # a log may lag behind


def test_a_link_that_was_away_for_long_has_its_session_and_routes_back_at_once(routers: Routers) -> None:
    """Longer than the hold time: then ExaBGP waits between its attempts, and nobody could tell it to try now."""
    with BgpLab(1, 1, routers) as lab:
        lab.up((web(lab.hosts),))
        mux = lab.muxes[0]
        lab.wait_hops(WEB_VIP, mux)
        netns.ip("-n", mux.namespace, "link", "set", "eth0", "down")
        lab.wait_hops(WEB_VIP)
        time.sleep(12)  # of attempts in vain
        up = ["link set eth0 up", "route replace default via 10.0.1.1"]
        netns.batch(up, mux.namespace)
        since = time.monotonic()
        lab.wait_hops(WEB_VIP, mux, seconds=30)
        took = time.monotonic() - since
        print(f"\n{lab.routers.value}: link back: routes {took:.1f} s later")
        assert took <= allowed(5.0)


def test_a_session_over_ipv6_carries_both_families(routers: Routers) -> None:
    lab = BgpLab(1, 1, routers, ipv6=True)
    mux = lab.muxes[0]
    lab.neighbour_changes = {mux.name: {"address": str(mux.address6)}}
    lab.peer_changes = {mux.name: {"address": IPv6Address("fd00:1::1")}}
    backend = Backend("six", lab.hosts[0].address6)
    six = Service("six", ip_network("2001:db8::10"), Protocol.TCP, PortRange(80, 80), (backend,))
    with lab:
        lab.up((web(lab.hosts), six))
        lab.wait_hops(WEB_VIP, mux)
        lab.wait_hops("2001:db8::10", mux)
        at = lab.kill_mux(mux)
        took = lab.withdrawn_after(mux, [WEB_VIP], at)
        lab.wait_hops("2001:db8::10")
        assert took <= allowed(BUDGET[routers])


# --- two routers: one outside, one inside ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sided(routers: Routers) -> Iterator[tuple[BgpLab, RouteWatch]]:
    """The lab's router, and beside it one of the MUXes' own AS: BIRD at 10.0.1.2."""
    lab = BgpLab(1, 1, routers)
    lab.more_peers = (
        BgpPeer("inside", INSIDE, MUX_ASN, (BgpFamily.IPV4,), password="in", kind=PeerKind.INTERNAL),  # noqa: S106
    )
    with lab:
        namespace = f"{lab.prefix}-r2"
        netns.batch([f"netns add {namespace}"])
        inside = Bird(namespace, lab.directory / "inside", str(INSIDE), asn=MUX_ASN)
        watch = None
        try:
            netns.batch(
                [f"link add name tor2 type veth peer name eth0 netns {namespace}", "link set tor2 master brm up"],
                lab.router,
            )
            netns.batch(["link set lo up", f"addr add {INSIDE}/24 dev eth0", "link set eth0 up"], namespace)
            watch = RouteWatch(namespace)
            inside.start([Neighbour(mux.name, str(mux.address), password="in") for mux in lab.muxes])  # noqa: S106
            lab.up(
                (
                    replace(web(lab.hosts), announce=Announce(peers=AnnouncePeers.EXTERNAL)),
                    replace(files(lab.hosts), announce=Announce(peers=AnnouncePeers.INTERNAL)),
                )
            )
            yield lab, watch
        finally:
            inside.stop()
            if watch is not None:
                watch.close()
            netns.batch([f"netns del {namespace}"])


def test_internal_and_external_peers_hear_different_vips(two_sided: tuple[BgpLab, RouteWatch]) -> None:
    lab, inside = two_sided
    mux = lab.muxes[0]
    lab.wait_hops(WEB_VIP, mux)
    wait_for(lambda: inside.hops(FILES_VIP) == {str(mux.address)}, "the inside router to learn the internal VIP")
    assert lab.watch.hops(FILES_VIP) == frozenset()
    assert inside.hops(WEB_VIP) == frozenset()

    def told() -> set[tuple[str, str | None]]:
        return {pair for pair, row in lab.announcements(mux).items() if row["state"] == "announced"}

    wait_for(lambda: len(told()) >= 2, "the MUX to hear that both are announced")
    assert told() == {(WEB_VIP, "router"), (FILES_VIP, "inside")}


def test_a_vip_can_move_from_inside_to_everywhere(two_sided: tuple[BgpLab, RouteWatch]) -> None:
    lab, inside = two_sided
    mux = lab.muxes[0]
    lab.publish((web(lab.hosts), files(lab.hosts)))
    lab.wait_hops(FILES_VIP, mux)
    wait_for(lambda: inside.hops(WEB_VIP) == {str(mux.address)}, "the inside router to learn both")


def test_a_thousand_vips_are_announced_and_withdrawn_without_a_deadlock(two_sided: tuple[BgpLab, RouteWatch]) -> None:
    """Each answer of ExaBGP goes through a pipe that must never fill."""
    lab, inside = two_sided
    backend = Backend("host1", lab.hosts[0].address)
    many = tuple(
        Service(
            f"s{n}",
            ip_network(f"198.18.{n // 250}.{n % 250 + 1}"),
            Protocol.TCP,
            PortRange(80, 80),
            (backend,),
            slots=251,
        )
        for n in range(1000)
    )
    lab.publish((web(lab.hosts),))
    wait_for(lambda: (lab.watch.count(), inside.count()) == (1, 1), "one route everywhere")
    began = time.monotonic()
    lab.publish((web(lab.hosts), *many))
    wait_for(lambda: (lab.watch.count(), inside.count()) == (1001, 1001), "1,001 routes in both routers", 60)
    announced = time.monotonic()
    lab.wait_peer(lab.muxes[0], lambda row: row["announced"] == 1001, "that 1,001 are announced")
    lab.publish((web(lab.hosts),))
    wait_for(lambda: (lab.watch.count(), inside.count()) == (1, 1), "one route everywhere", 60)
    withdrawn = time.monotonic()
    print(
        f"\n{lab.routers.value}: 1,000 routes to two peers: in both kernels {announced - began:.1f} s after the reload "
        f"was asked for, gone after {withdrawn - announced:.1f} s"
    )
    for name in ("router", "inside"):
        assert lab.peer(lab.muxes[0], name)["state"] == "established"
