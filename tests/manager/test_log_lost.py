# SPDX-License-Identifier: Apache-2.0
"""A real ``lb-manager`` whose log cannot be written: what it acknowledges is done, and it answers as ever."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.manager.test_supervised import free_port

_F_SETPIPE_SZ = 1031
CHANGES = 60


class Manager:
    """The process, with a log of the test's making."""

    def __init__(self, directory: Path, log: int) -> None:
        ports = [free_port(), free_port()]
        self.api = f"http://127.0.0.1:{ports[0]}"
        self.metrics = f"http://127.0.0.1:{ports[1]}/metrics"
        config = directory / "manager.toml"
        config.write_text(
            f'[manager]\nname = "m"\nvip_prefixes = ["203.0.113.0/24"]\nlisten = "127.0.0.1:{ports[0]}"\n'
            f'metrics = "127.0.0.1:{ports[1]}"\nstate_dir = "{directory / "state"}"\n'
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "manager.daemon", "run", "--config", config, "--insecure-loopback"], stderr=log
        )

    def ask(self, path: str, body: object = None) -> object:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"content-type": "application/json"}
        asked = urllib.request.Request(f"{self.api}{path}", data, headers)  # noqa: S310  our own
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    def wait(self) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                self.ask("/v1/openapi.json")
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < end
                assert self.process.poll() is None, "it ended"
                time.sleep(0.05)
            else:
                return

    def wait_lost(self, least: int) -> None:
        """Until so many lines are counted: the log's thread pauses after each failure, and counts later."""
        end = time.monotonic() + 30
        while (lost := self.lost()) < least:
            assert time.monotonic() < end, f"{lost} lines are counted as lost, not {least}"
            time.sleep(0.05)

    def lost(self) -> float:
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:  # noqa: S310  our own
            text = answer.read().decode()
        (line,) = [line for line in text.splitlines() if line.startswith("lb_log_lines_lost_total")]
        return float(line.split()[-1])


@contextmanager
def log_of(kind: str) -> Iterator[tuple[int, int | None]]:
    """Where the daemon writes, and the other end of it."""
    if kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
        yield descriptor, None
        os.close(descriptor)
        return
    read, write = os.pipe()
    fcntl.fcntl(write, _F_SETPIPE_SZ, 4096)
    yield write, read
    os.close(write)
    if kind == "stuck":
        os.close(read)


@pytest.mark.parametrize("kind", ["stuck", "closed", "full"])
def test_every_change_is_taken_and_listed(tmp_path: Path, kind: str) -> None:
    with log_of(kind) as (log, read):
        manager = Manager(tmp_path, log)
        try:
            manager.wait()
            if kind == "closed" and read is not None:
                os.close(read)
            for number in range(CHANGES):
                table = {"name": f"s{number}", "vip": f"203.0.113.{number}", "protocol": "tcp", "port": 80}
                answer = manager.ask("/v1/apply", {"services": [table]})
                assert isinstance(answer, dict), answer
            listed = manager.ask("/v1/services")
            assert len(json.dumps(listed).split('"vip"')) > CHANGES
            if kind != "stuck":
                manager.wait_lost(CHANGES)
            manager.process.send_signal(signal.SIGTERM)
            assert manager.process.wait(15) == 0
        finally:
            manager.process.kill()
            manager.process.wait()
