# SPDX-License-Identifier: Apache-2.0
"""QUIC connection ids that say whose they are (draft-ietf-quic-load-balancers-21): for servers, which mint them, and
for what vipmux itself has to know of them.

A server writes its *server id* into every connection id that it gives to a client; a MUX reads it there and sends the
packet to that server, whatever address it comes from. A :class:`ConnectionIds` mints for one server and one
configuration, a ``[[service.quic]]`` table::

    ids = ConnectionIds(0, server_id_of("web-1"), key=read_key_file("/etc/lb/quic-0.key"))
    ids.mint()  # 17 bytes, never the same again

Needs nothing but Python. AES is done slowly here, some hundred microseconds for an id; a server that gives out
thousands in a second hands over its own as ``encrypt``. Not thread-safe where a nonce counts.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

#: Numbers of configurations; an id that says 7 is of none.
CONFIGURATIONS = 7
NONCE_MIN = 4
#: Server id and nonce together, bytes: an id of QUIC version 1 has 20 at most.
BLOCK_MAX = 19
SERVER_ID_MAX = BLOCK_MAX - NONCE_MIN
#: Together one block of AES, which is encrypted in one pass.
SERVER_ID_BYTES, NONCE_BYTES = 4, 12
KEY_BYTES = 16

#: Of a block of 16 bytes, with the key that it knows.
Encrypt = Callable[[bytes], bytes]


def server_id_of(name: str, size: int = SERVER_ID_BYTES, given: str | None = None) -> bytes:
    """The server id of a backend, by its name: the same on every MUX, whichever other backends there are. ``given``:
    what the configuration says, hex digits, which counts where it has this size."""
    if given is not None and len(given) == 2 * size:
        return bytes.fromhex(given)
    return hashlib.sha256(b"vipmux server id\0" + name.encode()).digest()[:size]


def read_key_file(path: str | Path) -> bytes:
    """A key: 32 hex digits in a file that not everybody may read. Raises OSError, and ValueError with the end of a
    sentence that begins with the file; neither tells the key."""
    with Path(path).open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(4096)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        msg = f"may be read or changed by everybody (mode {stat.S_IMODE(mode):04o}); chmod 640 or less"
        raise ValueError(msg)
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError("must hold 32 hex digits and nothing else")
    return key


class ConnectionIds:
    """Mints connection ids of one server in one configuration."""

    def __init__(
        self,
        number: int,
        server_id: bytes,
        *,
        nonce_bytes: int = NONCE_BYTES,
        key: bytes | None = None,
        encrypt: Encrypt | None = None,
    ) -> None:
        """``key``: 16 bytes, or None for a configuration without one, whose ids tell everybody which server they are
        of. ``encrypt``: AES-128 with that key, instead of the one here. Raises ValueError."""
        size = len(server_id) + nonce_bytes
        if not 0 <= number < CONFIGURATIONS:
            raise ValueError(f"the configuration's number must be 0 to {CONFIGURATIONS - 1}, not {number}")
        if not server_id or nonce_bytes < NONCE_MIN or size > BLOCK_MAX:
            raise ValueError(
                f"a server id of {len(server_id)} and a nonce of {nonce_bytes} bytes: they must have at least 1 and "
                f"{NONCE_MIN}, together at most {BLOCK_MAX}"
            )
        self.number, self.server_id, self.nonce_bytes = number, server_id, nonce_bytes
        self._encrypt = encrypt or (aes128(key) if key is not None else None)
        self._next = secrets.randbits(8 * nonce_bytes)

    @property
    def length(self) -> int:
        """Of the ids, bytes."""
        return 1 + len(self.server_id) + self.nonce_bytes

    def mint(self, nonce: bytes | None = None) -> bytes:
        """A new id. ``nonce``: instead of one of its own; never the same twice with a key. Its first byte has the
        configuration's number and, in five bits, how many bytes follow."""
        block = self.server_id + (self._nonce() if nonce is None else nonce)
        if len(block) != self.length - 1:
            raise ValueError(f"the nonce must have {self.nonce_bytes} bytes, not {len(block) - len(self.server_id)}")
        if self._encrypt is not None:
            block = self._encrypt(block) if len(block) == KEY_BYTES else _fold(self._encrypt, block)
        return bytes([self.number << 5 | len(block)]) + block

    def _nonce(self) -> bytes:
        """Encrypted, one that counts is like any other and never comes twice; plain, it must not tell two ids of one
        connection from those of two."""
        if self._encrypt is None:
            return secrets.token_bytes(self.nonce_bytes)
        self._next = (self._next + 1) % (1 << 8 * self.nonce_bytes)
        return self._next.to_bytes(self.nonce_bytes, "big")


def _fold(encrypt: Encrypt, block: bytes) -> bytes:
    """Four passes (5.4.2): each half in the light of the other. Of an odd number of bytes the one in the middle is
    halved, its first four bits to the left."""
    size, odd = len(block), len(block) % 2
    half = (size + odd) // 2
    left, right = bytearray(block[:half]), bytearray(block[size - half :])

    def clear() -> None:
        if odd:
            left[-1] &= 0xF0
            right[0] &= 0x0F

    clear()
    for number in (1, 2, 3, 4):
        source, target = (left, right) if number % 2 else (right, left)
        mask = encrypt(bytes(source).ljust(14, b"\0") + bytes([size, number]))
        for i in range(half):
            target[i] ^= mask[i]
        clear()
    if not odd:
        return bytes(left + right)
    return bytes(left[:-1]) + bytes([left[-1] | right[0]]) + bytes(right[1:])


# --- AES-128 (FIPS 197), encryption alone ----------------------------------------------------------------------------


def _twice(a: int) -> int:
    return (a << 1 ^ 0x11B) if a & 0x80 else a << 1


def _s_box() -> bytes:
    """Powers of 3 run through all that is not 0, so that an inverse is found by them."""
    powers = [1]
    while len(powers) < 255:
        powers.append(powers[-1] ^ _twice(powers[-1]))
    inverse = {power: powers[-n % 255] for n, power in enumerate(powers)}
    inverse[0] = 0
    box = bytearray()
    for value in range(256):
        a = inverse[value]
        turned = [(a << n | a >> (8 - n)) & 0xFF for n in range(5)]
        box.append(turned[0] ^ turned[1] ^ turned[2] ^ turned[3] ^ turned[4] ^ 0x63)
    return bytes(box)


_BOX = _s_box()
#: Where each byte of a block comes from when its rows have been shifted.
_SHIFTED = [(5 * i) % 16 for i in range(16)]


def aes128(key: bytes) -> Encrypt:
    """Encryption of a block with this key."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    rounds, constant = [list(key)], 1
    for _ in range(10):
        before = rounds[-1]
        word = [_BOX[before[12 + (i + 1) % 4]] for i in range(4)]
        word[0] ^= constant
        constant = _twice(constant)
        after: list[int] = []
        for i in range(16):
            after.append(before[i] ^ (word[i] if i < 4 else after[i - 4]))
        rounds.append(after)

    def encrypt(block: bytes) -> bytes:
        state = [a ^ b for a, b in zip(block, rounds[0], strict=True)]
        for number, own in enumerate(rounds[1:], 1):
            state = [_BOX[state[i]] for i in _SHIFTED]
            if number < 10:
                state = _mixed(state)
            state = [a ^ b for a, b in zip(state, own, strict=True)]
        return bytes(state)

    return encrypt


def _mixed(state: list[int]) -> list[int]:
    mixed = []
    for column in range(0, 16, 4):
        a = state[column : column + 4]
        every = a[0] ^ a[1] ^ a[2] ^ a[3]
        mixed += [a[i] ^ every ^ _twice(a[i] ^ a[(i + 1) % 4]) for i in range(4)]
    return mixed
