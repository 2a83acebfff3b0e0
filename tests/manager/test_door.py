# SPDX-License-Identifier: Apache-2.0
"""Whoever asks and does not read, over real sockets: it is let go, and those who read are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import ClientSession, web

from manager import door as door_module
from manager.door import Door, known, serving
from manager.trust import listener

ANSWER = 8 << 20


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Door, int]]:
    """A server that knows everybody, and has a long answer and a short one."""

    async def answer(request: web.Request) -> web.Response:
        known(request, "operator:ada")
        return web.Response(body=bytes(ANSWER) if request.path == "/long" else b"short")

    app = web.Application()
    app.router.add_get("/long", answer)
    app.router.add_get("/short", answer)
    server = listener("127.0.0.1:0")
    port = server.getsockname()[1]
    async with serving(app, server, None, grace=0.1) as door:
        yield door, port


async def ask(port: int, path: str) -> socket.socket:
    """And read nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", port))
    await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
    return connection


async def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


def unread(door: Door) -> int:
    return sum(guest.unread for guest in door._open.values())


async def test_who_takes_nothing_of_its_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "UNREAD_MAX", 0.5)
    async with opened() as (door, port), ClientSession() as session:
        with await ask(port, "/long"):
            await until(lambda: unread(door) > 0, "an answer that nobody takes")
            await until(lambda: not door._open, "its end")
        async with session.get(f"http://127.0.0.1:{port}/long") as reply:
            assert len(await reply.read()) == ANSWER


async def test_many_who_take_nothing_need_no_more_memory_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "UNREAD_ALL", 4 * ANSWER)
    monkeypatch.setattr(door_module, "UNREAD_FRESH", 1000.0)
    async with opened() as (door, port), ClientSession() as session:
        with contextlib.ExitStack() as kept:
            for _ in range(16):
                kept.enter_context(await ask(port, "/long"))
            await until(lambda: len(door._open) == 16, "all of them")
            await until(lambda: unread(door) > 4 * ANSWER, "too much")
            monkeypatch.setattr(door_module, "UNREAD_FRESH", 0.1)  # by now none of them is
            await until(lambda: unread(door) <= 4 * ANSWER, "less")
            assert door._open  # and no more are let go than have to be
            async with session.get(f"http://127.0.0.1:{port}/short") as reply:
                assert await reply.text() == "short"
