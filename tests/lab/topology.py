# SPDX-License-Identifier: Apache-2.0
"""The lab: client, router with ECMP, MUXes and backend hosts, each in its own network namespace on this machine.

Called by the demo and by the tests marked ``lab``. :class:`Lab` owns the namespaces, every process in them and one
temporary directory; leaving its ``with`` block, by whatever way, removes all three::

    client 10.0.0.2 --- router --- brm 10.0.1.1/24 --- mux1 10.0.1.11, mux2 10.0.1.12
                          `------- brh 10.0.3.1/24 --- host1 10.0.3.21, host2 .22, host3 .23

Every host runs nginx on ports 80 and 8080. ``GET /`` answers the host's name, ``/big`` a file of random bytes, and
``PUT /upload/NAME`` stores a file where :meth:`Lab.uploaded` finds it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import FrameType
from typing import Any, Self

from lb.config.render import format_config
from lb.model import (
    AgentConfig,
    AgentSettings,
    BgpFamily,
    BgpPeer,
    BgpSettings,
    DecapMode,
    IoMode,
    MuxConfig,
    MuxSettings,
    Service,
)
from lb.mux.workers.kept_flows import remove_orphans
from tests.lab import netns
from tests.lab.guardian import Guardian
from tests.lab.netns import LabError
from tests.lab.process import Process, wait_for
from tests.lab.routers import HOLD, KINDS, MUX_ASN, ROUTER_ASN, Announcements, Neighbour, Router, Routers, RouteWatch

SEED = bytes.fromhex("00112233445566778899aabbccddeeff")
CLIENT = IPv4Address("10.0.0.2")
BIG_FILE_BYTES = 30 * 1000 * 1000
PROGRAMS = Path(sys.executable).parent

#: The line that a daemon logs once it serves.
READY = r"\bevent=ready\b.*"
#: The lines after a reload.
PUBLISHED = 'event="configuration published"'
RELOADED = "event=reloaded"

_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    keepalive_timeout 600;
    keepalive_requests 10000000;
    reset_timedout_connection on;
    client_max_body_size 100m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 80 backlog=4096;
        listen 8080 backlog=4096;
        listen [::]:80 backlog=4096 ipv6only=on;
        listen [::]:8080 backlog=4096 ipv6only=on;
        add_header X-Host {name} always;
        location = / {{ return 200 "{name}\\n"; }}
        location = /big {{ alias {big}; }}
        location = /status {{ stub_status; }}
        location /upload/ {{ alias {directory}/upload/; dav_methods PUT; }}
    }}
}}
"""


@dataclass(slots=True)
class Node:
    """One machine of the lab."""

    name: str
    namespace: str
    address: IPv4Address
    directory: Path
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def address6(self) -> IPv6Address:
        """The same machine in a lab with IPv6: fd00:1::11 for 10.0.1.11."""
        _, _, network, host = str(self.address).split(".")
        return IPv6Address(f"fd00:{network}::{host}")

    @property
    def config(self) -> Path:
        return self.directory / f"{self.name}.toml"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"


class Lab:
    """A whole lab. ``with Lab() as lab:`` brings it up, and takes it down on every exit."""

    def __init__(
        self,
        muxes: int = 2,
        hosts: int = 3,
        *,
        offloads: bool = True,
        io: IoMode = IoMode.AUTO,
        decap: DecapMode = DecapMode.AUTO,
        routers: Routers = Routers.STATIC,
        ipv6: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.prefix = netns.unique_prefix()
        self.directory = Path(tempfile.gettempdir()) / self.prefix
        self.big_file = self.directory / "big"
        self.io = io
        self.decap = decap
        self.offloads = offloads
        self.routers = routers
        self.ipv6 = ipv6
        self.guardian: Guardian | Announcements
        self.bgp_router: Router | None = None
        self.routes: RouteWatch | None = None
        self.services: tuple[Service, ...] = ()
        self.router = f"{self.prefix}-r"
        self.client = f"{self.prefix}-c"
        self.muxes = [self._node("mux", n, IPv4Address("10.0.1.10") + n) for n in range(1, muxes + 1)]
        self.hosts = [self._node("host", n, IPv4Address("10.0.3.20") + n) for n in range(1, hosts + 1)]
        self._say = say
        self._exits = contextlib.ExitStack()

    def _node(self, kind: str, number: int, address: IPv4Address) -> Node:
        name = f"{kind}{number}"
        return Node(name, f"{self.prefix}-{kind[0]}{number}", address, self.directory / name)

    @property
    def nodes(self) -> list[Node]:
        return [*self.muxes, *self.hosts]

    @property
    def namespaces(self) -> list[str]:
        return [self.router, self.client, *(node.namespace for node in self.nodes)]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    # Up and down.

    def __enter__(self) -> Self:
        if os.geteuid():
            raise LabError("the lab makes network namespaces: run it as root")
        netns.reap()
        with self._exits:
            self._exits.callback(self._remove)
            self._exits.enter_context(_signals_raise())
            self._build()
            self.guardian = self._start_routers()
            self._exits.callback(self.guardian.close)
            self._exits = self._exits.pop_all()
        return self

    def _start_routers(self) -> Guardian | Announcements:
        """The guardian, or a real router that waits for the MUXes to call."""
        if self.routers is Routers.STATIC:
            return Guardian(self.router, "brm", self._say)
        self.routes = RouteWatch(self.router)
        router = KINDS[self.routers](
            self.router, self.directory / "router", "10.0.1.1", "fd00:1::1" if self.ipv6 else None
        )
        self.bgp_router = router
        self._exits.callback(router.stop)
        router.start(self.neighbours())
        return Announcements(self.routes)

    def neighbours(self) -> list[Neighbour]:
        """The MUXes as the router is configured for them."""
        return [Neighbour(mux.name, str(mux.address)) for mux in self.muxes]

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def _remove(self) -> None:
        for node in self.nodes:
            for process in node.processes.values():
                with contextlib.suppress(Exception):
                    process.kill()
        for namespace in self.namespaces:
            if (netns.NETNS / namespace).exists():
                with contextlib.suppress(LabError):
                    for pid in netns.pids(namespace):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    netns.ip("netns", "del", namespace)
        shutil.rmtree(self.directory, ignore_errors=True)
        remove_orphans()

    def _build(self) -> None:
        self.directory.mkdir(mode=0o755)
        for node in self.nodes:
            node.state_dir.mkdir(parents=True)
        netns.batch([f"netns add {namespace}" for namespace in self.namespaces])
        forwarding = {
            "ipv4/ip_forward": 1,
            "ipv4/fib_multipath_hash_policy": 3,  # 1 is not a 5-tuple hash on veth: the sender's own hash is kept
            "ipv4/fib_multipath_hash_fields": 55,  # source, destination, protocol, both ports
            "ipv4/conf/all/rp_filter": 0,
            "ipv4/conf/default/rp_filter": 0,
        }
        if self.ipv6:
            forwarding |= {
                "ipv6/conf/all/forwarding": 1,
                "ipv6/fib_multipath_hash_policy": 3,
                "ipv6/fib_multipath_hash_fields": 55,
            }
            # Else the first second is lost to duplicate address detection, of link-local addresses too.
            for namespace in self.namespaces:
                netns.sysctl(namespace, {"ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0})
        netns.sysctl(self.router, forwarding)
        netns.batch(self._router_lines(), self.router)
        self._end(self.client, CLIENT, "10.0.0.1")
        for mux in self.muxes:
            self._end(mux.namespace, mux.address, "10.0.1.1")
        for host in self.hosts:
            self._end(host.namespace, host.address, "10.0.3.1")
        if self.ipv6:
            self._build6()
        if not self.offloads:
            self._offloads_off()

    def _build6(self) -> None:
        lines = [
            f"addr add fd00:{number}::1/64 dev {device} nodad"
            for number, device in ((0, "toc"), (1, "brm"), (3, "brh"))
        ]
        netns.batch(lines, self.router)
        ends = [(self.client, IPv6Address("fd00:0::2"))] + [(node.namespace, node.address6) for node in self.nodes]
        for namespace, address in ends:
            gateway = IPv6Address(int(address) >> 64 << 64 | 1)
            netns.batch([f"addr add {address}/64 dev eth0 nodad", f"route add default via {gateway}"], namespace)

    def _router_lines(self) -> list[str]:
        lines = [
            "link set lo up",
            f"link add name toc type veth peer name eth0 netns {self.client}",
            "link add name brm type bridge",
            "link add name brh type bridge",
        ]
        for node in self.nodes:
            bridge = "brh" if node in self.hosts else "brm"
            lines.append(f"link add name to{node.name} type veth peer name eth0 netns {node.namespace}")
            lines.append(f"link set to{node.name} master {bridge} up")
        lines += ["link set toc up", "link set brm up", "link set brh up"]
        lines += ["addr add 10.0.0.1/24 dev toc", "addr add 10.0.1.1/24 dev brm", "addr add 10.0.3.1/24 dev brh"]
        return lines

    @staticmethod
    def _end(namespace: str, address: IPv4Address, gateway: str) -> None:
        lines = [
            "link set lo up",
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {gateway}",
        ]
        netns.batch(lines, namespace)

    def _offloads_off(self) -> None:
        ends = [(self.client, "eth0"), (self.router, "toc")]
        for node in self.nodes:
            ends += [(node.namespace, "eth0"), (self.router, f"to{node.name}")]
        for namespace, device in ends:
            words = [word for feature in ("tx", "rx", "sg", "tso", "gso", "gro") for word in (feature, "off")]
            netns.ip("netns", "exec", namespace, "ethtool", "-K", device, *words)

    # Programs.

    def programs(self, node: Node) -> Path:
        """Where a node's programs are."""
        return PROGRAMS

    def run(self, node: Node, program: str, *arguments: str | Path) -> Process:
        """Starts one of our programs on a node; its output goes to a file named after it."""
        name = program.removeprefix("lb-") if program.startswith("lb-") else program
        log = node.directory / f"{program}.log"
        process = Process(f"{program} on {node.name}", node.namespace, [self.programs(node) / program, *arguments], log)
        node.processes[name] = process
        return process

    def start_nginx(self) -> None:
        """nginx on every host."""
        self.big_file.write_bytes(os.urandom(BIG_FILE_BYTES))
        for host in self.hosts:
            (host.directory / "upload").mkdir()
            configuration = host.directory / "nginx.conf"
            configuration.write_text(_NGINX.format(directory=host.directory, name=host.name, big=self.big_file))
            argv: list[str | Path] = ["nginx", "-e", host.directory / "error.log", "-c", configuration]
            host.processes["nginx"] = Process(
                f"nginx on {host.name}", host.namespace, argv, host.directory / "nginx.log"
            )
        for host in self.hosts:
            wait_for((host.directory / "nginx.pid").exists, f"nginx on {host.name}")

    def uploaded(self, name: str) -> list[tuple[str, Path]]:
        """Where an uploaded file arrived: (host name, path)."""
        paths = ((host.name, host.directory / "upload" / name) for host in self.hosts)
        return [(host, path) for host, path in paths if path.exists()]

    def mux_settings(self, mux: Node) -> MuxSettings:
        return MuxSettings(
            name=mux.name,
            address=mux.address,
            address6=mux.address6 if self.ipv6 else None,
            seed=SEED,
            interface="eth0",
            io=self.io,
            flows=100_000,
            state_dir=str(mux.state_dir),
        )

    def _addresses(self, node: Node) -> tuple[IPv4Address | IPv6Address, ...]:
        return (node.address, node.address6) if self.ipv6 else (node.address,)

    def agent_settings(self, host: Node) -> AgentSettings:
        return AgentSettings(
            name=host.name,
            address=host.address,
            address6=host.address6 if self.ipv6 else None,
            interface="eth0",
            muxes=tuple(address for mux in self.muxes for address in self._addresses(mux)),
            decap=self.decap,
            state_dir=str(host.state_dir),
        )

    def write_files(self, services: Sequence[Service], nodes: Sequence[Node] | None = None) -> None:
        """Writes the configuration of the nodes (all, unless told); nobody is told to read it."""
        self.services = tuple(services)
        for node in self.nodes if nodes is None else nodes:
            node.config.write_text(format_config(self.configuration(node)))
            node.config.chmod(0o640)  # of a MUX it may hold passwords of BGP

    def bgp_settings(self, mux: Node) -> BgpSettings | None:
        """One session to the router, where that speaks BGP."""
        if self.routers is Routers.STATIC:
            return None
        families = (BgpFamily.IPV4, BgpFamily.IPV6) if self.ipv6 else (BgpFamily.IPV4,)
        peer = BgpPeer("router", IPv4Address("10.0.1.1"), ROUTER_ASN, families)
        return BgpSettings(MUX_ASN, (peer,), hold=HOLD, shutdown=0.3)

    def configuration(self, node: Node) -> MuxConfig | AgentConfig:
        """The whole file of a node, as a value."""
        if node in self.muxes:
            return MuxConfig(self.mux_settings(node), self.services, self.bgp_settings(node))
        return AgentConfig(self.agent_settings(node), self.services)

    def start_agent(self, host: Node) -> Process:
        return self.start_daemons([host])[0]

    def start_mux(self, mux: Node) -> Process:
        """Starts a MUX and, when it is ready, has it announced."""
        return self.start_daemons([mux])[0]

    def start_daemons(self, nodes: Sequence[Node]) -> list[Process]:
        """Starts what belongs on each node, then waits until all are ready; MUXes are then announced."""
        # Not in threads: a child gets its parent's death signal when the thread that made it ends.
        programs = ["lb-mux" if node in self.muxes else "lb-agent" for node in nodes]
        started = [
            self.run(node, program, "--config", node.config) for node, program in zip(nodes, programs, strict=True)
        ]
        for node, process in zip(nodes, started, strict=True):
            process.wait_output(READY)
            if node in self.muxes:
                self.guardian.announce(node.name, str(node.address), process.pid)
        return started

    def stop_mux(self, mux: Node) -> int:
        """A planned stop: withdrawn first, then stopped. Returns the exit code."""
        self.guardian.withdraw(mux.name)
        return mux.processes["mux"].stop()

    def kill_mux(self, mux: Node) -> float:
        """SIGKILL. Returns when (monotonic seconds)."""
        at = time.monotonic()
        mux.processes["mux"].kill()
        return at

    def start(self, services: Sequence[Service]) -> None:
        """Everything: nginx, agents, MUXes, routes to the VIPs."""
        self.write_files(services)
        self.guardian.serve(tuple(sorted({str(service.vip) for service in services})))
        self.start_nginx()
        self.start_daemons([*self.hosts, *self.muxes])

    def publish(self, services: Sequence[Service]) -> None:
        """Changes the services on the running MUXes by SIGHUP, and waits until each serves them."""
        self.write_files(services)
        self.reload([mux for mux in self.muxes if mux.processes["mux"].running], "mux", PUBLISHED)

    def publish_agents(self, services: Sequence[Service]) -> None:
        """Has the agents read the services, before the MUXes do: install before announce."""
        self.write_files(services, self.hosts)
        self.reload(self.hosts, "agent", RELOADED)

    @staticmethod
    def reload(nodes: Sequence[Node], program: str, line: str) -> None:
        """SIGHUP to a daemon on each node, then waits until each has logged the line once more."""
        processes = [node.processes[program] for node in nodes]
        before = [process.output().count(line) for process in processes]
        for process in processes:
            process.signal(signal.SIGHUP)
        for process, count in zip(processes, before, strict=True):
            wait_for(functools.partial(_says_more, process, line, count), f"{process.name} to log {line}")

    def status(self, mux: Node) -> dict[str, Any]:
        """The MUX's one row of ``lb get muxes --local``."""
        return self.get(mux, "muxes")[0]

    def get(self, node: Node, what: str) -> list[dict[str, Any]]:
        """What a daemon says of itself over its local socket."""
        from lb.daemon import control_socket

        name = "mux.sock" if node in self.muxes else "agent.sock"
        rows: list[dict[str, Any]] = control_socket.request(node.state_dir / name, {"op": "get", "what": what})
        return rows


def _says_more(process: Process, line: str, count: int) -> bool:
    output = process.output()
    if "rejected" in output.rpartition(line)[2] or not process.running:
        raise LabError(f"{process.name} refused the file: {output[-2000:]}")
    return output.count(line) > count


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP leave by way of SystemExit while the lab stands, so that it is taken down."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
