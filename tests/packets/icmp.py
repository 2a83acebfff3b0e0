# SPDX-License-Identifier: Apache-2.0
"""ICMP and ICMPv6: errors about a flow of a VIP, and what the MUX answers. RFC 792, 1122, 1812, 4443, 4884, 9293."""

from __future__ import annotations

from lb.model import Unserved
from tests.packets.build import CLIENT, CLIENT6, Segment, extension, icmp, ipv4, ipv6, ping, raw, tcp, udp
from tests.packets.size import data
from tests.packets.world import DNS, DNS6, FIRST_ID, LOWER, MUX, MUX6, NET6, RANGE, WEB, WEB6, Row, drops, to

ROUTER, ROUTER6 = "198.51.100.254", "2001:db8:e::254"
VIP, VIP6 = "203.0.113.10", "2001:db8:f::10"
BARE = "203.0.113.200"  #: a VIP of which no service takes all ports
HOP, FRAGMENT, DESTINATION = 0, 44, 60

#: What the VIP sent, and a packet of the same flow from its client.
SENT = ipv4(tcp("A", data(1400), sport=80, dport=40_000), source=VIP, to=CLIENT)
SENT6 = ipv6(tcp("A", data(1400), sport=80, dport=40_000), source=VIP6, to=CLIENT6)
SENT_DNS6 = ipv6(udp(data(1400), sport=53, dport=40_000), source=VIP6, to=CLIENT6)
CAME6 = ipv6(tcp())


def error(
    quoted: bytes,
    kind: int = 3,
    code: int = 4,
    rest: int = 1300,
    *,
    about: str = VIP,
    ttl: int = 64,
    options: bytes = b"",
) -> bytes:
    """From a router on the way to the client."""
    return ipv4(icmp(kind, code, rest, quoted), source=ROUTER, to=about, ttl=ttl, options=options)


def error6(
    quoted: bytes, kind: int = 2, code: int = 0, rest: int = 1300, *, about: str = VIP6, hops: int = 64
) -> bytes:
    return ipv6(icmp(kind, code, rest, quoted, six=True), source=ROUTER6, to=about, hops=hops)


def reaches(claim: str, packet: bytes, backend: str, *, flow: bytes | None = None) -> Row:
    """Goes to a backend as it came; ``flow``: of IPv6, a packet of the flow that it is about."""
    return Row(claim, packet, "icmp_error", (to(backend, packet, flow=flow),))


def sent(source: str, *, port: int = 80, options: bytes = b"", mf: bool = False, offset: int = 0) -> bytes:
    return ipv4(
        tcp("A", data(64), sport=port, dport=40_000), source=source, to=CLIENT, options=options, mf=mf, offset=offset
    )


def sent6(*extensions: tuple[int, bytes]) -> bytes:
    return ipv6(tcp("A", data(64), sport=80, dport=40_000), source=VIP6, to=CLIENT6, extensions=extensions)


KINDS = (
    *(
        reaches(f"ICMP {name} reaches the flow's backend", error(SENT[:28], kind, code, 0), WEB)
        for name, kind, code in (
            ("net unreachable", 3, 0),
            ("port unreachable", 3, 3),
            ("administratively prohibited", 3, 13),
            ("time exceeded", 11, 0),
            ("parameter problem", 12, 0),
        )
    ),
    *(
        reaches(f"ICMPv6 {name} reaches the flow's backend", error6(SENT6[:48], kind, code, 0), WEB6, flow=CAME6)
        for name, kind, code in (("unreachable", 1, 4), ("time exceeded", 3, 0), ("parameter problem", 4, 1))
    ),
    *(
        drops(f"ICMP {name} to a VIP concerns no flow", error(SENT[:28], kind, code), "icmp")
        for name, kind, code in (("source quench", 4, 0), ("redirect", 5, 1), ("of an unknown type", 44, 0))
    ),
    *(
        drops(f"ICMP {name} to a VIP is not answered", ipv4(icmp(kind, data=bytes(12))), "icmp")
        for name, kind in (("echo reply", 0), ("timestamp", 13), ("address mask", 17))
    ),
    *(
        drops(f"ICMPv6 {name} to a VIP is not for us", ipv6(icmp(kind, data=bytes(16), six=True)), "icmp")
        for name, kind in (
            ("echo reply", 129),
            ("listener query", 130),
            ("router solicitation", 133),
            ("neighbour solicitation", 135),
            ("redirect", 137),
            ("type 5", 5),
            ("type 0", 0),
        )
    ),
)

QUOTES = (
    reaches("frag-needed with eight bytes quoted reaches the flow's backend", error(SENT[:28]), WEB),
    reaches("frag-needed with all that fits quoted reaches it", error(SENT[:548]), WEB),
    reaches("frag-needed with an MTU below 68 is the host's to ignore", error(SENT[:28], rest=20), WEB),
    reaches("an error in a header with options reaches it", error(SENT[:28], options=b"\1" * 8), WEB),
    reaches("options in the quoted header are stepped over", error(sent(VIP, options=b"\1" * 40)[:68]), WEB),
    reaches("a quoted first fragment tells its flow", error(sent(VIP, mf=True)[:28]), WEB),
    reaches(
        "an RFC 4884 extension is carried byte for byte",
        error(SENT[:128] + b"\x20\0\x12\x34" + bytes([0, 8, 1, 1]) + b"mpls", 11, 0, 32 << 16),
        WEB,
    ),
    reaches("too-big with eight bytes quoted reaches the flow's backend", error6(SENT6[:48]), WEB6, flow=CAME6),
    reaches("too-big with all that fits quoted reaches it", error6(SENT6[:1232]), WEB6, flow=CAME6),
    reaches("too-big about UDP reaches it", error6(SENT_DNS6[:48]), DNS6, flow=ipv6(udp())),
    reaches(
        "extension headers in the quoted header are stepped over",
        error6(sent6((HOP, extension()), (DESTINATION, extension(1)))[:72]),
        WEB6,
        flow=CAME6,
    ),
    reaches(
        "a quoted first fragment of IPv6 tells its flow",
        error6(sent6((FRAGMENT, bytes([0, 0, 1, 0, 0, 0, 9])))[:56]),
        WEB6,
        flow=CAME6,
    ),
    drops("seven bytes quoted are too few", error(SENT[:27]), "bad_icmp"),
    drops("ports alone quoted are too few", error(SENT[:24]), "bad_icmp"),
    drops("seven bytes quoted behind options are too few", error(sent(VIP, options=b"\1" * 8)[:35]), "bad_icmp"),
    drops("half a header quoted is too little", error(SENT[:19]), "bad_icmp"),
    drops("an error that quotes nothing is dropped", error(b""), "bad_icmp"),
    drops("ICMP of seven bytes is dropped", ipv4(raw(1, bytes([3, 4, 0, 0, 0, 0, 0]))), "bad_icmp"),
    drops("ICMP of no length is dropped", ipv4(raw(1, b"")), "bad_icmp"),
    drops("a quoted later fragment tells no flow", error(sent(VIP, offset=8)[:28]), "bad_icmp"),
    drops("a quoted header of version 6 tells none", error(b"\x60" + SENT[1:28]), "bad_icmp"),
    drops("a quoted header of four words tells none", error(b"\x44" + SENT[1:28]), "bad_icmp"),
    drops("a quoted ping tells none", error(ipv4(ping(), source=VIP, to=CLIENT)), "bad_icmp"),
    drops("seven bytes quoted of IPv6 are too few", error6(SENT6[:47]), "bad_icmp"),
    drops("an error that quotes no IPv6 is dropped", error6(b""), "bad_icmp"),
    drops(
        "a quoted later fragment of IPv6 tells no flow",
        error6(sent6((FRAGMENT, bytes([0, 5, 0, 0, 0, 0, 9])))),
        "bad_icmp",
    ),
    drops("nine quoted extension headers are too many", error6(sent6(*((DESTINATION, extension()),) * 9)), "bad_icmp"),
    drops("a quoted extension header that is cut off tells none", error6(sent6((HOP, extension()))[:44]), "bad_icmp"),
    drops("ICMPv6 in IPv4 tells none", ipv4(icmp(2, 0, 1300, SENT6[:48], six=True), source=ROUTER), "bad_icmp"),
    drops("ICMP in IPv6 tells none", ipv6(raw(1, bytes([3, 4]) + bytes(34))), "bad_icmp"),
)

WHOSE = (
    reaches("an error about a port range goes by the quoted port", error(sent(VIP, port=8050)[:28]), RANGE),
    reaches(
        "an error about a prefix goes by the quoted address",
        error(sent("203.0.113.9")[:28], about="203.0.113.9"),
        LOWER,
    ),
    reaches(
        "an error about an IPv6 prefix goes by the quoted address",
        error6(ipv6(tcp("A", sport=80, dport=40_000), source="2001:db8:f::9", to=CLIENT6), about="2001:db8:f::9"),
        NET6,
        flow=ipv6(tcp(), to="2001:db8:f::9"),
    ),
    reaches(
        "an error about UDP reaches its backend",
        error(ipv4(udp(data(64), sport=53, dport=40_000), source=VIP, to=CLIENT)[:28]),
        DNS,
    ),
    drops("an error about another's packet goes nowhere", error(sent("198.51.100.9")[:28]), "icmp_stranger"),
    drops("an error about another VIP's packet goes nowhere", error(sent("203.0.113.11")[:28]), "icmp_stranger"),
    drops(
        "an error about what a client sent to the VIP goes nowhere",
        error(ipv4(tcp(), source=CLIENT)[:28]),
        "icmp_stranger",
    ),
    drops(
        "an ICMPv6 error about another's packet goes nowhere",
        error6(ipv6(tcp(sport=80), source="2001:db8:e::1", to=CLIENT6)),
        "icmp_stranger",
    ),
    drops(
        "an error about a port without service goes nowhere", error(sent(BARE, port=81)[:28], about=BARE), "no_service"
    ),
    drops(
        "an error whose service has no backend goes nowhere",
        error(sent("203.0.113.201")[:28], about="203.0.113.201"),
        "no_backend",
    ),
    drops("an error at the end of its hops is not answered", error(SENT[:28], ttl=1), "ttl_expired"),
    drops("an ICMPv6 error at the end of its hops is not answered", error6(SENT6[:48], hops=1), "ttl_expired"),
    drops("an error that does not fit the tunnel is not answered", error(data(0) + SENT[:28] + bytes(1450)), "too_big"),
    drops(
        "an error in fragments tells no flow", ipv4(icmp(3, 4, 0, data(4) + SENT[:28]), source=ROUTER, mf=True), "icmp"
    ),
)


def answered(claim: str, packet: bytes, reason: str, *out: bytes, unserved: Unserved = Unserved.DROP) -> Row:
    return Row(claim, packet, reason, out, unserved=unserved)


def from_vip(segment: Segment, *, tos: int = 0, options: bytes = b"", source: str = VIP, to: str = CLIENT) -> bytes:
    return ipv4(segment, source=source, to=to, tos=tos, options=options, df=False, ident=FIRST_ID)


def from_vip6(segment: Segment, *, traffic_class: int = 0, source: str = VIP6) -> bytes:
    return ipv6(segment, source=source, to=CLIENT6, traffic_class=traffic_class)


def pong(payload: bytes = b"ping", *, six: bool = False) -> Segment:
    return icmp(129 if six else 0, rest=1 << 16 | 1, data=payload, six=six)


RECORD_ROUTE = bytes([7, 7, 4, 0, 0, 0, 0, 0])

ECHO = (
    answered("a ping to a VIP is answered", ipv4(ping()), "echo", from_vip(pong())),
    answered("a ping of 1,472 bytes is answered whole", ipv4(ping(data(1472))), "echo", from_vip(pong(data(1472)))),
    answered("a ping of odd length is answered", ipv4(ping(b"abc")), "echo", from_vip(pong(b"abc"))),
    answered("a ping without data is answered", ipv4(ping(b"")), "echo", from_vip(pong(b""))),
    answered(
        "a ping to an address of a prefix is answered by it",
        ipv4(ping(), to="203.0.113.77"),
        "echo",
        from_vip(pong(), source="203.0.113.77"),
    ),
    answered("a ping with TTL 1 is answered: its way ends here", ipv4(ping(), ttl=1), "echo", from_vip(pong())),
    answered("a reply has the request's DSCP, and no ECN", ipv4(ping(), tos=0xBB), "echo", from_vip(pong(), tos=0xB8)),
    answered("a ping with padding behind is answered without it", ipv4(ping()) + bytes(14), "echo", from_vip(pong())),
    answered(
        "options of a ping stay in its reply",
        ipv4(ping(), options=RECORD_ROUTE),
        "echo",
        from_vip(pong(), options=RECORD_ROUTE),
    ),
    *(
        answered(
            f"a ping whose checksum becomes {name} is answered", ipv4(ping(payload)), "echo", from_vip(pong(payload))
        )
        for name, payload in (("0xffff", b"\xf7\xfd"), ("0", b"\xff\xfd"), ("near a carry", b"\xf7\xfe"))
    ),
    drops("a ping with a wrong checksum is not answered", ipv4(ping(check=1)), "icmp"),
    drops("a ping with a code is not answered", ipv4(icmp(8, 1, 1, b"ping")), "icmp"),
    drops("a ping cut to seven bytes is not answered", ipv4(raw(1, bytes([8, 0, 0xF7, 0xFF, 0, 0, 0]))), "bad_icmp"),
    answered("a ping to an IPv6 VIP is answered", ipv6(ping(six=True)), "echo", from_vip6(pong(six=True))),
    answered(
        "a ping to an IPv6 VIP with hop limit 1 is answered",
        ipv6(ping(six=True), hops=1),
        "echo",
        from_vip6(pong(six=True)),
    ),
    answered(
        "a reply has the request's traffic class, and no ECN",
        ipv6(ping(six=True), traffic_class=0xBB, flow_label=0xABCDE),
        "echo",
        from_vip6(pong(six=True), traffic_class=0xB8),
    ),
    answered(
        "extension headers of a ping go",
        ipv6(ping(six=True), extensions=((HOP, extension()), (DESTINATION, extension(2)))),
        "echo",
        from_vip6(pong(six=True)),
    ),
    drops("an IPv6 ping with a wrong checksum is not answered", ipv6(ping(six=True, check=1)), "icmp"),
)


def exceeded(packet: bytes, *, tos: int = 0xC0) -> bytes:
    return ipv4(icmp(11, data=packet[:548]), source=str(MUX), to=CLIENT, tos=tos, df=False, ident=FIRST_ID)


def exceeded6(packet: bytes) -> bytes:
    return ipv6(icmp(3, data=packet[:1232], six=True), source=str(MUX6), to=CLIENT6)


def expires(claim: str, packet: bytes, *, tos: int = 0xC0) -> Row:
    return answered(
        claim, packet, "time_exceeded", exceeded6(packet) if packet[0] >> 4 == 6 else exceeded(packet, tos=tos)
    )


TIME_EXCEEDED = (
    expires("TTL 1 is answered by the MUX, not forwarded with zero", ipv4(tcp(), ttl=1)),
    expires("TTL 0 is answered", ipv4(tcp(), ttl=0)),
    expires("TTL 1 to a closed port is answered: the way comes first", ipv4(udp(dport=33434), ttl=1)),
    expires("an answer quotes the header's options", ipv4(tcp(), ttl=1, options=b"\1" * 8)),
    expires("an answer is of 576 bytes at most", ipv4(tcp("A", data(1400)), ttl=1)),
    expires("a packet that just fits is quoted whole", ipv4(tcp("A", data(548 - 40)), ttl=1)),
    expires("of a packet one byte longer the last is not quoted", ipv4(tcp("A", data(549 - 40)), ttl=1)),
    expires("an answer has the packet's TOS, precedence 6 and no ECN", ipv4(tcp(), ttl=1, tos=0x3F), tos=0xDC),
    expires("hop limit 1 is answered by the MUX", ipv6(tcp(), hops=1)),
    expires("hop limit 0 is answered", ipv6(tcp(), hops=0)),
    expires("an IPv6 packet that just fits is quoted whole", ipv6(tcp("A", data(1232 - 60)), hops=1)),
    expires("of an IPv6 packet one byte longer the last is not quoted", ipv6(tcp("A", data(1233 - 60)), hops=1)),
    expires("an ICMPv6 answer is of 1,280 bytes at most", ipv6(tcp("A", data(1400)), hops=1)),
)


def unreachable(packet: bytes, code: int) -> bytes:
    return from_vip(icmp(3, code, data=packet[:548]), tos=0xC0, source=".".join(map(str, packet[16:20])))


def unreachable6(packet: bytes, kind: int, code: int, rest: int = 0) -> bytes:
    return from_vip6(icmp(kind, code, rest, data=packet[:1232], six=True))


def denied(claim: str, packet: bytes, *out: bytes, reset: bool = False) -> Row:
    """By the operator's choice, ``unserved``."""
    reason, unserved = ("reset", Unserved.RESET) if reset else ("unreachable", Unserved.UNREACHABLE)
    return answered(claim, packet, reason, *out, unserved=unserved)


CLOSED, CLOSED6 = ipv4(udp(dport=9)), ipv6(udp(dport=9))
KNOCK = ipv4(tcp(dport=9, seq=0xFFFFFFFF), to=BARE)
EMPTY = ipv4(tcp(), to="203.0.113.201")
ESP, ESP6 = (
    ipv4(raw(50, bytes(16))),
    ipv6(raw(50, bytes(16)), extensions=((HOP, extension()), (DESTINATION, extension(1)))),
)


def rst(*, flags: str = "RA", seq: int = 0, ack: int = 0, source: str = BARE) -> bytes:
    segment = tcp(flags, sport=9 if source == BARE else 80, dport=40_000, seq=seq, ack=ack)
    segment.data = segment.data[:14] + bytes(2) + segment.data[16:]  # no window
    return from_vip(segment, source=source)


UNSERVED = (
    denied("a closed port of UDP is unreachable by choice", CLOSED, unreachable(CLOSED, 3)),
    denied("a closed port of TCP is unreachable by choice", KNOCK, unreachable(KNOCK, 3)),
    denied("a closed port of IPv6 is unreachable by choice", CLOSED6, unreachable6(CLOSED6, 1, 4)),
    denied("a service without backend is an unreachable host by choice", EMPTY, unreachable(EMPTY, 1)),
    denied("a protocol that nobody serves is unreachable by choice", ESP, unreachable(ESP, 2)),
    denied("of IPv6 it is a parameter problem that points at it", ESP6, unreachable6(ESP6, 4, 1, 48)),
    denied("a SYN to a closed port is reset by choice", KNOCK, rst(ack=0), reset=True),
    denied(
        "a SYN with data is acknowledged with it",
        ipv4(tcp("S", b"hello", dport=9, seq=10), to=BARE),
        rst(ack=16),
        reset=True,
    ),
    denied(
        "a FIN counts in what a reset acknowledges",
        ipv4(tcp("F", b"bye", dport=9, seq=1), to=BARE),
        rst(ack=5),
        reset=True,
    ),
    denied(
        "an ACK is reset where it expects that",
        ipv4(tcp("A", dport=9, ack=77), to=BARE),
        rst(flags="R", seq=77),
        reset=True,
    ),
    denied("a service without backend resets by choice", EMPTY, rst(ack=1001, source="203.0.113.201"), reset=True),
    Row("a reset is never answered", ipv4(tcp("R", dport=9), to=BARE), "no_service", unserved=Unserved.RESET),
    Row("UDP cannot be reset: unreachable", CLOSED, "unreachable", (unreachable(CLOSED, 3),), unserved=Unserved.RESET),
    Row(
        "an ICMP error about no service is never answered",
        error(sent(BARE, port=81)[:28], about=BARE),
        "no_service",
        unserved=Unserved.UNREACHABLE,
    ),
    drops("a closed port is silent unless told", CLOSED, "no_service"),
    drops(
        "a service without backend is silent unless told",
        ipv4(tcp(dport=80), to="203.0.113.201", ident=1),
        "no_backend",
    ),
)

ROWS = (*KINDS, *QUOTES, *WHOSE, *ECHO, *TIME_EXCEEDED, *UNSERVED)
