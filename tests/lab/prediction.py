# SPDX-License-Identifier: Apache-2.0
"""Which flows another MUX would send elsewhere: those whose Maglev choice is not what it was when they began.

Called by the demo and the tests to tell the loss that the design admits (a flow whose slot moved, or whose backend
drained, before its MUX died) from any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from lb.dataplane.compile.compiler import Compiler
from lb.model import MuxSettings, Protocol, Service
from tests.lab.topology import CLIENT
from tests.lab.traffic import Flow


def choices(settings: MuxSettings, services: Sequence[Service], flows: Iterable[Flow]) -> dict[int, str | None]:
    """Source port -> name of the backend that a new flow from there gets."""
    forwarding = Compiler(settings).compile(services)

    def choice(flow: Flow) -> str | None:
        found = forwarding.lookup(Protocol.TCP, CLIENT, flow.source_port, ip_address(flow.vip), flow.port)
        return found.backend.name if found.backend else None

    return {flow.source_port: choice(flow) for flow in flows}
