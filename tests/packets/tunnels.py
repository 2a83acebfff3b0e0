# SPDX-License-Identifier: Apache-2.0
"""Tunnels other than of a packet's own family: the other one, and UDP (GUE). MTU 1500 unless a row says so."""

from __future__ import annotations

from lb.model import Encap
from tests.model.tunnel import segments
from tests.packets.build import ipv4, ipv6, tcp, udp
from tests.packets.size import data, told
from tests.packets.world import WEB, WEB6, Row, forwards, to

GUE = Encap.GUE
IN6, IN4, OVER, OVER6, UNDER = "203.0.113.210", "2001:db8:f:1::10", "203.0.113.211", "203.0.113.212", "2001:db8:f:1::11"
UNDER4 = "2001:db8:f:1::12"


def cut(claim: str, packet: bytes, backend: str, size: int, encap: Encap = Encap.IPIP) -> Row:
    """A super-packet that leaves as segments of ``size`` bytes of payload."""
    parts = segments(packet, size)
    return Row(claim, packet, "segmented", tuple(to(backend, part, 7 + n, encap=encap) for n, part in enumerate(parts)))


ROWS = (
    forwards("IPv4 goes in IPv6", ipv4(tcp(), to=IN6), WEB6),
    forwards("IPv4 in IPv6 keeps DSCP and ECN", ipv4(tcp(), to=IN6, tos=0xB9), WEB6),
    forwards("IPv4 without DF in IPv6", ipv4(tcp(), to=IN6, df=False), WEB6),
    forwards("IPv4 with options in IPv6", ipv4(tcp(), to=IN6, options=b"\1" * 8), WEB6),
    forwards("IPv6 goes in IPv4", ipv6(tcp(), to=IN4), WEB),
    forwards("IPv6 in IPv4 keeps DSCP and ECN", ipv6(tcp(), to=IN4, traffic_class=0xB9, flow_label=0xFFFFF), WEB),
    forwards("IPv4 that fits exactly in IPv6", ipv4(tcp("A", data(1500 - 40 - 40)), to=IN6), WEB6),
    told("IPv4 one byte too long for IPv6", ipv4(tcp("A", data(1500 - 40 - 39)), to=IN6), 1460),
    forwards("IPv6 that fits exactly in IPv4", ipv6(tcp("A", data(1500 - 20 - 60)), to=IN4), WEB),
    told("IPv6 one byte too long for IPv4", ipv6(tcp("A", data(1500 - 20 - 59)), to=IN4), 1480),
    cut("a super-packet of IPv4 is cut for IPv6", ipv4(tcp("PA", data(4000)), to=IN6), WEB6, 1500 - 80),
    cut("a super-packet of IPv6 is cut for IPv4", ipv6(tcp("PA", data(4000)), to=IN4), WEB, 1500 - 80),
    forwards("GUE carries TCP", ipv4(tcp(), to=OVER), WEB, encap=GUE),
    forwards("GUE carries UDP", ipv4(udp(), to=OVER), WEB, encap=GUE),
    forwards("GUE keeps DSCP and ECN", ipv4(tcp(), to=OVER, tos=0xB9), WEB, encap=GUE),
    forwards("GUE without DF gets an ID", ipv4(tcp(), to=OVER, df=False), WEB, encap=GUE),
    forwards("another flow has another port", ipv4(tcp(sport=40_001), to=OVER), WEB, encap=GUE),
    forwards(
        "GUE finishes a checksum left to the NIC",
        ipv4(tcp(check="partial"), to=OVER),
        WEB,
        encap=GUE,
        leaves=ipv4(tcp(), to=OVER),
        partial=True,
    ),
    forwards("GUE in IPv6 carries IPv4", ipv4(tcp(), to=OVER6), WEB6, encap=GUE),
    forwards("GUE in IPv6 carries IPv6", ipv6(tcp(), to=UNDER), WEB6, encap=GUE),
    forwards("GUE in IPv4 carries IPv6", ipv6(tcp(), to=UNDER4, traffic_class=3), WEB, encap=GUE),
    forwards("what fits exactly in GUE", ipv4(tcp("A", data(1500 - 32 - 40)), to=OVER), WEB, encap=GUE),
    told("one byte more is too big for GUE", ipv4(tcp("A", data(1500 - 32 - 39)), to=OVER), 1468),
    forwards("what fits exactly in GUE of IPv6", ipv6(tcp("A", data(1500 - 52 - 60)), to=UNDER), WEB6, encap=GUE),
    told("one byte more is too big for GUE of IPv6", ipv6(tcp("A", data(1500 - 52 - 59)), to=UNDER), 1448),
    cut("a super-packet is cut for GUE", ipv4(tcp("PA", data(4000)), to=OVER), WEB, 1500 - 32 - 40, GUE),
    cut("a super-packet of IPv6 is cut for GUE", ipv6(tcp("PA", data(4000)), to=UNDER), WEB6, 1500 - 52 - 60, GUE),
)
