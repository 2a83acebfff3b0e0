# SPDX-License-Identifier: Apache-2.0
"""TCP, UDP and what is neither; checksums that a sender left to its NIC. RFC 768, 9293."""

from __future__ import annotations

from tests.packets.build import ipv4, ipv6, raw, tcp, udp
from tests.packets.world import DNS, DNS6, WEB, WEB6, drops, forwards

OPTIONS = bytes([2, 4, 5, 0xB4, 1, 1, 4, 2])

TCP = (
    *(forwards(f"TCP flags {f} are forwarded", ipv4(tcp(f, b"x")), WEB) for f in ("S", "SA", "A", "PA", "FA", "R")),
    forwards("TCP without any flag is forwarded", ipv4(tcp("")), WEB),
    forwards("a TCP header with options is forwarded", ipv4(tcp("S", options=OPTIONS)), WEB),
    forwards("sixty bytes of TCP header are forwarded", ipv4(tcp("A", b"abc", options=b"\1" * 40)), WEB),
    drops("a TCP header of nineteen bytes is malformed", ipv4(raw(6, tcp().data[:19])), "bad_header"),
    drops("a TCP data offset below five words is malformed", ipv4(tcp(offset=4)), "bad_header"),
    drops("a TCP data offset beyond the packet is malformed", ipv4(tcp(offset=6)), "bad_header"),
    forwards("a wrong TCP checksum is the backend's to judge", ipv4(tcp("A", b"data", check=0x1234)), WEB),
)

UDP = (
    forwards("UDP is forwarded", ipv4(udp()), DNS),
    forwards("UDP without payload is forwarded", ipv4(udp(b"")), DNS),
    forwards("a UDP checksum of zero is left alone", ipv4(udp(check=0)), DNS),
    forwards("a wrong UDP checksum is the backend's to judge", ipv4(udp(check=0x1234)), DNS),
    drops("a UDP header of seven bytes is malformed", ipv4(raw(17, udp().data[:7])), "bad_header"),
    drops("a UDP length below eight is malformed", ipv4(udp(length=7)), "bad_header"),
    drops("a UDP length beyond the packet is malformed", ipv4(udp(b"", length=9)), "bad_header"),
    drops("a UDP length one beyond a larger packet is malformed", ipv4(udp(bytes(40), length=49)), "bad_header"),
    drops("a UDP length of seven in a larger packet is malformed", ipv4(udp(bytes(40), length=7)), "bad_header"),
    drops(
        "a TCP data offset of four in a larger packet is malformed", ipv4(tcp("A", bytes(9), offset=4)), "bad_header"
    ),
    forwards("the whole of a larger UDP packet is forwarded", ipv4(udp(bytes(40), length=48)), DNS),
    forwards("a UDP length below the packet's is forwarded as it is", ipv4(udp(b"abcd", length=9)), DNS),
)

OTHERS = (
    *(
        drops(f"IP protocol {number} to a VIP is unsupported", ipv4(raw(number, bytes(40))), "unsupported_protocol")
        for number in (0, 2, 4, 41, 47, 50, 51, 132, 255)
    ),
    drops("SCTP over IPv6 is unsupported", ipv6(raw(132, bytes(20))), "unsupported_protocol"),
)

#: What a sender leaves to its NIC, and the packet that it means.
PARTIAL = (
    forwards(
        "a partial TCP checksum is completed",
        ipv4(tcp("PA", b"partial!", check="partial")),
        WEB,
        leaves=ipv4(tcp("PA", b"partial!")),
        partial=True,
    ),
    forwards(
        "a partial TCP checksum over an odd length is completed",
        ipv4(tcp("PA", b"odd", check="partial")),
        WEB,
        leaves=ipv4(tcp("PA", b"odd")),
        partial=True,
    ),
    forwards(
        "a partial UDP checksum is completed",
        ipv4(udp(b"abc", check="partial")),
        DNS,
        leaves=ipv4(udp(b"abc")),
        partial=True,
    ),
    forwards(
        "a partial checksum over IPv6 is completed",
        ipv6(tcp("A", b"six", check="partial")),
        WEB6,
        leaves=ipv6(tcp("A", b"six")),
        partial=True,
    ),
    forwards(
        "a partial UDP checksum over IPv6 is completed",
        ipv6(udp(b"six", check="partial")),
        DNS6,
        leaves=ipv6(udp(b"six")),
        partial=True,
    ),
    forwards("a right checksum stays where partial ones are looked for", ipv4(tcp("A", b"x")), WEB, partial=True),
    forwards("a wrong checksum stays where partial ones are looked for", ipv4(tcp(check=9)), WEB, partial=True),
    forwards("no UDP checksum stays none where partial ones are looked for", ipv4(udp(check=0)), DNS, partial=True),
    forwards("a partial checksum stays where the I/O is a wire", ipv4(tcp("A", check="partial")), WEB),
)

ROWS = (*TCP, *UDP, *OTHERS, *PARTIAL)
