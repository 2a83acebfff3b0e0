# SPDX-License-Identifier: Apache-2.0
"""A lab with a manager: nodes that join it with tokens, and services that reach them by ``lb apply``.

The manager has a namespace of its own, 10.0.1.9 beside the MUXes. :class:`ManagedLab` adds to :class:`Lab`; its
``start`` writes files without services, and everything else goes through the manager over mutual TLS.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from lb.config.render import format_config
from lb.model import AgentConfig, ManagerSettings, MuxConfig, Service
from tests.lab.netns import LabError
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.topology import PROGRAMS, READY, Lab, Node

MANAGER = IPv4Address("10.0.1.9")
URL = f"https://{MANAGER}:9740"


class ManagedLab(Lab):
    """See the module's text. ``lifetime``: of nodes' certificates, seconds."""

    def __init__(self, *arguments: Any, lifetime: float = 3600.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.lifetime = lifetime
        self.manager = Node("manager", f"{self.prefix}-mgr", MANAGER, self.directory / "manager")

    @property
    def nodes(self) -> list[Node]:
        return [*super().nodes, self.manager]

    @property
    def credentials(self) -> Path:
        """The first operator's."""
        return self.directory / "operator"

    def _build(self) -> None:
        super()._build()
        self._end(self.manager.namespace, MANAGER, "10.0.1.1")

    # The manager.

    def manager_settings(self) -> ManagerSettings:
        return ManagerSettings(
            name="manager1",
            vip_prefixes=(ip_network("203.0.113.0/24"),),
            listen=f"{MANAGER}:9740",
            state_dir=str(self.manager.state_dir),
            node_lifetime=self.lifetime,
        )

    def init_manager(self) -> None:
        """The file, the authority and the first operator."""
        self.manager.config.write_text(format_config(self.manager_settings()))
        self.manage("init", "--operator", "ada", "--out", str(self.credentials))

    def manage(self, command: str, *arguments: str) -> str:
        """``lb-manager COMMAND``, on the manager's machine; returns what it prints."""
        argv: list[str | Path] = [PROGRAMS / "lb-manager", command, "--config", self.manager.config, *arguments]
        done = subprocess.run(in_namespace(self.manager.namespace, argv), capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"lb-manager {command}: {done.stderr}")
        return done.stdout.strip()

    def start_manager(self) -> Process:
        process = self.run(self.manager, "lb-manager", "run", "--config", self.manager.config)
        process.wait_output(READY)
        return process

    def lb(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """``lb …`` as the first operator, asking the manager from the manager's machine."""
        keys = ["--ca", str(self.credentials / "ca.pem")]
        if token is None:
            keys += ["--cert", str(self.credentials / "operator.pem"), "--key", str(self.credentials / "operator.key")]
        argv: list[str | Path] = [
            "env",
            f"LB_TOKEN={token or ''}",
            PROGRAMS / "lb",
            *arguments,
            "--manager",
            URL,
            *keys,
        ]
        return subprocess.run(in_namespace(self.manager.namespace, argv), capture_output=True, text=True, check=False)

    def ask(self, *arguments: str) -> Any:
        """``lb … -o json``, parsed."""
        done = self.lb(*arguments, "-o", "json")
        if done.returncode:
            raise LabError(f"lb {' '.join(arguments)}: exit code {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def apply(self, services: Sequence[Service]) -> None:
        """``lb apply -f``; returns when the manager has it, not when the nodes do."""
        file = self.directory / "services.toml"
        file.write_text(format_config(tuple(services)))
        done = self.lb("apply", "-f", str(file))
        if done.returncode:
            raise LabError(f"lb apply: {done.stderr}")
        self.services = tuple(services)

    # Nodes.

    def configuration(self, node: Node) -> MuxConfig | AgentConfig:
        if node in self.muxes:
            return MuxConfig(self.mux_settings(node), (), self.bgp_settings(node), URL)
        return AgentConfig(self.agent_settings(node), (), URL)

    def write_files(self, services: Sequence[Service] = (), nodes: Sequence[Node] | None = None) -> None:
        super().write_files(services, [*self.muxes, *self.hosts] if nodes is None else nodes)

    def token(self, node: Node, *arguments: str) -> str:
        """A token for a node's kind."""
        kind = "mux" if node in self.muxes else "agent"
        return self.manage("token", "--kind", kind, *arguments)

    def start_node(self, node: Node, token: str | None = None) -> Process:
        """Starts a node's daemon, with a token or with the certificate that it has; does not wait."""
        program = "lb-mux" if node in self.muxes else "lb-agent"
        return self.run(node, program, "--config", node.config, *(["--token", token] if token else []))

    def join(self, nodes: Sequence[Node] | None = None) -> None:
        """Nodes start for the first time, each with a token, and are announced when they are ready."""
        started = [(node, self.start_node(node, self.token(node))) for node in nodes or [*self.muxes, *self.hosts]]
        for node, process in started:
            process.wait_output(r'event="manager connected"')
            if node in self.muxes:
                process.wait_output(READY)
                self.guardian.announce(node.name, str(node.address), process.pid)

    def start(self, services: Sequence[Service], vips: Sequence[str] = ()) -> None:
        """Everything, until every node serves what the manager was told; ``vips`` are routed as well."""
        self.init_manager()
        self.write_files()
        self.guardian.serve(tuple(sorted({*vips, *(str(service.vip) for service in services)})))
        self.start_nginx()
        self.start_manager()
        self.join()
        self.apply(services)
        self.wait_followed()

    def wait_followed(self, seconds: float = 60.0) -> None:
        """Until every node that runs has what the manager wants of it."""

        def behind() -> list[str]:
            rows = [*self.ask("get", "muxes"), *self.ask("get", "agents")]
            return [f"{row['name']} is {row['state']}" for row in rows if row["state"] != "ready"]

        wait_for(lambda: not behind(), "every node to follow", seconds)

    def count(self, node: Node, pattern: str) -> int:
        """How often a node's daemon has logged a line like this."""
        name = "manager" if node is self.manager else "mux" if node in self.muxes else "agent"
        return len(re.findall(pattern, node.processes[name].output(), re.MULTILINE))
