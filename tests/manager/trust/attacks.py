# SPDX-License-Identifier: Apache-2.0
"""A real ``lb-manager`` with TLS that somebody attacks, its operator who asks meanwhile, and what the attack costs.

Used by test_strangers (who has no certificate) and test_flooding_node (who has one).
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.lab.pace import allowed
from tests.manager.test_supervised import free_port

#: What an attack may cost: of the manager's memory, bytes; of its core; and how late an answer may be, seconds.
MEMORY, SHARE, LATE = 100 << 20, 0.20, 0.3
SERVICE = {
    "name": "web",
    "vip": "203.0.113.10",
    "protocol": "tcp",
    "port": 80,
    "backend": [{"name": "web-1", "address": "10.0.3.21", "port": 8080}],
}


class Manager:
    """The process, and its operator."""

    def __init__(self, directory: Path, descriptors: int | None = None) -> None:
        self.port, self.web, metrics = free_port(), free_port(), free_port()
        self.config = directory / "manager.toml"
        self.config.write_text(
            f'[manager]\nname = "m"\nvip_prefixes = ["203.0.113.0/24"]\nlisten = "127.0.0.1:{self.port}"\n'
            f'web = "127.0.0.1:{self.web}"\nmetrics = "127.0.0.1:{metrics}"\nstate_dir = "{directory / "state"}"\n'
        )
        self.out = directory / "operator"
        self.run("init", "--out", str(self.out), "--operator", "ada")
        self.log = directory / "log"
        limit = f"ulimit -n {descriptors}; " if descriptors else ""
        command = f'{limit}exec "$0" -m manager.daemon run --config "$1"'
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["/bin/sh", "-c", command, sys.executable, self.config], stderr=log)
        self.tls = ssl.create_default_context(cafile=str(self.out / "ca.pem"))
        self.tls.load_cert_chain(self.out / "operator.pem", self.out / "operator.key")
        end = time.monotonic() + allowed(60)
        while not self.answers():
            assert time.monotonic() < end
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def timed(self, *question: Any) -> float:
        began = time.monotonic()
        self.ask(*question)
        return time.monotonic() - began

    def run(self, command: str, *arguments: str) -> str:
        done = [sys.executable, "-m", "manager.daemon", command, "--config", str(self.config), *arguments]
        return subprocess.run(done, check=True, capture_output=True, text=True).stdout

    def answers(self) -> bool:
        try:
            self.ask("GET", "/v1/status")
        except OSError:
            return False
        return True

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """What an operator gets, over a connection of its own."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.tls)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            reply = connection.getresponse()
            found = json.loads(reply.read())
            assert reply.status == 200, found
            return found
        finally:
            connection.close()

    @property
    def memory(self) -> int:
        (line,) = [
            line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in line
        ]
        return int(line.split()[1]) << 10

    @property
    def spent(self) -> float:
        """CPU seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@contextmanager
def manager(directory: Path, descriptors: int | None = None) -> Iterator[Manager]:
    running = Manager(directory, descriptors)
    try:
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


class Attack:
    """Whoever does it, in a thread, until left. ``work`` gets the attack, and ends when ``ended`` is set."""

    def __init__(self, work: Callable[[Any], None]) -> None:
        self.name = work.__name__
        self.ended = threading.Event()
        self.done = 0
        self._thread = threading.Thread(target=work, args=(self,), daemon=True)

    def __enter__(self) -> Self:
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(0.0002)  # the operator asks in this process as well, and must not wait for its own attack
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join(30)
        sys.setswitchinterval(self._switch)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of an attack."""

    memory: int  #: bytes, at most
    share: float  #: of the manager's core
    idle: float  #: the same before, with the operator's questions alone
    took: list[float]  #: what the operator's questions took, seconds
    quiet: float  #: the same before

    def check(self, burst: float = 0.0) -> None:
        """``burst``: what more of the core may be taken in a short time."""
        assert self.memory <= MEMORY
        assert self.share <= SHARE + burst
        # What an answer takes on a machine that works for others as well is not the attack's doing.
        assert middle(self.took) <= LATE + allowed(2 * self.quiet)


def cost_of(running: Manager, attack: Attack, seconds: float, before: float, least: int = 0) -> Cost:
    """Measured for so long, and until so many tries were made; ``before``: after so much of it."""
    memory = running.memory
    began, spent = time.monotonic(), running.spent
    before_it = [running.timed("GET", "/v1/status")]
    while len(before_it) < 5 or time.monotonic() - began < seconds / 3:
        time.sleep(0.1)
        before_it.append(running.timed("GET", "/v1/status"))
    idle, quiet = (running.spent - spent) / (time.monotonic() - began), middle(before_it)
    took: list[float] = []
    most = memory
    with attack:
        time.sleep(before)
        began, spent = time.monotonic(), running.spent
        end = began + seconds + allowed(20)
        while time.monotonic() - began < seconds or (attack.done < least and time.monotonic() < end):
            time.sleep(0.1)
            took.append(running.timed("GET", "/v1/status"))
            most = max(most, running.memory)
        share = (running.spent - spent) / (time.monotonic() - began)
        took.append(running.timed("POST", "/v1/apply", {"services": [SERVICE], "why": "once more"}))
        found = Cost(max(most, running.memory) - memory, share, idle, took, quiet)
    print(
        f"{attack.name}: {attack.done:,} tries, {found.memory / 2**20:.0f} MiB, {share:.1%} of a core ({idle:.1%} "
        f"before), answers {middle(took) * 1000:.0f} ms, the slowest {max(took) * 1000:.0f} ms; before "
        f"{quiet * 1000:.0f} ms"
    )
    return found


@contextmanager
def attacked(directory: Path) -> Iterator[Manager]:
    """A manager that has been at work."""
    with manager(directory) as running:
        for number in range(3):  # what it needs for the first time
            running.ask("POST", "/v1/apply", {"services": [SERVICE], "why": str(number)})
        yield running
