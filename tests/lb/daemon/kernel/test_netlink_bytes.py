# SPDX-License-Identifier: Apache-2.0
"""Netlink's messages and attributes: cut as they were put together, and no further than they are whole."""

from __future__ import annotations

import pytest

from lb.daemon.kernel.netlink_bytes import HEADER, NESTED, attribute, attributes, flags, messages, with_headers


def message(kind: int, sequence: int, port: int, body: bytes, said: int = 0) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, said, sequence, port) + body + bytes(-len(body) % 4)


def test_messages_of_one_read_are_cut_apart() -> None:
    data = message(16, 1, 7, b"abcde") + message(3, 2, 0, b"")
    assert list(messages(data)) == [(16, 1, 7, b"abcde"), (3, 2, 0, b"")]


def test_flags_and_whole_messages_are_had_of_the_same_cuts() -> None:
    first, second = message(24, 1, 7, b"abcde", said=0x12), message(3, 2, 0, b"", said=0x2)
    assert list(flags(first + second)) == [(24, 0x12, b"abcde"), (3, 0x2, b"")]
    assert list(with_headers(first + second)) == [(24, first[: HEADER.size + 5]), (3, second)]


def test_attributes_are_found_by_type_without_its_flags() -> None:
    inner = attribute(1, b"x") + attribute(2, b"four")
    found = attributes(attribute(5 | NESTED, inner) + attribute(6 | 0x4000, b"\0\1"))
    assert found == {5: inner, 6: b"\0\1"}
    assert attributes(found[5]) == {1: b"x", 2: b"four"}


@pytest.mark.parametrize("length", [0, 3, 15])
def test_what_is_cut_short_or_says_a_wrong_length_ends_the_list(length: int) -> None:
    """No byte of it may keep a reader in a loop."""
    whole = message(16, 1, 7, b"abcd")
    assert len(list(messages(whole + whole[:length]))) == 1
    wrong = whole + length.to_bytes(4, "little") + bytes(12)
    assert list(messages(wrong)) == list(messages(whole))
    assert (len(list(flags(wrong))), len(list(with_headers(wrong)))) == (1, 1)
    assert attributes(attribute(1, b"abcd") + bytes(4)) == {1: b"abcd"}
