# SPDX-License-Identifier: Apache-2.0
"""What a MUX says of itself: rows for ``lb get`` and ``lb top``, figures for Prometheus. Reads, never changes.

Everything comes from the engine's counters and the configuration that is live; :mod:`lb.mux.daemon` calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lb.daemon.kernel.keeper import Keeper, KeptFigures
from lb.daemon.metrics.collectors import (
    BackendFigures,
    Figures,
    IoFigures,
    ServiceFigures,
    TunnelFigures,
    WorkerMetrics,
)
from lb.dataplane import REASONS, BackendFlows, Verdict
from lb.model import Backend, BackendState, MuxSettings, Service
from lb.mux.announcer import Announcer
from lb.mux.hops.tunnel_watch import TunnelWatch
from lb.mux.io.mode import Mode
from lb.mux.workers.engine import Engine, WorkerTotals
from lb.mux.workers.flow_counts import FlowCensus
from lb.mux.workers.flow_sync import pool_name
from lb.mux.workers.overload import OverloadWatch
from lb.probe.results import Known, Label
from lb.probe.state import ProbeHealth

Row = dict[str, Any]

#: Rows of one kind that a manager is told; of announcements, of which each VIP has one for each router.
ROWS_MAX, ANNOUNCED_MAX = 20_000, 100_000
#: Of announcements a manager reads all rows when one of them is another: so many a second, on average.
ROWS_RATE = 4000


@dataclass(slots=True)
class Condition:
    """What the daemon knows beside the counters."""

    state: str = "starting"  #: starting, ready, degraded (the interface is gone), stopping
    rejected: str | None = None  #: why the last configuration was refused
    unreachable: dict[str, str] | None = None  #: backend addresses without a way, and why
    #: Backends that this MUX drains by itself while its manager is away, and why.
    own_verdicts: dict[Label, str] = field(default_factory=dict)


class Status:
    """Reads one MUX."""

    def __init__(
        self,
        settings: MuxSettings,
        mode: Callable[[], Mode],
        engine: Engine,
        condition: Condition,
        announcer: Announcer | None = None,
        *,
        census: FlowCensus | None = None,
        probed: Callable[[], Mapping[Label, Known]] = dict,
        manager: Callable[[], Row] | None = None,
        handover: Callable[[], str | None] = lambda: None,
        keeper: Keeper | None = None,
        overload: OverloadWatch | None = None,
        tunnels: TunnelWatch | None = None,
        copies: Callable[[int, int], int] = lambda service, backend: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``mode``: what is live. ``announcer`` None: this MUX speaks no BGP. ``probed``: what tunnel probes know; from
        any thread. ``manager``: the connection to it; None: there is none. ``handover``: what became of the last one.
        ``keeper``: of what this MUX put into the kernel. ``overload``: whether its workers keep up.
        ``tunnels``: what is remembered of them. ``copies``: of a backend's flows (service id and backend number), those
        of which another MUX told and that go on there."""
        self._clock = clock
        self._settings = settings
        self._mode = mode
        self._engine = engine
        self._condition = condition
        self._announcer = announcer
        self._census = census if census is not None else FlowCensus(engine)
        self._probed = probed
        self._manager = manager
        self._handover = handover
        self._keeper = keeper
        self._overload = overload
        self._tunnels = tunnels
        self._copies = copies
        self._told: Sequence[Row] = ()  # of announcements, to the manager
        self._tell_again = 0.0

    # -- rows ---------------------------------------------------------------------------------------------------

    def mux(self) -> Row:
        totals, mode = self._engine.totals(), self._mode()
        return {
            "name": self._settings.name,
            "state": self._condition.state,
            "io": mode.io.value,
            "mode": mode.text,
            "reason": mode.reason,
            "vector": self._engine.vector,
            "generation": self._engine.generation,
            "pool": pool_name(self._settings.seed),
            "slots": self._settings.slots,
            "flows": totals.live,
            "flow_capacity": self._settings.flows,
            "received": totals.received,
            **{name: _by_verdict(totals, verdict) for name, verdict in _VERDICTS.items()},
            "missed": totals.io.missed,
            "saturated": self._overload.words if self._overload is not None else None,
            "workers": [
                {"received": worker.received, "flows": worker.live, "missed": worker.missed}
                for worker in totals.workers
            ],
            "unreachable": self._condition.unreachable or {},
            "tunnels": self._tunnel_rows(),
            "rejected": self._condition.rejected,
            "own_verdicts": {"/".join(label): why for label, why in self._condition.own_verdicts.items()},
            "bgp": {row["name"]: _session(row) for row in self.peers()},
            "repaired": self._keeper.words() if self._keeper is not None else None,
            "kernel": self._keeper.rows() if self._keeper is not None else [],
            "manager": self._manager() if self._manager is not None else None,
        }

    def for_manager(self) -> Row:
        """What the manager shows of this MUX. Of counters only those that count something, and not without end."""
        services: list[Row] = []
        backends: list[Row] = []
        at = self._clock()  # of the counters: rates are made of two statuses
        forwarding = self._engine.forwarding
        # Of ten thousand many count nothing; flows that were handed over count from their first packet here.
        for number in self._engine.busy(forwarding.id_limit):
            service = forwarding.service(number)
            if service is None:
                continue  # it is gone; its counters stay for another's
            counters = self._engine.service_counters(number)
            found = [self._flows(number, backend) for backend in service.backends]
            own = [
                max(0, item.live - self._copies_of(number, backend.name))
                for backend, item in zip(service.backends, found, strict=True)
            ]
            flows = sum(own)
            row = {"packets": counters.packets, "bytes": counters.bytes, "flows_new": counters.flows, "flows": flows}
            services.append({"name": service.name, **row, "dropped": counters.dropped})
            backends += [
                {
                    "service": service.name,
                    "name": backend.name,
                    "packets": self._packets(number, backend),
                    "flows": live,
                }
                for backend, live in zip(service.backends, own, strict=True)
            ]
        mux = self.mux()
        del mux["manager"]  # it knows
        tunnels = mux.pop("tunnels")
        return {
            "at": at,
            "mux": mux,
            "peers": self.peers(),
            "announcements": self._announced(at),
            "announcements_since": self._announcer.announced_since() if self._announcer is not None else (),
            "services": services[:ROWS_MAX],
            "backends": backends[:ROWS_MAX],
            "handover": self._handover(),
            "tunnels": tunnels[:ROWS_MAX],
            "drains": [
                {
                    "service": service,
                    "name": backend,
                    "flows": flows.live,
                    "copies": self._drain_copies(service, backend),
                }
                for (service, backend), flows in self._census.drains[:ROWS_MAX]
            ],
        }

    def _copies_of(self, service: int, backend: str) -> int:
        number = self._engine.forwarding.number(service, backend)
        return self._copies(service, number) if number is not None else 0

    def _drain_copies(self, service: str, backend: str) -> int:
        number = self._engine.forwarding.id_named(service)
        return self._copies_of(number, backend) if number is not None else 0

    def _announced(self, at: float) -> Sequence[Row]:
        """Those of ten thousand VIPs are told anew every five seconds at most, those of a hundred at once. Meanwhile a
        few that are others are told by themselves."""
        if self._announcer is not None and at >= self._tell_again:
            rows = self._announcer.announced()
            if rows is not self._told:
                self._told, self._tell_again = rows, at + len(rows) / ROWS_RATE
                self._announcer.told_all()
        return self._told if len(self._told) <= ANNOUNCED_MAX else self._told[:ANNOUNCED_MAX]

    def _tunnel_rows(self) -> list[Row]:
        """Of those of which somebody complained."""
        return self._tunnels.rows() if self._tunnels is not None else []

    def peers(self) -> list[Row]:
        """BGP sessions."""
        return self._announcer.peers() if self._announcer is not None else []

    def announcements(self) -> list[Row]:
        """VIPs and who was told of them."""
        return self._announcer.announcements() if self._announcer is not None else []

    def services(self) -> list[Row]:
        rows: list[Row] = []
        for service, number in self._services():
            counters = self._engine.service_counters(number)
            rows.append(
                {
                    "name": service.name,
                    "vip": _vip(service),
                    "protocol": service.protocol.value,
                    "port": _port(service),
                    "request": service.udp_request,
                    "backends": len(service.backends),
                    "packets": counters.packets,
                    "bytes": counters.bytes,
                    "flows_new": counters.flows,
                    "flows": sum(self._flows(number, backend).live for backend in service.backends),
                    "dropped": counters.dropped,
                }
            )
        return rows

    def backends(self) -> list[Row]:
        probed = self._probed()
        tunnels = {row["address"]: row for row in self._tunnel_rows()}
        return [
            {
                "service": service.name,
                "name": backend.name,
                "address": str(backend.address),
                "port": backend.port if backend.port is not None else _port(service),
                "weight": backend.weight,
                "state": self._state(backend),
                "packets": self._packets(number, backend),
                **_flow_row(self._flows(number, backend)),
                **_health(probed.get((service.name, backend.name))),
                **_tunnel(tunnels.get(str(backend.address))),
            }
            for service, number in self._services()
            for backend in service.backends
        ]

    def _state(self, backend: Backend) -> str:
        """The operator's word, unless no packet can reach it."""
        return backend.state.value if backend.address in self._engine.reachable else "unreachable"

    # -- figures ------------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """From any thread."""
        totals, mode = self._engine.totals(), self._mode()
        return Figures(
            packets={(reason.verdict.name.lower(), reason.name): totals.reasons[reason.name] for reason in REASONS},
            services=tuple(self._service_figures()),
            flows=totals.live,
            flow_capacity=self._settings.flows,
            evictions={
                "ended": totals.evicted["ended"],
                "untrusted": totals.evicted["untrusted"] + totals.evicted["young"],
                "trusted": totals.evicted["trusted"],
            },
            generation=self._engine.generation,
            io_mode=(mode.io.value, mode.text),
            io=IoFigures(totals.io.received, totals.io.sent, totals.io.missed, totals.io.send_errors),
            unreachable=len(self._condition.unreachable or {}),
            rejected=self._condition.rejected is not None,
            workers=tuple(
                WorkerMetrics(worker.bursts, worker.received, worker.live, worker.missed) for worker in totals.workers
            ),
            probes={
                label: known.health is ProbeHealth.UP
                for label, known in self._probed().items()
                if known.health is not ProbeHealth.UNKNOWN
            },
            probe_seconds={label: known.took for label, known in self._probed().items() if known.took is not None},
            left_out=len(self._manager()["left_out"]) if self._manager is not None else 0,
            bgp=self._announcer.figures() if self._announcer is not None else None,
            saturated=self._overload is not None and self._overload.words is not None,
            tunnels=self._tunnel_figures(),
            kept=self._keeper.figures() if self._keeper is not None else KeptFigures(),
        )

    def _tunnel_figures(self) -> TunnelFigures:
        if self._tunnels is None:
            return TunnelFigures()
        states = self._tunnels.states
        mtus = {str(address): state.mtu for address, state in states.items() if state.mtu}
        unreachable = sum(state.unreachable is not None for state in states.values())
        return TunnelFigures(self._tunnels.errors, mtus, unreachable)

    def _service_figures(self) -> Iterator[ServiceFigures]:
        for service, number in self._services():
            counters = self._engine.service_counters(number)
            backends = tuple(
                BackendFigures(
                    backend.name,
                    self._takes_flows(backend),
                    self._packets(number, backend),
                    self._flows(number, backend).live,
                )
                for backend in service.backends
            )
            yield ServiceFigures(service.name, counters.packets, counters.bytes, backends, counters.flows)

    def _takes_flows(self, backend: Backend) -> bool:
        return backend.state is BackendState.UP and backend.weight > 0 and backend.address in self._engine.reachable

    # -- both ---------------------------------------------------------------------------------------------------

    def _services(self) -> Iterator[tuple[Service, int]]:
        """The live services in the order of the file, with their numbers in the data plane."""
        forwarding = self._engine.forwarding
        for service in forwarding.services:
            number = forwarding.id_of(service)
            if number is not None:
                yield service, number

    def _packets(self, service: int, backend: Backend) -> int:
        return self._engine.backend_packets(self._engine.forwarding.counter(service, backend.name))

    def _flows(self, service: int, backend: Backend) -> BackendFlows:
        return self._census.of(self._engine.forwarding.counter(service, backend.name))


_VERDICTS = {
    "forwarded": Verdict.FORWARD,
    "passed": Verdict.PASS,
    "replied": Verdict.REPLY,
    "dropped": Verdict.DROP,
}


def _session(row: Row) -> str:
    """``established, 3 announced``, or what is wrong."""
    if row["state"] == "established":
        return f"established, {row['announced']} announced"
    return f"{row['state']}: {row['error']}" if row["error"] else str(row["state"])


def _flow_row(flows: BackendFlows) -> Row:
    """``unsynchronised``: flows that no other MUX would send to this backend."""
    return {"flows": flows.live, "flows_udp": flows.udp, "exceptional": flows.unsynchronised}


def _health(known: Known | None) -> Row:
    """The tunnel probes' word, where the backend is probed; ``since`` is Unix time."""
    if known is None:
        return {}
    return {"health": known.health.value, "reason": known.reason, "since": known.since or None}


def _tunnel(known: Row | None) -> Row:
    """What routers and hosts said of the tunnel to it, while that is remembered."""
    return {} if known is None else {"tunnel_mtu": known["mtu"], "tunnel": known["reason"]}


def _by_verdict(totals: WorkerTotals, verdict: Verdict) -> int:
    return sum(totals.reasons[reason.name] for reason in REASONS if reason.verdict is verdict)


def _vip(service: Service) -> str:
    whole = service.vip.prefixlen == service.vip.max_prefixlen
    return str(service.vip.network_address) if whole else str(service.vip)


def _port(service: Service) -> int | str:
    """A number, or a range in words."""
    return service.ports.first if service.ports.exact else str(service.ports)
