# SPDX-License-Identifier: Apache-2.0
"""What ``lb-mux`` answers: on its local socket ``get``, ``lookup`` and ``top``, and the manager's questions of flows.
Checks what was asked; reads only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec

from lb.daemon.control_socket import Handler, Request
from lb.dataplane import FlowTuple
from lb.errors import RequestError
from lb.model import Address, Protocol
from lb.mux.status import Row, Status
from lb.mux.workers.engine import Engine
from lb.node.messages import FlowAnswer, FlowQuestion


def handlers(status: Status, engine: Engine) -> dict[str, Handler]:
    """One for each ``op``."""
    tables: dict[str, Callable[[], list[Row]]] = {
        "services": status.services,
        "backends": status.backends,
        "muxes": lambda: [status.mux()],
        "agents": list,
        "announcements": status.announcements,
        "peers": status.peers,
        "status": lambda: [status.mux()],
    }

    def get(asked: Request) -> list[Row]:
        what = asked.get("what")
        if not isinstance(what, str) or what not in tables:
            raise RequestError(f"what must be one of {', '.join(tables)}, not {what!r}")
        return tables[what]()

    return {
        "get": get,
        "lookup": lambda asked: _lookup(engine, parse_flow(asked)),
        "top": lambda _: {"mux": status.mux(), "services": status.services()},
    }


def parse_flow(asked: Mapping[str, Any]) -> FlowTuple:
    """The 5-tuple of a lookup; raises RequestError for the first thing that is wrong."""
    try:
        protocol = Protocol(asked.get("protocol"))
    except ValueError:
        raise RequestError(f"protocol must be tcp or udp, not {asked.get('protocol')!r}") from None
    source, destination = _address(asked, "source"), _address(asked, "destination")
    if source.version != destination.version:
        raise RequestError("source and destination must be of one family, both IPv4 or both IPv6")
    return FlowTuple(protocol, source, _port(asked, "source_port"), destination, _port(asked, "destination_port"))


def _address(asked: Mapping[str, Any], key: str) -> Address:
    value = asked.get(key)
    try:
        if isinstance(value, str):
            return ip_address(value)
    except ValueError:
        pass
    raise RequestError(f"{key} must be an IP address, not {value!r}")


def _port(asked: Mapping[str, Any], key: str) -> int:
    value = asked.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
        return value
    raise RequestError(f"{key} must be a port, 0 to 65535, not {value!r}")


def answer(engine: Engine, question: FlowQuestion) -> FlowAnswer:
    """To the manager's question: what a new flow gets here, and what is remembered of this one."""
    try:
        flow = parse_flow(msgspec.structs.asdict(question))
    except RequestError as error:
        return FlowAnswer(question.serial, error=str(error))
    found = engine.lookup(flow)
    names = engine.forwarding.names
    service, new = names(found.service_id, found.backend)
    if found.flow is None:
        return FlowAnswer(question.serial, service, found.slot, new)
    _, remembered = names(found.service_id, found.flow.backend)
    return FlowAnswer(
        question.serial, service, found.slot, new, remembered, found.flow.flow_class, round(found.flow.age, 2)
    )


def _lookup(engine: Engine, flow: FlowTuple) -> Row:
    """As ``lb lookup``; a flow that is remembered gets what the flow table says, and ``flow`` says so."""
    answer = engine.lookup(flow)
    forwarding = engine.forwarding
    number = answer.flow.backend if answer.flow is not None else answer.backend
    service, backend = forwarding.names(answer.service_id, number)
    address: str | None = None
    if answer.service_id is not None and number is not None:
        found = forwarding.backend(answer.service_id, number)
        address = str(found.address) if found else None
    return {
        "service": service,
        "slot": answer.slot,
        "backend": backend,
        "address": address,
        "flow": answer.flow.flow_class if answer.flow is not None else None,
    }
