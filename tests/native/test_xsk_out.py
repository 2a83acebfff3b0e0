# SPDX-License-Identifier: Apache-2.0
"""Packet mode sends by AF_XDP (native/io/af_xdp/xsk_out.c): what it sends, what it leaves, and how it ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ctypes import CDLL, c_uint
from dataclasses import dataclass

import pytest

from tests.native.compiled import library

CHUNKS, LOOK_EVERY, BURST_MAX, PAUSE = 1024, 1024, 64, 16
VETH = 5


@dataclass(frozen=True)
class Told:
    kicks: int
    binds: int
    sockets: int
    free: int


class Kernel:
    """``taken``: frames that a call takes; ``dropped``, ``refused``: which one, from which one on, counted from 1."""

    def __init__(self) -> None:
        self._c: CDLL = library("xsk_out_probe.c")

    def start(
        self, *, taken: int = 32, dropped: int = 0, refused: int = 0, code: int = 0, bind: int = 0, veth: bool = True
    ) -> Kernel:
        self._c.probe_start(taken, dropped, refused, code, bind, int(veth))
        return self

    def send(
        self, count: int, length: int = 100, *, to: int = VETH, gso_size: int = 0, mtu: int = 1500
    ) -> tuple[int, int]:
        """How many were sent, and of these how many the link dropped."""
        made = int(self._c.probe_send(count, length, to, gso_size, mtu))
        assert made >= 0, "what arrived is not what was sent"
        return divmod(made, 1000)

    def told(self) -> Told:
        found = (c_uint * 4)()
        self._c.probe_told(found)
        return Told(*found)

    def refuse(self) -> None:
        """All from here on, as was told at the start."""
        self._c.probe_refuse()

    def recover(self) -> None:
        self._c.probe_recover()

    def end(self) -> None:
        self._c.probe_end()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.end()


def test_a_burst_leaves_whole_however_many_a_call_takes(kernel: Kernel) -> None:
    kernel.start(taken=24)
    for _ in range(3 * CHUNKS // BURST_MAX):
        assert kernel.send(BURST_MAX) == (BURST_MAX, 0)
    told = kernel.told()
    assert (told.binds, told.free) == (1, CHUNKS)
    assert told.kicks == 3 * 3 * CHUNKS // BURST_MAX


def test_a_frame_that_the_link_drops_is_said_and_the_others_leave(kernel: Kernel) -> None:
    kernel.start(dropped=7)
    assert kernel.send(20) == (20, 1)
    assert kernel.send(20) == (20, 0)
    assert kernel.told().free == CHUNKS


def test_once_an_interface_is_gone_sockets_send_all(kernel: Kernel) -> None:
    kernel.start(refused=11, code=errno.ENXIO)
    assert kernel.send(20) == (10, 0)
    assert kernel.told().sockets == 0
    kernel.recover()
    for _ in range(2 * LOOK_EVERY):
        assert kernel.send(20) == (0, 0)
    assert kernel.told().binds == 1


@pytest.mark.parametrize("code", [errno.ENETDOWN, errno.EAGAIN])
def test_what_a_kernel_does_not_take_is_for_others_and_nothing_is_sent_twice(kernel: Kernel, code: int) -> None:
    kernel.start(refused=11, code=code)
    assert kernel.send(20) == (10, 0)
    kicks = kernel.told().kicks
    for _ in range(PAUSE):
        assert kernel.send(20) == (0, 0)
    assert kernel.told().kicks == kicks, "it is not asked again at once"
    # That no more arrives than is said to be sent is what send() looks at.
    kernel.recover()
    assert kernel.send(20) == (20, 0)
    assert kernel.send(20) == (20, 0)
    assert kernel.told() == Told(kicks=kicks + 2, binds=1, sockets=1, free=CHUNKS)


def test_pauses_become_longer_while_a_kernel_refuses_and_short_again_when_it_does_not(kernel: Kernel) -> None:
    kernel.start(refused=1, code=errno.EAGAIN)
    asked = []
    for burst in range(8 * PAUSE):
        kicks = kernel.told().kicks
        assert kernel.send(BURST_MAX) == (0, 0)
        if kernel.told().kicks != kicks:
            asked.append(burst)
    assert asked == [0, PAUSE + 1, 3 * PAUSE + 2, 7 * PAUSE + 3]
    assert kernel.told().free == CHUNKS
    kernel.recover()
    while kernel.send(BURST_MAX) != (BURST_MAX, 0):
        pass
    kernel.refuse()
    assert kernel.send(1) == (0, 0)
    kernel.recover()
    for _ in range(PAUSE):
        assert kernel.send(1) == (0, 0)
    assert kernel.send(1) == (1, 0)


@pytest.mark.parametrize(
    "frame",
    [{"length": 1515}, {"length": 2049, "mtu": 9000}, {"gso_size": 500}, {"to": 6}],
    ids=["above the MTU", "longer than a chunk", "super-packet", "another interface"],
)
def test_what_is_not_for_it_it_leaves_to_others(kernel: Kernel, frame: dict[str, int]) -> None:
    kernel.start()
    assert kernel.send(5) == (5, 0)
    if "mtu" in frame:
        kernel.end()
        kernel.start()
        assert kernel.send(5, mtu=9000) == (5, 0)
    length = frame.pop("length", 100)
    assert kernel.send(5, length, **frame) == (0, 0)
    assert kernel.send(5) == (5, 0)
    assert kernel.send(5, 1514) == (5, 0)


def test_an_mtu_that_changed_is_seen(kernel: Kernel) -> None:
    kernel.start()
    assert kernel.send(1, 1400) == (1, 0)
    for _ in range(LOOK_EVERY):
        kernel.send(1, mtu=1000)
    assert kernel.send(1, 1400, mtu=1000) == (0, 0)


def test_where_no_veth_is_sockets_send_all(kernel: Kernel) -> None:
    kernel.start(veth=False)
    assert kernel.send(5) == (0, 0)
    assert kernel.told().binds == kernel.told().sockets == 0


@pytest.mark.parametrize(("code", "tries"), [(errno.EBUSY, 3), (errno.ENETDOWN, 3), (errno.EOPNOTSUPP, 1)])
def test_a_queue_that_somebody_has_is_asked_for_now_and_then(kernel: Kernel, code: int, tries: int) -> None:
    kernel.start(bind=-code)
    for _ in range(2 * LOOK_EVERY + 1):
        assert kernel.send(1) == (0, 0)
    assert kernel.told().binds == tries
