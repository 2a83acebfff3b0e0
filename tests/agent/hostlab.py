# SPDX-License-Identifier: Apache-2.0
"""One backend host with its agent, and beside it a client with a MUX of a few lines, in two network namespaces.

The MUX is a TUN device that the client routes its VIPs to: what comes out gets an outer header and leaves by a raw
socket; replies come straight back. ``with HostLab() as lab:`` owns namespaces, threads, processes and a directory::

    client 198.51.100.7, MUX 10.0.3.11 --- eth0 10.0.3.1 | 10.0.3.21 eth0 --- host with lb-agent
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from scapy.compat import raw
from scapy.layers.inet import IP

from agent.decap import open_program
from agent.host.linux import LinuxHost
from lb.config.render import format_config
from lb.daemon import control_socket
from lb.model import AgentConfig, AgentSettings, Backend, BackendState, DecapMode, PortRange, Protocol, Service
from tests.lab import netns
from tests.lab.process import Process, wait_for
from tests.lab.topology import PROGRAMS

CLIENT = "198.51.100.7"
MUX = "10.0.3.11"
GATEWAY = "10.0.3.1"
HOST = "10.0.3.21"

PLAIN_VIP = "203.0.113.10"
TRANSLATED_VIP = "203.0.113.20"
PREFIX_VIP = "203.0.113.128/25"
NO_VIP = "203.0.113.99"

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 1, 0x1000


def service(
    name: str, vip: str, port: int, to: int | None = None, state: BackendState = BackendState.UP, **more: Any
) -> Service:
    """A service of this one host, of TCP unless ``more`` says otherwise."""
    return Service(
        name=name,
        vip=ip_network(vip),
        ports=PortRange(port, port),
        backends=(Backend(f"{name}-1", IPv4Address(HOST), to, state=state),),
        **{"protocol": Protocol.TCP, **more},
    )


SERVICES = (
    service("plain", PLAIN_VIP, 80),
    service("translated", TRANSLATED_VIP, 80, to=8080),
    service("prefix", PREFIX_VIP, 80),
)


class Encapsulator:
    """A MUX of one backend: TUN in, outer header on, raw socket out."""

    def __init__(self, namespace: str) -> None:
        self.tos: Callable[[int], int] = lambda inner: inner
        self._tun, self._socket = netns.inside(namespace, self._open)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @staticmethod
    def _open() -> tuple[int, socket.socket]:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"mux0", _IFF_TUN | _IFF_NO_PI))
        return tun, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._tun], [], [], 0.05)[0]:
                continue
            with contextlib.suppress(BlockingIOError):
                inner = os.read(self._tun, 65536)
                if inner[0] >> 4 == 4:
                    self.send(inner, tos=self.tos(inner[1]))

    def send(self, inner: bytes, *, source: str = MUX, tos: int = 0, **outer: Any) -> None:
        """One tunnel packet to the host."""
        packet = IP(src=source, dst=HOST, proto=4, tos=tos, flags="DF", **outer)
        with contextlib.suppress(OSError):  # too big: the client must learn a smaller MSS
            self._socket.sendto(raw(packet / inner), (HOST, 0))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._tun)
        self._socket.close()


class HostLab:
    """See the module's text."""

    def __init__(self, *, decap: DecapMode = DecapMode.AUTO, strict: bool = False) -> None:
        prefix = netns.unique_prefix()
        self.client, self.host = f"{prefix}-c", f"{prefix}-h"
        self.directory = Path(tempfile.gettempdir()) / prefix
        self.decap = decap
        self.agent: Process | None = None
        self._strict = strict
        self._exits = contextlib.ExitStack()

    # --- up and down ---------------------------------------------------------------------------------------------

    def __enter__(self) -> HostLab:
        netns.reap()
        with self._exits:
            self._exits.callback(self._remove)
            self._build()
            self.mux = Encapsulator(self.client)
            self._exits.callback(self.mux.close)
            netns.batch(
                [
                    "link set mux0 up",
                    *(
                        f"route add {vip} dev mux0 src {CLIENT}"
                        for vip in (PLAIN_VIP, TRANSLATED_VIP, PREFIX_VIP, NO_VIP)
                    ),
                ],
                self.client,
            )
            self._exits = self._exits.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def _build(self) -> None:
        self.directory.mkdir(mode=0o755)
        netns.batch([f"netns add {self.client}", f"netns add {self.host}"])
        netns.sysctl(self.client, {"ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0})
        for namespace in (self.client, self.host):
            netns.sysctl(namespace, {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        netns.sysctl(self.host, {"ipv4/conf/all/rp_filter": int(self._strict), "ipv4/conf/default/rp_filter": 0})
        netns.batch(
            [
                f"link add name eth0 type veth peer name eth0 netns {self.host}",
                "link set lo up",
                f"addr add {CLIENT}/32 dev lo",
                f"addr add {GATEWAY}/24 dev eth0",
                f"addr add {MUX}/24 dev eth0",
                "link set eth0 up",
            ],
            self.client,
        )
        netns.batch(
            ["link set lo up", f"addr add {HOST}/24 dev eth0", "link set eth0 up", f"route add default via {GATEWAY}"],
            self.host,
        )

    def _remove(self) -> None:
        if self.agent is not None:
            self.agent.kill()
        for namespace in (self.client, self.host):
            if (netns.NETNS / namespace).exists():
                for pid in netns.pids(namespace):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                netns.ip("netns", "del", namespace)
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- the agent -----------------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.directory / "agent.toml"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    def settings(self, **changes: Any) -> AgentSettings:
        values: dict[str, Any] = {
            "name": "host",
            "address": IPv4Address(HOST),
            "interface": "eth0",
            "muxes": (IPv4Address(MUX),),
            "decap": self.decap,
            "state_dir": str(self.state_dir),
        }
        return AgentSettings(**{**values, **changes})

    def write(self, services: Sequence[Service] = SERVICES, **changes: Any) -> None:
        self.config.write_text(format_config(AgentConfig(self.settings(**changes), tuple(services))))

    def start(self, prefix: Sequence[str] = ()) -> str:
        """Starts the agent and returns its line ``ready``."""
        argv: list[str | Path] = [*prefix, PROGRAMS / "lb-agent", "--config", self.config]
        self.agent = Process("agent", self.host, argv, self.directory / "agent.log")
        return self.agent.wait_output(r"event=ready.*")[0]

    def reload(self, until: str = "event=reloaded") -> None:
        assert self.agent is not None
        before = self.agent.output().count(until)
        self.agent.signal(signal.SIGHUP)
        wait_for(lambda: self.agent is not None and self.agent.output().count(until) > before, f"{until} in the log")

    def cleanup(self) -> str:
        return self.run("cleanup", "--config", str(self.config)).stdout

    def run(self, *arguments: str, expect: int = 0, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Runs lb-agent to its end."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.host, *prefix, PROGRAMS / "lb-agent", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def row(self) -> dict[str, Any]:
        """The agent's row of ``lb get agents``."""
        return self.rows("agents")[0]

    def rows(self, what: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = control_socket.request(self.state_dir / "agent.sock", {"op": "get", "what": what})
        return rows

    def decapsulated(self) -> int:
        """Packets taken out of their tunnels, from the program itself: it works without an agent."""

        def read() -> int:
            with LinuxHost() as host:
                program = open_program(host.ingress("eth0").program)
            assert program is not None
            with contextlib.closing(program):
                return program.counters()["decapsulated"]

        return netns.inside(self.host, read)

    def drops(self, reason: str) -> int:
        return int(self.row()["drops"].get(reason, 0))

    # --- looking at the host -------------------------------------------------------------------------------------

    def on_host(self, *argv: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.host, *argv], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stdout + done.stderr

    def on_client(self, *argv: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.client, *argv], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stdout + done.stderr

    def traces(self) -> dict[str, str]:
        """All that an agent may change on a host, as text to compare."""
        sysctls = "/proc/sys/net/ipv4/conf/{all,default,eth0,lo}/{arp_ignore,arp_announce,rp_filter}"
        sysctls += " /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"
        return {
            "addresses": self.on_host("ip", "-o", "addr", "show"),
            "routes": self.on_host("ip", "route", "show", "table", "all"),
            "links": self.on_host("ip", "-br", "link"),
            "rules": self.on_host("nft", "list", "ruleset"),
            "qdiscs": self.on_host("tc", "qdisc", "show"),
            "filters": self.on_host("tc", "filter", "show", "dev", "eth0", "ingress"),
            "sysctls": self.on_host("bash", "-c", f"grep . {sysctls}"),
        }

    # --- traffic -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def server(self, port: int, name: str, namespace: str | None = None) -> Iterator[None]:
        """A TCP server on the host that answers each line with its name, the line, and whom it takes itself for."""
        listener = netns.inside(namespace or self.host, lambda: _listen(port))
        stop = threading.Event()
        thread = threading.Thread(target=_serve, args=(listener, name, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            listener.close()

    @contextlib.contextmanager
    def udp_server(self, port: int, name: str) -> Iterator[None]:
        """Listens on all addresses of the host and does not say from which it answers, as simple servers do."""

        def bound() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("", port))
            sock.settimeout(0.05)
            return sock

        stop = threading.Event()
        with netns.inside(self.host, bound) as sock:
            thread = threading.Thread(target=_serve_udp, args=(sock, name, stop))
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()

    def udp_client(self, vip: str, port: int) -> socket.socket:
        """A socket of the client that takes answers from the VIP alone, and keeps its own port."""

        def connected() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((CLIENT, 0))
            sock.connect((vip, port))
            sock.settimeout(0.3)
            return sock

        return netns.inside(self.client, connected)

    @contextlib.contextmanager
    def container(self, published: int) -> Iterator[str]:
        """A namespace behind the host, with rules as container engines make them, but without a proxy: what comes for
        ``published`` on any local address goes to its port 80."""
        name = f"{self.host}-ct"
        netns.batch([f"netns add {name}"])
        try:
            netns.batch(
                [
                    f"link add name ct0 type veth peer name eth0 netns {name}",
                    "addr add 172.18.0.1/16 dev ct0",
                    "link set ct0 up",
                ],
                self.host,
            )
            netns.batch(
                [
                    "link set lo up",
                    "addr add 172.18.0.2/16 dev eth0",
                    "link set eth0 up",
                    "route add default via 172.18.0.1",
                ],
                name,
            )
            to_container = f"tcp dport {published} fib daddr type local dnat to 172.18.0.2:80;"
            said = self.on_host(
                "nft",
                "table ip engine {\n"
                f'chain prerouting {{ type nat hook prerouting priority dstnat; iifname != "ct0" {to_container} }}\n'
                f"chain output {{ type nat hook output priority -100; ip daddr != 127.0.0.0/8 {to_container} }}\n"
                "chain postrouting { type nat hook postrouting priority srcnat;"
                ' ip saddr 172.18.0.0/16 oifname != "ct0" masquerade; }\n}\n',
            )
            assert not said, said
            netns.sysctl(self.host, {"ipv4/ip_forward": 1})
            yield name
        finally:
            netns.sysctl(self.host, {"ipv4/ip_forward": 0})
            self.on_host("nft", "delete table ip engine")
            netns.ip("netns", "del", name)

    def connect(self, vip: str, port: int = 80) -> socket.socket:
        """A connection from the client through the MUX."""

        def open_connection() -> socket.socket:
            return socket.create_connection((vip, port), timeout=20, source_address=(CLIENT, 0))

        return netns.inside(self.client, open_connection)

    def ask(self, vip: str, port: int = 80, text: str = "hello") -> str:
        with self.connect(vip, port) as connection:
            return exchange(connection, text)


def exchange(connection: socket.socket, text: str = "hello") -> str:
    connection.sendall(text.encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
    return data.decode().strip()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen()
    listener.setblocking(False)
    return listener


def _serve_udp(sock: socket.socket, name: str, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError, ConnectionError):
            data, client = sock.recvfrom(2048)
            sock.sendto(name.encode() + b" " + data, client)


def _serve(listener: socket.socket, name: str, stop: threading.Event) -> None:
    connections: dict[socket.socket, list[bytes]] = {}
    while not stop.is_set():
        ready, _, _ = select.select([listener, *connections], [], [], 0.05)
        for sock in ready:
            if sock is listener:
                connections[listener.accept()[0]] = []
                continue
            try:
                piece = sock.recv(65536)
            except ConnectionError:
                piece = b""
            if not piece:
                del connections[sock]
                sock.close()
                continue
            connections[sock].append(piece)
            if piece.endswith(b"\n"):  # a client asks one thing at a time
                line = b"".join(connections[sock])[:-1]
                connections[sock].clear()
                digest = line.decode() if len(line) < 100 else f"{len(line)} bytes"
                sock.sendall(f"{name} {digest} {sock.getsockname()[0]}\n".encode())
    for sock in connections:
        sock.close()
