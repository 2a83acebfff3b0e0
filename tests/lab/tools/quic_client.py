# SPDX-License-Identifier: Apache-2.0
"""An aioquic client with one connection: quic_client.py ADDRESS PORT. For each line of its input it says one of what
the server answered: ``ask``; ``rebind``, as after a NAT has given it another port; ``migrate``, with another port and
another connection id, as a client does that moves."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration

PATIENCE = 30.0  # seconds


async def move(client: QuicConnectionProtocol) -> None:
    """To a socket of its own; packets to the old one are lost."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    before = client._transport
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: client, sock=sock)
    if before is not None:
        before.close()


async def main(address: str, port: str) -> None:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["lab"], verify_mode=ssl.CERT_NONE)
    async with connect(address, int(port), configuration=configuration) as client:
        reader, writer = await client.create_stream()
        print("connected", flush=True)
        while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if command == "migrate":
                client.change_connection_id()
            if command != "ask":
                await move(client)
            writer.write(b"who\n")
            try:
                answer = (await asyncio.wait_for(reader.readline(), PATIENCE)).decode()
            except TimeoutError:
                answer = "nobody 0\n"
            print(answer, end="", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
