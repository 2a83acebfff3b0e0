# SPDX-License-Identifier: Apache-2.0
"""A log that nobody reads, that is closed, or whose disk is full: the daemon goes on, and what is lost is counted."""

from __future__ import annotations

import fcntl
import os
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from lb.daemon.log import writer as log_writer
from lb.daemon.log.writer import LogWriter

_F_SETPIPE_SZ = 1031


class Lost:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """One page, so that it is soon full."""
    read, write = os.pipe()
    fcntl.fcntl(write, _F_SETPIPE_SZ, 4096)
    try:
        yield read, write
    finally:
        for end in (read, write):
            with suppress(OSError):  # the test closed it
                os.close(end)


def read_lines(read: int, until: str, seconds: float = 5.0) -> list[str]:
    """What comes out, until a line has this in it."""
    data, end = b"", time.monotonic() + seconds
    while until.encode() not in data:
        left = end - time.monotonic()
        assert left > 0, f"no {until!r} in {data[-200:]!r}"
        if select.select([read], [], [], left)[0]:
            data += os.read(read, 65536)
    return data.decode().splitlines()


def test_lines_come_out_whole_and_in_order() -> None:
    with pipe() as (read, write):
        writer = LogWriter(write, lost=Lost())
        for number in range(100):
            writer.write(f"line {number}")
            writer.write("\n")
        writer.write("é\n")
        writer.part()
        assert read_lines(read, "é") == [*(f"line {number}" for number in range(100)), "é"]


def test_a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_writer, "QUEUE_MAX", 20_000)
    lost, text = Lost(), ""
    with pipe() as (read, write):
        writer = LogWriter(write, lost=lost)
        began = time.monotonic()
        for number in range(2000):
            writer.write(f"line {number:06} {'x' * 80}\n")
        assert time.monotonic() - began < 2.0, "nobody waited"
        assert lost.count > 1000
        # It reads again: what waited comes, and between it how many did not.
        writer.write("the last\n")
        while lost.count != sum(int(found) for found in re.findall(r"lines lost\" count=(\d+)", text)):
            text += "\n".join(read_lines(read, "\n"))
            writer.write("one more\n")


def test_a_reader_that_went_away_ends_nobody() -> None:
    lost = Lost()
    with pipe() as (read, write):
        os.close(read)
        writer = LogWriter(write, lost=lost)
        for number in range(10):
            writer.write(f"line {number}\n")
        writer.part()
        assert lost.count == 10


def test_a_full_disk_ends_nobody() -> None:
    lost = Lost()
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = LogWriter(full, lost=lost)
        writer.write("one\ntwo\n")
        writer.part()
        assert lost.count == 2
    finally:
        os.close(full)


def test_a_descriptor_that_others_made_non_blocking_loses_nothing() -> None:
    lost = Lost()
    with pipe() as (read, write):
        os.set_blocking(write, False)
        writer = LogWriter(write, lost=lost)
        for number in range(500):
            writer.write(f"line {number}\n")
        assert len(read_lines(read, "line 499\n")) == 500
        assert lost.count == 0
        assert not os.get_blocking(write), "it is others' as well, and stays as they want it"


def test_the_end_of_the_process_waits_no_longer_than_a_moment() -> None:
    with pipe() as (_, write):
        writer = LogWriter(write, lost=Lost())
        writer.write("x" * 10_000 + "\n")
        began = time.monotonic()
        writer.part(0.2)
        assert 0.15 < time.monotonic() - began < 2.0


def test_a_line_that_never_ends_takes_no_more_memory_than_a_line() -> None:
    with pipe() as (_, write):
        writer = LogWriter(write, lost=Lost())
        for _ in range(100):
            writer.write("x" * 10_000)
        assert len(writer._partial) <= log_writer.LINE_MAX
