# SPDX-License-Identifier: Apache-2.0
"""The program that lets queues of a TUN device run dry: whatever comes goes to the first one, which stays."""

from __future__ import annotations

import errno
import os
from ctypes import byref, c_uint32, create_string_buffer

import pytest

from tests.native.compiled import library
from tests.packets.build import ethernet
from tests.packets.frames import SYN, SYN6


def test_every_packet_goes_to_the_first_queue() -> None:
    """Through the kernel; what a program of this kind returns is the queue, see drivers/net/tun.c."""
    kernel = library("bpf/tun_steering.c", "bpf/assembler.c", "bpf/bpf_syscalls.c")
    log = create_string_buffer(1 << 16)
    program = kernel.steer_load(log, len(log))
    if program == -errno.EPERM:
        pytest.skip("the kernel takes no BPF program from this user")
    assert program >= 0, log.value
    try:
        for frame in (ethernet(SYN), ethernet(SYN6), bytes(60), b"\xff" * 1500):
            out, room, queue = create_string_buffer(2048), c_uint32(2048), c_uint32(99)
            assert kernel.bpf_sys_program_test(program, frame, len(frame), out, byref(room), byref(queue)) == 0
            assert queue.value == 0
    finally:
        os.close(program)
