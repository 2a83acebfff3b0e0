# SPDX-License-Identifier: Apache-2.0
"""``lb get … -w`` and ``lb top`` against a real manager, and how a table is kept up to date."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lb.cli.tables.watch_table import WatchedRows
from tests.lb.cli.test_with_manager import ROOT, SERVICES, SIX, Daemon, fine, lb


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("manager")
    started = Daemon(directory)
    try:
        path = directory / "services.toml"
        path.write_text(SERVICES + SIX)
        fine("apply", "-f", path, manager=started.url)
        yield started
    finally:
        started.kill()


@contextmanager
def running(daemon: Daemon, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "lb.cli.main", *arguments, "--manager", daemon.url], cwd=ROOT, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


class Output:
    """What a process printed so far."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.text = ""

    def until(self, true: Callable[[str], object], seconds: float = 20.0) -> str:
        deadline = time.monotonic() + seconds
        while not true(self.text):
            left = deadline - time.monotonic()
            assert left > 0, self.text
            if select.select([self._number], [], [], left)[0]:
                self.text += os.read(self._number, 65536).decode()
        return self.text


def test_changed_rows_follow_one_a_line(daemon: Daemon) -> None:
    with running(daemon, "get", "backends", "-w", "-o", "json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = Output(process.stdout.fileno())
        output.until(lambda text: text.count("\n") >= 2)
        fine("drain", "web/web-2", manager=daemon.url)
        output.until(lambda text: '"drain"' in text)
        rows = [json.loads(line) for line in output.text.splitlines()]
        assert [row["name"] for row in rows[:2]] == ["web-1", "web-2"]
        assert {row["name"] for row in rows[2:]} == {"web-2"}, "only what changed is told again"
        fine("undrain", "web/web-2", manager=daemon.url)
        output.until(lambda text: text.rstrip().splitlines()[-1].find('"drain"') < 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_events_follow_as_they_happen(daemon: Daemon) -> None:
    with running(daemon, "get", "events", "-w", "--subject", "web", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = Output(process.stdout.fileno())
        output.until(lambda text: "created by operator:loopback" in text)
        before = output.text
        fine("drain", "web/web-1", manager=daemon.url)
        output.until(lambda text: "drained by operator:loopback" in text[len(before) :])
        assert "service six" not in output.text
        assert output.text.count("Subject") == 1
        fine("undrain", "web/web-1", manager=daemon.url)


def test_a_terminal_shows_the_table_in_place_and_is_left_as_it_was(daemon: Daemon) -> None:
    master, slave = pty.openpty()
    with running(
        daemon, "get", "services", "-w", stdout=slave, stdin=slave, env={**os.environ, "TERM": "xterm"}
    ) as process:
        output = Output(master)
        output.until(lambda text: "203.0.113.10:80" in text and "six" in text)
        assert output.text.startswith("\x1b[?1049h")
        drawn = len(output.text)
        fine("drain", "web/web-1", manager=daemon.url)
        fine("drain", "web/web-2", manager=daemon.url)
        output.until(lambda text: len(text) > drawn)
        time.sleep(0.5)
        output.until(lambda text: "down" in text or len(text) > drawn)
        assert "\x1b[2J" not in output.text[drawn:], "the whole screen is not drawn again"
        process.send_signal(signal.SIGINT)
        output.until(lambda text: text.endswith("\x1b[?1049l"))
        assert process.wait(10) == 0
    os.close(master)
    os.close(slave)
    for name in ("web/web-1", "web/web-2"):
        fine("undrain", name, manager=daemon.url)


def test_top_draws_its_first_view_soon_and_ends_with_q(daemon: Daemon) -> None:
    master, slave = pty.openpty()
    began = time.monotonic()
    with running(daemon, "top", stdout=slave, stdin=slave, env={**os.environ, "TERM": "xterm"}) as process:
        output = Output(master)
        output.until(lambda text: "web" in text and "No MUX tells" in text)
        assert time.monotonic() - began < 1.0 * 5, "a second, and some patience with a busy machine"
        os.write(master, b"m")
        output.until(lambda text: "0 MUXes" in text)
        os.write(master, b"q")
        assert process.wait(10) == 0
    os.close(master)
    os.close(slave)


def test_top_once_tells_of_the_fleet(daemon: Daemon) -> None:
    answer = json.loads(fine("top", "--once", "-o", "json", manager=daemon.url))
    assert [row["service"] for row in answer["rows"]] == ["six", "web"]
    assert answer["total"]["pps"] is None
    said = fine("top", "--once", "--by", "backend", "--sort", "name", manager=daemon.url)
    assert re.search(r"web +web-1 +10\.0\.3\.21 +1 +- +- +up", said)
    assert lb("top", "--local", "--by", "mux", "--socket", "/nowhere", manager=daemon.url).returncode == 2


def test_events_are_chosen_by_subject_time_and_badness(daemon: Daemon) -> None:
    said = json.loads(fine("get", "events", "--subject", "six", "-o", "json", manager=daemon.url))
    assert {row["subject"] for row in said} == {"service six"}
    assert json.loads(fine("get", "events", "--since", "1h", "--limit", "1", "-o", "json", manager=daemon.url))
    assert all(row["bad"] for row in json.loads(fine("get", "events", "--bad", "-o", "json", manager=daemon.url)))
    assert [
        row["name"] for row in json.loads(fine("get", "services", "--limit", "1", "-o", "json", manager=daemon.url))
    ] == ["six"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["get", "muxes", "--service", "web"], "--service chooses services and backends, not muxes"),
        (["get", "services", "--bad"], "--subject, --since and --bad choose events, not services"),
        (["get", "events", "--since", "yesterday"], 'a time must be such as 90s, 10m or 2h, not "yesterday"'),
        (["get", "muxes", "-w", "--local"], "a daemon shows all it has, once"),
        (["get", "audit", "-w"], "`lb get history -w` shows them as they come"),
        (["get", "services", "--service", "nono"], 'there is no service "nono"'),
    ],
)
def test_what_cannot_be_chosen_is_said(daemon: Daemon, arguments: list[str], sentence: str) -> None:
    done = lb(*arguments, manager=daemon.url)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr


def test_events_outlive_a_manager_that_is_killed(daemon: Daemon) -> None:
    fine("drain", "web/web-1", manager=daemon.url)
    fine("undrain", "web/web-1", manager=daemon.url)
    time.sleep(1.0)
    before = json.loads(fine("get", "events", "-o", "json", manager=daemon.url))
    with running(
        daemon, "get", "services", "-w", "-o", "json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        output = Output(process.stdout.fileno())
        output.until(lambda text: text.count("\n") >= 2)
        daemon.kill()
        daemon.restart()
        assert json.loads(fine("get", "events", "-o", "json", manager=daemon.url))[: len(before)] == before
        fine("drain", "web/web-1", manager=daemon.url)
        fine("drain", "web/web-2", manager=daemon.url)
        output.until(lambda text: '"state": "down"' in text.splitlines()[-1])  # it found the manager again
        for name in ("web/web-1", "web/web-2"):
            fine("undrain", name, manager=daemon.url)


# --- a table as known so far -----------------------------------------------------------------------------------------


def answer(*rows: dict[str, Any], gone: tuple[str, ...] = (), whole: bool = False) -> dict[str, Any]:
    return {"rows": list(rows), "gone": list(gone), "whole": whole}


def row(service: str, name: str, state: str = "up") -> dict[str, Any]:
    return {"service": service, "name": name, "state": state}


def test_rows_that_changed_came_or_went_are_told() -> None:
    rows = WatchedRows("backends")
    assert rows.take(answer(row("web", "b"), row("dns", "a"), row("web", "a"), whole=True)) != []
    assert [(found["service"], found["name"]) for found in rows.all()] == [("dns", "a"), ("web", "a"), ("web", "b")]
    assert rows.take(answer(row("web", "a"), row("web", "b", "down"))) == [row("web", "b", "down")]
    assert rows.take(answer(row("web", "b", "down"))) == [{**row("web", "a"), "deleted": True}]
    assert rows.take(answer(gone=("dns",))) == [{**row("dns", "a"), "deleted": True}]
    assert rows.take(answer(row("web", "b", "down"), whole=True)) == []
    assert rows.take(answer(whole=True)) == [{**row("web", "b", "down"), "deleted": True}]
    assert rows.all() == []


def test_what_retires_comes_last_and_what_has_no_peer_first() -> None:
    services = WatchedRows("services")
    services.take(answer({"name": "a", "state": "retiring"}, {"name": "b", "state": "up"}, whole=True))
    assert [found["name"] for found in services.all()] == ["b", "a"]
    told = WatchedRows("announcements")
    told.take(answer({"vip": "v", "mux": "m", "peer": "r"}, {"vip": "v", "mux": "m", "peer": None}, whole=True))
    assert [found["peer"] for found in told.all()] == [None, "r"]
