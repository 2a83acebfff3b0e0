# SPDX-License-Identifier: Apache-2.0
"""The lab's clients: curl, wrk, downloads and uploads with checksums, and keep-alive connections that count breaks.

Called by the demo and the tests. Everything runs in the client's namespace and is owned by whoever started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import selectors
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import netns
from tests.lab.netns import LabError
from tests.lab.process import Process, in_namespace
from tests.lab.topology import CLIENT, Lab


def run(lab: Lab, *argv: str | Path, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs a program on the client and returns what it printed."""
    return subprocess.run(in_namespace(lab.client, argv), capture_output=True, text=True, timeout=seconds, check=False)


def checksum(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def requests(lab: Lab, url: str, count: int) -> Counter[str]:
    """Makes requests with curl, a new connection each, and counts what answered; failures count as ``"failed"``."""
    done = run(
        lab, "curl", "-s", "--no-keepalive", "-H", "Connection: close", "--connect-timeout", "5", f"{url}?n=[1-{count}]"
    )
    hosts = Counter(done.stdout.split())
    if missing := count - hosts.total():
        hosts["failed"] = missing
    return hosts


@dataclass(frozen=True, slots=True)
class WrkResult:
    requests: int
    per_second: float
    errors: int  #: connect, read, write, timeout and status errors together


def wrk(lab: Lab, url: str, seconds: int = 2, connections: int = 32) -> WrkResult:
    """A burst of load with wrk, one thread."""
    done = run(lab, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url)
    total = re.search(r"(\d+) requests in", done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if not total or not rate:
        raise LabError(f"wrk {url}: {done.stdout} {done.stderr}")
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", done.stdout)))
    errors += sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", done.stdout)))
    return WrkResult(int(total[1]), float(rate[1]), errors)


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection of the client's, and what became of it."""

    source_port: int
    vip: str
    port: int
    host: str  #: who served it
    broken: str | None  #: what broke it, or None


class Download:
    """curl fetching ``/big`` in the background, no faster than told."""

    def __init__(self, lab: Lab, vip: str, port: int, source_port: int, *, rate: str = "3M") -> None:
        self.vip, self.port, self.source_port = vip, port, source_port
        self._lab = lab
        self._file = lab.directory / f"download-{port}-{source_port}"
        self._headers = self._file.with_suffix(".headers")
        argv = ["curl", "-sS", "--local-port", str(source_port), "--limit-rate", rate, "--connect-timeout", "5"]
        argv += ["-D", str(self._headers), "-o", str(self._file), f"http://{vip}:{port}/big"]
        self.process = Process("curl", lab.client, argv, self._file.with_suffix(".log"))

    @property
    def received(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    @property
    def host(self) -> str:
        found = re.search(r"X-Host: (\S+)", self._headers.read_text()) if self._headers.exists() else None
        return found[1] if found else ""

    def finish(self, seconds: float = 60.0) -> Flow:
        """Waits for the end and compares checksums."""
        code = self.process.wait(seconds)
        broken = None
        if code:
            broken = self.process.output().strip() or f"curl ended with {code}"
        elif checksum(self._file) != checksum(self._lab.big_file):
            broken = "the checksum differs"
        self._file.unlink(missing_ok=True)
        return Flow(self.source_port, self.vip, self.port, self.host, broken)


def download(lab: Lab, url: str) -> str:
    """Fetches a file at full speed; returns its checksum."""
    target = lab.directory / "downloaded"
    done = run(lab, "curl", "-sS", "--max-time", "60", "-o", target, url)
    if done.returncode:
        raise LabError(f"curl {url}: {done.stderr.strip()}")
    return checksum(target)


def upload(lab: Lab, url: str, path: Path) -> None:
    """Sends a file with PUT at full speed."""
    done = run(lab, "curl", "-sS", "-f", "--max-time", "60", "-H", "Expect:", "-T", path, url)
    if done.returncode:
        raise LabError(f"curl -T {url}: {done.stderr.strip()}")


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    source_port: int
    host: str = ""
    asked_at: float = 0.0  #: 0: no request is under way
    next_at: float = 0.0
    answer: bytes = b""
    answers: int = 0
    slowest: float = 0.0
    broken: str | None = None


@dataclass(slots=True)
class KeepAlive:
    """Connections that each ask for ``/`` again and again, until :meth:`stop`; a thread of its own drives them.

    A connection is broken when it is reset or closed, or when no answer comes within ``patience`` seconds.
    """

    lab: Lab
    vip: str
    port: int
    count: int = 60
    interval: float = 0.1
    patience: float = 15.0
    _connections: list[_Connection] = field(default_factory=list)
    _stopping: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> KeepAlive:
        """Connects them all and has each answered once."""
        netns.inside(self.lab.client, self._connect_all)
        self._thread = threading.Thread(target=self._drive, name="keep-alive", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + self.patience
        while any(not connection.answers and not connection.broken for connection in self._connections):
            if time.monotonic() > deadline:
                raise LabError("keep-alive connections were not answered")
            time.sleep(0.005)
        return self

    @property
    def answers(self) -> int:
        return sum(connection.answers for connection in self._connections)

    @property
    def slowest(self) -> float:
        """The longest that a request waited for its answer, seconds."""
        return max(connection.slowest for connection in self._connections)

    def flows(self) -> list[Flow]:
        """What became of each connection so far."""
        return [
            Flow(connection.source_port, self.vip, self.port, connection.host, connection.broken)
            for connection in self._connections
        ]

    def one_more_answer(self) -> None:
        """Returns when every connection was asked and answered after this call, or is broken."""
        before = {connection.source_port: connection.answers for connection in self._connections}
        deadline = time.monotonic() + self.patience + 5
        while any(c.answers < before[c.source_port] + 2 and not c.broken for c in self._connections):
            if time.monotonic() > deadline:
                raise LabError("keep-alive connections neither answered nor broke")
            time.sleep(0.005)

    def stop(self) -> list[Flow]:
        """Has every connection answered once more, then closes them all."""
        self.one_more_answer()
        self.close()
        return self.flows()

    def close(self) -> None:
        self._stopping = True
        if self._thread:
            self._thread.join()
        for connection in self._connections:
            connection.socket.close()

    def _connect_all(self) -> None:
        for _ in range(self.count):
            peer = socket.socket()
            peer.settimeout(self.patience)
            peer.bind((str(CLIENT), 0))
            peer.connect((self.vip, self.port))
            peer.setblocking(False)
            self._connections.append(_Connection(peer, peer.getsockname()[1]))

    def _drive(self) -> None:
        selector = selectors.DefaultSelector()
        for connection in self._connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        with selector:
            while not self._stopping:
                for key, _ in selector.select(timeout=0.01):
                    self._read(key.data, selector)
                now = time.monotonic()
                for connection in self._connections:
                    self._turn(connection, now, selector)

    def _turn(self, connection: _Connection, now: float, selector: selectors.BaseSelector) -> None:
        """Asks if it is time to, and gives up on an answer that is too late."""
        if connection.broken:
            return
        if connection.asked_at:
            if now - connection.asked_at > self.patience:
                self._break(connection, f"no answer within {self.patience:g} s", selector)
        elif now >= connection.next_at:
            try:
                connection.socket.send(f"GET / HTTP/1.1\r\nHost: {self.vip}\r\n\r\n".encode())
                connection.asked_at = now
            except OSError as error:
                self._break(connection, error.strerror or str(error), selector)

    def _read(self, connection: _Connection, selector: selectors.BaseSelector) -> None:
        try:
            data = connection.socket.recv(4096)
        except OSError as error:
            self._break(connection, error.strerror or str(error), selector)
            return
        if not data:
            self._break(connection, "closed by the server", selector)
            return
        connection.answer += data
        head, separator, body = connection.answer.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if separator and length and len(body) >= int(length[1]):
            connection.host = body.decode().strip()
            connection.answers += 1
            now = time.monotonic()
            connection.slowest = max(connection.slowest, now - connection.asked_at)
            connection.answer, connection.asked_at, connection.next_at = b"", 0.0, now + self.interval

    @staticmethod
    def _break(connection: _Connection, why: str, selector: selectors.BaseSelector) -> None:
        connection.broken = why
        with contextlib.suppress(KeyError):
            selector.unregister(connection.socket)


class Capture:
    """What reaches the client, as seen by a packet socket on its interface: (frame bytes) in order of arrival."""

    def __init__(self, lab: Lab) -> None:
        self._socket = netns.inside(lab.client, self._open)
        self._frames: list[bytes] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self._thread.start()

    @staticmethod
    def _open() -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # every protocol
        tap.bind(("eth0", 3))
        tap.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
        tap.settimeout(0.05)
        return tap

    def _read(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                self._frames.append(self._socket.recv(65535))

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._socket.close()

    def _ipv4(self) -> Iterator[bytes]:
        return (frame[14:] for frame in list(self._frames) if frame[12:14] == b"\x08\x00")

    def resets(self, source: str) -> int:
        """TCP resets from this address."""
        address = socket.inet_aton(source)
        return sum(1 for p in self._ipv4() if p[9] == 6 and p[12:16] == address and p[(p[0] & 15) * 4 + 13] & 0x04)

    def icmp_errors(self, *sources: str) -> int:
        """ICMP errors (unreachable, redirect, time exceeded, parameter problem) from these addresses."""
        addresses = {socket.inet_aton(source) for source in sources}
        return sum(
            1 for p in self._ipv4() if p[9] == 1 and p[12:16] in addresses and p[(p[0] & 15) * 4] in (3, 5, 11, 12)
        )
