# SPDX-License-Identifier: Apache-2.0
"""One question by HTTP: what is an answer, and what is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lb.cli.exchange import NoAnswerError, exchange, parse


@contextmanager
def server(answer: bytes, heard: list[bytes], host: str = "127.0.0.1") -> Iterator[int]:
    """Answers once, whatever it is asked."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)


def test_a_question_and_its_answer() -> None:
    heard: list[bytes] = []
    with server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\nX: y\r\n\r\n\r\n\r", heard) as port:
        answer = exchange("127.0.0.1", port, None, 5.0, "POST", "/v1/x?y=1", {"Authorization": "Bearer t"}, b"{}")
    assert answer == (404, b"\r\n\r")
    head, _, body = heard[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/x?y=1 HTTP/1.0"
    assert {f"Host: 127.0.0.1:{port}", "Authorization: Bearer t", "Content-Length: 2"} <= set(lines)
    assert body == b"{}"


def test_a_name_may_be_international_or_an_address_of_ipv6() -> None:
    heard: list[bytes] = []
    with server(b"HTTP/1.1 200 OK\r\n\r\n{}", heard, "::1") as port:
        assert exchange("::1", port, None, 5.0, "GET", "/", {}, None) == (200, b"{}")
    assert f"Host: [::1]:{port}".encode() in heard[0]
    with pytest.raises(OSError, match=r"."):
        exchange("ä.invalid", 1, None, 5.0, "GET", "/", {}, None)


def test_silence_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(TimeoutError):
        exchange("127.0.0.1", listening.getsockname()[1], None, 0.05, "GET", "/", {}, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 2OO OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshor",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_whole_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(NoAnswerError):
        parse(answer)
