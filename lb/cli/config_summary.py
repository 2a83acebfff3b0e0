# SPDX-License-Identifier: Apache-2.0
"""What a configuration says in a few numbers: counts, the memory it needs, and what an operator may not have meant.

Called by ``lb check``. Pure; the data plane is asked only for the size of its flow table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lb.model import (
    DEFAULT_SLOTS,
    AgentConfig,
    BackendState,
    ManagerSettings,
    MuxConfig,
    MuxSettings,
    Protocol,
    Service,
)

Config = MuxConfig | AgentConfig | ManagerSettings | tuple[Service, ...]

#: A slot of a Maglev table is a backend's number: a byte for so many backends, two for more.
BYTE_BACKENDS = 255
#: Of deploy/mux.toml.
EXAMPLE_SEED = bytes.fromhex("00112233445566778899aabbccddeeff")
#: With fewer slots than this for each backend, shares are off by more than a few per cent.
SLOTS_PER_BACKEND = 100


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What the data plane allocates for a MUX's file, in bytes."""

    flows: int
    workers: int
    flow_tables: int
    tables: int  #: services with the same backends, weights and size share one
    slots: int
    maglev: int

    @property
    def total(self) -> int:
        return self.flow_tables + self.maglev


@dataclass(frozen=True, slots=True)
class Summary:
    """The answer of ``lb check``."""

    kind: str
    owner: str | None
    services: int
    tcp: int
    udp: int
    vips: int
    backends: int
    addresses: int
    memory: MemoryNeed | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        if self.memory is not None:
            values["memory"]["total"] = self.memory.total
        return values


def summarize(config: Config, flow_table_bytes: Callable[[int], int] | None = None) -> Summary:
    """``flow_table_bytes`` tells the size of a table for so many flows; by default the data plane's own answer."""
    if isinstance(config, ManagerSettings):
        name = f"{config.name}, serving at {config.listen}"
        return Summary("a manager's file", name, services=0, tcp=0, udp=0, vips=0, backends=0, addresses=0)
    services = config if isinstance(config, tuple) else config.services
    kind, owner, memory, default_slots = "services alone", None, None, DEFAULT_SLOTS
    if isinstance(config, MuxConfig):
        kind = "a MUX's file"
        owner = f"{config.mux.name}, {config.mux.own_address} on {config.mux.interface}"
        default_slots = config.mux.slots
        memory = _memory(config.mux, services, flow_table_bytes or _native_flow_table_bytes)
    elif isinstance(config, AgentConfig):
        kind = "a host agent's file"
        owner = f"{config.agent.name}, {config.agent.addresses[0]} on {config.agent.interface}"
    addresses = {backend.address for service in services for backend in service.backends}
    return Summary(
        kind=kind,
        owner=owner,
        services=len(services),
        tcp=sum(service.protocol is Protocol.TCP for service in services),
        udp=sum(service.protocol is Protocol.UDP for service in services),
        vips=len({service.vip for service in services}),
        backends=sum(len(service.backends) for service in services),
        addresses=len(addresses),
        memory=memory,
        notes=_notes(config, services, default_slots),
    )


def maglev_tables(services: Sequence[Service], default_slots: int) -> list[tuple[int, int]]:
    """Slots and bytes of the Maglev tables that differ."""
    tables = set()
    for service in services:
        shares = tuple(
            (backend.name, backend.weight)
            for backend in service.backends
            if backend.state is BackendState.UP and backend.weight > 0
        )
        slot_bytes = 1 if len(service.backends) <= BYTE_BACKENDS else 2
        tables.add((service.slots or default_slots, slot_bytes, shares))
    return [(slots, slots * slot_bytes) for slots, slot_bytes, _ in tables]


def _memory(mux: MuxSettings, services: Sequence[Service], flow_table_bytes: Callable[[int], int]) -> MemoryNeed:
    tables = maglev_tables(services, mux.slots)
    return MemoryNeed(
        flows=mux.flows,
        workers=mux.workers,
        flow_tables=mux.workers * flow_table_bytes(-(-mux.flows // mux.workers)),
        tables=len(tables),
        slots=sum(slots for slots, _ in tables),
        maglev=sum(size for _, size in tables),
    )


def _native_flow_table_bytes(flows: int) -> int:
    from lb.dataplane import flow_table_bytes  # noqa: PLC0415  an agent's host may have no use for the extension

    return flow_table_bytes(flows)


def _notes(config: Config, services: Sequence[Service], default_slots: int) -> list[str]:
    """Right, but perhaps not meant. Services of a kind are counted, so that a large file has few notes."""
    notes = []
    if not services:
        notes.append("there are no services, so no packet will be forwarded")
    idle = [service.name for service in services if not _takes_flows(service)]
    if idle:
        notes.append(f"no backend takes new flows in {_some(idle)}")
    uneven = [s.name for s in services if (s.slots or default_slots) < SLOTS_PER_BACKEND * len(s.backends)]
    if uneven:
        notes.append(f"shares will be uneven, slots is under {SLOTS_PER_BACKEND} for each backend in {_some(uneven)}")
    if isinstance(config, MuxConfig) and config.mux.seed == EXAMPLE_SEED:
        notes.append("the seed is that of the example, which everybody knows: `openssl rand -hex 16` makes one")
    if isinstance(config, AgentConfig) and services:
        own = set(config.agent.addresses)
        if not any(backend.address in own for service in services for backend in service.backends):
            notes.append("no backend has this agent's address, so it has nothing to serve")
    return notes


def _takes_flows(service: Service) -> bool:
    return any(backend.state is BackendState.UP and backend.weight > 0 for backend in service.backends)


def _some(names: list[str]) -> str:
    """The first few names."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"
