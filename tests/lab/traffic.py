# SPDX-License-Identifier: Apache-2.0
"""The lab's clients: curl, wrk, downloads and uploads with checksums, and keep-alive connections that count breaks.

Called by the demo and the tests. Everything runs in the client's namespace and is owned by whoever started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab import netns
from tests.lab.netns import LabError
from tests.lab.process import Process, in_namespace
from tests.lab.topology import BIG_FILE_BYTES, CLIENT, Lab


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


def upload_random(lab: Lab, origin: str) -> tuple[str, list[str]]:
    """Sends 30 MB of random bytes to a service; returns their checksum, and those of what hosts got."""
    source = lab.directory / "to-upload"
    source.write_bytes(os.urandom(BIG_FILE_BYTES))
    name = re.sub(r"\W+", "-", origin)
    upload(lab, f"{origin}/upload/{name}", source)
    return checksum(source), [checksum(path) for _, path in lab.uploaded(name)]


_KEEPALIVE = Path(__file__).parent / "tools" / "keepalive.c"
#: ``struct row`` of tools/keepalive.c: state, source port, opened, ended, slowest, slowest_at, answers, host, why.
_ROW = struct.Struct("=IIQQQQQ24s56s")
_ROWS = 65536
#: Where the source ports of each load begin, so that they do not meet: the first has most of them for itself.
_FIRST_PORTS = itertools.cycle((2048, *range(12000, 32000, 500)))
_BROKEN = 3


@dataclass(frozen=True, slots=True)
class Life:
    """One keep-alive connection so far; times are ``time.monotonic()``."""

    flow: Flow
    opened: float
    ended: float | None
    slowest: float  #: the longest that a request waited for its answer, seconds
    slowest_at: float  #: when that answer came
    answers: int


class KeepAlive:
    """Connections that each ask for ``/`` again and again, until :meth:`stop`; a process of its own drives them.

    A connection is broken when it is reset or closed, or when no answer comes within ``patience`` seconds. With
    ``requests`` each ends in peace after so many, and another takes its place. The work is ``tools/keepalive.c``'s.
    """

    def __init__(
        self,
        lab: Lab,
        vip: str,
        port: int,
        *,
        count: int = 60,
        interval: float = 0.1,
        patience: float = 15.0,
        requests: int = 0,
    ) -> None:
        self._lab = lab
        self._vip = vip
        self._port = port
        self._patience = patience
        numbers = (count, round(interval * 1000), round(patience * 1000), requests)
        self._count = count
        self._numbers = [str(number) for number in numbers]
        self._process: Process | None = None
        self._table = b""  # the last state of the table, once it is closed
        self._map: mmap.mmap | None = None

    def start(self) -> KeepAlive:
        """Connects them all and has each answered once."""
        tool = self._lab.directory / "keepalive"
        if not tool.exists():
            subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", tool, _KEEPALIVE], check=True)
        name = f"keepalive-{self._port}-{time.monotonic_ns()}"
        table = self._lab.directory / name
        with table.open("wb+") as handle:
            handle.truncate(_ROWS * _ROW.size)
            self._map = mmap.mmap(handle.fileno(), _ROWS * _ROW.size)
        argv: list[str | Path] = [tool, table, str(CLIENT), str(next(_FIRST_PORTS)), self._vip, str(self._port)]
        argv += self._numbers
        self._process = Process("keepalive", self._lab.client, argv, table.with_suffix(".log"))
        self._process.wait_output("^running")
        table.unlink()
        self._wait(lambda life: life.answers >= 1, self._patience)
        return self

    @property
    def answers(self) -> int:
        return sum(life.answers for life in self.lives())

    @property
    def slowest(self) -> float:
        """The longest that a request waited for its answer, seconds."""
        return max(life.slowest for life in self.lives())

    def lives(self) -> list[Life]:
        """Every connection so far, in the order in which they were opened."""
        table = self._map if self._map is not None else self._table
        found = []
        for state, port, opened, ended, slowest, slowest_at, answers, host, why in _ROW.iter_unpack(table):
            if not state:
                break
            broken = _text(why) if state == _BROKEN else None
            flow = Flow(port, self._vip, self._port, _text(host), broken)
            found.append(
                Life(flow, opened / 1e9, ended / 1e9 if ended else None, slowest / 1e9, slowest_at / 1e9, answers)
            )
        return found

    def flows(self) -> list[Flow]:
        """What became of each connection so far."""
        return [life.flow for life in self.lives()]

    def one_more_answer(self) -> None:
        """Returns when every connection was asked and answered after this call, or has ended."""
        before = {life.flow.source_port: life.answers for life in self.lives()}
        self._wait(lambda life: life.answers >= before.get(life.flow.source_port, 0) + 2, self._patience + 5)

    def _wait(self, enough: Callable[[Life], bool], seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not all(life.ended is not None or enough(life) for life in self.lives()[: self._count]):
            if not self._process.running:
                raise LabError(f"keepalive: {self._process.output().strip()}")
            if time.monotonic() > deadline:
                raise LabError("keep-alive connections neither answered nor broke")
            time.sleep(0.005)

    def stop(self) -> list[Flow]:
        """Has every connection answered once more, then closes them all."""
        self.one_more_answer()
        self.close()
        return self.flows()

    def close(self) -> None:
        if self._process is not None:
            self._process.stop()
        if self._map is not None:
            self._table = self._map[:]
            self._map.close()
            self._map = None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="replace")


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


def counted(lab: Lab, reason: str) -> float:
    """Packets of this reason, on all MUXes."""
    total = 0.0
    for mux in lab.muxes:
        text = netns.ip("netns", "exec", mux.namespace, "curl", "-s", "http://127.0.0.1:9741/metrics")
        total += sum(map(float, re.findall(rf'^lb_packets_total{{[^}}]*reason="{reason}"[^}}]*}} (\S+)', text, re.M)))
    return total
