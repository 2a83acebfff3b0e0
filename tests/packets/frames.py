# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames that are more, or less, than an IP packet with a header before it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.packets.build import MUX_MAC, ROUTER_MAC, ethernet, ipv4, ipv6, tcp
from tests.packets.world import WEB, WEB6, to


@dataclass(frozen=True)
class FrameRow:
    """``frame`` as it comes; ``out`` from IP header to IP header."""

    claim: str
    frame: bytes
    reason: str
    out: tuple[bytes, ...] = ()
    wire_length: int | None = None


SYN, SYN6 = ipv4(tcp()), ipv6(tcp())
ARP = bytes.fromhex("0001080006040001") + ROUTER_MAC + bytes([192, 0, 2, 1]) + bytes(6) + bytes([203, 0, 113, 10])

ROWS = (
    FrameRow("ARP for a VIP is passed", ethernet(ARP, ethertype=0x0806), "not_ip"),
    FrameRow("a VLAN tag is passed", ethernet(b"\0\x05\x08\x00" + SYN, ethertype=0x8100), "not_ip"),
    FrameRow("a service VLAN tag is passed", ethernet(b"\0\x05\x08\x00" + SYN, ethertype=0x88A8), "not_ip"),
    FrameRow("a priority tag is none", ethernet(b"\xe0\0\x08\0" + SYN, ethertype=0x8100), "forwarded", (to(WEB, SYN),)),
    FrameRow(
        "a priority tag before IPv6 is none",
        ethernet(b"\0\0\x86\xdd" + SYN6, ethertype=0x8100),
        "forwarded",
        (to(WEB6, SYN6),),
    ),
    FrameRow(
        "a service's priority tag is none",
        ethernet(b"\0\0\x08\0" + SYN, ethertype=0x88A8),
        "forwarded",
        (to(WEB, SYN),),
    ),
    FrameRow(
        "padding behind a priority tag is trimmed",
        ethernet(b"\0\0\x08\0" + SYN, ethertype=0x8100, pad=6),
        "forwarded",
        (to(WEB, SYN),),
    ),
    FrameRow("a VLAN tag of which the lowest bit counts", ethernet(b"\0\1\x08\0" + SYN, ethertype=0x8100), "not_ip"),
    FrameRow("a VLAN tag of which the highest bit counts", ethernet(b"\x08\0\x08\0" + SYN, ethertype=0x8100), "not_ip"),
    FrameRow(
        "a tag behind a priority tag is passed",
        ethernet(b"\0\0\x81\0\0\x05\x08\0" + SYN, ethertype=0x8100),
        "not_ip",
    ),
    FrameRow("half of a VLAN tag", ethernet(b"\0\0\x08", ethertype=0x8100), "not_ip"),
    FrameRow("MPLS is passed", ethernet(bytes(4) + SYN, ethertype=0x8847), "not_ip"),
    FrameRow("an 802.3 length is passed", ethernet(SYN, ethertype=len(SYN)), "not_ip"),
    FrameRow("a frame shorter than its header is malformed", ethernet(SYN)[:13], "bad_header"),
    FrameRow("an empty frame is malformed", b"", "bad_header"),
    FrameRow("a frame that is only a header is malformed", ethernet(SYN)[:14], "bad_header"),
    FrameRow("IPv6 said, IPv4 sent is malformed", ethernet(SYN, ethertype=0x86DD), "bad_header"),
    FrameRow("IPv4 said, IPv6 sent is malformed", ethernet(SYN6, ethertype=0x0800), "bad_header"),
    FrameRow("Ethernet padding is trimmed", ethernet(SYN, pad=6), "forwarded", (to(WEB, SYN),)),
    FrameRow("padding behind IPv6 is trimmed", ethernet(SYN6, pad=3), "forwarded", (to(WEB6, SYN6),)),
    FrameRow("an ARP that a capture cut is truncated", ethernet(ARP, ethertype=0x0806), "truncated", wire_length=60),
    FrameRow(
        "a frame to another MAC is ours all the same", MUX_MAC * 2 + ethernet(SYN)[12:], "forwarded", (to(WEB, SYN),)
    ),
)
