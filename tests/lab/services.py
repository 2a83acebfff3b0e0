# SPDX-License-Identifier: Apache-2.0
"""The services that the demo and the tests put on a lab, and small changes to them.

Pure values; nothing here touches a lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_network

from lb.model import Backend, BackendState, PortRange, Probe, ProbeType, Protocol, Service
from tests.lab.topology import Node

WEB_VIP = "203.0.113.10"
FILES_VIP = "203.0.113.20"
LOAD_VIP = "203.0.113.30"
LOAD_PORT = 9000


def _service(name: str, vip: str, protocol: Protocol, port: int, backends: Sequence[Backend]) -> Service:
    network = ip_network(vip)
    assert isinstance(network, IPv4Network)
    return Service(name, network, protocol, PortRange(port, port), tuple(backends))


def _backends(service: str, hosts: Sequence[Node], port: int | None = None) -> list[Backend]:
    return [Backend(f"{service}-{host.name}", host.address, port) for host in hosts]


def web(hosts: Sequence[Node]) -> Service:
    """VIP:80, translated by the agents to nginx on port 8080."""
    return _service("web", WEB_VIP, Protocol.TCP, 80, _backends("web", hosts, 8080))


def files(hosts: Sequence[Node]) -> Service:
    """VIP:80, not translated: the hosts hold the VIP themselves."""
    return _service("files", FILES_VIP, Protocol.TCP, 80, _backends("files", hosts))


#: A probe may wait long for its answer: this machine may be busy with other things than the lab.
PROBE = Probe(ProbeType.TCP, interval=0.5, timeout=0.5, rise=2, fall=2)
#: Until a backend's end is found by whoever probes it so, seconds.
DETECT = PROBE.interval * PROBE.fall + PROBE.timeout


def probed(hosts: Sequence[Node]) -> tuple[Service, ...]:
    """``web`` and ``files``, with probes."""
    return replace(web(hosts), probe=PROBE), replace(files(hosts), probe=PROBE)


def load(hosts: Sequence[Node]) -> Service:
    """UDP, not translated."""
    return replace(_service("load", LOAD_VIP, Protocol.UDP, LOAD_PORT, _backends("load", hosts)), idle=300)


def drained(service: Service, host: str) -> Service:
    """The service with one host's backend draining."""
    return _changed(service, host, state=BackendState.DRAIN)


def weighted(service: Service, host: str, weight: int) -> Service:
    """The service with another weight for one host's backend."""
    return _changed(service, host, weight=weight)


def _changed(service: Service, host: str, **fields: object) -> Service:
    name = f"{service.name}-{host}"
    assert any(backend.name == name for backend in service.backends)
    backends = [replace(b, **fields) if b.name == name else b for b in service.backends]  # type: ignore[arg-type]
    return replace(service, backends=tuple(backends))
