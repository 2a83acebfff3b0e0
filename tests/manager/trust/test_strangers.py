# SPDX-License-Identifier: Apache-2.0
"""A real ``lb-manager`` with TLS, strangers without a certificate, and an operator who asks meanwhile.

The strangers have other addresses of the loopback than the operator has. ``VIPMUX_STRANGERS`` is how many connections
they open (the default is for every day; 10000 is the whole), ``VIPMUX_STRANGER_SECONDS`` how long each attack lasts.
"""

from __future__ import annotations

import http.client
import json
import os
import selectors
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.manager.trust.attacks import Attack, Manager, attacked, cost_of, manager

CONNECTIONS = int(os.environ.get("VIPMUX_STRANGERS", "600"))
SECONDS = float(os.environ.get("VIPMUX_STRANGER_SECONDS", "2"))
#: What the strangers' credit costs when it is whole; in a short test it is a part of its own, CPU seconds.
BURST = 0.5 if SECONDS < 10 else 0.0
#: What unpacks to a thousand times as much.
BOMB = zlib.compress(bytes(64 << 20), 9)


class Strangers(Attack):
    """Without a certificate, from addresses of their own."""

    def __init__(self, port: int, work: Callable[[Strangers], None]) -> None:
        super().__init__(work)
        self.port = port
        self.net = 1 + ATTACKS.index(work) if work in ATTACKS else 100
        self.tls = ssl.create_default_context()
        self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE

    def connect(self, number: int, seconds: float = 5) -> socket.socket:
        """From one of eight addresses."""
        found = socket.socket()
        found.settimeout(seconds)
        found.bind((f"127.0.{self.net}.{number % 8 + 1}", 0))
        found.connect(("127.0.0.1", self.port))
        return found

    def handshake(self, number: int) -> ssl.SSLSocket:
        plain = self.connect(number)
        try:
            return self.tls.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise

    def tries(self, work: Callable[[int], None]) -> None:
        """Again and again; what is refused is refused."""
        while not self.ended.is_set():
            self.done += 1
            try:
                work(self.done)
            except OSError:
                self.ended.wait(0.001)


def idle(strangers: Strangers) -> None:
    """Connections that say nothing, and are made anew when they are ended."""
    kept: dict[socket.socket, None] = {}
    with selectors.DefaultSelector() as ends:
        while not strangers.ended.is_set():
            if len(kept) < CONNECTIONS:
                with suppress(OSError):
                    new = strangers.connect(strangers.done)
                    new.setblocking(False)
                    ends.register(new, selectors.EVENT_READ)
                    kept[new] = None
                strangers.done += 1
            for key, _ in ends.select(0 if strangers.done % 64 else 0.002):
                gone = key.fileobj
                assert isinstance(gone, socket.socket)
                ends.unregister(gone)
                gone.close()
                kept.pop(gone)
    for one in kept:
        one.close()


def bombs(strangers: Strangers) -> None:
    """A little that unpacks to much, to all that take a body from anybody."""

    def work(number: int) -> None:
        path = ("/v1/join", "/v1/ca", "/v1/services", "/v1/page/login")[number % 4]
        with strangers.handshake(number) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{strangers.port}\r\nContent-Encoding: deflate\r\n"
            head += f"Origin: https://127.0.0.1:{strangers.port}\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(BOMB) + BOMB)
            connection.recv(1000)

    strangers.tries(work)


def guesses(strangers: Strangers) -> None:
    """Tokens for joining and for asking, as fast as they are taken over one connection each."""

    def work(number: int) -> None:
        with strangers.handshake(number) as connection:
            while not strangers.ended.is_set():
                body = json.dumps({"kind": "mux", "name": "m1", "token": "x" * 40, "csr": "-"}).encode()
                join = b"POST /v1/join HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                ask = b"GET /v1/status HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer lb1.x.y\r\n\r\n"
                connection.sendall(join + ask)
                if not connection.recv(4000):
                    return

    strangers.tries(work)


def heads(strangers: Strangers) -> None:
    """A request's head, a little at a time and for ever, over many connections."""
    kept: list[ssl.SSLSocket] = []
    while not strangers.ended.is_set():
        with suppress(OSError):
            if len(kept) < CONNECTIONS:
                kept.append(strangers.handshake(len(kept)))
        for one in kept[:]:
            try:
                one.sendall(b"GET /v1/ca HTTP/1.1\r\nX: y")
            except OSError:
                kept.remove(one)
                one.close()
        strangers.ended.wait(0.01)
    for one in kept:
        one.close()


def readers(strangers: Strangers) -> None:
    """The page, with ever another question."""

    def work(number: int) -> None:
        with strangers.handshake(number) as connection:
            for turn in range(1000):
                if strangers.ended.is_set():
                    return
                query = f"GET /v1/page?q=w{number}{turn} HTTP/1.1\r\nHost: 127.0.0.1:{strangers.port}\r\n\r\n"
                connection.sendall(query.encode())
                if not connection.recv(100_000):
                    return

    strangers.tries(work)


ATTACKS = [bombs, guesses, heads, readers, idle]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    with attacked(tmp_path_factory.mktemp("strangers")) as found:
        yield found


@pytest.mark.parametrize("work", ATTACKS, ids=lambda work: work.__name__)
def test_strangers_cost_little_and_keep_nobody_waiting(running: Manager, work: Callable[[Strangers], None]) -> None:
    strangers = Strangers(running.web if work is readers else running.port, work)
    cost_of(running, strangers, SECONDS, before=0.2).check(BURST / SECONDS)


def test_with_few_descriptors_the_operator_is_answered_and_the_log_stays_short(tmp_path: Path) -> None:
    with manager(tmp_path, descriptors=256) as running, Strangers(running.port, idle):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            running.ask("GET", "/v1/status")
        lines = running.log.read_text().splitlines()
    assert len(lines) < 100


def test_wrong_tokens_from_many_addresses_shut_the_page_for_nobody(running: Manager) -> None:
    def login(address: str, token: str) -> int:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", running.web, timeout=20, context=page, source_address=(address, 0)
        )
        origin = {"Origin": f"https://127.0.0.1:{running.web}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/page/login", json.dumps({"token": token}), origin)
        status = connection.getresponse().status
        connection.close()
        return status

    page = ssl.create_default_context(cafile=str(running.out / "ca.pem"))
    token = running.run("token", "--kind", "operator", "--name", "bob").strip()
    said = [login(f"127.0.50.{number % 28 + 1}", "wrong") for number in range(140)]
    assert set(said) <= {403, 429}
    assert login("127.0.60.1", token) == 200
