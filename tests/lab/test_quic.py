# SPDX-License-Identifier: Apache-2.0
"""QUIC with aioquic behind two MUXes: a client that changes its port, and its connection id, while the MUX that saw the
handshake dies, goes on with the same connection at the same backend."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lb.model import IoMode, QuicIds, Service
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.services import load
from tests.lab.topology import Lab, Node

pytestmark = pytest.mark.lab

VIP, PORT = "203.0.113.50", 4433
TOOLS = Path(__file__).parent / "tools"


def certificate(directory: Path) -> tuple[Path, Path]:
    """Of a server whose clients do not look at it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / "quic.crt", directory / "quic.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def h3(lab: Lab) -> Service:
    key_file = lab.directory / "h3.key"
    if not key_file.exists():
        key_file.touch(mode=0o600)
        key_file.write_text("8f95f09245765f80256934e50c66207f\n")
    found = load(lab.hosts)
    vip = type(found.vip)(f"{VIP}/32")
    return replace(found, name="h3", vip=vip, ports=type(found.ports)(PORT, PORT), quic=(QuicIds(0, str(key_file)),))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(io=IoMode.PACKET) as started:
        service = h3(started)
        started.start([service])
        files = certificate(started.directory)
        for host, backend in zip(started.hosts, service.backends, strict=True):
            assert service.quic[0].key_file is not None
            argv: list[str | Path] = [sys.executable, TOOLS / "quic_server.py", VIP, str(PORT), host.name, backend.name]
            argv += [service.quic[0].key_file, *files]
            host.processes["quic"] = Process(
                f"aioquic on {host.name}", host.namespace, argv, host.directory / "quic.log"
            )
        for host in started.hosts:
            host.processes["quic"].wait_output("serving")
        yield started


class Client:
    """One connection."""

    def __init__(self, lab: Lab) -> None:
        argv: list[str | Path] = [sys.executable, TOOLS / "quic_client.py", VIP, str(PORT)]
        self._process = subprocess.Popen(
            in_namespace(lab.client, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "connected"
        self.asked = 0

    def ask(self, how: str = "ask") -> str:
        """Who answered; on the connection of before, or it would count from the beginning."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        self.asked += 1
        host, count = self._line().split()
        assert int(count) == self.asked
        return host

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # which closes its ends as well


def carried(lab: Lab, mux: Node) -> int:
    """Packets of the service so far."""
    return sum(int(row["packets"]) for row in lab.get(mux, "services") if row["name"] == "h3")


def test_a_client_that_moves_stays_while_the_mux_of_its_handshake_dies(lab: Lab) -> None:
    client = Client(lab)
    try:
        home = client.ask()
        wait_for(lambda: any(carried(lab, mux) for mux in lab.muxes), "a MUX to have counted it")
        (first,) = (mux for mux in lab.muxes if carried(lab, mux))
        lab.kill_mux(first)
        assert [client.ask("rebind") for _ in range(6)] == [home] * 6
        assert [client.ask("migrate") for _ in range(6)] == [home] * 6
    finally:
        client.close()
