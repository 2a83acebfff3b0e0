# SPDX-License-Identifier: Apache-2.0
"""The stage of ``lb bench latency`` and ``lb bench overload``: client, MUX and host on one switch.

Each is in a network namespace of its own; ``lb-mux`` and ``lb-agent`` are real, and a server on the host answers
requests. What else a benchmark needs its subclass adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lb.bench.testbed import netns
from lb.bench.testbed.daemons import BenchDaemon, MuxDaemon, Stage, add_namespace, lift_session, wait
from lb.config.render import format_config
from lb.model import (
    AgentConfig,
    AgentSettings,
    Backend,
    BgpSettings,
    DecapMode,
    IoMode,
    MuxSettings,
    PortRange,
    Protocol,
    Service,
)

CLIENT, MUX, HOST = "10.0.1.100", "10.0.1.11", "10.0.1.21"
VIP, PORT = "198.18.0.1", 80
#: Of an answer; with its header a small web page's.
ANSWER_BYTES = 200


class SwitchStage(Stage):
    """Client, MUX and host on one switch, each in a namespace of its own, with all that runs in them."""

    def __init__(self, io: IoMode) -> None:
        super().__init__()
        self._switch, self._client, self._mux_ns, self._host = map(self._space, ("sw", "cl", "mux", "ho"))
        self._io = io

    # -- what a subclass may say ----------------------------------------------------------------------------------

    def _services(self) -> Sequence[Service]:
        return (web_service(),)

    def _bgp(self) -> BgpSettings | None:
        return None

    def _before(self) -> Sequence[str]:
        """Of the command that runs lb-mux."""
        return ()

    def _wire(self) -> None:
        """More links, before any daemon starts."""

    # -- set-up -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in (self._switch, self._client, self._mux_ns, self._host):
            add_namespace(name, self._resources)
        netns.batch(["link add name br0 type bridge", "link set dev br0 up"], self._switch)
        for port, name, address in (("p1", self._client, CLIENT), ("p2", self._mux_ns, MUX), ("p3", self._host, HOST)):
            self._plug(port, name, address)
        vips = sorted({str(service.vip) for service in self._services()})
        netns.batch([f"route add {vip} via {MUX}" for vip in vips], self._client)
        self._wire()
        self._start_agent()
        self._start_mux()
        server = self._start(self._host, "lb.bench.testbed.echo", str(PORT), str(ANSWER_BYTES))
        wait(lambda: "listening" in server.last_words(), "the server of the benchmark")

    def _plug(self, port: str, name: str, address: str) -> None:
        netns.batch(
            [
                f"link add name {port} type veth peer name eth0 netns {name}",
                f"link set dev {port} master br0 up",
            ],
            self._switch,
        )
        netns.batch([f"address add {address}/24 dev eth0", "link set dev eth0 up", "link set dev lo up"], name)

    def _start(self, namespace: str, module: str, *arguments: str | Path) -> BenchDaemon:
        daemon = self._keep(BenchDaemon(namespace, module, arguments, self.directory / f"{module}.log"))
        lift_session(daemon.process.pid)
        return daemon

    def _start_agent(self) -> None:
        settings = AgentSettings(
            name="host",
            address=IPv4Address(HOST),
            interface="eth0",
            muxes=(IPv4Address(MUX),),
            decap=DecapMode.AUTO,
            state_dir=str(self.directory / "agent"),
        )
        path = self.directory / "agent.toml"
        path.write_text(format_config(AgentConfig(settings, (web_service(),))))
        self._agent = self._start(self._host, "agent.daemon", "--config", path)
        wait(lambda: bool(self._agent_row().get("mode")), "lb-agent to be ready")

    def _start_mux(self) -> None:
        settings = MuxSettings(
            name="bench",
            address=IPv4Address(MUX),
            seed=bytes(range(16)),
            interface="eth0",
            io=self._io,
            state_dir=str(self.directory / "mux"),
        )
        self._mux = self._keep(
            MuxDaemon(self._mux_ns, settings, self._services(), bgp=self._bgp(), prefix=self._before())
        )
        self._mux.wait_ready()

    # -- questions ----------------------------------------------------------------------------------------------

    def _agent_row(self) -> dict[str, Any]:
        return self._agent.row(self.directory / "agent" / "agent.sock", "agents")

    def mode(self) -> str:
        """How the MUX's packets come in and go out, in words."""
        return self._mux.mode

    def decap(self) -> str:
        """How the host takes them out of the tunnel."""
        return str(self._agent_row()["mode"])


def web_service() -> Service:
    return Service(
        name="bench",
        vip=IPv4Network(VIP),
        protocol=Protocol.TCP,
        ports=PortRange(PORT, PORT),
        backends=(Backend("host", IPv4Address(HOST)),),
    )
