# SPDX-License-Identifier: Apache-2.0
"""The local socket: requests and answers, bounded input, and whose socket it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lb.daemon.control_socket import CONNECTIONS_MAX, REQUEST_MAX, ControlServer, request
from lb.errors import ControlError, RequestError


def refuse(_: dict[str, Any]) -> None:
    raise RequestError("no such table 'dance'")


async def later(asked: dict[str, Any]) -> list[Any]:
    await asyncio.sleep(0)
    return [asked.get("what")]


HANDLERS = {"get": later, "lookup": lambda asked: {"backend": None}, "refuse": refuse}


def serving(path: Path, use: Callable[[], Any]) -> Any:
    """Runs ``use`` in a thread while a server answers."""

    async def run() -> Any:
        server = ControlServer(path, HANDLERS)
        await server.start()
        try:
            return await asyncio.wait_for(asyncio.to_thread(use), 20)
        finally:
            await server.close()

    return asyncio.run(run())


def raw(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Sends bytes, and returns the answers until the server closes or has said all."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return [json.loads(line) for line in answers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mux.sock"


def test_handlers_answer_with_values_and_awaitables(path: Path) -> None:
    assert serving(path, lambda: request(path, {"op": "get", "what": "services"})) == ["services"]
    assert serving(path, lambda: request(path, {"op": "lookup"})) == {"backend": None}


def test_a_refusal_reaches_the_asker_as_its_sentence(path: Path) -> None:
    with pytest.raises(ControlError, match="no such table 'dance'"):
        serving(path, lambda: request(path, {"op": "refuse"}))


@pytest.mark.parametrize("op", ["dance", None, 7, ["get"]])
def test_an_unknown_op_is_answered_with_the_known_ones(path: Path, op: object) -> None:
    with pytest.raises(ControlError, match=r"unknown op .*: this daemon knows get, lookup, refuse"):
        serving(path, lambda: request(path, {"op": op}))


@pytest.mark.parametrize("line", [b"hello", b"[]", b"\xff\xfe", b"1e999", b"[" * 30000])
def test_what_is_no_object_is_answered_with_an_error(path: Path, line: bytes) -> None:
    answers = serving(path, lambda: raw(path, line + b'\n{"op":"lookup"}\n'))
    assert answers == [
        {"ok": False, "error": "a request must be one JSON object on one line"},
        {"ok": True, "data": {"backend": None}},
    ]


def test_several_requests_share_a_connection_and_keep_their_order(path: Path) -> None:
    lines = b"".join(json.dumps({"op": "get", "what": number}).encode() + b"\n" for number in range(100))
    assert serving(path, lambda: raw(path, lines)) == [{"ok": True, "data": [number]} for number in range(100)]


def test_a_request_beyond_the_bound_ends_the_connection(path: Path) -> None:
    answers = serving(path, lambda: raw(path, b"x" * (REQUEST_MAX + 1000)))
    assert answers == [{"ok": False, "error": f"a request must fit into {REQUEST_MAX} bytes"}]


def test_connections_that_say_nothing_keep_nobody_out(path: Path) -> None:
    """The one that is silent longest goes; what was asked over the others is answered."""

    def ask() -> tuple[object, list[bytes]]:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2 * CONNECTIONS_MAX)]
            for connection in idle:
                connection.connect(str(path))
                connection.settimeout(10)
            idle[-1].sendall(b'{"op":"lookup"}\n')
            heard = [idle[0].recv(1), idle[-1].recv(1)]
            return request(path, {"op": "lookup"}), heard

    assert serving(path, ask) == ({"backend": None}, [b"", b"{"])


def test_only_the_owner_may_open_the_socket(path: Path) -> None:
    assert serving(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600
    assert not path.exists()


def test_a_socket_that_a_crash_left_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert serving(path, lambda: request(path, {"op": "lookup"})) == {"backend": None}


def start(path: Path) -> Awaitable[None]:
    return ControlServer(path, HANDLERS).start()


def test_a_socket_in_use_is_not_taken_over(path: Path) -> None:
    async def second() -> None:
        await start(path)

    with pytest.raises(ControlError, match="another process serves this socket"):
        serving(path, lambda: asyncio.run(second()))


def test_a_file_in_the_way_is_set_aside_not_removed(path: Path) -> None:
    path.write_text("precious")
    assert serving(path, lambda: request(path, {"op": "lookup"})) == {"backend": None}
    assert path.with_name(path.name + ".aside").read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="at most 107 bytes"):
        serving(tmp_path / ("x" * 120), lambda: None)


def test_asking_a_daemon_that_does_not_run_says_so(path: Path) -> None:
    with pytest.raises(ControlError, match="no such file or directory; is the daemon running"):
        request(path, {"op": "lookup"})
