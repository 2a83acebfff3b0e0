# SPDX-License-Identifier: Apache-2.0
"""HTTP as ``lb bench peers`` asks for it: whole files up and down, and as many small requests as go (wrk).

Called in the client's namespace. A transfer has a connection of its own, whose beginning counts; nothing is copied that
need not be (``sendfile`` up; what comes down is thrown away by the kernel), so that the client is not what is measured.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from lb.bench.latency import REQUEST
from lb.errors import IoError

#: Nothing moved for so long: it never will, seconds.
TIMEOUT = 10.0
_HEAD_MAX = 65536
_DISCARD = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk did."""

    per_second: float
    requests: int
    errors: int  #: of sockets, and answers that were none
    p50_us: float
    p99_us: float


def download(address: str, path: str, seconds: float, source: str) -> float:
    """Mbit/s, the median of as many transfers as fit, at least one."""
    return _repeat(lambda: _get(address, path, source), seconds)


def upload(address: str, path: str, seconds: float, source: str, *, body: BinaryIO, size: int) -> float:
    """As :func:`download`. ``body``: a file of at least that size."""
    return _repeat(lambda: _put(address, path, body, size, source), seconds)


def wrk(namespace: str, address: str, seconds: float, *, connections: int = 32, close: bool = False) -> Load:
    """By one thread; ``close``: each connection for one request."""
    header = ("-H", "Connection: close") if close else ()
    length = f"{max(round(seconds), 1)}s"
    command = ["wrk", "--latency", "-t", "1", "-c", str(connections), "-d", length, *header, f"http://{address}/"]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, check=False, timeout=seconds + 30
    )
    if done.returncode:
        raise IoError(f"wrk: {(done.stderr or done.stdout).strip()}")
    return read_wrk(done.stdout)


def read_wrk(text: str) -> Load:
    """From what it prints."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    requests = re.search(r"(\d+) requests in", text)
    if rate is None or requests is None:
        raise IoError(f"wrk said something else than expected: {text.strip()}")
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    answers = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, sockets.groups())) if sockets else 0
    errors += int(answers[1]) if answers else 0
    return Load(float(rate[1]), int(requests[1]), errors, *(_percentile(text, part) for part in ("50", "99")))


def _percentile(text: str, part: str) -> float:
    """Microseconds; 0 where no request was answered."""
    found = re.search(rf"^\s+{part}%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE)
    return round(float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[found[2]], 1) if found else 0.0


def answer_bytes(address: str) -> int:
    """How long the answer to a small request is, with its header."""
    with socket.create_connection((address, 80), TIMEOUT) as connection:
        connection.sendall(REQUEST)
        head, length, _ = _head(connection, "200")
    return len(head) + len(b"\r\n\r\n") + length


def _repeat(transfer: Callable[[], int], seconds: float) -> float:
    """``transfer`` returns bytes."""
    rates: list[float] = []
    end = time.monotonic() + seconds
    while not rates or time.monotonic() < end:
        began = time.perf_counter()
        size = transfer()
        rates.append(size * 8 / 1e6 / (time.perf_counter() - began))
    return statistics.median(rates)


def _get(address: str, path: str, source: str) -> int:
    """Bytes of the file."""
    with _connect(address, source) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        _, length, begun = _head(connection, "200")
        missing, trash = length - len(begun), bytearray(_DISCARD)
        while missing:
            got = connection.recv_into(trash, min(missing, _DISCARD), socket.MSG_TRUNC)
            if not got:
                raise IoError(f"{address} closed the connection in the middle of {path}")
            missing -= got
    return length


def _put(address: str, path: str, body: BinaryIO, size: int, source: str) -> int:
    with _connect(address, source) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n\r\n".encode())
        body.seek(0)
        connection.sendfile(body, 0, size)
        _head(connection, "20")
    return size


def _connect(address: str, source: str) -> socket.socket:
    try:
        return socket.create_connection((address, 80), TIMEOUT, (source, 0))
    except OSError as error:
        raise IoError(f"no connection to {address} in the benchmark: {error}") from error


def _head(connection: socket.socket, code: str) -> tuple[bytes, int, bytes]:
    """An answer's header, the length of its body, and what came of that already."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = connection.recv(_HEAD_MAX)
        if not got:
            raise IoError("the server of the benchmark closed the connection")
        data += got
    head, _, begun = data.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode()
    if not status.startswith(code):
        raise IoError(f"the server of the benchmark answered {status}")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return head, int(length[1]) if length else 0, begun
