# SPDX-License-Identifier: Apache-2.0
"""The server of ``lb bench latency``: answers every request at once with as many bytes as it is told to.

Run as a program by :mod:`lb.bench.latency`, in the host's namespace: ``python -m lb.bench.testbed.echo PORT BYTES``. It
says ``listening`` and serves until SIGTERM. One thread; a request is whatever arrives together.
"""

from __future__ import annotations

import selectors
import socket
import sys

_REQUEST_MAX = 65536


def serve(port: int, answer: bytes) -> None:
    """Never returns."""
    waiting = selectors.DefaultSelector()
    listener = socket.create_server(("", port), backlog=128)
    waiting.register(listener, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for key, _ in waiting.select():
            connection: socket.socket | None = key.data
            if connection is None:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting.register(connection, selectors.EVENT_READ, connection)
            elif not _answer(connection, answer):
                waiting.unregister(connection)
                connection.close()


def _answer(connection: socket.socket, answer: bytes) -> bool:
    """Whether the client is still there."""
    try:
        if not connection.recv(_REQUEST_MAX):
            return False
        connection.sendall(answer)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    serve(int(sys.argv[1]), b"\0" * int(sys.argv[2]))
