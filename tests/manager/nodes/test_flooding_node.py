# SPDX-License-Identifier: Apache-2.0
"""A real ``lb-manager`` and one node of its own that floods it, while an operator asks.

``VIPMUX_FLOOD_SECONDS`` is how long each attack lasts, 10 for the whole, which measures and wants a machine of its own.
Without it each lasts a moment: then the manager has to answer, live, and stay as small.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lb.node.identity import Identity, TokenText
from lb.node.messages import FLOWS_MAX, FROM_NODE_MAX, REPORTS_MAX
from manager.nodes.status import ROWS_MAX
from tests.manager.trust.attacks import MEMORY, Attack, Manager, attacked, cost_of

MEASURED = "VIPMUX_FLOOD_SECONDS" in os.environ
SECONDS = float(os.environ.get("VIPMUX_FLOOD_SECONDS", "0.7"))
#: What a node may spend at once is a part of its own in a short test, CPU seconds; in a long one it is spent before.
BURST, BEFORE = (2.5, 0.2) if SECONDS < 10 else (0.0, 10.0)


class Flood(Attack):
    """A node with a certificate."""

    def __init__(self, running: Manager, directory: Path, work: Callable[[Flood], None]) -> None:
        super().__init__(work)
        self._port = running.port
        number = ATTACKS.index(work) + 1
        name = f"mux{number}"
        self._from = f"127.0.0.{100 + number}"  # a machine of its own
        self.hello = {
            "type": "hello",
            "term": 0,
            "generation": 0,
            "digest": "",
            "settings": {"name": name, "address": f"10.0.1.{number}"},
            "version": "0",
        }
        identity = Identity(directory / name, "mux", name)
        if not identity.load():
            token = TokenText.parse(running.run("token", "--kind", "mux", "--name", name).strip())
            asyncio.run(identity.join(f"https://127.0.0.1:{running.port}", token))
        self._tls = identity.context()

    def connection(self) -> ssl.SSLSocket:
        """After its handshake."""
        plain = socket.create_connection(("127.0.0.1", self._port), 5, (self._from, 0))
        try:
            return self._tls.wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise

    def stream(self) -> ssl.SSLSocket:
        """A node stream, before its hello."""
        found = self.connection()
        key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        found.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{key}\r\n".encode())
        if not found.recv(4096).startswith(b"HTTP/1.1 101"):
            found.close()
            raise ConnectionError("refused")
        return found

    def says(self, message: Callable[[int], dict[str, Any]]) -> None:
        """Hello, and then this again and again; from the beginning where the manager has enough of it."""
        numbers = count()
        while not self.ended.is_set():
            try:
                with self.stream() as stream:
                    stream.sendall(frame(self.hello))
                    while not self.ended.is_set():
                        stream.sendall(frame(message(next(numbers))))
                        self.done += 1
            except OSError:
                self.ended.wait(0.001)


def frame(message: dict[str, Any]) -> bytes:
    text = json.dumps(message).encode()
    return head(len(text)) + text


def head(size: int) -> bytes:
    """Of a frame of text, masked with nothing."""
    return b"\x81\xff" + struct.pack("!Q", size) + bytes(4)


def statuses(flood: Flood) -> None:
    """Rows that are others each time."""

    def message(number: int) -> dict[str, Any]:
        rows = [{"name": f"s{number}-{row}", "packets": number} for row in range(500)]
        return {"type": "status", "body": {"at": float(number), "services": rows, f"section{number}": {}}}

    flood.says(message)


def events(flood: Flood) -> None:
    flood.says(lambda number: {"type": "event", "text": f"{number} " + "x" * 900})


def reports(flood: Flood) -> None:
    """On backends that there are not."""

    def message(number: int) -> dict[str, Any]:
        found = [
            {"service": f"s{number}", "backend": f"b{row}", "source": "tunnel", "up": True, "reason": "", "since": 1.0}
            for row in range(REPORTS_MAX)
        ]
        return {"type": "health", "lease": 5.0, "reports": found}

    flood.says(message)


def flows(flood: Flood) -> None:
    """Of a hand-over that nobody asked for."""
    groups = [["web", "web-1", "AAAAAAAAAAA="]] * FLOWS_MAX

    def message(number: int) -> dict[str, Any]:
        return {
            "type": "flows",
            "serial": number,
            "mux": "",
            "pool": "p",
            "last": False,
            "left_out": 0,
            "groups": groups,
        }

    flood.says(message)


def hellos(flood: Flood) -> None:
    """Each asks for the whole state again."""
    flood.says(lambda number: flood.hello | {"generation": number})


def lies(flood: Flood) -> None:
    """What ends the connection at once, again and again."""
    flood.says(lambda _: {"type": "status", "body": {"mux": {"flows": -1}}})


def greatest(flood: Flood) -> None:
    """Messages as long as any may be."""
    text = "x" * (FROM_NODE_MAX - 100)
    flood.says(lambda _: {"type": "of_a_newer_version", "text": text})


def silent(flood: Flood) -> None:
    """Streams that never say hello, each with most of the greatest frame."""
    kept: list[ssl.SSLSocket] = []
    piece = bytes(1 << 20)
    while not flood.ended.is_set():
        with suppress(OSError):
            stream = flood.stream()
            kept.append(stream)
            stream.sendall(head(FROM_NODE_MAX - 1))
            for _ in range(15):
                stream.sendall(piece)
            flood.done += 1
        if len(kept) > 60:
            kept.pop(0).close()
        flood.ended.wait(0.001)
    for one in kept:
        one.close()


def many(flood: Flood) -> None:
    """A message that is short enough as text, and of millions of values."""
    text = b'{"type": "of_a_newer_version", "x": [' + b"{}," * (FROM_NODE_MAX // 3 - 100) + b"{}]}"
    message = head(len(text)) + text

    while not flood.ended.is_set():
        try:
            with flood.stream() as stream:
                stream.sendall(frame(flood.hello))
                while not flood.ended.is_set():
                    stream.sendall(message)
                    flood.done += 1
        except OSError:
            flood.ended.wait(0.001)


def asks(flood: Flood) -> None:
    """Requests that it may not make, as fast as they are answered over one connection."""
    request = b"GET /v1/status HTTP/1.1\r\nHost: m\r\n\r\n" * 20
    while not flood.ended.is_set():
        try:
            with flood.connection() as connection:
                while not flood.ended.is_set():
                    connection.sendall(request)
                    if not connection.recv(1 << 16):
                        break
                    flood.done += 20
        except OSError:
            flood.ended.wait(0.001)


def pieces(flood: Flood) -> None:
    """A message of one byte in each record."""
    while not flood.ended.is_set():
        try:
            with flood.stream() as stream:
                stream.sendall(frame(flood.hello) + head(FROM_NODE_MAX - 1))
                while not flood.ended.is_set():
                    stream.sendall(b"x")
                    flood.done += 1
        except OSError:
            flood.ended.wait(0.001)


def widest(flood: Flood) -> None:
    """Statuses of as many rows as a message may have."""
    rows = [{"vip": f"10.{row >> 16}.{row >> 8 & 255}.{row & 255}"} for row in range(ROWS_MAX)]
    message = frame({"type": "status", "body": {"announcements": rows}})  # made once: it takes long here as well
    while not flood.ended.is_set():
        try:
            with flood.stream() as stream:
                stream.sendall(frame(flood.hello))
                while not flood.ended.is_set():
                    stream.sendall(message)
                    flood.done += 1
        except OSError:
            flood.ended.wait(0.001)


ATTACKS = [statuses, events, reports, flows, hellos, lies, greatest, many, silent, asks, pieces, widest]


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Manager, Path]]:
    directory = tmp_path_factory.mktemp("flooded")
    with attacked(directory) as running:
        yield running, directory


@pytest.mark.parametrize("work", ATTACKS, ids=lambda work: work.__name__)
def test_one_node_costs_little_and_keeps_nobody_waiting(
    flooded: tuple[Manager, Path], work: Callable[[Flood], None]
) -> None:
    running, directory = flooded
    flood = Flood(running, directory, work)
    cost = cost_of(running, flood, SECONDS, BEFORE, least=1)
    assert flood.done
    if MEASURED:
        cost.check(BURST / SECONDS)
    else:
        assert cost.memory <= MEMORY
