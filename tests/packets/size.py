# SPDX-License-Identifier: Apache-2.0
"""Packets as large as the way allows, larger, and TCP super-packets that are cut. MTU 1500 unless a row says so."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from tests.model.fragments import pieces
from tests.model.tunnel import segments
from tests.packets.build import CLIENT, CLIENT6, icmp, ipv4, ipv6, tcp, udp
from tests.packets.world import DNS, FIRST_ID, WEB, WEB6, Row, forwards, to


def data(length: int) -> bytes:
    """Bytes that differ everywhere, so that a piece in the wrong place shows."""
    return b"".join(i.to_bytes(4, "big") for i in range(length // 4 + 1))[:length]


def cut(claim: str, packet: bytes, backend: str, size: int) -> Row:
    """A super-packet that leaves as segments of ``size`` bytes of payload."""
    parts = segments(packet, size)
    return Row(claim, packet, "segmented", tuple(to(backend, part, 7 + n) for n, part in enumerate(parts)))


def fragmented(claim: str, packet: bytes, backend: str, *, reason: str = "forwarded") -> Row:
    """Leaves as fragments that fit, each in a tunnel."""
    return Row(
        claim, packet, reason, tuple(to(backend, part, FIRST_ID + n) for n, part in enumerate(pieces(packet, 1480)))
    )


def told(claim: str, packet: bytes, fits: int) -> Row:
    """Is not forwarded, and the sender is told how long a packet may be; see the rules of RFC 1191 and RFC 4443."""
    if packet[0] >> 4 == 6:
        answer = ipv6(icmp(2, 0, fits, packet[:1232], six=True), source=str(IPv6Address(packet[24:40])), to=CLIENT6)
    else:
        vip = str(IPv4Address(packet[16:20]))
        answer = ipv4(icmp(3, 4, fits, packet[:548]), source=vip, to=CLIENT, tos=0xC0, df=False, ident=FIRST_ID)
    return Row(claim, packet, "frag_needed", (answer,))


#: Payload of a TCP segment that fits: 1500 less outer header, inner header, TCP header.
FITS, FITS6 = 1500 - 20 - 20 - 20, 1500 - 40 - 40 - 20

FULL = ipv4(tcp("A", data(FITS)))
FIRST = ipv4(udp(data(1472), length=4000), df=False, mf=True, ident=0x3001)
#: RFC 2113; every fragment has it.
ROUTER_ALERT = b"\x94\4\0\0"

EXACT = (
    forwards("a packet that fits exactly is forwarded", FULL, WEB),
    forwards("an IPv6 packet that fits exactly is forwarded", ipv6(tcp("A", data(FITS6))), WEB6),
    told("one byte more is too big", ipv4(tcp("A", data(FITS + 1))), 1480),
    fragmented("one byte more goes in two fragments where DF is clear", ipv4(tcp("A", data(FITS + 1)), df=False), WEB),
    fragmented("a first fragment that does not fit goes in two", FIRST, DNS, reason="fragment"),
    fragmented(
        "of a packet in fragments later ones have the options alone that are to be copied",
        ipv4(udp(data(1470)), df=False, options=ROUTER_ALERT + b"\7\7\4\0\0\0\0\0"),
        DNS,
    ),
    told(
        "a first fragment that does not fit and has DF is too big",
        ipv4(udp(data(1472), length=4000), mf=True, ident=0x3002),
        1480,
    ),
    told("one byte more is too big in IPv6", ipv6(tcp("A", data(FITS6 + 1))), 1460),
    told("a full packet of the client's link is too big", ipv4(tcp("A", data(1460))), 1480),
    told("a UDP packet above the MTU is too big", ipv4(udp(data(1473))), 1480),
    forwards("a UDP packet that fits exactly is forwarded", ipv4(udp(data(1452))), DNS),
    forwards("a service's own MTU counts", ipv4(tcp("A", data(8000)), to="203.0.113.200"), WEB),
    told("a service's own MTU ends too", ipv4(tcp("A", data(8950)), to="203.0.113.200"), 8980),
    forwards("padding does not count", FULL + bytes(40), WEB, leaves=FULL),
)

SUPER = (
    cut("a super-packet is cut into packets that fit", ipv4(tcp("A", data(4000))), WEB, FITS),
    cut("one byte above the MTU is a super-packet", ipv4(tcp("A", data(1461))), WEB, FITS),
    cut("a super-packet of whole segments has no empty one", ipv4(tcp("A", data(FITS * 3))), WEB, FITS),
    cut("PSH and FIN stay with the last segment", ipv4(tcp("FPA", data(3000))), WEB, FITS),
    cut("CWR stays with the first segment", ipv4(tcp("CPA", data(3000))), WEB, FITS),
    cut("ECE is in every segment", ipv4(tcp("EA", data(3000)), tos=2), WEB, FITS),
    cut("without DF every segment gets an ID inside and outside", ipv4(tcp("A", data(4000)), df=False), WEB, FITS),
    cut("IDs of segments wrap", ipv4(tcp("A", data(4000)), ident=0xFFFF), WEB, FITS),
    cut("sequence numbers wrap", ipv4(tcp("A", data(4000), seq=0xFFFFFFF0)), WEB, FITS),
    cut("TCP options are in every segment", ipv4(tcp("A", data(4000), options=b"\1" * 12)), WEB, FITS - 12),
    cut("IP options are in every segment", ipv4(tcp("A", data(4000)), options=b"\1" * 8), WEB, FITS - 8),
    cut("a partial checksum does not matter to segments", ipv4(tcp("A", data(4000), check="partial")), WEB, FITS),
    cut("the largest IPv4 packet there is gets through", ipv4(tcp("PA", data(65535 - 40))), WEB, FITS),
    cut("a super-packet of IPv6 is cut", ipv6(tcp("PA", data(4000))), WEB6, FITS6),
    cut("the largest IPv6 packet there is gets through", ipv6(tcp("PA", data(65535 - 20))), WEB6, FITS6),
    cut("an urgent pointer counts from each segment", ipv4(tcp("UA", data(5000), urgent=3000)), WEB, FITS),
    cut("an urgent pointer that ends with a segment", ipv4(tcp("UA", data(5000), urgent=FITS)), WEB, FITS),
    cut(
        "a super-packet with a larger MTU is cut to that",
        ipv4(tcp("A", data(20_000)), to="203.0.113.200"),
        WEB,
        9000 - 60,
    ),
)

#: Longer than any link carries, and still no NIC made them of several packets.
NOT_SUPER = (
    told("a large packet whose checksum is wrong is not made right", ipv4(tcp("A", data(4000), check=0x1234)), 1480),
    told("a large IPv6 packet whose checksum is wrong is not made right", ipv6(tcp("A", data(4000), check=1)), 1460),
    told("one byte above the MTU with a wrong checksum is too big", ipv4(tcp("A", data(1461), check=0)), 1480),
    told("a large packet that opens a connection is not cut", ipv4(tcp("S", data(4000))), 1480),
    told("a large packet that answers one is not cut", ipv4(tcp("SA", data(4000))), 1480),
    told("a large packet that resets a connection is not cut", ipv4(tcp("RA", data(4000))), 1480),
    told("a large UDP packet is not cut", ipv4(udp(data(4000))), 1480),
)

ROWS = (*EXACT, *SUPER, *NOT_SUPER)
