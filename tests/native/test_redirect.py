# SPDX-License-Identifier: Apache-2.0
"""Which frames the XDP program takes: all packet tables, and random frames, through the kernel and an oracle."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.bench.testbed.netns import batch, inside, ip, unique_prefix
from lb.dataplane import Redirect
from lb.errors import IoError
from lb.model import Network
from tests.packets.build import MUX_MAC, ROUTER_MAC, ethernet
from tests.packets.frames import ROWS as FRAMES
from tests.packets.frames import SYN, SYN6
from tests.packets.rows import ROWS
from tests.packets.world import SERVICES

VIPS = frozenset(service.vip for service in SERVICES)
AF_XDP = 44
SOL_XDP, XDP_UMEM_FILL_RING = 283, 5
LONGEST = 3000  #: that the kernel tries a program with


def oracle(frame: bytes, vips: frozenset[Network], mac: bytes = MUX_MAC) -> bool:
    """Of no VLAN, to our link address, with all of an IP header, to a VIP."""
    if frame[12:14] in (b"\x81\0", b"\x88\xa8") and len(frame) >= 18 and not int.from_bytes(frame[14:16]) & 0xFFF:
        frame = frame[:12] + frame[16:]  # a priority alone
    header = {b"\x08\x00": 20, b"\x86\xdd": 40}.get(frame[12:14])
    if frame[:6] != mac or header is None or len(frame) < 14 + header:
        return False
    address = ip_address(frame[30:34] if header == 20 else frame[38:54])
    return any(address in vip for vip in vips)


def loaded(vips: frozenset[Network]) -> Redirect:
    try:
        program = Redirect(4)
    except IoError as error:
        if "CAP_BPF" in str(error):
            pytest.skip(f"the kernel takes no BPF program from this user: {error}")
        raise
    for vip in vips:
        program.add(vip)
    return program


@pytest.fixture(scope="module")
def taker() -> Iterator[int]:
    """An AF_XDP socket that a map takes: it has a ring, and is bound to nothing."""
    try:
        made = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
    except OSError as error:
        pytest.skip(f"no AF_XDP here: {error}")
    with made:
        made.setsockopt(SOL_XDP, XDP_UMEM_FILL_RING, 64)
        yield made.fileno()


@pytest.fixture(scope="module")
def program(taker: int) -> Iterator[Redirect]:
    with closing(loaded(VIPS)) as made:
        made.set_address(MUX_MAC)
        made.set_socket(0, taker)
        yield made


TABLE = [(row.claim, ethernet(row.packet)) for row in ROWS] + [(row.claim, row.frame) for row in FRAMES]
CASES = [pytest.param(frame, id=claim) for claim, frame in TABLE if 14 <= len(frame) <= LONGEST]


def test_the_tables_have_both_kinds() -> None:
    taken = [oracle(case.values[0], VIPS) for case in CASES]  # type: ignore[arg-type]
    assert sum(taken) > 50
    assert len(taken) - sum(taken) > 10


@pytest.mark.parametrize("frame", CASES)
def test_rows(program: Redirect, frame: bytes) -> None:
    assert program.takes(frame) == oracle(frame, VIPS)


@pytest.mark.parametrize("frame", [ethernet(SYN), ethernet(SYN6)], ids=["IPv4", "IPv6"])
def test_only_whole_headers_to_our_own_link_address_are_taken(program: Redirect, frame: bytes) -> None:
    assert program.takes(frame)
    for length in range(14, len(frame)):
        assert program.takes(frame[:length]) == oracle(frame[:length], VIPS), length
    for other in (
        ROUTER_MAC,
        b"\xff" * 6,
        *(MUX_MAC[:n] + bytes([MUX_MAC[n] ^ 1]) + MUX_MAC[n + 1 :] for n in range(6)),
    ):
        assert not program.takes(other + frame[6:])


def nearly(frame: bytes, chance: random.Random) -> bytes:
    """The frame with something changed that decides: length, addresses, type, or anything."""
    changed = bytearray(frame)
    for _ in range(chance.randrange(4)):
        at = chance.choice([chance.randrange(6), 12, 13, *range(30, 34), *range(38, 54), chance.randrange(len(frame))])
        if at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
    if chance.random() < 0.1:
        changed[12:14] = chance.choice([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x08\x06"])
    if chance.random() < 0.2:
        del changed[chance.randrange(14, len(changed) + 1) :]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_frames_that_are_nearly_those_of_the_tables(program: Redirect, seed: int) -> None:
    chance = random.Random(seed)
    frames = [frame for _, frame in TABLE if 14 <= len(frame) <= LONGEST]
    changed = [nearly(chance.choice(frames), chance) for _ in range(2000)]
    taken = [program.takes(frame) for frame in changed]
    assert [frame.hex() for frame, took in zip(changed, taken, strict=True) if took != oracle(frame, VIPS)] == []
    assert 400 < sum(taken) < 1800


def test_nothing_is_taken_before_the_link_address_is_known_or_by_a_queue_without_a_socket(taker: int) -> None:
    with closing(loaded(VIPS)) as program:
        program.set_socket(0, taker)
        assert not program.takes(ethernet(SYN))
        assert not program.takes(bytes(6) + ethernet(SYN)[6:14])
        program.set_address(MUX_MAC)
        assert program.takes(ethernet(SYN))
    with closing(loaded(VIPS)) as program:
        program.set_address(MUX_MAC)
        program.set_socket(1, taker)
        assert not program.takes(ethernet(SYN))


def test_a_link_that_got_another_address_is_known_by_it(taker: int) -> None:
    with closing(loaded(VIPS)) as program:
        program.set_socket(0, taker)
        for mac in (MUX_MAC, ROUTER_MAC):
            program.set_address(mac)
            assert [program.takes(to + ethernet(SYN)[6:]) for to in (mac, MUX_MAC, ROUTER_MAC)] == [
                True,
                mac == MUX_MAC,
                mac == ROUTER_MAC,
            ]


@pytest.fixture
def link() -> Iterator[str]:
    """A namespace with one end of a link, ``one``, in it."""
    space = unique_prefix() + "-xdp"
    ip("netns", "add", space)
    try:
        batch(["link add name one type veth peer name two", "link set dev one up", "link set dev two up"], space)
        yield space
    finally:
        ip("netns", "del", space)


def attach(program: Redirect, space: str, *, generic: bool) -> None:
    inside(space, lambda: program.attach(socket.if_nametoindex("one"), generic=generic))


def kinds(space: str) -> list[str]:
    """Of programs on the link, as ip(8) shows them."""
    return [word for word in ip("-n", space, "link", "show", "one").split() if word.startswith("xdp")]


@pytest.mark.lab
def test_a_program_is_where_it_was_attached_until_it_is_told_to_leave_or_its_interface_goes(link: str) -> None:
    """By the driver and by the kernel, in turns: the kernel takes one program at a time."""
    with closing(loaded(VIPS)) as program, closing(loaded(VIPS)) as other:
        for generic in (False, True, False):
            attach(program, link, generic=generic)
            assert (program.attached, kinds(link)) == (True, ["xdpgeneric" if generic else "xdp"])
            with pytest.raises(IoError, match="another XDP program is on it"):
                attach(other, link, generic=False)
            assert (program.attached, other.attached) == (True, False)
            program.detach()
            assert (program.attached, kinds(link)) == (False, [])
        attach(program, link, generic=False)
        ip("-n", link, "link", "del", "one")
        assert (program.attached, other.attached) == (False, False)


def networks(version: int, width: int) -> st.SearchStrategy[Network]:
    """Few addresses, so that they overlap."""
    base = 0xCB007100 if version == 4 else 0x20010DB8 << 96
    host = st.integers(0, 7).map(lambda n: base + n)
    pairs = st.tuples(host, st.integers(width - 4, width))
    return pairs.map(lambda pair: ip_network((pair[0] >> width - pair[1] << width - pair[1], pair[1])))


NETWORKS = st.one_of(networks(4, 32), networks(6, 128), st.sampled_from([ip_network("0.0.0.0/0"), ip_network("::/0")]))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), NETWORKS), min_size=1, max_size=12), frames=st.data())
def test_vips_that_come_and_go_are_followed(
    taker: int, steps: list[tuple[bool, Network]], frames: st.DataObject
) -> None:
    """Overlapping prefixes among them, and one that goes twice."""
    there: set[Network] = set()
    with closing(loaded(frozenset())) as program:
        program.set_address(MUX_MAC)
        program.set_socket(0, taker)
        for comes, network in steps:
            if comes:
                program.add(network)
                there.add(network)
            else:
                program.remove(network)
                there.discard(network)
        for n in range(8):
            four = ethernet(SYN)[:30] + (0xCB007100 + n).to_bytes(4) + ethernet(SYN)[34:]
            six = ethernet(SYN6)[:38] + ((0x20010DB8 << 96) + n).to_bytes(16) + ethernet(SYN6)[54:]
            assert [program.takes(four), program.takes(six)] == [oracle(f, frozenset(there)) for f in (four, six)]
        noise = frames.draw(st.binary(min_size=14, max_size=120))
        assert program.takes(noise) == oracle(noise, frozenset(there))
