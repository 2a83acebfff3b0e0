# SPDX-License-Identifier: Apache-2.0
"""IPv6 from the client to the backend and back: VIPs by BGP, tunnels, translated ports, bit for bit.

The tunnels are IPv6 in IPv6 (RFC 2473), for the address of a backend decides of which family its tunnel is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

import pytest

from lb.model import Backend, PortRange, Protocol, Service
from tests.lab import netns
from tests.lab.bgp.conftest import BgpLab
from tests.lab.process import in_namespace
from tests.lab.routers import Routers
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import Node
from tests.lab.traffic import checksum, download, requests, upload_random

pytestmark = pytest.mark.lab

PLAIN, TRANSLATED = "2001:db8:0:1::10", "2001:db8:0:1::20"
VIPS = pytest.mark.parametrize("vip", [pytest.param(PLAIN, id="plain"), pytest.param(TRANSLATED, id="translated")])


def six(name: str, vip: str, hosts: Sequence[Node], port: int | None = None) -> Service:
    backends = tuple(Backend(f"{name}-{host.name}", host.address6, port) for host in hosts)
    return Service(name, ip_network(vip), Protocol.TCP, PortRange(80, 80), backends)


@pytest.fixture(scope="module")
def lab() -> Iterator[BgpLab]:
    with BgpLab(2, 3, Routers.BIRD, ipv6=True) as started:
        hosts = started.hosts
        started.write_files((six("plain", PLAIN, hosts), six("translated", TRANSLATED, hosts, 8080), web(hosts)))
        started.start_nginx()
        started.start_daemons(started.nodes)
        for vip in (PLAIN, TRANSLATED, WEB_VIP):
            started.wait_hops(vip, *started.muxes)
        yield started


@VIPS
def test_every_request_is_answered_and_every_host_serves(lab: BgpLab, vip: str) -> None:
    served = requests(lab, f"http://[{vip}]/", 300)
    assert set(served) == {host.name for host in lab.hosts}
    assert all(lab.status(mux)["forwarded"] > 0 for mux in lab.muxes), "both MUXes had their share"


def test_both_families_are_served_beside_each_other(lab: BgpLab) -> None:
    assert set(requests(lab, f"http://{WEB_VIP}/", 100)) == {host.name for host in lab.hosts}


@VIPS
def test_30_mb_upload_arrives_bit_for_bit(lab: BgpLab, vip: str) -> None:
    sent, arrived = upload_random(lab, f"http://[{vip}]")
    assert arrived == [sent]


@VIPS
def test_30_mb_download_arrives_bit_for_bit(lab: BgpLab, vip: str) -> None:
    assert download(lab, f"http://[{vip}]/big") == checksum(lab.big_file)


def test_no_host_answers_neighbour_discovery_for_a_vip_that_it_holds(lab: BgpLab) -> None:
    """RFC 4861: who answers for the address on its link gets all of its packets."""
    on_link = f"{PLAIN}/128 dev brh metric 1"
    netns.batch([f"route add {on_link}"], lab.router)
    try:
        ping = ["ping", "-6", "-c", "2", "-W", "2", "-I", "brh", PLAIN]
        done = subprocess.run(in_namespace(lab.router, ping), capture_output=True, text=True, check=False)
        known = netns.ip("-n", lab.router, "-6", "neigh", "show", "to", PLAIN, "dev", "brh")
    finally:
        netns.batch([f"route del {on_link}"], lab.router)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "lladdr" not in known


def test_a_planned_stop_of_a_mux_fails_no_request_of_ipv6(lab: BgpLab) -> None:
    lab.stop_mux(lab.muxes[1])
    lab.wait_hops(PLAIN, lab.muxes[0])
    assert "failed" not in requests(lab, f"http://[{PLAIN}]/", 100)
    lab.start_daemons([lab.muxes[1]])
    lab.wait_hops(PLAIN, *lab.muxes)
    assert "failed" not in requests(lab, f"http://[{PLAIN}]/", 100)
