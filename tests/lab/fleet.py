# SPDX-License-Identifier: Apache-2.0
"""A lab with the whole control plane: a manager, nodes that joined it by token, and a router that speaks BGP if wanted.

Called by the demo and by many tests. :class:`Fleet` is a :class:`~tests.lab.topology.Lab` with one machine
more, the manager's, 10.0.1.9 beside the MUXes. Services come to it as an operator brings them: by ``lb apply -f``.
What systemd does on a real machine, starting a daemon again that was killed, is done here by :meth:`Fleet.revive`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from lb.cli.ask.manager import Manager
from lb.config.render import format_config
from lb.doctor.fleet import examine
from lb.doctor.model.findings import Finding
from lb.model import AgentConfig, IoMode, ManagerSettings, MuxConfig, Service
from tests.lab import netns
from tests.lab.netns import LabError
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.routers import Routers, RouteWatch
from tests.lab.topology import Lab, Node

URL = "https://10.0.1.9:9740"
#: What a daemon logs once it serves; an agent that was told nothing yet has nothing to serve.
UP = r"\bevent=(ready|waiting)\b.*"


class Fleet(Lab):
    """A whole fleet. ``with Fleet() as fleet:`` brings it up, and takes it down on every exit."""

    def __init__(
        self,
        routers: Routers = Routers.BIRD,
        *,
        muxes: int = 2,
        hosts: int = 3,
        io: IoMode = IoMode.AUTO,
        lifetime: float | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``lifetime``: of nodes' certificates, seconds; without it that of the default."""
        super().__init__(muxes, hosts, io=io, routers=routers, say=say)
        self._lifetime = lifetime
        self.manager = Node(
            "manager", f"{self.prefix}-mgr", IPv4Address("10.0.1.9"), self.directory / "manager"
        )  # fmt: skip
        self._operator = self.directory / "operator"

    @property
    def namespaces(self) -> list[str]:
        return [*super().namespaces, self.manager.namespace]

    @property
    def watch(self) -> RouteWatch:
        assert self.routes is not None
        return self.routes

    def _build(self) -> None:
        super()._build()
        self.manager.state_dir.mkdir(parents=True)
        lines = [
            f"link add name tomgr type veth peer name eth0 netns {self.manager.namespace}",
            "link set tomgr master brm up",
        ]
        netns.batch(lines, self.router)
        self._end(self.manager.namespace, self.manager.address, "10.0.1.1")

    def _remove(self) -> None:
        for process in self.manager.processes.values():
            process.kill()
        super()._remove()

    # Programs.

    def configuration(self, node: Node) -> MuxConfig | AgentConfig:
        return replace(super().configuration(node), services=(), manager=URL)

    def manager_settings(self) -> ManagerSettings:
        settings = ManagerSettings(
            "manager1",
            (ip_network("203.0.113.0/24"),),
            state_dir=str(self.manager.state_dir),
            hold=3.0,
            web="10.0.1.9:9744",
        )
        return settings if self._lifetime is None else replace(settings, node_lifetime=self._lifetime)

    def start(self, services: Sequence[Service], vips: Sequence[str] = ()) -> None:
        """Everything: nginx, manager, nodes that join it, and the services by ``lb apply``; ``vips`` are routed too."""
        self.write_files(())
        self.start_nginx()
        self.init_manager()
        self.start_manager()
        self._join([*self.hosts, *self.muxes])
        self.guardian.serve(tuple(sorted({*vips, *(str(service.vip) for service in services)})))
        self.apply(services)
        for mux in self.muxes:
            self.announce(mux)

    def announce(self, mux: Node) -> None:
        """Where no router speaks BGP, the guardian of the routes is told of a MUX that runs."""
        self.guardian.announce(mux.name, str(mux.address), mux.processes["mux"].pid)

    def init_manager(self) -> None:
        """The manager's file, its authority and the first operator."""
        self.manager.config.write_text(format_config(self.manager_settings()))
        self.manage("init", "--operator", "lab", "--out", str(self._operator))

    def manage(self, command: str, *arguments: str) -> str:
        """``lb-manager COMMAND``, on the manager's machine; returns what it prints."""
        return self._call(
            self.manager, "lb-manager", command, "--config", self.manager.config, *arguments
        ).strip()  # fmt: skip

    def start_manager(self) -> Process:
        process = self.run(self.manager, "lb-manager", "run", "--config", self.manager.config)
        process.wait_output(r"\bevent=ready\b", 30)
        return process

    def token(self, node: Node, *arguments: str) -> str:
        """A token for a node's kind, as somebody makes it on the manager's machine."""
        return self.manage("token", "--kind", self._kind(node), *arguments)

    def start_node(self, node: Node, token: str | None = None) -> Process:
        """Starts a node's daemon, with a token or with the certificate that it has; does not wait."""
        arguments = ["--token", token] if token else []  # the manager's address stands in the file
        return self.run(node, f"lb-{self._kind(node)}", "--config", node.config, *arguments)

    def _kind(self, node: Node) -> str:
        return "mux" if node in self.muxes else "agent"

    def _join(self, nodes: Sequence[Node]) -> None:
        tokens = [self._token(node) for node in nodes]
        started = [self.start_node(node, token) for node, token in zip(nodes, tokens, strict=True)]
        for process in started:
            process.wait_output(UP, 60)
        wait_for(lambda: self.connected() == len(nodes), "all nodes to be connected to the manager", 60)

    def _token(self, node: Node) -> str:
        """By the manager's interface, for that is soon done."""
        body = {"kind": self._kind(node), "name": node.name, "ttl": 600}
        return str(netns.inside(self.manager.namespace, lambda: self.remote.post("tokens", body=body))["token"])

    def connected(self) -> int:
        """How many nodes have what they should, by the manager's word."""
        return sum(row["state"] == "ready" for what in ("muxes", "agents") for row in self.ask(what))

    def wait_followed(self, seconds: float = 60.0) -> None:
        """Until every node that runs has what the manager wants of it."""

        def all_ready() -> bool:
            return all(row["state"] == "ready" for what in ("muxes", "agents") for row in self.ask(what))

        wait_for(all_ready, "every node to follow", seconds)

    def count(self, node: Node, pattern: str) -> int:
        """How often a node's daemon has logged a line like this."""
        name = "manager" if node is self.manager else self._kind(node)
        return len(re.findall(pattern, node.processes[name].output(), re.MULTILINE))

    def start_daemons(self, nodes: Sequence[Node]) -> list[Process]:
        """Starts daemons again: they have joined before, so without a token. Returns when they serve."""
        started = [self.start_node(node) for node in nodes]
        for process in started:
            process.wait_output(UP, 60)
        return started

    def revive(self, node: Node) -> Process:
        """What systemd does once a daemon has died."""
        if node is self.manager:
            return self.start_manager()
        return self.start_daemons([node])[0]

    def start_web_server(self, host: Node) -> None:
        """nginx again, on a host where it was killed."""
        (host.directory / "nginx.pid").unlink(missing_ok=True)
        argv: list[str | Path] = ["nginx", "-e", host.directory / "error.log", "-c", host.directory / "nginx.conf"]
        host.processes["nginx"] = Process(f"nginx on {host.name}", host.namespace, argv, host.directory / "nginx.log")
        wait_for((host.directory / "nginx.pid").exists, f"nginx on {host.name}")

    # The operator.

    def lb(self, *arguments: str | Path) -> str:
        """Runs ``lb`` as an operator on the manager's machine, and returns what it printed."""
        return self._call(self.manager, "lb", *arguments, environment=self.environment)

    def try_lb(self, *arguments: str | Path, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it; with a ``token`` as somebody who has no certificate."""
        environment = self.environment
        if token is not None:
            environment = {key: value for key, value in environment.items() if key not in ("LB_CERT", "LB_KEY")}
            environment["LB_TOKEN"] = token
        return self._run(self.manager, "lb", *arguments, environment=environment)

    @property
    def remote(self) -> Manager:
        return Manager(URL, *(self.environment[name] for name in ("LB_CERT", "LB_KEY", "LB_CA")))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of an operator's shell."""
        files = {"LB_CERT": "operator.pem", "LB_KEY": "operator.key", "LB_CA": "ca.pem"}
        return {**os.environ, "LB_MANAGER": URL} | {name: str(self._operator / file) for name, file in files.items()}

    def ask(self, what: str) -> list[dict[str, Any]]:
        """What ``lb get WHAT -o json`` prints, by the same client, without a process for each question."""
        rows: list[dict[str, Any]] = netns.inside(self.manager.namespace, lambda: self.remote.get(what))
        return rows

    def examine(self) -> list[Finding]:
        """What ``lb doctor --manager`` finds."""
        return netns.inside(self.manager.namespace, lambda: examine(self.remote.get))

    def apply(self, services: Sequence[Service], *, wait: float | None = 20.0) -> str:
        """``lb apply -f``, until every node followed; ``wait`` None: until the manager has it. That a router hears of
        it late is bad news for an operator; here :meth:`wait_hops` waits for it."""
        path = self.write_services(services)
        argv: list[str | Path] = ["apply", "-f", path, "--prune"]
        if wait is not None:
            argv += ["--wait", str(wait)]
        return self._call(self.manager, "lb", *argv, environment=self.environment, also="live on every node")

    def write_services(self, services: Sequence[Service]) -> Path:
        self.services = tuple(services)
        path = self.directory / "services.toml"
        path.write_text(format_config(self.services))
        return path

    def wait_hops(self, vip: str, *muxes: Node, seconds: float = 30) -> None:
        """Until the kernel's next hops of the VIP are exactly these MUXes."""
        wanted = frozenset(str(mux.address) for mux in muxes)
        names = ", ".join(mux.name for mux in muxes) or "nobody"
        wait_for(lambda: self.watch.hops(vip) == wanted, f"{vip} by {names}", seconds)

    def states(self, node: Node, service: str) -> dict[str, str]:
        """By backend: the state that a MUX has live."""
        return {row["name"]: row["state"] for row in self.get(node, "backends") if row["service"] == service}

    def wait_states(self, service: str, states: dict[str, str], seconds: float = 30) -> None:
        """Until every MUX has these backends in these states."""

        def there() -> bool:
            return all(self.states(mux, service) == states for mux in self.muxes)

        wait_for(there, f"backends of {service} to be {states}", seconds)

    def wait_live(self, services: Sequence[Service]) -> None:
        """Until every MUX has each backend in the state that its table says."""
        for service in services:
            self.wait_states(service.name, {backend.name: backend.state.value for backend in service.backends})

    def wait_in_service(self) -> None:
        """Until both MUXes are announced for every service, and have every backend up."""
        for service in self.services:
            self.wait_hops(str(service.vip.network_address), *self.muxes)
            self.wait_states(service.name, {backend.name: "up" for backend in service.backends})

    def describe(self, service: str) -> str:
        return self.lb("describe", "service", service)

    def _call(
        self,
        node: Node,
        program: str,
        *arguments: str | Path,
        environment: dict[str, str] | None = None,
        also: str | None = None,
    ) -> str:
        """What it printed. ``also``: where it says this, bad news is no failure."""
        done = self._run(node, program, *arguments, environment=environment)
        if done.returncode and (done.returncode != 1 or also is None or also not in done.stdout):
            raise LabError(f"{program} {' '.join(map(str, arguments))}: {done.stderr.strip()} {done.stdout.strip()}")
        return done.stdout

    def _run(
        self, node: Node, program: str, *arguments: str | Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            in_namespace(node.namespace, [self.programs(node) / program, *arguments]),
            capture_output=True, text=True, check=False, timeout=60, env=environment,
        )  # fmt: skip


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def exabgp_of(mux: Node) -> int:
    """The pid of a MUX's ExaBGP."""

    def look() -> int | None:
        for pid in children(mux.processes["mux"].pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just died
                if b"lb.bgp.launch" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    pid = wait_for(look, f"ExaBGP of {mux.name}")
    assert pid is not None
    return pid


def helper_of(mux: Node) -> int:
    """The pid of its helper."""
    return wait_for(lambda: children(exabgp_of(mux)), f"the helper of {mux.name}")[0]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
