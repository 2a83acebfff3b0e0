# SPDX-License-Identifier: Apache-2.0
"""ExaBGP's helper: its decisions with bytes and times, and the real process between pipes and sockets."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.bgp import helper as module
from lb.bgp.helper import BATCH, Helper

TTL = 1.0


def order(number: int, lines: list[str]) -> bytes:
    return json.dumps({"id": number, "lines": lines}).encode() + b"\n"


def announce(*prefixes: str, peer: str = "10.0.1.1") -> str:
    return f"neighbor {peer} announce attributes next-hop self med 5 nlri {' '.join(prefixes)}"


def withdraw(*prefixes: str, peer: str = "10.0.1.1") -> str:
    next_hop = "::" if ":" in prefixes[0] else "self"
    return f"neighbor {peer} withdraw attributes next-hop {next_hop} nlri {' '.join(prefixes)}"


A, B, C, SIX = "203.0.113.1/32", "203.0.113.2/32", "203.0.113.3/32", "2001:db8::1/128"


def said(helper: Helper) -> list[dict[str, Any]]:
    """What it told lb-mux since the last call."""
    lines = [json.loads(line) for line in helper.to_mux.splitlines()]
    helper.to_mux.clear()
    return lines


def sent(helper: Helper) -> list[str]:
    """What it wrote to ExaBGP since the last call."""
    lines = helper.to_exabgp.decode().splitlines()
    helper.to_exabgp.clear()
    return lines


@pytest.fixture
def helper() -> Helper:
    made = Helper(TTL, now=100.0)
    made.beat(100.0)
    assert said(made) == [{"hello": os.getpid()}]
    return made


# -- decisions ----------------------------------------------------------------------------------------------------


def test_answers_go_back_in_the_order_of_the_lines(helper: Helper) -> None:
    lines = [announce(A), announce(B), withdraw(C)]
    helper.ordered(order(7, lines))
    assert sent(helper) == lines
    helper.answered(b"done\n\nerror\n")
    assert said(helper) == []
    helper.answered(b"\ndone\n")
    assert said(helper) == [{"id": 7, "results": [True, False, True]}]


def test_events_between_answers_are_passed_on(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A)]))
    helper.answered(b'{"type": "state"}\ndo')
    helper.answered(b"ne\n")
    assert said(helper) == [{"event": {"type": "state"}}, {"id": 1, "results": [True]}]


def test_only_one_batch_is_outstanding(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A)]) + order(2, [announce(B)]))
    assert sent(helper) == [announce(A)]
    assert said(helper) == [{"id": 2, "refused": "another batch is outstanding"}]


def test_comments_are_passed_on_and_take_nothing_back(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A)]))
    helper.answered(b"done\n")
    helper.ordered(order(2, ["# alive"]))
    helper.answered(b"done\n")
    helper.gone()
    assert sent(helper) == [announce(A), "# alive", withdraw(A)]


def test_an_empty_batch_is_answered_at_once(helper: Helper) -> None:
    helper.ordered(order(1, []))
    assert said(helper) == [{"id": 1, "results": []}]


def test_nothing_is_announced_before_the_first_heartbeat() -> None:
    helper = Helper(TTL, now=100.0)
    said(helper)
    helper.ordered(order(1, [announce(A)]))
    assert sent(helper) == []
    assert said(helper) == [{"id": 1, "refused": "no heartbeat from the data plane"}]


def test_without_heartbeats_everything_is_taken_back_once(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A)]))
    helper.answered(b"done\n")
    helper.beat(100.5)
    helper.ticked(101.4)
    assert sent(helper) == [announce(A)]
    helper.ticked(101.6)
    helper.ticked(102.0)
    assert sent(helper) == [withdraw(A)]
    assert said(helper)[-1] == {"expired": "no heartbeat from the data plane for 1 s"}
    helper.ordered(order(2, [announce(B)]))
    assert sent(helper) == []


def test_a_heartbeat_after_that_lets_announcements_through_again(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A)]))
    helper.answered(b"done\n")
    helper.ticked(102.0)
    helper.answered(b"done\n")
    helper.beat(103.0)
    sent(helper)
    helper.ordered(order(2, [announce(A)]))
    assert sent(helper) == [announce(A)]


def test_a_batch_on_its_way_is_taken_back_as_well_and_its_answers_are_not_mixed_up(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A), announce(B)]))
    helper.gone()
    assert sent(helper) == [announce(A), announce(B), withdraw(A, B)]
    helper.answered(b"done\nerror\ndone\n")
    assert {"id": 1, "results": [True, False]} in said(helper)


def test_what_was_withdrawn_is_not_taken_back_but_what_exabgp_did_not_withdraw_is(helper: Helper) -> None:
    helper.ordered(order(1, [announce(A, B, C)]))
    helper.answered(b"done\n")
    helper.ordered(order(2, [withdraw(A), withdraw(B)]))
    helper.answered(b"done\nerror\n")
    sent(helper)
    helper.gone()
    assert sent(helper) == [withdraw(B, C)]


def test_each_peer_and_family_has_its_own_lines_that_take_back(helper: Helper) -> None:
    many = [f"198.18.0.{n}/32" for n in range(BATCH + 1)]
    helper.ordered(order(1, [announce(*many), announce(SIX), announce(A, peer="10.0.1.2")]))
    sent(helper)
    helper.gone()
    assert sent(helper) == [
        withdraw(*many[:BATCH]),
        withdraw(many[BATCH]),
        withdraw(SIX),
        withdraw(A, peer="10.0.1.2"),
    ]


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"7", b'{"id": 1}', b'{"id": 1, "lines": 5}', b'{"id": 1, "lines": [5]}',
     b'{"id": "x", "lines": ["# a\\nshutdown"]}', b'{"id": 1, "lines": ["shutdown"]}', b"\xff\xfe",
     b'{"id": 1, "lines": ["neighbor 10.0.1.1 announce attributes next-hop self nlri "]}',
     b'{"id": 1, "lines": ["neighbor 10.0.1.1 announce route 203.0.113.1/32 next-hop self"]}'],
)  # fmt: skip
def test_orders_that_are_none_do_no_harm(helper: Helper, line: bytes) -> None:
    helper.ordered(line + b"\n")
    assert sent(helper) == []
    helper.ordered(order(2, [announce(A)]))
    assert sent(helper) == [announce(A)]


class Exabgp:
    """What routers hear: each line is done, or is an error, and then any part of it may have been done."""

    def __init__(self) -> None:
        self.announced: set[tuple[str, str]] = set()

    def take(self, line: str, *, good: bool, part: int) -> None:
        head, _, prefixes = line.partition(" nlri ")
        _, peer, verb, *_ = head.split()
        for prefix in prefixes.split()[: None if good else part]:
            if verb == "announce":
                self.announced.add((peer, prefix))
            else:
                self.announced.discard((peer, prefix))


PREFIXES = st.lists(st.sampled_from([A, B, C, SIX]), min_size=1, max_size=3, unique=True)
LINES = st.builds(
    lambda make, prefixes, peer: make(*prefixes, peer=peer),
    st.sampled_from([announce, withdraw]), PREFIXES, st.sampled_from(["10.0.1.1", "10.0.1.2"]),
)  # fmt: skip
ANSWERS = st.tuples(st.booleans(), st.integers(0, 2))


@given(st.data(), st.lists(st.lists(LINES, min_size=1, max_size=4), max_size=8))
def test_whatever_part_got_through_everything_is_taken_back(data: st.DataObject, batches: list[list[str]]) -> None:
    helper, exabgp = Helper(TTL, now=0.0), Exabgp()
    helper.beat(0.0)
    unread: list[str] = []
    for number, batch in enumerate(batches):
        helper.ordered(order(number, batch))
        unread += sent(helper)
        if data.draw(st.booleans(), "lb-mux dies here"):
            break
        for line in unread:
            good, part = data.draw(ANSWERS, "answer")
            exabgp.take(line, good=good, part=part)
            helper.answered(b"done\n" if good else b"error\n")
        unread = []
    helper.gone()
    undo = sent(helper)
    for line in unread:
        good, part = data.draw(ANSWERS, "answer")
        exabgp.take(line, good=good, part=part)
        helper.answered(b"done\n" if good else b"error\n")
    for line in undo:
        exabgp.take(line, good=True, part=0)
    assert exabgp.announced == set()


@given(st.lists(st.binary(max_size=40)))
def test_whatever_exabgp_says_is_survived(chunks: list[bytes]) -> None:
    helper = Helper(TTL, now=0.0)
    for chunk in chunks:
        helper.answered(chunk)


def test_its_sleep_ends_when_the_heartbeat_does(helper: Helper) -> None:
    patience = helper.patience(100.4)
    assert patience is not None
    assert 0.6 <= patience <= 0.61
    helper.ticked(200.0)
    assert helper.patience(200.0) is None


# -- the process --------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """The helper as ExaBGP starts it, and both its connections as lb-mux has them."""

    process: subprocess.Popen[bytes]
    talk: socket.socket
    beat: socket.socket

    def heard(self, seconds: float = 5.0) -> dict[str, Any]:
        """The next line on the talk connection."""
        data = b""
        self.talk.settimeout(seconds)
        while not data.endswith(b"\n"):
            more = self.talk.recv(1)
            assert more, "the helper hung up"
            data += more
        found: dict[str, Any] = json.loads(data)
        return found

    def commands(self, count: int, seconds: float = 5.0) -> list[str]:
        """What ExaBGP reads from it, line by line."""
        assert self.process.stdout is not None
        data, deadline = b"", time.monotonic() + seconds
        while data.count(b"\n") < count:
            assert select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0], data
            data += os.read(self.process.stdout.fileno(), 65536)
        return data.decode().splitlines()


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    name = f"vipmux-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + name)
        listener.listen()
        listener.settimeout(10)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(module.__file__)), name, "300"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        found = {}
        for _ in range(2):
            connection, _ = listener.accept()
            found[connection.recv(5)] = connection
    made = Running(process, found[b"talk\n"], found[b"beat\n"])
    made.beat.send(b".")
    assert made.heard() == {"hello": process.pid}
    yield made
    for connection in found.values():
        connection.close()
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def test_process_passes_commands_and_answers(running: Running) -> None:
    running.beat.send(b".")
    running.talk.send(order(1, [announce(A)]))
    assert running.commands(1) == [announce(A)]
    assert running.process.stdin is not None
    os.write(running.process.stdin.fileno(), b"done\n")
    assert running.heard() == {"id": 1, "results": [True]}


def test_process_takes_everything_back_when_the_beat_stops(running: Running) -> None:
    running.beat.send(b".")
    running.talk.send(order(1, [announce(A)]))
    began = time.monotonic()
    assert running.commands(2) == [announce(A), withdraw(A)]
    assert 0.2 <= time.monotonic() - began < 2.0


def test_process_takes_everything_back_when_lb_mux_is_gone_and_still_reads_exabgp(running: Running) -> None:
    running.beat.send(b".")
    running.talk.send(order(1, [announce(A)]))
    running.commands(1)
    running.talk.close()
    running.beat.close()
    assert running.commands(1) == [withdraw(A)]
    assert running.process.stdin is not None
    for _ in range(100):  # more than a pipe holds
        os.write(running.process.stdin.fileno(), b"done\n" * 1000)
    assert running.process.poll() is None


def test_process_drains_its_input_although_nobody_takes_what_it_says(running: Running) -> None:
    """ExaBGP blocks with all its sessions when an answer does not fit into the pipe."""
    assert running.process.stdin is not None
    line = json.dumps({"type": "state", "neighbor": "x" * 200}).encode() + b"\n"
    os.set_blocking(running.process.stdin.fileno(), False)
    left, deadline = 16 * 1024 * 1024, time.monotonic() + 20
    while left > 0:
        assert time.monotonic() < deadline
        if select.select([], [running.process.stdin], [], 5)[1]:
            left -= os.write(running.process.stdin.fileno(), line * 100)
    assert running.process.poll() is None


def test_process_ends_with_exabgp(running: Running) -> None:
    assert running.process.stdin is not None
    running.process.stdin.close()
    assert running.process.wait(5) == 0


def test_process_without_its_owner_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(Path(module.__file__)), "vipmux-test-nobody-there", "300"],
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
