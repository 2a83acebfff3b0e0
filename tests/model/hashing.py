# SPDX-License-Identifier: Apache-2.0
"""SipHash and Speck from their papers, and what the pool hashes: the tuple of a packet.

SipHash-c-d: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), section 2. Speck64/128: Beaulieu et al.,
"The Simon and Speck families of lightweight block ciphers" (2013), section 4.
"""

from __future__ import annotations

from lb.model import Address

Endpoint = tuple[Address, int]  #: address and port

M32 = (1 << 32) - 1
M64 = (1 << 64) - 1


def _rotl(x: int, n: int, bits: int) -> int:
    return (x << n | x >> (bits - n)) & ((1 << bits) - 1)


def siphash(key: bytes, message: bytes, c: int, d: int) -> int:
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0 = k0 ^ 0x736F6D6570736575
    v1 = k1 ^ 0x646F72616E646F6D
    v2 = k0 ^ 0x6C7967656E657261
    v3 = k1 ^ 0x7465646279746573

    def sip_round() -> None:
        nonlocal v0, v1, v2, v3
        v0 = (v0 + v1) & M64
        v2 = (v2 + v3) & M64
        v1 = _rotl(v1, 13, 64) ^ v0
        v3 = _rotl(v3, 16, 64) ^ v2
        v0 = _rotl(v0, 32, 64)
        v2 = (v2 + v1) & M64
        v0 = (v0 + v3) & M64
        v1 = _rotl(v1, 17, 64) ^ v2
        v3 = _rotl(v3, 21, 64) ^ v0
        v2 = _rotl(v2, 32, 64)

    whole = len(message) // 8 * 8
    words = [int.from_bytes(message[i : i + 8], "little") for i in range(0, whole, 8)]
    words.append(int.from_bytes(message[whole:], "little") | (len(message) % 256) << 56)
    for word in words:
        v3 ^= word
        for _ in range(c):
            sip_round()
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(d):
        sip_round()
    return v0 ^ v1 ^ v2 ^ v3


def tuple_message(protocol: int, source: Endpoint, destination: Endpoint, *, source_only: bool) -> bytes:
    """What is hashed of a packet: whole 64-bit words, fields as on the wire, zero behind them.

    IPv4: 16 bytes, addresses, ports, protocol. IPv6: 40 bytes, addresses, ports, protocol, the number 6.
    By source only: the source address alone in 16 bytes.
    """
    if source_only:
        return source[0].packed.ljust(16, b"\0")
    ports = source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    message = source[0].packed + destination[0].packed + ports + bytes([protocol])
    return message.ljust(16, b"\0") if source[0].version == 4 else (message + b"\6").ljust(40, b"\0")


def tuple_hash(
    seed: bytes, protocol: int, source: Endpoint, destination: Endpoint, *, source_only: bool = False
) -> int:
    return siphash(seed, tuple_message(protocol, source, destination, source_only=source_only), 1, 3)


def slot_of(value: int, size: int) -> int:
    """The high 32 bits of the hash as a fraction of 2^32, scaled to the table."""
    return (value >> 32) * size // (1 << 32)


# ---- Speck64/128 ----

SPECK_FULL_ROUNDS = 27


def _round(x: int, y: int, k: int) -> tuple[int, int]:
    x = ((_rotl(x, 32 - 8, 32) + y) & M32) ^ k
    return x, _rotl(y, 3, 32) ^ x


def speck_round_keys(key: tuple[int, int, int, int], rounds: int) -> list[int]:
    """The key as in the paper's test vectors: (l2, l1, l0, k0)."""
    *high, k = key
    ls = high[::-1]
    keys = []
    for i in range(rounds):
        keys.append(k)
        new_l, k = _round(ls[i], k, i)
        ls.append(new_l)
    return keys


def speck_encrypt(keys: list[int], block: tuple[int, int]) -> tuple[int, int]:
    x, y = block
    for k in keys:
        x, y = _round(x, y, k)
    return x, y


def pool_round_keys(seed: bytes, rounds: int = 12) -> list[int]:
    """The bijection's key: SipHash of the 64-bit numbers 0 and 1, as four 32-bit little-endian words, k0 first."""
    key = b"".join(siphash(seed, half.to_bytes(8, "little"), 1, 3).to_bytes(8, "little") for half in (0, 1))
    k0, l0, l1, l2 = (int.from_bytes(key[i : i + 4], "little") for i in range(0, 16, 4))
    return speck_round_keys((l2, l1, l0, k0), rounds)


def scramble(seed: bytes, key: int) -> int:
    x, y = speck_encrypt(pool_round_keys(seed), (key >> 32, key & M32))
    return x << 32 | y
