# SPDX-License-Identifier: Apache-2.0
"""Between the data plane's numbers and what all MUXes of a pool understand. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lb.dataplane.compile.compiler import Forwarding
from lb.model import Service
from lb.node.messages import FLOW_BYTES, FLOWS_MAX, GROUPS_MAX, FlowGroup


def place_of(service: Service) -> str:
    """What a service is to its flows, in the one form that all MUXes write."""
    return f"{service.protocol.value} {service.vip} {service.ports}"


def groups_of(forwarding: Forwarding, records: Mapping[tuple[int, int], bytes]) -> Iterator[FlowGroup]:
    """``records``: by number of service and backend."""
    for (service_id, number), flows in records.items():
        service, backend = forwarding.service(service_id), forwarding.backend(service_id, number)
        if service is not None and backend is not None:
            yield FlowGroup(place_of(service), backend.name, flows)


def parts_of(groups: Iterable[FlowGroup]) -> Iterator[tuple[FlowGroup, ...]]:
    """As many messages as are needed."""
    part: list[FlowGroup] = []
    room = FLOWS_MAX
    for group in groups:
        records = group.records
        while records:
            if not room or len(part) == GROUPS_MAX:
                yield tuple(part)
                part, room = [], FLOWS_MAX
            some, records = records[: room * FLOW_BYTES], records[room * FLOW_BYTES :]
            part.append(FlowGroup(group.place, group.backend, some))
            room -= len(some) // FLOW_BYTES
    if part:
        yield tuple(part)


def numbered(forwarding: Forwarding, groups: Iterable[FlowGroup]) -> Iterator[tuple[FlowGroup, tuple[int, int] | None]]:
    """With the numbers of service and backend here; None where there is no such."""
    places = {place_of(service): number for number, service in forwarding.ids.items()}
    for group in groups:
        service_id = places.get(group.place)
        backend = forwarding.number(service_id, group.backend) if service_id is not None else None
        yield group, None if service_id is None or backend is None else (service_id, backend)
