# SPDX-License-Identifier: Apache-2.0
"""Whoever asks and does not read, over real sockets: it is let go, and those who read are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import ClientSession, web

from manager.trust import bounded_listener as door_module
from manager.trust.bounded_listener import Door, Guest, known, metered, serving
from manager.trust.trust import listener

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


async def test_whose_meter_says_so_is_read_no_more_for_that_time() -> None:
    """And then goes on where it was: nothing is lost, whatever the HTTP library holds up meanwhile."""
    reads: list[tuple[float, int]] = []
    frames: list[int] = []
    pause = 0.05

    def meter(size: int, pieces: int, seconds: float) -> float:
        assert seconds >= 0
        assert pieces == 1
        reads.append((time.monotonic(), size))
        return pause

    async def stream(request: web.Request) -> web.StreamResponse:
        known(request, "mux:mux1")
        metered(request, meter)
        found = web.WebSocketResponse()
        await found.prepare(request)
        async for frame in found:
            frames.append(len(frame.data))
            if len(frames) % 10 == 0:
                await asyncio.sleep(0.01)  # so that the library is full now and then as well
        return found

    app = web.Application()
    app.router.add_get("/", stream)
    server = listener("127.0.0.1:0")
    port = server.getsockname()[1]
    async with serving(app, server, None, grace=0.1), ClientSession() as session:
        async with session.ws_connect(f"http://127.0.0.1:{port}/") as client:

            async def say() -> None:
                for _ in range(100):
                    await client.send_bytes(bytes(100_000))

            saying = asyncio.create_task(say())
            await until(lambda: len(reads) >= 8, "eight reads")
            assert min(second - first for (first, _), (second, _) in itertools.pairwise(reads)) >= 0.9 * pause
            assert sum(size for _, size in reads) < 10_000_000
            pause = 0.0
            await saying
            await until(lambda: len(frames) == 100, "all of it")
            assert sum(frames) == 10_000_000
        assert client.closed


async def test_a_node_that_connects_ever_again_costs_its_address_more_than_an_operator_does() -> None:
    async with opened() as (door, _):
        left = {}
        for who, address in (("mux:mux1", "10.0.0.1"), ("operator:ada", "10.0.0.2")):
            for _ in range(int(door_module.NODE_BURST) + 10):
                with socket.socket() as nothing:
                    Guest(door, nothing, address, 0.0).known(who)
            left[who] = door.guests._address(address).credit.left(time.monotonic())
        assert left["operator:ada"] - left["mux:mux1"] >= 9 * door_module.NODE_OVERDRAWN - 5
