# SPDX-License-Identifier: Apache-2.0
"""The IPv4 header: what is refused, what is stepped over, what becomes of fields. RFC 791, 1812, 2003, 6040, 6864."""

from __future__ import annotations

from tests.packets.build import ipv4, ping, raw, tcp, udp
from tests.packets.world import DNS, FIRST_ID, MUX, WEB, Row, drops, forwards, to

SYN = ipv4(tcp())
NOT_OURS = "198.51.100.1"
RECORD_ROUTE = bytes([7, 7, 4, 0, 0, 0, 0, 0])

HEADER = (
    forwards("a plain SYN is forwarded", SYN, WEB),
    drops("a packet to another address is passed", ipv4(tcp(), to=NOT_OURS), "not_vip"),
    drops("an address outside every prefix is passed", ipv4(tcp(), to="203.0.114.10"), "not_vip"),
    drops("version 5 is no IP", ipv4(tcp(), version=5), "not_ip"),
    drops("a header length below five words is malformed", ipv4(tcp(), ihl=4), "bad_header"),
    drops("a header length of zero is malformed", ipv4(tcp(), ihl=0), "bad_header"),
    drops("a header that ends behind the frame is malformed", ipv4(udp(b""), ihl=15)[:40], "bad_header"),
    drops("nineteen bytes are no IPv4 header", SYN[:19], "bad_header"),
    drops("a header alone, to another address, is passed", ipv4(tcp(), to=NOT_OURS)[:20], "not_vip"),
    drops("a total length below the header's is malformed", ipv4(tcp(), total=19), "bad_header"),
    drops("a total length of zero is malformed", ipv4(tcp(), total=0), "bad_header"),
    drops("a total length beyond the frame is truncated", ipv4(tcp(), total=41), "truncated"),
    drops("a total length that cuts off the ports is malformed", ipv4(tcp(), total=23), "bad_header"),
    forwards("padding behind the packet is trimmed", SYN + bytes(6), WEB, leaves=SYN),
    forwards("a lot of padding is trimmed", SYN + b"\xff" * 1400, WEB, leaves=SYN),
    forwards("options are stepped over and kept", ipv4(tcp(), options=RECORD_ROUTE), WEB),
    forwards("forty bytes of options are stepped over", ipv4(tcp(), options=b"\1" * 40), WEB),
    drops("a wrong header checksum is dropped", ipv4(tcp(), check=0x1111), "bad_checksum"),
    drops("a header checksum of zero is dropped", ipv4(tcp(), check=0), "bad_checksum"),
    drops("a wrong checksum over options is dropped", ipv4(tcp(), options=b"\1" * 4, check=2), "bad_checksum"),
    drops("a wrong checksum to another address is the kernel's", ipv4(tcp(), to=NOT_OURS, check=2), "not_vip"),
    drops("a wrong length to another address is the kernel's", ipv4(tcp(), to=NOT_OURS, total=9000), "not_vip"),
    drops("a capture that cut the packet is truncated", SYN[:30], "truncated", wire_length=len(SYN)),
    drops(
        "a capture that cut a packet to another address is truncated",
        ipv4(tcp(), to=NOT_OURS)[:30],
        "truncated",
        wire_length=40,
    ),
    drops("a frame cut to nothing is truncated", b"", "truncated", wire_length=40),
)

NO_CLIENTS = ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "224.0.0.1", "239.255.255.255")

SOURCES = (
    *(drops(f"source {source} is no client", ipv4(tcp(), source=source), "bad_source") for source in NO_CLIENTS),
    drops("source 255.255.255.255 is no client", ipv4(tcp(), source="255.255.255.255"), "bad_source"),
    drops("a source equal to the destination is a LAND attack", ipv4(tcp(), source="203.0.113.10"), "bad_source"),
    drops("a LAND attack by UDP is no client either", ipv4(udp(), source="203.0.113.10"), "bad_source"),
    drops("a bad source to another address is the kernel's", ipv4(tcp(), to=NOT_OURS, source="0.0.0.0"), "not_vip"),
    drops("a link-local source is no client", ipv4(tcp(), source="169.254.1.1"), "link_local_source"),
    drops("source 169.254.255.255 is link-local", ipv4(udp(), source="169.254.255.255"), "link_local_source"),
    forwards("source 169.253.1.1 is a client", ipv4(tcp(), source="169.253.1.1"), WEB),
    forwards("source 169.255.1.1 is a client", ipv4(tcp(), source="169.255.1.1"), WEB),
    drops("source 240.0.0.1 is reserved", ipv4(tcp(), source="240.0.0.1"), "reserved_source"),
    drops("source 255.255.255.254 is reserved", ipv4(tcp(), source="255.255.255.254"), "reserved_source"),
    drops(
        "a link-local source to another address is the kernel's",
        ipv4(tcp(), to=NOT_OURS, source="169.254.1.1"),
        "not_vip",
    ),
    drops("the MUX's own address is no client", ipv4(tcp(), source=str(MUX)), "own_source"),
    drops("the chosen backend is no client: the tunnel would come back", ipv4(tcp(), source=WEB), "hairpin"),
    forwards("another backend is a client", ipv4(tcp(), source=DNS), WEB),
    forwards("another VIP is a client", ipv4(tcp(), source="203.0.113.11"), WEB),
    forwards("a private source is a client", ipv4(tcp(), source="10.9.9.9"), WEB),
    forwards("source 223.255.255.255 is a client", ipv4(tcp(), source="223.255.255.255"), WEB),
)


def routed(kind: int, pointer: int, *, before: bytes = b"") -> bytes:
    """A source route of two stations."""
    option = before + bytes([kind, 11, pointer]) + bytes([198, 51, 100, 1, 198, 51, 100, 2])
    return ipv4(tcp(), options=option.ljust(-(-len(option) // 4) * 4, b"\0"))


ROUTES = (
    drops("a loose source route is not followed", routed(131, 4), "source_route"),
    drops("a strict source route is not followed", routed(137, 4), "source_route"),
    drops("a source route with its last station left is not followed", routed(131, 8), "source_route"),
    drops(
        "a source route behind other options is found", routed(137, 4, before=RECORD_ROUTE[:7] + b"\1"), "source_route"
    ),
    drops("a source route with a pointer at its very end is not used up", routed(131, 11), "source_route"),
    forwards("a source route that is used up is forwarded", routed(131, 12), WEB),
    forwards("what lies behind the end of options is no source route", routed(131, 4, before=b"\0"), WEB),
    forwards("an option that is cut off is the host's to judge", ipv4(tcp(), options=b"\1\1\1\x83"), WEB),
    forwards("an option of length zero is the host's to judge", ipv4(tcp(), options=b"\x44\0\x83\x03"), WEB),
    drops("an option that names no station is used up", ipv4(tcp(), options=b"\x83\3\4\0", mf=True), "bad_fragment"),
)


def first(claim: str, packet: bytes, backend: str) -> Row:
    """The first fragment of a datagram, which has the ports."""
    return Row(claim, packet, "fragment", (to(backend, packet),))


FRAGMENTS = (
    first(
        "a first fragment goes to its flow's backend", ipv4(tcp("A", bytes(60)), df=False, mf=True, ident=0x2001), WEB
    ),
    first("a first fragment with DF goes like one without", ipv4(tcp("A", bytes(60)), mf=True, ident=0x2002), WEB),
    first(
        "a first fragment of UDP may be much shorter than its datagram",
        ipv4(udp(length=4000), df=False, mf=True, ident=0x2003),
        DNS,
    ),
    drops(
        "a later fragment whose first did not come is alone",
        ipv4(udp(), df=False, mf=True, offset=8, ident=0x2004),
        "fragment_alone",
    ),
    drops(
        "a last fragment whose first did not come is alone",
        ipv4(tcp(), df=False, offset=185, ident=0x2005),
        "fragment_alone",
    ),
    drops(
        "a fragment that is not the last has whole words of eight bytes",
        ipv4(tcp("A", bytes(61)), df=False, mf=True, ident=0x2006),
        "bad_fragment",
    ),
    drops(
        "a fragment too short for ports tells no flow",
        ipv4(udp(b""), df=False, mf=True, total=24, ident=0x2007),
        "bad_fragment",
    ),
    drops(
        "a first fragment has all of the TCP header",
        ipv4(raw(6, tcp().data[:16]), mf=True, ident=0x2008),
        "bad_fragment",
    ),
    drops("a first fragment has all options of TCP", ipv4(tcp(offset=15), mf=True, ident=0x2009), "bad_fragment"),
    drops("a fragment that begins within a TCP header", ipv4(tcp(), df=False, offset=1, ident=0x200A), "bad_fragment"),
    drops("a fragment without payload", ipv4(raw(17, b""), df=False, offset=9, ident=0x200B), "bad_fragment"),
    drops(
        "a fragment that ends beyond 64 KiB", ipv4(udp(bytes(24)), df=False, offset=8190, ident=0x200C), "bad_fragment"
    ),
    drops("a ping in fragments gets no answer", ipv4(ping(bytes(64)), df=False, mf=True, ident=0x200D), "icmp"),
    drops("a later fragment of a ping", ipv4(ping(bytes(64)), df=False, offset=9, ident=0x200E), "icmp"),
    drops(
        "a fragment of another protocol",
        ipv4(raw(47, bytes(24)), df=False, mf=True, ident=0x200F),
        "unsupported_protocol",
    ),
    drops("a first fragment to a closed port", ipv4(udp(dport=54), df=False, mf=True, ident=0x2010), "no_service"),
    drops("a fragment at the end of its hops", ipv4(udp(), df=False, offset=9, ttl=1, ident=0x2011), "ttl_expired"),
)


def marked(tos: int) -> bytes:
    return ipv4(tcp(), tos=tos)


TTL = (
    forwards("TTL 2 is forwarded with TTL 1", ipv4(tcp(), ttl=2), WEB),
    forwards("TTL 255 is forwarded with TTL 254", ipv4(tcp(), ttl=255), WEB),
    drops("TTL 1 to another address is the kernel's", ipv4(tcp(), to=NOT_OURS, ttl=1), "not_vip"),
)

OUTER = (
    *(
        forwards(f"ECN {name} is copied to the outer header", marked(tos), WEB)
        for name, tos in (("not-ECT", 0), ("ECT(1)", 1), ("ECT(0)", 2), ("CE", 3))
    ),
    *(forwards(f"DSCP {dscp} is copied to the outer header", marked(dscp << 2 | 1), WEB) for dscp in (8, 46, 63)),
    forwards("DF inside gives DF and ID zero outside", ipv4(tcp(), df=True, ident=99), WEB),
    Row(
        "without DF the outer header gets an ID of its own",
        ipv4(udp(), df=False, ident=99),
        "forwarded",
        (to(DNS, ipv4(udp(), df=False, ident=99), ident=FIRST_ID),),
    ),
    forwards("TTL outside does not depend on that inside", ipv4(tcp(), ttl=3), WEB),
)

ROWS = (*HEADER, *SOURCES, *ROUTES, *FRAGMENTS, *TTL, *OUTER)
