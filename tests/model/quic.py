# SPDX-License-Identifier: Apache-2.0
"""Connection ids that say which server they are of, read as the draft has it (draft-ietf-quic-load-balancers-21, 5 and
appendix B); AES is the cryptography package's. Numbers and lists, slow and plain."""

from __future__ import annotations

from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

#: Of ids that are of no configuration.
UNROUTABLE = 7


class Configuration(NamedTuple):
    number: int
    server_id_bytes: int
    nonce_bytes: int
    key: bytes | None = None


def destination_id(datagram: bytes) -> bytes | None:
    """RFC 8999, 5: of a short header all that may be of it, for only its server knows where it ends."""
    if not datagram:
        return None
    if not datagram[0] & 0x80:
        return datagram[1:]
    if len(datagram) < 6 or len(datagram) < 6 + datagram[5]:
        return None
    return datagram[6 : 6 + datagram[5]]


def server_id(configurations: list[Configuration], connection_id: bytes) -> tuple[int, bytes] | None:
    """The configuration's number and the server id; None: it is of no configuration that we have."""
    if not connection_id:
        return None
    number = connection_id[0] >> 5
    found = [one for one in configurations if one.number == number and number != UNROUTABLE]
    if not found:
        return None
    size = found[0].server_id_bytes + found[0].nonce_bytes
    block = connection_id[1 : 1 + size]
    if len(block) < size:
        return None
    if found[0].key is not None:
        block = _decrypt_block(found[0].key, block) if size == 16 else _unfold(found[0].key, block)
    return number, block[: found[0].server_id_bytes]


def _decrypt_block(key: bytes, block: bytes) -> bytes:
    context = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305  one block, as the draft has it
    return context.update(block)


def _round(key: bytes, half: int, digits: int, size: int, number: int) -> int:
    """A half of so many hex digits through AES, and as many digits of what comes out."""
    padded = digits + digits % 2
    plain = half.to_bytes(padded // 2, "big").ljust(14, b"\0") + bytes([size, number])
    context = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    return int.from_bytes(context.update(plain)[: padded // 2], "big")


def _unfold(key: bytes, block: bytes) -> bytes:
    """All four passes backwards. Halves are of `size` hex digits each; where that is odd they stand in bytes with a
    digit of zero behind the left one and before the right one."""
    size = len(block)
    value = int.from_bytes(block, "big")
    left, right = value >> 4 * size, value & (1 << 4 * size) - 1
    odd = size % 2

    def of_left(number: int) -> int:
        return _round(key, left << 4 * odd, size, size, number) & (1 << 4 * size) - 1

    def of_right(number: int) -> int:
        return _round(key, right, size, size, number) >> 4 * odd

    left ^= of_right(4)
    right ^= of_left(3)
    left ^= of_right(2)
    right ^= of_left(1)
    return (left << 4 * size | right).to_bytes(size, "big")
