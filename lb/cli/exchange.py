# SPDX-License-Identifier: Apache-2.0
"""One question by HTTP, on a connection of its own, and its answer; what :mod:`lb.cli.remote` asks the manager with.

The standard library's client loads the parser of mail to read headers, which takes longer than the question. Of these,
one is looked at: HTTP/1.0 is asked for, so the answer ends with the connection, and ``Content-Length`` tells whether it
is whole.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_CHUNK = 2**18
#: Of an answer's head, as aiohttp and others have it.
_HEAD_MAX = 2**16


class NoAnswerError(Exception):
    """The other side speaks no HTTP, or fell silent within its answer."""


def exchange(  # noqa: PLR0917  what a request is made of
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    timeout: float,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | None,
) -> tuple[int, bytes]:
    """Status and body; raises OSError (TimeoutError, ssl.SSLError) and :class:`NoAnswerError`."""
    # As bytes: of a text, Python would load the tables of international names, also for an address.
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = host.encode("ascii" if host.isascii() else "idna")
    with socket.create_connection((name, port), timeout) as plain:  # type: ignore[arg-type]  # it takes bytes
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with plain if tls is None else tls.wrap_socket(plain, server_hostname=name) as connection:
            connection.sendall(_request(place, method, target, headers, body))
            parts = []
            while part := connection.recv(_CHUNK):
                parts.append(part)
    return parse(b"".join(parts))


def _request(place: str, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    lines = {"Host": place, "Accept": "application/json", **headers}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = f"{method} {target} HTTP/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items()) + "\r\n"
    return head.encode("latin-1", "replace") + (body or b"")


def parse(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a whole answer."""
    if not answer:
        raise NoAnswerError("the connection was closed without an answer")
    head, mark, body = answer.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split(None, 2)
    if not mark or len(head) > _HEAD_MAX or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise NoAnswerError("what answers does not speak HTTP")
    if not (len(words[1]) == 3 and words[1].isdigit()):
        raise NoAnswerError("what answers does not speak HTTP")
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-length" and value.strip() != str(len(body)).encode():
            raise NoAnswerError("the connection was closed within the answer")
    return int(words[1]), body
