# SPDX-License-Identifier: Apache-2.0
"""The receive rings of packet mode, each before a kernel of our own."""

from __future__ import annotations

from tests.native.compiled import library


def test_receiving_ends_though_blocks_of_others_frames_never_do() -> None:
    assert library("blocks_probe.c").probe_blocks(4, 3) == 3


def test_receiving_ends_though_slots_of_others_frames_never_do() -> None:
    assert library("slots_probe.c").probe_slots(512, 3) == 3
