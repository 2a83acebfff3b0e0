# SPDX-License-Identifier: Apache-2.0
"""``lb doctor`` of the whole fleet: of faults that are there together it names each cause once, and nothing else.

Faults are made for real, on hosts, MUXes, the router and the manager, several at a time where they do not disturb each
other. The doctor is asked on the manager's machine alone; ``lb get``, the page and the events must tell the same truth;
then the very commands are carried out that it names, and all must be well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from lb.model import Service
from tests.lab import netns
from tests.lab.clinic import PROBE, Clinic, Expected, Finding, Truth, table
from tests.lab.process import wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import WEB_VIP, files, web
from tests.lab.topology import Node

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(missing(Routers.BIRD) is not None, reason=str(missing(Routers.BIRD))),
]

SOLO_VIP = "203.0.113.30"
_NFT = "table inet lab_filter {{ chain input {{ type filter hook input priority 0; policy {}; {} }}; }}"
_REST = "iif lo accept; ct state established,related accept; icmp type echo-request accept;"


def solo(hosts: list[Node]) -> Service:
    """A service with one backend."""
    many = web(hosts)
    vip = ip_network(SOLO_VIP)
    return replace(many, name="solo", vip=vip, backends=(replace(many.backends[0], name="solo-host1"),))


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    with Clinic() as started:
        started.start([replace(service, probe=PROBE) for service in services(started)])
        started.wait_hops(WEB_VIP, *started.muxes)
        yield started
        print(table(started.seen))


def services(clinic: Clinic) -> list[Service]:
    return [web(clinic.hosts), files(clinic.hosts), solo(clinic.hosts)]


def command(finding: Finding, number: int = 0) -> str:
    """The command that the remedy names, as it stands there."""
    found: list[str] = re.findall(r"`([^`]+)`", finding["remedy"])
    return found[number]


def is_ill(service: str, backend: str) -> Truth:
    """A backend, wherever one looks."""

    def shown(row: Mapping[str, Any]) -> bool:
        return bool(row["healthy"] < row["backends"])

    return Truth(
        service, lambda row: row["state"] in ("down", "panic"), f"backend {service}/{backend} up → ", backend, shown
    )


def nginx_on(clinic: Clinic, host: Node, *, loopback: bool) -> None:
    """nginx anew, with port 8080 on loopback alone, or everywhere."""
    file = host.directory / "nginx.conf"
    four, six = ("127.0.0.1:", "[::1]:") if loopback else ("", "[::]:")
    text = re.sub(r"listen (?:[0-9.]+:)?8080 ", f"listen {four}8080 ", file.read_text())
    text = re.sub(r"listen \[[:1]*\]:8080 ", f"listen {six}8080 ", text)
    host.processes["nginx"].stop()
    file.write_text(text)
    clinic.start_web_server(host)


def test_what_others_do_on_hosts_that_are_well_is_no_finding(clinic: Clinic) -> None:
    """As Docker, ufw, firewalld and a second NIC leave them; traffic goes on."""
    host1, host2, host3 = clinic.hosts
    docker = (
        "table ip nat { chain DOCKER { }; chain PREROUTING { type nat hook prerouting priority -100; "
        "fib daddr type local jump DOCKER; }; };"
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; "
        "iifname docker0 accept; }; }"
    )
    clinic.in_node(host1, "nft", "-f", "-", stdin=docker)
    netns.sysctl(host1.namespace, {"ipv4/ip_forward": 1})
    opened = f"{_REST} tcp dport {{ 22, 80, 8080 }} accept; ip saddr 192.0.2.0/24 drop;"
    clinic.in_node(host2, "nft", "-f", "-", stdin=_NFT.format("drop", opened))
    lines = ["link add eth1 type veth peer name eth1peer", "link set eth1 up", "addr add 10.9.0.2/24 dev eth1"]
    netns.batch(lines, host3.namespace)
    netns.sysctl(host3.namespace, {"ipv4/conf/eth0/rp_filter": 2})
    assert clinic.fleet_finds() == []
    wait_for(lambda: {row["state"] for row in clinic.ask("services")} == {"up"}, "all services to be up", 30)
    for host, family, name in ((host1, "ip", "nat"), (host1, "ip", "filter"), (host2, "inet", "lab_filter")):
        clinic.in_node(host, "nft", "delete", "table", family, name)
    netns.sysctl(host1.namespace, {"ipv4/ip_forward": 0})
    netns.batch(["link del eth1"], host3.namespace)
    netns.sysctl(host3.namespace, {"ipv4/conf/eth0/rp_filter": 0})


def test_hosts_that_do_not_take_what_comes_for_them_and_a_file_that_all_may_read(clinic: Clinic) -> None:
    host1, host2, host3 = clinic.hosts
    mux2, before = clinic.muxes[1], clinic.last_event()
    clinic.in_node(host1, "nft", "-f", "-", stdin=_NFT.format("accept", "tcp dport 8080 drop;"))
    untracked = f"{_REST} ct state new tcp dport {{ 80, 8080 }} accept;"
    clinic.in_node(host2, "nft", "-f", "-", stdin=_NFT.format("drop", untracked))
    nginx_on(clinic, host3, loopback=True)
    mux2.config.chmod(0o644)
    clinic.all_say(
        before,
        is_ill("web", "web-host1"),
        is_ill("solo", "solo-host1"),
        is_ill("files", "files-host2"),
        is_ill("web", "web-host3"),
    )
    firewall, policy, loopback, secrets = clinic.fleet_finds(
        Expected("host_firewall", ("agent host1 says", "8080", "web/web-host1"), "host_firewall"),
        Expected("host_firewall", ("agent host2 says", "files/files-host2", "not tracked"), "host_firewall_untracked"),
        Expected("listens", ("agent host3 says", "8080"), "listens_on_loopback"),
        Expected("secrets", ("mux mux2 says", str(mux2.config)), "config_readable", "warning"),
    )
    clinic.note("host firewall that drops a port", firewall)
    clinic.note("policy drop, and what is not tracked is not new", policy)
    clinic.note("a server that listens on loopback alone", loopback)
    clinic.note("a file with passwords that all may read", secrets)
    for node, finding in ((host1, firewall), (host2, policy), (mux2, secrets)):
        clinic.in_node(node, *command(finding).split())
    nginx_on(clinic, host3, loopback=False)
    clinic.well(clinic.manager)
    for node in (host1, host2):
        clinic.in_node(node, "nft", "delete", "table", "inet", "lab_filter")
    assert clinic.fleet_finds() == []
    assert len(clinic.seen) == 4
