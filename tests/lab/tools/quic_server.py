# SPDX-License-Identifier: Apache-2.0
"""An aioquic server whose connection ids say that they are its own: quic_server.py ADDRESS PORT NAME BACKEND KEY_FILE
CERTIFICATE CERTIFICATE_KEY. It answers every line of a stream with its name and how many it had on that connection."""

from __future__ import annotations

import asyncio
import os
import sys
from types import SimpleNamespace

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived

from lb.quic_ids import ConnectionIds, read_key_file, server_id_of


class Counting(QuicConnectionProtocol):
    count = 0
    name = ""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            for _ in range(event.data.count(b"\n")):
                self.count += 1
                self._quic.send_stream_data(event.stream_id, f"{self.name} {self.count}\n".encode())


async def main(address: str, port: str, name: str, backend: str, key_file: str, *certificate: str) -> None:
    ids = ConnectionIds(0, server_id_of(backend), key=read_key_file(key_file))
    # aioquic asks for random bytes for its ids, and for nothing else of this length.
    random = SimpleNamespace(urandom=lambda size: ids.mint() if size == ids.length else os.urandom(size))
    vars(connection)["os"] = random
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["lab"], connection_id_length=ids.length)
    configuration.load_cert_chain(*certificate)
    Counting.name = name
    await serve(address, int(port), configuration=configuration, create_protocol=Counting)
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
