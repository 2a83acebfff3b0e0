# SPDX-License-Identifier: Apache-2.0
"""What a supervisor hears, over a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.daemon.notify import PATIENCE, Supervisor
from tests.lab.pace import allowed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The address as it is in NOTIFY_SOCKET, and the socket that listens there."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@vipmux-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        receiver.setblocking(False)
        yield address, receiver


def heard(receiver: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


def test_a_life_in_the_words_of_sd_notify(listening: tuple[str, socket.socket]) -> None:
    address, receiver = listening
    supervisor = Supervisor(address)
    supervisor.ready("ready: 2 services")
    supervisor.status("ready: 2 services")  # the same: not said again
    supervisor.status("ready: 3\nservices")  # one line each
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    supervisor.reloading()
    supervisor.stopping()
    first, second, reloading, last = heard(receiver)
    assert first == "READY=1\nSTATUS=ready: 2 services"
    assert second == "STATUS=ready: 3 services"
    word, usec = reloading.split("\n")
    assert word == "RELOADING=1"
    assert 0 <= int(usec.removeprefix("MONOTONIC_USEC=")) - before < 5_000_000
    assert last == "STOPPING=1\nSTATUS=stopping"


def test_signs_of_life_are_sent_four_times_in_the_time_allowed_however_often_they_are_given(
    listening: tuple[str, socket.socket],
) -> None:
    address, receiver = listening
    clock = Clock()
    supervisor = Supervisor(address, watchdog=20.0, clock=clock)
    for _ in range(200):  # twenty seconds
        supervisor.alive()
        clock.now += 0.1
    assert heard(receiver) == ["WATCHDOG=1"] * 4


def test_without_a_watchdog_there_are_no_signs_of_life(listening: tuple[str, socket.socket]) -> None:
    address, receiver = listening
    Supervisor(address).alive()
    assert heard(receiver) == []


def test_without_a_supervisor_nothing_happens(capfd: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor.from_environment({})
    for say in (supervisor.reloading, supervisor.stopping, supervisor.alive):
        say()
    supervisor.ready("ready")
    assert supervisor.pause is None
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_read_once_and_not_passed_on() -> None:
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    assert Supervisor.from_environment(environment).pause == 5.0
    assert environment == {"A": "b"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"},  # another process is watched
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-3"},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "²"},
    ],
)
def test_a_watchdog_that_is_not_ours_is_none(wrong: dict[str, str]) -> None:
    assert Supervisor.from_environment({"NOTIFY_SOCKET": "/run/x", **wrong}).pause is None


@pytest.mark.parametrize("address", ["relative", "@", "/", "vsock:2:1234", "/no/such/socket", "@nobody-listens"])
def test_a_supervisor_that_cannot_be_told_is_said_once_and_harms_nothing(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = Supervisor(address, 1.0)
    supervisor.ready("ready")
    supervisor.alive()
    supervisor.stopping()
    assert capsys.readouterr().out.count("supervisor not notified") == 1


def test_a_supervisor_that_reads_nothing_holds_nobody_up(listening: tuple[str, socket.socket]) -> None:
    address, _ = listening
    supervisor = Supervisor(address)
    took = []
    for number in range(20):  # the kernel keeps ten datagrams or some hundreds
        began = time.monotonic()
        supervisor.status(f"status {number}")
        took.append(time.monotonic() - began)
    assert statistics.median(took) <= allowed(PATIENCE)
    assert sum(took) <= allowed(20 * PATIENCE)
