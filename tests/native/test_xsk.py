# SPDX-License-Identifier: Apache-2.0
"""What AF_XDP sockets ask the kernel for, call by call, over system calls of our own, xsk_probe.c."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ctypes import CDLL, c_char_p, c_uint64

import pytest

from tests.native.compiled import library

# Of <linux/if_xdp.h>, <asm-generic/socket.h> and <asm-generic/mman-common.h>.
RX_RING, TX_RING, UMEM_REG, FILL, COMPLETION = 2, 3, 4, 5, 6
SHARED, COPY, ZEROCOPY, NEED_WAKEUP = 1, 2, 4, 8
MMAP_OFFSETS, MAX_TX_BUDGET = 1, 9
BUSY_POLL, PREFER_BUSY_POLL, BUSY_POLL_BUDGET = 46, 69, 70
DONTFORK, HUGEPAGE = 10, 14
FILL_PAGE, COMPLETION_PAGE, RX_PAGE, TX_PAGE = "100000000", "180000000", "0", "80000000"
RECEIVE_RING, SEND_RING, FILL_LITTLE = 8192, 4096, 64
OFFSET, DESC = 64, 16  #: of a fill ring's entries, and bytes of a descriptor


@pytest.fixture
def kernel() -> Iterator[CDLL]:
    made = library("xsk_probe.c")
    made.probe_said.restype = c_char_p
    made.probe_start(0, 0, 0)
    assert made.probe_memory() == 0
    yield made
    made.probe_close()
    assert made.probe_mapped() == 0, "what was mapped is unmapped, once"


def said(kernel: CDLL) -> list[str]:
    return [words for words in kernel.probe_said().decode().split(";") if words]


def test_memory_is_not_shared_with_a_child_that_would_have_pages_copied(kernel: CDLL) -> None:
    assert said(kernel) == [f"advice {HUGEPAGE}", f"advice {DONTFORK}"]


def test_a_socket_that_receives_has_four_rings_and_locked_memory_without_a_limit(kernel: CDLL) -> None:
    assert kernel.probe_open(1, RECEIVE_RING) == 0
    assert said(kernel)[2:] == [
        "socket 44 1",
        "limit 1 1",
        f"memory {2048 * 64} of 2048 headroom 0",
        f"option {FILL} {RECEIVE_RING}",
        f"option {COMPLETION} {SEND_RING}",
        f"option {TX_RING} {SEND_RING}",
        f"option {RX_RING} {RECEIVE_RING}",
        f"ring {FILL_PAGE} of {OFFSET + 8 * RECEIVE_RING}",
        f"ring {COMPLETION_PAGE} of {8 * SEND_RING}",
        f"ring {TX_PAGE} of {DESC * SEND_RING}",
        f"ring {RX_PAGE} of {DESC * RECEIVE_RING}",
    ]


def test_one_that_shares_memory_and_only_sends_has_no_ring_to_receive_from(kernel: CDLL) -> None:
    assert kernel.probe_open(0, 0) == 0
    assert said(kernel)[3:] == [
        f"option {FILL} {FILL_LITTLE}",
        f"option {COMPLETION} {SEND_RING}",
        f"option {TX_RING} {SEND_RING}",
        f"ring {FILL_PAGE} of {OFFSET + 8 * FILL_LITTLE}",
        f"ring {COMPLETION_PAGE} of {8 * SEND_RING}",
        f"ring {TX_PAGE} of {DESC * SEND_RING}",
    ]


@pytest.mark.parametrize(("copy", "flag"), [(False, ZEROCOPY), (True, COPY)], ids=["zero-copy", "copying"])
def test_a_first_socket_says_whether_it_copies_so_that_the_kernel_cannot_choose(
    kernel: CDLL, copy: bool, flag: int
) -> None:
    kernel.probe_open(1, RECEIVE_RING)
    assert kernel.probe_bind(7, 3, int(copy)) == 0
    assert said(kernel)[-1] == f"bind 7 queue 3 flags {NEED_WAKEUP | flag} first 0"


def test_another_is_as_the_first_is_and_says_nothing_else_which_the_kernel_would_refuse(kernel: CDLL) -> None:
    kernel.probe_open(0, 0)
    assert kernel.probe_bind_shared(9, 2) == 0
    assert said(kernel)[-1] == f"bind 9 queue 2 flags {SHARED} first 55"


@pytest.mark.parametrize("option", [UMEM_REG, FILL, COMPLETION, TX_RING, RX_RING, MMAP_OFFSETS])
def test_what_the_kernel_refuses_is_told(kernel: CDLL, option: int) -> None:
    kernel.probe_start(option, errno.ENOBUFS, 0)
    assert kernel.probe_memory() == 0
    assert kernel.probe_open(1, RECEIVE_RING) == -errno.ENOBUFS


def test_a_bind_that_is_refused_is_told(kernel: CDLL) -> None:
    kernel.probe_start(-1, errno.EOPNOTSUPP, 0)
    assert kernel.probe_memory() == 0
    kernel.probe_open(1, RECEIVE_RING)
    assert kernel.probe_bind(7, 0, 0) == kernel.probe_bind_shared(7, 0) == -errno.EOPNOTSUPP


def test_a_kernel_whose_rings_have_no_flags_is_none_for_us(kernel: CDLL) -> None:
    kernel.probe_start(0, 0, 96)
    assert kernel.probe_memory() == 0
    assert kernel.probe_open(1, RECEIVE_RING) == -errno.EOPNOTSUPP


def test_busy_polling_is_had_whole_or_not_at_all(kernel: CDLL) -> None:
    assert kernel.probe_busily(20) == 0
    assert said(kernel)[2:] == [
        f"socket option {PREFER_BUSY_POLL} 1",
        f"socket option {BUSY_POLL} 20",
        f"socket option {BUSY_POLL_BUDGET} 64",
    ]
    for option in (PREFER_BUSY_POLL, BUSY_POLL, BUSY_POLL_BUDGET):
        kernel.probe_close()
        kernel.probe_start(option, errno.ENOPROTOOPT, 0)
        kernel.probe_memory()
        assert kernel.probe_busily(20) == -errno.ENOPROTOOPT


def test_missed_is_what_found_no_chunk_or_no_place_in_the_ring(kernel: CDLL) -> None:
    """Each of the kernel's counts is another power of ten: dropped 1, refused to send 100, ring full 1,000."""
    kernel.probe_open(1, RECEIVE_RING)
    told = (c_uint64 * 2)(0, 0)
    kernel.probe_counts(told)
    assert list(told) == [1001, 100]


def test_a_socket_that_was_closed_counts_nothing(kernel: CDLL) -> None:
    told = (c_uint64 * 2)(5, 6)
    kernel.probe_counts(told)
    assert list(told) == [5, 6]
