# SPDX-License-Identifier: Apache-2.0
"""What the agent tells of itself: rows for the local socket, and Prometheus metrics. Reads, never changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.agent import AppliedConfig
from agent.decap import dropped, drops
from agent.rules.local_services import OwnService
from lb.daemon.kernel.keeper import KeptFigures
from lb.daemon.kernel.keeper import metrics as kept_metrics
from lb.daemon.metrics.collectors import probe_durations
from lb.errors import RequestError
from lb.model import AgentConfig
from lb.probe.results import Known, Label
from lb.probe.state import ProbeHealth

_NOTHING: Mapping[Label, Known] = {}


@dataclass(frozen=True, slots=True)
class HostRepairs:
    """What somebody else undid in this kernel."""

    rows: Sequence[Mapping[str, Any]] = ()  #: as lb.daemon.kernel.keeper tells it
    words: str | None = None  #: the same in one sentence
    figures: KeptFigures = field(default_factory=KeptFigures)
    degraded: str | None = None  #: why clients may not be served, though all of ours is there
    ahead: Sequence[str] = ()  #: filters of others before ours
    ahead_passes: bool | None = None  #: they let tunnel packets go on to it; None: that cannot be told


@dataclass(frozen=True, slots=True)
class Picture:
    """The agent at one moment."""

    applied: AppliedConfig
    counters: Mapping[str, int] | None  #: packets by reason; None where this way does not count
    rejected: str | None  #: why the last file was refused
    known: Mapping[Label, Known] = field(default_factory=dict)  #: what probes know of this host's backends
    manager: Mapping[str, Any] | None = None  #: the connection to it; None: there is none
    kept: HostRepairs = field(default_factory=HostRepairs)


def answer(picture: Picture, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``{"op": "get", "what": ...}`` asks for."""
    tables = {"agents": agents, "status": agents, "services": services, "backends": backends}
    what = request.get("what")
    if not isinstance(what, str) or what not in tables:
        raise RequestError(f"what must be one of {', '.join(sorted(tables))}, not {what!r}")
    return tables[what](picture)


def agents(picture: Picture) -> list[dict[str, Any]]:
    """One row: this agent."""
    applied, counters = picture.applied, picture.counters
    settings = applied.config.agent
    return [
        {
            "name": settings.name,
            "mode": applied.mode.value,
            "reason": applied.reason,
            "address": str(settings.addresses[0]),
            "interface": settings.interface,
            "muxes": [str(mux) for mux in settings.muxes],
            "services": len(applied.services),
            "vips": len({own.vip for own in applied.services}),
            "translated": sum(own.translated for own in applied.services),
            "decapsulated": None if counters is None else counters["decapsulated"],
            "dropped": None if counters is None else dropped(counters),
            "drops": None if counters is None else {name: counters[name] for name in drops() if counters[name]},
            "left_out": dict(applied.served.left_out),
            "rejected": picture.rejected,
            "kernel": list(picture.kept.rows),
            "repaired": picture.kept.words,
            "degraded": picture.kept.degraded,
            "filters_ahead": list(picture.kept.ahead),
            "filters_ahead_pass": picture.kept.ahead_passes if picture.kept.ahead else None,
            "manager": picture.manager,
        }
    ]


def for_manager(picture: Picture) -> dict[str, Any]:
    """What the manager shows of this agent."""
    (row,) = agents(picture)
    del row["manager"]  # it knows
    return {"agent": row}


def services(picture: Picture) -> list[dict[str, Any]]:
    """The services with a backend on this host. (Packets of each are counted by the MUXes.)"""
    return service_rows(picture.applied.config, picture.applied.services)


def service_rows(config: AgentConfig, served: Sequence[OwnService]) -> list[dict[str, Any]]:
    """Also for whoever asks after an agent that does not run."""
    backends_of = {service.name: len(service.backends) for service in config.services}
    return [
        {
            "name": own.name,
            "vip": _address(str(own.vip)),
            "protocol": own.protocol.value,
            "port": str(own.ports),
            "backends": backends_of[own.name],
            "translated_to": own.port,
            "track": own.track,
        }
        for own in served
    ]


def backends(picture: Picture) -> list[dict[str, Any]]:
    """The backends on this host."""
    return backend_rows(picture.applied.config, picture.known)


def backend_rows(config: AgentConfig, known: Mapping[Label, Known] = _NOTHING) -> list[dict[str, Any]]:
    """``known``: what probes know of them."""
    settings = config.agent
    return [
        {
            "service": service.name,
            "name": backend.name,
            "address": str(backend.address),
            "port": str(backend.port or service.ports),
            "weight": backend.weight,
            "state": backend.state.value,
            **_health(known.get((service.name, backend.name))),
        }
        for service in config.services
        for backend in service.backends
        if backend.address in (settings.address, settings.address6)
    ]


def _health(known: Known | None) -> dict[str, Any]:
    """The probe's word; ``since`` is Unix time."""
    if known is None:
        return {"health": ProbeHealth.UNKNOWN.value, "reason": "not probed yet", "since": None}
    return {"health": known.health.value, "reason": known.reason, "since": known.since or None}


class AgentCollector(Collector):
    """Metrics of the moment, read at each scrape."""

    def __init__(self, read: Callable[[], Picture | None]) -> None:
        """``read`` gives None as long as nothing was applied."""
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read."""
        return []

    def collect(self) -> Iterator[Metric]:
        picture = self._read()
        if picture is None:
            return
        packets = CounterMetricFamily(
            "lb_packets", "Tunnel packets by what became of them and why.", labels=["verdict", "reason"]
        )
        for name, count in (picture.counters or {}).items():
            packets.add_metric(["drop" if name in drops() else "decapsulate", name], count)
        yield packets
        mode = GaugeMetricFamily("lb_agent_decap", "The way of decapsulation in use.", labels=["mode"])
        mode.add_metric([picture.applied.mode.value], 1)
        yield mode
        yield GaugeMetricFamily(
            "lb_agent_services", "Services with a backend on this host.", value=len(picture.applied.services)
        )
        up = GaugeMetricFamily("lb_probe_up", "1 if the last probes found it well.", labels=["service", "backend"])
        for (service, backend), known in picture.known.items():
            if known.health is not ProbeHealth.UNKNOWN:
                up.add_metric([service, backend], known.health is ProbeHealth.UP)
        yield up
        yield probe_durations({label: known.took for label, known in picture.known.items() if known.took is not None})
        yield GaugeMetricFamily(
            "lb_services_left_out",
            "Services (and other entries) of the manager's state that this node cannot serve.",
            value=len(picture.manager["left_out"]) if picture.manager is not None else 0,
        )
        yield from kept_metrics(picture.kept.figures)
        yield GaugeMetricFamily(
            "lb_config_rejected",
            "1 if the last configuration was refused and an older one serves.",
            value=picture.rejected is not None,
        )


def _address(network: str) -> str:
    return network.removesuffix("/32").removesuffix("/128")
