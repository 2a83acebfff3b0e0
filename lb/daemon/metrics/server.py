# SPDX-License-Identifier: Apache-2.0
"""The HTTP server behind ``/metrics``: threads of its own, and bounds for whoever connects and does nothing.

Used by :func:`lb.daemon.metrics.collectors.serve` for every daemon. One request for each connection; a thread for each
connection, of which there are so many at most. Who has asked nothing yet makes room for who comes, first of the address
that has most; where all that there are have asked, who comes is sent away. Text is made by one thread at a time.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from lb.daemon.log import get_logger

#: Connections at once.
CONNECTIONS_MAX = 32
#: A request's head, bytes.
HEAD_MAX = 16 * 1024
#: Until the head must be there; until all of the answer must be taken; and between two pieces of either, seconds.
HEAD_TIMEOUT, ANSWER_TIMEOUT, PIECE_TIMEOUT = 5.0, 60.0, 10.0
#: Nobody is accepted for so long where there is no descriptor left, seconds.
FULL_PAUSE = 0.2

log = get_logger()


@dataclass(slots=True)
class _Guest:
    address: str
    since: float
    asked: bool = False


class ScrapeServer(ThreadingMixIn, TCPServer):
    """Listens from the moment it is made; :meth:`serve_forever` serves."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic):
        self.registry = registry
        self.making = Lock()
        self._clock = clock
        self._lock = Lock()
        self._open: dict[socket.socket, _Guest] = {}
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), int(address[1])), _Handler)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(FULL_PAUSE)  # else the loop would come back at once, and at once again
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """In the accepting thread."""
        with self._lock:
            full = len(self._open) >= CONNECTIONS_MAX
            out = self._silent() if full else None
            if out is not None:
                del self._open[out]
            if not full or out is not None:
                self._open[request] = _Guest(str(client_address[0]), self._clock())
        if out is not None:
            _end(out)
        if full and out is None:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def _silent(self) -> socket.socket | None:
        """The oldest that has asked nothing, of the address that has most of those."""
        silent = [(one, guest) for one, guest in self._open.items() if not guest.asked]
        many = Counter(guest.address for _, guest in silent)
        return min(silent, key=lambda item: (-many[item[1].address], item[1].since), default=(None, None))[0]

    def asked(self, connection: socket.socket) -> None:
        """Its request is there."""
        with self._lock:
            guest = self._open.get(connection)
            if guest is not None:
                guest.asked, guest.since = True, self._clock()

    def service_actions(self) -> None:
        """Twice a second, and after each connection."""
        now = self._clock()
        with self._lock:
            late = [
                one
                for one, guest in self._open.items()
                if now - guest.since > (ANSWER_TIMEOUT if guest.asked else HEAD_TIMEOUT)
            ]
        for one in late:
            _end(one)  # its thread notices, and closes it

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("metrics not sent", peer=str(client_address[0]))

    def end(self) -> None:
        """Whoever is there goes."""
        with self._lock:
            connections = list(self._open)
        for one in connections:
            _end(one)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Head(io.BufferedReader):
    """What comes, up to so many bytes."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw, 4096)
        self._left = HEAD_MAX

    def readline(self, size: int | None = -1, /) -> bytes:
        most = self._left if size is None or size < 0 else min(size, self._left)
        line = super().readline(most)
        self._left -= len(line)
        return line


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ScrapeServer
    timeout = PIECE_TIMEOUT

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = _Head(self.connection.makefile("rb", buffering=0))

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # it has left, or is too slow
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        self.server.asked(self.connection)
        return True

    def do_GET(self) -> None:
        with self.server.making:
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            text = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            text = gzip.compress(text, 6)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""
