# SPDX-License-Identifier: Apache-2.0
"""The socket filter, run by a small interpreter of classic BPF and by the kernel's own check."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from lb.model import Network
from lb.mux.io.socket_filter import EXPANDED_MAX, vip_filter

VIPS = [ip_network(text) for text in ("203.0.113.10/32", "203.0.113.128/25", "2001:db8::10/128", "2001:db8:8::/45")]


def run(program: list[int], frame: bytes, *, kind: int = 0, tag: int | None = None) -> int:
    """What classic BPF would return; a load past the end returns 0, as in the kernel."""
    special = {0xFFFFF004: kind, 0xFFFFF030: int(tag is not None), 0xFFFFF02C: tag or 0}
    accumulator = position = 0
    memory = [0] * 16
    while True:
        code, if_true, if_false, k = struct.unpack("=HBBI", struct.pack("=Q", program[position]))
        position += 1
        if code in {0x20, 0x28, 0x30}:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            if k in special:
                accumulator = special[k]
            elif k + size > len(frame):
                return 0
            else:
                accumulator = int.from_bytes(frame[k : k + size], "big")
        elif code == 0x60:
            accumulator = memory[k]
        elif code == 0x02:
            memory[k] = accumulator
        elif code == 0x05:
            position += k
        elif code == 0x15:
            position += if_true if accumulator == k else if_false
        elif code == 0x54:
            accumulator &= k
        elif code == 0x35:
            position += if_true if accumulator >= k else if_false
        else:
            assert code == 0x06
            return k


def ipv4(destination: str) -> bytes:
    return bytes(12) + b"\x08\x00" + bytes(16) + IPv4Address(destination).packed + bytes(20)


def ipv6(destination: str) -> bytes:
    return bytes(12) + b"\x86\xdd" + bytes(24) + IPv6Address(destination).packed + bytes(20)


@pytest.mark.parametrize(
    ("frame", "enters"),
    [
        (ipv4("203.0.113.10"), True),
        (ipv4("203.0.113.11"), False),
        (ipv4("203.0.113.128"), True),
        (ipv4("203.0.113.255"), True),
        (ipv4("203.0.112.255"), False),
        (ipv6("2001:db8::10"), True),
        (ipv6("2001:db8::11"), False),
        (ipv6("2001:db8:f:ffff::1"), True),
        (ipv6("2001:db8:10::1"), False),
        (bytes(12) + b"\x08\x06" + bytes(46), False),
        (ipv4("203.0.113.10")[:20], False),
        (b"", False),
    ],
)
def test_only_frames_for_vips_enter_the_ring(frame: bytes, enters: bool) -> None:
    assert bool(run(vip_filter(VIPS).program, frame)) is enters


@pytest.mark.parametrize(("kind", "tag"), [(1, None), (2, None), (3, None), (4, None), (0, 1), (0, 0x800), (0, 0xEFFF)])
def test_frames_for_other_stations_or_vlans_do_not_enter(kind: int, tag: int | None) -> None:
    assert run(vip_filter(VIPS).program, ipv4("203.0.113.10"), kind=kind, tag=tag) == 0


@pytest.mark.parametrize("tag", [0, 0x2000, 0xF000])
def test_a_tag_that_says_a_priority_alone_is_none(tag: int) -> None:
    assert run(vip_filter(VIPS).program, ipv4("203.0.113.10"), tag=tag)
    assert not run(vip_filter(VIPS).program, ipv4("203.0.113.11"), tag=tag)


def test_no_vip_lets_nothing_in() -> None:
    program = vip_filter([]).program
    assert program
    assert run(program, ipv4("203.0.113.10")) == 0


@pytest.mark.parametrize("vips", [["0.0.0.0/0"], ["::/0"], ["0.0.0.0/1"], ["128.0.0.0/1"], ["255.255.255.255/32"]])
def test_the_largest_prefixes_and_the_last_addresses_are_found(vips: list[str]) -> None:
    program = vip_filter([ip_network(vip) for vip in vips]).program
    for text in ("0.0.0.0", "127.255.255.255", "128.0.0.0", "255.255.255.255"):
        assert bool(run(program, ipv4(text))) is any(IPv4Address(text) in ip_network(vip) for vip in vips)
    for text in ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert bool(run(program, ipv6(text))) is any(IPv6Address(text) in ip_network(vip) for vip in vips)


def some_network(chance: random.Random, crowded: bool) -> Network:
    """Near others, or anywhere."""
    if chance.random() < 0.5:
        number = chance.getrandbits(32) if not crowded else 0xCB007100 + chance.getrandbits(9)
        return ip_network((number >> (shift := chance.choice((0, 0, 0, 1, 3))) << shift, 32 - shift))
    bits = 128 - chance.choice((0, 0, 0, 3, 31, 32, 33, 64, 80))
    number = (
        chance.getrandbits(128)
        if not crowded
        else (0x20010DB8 << 96) + chance.choice((1, 1 << 32, 1 << 64)) * chance.getrandbits(6)
    )
    return ip_network((number >> (128 - bits) << (128 - bits), bits))


@pytest.mark.parametrize(
    ("count", "crowded"), [(1, True), (1, False), (2, False), (5, True), (5, False), (30, False), (90, True)]
)
def test_however_vips_lie_they_alone_enter(count: int, crowded: bool) -> None:
    chance = random.Random(count)
    vips = [some_network(chance, crowded) for _ in range(count)]
    made = vip_filter(vips)
    program = made.program
    assert len(program) <= EXPANDED_MAX
    assert not made.rough
    edges = [int(edge) + n for vip in vips for edge in (vip.network_address, vip.broadcast_address) for n in (-1, 0, 1)]
    for number in chance.sample(edges, min(len(edges), 300)):
        for build, kind, most in ((ipv4, IPv4Address, 1 << 32), (ipv6, IPv6Address, 1 << 128)):
            if not 0 <= number < most:
                continue
            address = kind(number)
            expected = any(address in vip for vip in vips if vip.version == address.version)
            assert bool(run(program, build(str(address)))) is expected, address


@pytest.mark.parametrize("prefix", ["10.0.0.0/8", "2001:db8::/32"])
def test_with_too_many_vips_neighbours_are_taken_together_and_all_else_is_kept_out(prefix: str) -> None:
    """Ten thousand, none beside another."""
    base = ip_network(prefix)
    step = base.num_addresses >> 14
    vips = [ip_network((int(base.network_address) + n * step, base.max_prefixlen)) for n in range(10_000)]
    program = vip_filter(vips).program
    build = ipv4 if base.version == 4 else ipv6
    assert 100 < len(program) <= EXPANDED_MAX
    assert all(run(program, build(str(vip.network_address))) for vip in vips[::97])
    for kind, tag in ((1, None), (2, None), (3, None), (0, 5)):
        assert run(program, build(str(vips[5].network_address)), kind=kind, tag=tag) == 0
    for outside in (base.network_address - 1, vips[-1].network_address + 1, base.broadcast_address + 1):
        assert run(program, build(str(outside))) == 0
    assert run(program, ipv6("2001:db7::1") if base.version == 4 else ipv4("203.0.113.10")) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_accepts_the_longest_program_and_another_after_it(version: int) -> None:
    """Within half of what older kernels give a socket for it: while one is replaced, both are there."""
    step = 1 << 16 if version == 4 else 1 << 100
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        for shift in (2, 3):
            vips = [ip_network((n * step + (step >> shift), 32 if version == 4 else 128)) for n in range(2000)]
            program = vip_filter(vips).program
            assert 100 < len(program) <= EXPANDED_MAX
            words = struct.pack(f"={len(program)}Q", *program)
            # struct sock_fprog: a length, and a pointer to the words, which must outlive the call
            buffer = ctypes.create_string_buffer(words, len(words))
            any_socket.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", len(program), ctypes.addressof(buffer)))


def test_with_too_many_vips_one_that_comes_where_others_are_let_in_changes_nothing() -> None:
    vips = {ip_network((n << 16, 32)) for n in range(3000)}
    before = vip_filter(vips)
    gaps = [network for network in (ip_network(((n << 16) + 1, 32)) for n in range(2999)) if before.lets_in(network)]
    assert len(gaps) > 1500
    gone = next(iter(vips))
    assert vip_filter(vips - {gone} | {gaps[0]}, before, {gaps[0]}) is before
    outside = ip_network("203.0.113.10")
    after = vip_filter(vips | {outside}, before, {outside})
    assert not before.lets_in(outside)
    assert after.lets_in(outside)
    assert run(after.program, ipv4("203.0.113.10"))
