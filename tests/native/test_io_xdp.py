# SPDX-License-Identifier: Apache-2.0
"""The AF_XDP backend over a kernel of our own, xdp_probe.c: no chunk is lost, or given away twice, or too early."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from ctypes import CDLL, c_uint64
from dataclasses import dataclass

import pytest

from tests.native.compiled import library
from tests.native.test_send_by_any import GATE

RING, SEND_RING, BURST = 128, 64, 64  #: as in xdp_probe.c
OWN, OUT = 1, 2  #: interfaces: where frames come from, and one to leave by
INTERFACES = (OWN, OUT, 3, 4, 5, 6, 7)
FRAME = 60
ENCAPSULATE, WITH_OURS, TWICE, OURS = 1, 2, 3, 4


@dataclass(frozen=True)
class Counts:
    received: int
    sent: int
    missed: int
    send_errors: int
    wired: int
    spoiled: int
    by_packet: int
    refused: int
    beyond_mtu: int
    waiting: int
    free: int


class Kernel:
    def __init__(self, queues: int = 1, frame_max: int = 1514) -> None:
        self._c: CDLL = library("xdp_probe.c", *GATE)
        assert self._c.probe_open(queues, frame_max) == 0

    def close(self) -> None:
        self._c.probe_close()

    def answer(self, kind: int, code: int, times: int) -> None:
        """What a bind of a kind is answered from now on."""
        self._c.probe_answer(kind, code, times)

    def interface(self, number: int, *, there: bool = True, up: bool = True, mtu: int = 1500) -> None:
        self._c.probe_interface(number, int(there), int(up), mtu)

    def deliver(self, frames: int, queue: int = 0, length: int = FRAME) -> int:
        return int(self._c.probe_deliver(queue, frames, length))

    def complete(self, frames: int = 1 << 16, *, newest: bool = False) -> None:
        self._c.probe_complete(frames, int(newest))

    def refuse(self, interface: int) -> None:
        self._c.probe_refuse(interface)

    def turn(self, choice: int = ENCAPSULATE, interface: int = OUT, grow: int = 0) -> int:
        received = int(self._c.probe_turn(choice, interface, grow))
        assert received >= 0, "no room for an outer header before a frame"
        self.check()
        return received

    def wait(self) -> None:
        self._c.probe_wait()
        self.check()

    def check(self) -> None:
        wrong = int(self._c.probe_census())
        assert wrong == 0, {-1: "a chunk is in two places", -2: "a chunk is in no place"}[wrong]
        counts = self.counts()
        assert counts.spoiled == 0, "a frame was changed while the kernel sent it"
        assert counts.beyond_mtu == 0

    def counts(self) -> Counts:
        told = (c_uint64 * 11)()
        self._c.probe_counts(told)
        return Counts(*told)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def test_a_burst_leaves_and_every_chunk_comes_back(kernel: Kernel) -> None:
    idle = kernel.counts().free
    for _ in range(20):
        assert kernel.deliver(BURST) == BURST
        assert kernel.turn(1) == BURST
        kernel.complete()
        kernel.wait()
    counts = kernel.counts()
    assert counts.received == 20 * BURST
    assert counts.sent == counts.wired > 0
    assert counts.send_errors == counts.missed == 0
    assert counts.free == idle


def test_what_a_full_ring_could_not_take_is_counted_and_all_else_arrives(kernel: Kernel) -> None:
    """The kernel sends all, and tells of nothing that it is done with it."""
    tried = 0
    for _ in range(40):
        kernel.deliver(BURST)
        before = kernel.counts()
        kernel.turn(ENCAPSULATE)
        after = kernel.counts()
        tried += after.sent - before.sent + after.send_errors - before.send_errors
        assert after.sent == after.wired + after.waiting
    counts = kernel.counts()
    assert counts.send_errors > 0
    assert counts.sent == SEND_RING + counts.waiting
    assert tried == counts.sent + counts.send_errors
    for _ in range(4):
        kernel.complete()
        kernel.deliver(1)
        kernel.turn(ENCAPSULATE)
    assert kernel.counts().waiting == 0


def test_a_kernel_that_lacked_room_to_say_what_it_is_done_with_is_asked_again_at_once(kernel: Kernel) -> None:
    for _ in range(10):
        kernel.deliver(BURST)
        kernel.turn(ENCAPSULATE)
        assert kernel.counts().waiting == 0
        kernel.complete()
    assert kernel.counts().send_errors == 0


def test_frames_for_which_there_was_no_chunk_are_missed_and_later_ones_are_not(kernel: Kernel) -> None:
    taken = kernel.deliver(RING + 50)
    assert taken == RING
    assert kernel.counts().missed == 50
    while kernel.turn(0):
        pass
    assert kernel.deliver(RING) == RING
    assert kernel.counts().missed == 50


def test_what_is_made_here_finds_a_chunk_however_many_wait_to_be_received(kernel: Kernel) -> None:
    kernel.deliver(RING)
    kernel.turn(0)  # all that is free is given to receive into, but for a few
    kernel.turn(OURS)
    assert kernel.counts().sent > 0


def test_a_frame_that_the_driver_refuses_is_no_sent_one(kernel: Kernel) -> None:
    for _ in range(2):
        kernel.deliver(3)
        kernel.turn(ENCAPSULATE)
        kernel.complete()
        kernel.refuse(OUT)
    counts = kernel.counts()
    assert counts.refused == 1
    assert counts.send_errors == 1


def test_a_link_that_is_down_takes_nothing_and_serves_again(kernel: Kernel) -> None:
    kernel.deliver(8)
    kernel.turn(ENCAPSULATE)
    kernel.interface(OUT, up=False)
    for _ in range(10):
        kernel.deliver(BURST)
        kernel.turn(ENCAPSULATE)
        kernel.complete()
    down = kernel.counts()
    assert down.send_errors > 0
    kernel.interface(OUT)
    kernel.wait()
    kernel.complete()
    kernel.deliver(BURST)
    kernel.turn(ENCAPSULATE)
    up = kernel.counts()
    assert up.waiting == 0
    assert up.wired > down.wired
    assert up.send_errors == down.send_errors


def test_an_interface_that_goes_while_frames_are_on_their_way_takes_no_chunk_along(kernel: Kernel) -> None:
    idle = kernel.counts().free
    kernel.deliver(BURST)
    kernel.turn(ENCAPSULATE)  # and none is done with
    kernel.interface(OUT, there=False)
    kernel.deliver(1)
    kernel.turn(ENCAPSULATE)
    assert kernel.counts().send_errors == 1
    kernel.wait()
    assert kernel.counts().free == idle
    kernel.deliver(8)
    kernel.turn(ENCAPSULATE)
    assert kernel.counts().by_packet == 8


def test_frames_left_in_the_ring_of_an_interface_that_goes_are_given_up_though_nothing_more_is_sent(
    kernel: Kernel,
) -> None:
    idle = kernel.counts().free
    for _ in range(2):  # the second time the kernel has no room to report them as done
        kernel.deliver(40)
        kernel.turn(ENCAPSULATE)
    left = kernel.counts().waiting
    assert left > 0
    kernel.interface(OUT, there=False)
    kernel.wait()
    counts = kernel.counts()
    assert counts.send_errors == left
    assert counts.free == idle


def test_frames_longer_than_the_interface_takes_are_refused_until_it_takes_them(kernel: Kernel) -> None:
    kernel.deliver(4)
    kernel.turn(OURS, grow=1600)
    refused = kernel.counts().send_errors
    assert refused > 0
    kernel.interface(OUT, mtu=1700)
    kernel.deliver(4)
    kernel.turn(OURS, grow=1600)
    counts = kernel.counts()
    assert counts.send_errors == refused
    assert counts.wired > 0


def test_frames_longer_than_a_chunk_leave_by_a_packet_socket(kernel: Kernel) -> None:
    kernel.interface(OUT, mtu=9000)
    kernel.deliver(4)
    kernel.turn(OURS, grow=8000)
    counts = kernel.counts()
    assert counts.by_packet > 0
    assert counts.send_errors == 0


def test_more_interfaces_than_there_are_sockets_for_are_all_left_by(kernel: Kernel) -> None:
    for interface in range(1, 12):
        kernel.deliver(3)
        kernel.turn(ENCAPSULATE, interface)
        kernel.complete()
    counts = kernel.counts()
    assert counts.send_errors == 0
    assert counts.sent == counts.wired + counts.by_packet
    assert counts.by_packet > 0


def test_every_queue_gets_its_turn() -> None:
    kernel = Kernel(queues=2)
    try:
        for _ in range(20):
            kernel.deliver(BURST, 0)
            kernel.deliver(BURST, 1)
            kernel.turn(0)
        assert kernel.counts().missed < 20 * BURST
        while kernel.turn(0):
            pass
        assert kernel.counts().received + kernel.counts().missed == 40 * BURST
        assert kernel.deliver(RING, 0) == kernel.deliver(RING, 1) == RING
    finally:
        kernel.close()


@dataclass(frozen=True)
class Opened:
    """How an opening went: binds asked for, of the first socket, of others on its interface and elsewhere."""

    error: int
    zero_copy: int
    copying: int
    queues: int
    ways: int
    pauses: int
    sockets: int
    without_chunks: int
    busy: int


#: What is answered: a first socket's bind, zero-copy or copying; that of its interface's other queues; of a way out.
ZERO_COPY, COPYING, QUEUE, WAY = range(4)
FOREVER = 1 << 20


@pytest.fixture
def driver() -> Iterator[CDLL]:
    made = library("xdp_probe.c", *GATE)
    yield made
    for kind in (ZERO_COPY, COPYING, QUEUE, WAY):
        made.probe_answer(kind, 0, 0)


def opening(driver: CDLL, queues: int = 1, *, zero_copy: bool, busy: bool = False, no_busy: bool = False) -> Opened:
    """Opens it, and closes it again where that went well."""
    told = (c_uint64 * 8)()
    error = int(driver.probe_open_as(queues, int(zero_copy), int(busy), int(no_busy), told))
    if not error:
        driver.probe_close()
    return Opened(error, *told)


@pytest.mark.parametrize("zero_copy", [True, False], ids=["zero-copy", "copying"])
def test_a_driver_is_asked_for_what_was_wanted_and_finds_chunks_as_soon_as_it_says_yes(
    driver: CDLL, zero_copy: bool
) -> None:
    made = opening(driver, 3, zero_copy=zero_copy)
    assert (made.error, made.zero_copy, made.copying, made.queues) == (0, int(zero_copy), int(not zero_copy), 2)
    assert (made.pauses, made.without_chunks) == (0, 0)


@pytest.mark.parametrize("kind", [ZERO_COPY, QUEUE], ids=["the first queue", "another queue"])
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOBUFS])
def test_a_driver_that_refuses_is_asked_once_and_all_that_was_opened_is_closed(
    driver: CDLL, kind: int, code: int
) -> None:
    driver.probe_answer(kind, -code, FOREVER)
    made = opening(driver, 2, zero_copy=True)
    assert made.error == -code
    assert (made.zero_copy, made.copying, made.queues) == (1, 0, int(kind == QUEUE))
    assert (made.pauses, made.sockets) == (0, 0)


@pytest.mark.parametrize(("kind", "zero_copy"), [(ZERO_COPY, True), (COPYING, False), (QUEUE, True)])
def test_a_queue_that_one_who_was_killed_had_a_moment_ago_is_waited_for(
    driver: CDLL, kind: int, zero_copy: bool
) -> None:
    driver.probe_answer(kind, -errno.EBUSY, 7)
    made = opening(driver, 2, zero_copy=zero_copy)
    assert (made.error, made.pauses) == (0, 7)
    driver.probe_answer(kind, -errno.EBUSY, FOREVER)
    made = opening(driver, 2, zero_copy=zero_copy)
    assert (made.error, made.pauses, made.sockets) == (-errno.EBUSY, 99, 0)


def test_a_kernel_that_polls_for_nobody_is_no_reason_to_refuse(driver: CDLL) -> None:
    for asked, refused, got in ((True, False, 1), (True, True, 0), (False, False, 0)):
        made = opening(driver, zero_copy=False, busy=asked, no_busy=refused)
        assert (made.error, made.busy) == (0, got)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.EBUSY])
def test_an_interface_that_shares_no_memory_is_left_by_a_packet_socket_and_asked_once(code: int) -> None:
    """Zero-copy in, and no driver for it out."""
    kernel = Kernel()
    try:
        kernel.answer(WAY, -code, FOREVER)
        for _ in range(3):
            kernel.deliver(8)
            kernel.turn(ENCAPSULATE)
        counts = kernel.counts()
        assert (counts.sent, counts.by_packet, counts.send_errors) == (24, 24, 0)
        kernel.answer(WAY, 0, 0)
        kernel.deliver(8)
        kernel.turn(ENCAPSULATE)
        assert kernel.counts().by_packet == 32
        kernel.deliver(8)
        kernel.turn(ENCAPSULATE, 3)  # another takes it
        assert kernel.counts().wired == 8
    finally:
        kernel.answer(WAY, 0, 0)
        kernel.close()


def something_happens(kernel: Kernel, dice: random.Random, gone: set[int]) -> None:
    """But for frames that come. ``gone``: interfaces that are no more, which grows."""
    act, interface = dice.random(), dice.choice(INTERFACES)
    if act < 0.67:
        kernel.turn(dice.randrange(10), interface, dice.choice((0, 0, 1400, 1480, 5000)))
    elif act < 0.83:
        kernel.complete(dice.choice((1, 5, 1 << 16)), newest=dice.random() < 0.3)
    elif act < 0.88:
        kernel.wait()
    elif act < 0.92:
        kernel.refuse(interface)
    elif interface in gone or interface == OWN or act < 0.975:
        kernel.interface(interface, up=dice.random() < 0.5, there=interface not in gone)
    else:
        gone.add(interface)
        kernel.interface(interface, there=False)


@pytest.mark.parametrize("seed", range(60))
def test_a_storm_leaks_no_chunk_and_every_frame_is_accounted_for(seed: int) -> None:
    """Everything at random: rings that fill, links that go, drivers that refuse; then all is let come to its end."""
    dice = random.Random(seed)
    queues = dice.choice((1, 2))
    kernel = Kernel(queues)
    gone: set[int] = set()
    try:
        idle, offered = kernel.counts().free, 0
        for _ in range(dice.randrange(50, 300)):
            frames = dice.choice((1, 3, BURST, RING))
            if dice.random() < 0.4:
                offered += frames
                kernel.deliver(frames, dice.randrange(queues), dice.choice((FRAME, 1000, 1514)))
            else:
                something_happens(kernel, dice, gone)
            kernel.check()
        for interface in set(INTERFACES) - gone:
            kernel.interface(interface)
        for interface in INTERFACES * 8:
            kernel.deliver(3)
            offered += 3
            kernel.turn(ENCAPSULATE, interface)
            kernel.complete()
        while kernel.turn(0):
            pass
        for _ in range(8):
            kernel.complete()
            kernel.wait()
        counts = kernel.counts()
        assert counts.received + counts.missed == offered
        assert counts.waiting == 0
        assert counts.free == idle
        lost = counts.sent - counts.wired - counts.by_packet
        assert 0 <= counts.refused <= lost <= counts.send_errors
    finally:
        kernel.close()
