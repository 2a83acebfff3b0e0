# SPDX-License-Identifier: Apache-2.0
"""The socket filter, run by a small interpreter of classic BPF and by the kernel's own check."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from lb.mux.socket_filter import PREFIXES_MAX, vip_filter

VIPS = [ip_network(text) for text in ("203.0.113.10/32", "203.0.113.128/25", "2001:db8::10/128", "2001:db8:8::/45")]


def run(program: list[int], frame: bytes, *, kind: int = 0, vlan: bool = False) -> int:
    """What classic BPF would return; a load past the end returns 0, as in the kernel."""
    special = {0xFFFFF004: kind, 0xFFFFF030: int(vlan)}
    accumulator = position = 0
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
        elif code == 0x54:
            accumulator &= k
        elif code == 0x15:
            position += if_true if accumulator == k else if_false
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
    assert bool(run(vip_filter(VIPS), frame)) is enters


@pytest.mark.parametrize(("kind", "vlan"), [(1, False), (2, False), (3, False), (4, False), (0, True)])
def test_frames_for_other_stations_or_vlans_do_not_enter(kind: int, vlan: bool) -> None:
    assert run(vip_filter(VIPS), ipv4("203.0.113.10"), kind=kind, vlan=vlan) == 0


def test_no_vip_lets_nothing_in() -> None:
    program = vip_filter([])
    assert program
    assert run(program, ipv4("203.0.113.10")) == 0


def test_many_prefixes_mean_no_filter() -> None:
    spread = [ip_network(f"10.{index}.1.0/24") for index in range(PREFIXES_MAX + 1)]
    assert vip_filter(spread) == []
    assert vip_filter(spread[:-1])


def test_the_kernel_accepts_the_longest_program() -> None:
    program = vip_filter([ip_network(f"2001:db8:{index * 2:x}::1/128") for index in range(PREFIXES_MAX)])
    words = struct.pack(f"={len(program)}Q", *program)
    # struct sock_fprog: a length, and a pointer to the words, which must outlive the call
    import ctypes

    buffer = ctypes.create_string_buffer(words, len(words))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        any_socket.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", len(program), ctypes.addressof(buffer)))
