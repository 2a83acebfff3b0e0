# SPDX-License-Identifier: Apache-2.0
"""ICMP where it matters: a narrow link on the client's side or before the hosts, ping, traceroute. IPv4 and IPv6, ports
translated or not.

Two MUXes, so that an error may come to one that never saw the flow.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Network, ip_address

import pytest

from lb.model import Address, IoMode, MuxSettings, Service, Unserved
from tests.lab import netns
from tests.lab.services import FILES_VIP, LOAD_PORT, LOAD_VIP, WEB_VIP, files, load, web
from tests.lab.topology import Lab, Node
from tests.lab.traffic import checksum, counted, download, run, upload_random

pytestmark = pytest.mark.lab

NARROW = 1300
WEB6_VIP, FILES6_VIP, LOAD6_VIP = "2001:db8:f::10", "2001:db8:f::20", "2001:db8:f::30"
FILES64_VIP = "2001:db8:f::64"  #: of IPv6, with backends of IPv4
VIPS = {"plain": FILES_VIP, "translated": WEB_VIP, "plain, IPv6": FILES6_VIP, "translated, IPv6": WEB6_VIP}
EACH_VIP = pytest.mark.parametrize("vip", VIPS.values(), ids=VIPS)
IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE = 11, 25, 0x2000
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO, IP_MTU, IPV6_MTU = 10, 23, 2, 14, 24


def over_ipv6(service: Service, vip: str, lab: Lab) -> Service:
    addresses = {host.address: host.address6 for host in lab.hosts}
    backends = tuple(replace(backend, address=addresses[backend.address]) for backend in service.backends)  # type: ignore[index]
    return replace(service, name=service.name + "6", vip=IPv6Network(vip), backends=backends)


class IcmpLab(Lab):
    """MUXes that tell clients what cannot be reached."""

    def mux_settings(self, mux: Node) -> MuxSettings:
        return replace(super().mux_settings(mux), unserved=Unserved.UNREACHABLE)


@pytest.fixture(scope="module", params=[IoMode.PACKET, IoMode.TUN, IoMode.XDP], ids=lambda mode: mode.value)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with IcmpLab(hosts=2, io=request.param, ipv6=True) as started:
        four = (web(started.hosts), files(started.hosts), load(started.hosts))
        vips6 = (WEB6_VIP, FILES6_VIP, LOAD6_VIP)
        six = tuple(over_ipv6(service, vip, started) for service, vip in zip(four, vips6, strict=True))
        mixed = replace(files(started.hosts), name="files64", vip=IPv6Network(FILES64_VIP))
        started.write_files((*four, *six, mixed))
        started.guardian.serve((WEB_VIP, FILES_VIP, LOAD_VIP))
        started.start_nginx()
        started.start_daemons(started.nodes)
        ways = " ".join(f"nexthop via {mux.address6}" for mux in started.muxes)
        netns.batch([f"route add {vip}/128 {ways}" for vip in (*vips6, FILES64_VIP)], started.router)
        netns.batch([f"link set toc mtu {NARROW}"], started.router)
        yield started


def forget_path_mtu(lab: Lab) -> None:
    """Of all hosts: what one download taught them of the client they would know for the next."""
    for host in lab.hosts:
        for family in ("-4", "-6"):
            netns.ip("-n", host.namespace, family, "route", "flush", "cache")


@EACH_VIP
def test_a_download_over_a_narrow_link_on_the_clients_side_arrives_bit_for_bit(lab: Lab, vip: str) -> None:
    """Segments of 1,440 bytes and more meet a link of 1,300: the router tells the VIP, and the host must hear it."""
    forget_path_mtu(lab)
    before = counted(lab, "icmp_error")
    assert download(lab, f"http://{_url(vip)}/big") == checksum(lab.big_file)
    assert counted(lab, "icmp_error") > before


@EACH_VIP
def test_a_vip_answers_pings(lab: Lab, vip: str) -> None:
    done = run(lab, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "10", vip)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 received, 0% packet loss" in done.stdout
    hops = "3" if lab.io is IoMode.TUN else "2"  # its last hop is the MUX; with TUN the MUX's kernel is one before it
    done = run(lab, "ping", "-n", "-c", "1", "-W", "10", "-t", hops, "-s", "1000", vip)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("vip", "fits"), [(LOAD_VIP, 1480), (LOAD6_VIP, 1460)], ids=["IPv4", "IPv6"])
def test_who_sends_more_than_the_tunnel_carries_learns_what_fits(lab: Lab, vip: str, fits: int) -> None:
    before = counted(lab, "frag_needed")
    netns.batch(["link set toc mtu 1500"], lab.router)  # or it takes nothing that is longer either
    try:
        assert netns.inside(lab.client, lambda: path_mtu(vip)) == fits
    finally:
        netns.batch([f"link set toc mtu {NARROW}"], lab.router)
    assert counted(lab, "frag_needed") > before


@EACH_VIP
@pytest.mark.parametrize("port", [80, 33434], ids=["open", "closed"])
def test_traceroute_sees_the_mux(lab: Lab, vip: str, port: int) -> None:
    routers = {ip_address("10.0.0.1"), ip_address("fd00:0::1")}
    muxes = {address for mux in lab.muxes for address in (mux.address, mux.address6)}
    assert netns.inside(lab.client, lambda: who_ends(vip, port, 1)) in routers
    assert netns.inside(lab.client, lambda: who_ends(vip, port, 2)) in muxes


#: The VIP, what the link before the hosts carries (of IPv6 in IPv6 1,280 and a header at least), the tunnel's family.
UNDERLAY = {
    "plain": (FILES_VIP, 1300, 4),
    "translated": (WEB_VIP, 1300, 4),
    "plain, IPv6": (FILES6_VIP, 1320, 6),
    "translated, IPv6": (WEB6_VIP, 1320, 6),
    "plain, IPv6 in IPv4": (FILES64_VIP, 1300, 4),
}


@pytest.mark.parametrize(("vip", "carries", "family"), UNDERLAY.values(), ids=UNDERLAY)
def test_30_mb_go_up_and_down_over_a_narrow_link_between_mux_and_host(
    lab: Lab, vip: str, carries: int, family: int
) -> None:
    """The router before the hosts tells the MUX, and the MUX the client: what arrives there is whole. Last, for MUXes
    remember it for ten minutes."""
    forget_path_mtu(lab)  # or the host asks for segments that are small enough
    netns.batch(["link set toc mtu 1500", f"link set brh mtu {carries}"], lab.router)
    try:
        sent, arrived = upload_random(lab, f"http://{_url(vip)}")
        assert arrived == [sent]
        assert download(lab, f"http://{_url(vip)}/big") == checksum(lab.big_file)
    finally:
        netns.batch([f"link set toc mtu {NARROW}", "link set brh mtu 1500"], lab.router)
    known = {
        row["tunnel_mtu"]: row["tunnel"]
        for mux in lab.muxes
        for row in lab.get(mux, "backends")
        if "tunnel_mtu" in row and ip_address(row["address"]).version == family
    }
    assert list(known) == [carries]
    router = "10.0.1.1" if family == 4 else "fd00:1::1"
    assert f"{router} says: " in known[carries]


@pytest.mark.parametrize("vip", [FILES_VIP, FILES6_VIP], ids=["IPv4", "IPv6"])
def test_a_client_hears_from_the_vip_that_no_host_can_be_reached(lab: Lab, vip: str) -> None:
    """The router before the hosts tells the MUX, and the MUX the client, whose connection ends at once."""
    hosts = [host.address if "." in vip else host.address6 for host in lab.hosts]
    netns.batch([f"route add unreachable {host}" for host in hosts], lab.router)
    try:
        assert netns.inside(lab.client, lambda: why_not(vip)) == errno.EHOSTUNREACH
    finally:
        netns.batch([f"route del unreachable {host}" for host in hosts], lab.router)
    seen = [
        row.get("tunnel", "") for mux in lab.muxes for row in lab.get(mux, "backends") if row["service"][:5] == "files"
    ]
    assert any("unreachable" in words for words in seen), seen


def why_not(vip: str) -> int:
    """The error of a connection that is tried for no longer than it takes until somebody says why it cannot be."""
    with socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET) as asked:
        asked.settimeout(60)
        return asked.connect_ex((vip, 80))


def _url(vip: str) -> str:
    return f"[{vip}]" if ":" in vip else vip


def path_mtu(vip: str) -> int:
    """What a UDP socket that may not be cut finds out: it sends all that its own link carries, until it may not."""
    six = ":" in vip
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asked:
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        asked.setsockopt(level, IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER, PMTUDISC_DO)
        asked.connect((vip, LOAD_PORT))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                asked.send(bytes(1500 - (48 if six else 28)))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return asked.getsockopt(level, IPV6_MTU if six else IP_MTU)
                raise
            time.sleep(0.2)
    raise AssertionError("nobody said that it is too long")


def who_ends(vip: str, port: int, hops: int) -> Address:
    """Who says that a UDP packet's time is up, as traceroute asks it: again every second, for a message may be lost."""
    six = ":" in vip
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asked:
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        asked.setsockopt(level, socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL, hops)
        asked.setsockopt(level, IPV6_RECVERR if six else IP_RECVERR, 1)
        poll, deadline = select.poll(), time.monotonic() + 30
        poll.register(asked, select.POLLERR)
        while time.monotonic() < deadline:
            asked.sendto(b"anybody there?", (vip, port))
            if poll.poll(1000):
                _, ancillary, _, _ = asked.recvmsg(100, 500, MSG_ERRQUEUE)
                return offender(ancillary[0][2])
    raise AssertionError(f"nobody said that {hops} hops towards {vip} are too few")


def offender(error: bytes) -> Address:
    """From a struct sock_extended_err, which must be of ICMP time exceeded, and the address behind it."""
    _, origin, kind, _, _, _, _ = struct.unpack("=IBBBBII", error[:16])
    assert (origin, kind) in {(2, 11), (3, 3)}
    return ip_address(error[20:24]) if origin == 2 else ip_address(error[24:40])
