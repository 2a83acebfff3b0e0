# SPDX-License-Identifier: Apache-2.0
"""Reading a packet and saying what is wrong with it, from RFC 791, 768, 8200, 9293 and 1812."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from lb.model import Address
from tests.model.checksum import checksum

HOP_BY_HOP, ICMP, TCP, UDP, ROUTING, FRAGMENT, ICMPV6, DESTINATION = 0, 1, 6, 17, 43, 44, 58, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, DESTINATION)
MAX_EXTENSIONS = 8


class Header:
    """The network header of a packet that is long enough to have one."""

    def __init__(self, packet: bytes) -> None:
        self.version = packet[0] >> 4
        self.source: Address
        self.destination: Address
        if self.version == 4:
            self.transport = (packet[0] & 15) * 4
            self.length = int.from_bytes(packet[2:4], "big")
            self.protocol = packet[9]
            self.ttl = packet[8]
            self.source, self.destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
            return
        self.routes_on = False
        self.transport = 40
        self.length = 40 + int.from_bytes(packet[4:6], "big")
        self.protocol = packet[6]
        self.ttl = packet[7]
        self.source, self.destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        self.extensions = 0
        while self.transport + 8 <= min(self.length, len(packet)):
            if self.protocol not in EXTENSIONS and not self._is_atomic(packet):
                break
            if self.protocol == ROUTING and packet[self.transport + 3] and self.extensions < MAX_EXTENSIONS:
                self.routes_on = True
                break
            units = 0 if self.protocol == FRAGMENT else packet[self.transport + 1]
            self.protocol = packet[self.transport]
            self.transport += 8 + 8 * units
            self.extensions += 1

    def _is_atomic(self, packet: bytes) -> bool:
        """A fragment that is the whole packet: no offset, none to come (RFC 6946)."""
        return (
            self.protocol == FRAGMENT and not int.from_bytes(packet[self.transport + 2 : self.transport + 4]) & 0xFFF9
        )

    def ports(self, packet: bytes) -> tuple[int, int]:
        at = self.transport
        return int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")


def network_problem(packet: bytes, version: int) -> str | None:
    """Why the network header cannot be read; what is longer than the frame is another matter."""
    if len(packet) < (20 if version == 4 else 40) or packet[0] >> 4 != version:
        return "bad_header"
    if version == 4 and not 20 <= (packet[0] & 15) * 4 <= len(packet):
        return "bad_header"
    return None


def _source_problem(source: Address, destination: Address) -> str | None:
    """RFC 1812, 5.3.7 (martian addresses), RFC 3927, 4291, 6890; a source equal to the destination is a LAND attack."""
    if source == destination or source.is_multicast or source.is_loopback or source.is_unspecified:
        return "bad_source"
    if isinstance(source, IPv4Address):
        if source in IPv4Network("0.0.0.0/8") or source == IPv4Address("255.255.255.255"):
            return "bad_source"
        if source in IPv4Network("169.254.0.0/16"):
            return "link_local_source"
        return "reserved_source" if source in IPv4Network("240.0.0.0/4") else None
    if source in IPv6Network("fe80::/10"):
        return "link_local_source"
    return "mapped_source" if source in IPv6Network("::ffff:0:0/96") else None


def _routes_on(options: bytes) -> bool:
    """A loose or strict source route with a station left (RFC 791, 3.1: the pointer is not beyond its length)."""
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if len(options) - at < 2:
            return False
        kind, length = options[at], options[at + 1]
        if kind in (131, 137) and len(options) - at >= 3 and options[at + 2] <= length:
            return True
        if length < 2:
            return False
        at += length
    return False


def vip_problem(packet: bytes, header: Header) -> str | None:  # noqa: PLR0911  one return for each thing that can be wrong
    """Why a packet to a VIP goes no further, before any service is asked; None if nothing is wrong with it."""
    if header.length > len(packet):
        return "truncated"
    packet = packet[: header.length]
    if header.version == 4:
        if header.length < header.transport:
            return "bad_header"
        if checksum(packet[: header.transport]) != 0:
            return "bad_checksum"
    problem = _source_problem(header.source, header.destination)
    if problem is not None:
        return problem
    if header.version == 4:
        if _routes_on(packet[20 : header.transport]):
            return "source_route"
        if int.from_bytes(packet[6:8], "big") & 0x3FFF:
            return "fragment"
    elif header.routes_on:
        return "routing_header"
    elif header.transport > header.length:
        return "bad_header"
    elif header.protocol == FRAGMENT:
        complete = header.transport + 8 <= header.length
        return "fragment" if complete and header.extensions < MAX_EXTENSIONS else "bad_header"
    elif header.protocol in EXTENSIONS or header.extensions > MAX_EXTENSIONS:
        return "bad_header"
    return _transport_problem(packet[header.transport :], header.protocol)


def _transport_problem(segment: bytes, protocol: int) -> str | None:
    if protocol == TCP:
        return None if len(segment) >= 20 and 20 <= (segment[12] >> 4) * 4 <= len(segment) else "bad_header"
    if protocol == UDP:
        complete = len(segment) >= 8 and 8 <= int.from_bytes(segment[4:6], "big") <= len(segment)
        return None if complete else "bad_header"
    return "icmp" if protocol in (ICMP, ICMPV6) else "unsupported_protocol"
