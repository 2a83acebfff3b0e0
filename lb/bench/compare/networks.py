# SPDX-License-Identifier: Apache-2.0
"""The stage of ``lb bench peers``: one client, one router, one host with nginx, and a load balancer for each way.

    client 10.0.0.2 --- router --- host 10.0.2.21 (nginx, lb-agent; 10.2.0.N for what comes back through way N)
                          |
                          +------- load balancer N, 10.1.N.2, for the VIP 198.18.0.N

All are namespaces joined by veths. Every load balancer has one interface: packets come and go by it. What a way needs
not to disturb another it has for itself; what idles takes no time. The client has a second address, to which nobody
offers more than 64 KB of window.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lb.bench.compare.forwarders import DIRECT, Return, Way, WayPlace
from lb.bench.testbed import netns
from lb.bench.testbed.daemons import (
    BenchDaemon,
    BenchProgram,
    Stage,
    add_namespace,
    lift_session,
    load_rules,
    memory_directory,
    wait,
)
from lb.config.render import format_config
from lb.errors import IoError, VipmuxError
from lb.model import (
    AgentConfig,
    AgentSettings,
    Backend,
    DecapMode,
    IoMode,
    MuxConfig,
    MuxSettings,
    PortRange,
    Protocol,
    Service,
)

CLIENT, CLIENT_SMALL, HOST = "10.0.0.2", "10.0.0.3", "10.0.2.21"
#: Bytes of the files that are fetched and put.
SMALL, LARGE = 1_000_000, 30_000_000
_WINDOW = 65535
_FIRST_TABLE = 100
_SIOCETHTOOL = 0x8946
#: ETHTOOL_SRXCSUM, _STXCSUM, _SSG, _STSO, _SGSO, _SGRO of linux/ethtool.h.
_OFFLOADS = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)

_NGINX = """\
daemon off;
user root;
worker_processes 1;
master_process off;
pid {directory}/host.pid;
error_log {directory}/host-error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    keepalive_timeout 600;
    keepalive_requests 100000000;
    client_max_body_size 100m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 80 backlog=4096;
        location = / {{ return 200 "bench\\n"; }}
        location /files/ {{ alias {directory}/files/; dav_methods PUT; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class RunningWay:
    """A way that is set up: where the client finds it, and what runs for it."""

    name: str
    words: str
    address: str
    program: BenchProgram | None


class PeersStage(Stage):
    """See the module's text. ``left_out`` says of each way that could not be set up why."""

    def __init__(self, wanted: list[Way], *, offloads: bool) -> None:
        super().__init__()
        self._wanted = wanted
        self._offloads = offloads
        self.client, self._router, self._host = map(self._space, ("cl", "ro", "ho"))
        self.standing: list[RunningWay] = []
        self.left_out: dict[str, str] = {}

    def _build(self) -> None:
        for name in (self.client, self._router, self._host):
            add_namespace(name, self._resources)
            netns.sysctl(name, {"ipv4/tcp_tw_reuse": 1, "ipv4/ip_local_port_range": "10000 65000"})
        netns.sysctl(self._router, {"ipv4/ip_forward": 1, "ipv4/conf/all/send_redirects": 0})
        self._plug("c0", self.client, CLIENT)
        self._plug("h0", self._host, HOST)
        netns.batch([f"address add {CLIENT_SMALL}/24 dev eth0"], self.client)
        self._small_window(self._host)
        self._start_server()
        self.standing.append(RunningWay(DIRECT, "no load balancer", HOST, None))
        numbered = [(number, way) for number, way in enumerate(self._wanted, 1)]
        agent = [way for way in numbered if way[1].io is not None]
        if agent:
            self._start_agent([number for number, _ in agent])
        for number, way in numbered:
            try:
                standing = self._stand(number, way)
            except VipmuxError as error:
                self.left_out[way.name] = str(error)
                continue
            if standing.program is not None:
                lift_session(standing.program.process.pid)
            self.standing.append(standing)

    # -- wires --------------------------------------------------------------------------------------------------

    def _plug(self, port: str, namespace: str, address: str) -> None:
        """A namespace to the router, whose end has the network's first address."""
        gateway = address.rpartition(".")[0] + ".1"
        netns.batch(
            [
                f"link add name {port} type veth peer name eth0 netns {namespace}",
                f"address add {gateway}/24 dev {port}",
                f"link set dev {port} up",
            ],
            self._router,
        )
        netns.batch(
            [
                f"address add {address}/24 dev eth0",
                "link set dev eth0 up",
                "link set dev lo up",
                f"route add default via {gateway}",
            ],
            namespace,
        )
        if not self._offloads:
            netns.inside(self._router, lambda: _offloads_off(port))
            netns.inside(namespace, lambda: _offloads_off("eth0"))

    def _small_window(self, namespace: str) -> None:
        """The client's second address is offered no more."""
        route = netns.ip("-n", namespace, "route", "get", CLIENT_SMALL).split()
        via = route[route.index("via") + 1]
        netns.ip("-n", namespace, "route", "add", f"{CLIENT_SMALL}/32", "via", via, "window", str(_WINDOW))

    def _through(self, number: int, way: Way, backend: str) -> None:
        """The router's part: who is sent to the load balancer."""
        table, gateway = str(_FIRST_TABLE + number), f"10.1.{number}.2"
        lines = [f"route add {_vip(number)}/32 via {gateway}", f"route add default via {gateway} table {table}"]
        if backend != HOST:
            lines.append(f"route add {backend}/32 via {HOST}")
            netns.batch([f"address add {backend}/32 dev lo"], self._host)
            if way.back is Return.THROUGH:
                lines.append(f"rule add iif h0 from {backend} lookup {table}")
            else:
                lines.append(f"rule add iif c0 to {backend} lookup {table}")
        netns.batch(lines, self._router)

    # -- programs -----------------------------------------------------------------------------------------------

    def _start_server(self) -> None:
        directory = Path(self._resources.enter_context(memory_directory(self._prefix)))  # or uploads wait for a disk
        files = directory / "files"
        files.mkdir()
        for name, size in (("small", SMALL), ("large", LARGE)):
            (files / name).write_bytes(os.urandom(size))
        path = self.directory / "host.conf"
        path.write_text(_NGINX.format(directory=directory))
        command: list[str | Path] = ["nginx", "-e", directory / "host-error.log", "-c", path]
        server = self._keep(BenchProgram(self._host, "nginx on the host", command, self.directory / "host.log"))
        lift_session(server.process.pid)
        _wait_for_port(self._host, HOST, server)

    def _start_agent(self, numbers: list[int]) -> None:
        settings = AgentSettings(
            name="host",
            address=IPv4Address(HOST),
            interface="eth0",
            muxes=tuple(IPv4Address(f"10.1.{number}.2") for number in numbers),
            decap=DecapMode.AUTO,
            state_dir=str(self.directory / "agent"),
        )
        path = self.directory / "agent.toml"
        path.write_text(format_config(AgentConfig(settings, tuple(map(_service, numbers)))))
        agent = self._keep(BenchDaemon(self._host, "agent.daemon", ["--config", path], self.directory / "agent.log"))
        socket_path = self.directory / "agent" / "agent.sock"
        wait(lambda: bool(agent.row(socket_path, "agents").get("mode")), "lb-agent to be ready")

    def _stand(self, number: int, way: Way) -> RunningWay:
        """A load balancer of its own, and everything that leads to it."""
        reason = way.missing()
        if reason:
            raise IoError(reason)
        namespace = self._space(f"lb{number}")
        add_namespace(namespace, self._resources)
        self._plug(f"l{number}", namespace, f"10.1.{number}.2")
        proxy = way.program is not None
        backend = HOST if way.io is not None or proxy else f"10.2.0.{number}"
        directory = self.directory / way.name
        directory.mkdir()
        place = WayPlace(namespace, directory, _vip(number), f"10.1.{number}.2", backend)
        self._through(number, way, backend)
        if way.io is not None:
            mux, mode = self._start_mux(place, way.io, number)
            return RunningWay(way.name, f"{way.words}: {mode}", place.vip, mux)
        netns.sysctl(namespace, {"ipv4/ip_forward": 0 if proxy else 1, "ipv4/conf/all/send_redirects": 0})
        netns.sysctl(namespace, {"ipv4/conf/eth0/send_redirects": 0, "ipv4/ip_local_port_range": "10000 65000"})
        program = self._set_up(place, way)
        # What is only forwarded keeps its address; all else is asked for by the VIP.
        plain = way.forwards and way.rules is None
        return RunningWay(way.name, way.words, backend if plain else place.vip, program)

    def _set_up(self, place: WayPlace, way: Way) -> BenchProgram | None:
        if way.local:
            netns.batch([f"address add {place.vip}/32 dev lo"], place.namespace)
        if way.rules is not None:
            load_rules(place.namespace, way.rules(place.vip, place.backend))
        for command in way.commands(place) if way.commands is not None else ():
            run = BenchProgram(place.namespace, command[0], command, place.directory / "command.log")
            if run.process.wait():
                raise IoError(f"{' '.join(command)}: {run.last_words()}")
        if way.program is None:
            return None
        self._small_window(place.namespace)
        log = place.directory / "log"
        program = self._keep(BenchProgram(place.namespace, way.name, way.program(place), log))
        _wait_for_port(place.namespace, place.vip, program)
        return program

    def _start_mux(self, place: WayPlace, io: IoMode, number: int) -> tuple[BenchProgram, str]:
        settings = MuxSettings(
            name=f"bench-{io.value}",
            address=IPv4Address(place.own),
            seed=bytes(range(16)),
            interface="eth0",
            io=io,
            state_dir=str(place.directory),
        )
        path = place.directory / "mux.toml"
        path.write_text(format_config(MuxConfig(settings, (_service(number),))))
        log = place.directory / "log"
        mux = self._keep(BenchDaemon(place.namespace, "lb.mux.daemon", ["--config", path], log))

        def row() -> dict[str, Any]:
            return mux.row(place.directory / "mux.sock", "muxes")

        wait(lambda: row().get("state") == "ready", f"lb-mux with {io.value} to be ready")
        return mux, str(row()["mode"])


def _vip(number: int) -> str:
    return f"198.18.0.{number}"


def _service(number: int) -> Service:
    return Service(
        name=f"bench-{number}",
        vip=IPv4Network(_vip(number)),
        protocol=Protocol.TCP,
        ports=PortRange(80, 80),
        backends=(Backend(f"host-{number}", IPv4Address(HOST)),),
    )


def _offloads_off(interface: str) -> None:
    """Of checksums, segmentation and receive merging: frames are as they are on a wire."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for what in _OFFLOADS:
            value = (ctypes.c_uint32 * 2)(what, 0)
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
            with contextlib.suppress(OSError):  # the interface has none of it
                fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def _wait_for_port(namespace: str, address: str, program: BenchProgram) -> None:
    """Until it takes connections at port 80."""

    def open_() -> bool:
        program.check()
        try:
            socket.create_connection((address, 80), 1.0).close()
        except OSError:
            return False
        return True

    wait(lambda: netns.inside(namespace, open_), f"a server at {address} ({program.name})")
