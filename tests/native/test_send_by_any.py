# SPDX-License-Identifier: Apache-2.0
"""Interfaces that frames leave by, as they come, go, and return: over a kernel of our own, send_by_any_probe.c."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import CDLL, c_int

import pytest

from tests.native.compiled import library

WAYS = 4
GATE = (
    "io/gso_tap.c",
    "packet/merge.c",
    "packet/checksum.c",
    "bpf/tunnel_gso.c",
    "bpf/bpf_syscalls.c",
    "bpf/assembler.c",
)
SOURCES = (
    "send_by_any_probe.c",
    "io/af_packet/block_ring.c",
    "io/af_packet/slot_ring.c",
    "io/af_packet/ring_choice.c",
    "worker/worker_pace.c",
    *GATE,
)


class Kernel:
    def __init__(self) -> None:
        self._c: CDLL = library(*SOURCES)
        self._c.probe_start()

    def comes(self, interface: int, *, up: bool = True) -> None:
        self._c.probe_interface(interface, 1, int(up))

    def goes(self, interface: int) -> None:
        self._c.probe_interface(interface, 0, 0)

    def lost(self, interface: int, frames: int = 10) -> int:
        """How many of so many frames could not be sent."""
        return int(self._c.probe_send(interface, frames))

    def calls(self) -> tuple[int, int, int]:
        """bind(), sendmmsg(), and of these those that name an interface; since last asked."""
        told = (c_int * 3)()
        self._c.probe_told(told)
        return told[0], told[1], told[2]

    def bound(self, interface: int) -> bool:
        """It has a way of its own by now: a burst is one call, without an address."""
        self.lost(interface)
        self.calls()
        return self.lost(interface) == 0 and self.calls() == (0, 1, 0)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    return Kernel()


def test_an_interface_is_bound_once_and_sent_by_without_an_address(kernel: Kernel) -> None:
    kernel.comes(5)
    assert kernel.lost(5) == 0
    assert kernel.calls() == (1, 1, 0)
    assert kernel.bound(5)


def test_a_bind_that_failed_burns_no_way(kernel: Kernel) -> None:
    for interface in range(10, 30):
        assert kernel.lost(interface) == 10
    for interface in range(1, 1 + WAYS):
        kernel.comes(interface)
        assert kernel.bound(interface)
    kernel.comes(10)
    assert kernel.lost(10) == 0


def test_an_interface_that_returns_with_the_same_number_works_again_at_once(kernel: Kernel) -> None:
    kernel.comes(5)
    assert kernel.bound(5)
    for _ in range(20):
        kernel.goes(5)
        assert kernel.lost(5) == 10
        kernel.comes(5)
        assert kernel.lost(5) == 0
        assert kernel.bound(5)
        kernel.goes(5)  # and comes back before anything is sent
        kernel.comes(5)
        assert kernel.lost(5) == 0


def test_an_interface_that_was_down_loses_nothing_once_it_is_up(kernel: Kernel) -> None:
    kernel.comes(5)
    assert kernel.bound(5)
    kernel.comes(5, up=False)
    assert kernel.lost(5) == 10
    kernel.comes(5)
    assert kernel.lost(5) == 0
    assert kernel.bound(5)


def test_ways_of_interfaces_that_are_no_more_are_given_to_others(kernel: Kernel) -> None:
    for interface in range(1, 50):
        kernel.comes(interface)
        for _ in range(1100):
            assert kernel.lost(interface, 1) == 0
        assert kernel.bound(interface)
        kernel.goes(interface)


def test_a_fifth_interface_takes_none_away(kernel: Kernel) -> None:
    for interface in range(1, 2 + WAYS):
        kernel.comes(interface)
        assert kernel.lost(interface) == 0
    kernel.calls()
    assert kernel.lost(1 + WAYS) == 0
    assert kernel.calls() == (0, 1, 1)
    for interface in range(1, 1 + WAYS):
        assert kernel.bound(interface)


def test_an_interface_that_is_down_costs_a_bounded_number_of_calls(kernel: Kernel) -> None:
    kernel.comes(5)
    assert kernel.bound(5)
    kernel.comes(5, up=False)
    kernel.lost(5)
    kernel.calls()
    assert kernel.lost(5, 64) == 64
    binds, sends, _ = kernel.calls()
    assert binds <= 2
    assert sends <= 64 + 2
