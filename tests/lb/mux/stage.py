# SPDX-License-Identifier: Apache-2.0
"""A small stage for one ``lb-mux``: client, MUX and host on one switch, each a network namespace with default offloads.

Used by the lab tests beside it. A :class:`Stage` owns its namespaces, directory and processes and removes them all.
The host runs nothing: it shows what arrived there, as raw frames.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

from lb.config.render import format_config
from lb.daemon.control_socket import request
from lb.model import Backend, IoMode, MuxConfig, MuxSettings, PortRange, Protocol, Service
from tests.lab.netns import batch, inside, ip, unique_prefix
from tests.lab.process import Process, wait_for

LB_MUX = Path(__file__).resolve().parents[3] / ".venv/bin/lb-mux"
READY = r"event=ready\b.*"
CLIENT, MUX, HOST = "10.0.1.100", "10.0.1.11", "10.0.1.21"
VIP = "203.0.113.10"
DNS = Service("dns", ip_network(VIP), Protocol.UDP, PortRange(53, 53), (Backend("host", ip_address(HOST)),), slots=251)
WEB = replace(DNS, name="web", protocol=Protocol.TCP, ports=PortRange(80, 80))
ETH_P_IP = 0x0800


@dataclass(frozen=True, slots=True)
class Arrived:
    """A frame that reached the host and held IP-in-IP."""

    destination_mac: bytes
    outer_source: str
    outer_destination: str
    inner: bytes  #: the inner packet

    @property
    def payload(self) -> bytes:
        """Of the UDP datagram inside."""
        return self.inner[28:]


class Stage:
    """The namespaces and at most one MUX."""

    def __init__(self, io: IoMode = IoMode.PACKET, *, queues: int = 1) -> None:
        """``queues``: of the MUX's interface."""
        self._queues = queues
        prefix = unique_prefix()
        self.switch, self.client, self.mux, self.host = (f"{prefix}-{role}" for role in ("sw", "cl", "mux", "ho"))
        self._directory = tempfile.TemporaryDirectory(prefix=prefix)
        self.directory = Path(self._directory.name)
        self.settings = MuxSettings(
            name="mux1",
            address=IPv4Address(MUX),
            seed=bytes(range(16)),
            interface="eth0",
            io=io,
            flows=10_000,
            state_dir=str(self.directory / "state"),
        )
        self.config = self.directory / "mux.toml"
        self.process: Process | None = None

    def __enter__(self) -> Stage:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
        for name in (self.client, self.mux, self.host, self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        self._directory.cleanup()

    def _build(self) -> None:
        for name in (self.switch, self.client, self.mux, self.host):
            ip("netns", "add", name)
            inside(name, _quiet)
        batch(["link add name br0 type bridge", "link set dev br0 up"], self.switch)
        for port, name, address in (("p1", self.client, CLIENT), ("p2", self.mux, MUX), ("p3", self.host, HOST)):
            self.plug(port, name, address)
        ip("-n", self.client, "route", "add", "203.0.113.0/24", "via", MUX)

    def plug(self, port: str, name: str, address: str) -> None:
        """A new link from the switch to a namespace, as its eth0."""
        queues = f"numtxqueues {self._queues} numrxqueues {self._queues}" if name == self.mux else ""
        batch(
            [
                f"link add name {port} {queues} type veth peer name eth0 {queues} netns {name}",
                f"link set dev {port} master br0 up",
            ],
            self.switch,
        )
        batch([f"address add {address}/24 dev eth0", "link set dev eth0 up", "link set dev lo up"], name)

    # -- the MUX ------------------------------------------------------------------------------------------------

    def write(self, *services: Service) -> None:
        self.config.write_text(format_config(MuxConfig(self.settings, services)))

    def launch(self, *prefix: str) -> Process:
        """Starts lb-mux on the file as it is."""
        self.process = Process("lb-mux", self.mux, [*prefix, LB_MUX, "--config", self.config], self.directory / "log")
        return self.process

    def launch_altered(self, alteration: str) -> Process:
        """Starts lb-mux on the file as it is, after some Python in its process: for what this machine does not have."""
        code = f"{alteration}\nfrom lb.mux.daemon import main\nmain()"
        argv = [LB_MUX.with_name("python"), "-c", code, "--config", self.config]
        self.process = Process("lb-mux", self.mux, argv, self.directory / "log")
        return self.process

    def start(self, *services: Service) -> Process:
        """Writes the file, starts lb-mux and waits until it is ready."""
        self.write(*services)
        process = self.launch()
        process.wait_output(READY)
        return process

    def reload(self, *services: Service) -> None:
        """Other services by SIGHUP; returns when they are live."""
        before = self.row()["generation"]
        self.write(*services)
        assert self.process is not None
        self.process.signal(signal.SIGHUP)
        wait_for(lambda: self.row()["generation"] > before, "the reload")

    def ask(self, **asked: Any) -> Any:
        return request(Path(self.settings.state_dir) / "mux.sock", asked)

    def row(self) -> dict[str, Any]:
        """The one row of ``lb get muxes``."""
        found: dict[str, Any] = self.ask(op="get", what="muxes")[0]
        return found

    def metrics(self) -> dict[str, float]:
        """What Prometheus would scrape, by name with labels."""
        text = self.run(self.mux, "curl", "-s", f"http://{self.settings.metrics}/metrics")
        lines = (line for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def vips_of_the_kernel(self) -> list[Any] | None:
        """The isolated IPv4 VIPs, None without a table."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.mux, "nft", "-j", "list", "set", "inet", "vipmux_mux1", "vips4"],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            return None
        sets = [item["set"] for item in json.loads(done.stdout)["nftables"] if "set" in item]
        return list(sets[0].get("elem", []))

    # -- the others ---------------------------------------------------------------------------------------------

    def run(self, name: str, *argv: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", name, *argv], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    @contextlib.contextmanager
    def udp_client(self) -> Iterator[socket.socket]:
        made = inside(self.client, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with made:
            made.settimeout(5)
            yield made

    @contextlib.contextmanager
    def tap(self) -> Iterator[Tap]:
        """Frames that reach the host, from now on."""
        with inside(self.host, _open_tap) as opened:
            yield Tap(opened)

    def many_flows_arrive(self, clients: int = 40) -> dict[str, Any]:
        """Five datagrams of each of so many clients to the VIP: all arrive, and each flow is known to one worker alone.
        Returns the row."""
        with self.tap() as tap:
            for number in range(clients):
                with self.udp_client() as client:
                    client.bind((CLIENT, 20_000 + number))
                    for _ in range(5):
                        client.sendto(b"question", (VIP, 53))
            assert len(tap.take(clients * 5)) == clients * 5
        row = self.row()
        assert row["forwarded"] == clients * 5
        assert row["flows"] == clients
        assert row["received"] == row["forwarded"] + row["passed"] + row["replied"] + row["dropped"]
        return row

    def mac(self, name: str) -> bytes:
        return bytes.fromhex(json.loads(ip("-j", "-n", name, "link", "show", "eth0"))[0]["address"].replace(":", ""))

    def connect(self, address: str, port: int, seconds: float = 10.0) -> OSError | None:
        """How a TCP connection from the client ends: None if it succeeds."""

        def attempt() -> OSError | None:
            with socket.socket() as probe:
                probe.settimeout(seconds)
                try:
                    probe.connect((address, port))
                except OSError as error:
                    return error
            return None

        return inside(self.client, attempt)


class Tap:
    """What arrived at the host."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened

    def take(self, count: int, seconds: float = 20.0) -> list[Arrived]:
        """The next so many tunnelled packets; fewer if they do not come in time."""
        found: list[Arrived] = []
        deadline = time.monotonic() + seconds
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame, address = self._socket.recvfrom(65536)
            except TimeoutError:
                break
            if address[2] == socket.PACKET_OUTGOING or frame[23] != socket.IPPROTO_IPIP:
                continue
            found.append(
                Arrived(
                    frame[:6],
                    socket.inet_ntoa(frame[26:30]),
                    socket.inet_ntoa(frame[30:34]),
                    frame[34 : 14 + struct.unpack_from("!H", frame, 16)[0]],
                )
            )
        return found

    def only(self, count: int) -> list[Arrived]:
        """The next so many, and what still comes in a moment after them."""
        return [*self.take(count), *self.take(1, seconds=0.3)]


def _open_tap() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
    opened.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    opened.bind(("eth0", ETH_P_IP))
    return opened


def _quiet() -> None:
    """No IPv6, so that nothing moves by itself."""
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


def udp_checksum_is_right(packet: bytes) -> bool:
    """Of an IPv4 packet with a UDP datagram."""
    udp = packet[20:]
    pseudo = packet[12:20] + struct.pack("!BBH", 0, 17, len(udp))
    data = pseudo + udp + bytes(len(udp) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def services(*found: Service, backends: Sequence[Backend]) -> tuple[Service, ...]:
    """The same services with other backends."""
    return tuple(replace(service, backends=tuple(backends)) for service in found)
