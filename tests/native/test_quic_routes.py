# SPDX-License-Identifier: Apache-2.0
"""AES and QUIC connection ids in C: published vectors, and beside an oracle that shares nothing with them."""

from __future__ import annotations

import ctypes
import errno
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.model import quic
from tests.native import compiled

BEST = 2
NOBODY = 0xFFFF
KEY = bytes.fromhex("8f95f09245765f80256934e50c66207f")


class CConfiguration(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint8),
        ("server_id_bytes", ctypes.c_uint8),
        ("nonce_bytes", ctypes.c_uint8),
        ("encrypted", ctypes.c_uint8),
        ("key", ctypes.c_uint8 * 16),
    )


class CServer(ctypes.Structure):
    _fields_ = (("configuration", ctypes.c_uint8), ("server_id", ctypes.c_uint8 * 15), ("backend", ctypes.c_uint32))


def c() -> ctypes.CDLL:
    return compiled.library("services/quic/aes128.c", "services/quic/quic_routes.c")


def levels() -> list[int]:
    return [level for level in (0, 1) if level == 0 or c().aes128_has(level) & 1]


def aes(level: int, key: bytes, block: bytes, *, back: bool) -> bytes:
    state = ctypes.create_string_buffer(512)
    assert c().aes128_init(state, key, level) == 0
    out = ctypes.create_string_buffer(block, 16)
    (c().aes128_decrypt if back else c().aes128_encrypt)(state, out)
    return out.raw


Server = tuple[int, bytes, int]  #: number of the configuration, server id, backend


def create(configurations: Sequence[quic.Configuration], servers: Sequence[Server], level: int) -> tuple[int, object]:
    rows = (CConfiguration * max(1, len(configurations)))()
    for row, one in zip(rows, configurations, strict=False):
        row.number, row.server_id_bytes, row.nonce_bytes = one.number, one.server_id_bytes, one.nonce_bytes
        row.encrypted = one.key is not None
        row.key[:] = one.key or bytes(16)
    named = (CServer * max(1, len(servers)))()
    for server, (number, server_id, backend) in zip(named, servers, strict=False):
        server.configuration, server.backend = number, backend
        server.server_id[: len(server_id)] = server_id
    out = ctypes.c_void_p()
    code = c().quic_routes_create(rows, len(configurations), named, len(servers), level, ctypes.byref(out))
    return code, out


@contextmanager
def routes(configurations: Sequence[quic.Configuration], servers: Sequence[Server], level: int) -> Iterator[object]:
    code, made = create(configurations, servers, level)
    assert code == 0
    yield made
    c().quic_routes_put(made)


def find(made: object, datagram: bytes) -> int:
    """In a buffer of exactly its size, so that the sanitizer sees a byte too many."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    data = ctypes.c_void_p(libc.malloc(len(datagram) or 1))
    ctypes.memmove(data, datagram, len(datagram))
    c().quic_routes_find.restype = ctypes.c_uint32
    found: int = c().quic_routes_find(made, data, len(datagram))
    libc.free(data)
    return found


def long_header(connection_id: bytes, version: int = 1) -> bytes:
    return b"\xc3" + version.to_bytes(4, "big") + bytes([len(connection_id)]) + connection_id + bytes(20)


def short_header(connection_id: bytes) -> bytes:
    return b"\x41" + connection_id + bytes(20)


# --- AES -------------------------------------------------------------------------------------------------------------


def test_aes_is_that_of_fips_197() -> None:
    key, plain = bytes(range(16)), bytes.fromhex("00112233445566778899aabbccddeeff")
    encrypted = bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")
    for level in levels():
        assert aes(level, key, plain, back=False) == encrypted
        assert aes(level, key, encrypted, back=True) == plain


def test_every_level_is_like_another_aes() -> None:
    chance = random.Random(1)
    for _ in range(300):
        key, block = chance.randbytes(16), chance.randbytes(16)
        expected = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305
        for level in levels():
            assert aes(level, key, block, back=False) == expected
            assert aes(level, key, expected, back=True) == block


# --- connection ids --------------------------------------------------------------------------------------------------

#: Appendix B: configuration, server id, nonce, connection id. Two of them have a first byte there that says neither
#: what the row says (0x12 for configuration 3) nor is whole (plain, configuration 1): it is made right here.
PLAIN = [
    (0, "c4605e", "4504cc4f", "07c4605e4504cc4f"),
    (1, "350d28b420", "3487d970b0", "2a350d28b4203487d970b0"),
]
ENCRYPTED = [
    (0, "ed793a", "ee080dbf", "0720b1d07b359d3c"),
    (1, "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"),
    (2, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
    (3, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "725779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
]
VECTORS = [(*row, None) for row in PLAIN] + [(*row, KEY) for row in ENCRYPTED]


@pytest.mark.parametrize(("number", "server_id", "nonce", "connection_id", "key"), VECTORS)
def test_the_drafts_vectors(number: int, server_id: str, nonce: str, connection_id: str, key: bytes | None) -> None:
    configuration = quic.Configuration(number, len(server_id) // 2, len(nonce) // 2, key)
    whole = bytes.fromhex(connection_id)
    assert quic.server_id([configuration], whole) == (number, bytes.fromhex(server_id))
    for level in levels():
        with routes([configuration], [(number, bytes.fromhex(server_id), 7)], level) as made:
            assert find(made, long_header(whole)) == 7
            assert find(made, long_header(whole, version=0xABCD)) == 7
            assert find(made, long_header(whole + b"more, of the server's own")) == 7
            assert find(made, short_header(whole)) == 7
        with routes([configuration], [(number, bytes(len(server_id) // 2), 7)], level) as made:
            assert find(made, long_header(whole)) == NOBODY


def test_the_drafts_example_of_four_passes() -> None:
    configuration = quic.Configuration(0, 3, 4, bytes.fromhex("fdf726a9893ec05c0632d3956680baf0"))
    whole = bytes.fromhex("0767947d29be054a")
    assert quic.server_id([configuration], whole) == (0, bytes.fromhex("31441a"))
    for level in levels():
        with routes([configuration], [(0, bytes.fromhex("31441a"), 1)], level) as made:
            assert find(made, short_header(whole)) == 1


def some_configurations(chance: random.Random) -> list[quic.Configuration]:
    found = []
    for number in chance.sample(range(7), chance.randint(1, 7)):
        server_id_bytes = chance.choice((1, 1, 2, 3, 4, 8, 15))
        nonce_bytes = chance.choice((4, 19 - server_id_bytes, chance.randint(4, 19 - server_id_bytes)))
        key = chance.randbytes(16) if chance.random() < 0.7 else None
        found.append(quic.Configuration(number, server_id_bytes, nonce_bytes, key))
    return found


def test_any_datagram_goes_where_the_oracle_says() -> None:
    chance = random.Random(2)
    named = 0
    for _ in range(60):
        configurations = some_configurations(chance)
        servers: dict[tuple[int, bytes], int] = {}
        for one in configurations:
            for _ in range(chance.choice((1, 5, 100))):
                servers[one.number, chance.randbytes(one.server_id_bytes)] = len(servers)
        rows = [(number, server_id, backend) for (number, server_id), backend in servers.items()]
        made = [create(configurations, rows, level) for level in levels()]
        for _ in range(200):
            connection_id = chance.randbytes(chance.choice((0, 1, 4, 8, 17, 20, 40)))
            datagram = chance.choice((long_header, short_header))(connection_id)
            datagram = datagram[: chance.choice((len(datagram), chance.randint(0, len(datagram))))]
            whole = quic.destination_id(datagram)
            key = None if whole is None else quic.server_id(configurations, whole)
            expected = NOBODY if key is None else servers.get(key, NOBODY)
            named += expected != NOBODY
            for code, one in made:
                assert code == 0
                assert find(one, datagram) == expected, datagram.hex()
        for _, one in made:
            c().quic_routes_put(one)
    assert named > 100


def test_what_cannot_be_is_refused() -> None:
    good = quic.Configuration(0, 4, 12, KEY)
    for bad in (
        good._replace(number=7),
        good._replace(server_id_bytes=0),
        good._replace(nonce_bytes=3),
        good._replace(server_id_bytes=16, nonce_bytes=4),
        good._replace(server_id_bytes=255, nonce_bytes=255),
    ):
        assert create([bad], [], BEST)[0] == -errno.EINVAL
    assert create([good, good], [], BEST)[0] == -errno.EINVAL
    assert create([good], [(0, b"abcd", 1), (0, b"abcd", 2)], BEST)[0] == -errno.EINVAL
    assert create([good], [(1, b"abcd", 1)], BEST)[0] == -errno.EINVAL
    assert create([good], [(0, b"abcd", NOBODY)], BEST)[0] == -errno.EINVAL
