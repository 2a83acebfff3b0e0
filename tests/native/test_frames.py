# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a frame beside it, and is told: virtio headers mean what linux/virtio_net.h says."""

from __future__ import annotations

import struct
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_uint32, create_string_buffer

import pytest

from tests.native.compiled import library
from tests.packets.build import ethernet, ipv4, ipv6, tcp

TOLD, VERIFIED, INNER6, CWR = 0x01, 0x02, 0x04, 0x08  #: io.h
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 1, 3, 4, 5, 0x80
HEADER = struct.Struct("=BBHHHH")  #: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset


class Told(Structure):
    _fields_ = [(name, c_uint32) for name in ("gso_size", "csum_start", "csum_offset", "offload")]


def c() -> CDLL:
    lib = library("frame_probe.c")
    lib.probe_fill.argtypes = [c_char_p, POINTER(Told)]
    lib.probe_offload.argtypes = [c_char_p, POINTER(Told), c_uint32, c_char_p]
    return lib


def heard(flags: int, kind: int = 0, size: int = 0, start: int = 0, field: int = 0) -> tuple[int, int, int, int]:
    told = Told()
    c().probe_fill(HEADER.pack(flags, kind, 54, size, start, field), byref(told))
    return told.gso_size, told.csum_start, told.csum_offset, told.offload


@pytest.mark.parametrize("kind", [GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | GSO_ECN])
def test_a_super_packet_has_its_segments_and_where_its_checksum_goes(kind: int) -> None:
    assert heard(NEEDS_CSUM, kind, 1448, 34, 16) == (1448, 34, 16, TOLD)


@pytest.mark.parametrize("kind", [GSO_UDP, GSO_UDP | GSO_ECN])
def test_a_datagram_that_was_to_be_cut_into_fragments_is_one(kind: int) -> None:
    assert heard(NEEDS_CSUM, kind, 1448, 34, 6) == (0, 34, 6, TOLD)


def test_a_checksum_is_left_only_where_it_is_said_and_verified_only_where_that_is() -> None:
    assert heard(0, start=34, field=16) == (0, 0, 0, TOLD)
    assert heard(DATA_VALID, GSO_TCPV4, 1000) == (1000, 0, 0, TOLD | VERIFIED)


@pytest.mark.parametrize("options", [b"", b"\1" * 12, b"\1" * 40], ids=len)
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("flags", ["A", "CA"])
@pytest.mark.parametrize("version", [4, 6])
def test_what_leaves_whole_is_told_as_it_is_to_be_cut(version: int, flags: str, extra: int, options: bytes) -> None:
    segment = tcp(flags, bytes(3000), options=options)
    frame = ethernet(ipv4(segment) if version == 4 else ipv6(segment))
    start = 34 if version == 4 else 54
    told = Told(1000, start, 16, (INNER6 if version == 6 else 0) | (CWR if "C" in flags else 0))
    out = create_string_buffer(10)
    c().probe_offload(frame, byref(told), extra, out)
    kind = (GSO_TCPV4 if version == 4 else GSO_TCPV6) | (GSO_ECN if "C" in flags else 0)
    assert HEADER.unpack(out.raw) == (NEEDS_CSUM, kind, start + extra + 20 + len(options), 1000, start + extra, 16)


def test_of_an_ordinary_frame_nothing_is_told() -> None:
    out = create_string_buffer(b"x" * 10, 10)
    c().probe_offload(ethernet(ipv4(tcp())), byref(Told(0, 34, 16, CWR)), 4, out)
    assert out.raw == bytes(10)
