# SPDX-License-Identifier: Apache-2.0
"""Connection ids as servers mint them: the draft's, and read again by an oracle that shares nothing with them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from lb.quic_ids import ConnectionIds, aes128, read_key_file, server_id_of
from tests.model import quic
from tests.native.test_quic_routes import VECTORS


@pytest.mark.parametrize(("number", "server_id", "nonce", "connection_id", "key"), VECTORS)
def test_the_drafts_vectors(number: int, server_id: str, nonce: str, connection_id: str, key: bytes | None) -> None:
    ids = ConnectionIds(number, bytes.fromhex(server_id), nonce_bytes=len(nonce) // 2, key=key)
    assert ids.mint(bytes.fromhex(nonce)).hex() == connection_id
    assert ids.length == len(connection_id) // 2


def test_aes_is_another_aes() -> None:
    chance = random.Random(1)
    for _ in range(50):
        key, block = chance.randbytes(16), chance.randbytes(16)
        assert aes128(key)(block) == Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305


def test_what_is_minted_is_read_again_and_never_comes_twice() -> None:
    for server_id_bytes in range(1, 16):
        for nonce_bytes in range(4, 20 - server_id_bytes):
            for key in (None, bytes(range(16))):
                server_id = random.Random(server_id_bytes).randbytes(server_id_bytes)
                ids = ConnectionIds(5, server_id, nonce_bytes=nonce_bytes, key=key)
                configuration = quic.Configuration(5, server_id_bytes, nonce_bytes, key)
                minted = [ids.mint() for _ in range(3)]
                assert len(set(minted)) == 3
                for one in minted:
                    assert quic.server_id([configuration], one) == (5, server_id)
                    assert one[0] & 31 == len(one) - 1 == ids.length - 1


def test_a_servers_own_aes_is_used() -> None:
    asked = []

    def own(block: bytes) -> bytes:
        asked.append(block)
        return aes128(bytes(16))(block)

    plain = ConnectionIds(0, b"abcd", key=bytes(16)).mint(bytes(12))
    assert ConnectionIds(0, b"abcd", encrypt=own).mint(bytes(12)) == plain
    assert asked == [b"abcd" + bytes(12)]


def test_a_server_id_is_of_the_name_alone_unless_given() -> None:
    assert server_id_of("web-1").hex() == "d8b47ceb"
    assert server_id_of("web-1", 15)[:4] == server_id_of("web-1")
    assert server_id_of("web-1", 2, "0a0B") == b"\x0a\x0b"
    assert server_id_of("web-1", 4, "0a0b") == server_id_of("web-1")
    assert len({server_id_of(f"web-{n}") for n in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("number", "server_id", "nonce_bytes", "word"),
    [(7, b"a", 4, "0 to 6"), (0, b"", 4, "at least 1"), (0, b"a", 3, "4"), (0, b"abcd", 16, "at most 19")],
)
def test_what_cannot_be_is_refused(number: int, server_id: bytes, nonce_bytes: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ConnectionIds(number, server_id, nonce_bytes=nonce_bytes)
    with pytest.raises(ValueError, match="16 bytes"):
        ConnectionIds(0, b"a", key=b"short")
    with pytest.raises(ValueError, match="nonce"):
        ConnectionIds(0, b"a").mint(b"short")


def test_a_key_file_is_for_few_and_its_key_is_never_told(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("8f95f09245765f80256934e50c66207f\n")
    path.chmod(0o644)
    with pytest.raises(ValueError, match="everybody"):
        read_key_file(path)
    path.chmod(0o640)
    assert read_key_file(path).hex() == "8f95f09245765f80256934e50c66207f"
    for wrong in ("8f95f0924576", "no key at all", "8f95f09245765f80256934e50c66207f00", ""):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="32 hex digits") as caught:
            read_key_file(path)
        assert not wrong or wrong not in str(caught.value)
        assert caught.value.__context__ is None or "8f95" not in str(caught.value.__context__)
    with pytest.raises(FileNotFoundError):
        read_key_file(tmp_path / "none")
