# SPDX-License-Identifier: Apache-2.0
"""Small real servers on loopback for the tests beside it; each says where it listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def tcp(answer: Script) -> AsyncIterator[int]:
    """Runs ``answer`` for each connection; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def says(data: bytes, *, then_wait: bool = False) -> Script:
    """Reads a request, says this, and closes, or keeps silent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(data)
        await writer.drain()
        if then_wait:
            await reader.read()

    return answer


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, reply: bytes | None) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        if self._reply is not None:
            self._transport.sendto(self._reply + data, address)


@contextlib.asynccontextmanager
async def udp(reply: bytes | None) -> AsyncIterator[int]:
    """Answers each datagram with this and what was asked, or not at all; yields the port."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Datagrams(reply), local_addr=("127.0.0.1", 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
