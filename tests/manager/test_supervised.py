# SPDX-License-Identifier: Apache-2.0
"""What a real ``lb-manager`` says to its supervisor, and that it keeps silent when it hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lb.model import ManagerSettings
from manager.controller.controller import Controller
from manager.store.sqlite import SqliteStore

#: Short, so that the test is; the unit says 30 s.
WATCHDOG = 2.0


class Manager:
    """The process, and what it said to ``$NOTIFY_SOCKET``."""

    def __init__(self, directory: Path) -> None:
        ports = [free_port(), free_port()]
        self.api = f"http://127.0.0.1:{ports[0]}"
        config = directory / "manager.toml"
        config.write_text(
            f'[manager]\nname = "m"\nvip_prefixes = ["203.0.113.0/24"]\nlisten = "127.0.0.1:{ports[0]}"\n'
            f'metrics = "127.0.0.1:{ports[1]}"\nstate_dir = "{directory / "state"}"\n'
        )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        self._socket.settimeout(0.05)
        self.said: list[str] = []
        environment = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "manager.daemon", "run", "--config", config, "--insecure-loopback"],
            env={**os.environ, **environment},
            stderr=subprocess.DEVNULL,
        )

    def listen(self, seconds: float) -> list[str]:
        """What it says in this time."""
        began, end = len(self.said), time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(TimeoutError):
                self.said += self._socket.recv(4096).decode().splitlines()
        return self.said[began:]

    def wait(self, line: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while line not in self.said:
            assert time.monotonic() < end, f"{line} was not said, but {self.said}"
            assert self.process.poll() is None or self.said
            self.listen(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    started = Manager(tmp_path_factory.mktemp("supervised"))
    yield started
    started.close()


def test_ready_is_said_once_the_api_answers(manager: Manager) -> None:
    manager.wait("READY=1")
    with urllib.request.urlopen(f"{manager.api}/v1/openapi.json", timeout=10) as answer:  # noqa: S310  our own
        assert answer.status == 200
    assert "STATUS=ready: 0 services, version 0, 0 of 0 nodes connected" in manager.said


def test_signs_of_life_are_given_while_it_runs_and_none_while_it_is_stopped(manager: Manager) -> None:
    manager.wait("WATCHDOG=1")
    assert manager.listen(WATCHDOG * 2).count("WATCHDOG=1") >= 2
    manager.process.send_signal(signal.SIGSTOP)
    manager.listen(0.2)
    assert manager.listen(WATCHDOG) == []
    manager.process.send_signal(signal.SIGCONT)
    assert "WATCHDOG=1" in manager.listen(WATCHDOG * 2)


def test_a_hangup_is_answered_though_there_is_nothing_to_read_again(manager: Manager) -> None:
    manager.said.clear()
    manager.process.send_signal(signal.SIGHUP)
    manager.wait("READY=1")
    assert manager.said.index("RELOADING=1") < manager.said.index("READY=1")


def test_a_stop_is_said(manager: Manager) -> None:
    manager.process.send_signal(signal.SIGTERM)
    manager.wait("STOPPING=1")
    assert manager.process.wait(30) == 0


def test_no_heartbeat_while_the_thread_of_the_store_hangs(tmp_path: Path) -> None:
    """The thread is held up for real; the event loop and the plan go on meanwhile."""

    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path)
        controller = Controller(ManagerSettings("m", ()), store)
        await controller.start()
        try:
            await asyncio.wait_for(controller.heartbeat(), 10)
            held = threading.Event()
            store._thread.submit(held.wait)
            beat = asyncio.create_task(controller.heartbeat())
            await asyncio.sleep(1.0)
            assert not beat.done()
            held.set()
            await asyncio.wait_for(beat, 10)
        finally:
            await controller.stop()
            await store.close()

    asyncio.run(scenario())


def test_no_heartbeat_once_the_plan_has_no_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await SqliteStore.open(tmp_path)
        controller = Controller(ManagerSettings("m", ()), store)
        await controller.start()
        try:
            controller.tasks.end("plan")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(controller.heartbeat(), 1.0)
        finally:
            await controller.stop()
            await store.close()

    asyncio.run(scenario())
