# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum (RFC 1071), the plain way: 16-bit big-endian words, end-around carry, complement."""

from __future__ import annotations

from lb.model import Address


def ones_complement_sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2], "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ~ones_complement_sum(data) & 0xFFFF


def pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    """RFC 9293, 3.1 for IPv4; RFC 8200, 8.1 for IPv6."""
    if source.version == 4:
        return source.packed + destination.packed + bytes([0, protocol]) + length.to_bytes(2, "big")
    return source.packed + destination.packed + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


def transport_checksum(source: Address, destination: Address, protocol: int, segment: bytes) -> int:
    """Of a TCP or UDP segment whose checksum field is zero; for UDP a result of zero goes out as all ones (RFC 768)."""
    value = checksum(pseudo_header(source, destination, protocol, len(segment)) + segment)
    return 0xFFFF if protocol == 17 and value == 0 else value
