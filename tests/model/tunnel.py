# SPDX-License-Identifier: Apache-2.0
"""What leaves a MUX: the tunnel (RFC 2003, 2473, 2983, 4213, 6040, 6438, 6864, 6935), and a super-packet cut to size.

Written with whole fields and recomputed checksums; nothing is updated in place.
"""

from __future__ import annotations

from collections.abc import Iterator

from lb.model import GUE_PORT, Address, Encap
from tests.model.checksum import checksum, ones_complement_sum, pseudo_header, transport_checksum
from tests.model.read import Header

OUTER_TTL = 64


def outer_ipv4(source: Address, destination: Address, inner: bytes, identification: int) -> bytes:
    """RFC 2003, 3.1. ``inner`` must be IPv4. DSCP and ECN as inside (RFC 2983, RFC 6040 normal mode)."""
    return outer(Encap.IPIP, source, destination, inner, identification, 0)


def outer_ipv6(source: Address, destination: Address, inner: bytes, flow_label: int) -> bytes:
    """RFC 2473, 3.1, with the flow label of RFC 6438. ``inner`` must be IPv6."""
    return outer(Encap.IPIP, source, destination, inner, 0, flow_label)


def outer(  # noqa: PLR0917  as the header's fields come
    encap: Encap,
    source: Address,
    destination: Address,
    inner: bytes,
    identification: int,
    entropy: int,
    variant: int = 0,
) -> bytes:
    """Any tunnel: IP in IP (RFC 2003, 2473, 4213), or GUE (draft-ietf-intarea-gue: 3 for variant 0, 4 for variant 1).

    ``entropy``: 20 bits made of the inner flow, which are the flow label (RFC 6438) and, 14 of them, the source port.
    """
    four = inner[0] >> 4 == 4
    protocol, payload = 4 if four else 41, inner
    if encap is Encap.GUE:
        header = bytes([0, protocol, 0, 0]) if variant == 0 else b""
        ports = (49152 + entropy % 2**14).to_bytes(2) + GUE_PORT.to_bytes(2)
        # No checksum: RFC 768 lets IPv4 do without, RFC 6935 tunnels in IPv6.
        payload = ports + (8 + len(header) + len(inner)).to_bytes(2) + bytes(2) + header + inner
        protocol = 17
    tos = inner[1] if four else (inner[0] & 15) << 4 | inner[1] >> 4
    if source.version == 6:
        first = (6 << 28 | tos << 20 | entropy).to_bytes(4)
        return (
            first
            + len(payload).to_bytes(2)
            + bytes([protocol, OUTER_TTL])
            + source.packed
            + destination.packed
            + payload
        )
    # IPv6 may be taken apart by its sender alone: so it is as if it had DF (RFC 4213, 3.2.2).
    dont_fragment = inner[6] & 0x40 if four else 0x40
    # RFC 6864: an atomic datagram's ID has no meaning, so it is zero; any other's must be its own.
    identification = 0 if dont_fragment else identification
    header = (
        bytes([0x45, tos])
        + (20 + len(payload)).to_bytes(2)
        + identification.to_bytes(2)
        + bytes([dont_fragment, 0, OUTER_TTL, protocol, 0, 0])
        + source.packed
        + destination.packed
    )
    return header[:10] + checksum(header).to_bytes(2) + header[12:] + payload


def overhead(version: int, encap: Encap = Encap.IPIP, variant: int = 0) -> int:
    """``version``: of the outer header."""
    return (20 if version == 4 else 40) + ((8 + (4 if variant == 0 else 0)) if encap is Encap.GUE else 0)


def forwarded(packet: bytes) -> bytes:
    """The packet as any router sends it on: TTL or hop limit one less, IPv4 header checksum right."""
    header = Header(packet)
    at = 8 if header.version == 4 else 7
    packet = packet[:at] + bytes([packet[at] - 1]) + packet[at + 1 :]
    return with_header_checksum(packet) if header.version == 4 else packet


def with_header_checksum(packet: bytes) -> bytes:
    length = (packet[0] & 15) * 4
    zeroed = packet[:10] + b"\0\0" + packet[12:length]
    return zeroed[:10] + checksum(zeroed).to_bytes(2, "big") + zeroed[12:] + packet[length:]


def with_transport_checksum(packet: bytes) -> bytes:
    """With the TCP or UDP checksum computed anew, over the length that the transport itself has."""
    header = Header(packet)
    at = header.transport
    length = header.length - at if header.protocol == 6 else int.from_bytes(packet[at + 4 : at + 6], "big")
    field = at + (16 if header.protocol == 6 else 6)
    zeroed = packet[:field] + b"\0\0" + packet[field + 2 :]
    value = transport_checksum(header.source, header.destination, header.protocol, zeroed[at : at + length])
    return zeroed[:field] + value.to_bytes(2, "big") + zeroed[field + 2 :]


def pseudo_sum(header: Header, length: int) -> int:
    """What a sender leaves in the checksum field for its NIC to go on from."""
    return ones_complement_sum(pseudo_header(header.source, header.destination, header.protocol, length))


def segments(packet: bytes, size: int) -> Iterator[bytes]:
    """A TCP packet as the packets that its sender's NIC would have made of it, ``size`` payload bytes each."""
    header = Header(packet)
    data_offset = (packet[header.transport + 12] >> 4) * 4
    headers, payload = header.transport + data_offset, packet[header.transport + data_offset : header.length]
    sequence = int.from_bytes(packet[header.transport + 4 : header.transport + 8], "big")
    identification = int.from_bytes(packet[4:6], "big")
    for n, start in enumerate(range(0, len(payload), size)):
        part = bytearray(packet[:headers] + payload[start : start + size])
        last = start + size >= len(payload)
        tcp = header.transport
        part[tcp + 4 : tcp + 8] = ((sequence + start) % (1 << 32)).to_bytes(4, "big")
        if not last:
            part[tcp + 13] &= ~0x09 & 0xFF  # FIN and PSH belong to the end
        if n:
            part[tcp + 13] &= ~0x80 & 0xFF  # CWR is said once (RFC 3168, 6.1.2)
        if n and part[tcp + 13] & 0x20:  # URG: the pointer counts from the sequence number (RFC 9293, 3.1)
            left = max(0, int.from_bytes(part[tcp + 18 : tcp + 20]) - start)
            part[tcp + 18 : tcp + 20] = left.to_bytes(2)
            part[tcp + 13] &= 0xFF if left else ~0x20 & 0xFF
        if header.version == 4:
            part[2:4] = len(part).to_bytes(2, "big")
            part[4:6] = ((identification + n) % (1 << 16)).to_bytes(2, "big")
            yield with_transport_checksum(with_header_checksum(bytes(part)))
        else:
            part[4:6] = (len(part) - 40).to_bytes(2, "big")
            yield with_transport_checksum(bytes(part))
