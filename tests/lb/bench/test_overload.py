# SPDX-License-Identifier: Apache-2.0
"""``lb bench overload``: what it makes of what it saw. That it runs, test_packets_lab.py proves."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lb._dataplane")

from lb.bench.overload import LoadStep, Moment, OverloadBench, cpu_of, first_losses, lines

STEP = LoadStep(
    factor=2.0,
    offered=2_000_000,
    arrived=1_900_000,
    forwarded=900_000,
    ring=100_000,
    shed=900_000,
    first=["ring after 0.1 s", "shed after 2.1 s"],
    kept_p50_ms=1.25,
    kept_slowest_ms=412.0,
    new_slowest_ms=1033.0,
    requests=320,
    failed=1,
    worker_cpu=0.941,
    control_cpu=0.023,
    session="stayed",
    steal=0.001,
)
RESULT = OverloadBench(
    io="packet",
    mode="AF_PACKET",
    capacity=1_000_000,
    steps=[STEP],
    seconds=8.0,
    hold=3,
    router="BIRD 2.0.12",
    source="frames made by the kernel (XDP)",
    cores=[0, 1],
    cpu="a processor",
    kernel="Linux 6.1",
    commit="0.1.0",
)


def look(at: float, missed: int, dropped: int) -> Moment:
    return Moment(at, received=0, missed=missed, dropped=dropped)


def test_what_was_lost_first_is_told_in_its_order_and_only_what_was_lost() -> None:
    before = look(10.0, 7, 5)
    assert first_losses([before]) == first_losses([before, look(10.5, 7, 5)]) == []
    ring, both = look(10.2, 8, 5), look(12.2, 9, 6)
    assert first_losses([before, ring, both, look(13.0, 99, 99)]) == ["ring after 0.2 s", "shed after 2.2 s"]
    assert first_losses([before, look(10.3, 7, 6), look(10.9, 8, 9)]) == ["shed after 0.3 s", "ring after 0.9 s"]


def test_it_is_told_in_words() -> None:
    said = "\n".join(lines(RESULT))
    assert "packet: AF_PACKET; it takes 1,000,000 packets/s of a flood" in said
    assert "2 times that: 2,000,000 packets/s offered, 1,900,000 came to the MUX" in said
    assert "100,000 in the ring, 900,000 shed; ring after 0.1 s, shed after 2.1 s" in said
    assert "slowest 412 ms, on a new connection 1,033 ms; 1 of 321 requests failed" in said
    assert "94% of a core worker, 2.3% control" in said
    assert "hold time 3 s; BIRD 2.0.12" in said
    assert "nothing" in "\n".join(lines(replace(RESULT, steps=[replace(STEP, first=[])])))


def test_only_a_session_that_fell_is_bad_news() -> None:
    assert RESULT.sound
    assert replace(RESULT, steps=[replace(STEP, session="bird is not installed")]).sound
    assert not replace(RESULT, steps=[STEP, replace(STEP, session="fell 1 times")]).sound


def test_cpu_of_what_is_no_worker_is_controls() -> None:
    worker, before = cpu_of(os.getpid())
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert worker == 0.0
    assert cpu_of(os.getpid())[1] - before > 0.1


def test_a_thread_that_ends_while_it_is_looked_at_is_left_out(tmp_path: Path) -> None:
    stat = "7 (lb-mux) S " + " ".join(["0"] * 10) + " 300 100 " + " ".join(["0"] * 10)
    for task, comm in ("7", "lb-mux"), ("8", "lb-worker"), ("9", None):
        there = tmp_path / "7" / "task" / task
        there.mkdir(parents=True)
        if comm:
            (there / "stat").write_text(stat)
            (there / "comm").write_text(comm + "\n")
            (there / "children").write_text("")
    worker, control = cpu_of(7, tmp_path)
    assert worker == control > 0
