# SPDX-License-Identifier: Apache-2.0
"""The IPv6 header and its extensions, in IPv6. RFC 8200, 2473, 6040, 6438."""

from __future__ import annotations

from tests.packets.build import extension, icmp, ipv6, tcp, udp
from tests.packets.world import DNS6, MUX6, NET6, WEB6, Row, drops, forwards, to

HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
NOT_OURS = "2001:db8:e::1"
SYN = ipv6(tcp())

HEADER = (
    forwards("an IPv6 SYN is forwarded", SYN, WEB6),
    forwards("IPv6 UDP is forwarded", ipv6(udp()), DNS6),
    forwards("an address of an IPv6 prefix is a VIP", ipv6(tcp(), to="2001:db8:f::ffff:1"), NET6),
    drops("an IPv6 packet to another address is passed", ipv6(tcp(), to=NOT_OURS), "not_vip"),
    drops("thirty-nine bytes are no IPv6 header", SYN[:39], "bad_header"),
    drops("a payload length beyond the frame is truncated", ipv6(tcp(), length=21), "truncated"),
    drops("a payload length that cuts off the ports is malformed", ipv6(tcp(), length=19), "bad_header"),
    drops("a payload length of zero is malformed", ipv6(tcp(), length=0), "bad_header"),
    forwards("padding behind an IPv6 packet is trimmed", SYN + bytes(9), WEB6, leaves=SYN),
    forwards("hop limit 2 is forwarded with 1", ipv6(tcp(), hops=2), WEB6),
    drops("a capture that cut an IPv6 packet is truncated", SYN[:50], "truncated", wire_length=len(SYN)),
)

SOURCES = (
    *(
        drops(f"source {source} is no IPv6 client", ipv6(tcp(), source=source), "bad_source")
        for source in ("::", "::1", "ff02::1", "2001:db8:f::10")
    ),
    drops("an IPv6 link-local source is no client", ipv6(tcp(), source="fe80::1"), "link_local_source"),
    drops("source febf:: is link-local", ipv6(udp(), source="febf::1"), "link_local_source"),
    forwards("source fec0:: is forwarded", ipv6(tcp(), source="fec0::1"), WEB6),
    forwards("source fe00:: is forwarded", ipv6(tcp(), source="fe00::1"), WEB6),
    forwards("source fd00:: is forwarded", ipv6(tcp(), source="fd00::1"), WEB6),
    drops("an IPv4-mapped source is no client", ipv6(tcp(), source="::ffff:192.0.2.7"), "mapped_source"),
    forwards("source 64:ff9b:: is forwarded", ipv6(tcp(), source="64:ff9b::1"), WEB6),
    forwards("source ::fffe:0:1 is forwarded", ipv6(tcp(), source="::fffe:0:1"), WEB6),
    drops("the MUX's own IPv6 address is no client", ipv6(tcp(), source=str(MUX6)), "own_source"),
    drops("the chosen IPv6 backend is no client", ipv6(tcp(), source=WEB6), "hairpin"),
    forwards("another IPv6 backend is a client", ipv6(tcp(), source=DNS6), WEB6),
)


def extended(*extensions: tuple[int, bytes]) -> bytes:
    return ipv6(tcp("A", b"data"), extensions=extensions)


def first(claim: str, packet: bytes, backend: str) -> Row:
    """The first fragment of a datagram, which has the ports."""
    return Row(claim, packet, "fragment", (to(backend, packet, flow=SYN),))


EXTENSIONS = (
    forwards("a hop-by-hop header is stepped over", extended((HOP, extension())), WEB6),
    forwards("a routing header is stepped over", extended((ROUTING, extension(2, fill=0))), WEB6),
    drops(
        "a routing header with segments left is not followed",
        extended((ROUTING, bytes([2, 0, 1]) + bytes(20))),
        "routing_header",
    ),
    drops(
        "a segment routing header with segments left is not followed",
        extended((HOP, extension()), (ROUTING, bytes([2, 4, 1, 0]) + bytes(19))),
        "routing_header",
    ),
    forwards("destination options are stepped over", extended((DESTINATION, extension(1))), WEB6),
    forwards(
        "a chain of extension headers is stepped over",
        extended(
            (HOP, extension()), (DESTINATION, extension(3)), (ROUTING, extension(fill=0)), (DESTINATION, extension())
        ),
        WEB6,
    ),
    forwards("eight extension headers are stepped over", extended(*((DESTINATION, extension()),) * 8), WEB6),
    drops("nine extension headers are too many", extended(*((DESTINATION, extension()),) * 9), "bad_header"),
    drops(
        "an extension header that ends behind the packet is malformed",
        ipv6(tcp(), extensions=((HOP, bytes([200]) + bytes(6)),)),
        "bad_header",
    ),
    drops("an extension header cut in two is malformed", ipv6(tcp(), extensions=((HOP, b"\0"),))[:42], "truncated"),
    drops(
        "an extension header that the payload length cuts in two is malformed",
        ipv6(tcp(), extensions=((HOP, extension()),), length=4),
        "bad_header",
    ),
    first(
        "the first IPv6 fragment goes to its flow's backend", extended((FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 17]))), WEB6
    ),
    drops(
        "a later IPv6 fragment whose first did not come is alone",
        extended((FRAGMENT, bytes([0, 5, 0, 0, 0, 0, 18]))),
        "fragment_alone",
    ),
    drops(
        "a first fragment whose headers go on in the next tells no flow (RFC 7112)",
        ipv6(tcp(), extensions=((FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 19])), (DESTINATION, bytes([9]) + bytes(6)))),
        "bad_fragment",
    ),
    drops(
        "a first IPv6 fragment without all of the TCP header tells no flow",
        ipv6(tcp(), extensions=((FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 20])),), length=24),
        "bad_fragment",
    ),
    drops(
        "a ping over IPv6 in fragments gets no answer",
        ipv6(icmp(128, data=bytes(64), six=True), extensions=((FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 21])),)),
        "icmp",
    ),
    forwards("an atomic fragment is a whole packet", extended((FRAGMENT, bytes([0, 0, 0, 0, 0, 0, 22]))), WEB6),
    forwards("reserved bits of an atomic fragment say nothing", extended((FRAGMENT, b"\xff\0\6\0\0\0\x09")), WEB6),
    forwards(
        "an atomic fragment behind and before other extensions is a whole packet",
        extended((HOP, extension()), (FRAGMENT, bytes(7)), (DESTINATION, extension(1))),
        WEB6,
    ),
    drops(
        "a fragment that only the last bit of its offset betrays begins within a TCP header",
        extended((FRAGMENT, b"\0\0\x08" + bytes(4))),
        "bad_fragment",
    ),
    drops(
        "a fragment header that the payload length cuts in two is malformed",
        ipv6(tcp(), extensions=((FRAGMENT, bytes(7)),), length=7),
        "bad_header",
    ),
    drops(
        "an atomic fragment behind eight extension headers is too many",
        extended(*((DESTINATION, extension()),) * 8, (FRAGMENT, bytes(7))),
        "bad_header",
    ),
    first(
        "a first fragment behind other extensions goes to its flow's backend",
        extended((HOP, extension()), (FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 23]))),
        WEB6,
    ),
    drops(
        "the service is that of the ports behind the extensions",
        ipv6(udp(dport=54), extensions=((HOP, extension()),)),
        "no_service",
    ),
)

OUTER = (
    *(
        forwards(f"traffic class {value:#04x} is copied to the outer header", ipv6(tcp(), traffic_class=value), WEB6)
        for value in (0x01, 0x02, 0x03, 0xB8, 0xFF)
    ),
    forwards("the flow label outside is made of the flow, not copied", ipv6(tcp(), flow_label=0xABCDE), WEB6),
    forwards("another flow has another flow label", ipv6(tcp(sport=40_001)), WEB6),
)

ROWS = (*HEADER, *SOURCES, *EXTENSIONS, *OUTER)
