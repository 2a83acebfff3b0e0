# SPDX-License-Identifier: Apache-2.0
"""What a MUX asks through each tunnel, what its outer headers hold, and when the kernel would not hear the answer."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RS, IPv6

from lb.model import Backend, Encap, MuxSettings, PortRange, Probe, ProbeType, Protocol, Service
from lb.mux.probes.path import TunnelTo, names, source_port, tunnel_packet
from lb.mux.probes.tunnel_probes import HostCheck, Hosts, TunnelCheck, checks, deaf
from lb.probe.results import NotProbed
from lb.probe.state import ProbeAnswer
from tests.model import tunnel

VIP, HOST, MUX = IPv4Address("203.0.113.10"), IPv4Address("10.0.3.21"), IPv4Address("10.0.1.11")
VIP6, HOST6, MUX6 = (IPv6Address(text) for text in ("2001:db8::10", "fd00::21", "fd00::11"))
TO = TunnelTo(HOST)
SETTINGS = MuxSettings("mux1", MUX, seed=bytes(16), interface="eth0", address6=MUX6)
TCP_PROBE = Probe(ProbeType.TCP, interval=5, timeout=2, rise=1, fall=4)
HTTP = Probe(ProbeType.HTTP, path="/healthz", interval=5, timeout=2, rise=1, fall=4)
DNS = Probe(ProbeType.UDP, request="a", expect="b")

UDP_SILENT = "through a tunnel, a UDP service must be expected to answer"
NO_PORT = "the service has no single port; probe.port may name one of its own"


def service(probe: Probe | None, ports: tuple[int, int] = (80, 80), **changes: Any) -> Service:
    values: dict[str, Any] = {
        "name": "s",
        "vip": ip_network(VIP),
        "protocol": Protocol.TCP,
        "backends": (Backend("b", ip_address(changes.pop("address", HOST)), changes.pop("port", None)),),
    }
    return Service(ports=PortRange(*ports), probe=probe, **{**values, **changes})


def changed(probe: Probe, **changes: Any) -> Probe:
    return replace(probe, **changes)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        pytest.param(service(None), NotProbed("not probed: the service has no probe"), id="no probe, nothing"),
        pytest.param(service(TCP_PROBE), TunnelCheck(TCP_PROBE, VIP, 80, TO), id="TCP at VIP:port"),
        pytest.param(service(HTTP), TunnelCheck(HTTP, VIP, 80, TO), id="HTTP at VIP:port"),
        pytest.param(service(HTTP, port=8080), TunnelCheck(HTTP, VIP, 80, TO), id="translated: the VIP's port"),
        pytest.param(
            service(changed(HTTP, port=8080), port=8080), TunnelCheck(HTTP, VIP, 80, TO), id="the backend's own port"
        ),
        pytest.param(
            service(changed(HTTP, port=9000)), TunnelCheck(TCP_PROBE, VIP, 80, TO), id="another port: TCP connect"
        ),
        pytest.param(
            service(Probe(ProbeType.COMMAND, command=("x",))),
            TunnelCheck(Probe(ProbeType.TCP), VIP, 80, TO),
            id="a command: TCP connect",
        ),
        pytest.param(service(TCP_PROBE, (0, 65535)), HostCheck(TCP_PROBE, HOST, NO_PORT), id="any port"),
        pytest.param(
            service(changed(TCP_PROBE, port=22), (0, 65535)), TunnelCheck(TCP_PROBE, VIP, 22, TO), id="one of a range"
        ),
        pytest.param(
            service(changed(TCP_PROBE, port=22), (8000, 8099)),
            HostCheck(TCP_PROBE, HOST, NO_PORT),
            id="one outside a range",
        ),
        pytest.param(
            service(DNS, (53, 53), protocol=Protocol.UDP), TunnelCheck(DNS, VIP, 53, TO), id="UDP with an answer"
        ),
        pytest.param(
            service(changed(DNS, expect=None), (53, 53), protocol=Protocol.UDP),
            HostCheck(Probe(ProbeType.TCP), HOST, UDP_SILENT),
            id="UDP without",
        ),
        pytest.param(
            service(HTTP, (443, 443), protocol=Protocol.UDP),
            HostCheck(TCP_PROBE, HOST, UDP_SILENT),
            id="UDP probed by HTTP",
        ),
        pytest.param(
            service(TCP_PROBE, vip=ip_network("2001:db8::10"), address="fd00::21"),
            TunnelCheck(TCP_PROBE, VIP6, 80, TunnelTo(HOST6)),
            id="IPv6",
        ),
        pytest.param(
            service(TCP_PROBE, address="fd00::21"), TunnelCheck(TCP_PROBE, VIP, 80, TunnelTo(HOST6)), id="IPv4 in IPv6"
        ),
        pytest.param(
            service(TCP_PROBE, encap=Encap.GUE), TunnelCheck(TCP_PROBE, VIP, 80, TunnelTo(HOST, Encap.GUE)), id="GUE"
        ),
        pytest.param(
            service(TCP_PROBE, vip=ip_network("203.0.113.128/25")),
            TunnelCheck(TCP_PROBE, IPv4Address("203.0.113.128"), 80, TO),
            id="a prefix: its first address",
        ),
    ],
)
def test_checks(given: Service, asked: TunnelCheck | HostCheck | NotProbed) -> None:
    assert checks([given], SETTINGS) == {("s", "b"): asked}


def test_a_vip_is_asked_from_an_address_of_its_own_family() -> None:
    only6 = replace(SETTINGS, address=None)
    found = checks([service(TCP_PROBE, address="fd00::21")], only6)[("s", "b")]
    assert found == HostCheck(TCP_PROBE, HOST6, "there is no mux.address to ask the VIP from")


def test_a_tunnel_is_that_of_the_mux_where_the_service_does_not_say() -> None:
    over = replace(SETTINGS, encap=Encap.GUE)
    found = checks([service(TCP_PROBE), replace(service(TCP_PROBE), name="t", encap=Encap.IPIP)], over)
    assert [check.to.encap for check in found.values() if isinstance(check, TunnelCheck)] == [Encap.GUE, Encap.IPIP]


@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("encap", Encap)
@pytest.mark.parametrize("to", [HOST, HOST6])
@pytest.mark.parametrize(
    "inner",
    [
        raw(IP(src=str(MUX), dst=str(VIP), tos=0xB9) / TCP(sport=40000) / b"x"),
        raw(IPv6(src=str(MUX6), dst=str(VIP6), tc=0xB9) / TCP(sport=40000) / b"x"),
    ],
)
def test_a_probe_looks_on_the_way_as_what_the_data_plane_sends(
    inner: bytes, to: IPv4Address | IPv6Address, encap: Encap, variant: int
) -> None:
    settings = replace(SETTINGS, gue_variant=variant)
    source = settings.source(to)
    assert source is not None
    sent = tunnel_packet(inner, TunnelTo(to, encap), settings, entropy=40000)
    expected = tunnel.outer(encap, source, to, inner, 0, 40000, variant)
    # A raw socket's kernel writes the identification and the checksum.
    assert (sent if to.version == 6 else sent[:10] + expected[10:12] + sent[12:]) == expected


def test_a_machine_is_lost_only_after_it_has_answered_and_who_refuses_is_there() -> None:
    hosts, check = Hosts(), HostCheck(TCP_PROBE, HOST, UDP_SILENT)
    silence = ProbeAnswer(False, "connect timed out after 2 s", silent=True)
    assert not hosts.heard(check, silence).news, "a packet filter is silent, too"
    assert hosts.heard(check, ProbeAnswer(False, "connection refused", refused=True)) == ProbeAnswer(
        True, f"its machine is there ({UDP_SILENT})"
    )
    lost = hosts.heard(check, silence)
    assert (lost.success, lost.news) == (False, True)
    assert lost.reason == f"its machine {HOST} does not answer any more: connect timed out after 2 s"
    assert not hosts.heard(check, ProbeAnswer(False, "no socket for the probe", made=False)).made
    hosts.keep_only(set())
    assert not hosts.heard(check, silence).news


@pytest.mark.parametrize(("flags", "tos"), [("DF", 0), ("", 0), ("DF", 0xB9)])
def test_outer_header_follows_the_inner_one(flags: str, tos: int) -> None:
    inner = raw(IP(src=str(MUX), dst=str(VIP), flags=flags, tos=tos) / TCP(sport=40000, dport=80) / b"x")
    packet = IP(tunnel_packet(inner, TO, SETTINGS))
    assert (packet.src, packet.dst, packet.proto, packet.ttl, packet.ihl) == (str(MUX), str(HOST), 4, 64, 5)
    assert (packet.flags, packet.tos, packet.len) == (flags, tos, 20 + len(inner))
    assert raw(packet.payload) == inner


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (raw(IP() / TCP(sport=40000)), (4, 6, 40000)),
        (raw(IP() / UDP(sport=53)), (4, 17, 53)),
        (raw(IP(options=b"\1\1\1\1") / UDP(sport=53)), (4, 17, 53)),
        (raw(IP(frag=5) / UDP(sport=53)), None),
        (raw(IPv6() / UDP(sport=53)), (6, 17, 53)),
        (raw(IPv6() / ICMPv6ND_RS()), None),
        (raw(IP() / UDP(sport=53))[:23], None),
        (b"", None),
        (b"\x41" * 40, None),
    ],
)
def test_source_port(packet: bytes, expected: tuple[int, int, int] | None) -> None:
    assert source_port(packet) == expected


def test_names_fit_the_kernel_and_differ_between_muxes() -> None:
    one, two = names("mux1"), names("mux2")
    assert one != two
    assert len(one.device) <= 15
    assert one.device.startswith("vipmux-probe")
    assert one.mark & ~0xFFF == 0x76700000


@pytest.mark.parametrize(
    ("rp_filter", "way", "why"),
    [
        (1, "eth0", None),
        (1, "lb-mux1", "leads by lb-mux1 and net.ipv4.conf.eth0.rp_filter is 1 (strict); set it to 2 or 0"),
        (1, None, "leads nowhere and net.ipv4.conf.eth0.rp_filter is 1 (strict); set it to 2 or 0"),
        (2, "lb-mux1", None),
        (2, None, "there is no route to 203.0.113.10 and net.ipv4.conf.eth0.rp_filter is 2 (loose); add one"),
    ],
)
def test_answers_that_the_reverse_path_filter_drops(rp_filter: int, way: str | None, why: str | None) -> None:
    reason = deaf(VIP, "eth0", rp_filter, way)
    assert reason is None if why is None else why in (reason or "")
