# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: the figures of a MUX at one moment, under the names that dashboards rely on.

:mod:`lb.mux.workers.engine` reads the counters of its workers into :class:`Figures`; a custom collector does so at each
scrape, so there is no second set of counters to keep. :func:`serve` is used by the agent as well. No label names a
client, so the number of series is bounded by the configuration.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from threading import Thread

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lb.daemon.kernel.keeper import KeptFigures
from lb.daemon.kernel.keeper import metrics as kept_metrics
from lb.daemon.metrics.server import ScrapeServer
from lb.daemon.process.fault_counts import VITALS, Vitals
from lb.errors import IoError


@dataclass(frozen=True, slots=True)
class BackendFigures:
    """One backend of one service."""

    name: str
    up: bool  #: takes new flows, and a frame for it can leave
    packets: int
    flows: int = 0  #: live, at the last count


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """One service."""

    name: str
    packets: int
    bytes: int
    backends: tuple[BackendFigures, ...] = ()
    flows_new: int = 0  #: flows that began


@dataclass(frozen=True, slots=True)
class IoFigures:
    """The I/O of all workers together."""

    received: int = 0
    sent: int = 0
    missed: int = 0  #: dropped by the kernel before a worker saw them
    send_errors: int = 0


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """One worker's part."""

    bursts: int = 0  #: its heartbeat
    received: int = 0
    flows: int = 0
    missed: int = 0  #: since its io was opened


@dataclass(frozen=True, slots=True)
class BgpFigures:
    """What routers were told, and who listens."""

    announced: tuple[tuple[str, str], ...] = ()  #: VIP and name of the peer
    sessions: tuple[tuple[str, bool], ...] = ()  #: name of the peer, and whether it is up


@dataclass(frozen=True, slots=True)
class TunnelFigures:
    """What ICMP says of a MUX's tunnels."""

    errors: Mapping[str, int] = field(default_factory=dict)  #: by kind; "ignored": about no packet of this MUX
    mtus: Mapping[str, int] = field(default_factory=dict)  #: of those that carry less than services say, by address
    unreachable: int = 0  #: tunnels whose end is said to be unreachable


@dataclass(frozen=True, slots=True)
class Figures:
    """A MUX at one moment."""

    packets: Mapping[tuple[str, str], int] = field(default_factory=dict)  #: by verdict and reason
    services: tuple[ServiceFigures, ...] = ()
    flows: int = 0
    flow_capacity: int = 0
    evictions: Mapping[str, int] = field(default_factory=dict)  #: by class of flow
    generation: int = 0
    io: IoFigures = field(default_factory=IoFigures)
    io_mode: tuple[str, str] = ("", "")  #: the I/O mode, and what was obtained of it in words
    unreachable: int = 0  #: backend addresses without a next hop
    rejected: bool = False  #: the last configuration was refused
    saturated: bool = False  #: workers do not keep up: packets are lost in the kernel's queue
    left_out: int = 0  #: of what a manager wants, what this MUX alone does not serve
    workers: tuple[WorkerMetrics, ...] = ()
    probes: Mapping[tuple[str, str], bool] = field(default_factory=dict)  #: by service and backend, through the tunnel
    probe_seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)  #: how long the last of each took
    bgp: BgpFigures | None = None  #: None: this MUX speaks no BGP
    tunnels: TunnelFigures = field(default_factory=TunnelFigures)
    kept: KeptFigures = field(default_factory=KeptFigures)  #: what was put back into the kernel


class MuxCollector(Collector):
    """Turns the figures of the moment into metric families."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read the workers."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        yield from _packets(figures)
        yield from _services(figures)
        yield from _probes(figures)
        yield from _flows(figures)
        yield from _machine(figures)
        yield from _tunnels(figures.tunnels)
        yield from kept_metrics(figures.kept)
        if figures.bgp is not None:
            yield from _bgp(figures.bgp)


def _packets(figures: Figures) -> Iterator[Metric]:
    family = CounterMetricFamily("lb_packets", "Packets by what became of them and why.", labels=["verdict", "reason"])
    for (verdict, reason), packets in figures.packets.items():
        family.add_metric([verdict, reason], packets)
    yield family


def _services(figures: Figures) -> Iterator[Metric]:
    packets = CounterMetricFamily("lb_service_packets", "Packets forwarded for a service.", labels=["service"])
    octets = CounterMetricFamily("lb_service_bytes", "Bytes of the inner packets forwarded.", labels=["service"])
    begun = CounterMetricFamily("lb_service_flows_new", "Flows of a service that began.", labels=["service"])
    by_backend = CounterMetricFamily(
        "lb_backend_packets", "Packets forwarded to a backend.", labels=["service", "backend"]
    )
    up = GaugeMetricFamily(
        "lb_backend_up",
        "1 if the backend takes new flows: lb_mux_backend_takes_flows by a name that the manager has as well.",
        labels=["service", "backend"],
    )
    takes = GaugeMetricFamily(
        "lb_mux_backend_takes_flows", "1 if this MUX gives the backend new flows.", labels=["service", "backend"]
    )
    flows = GaugeMetricFamily(
        "lb_backend_flows", "Live flows of a backend, at the last count.", labels=["service", "backend"]
    )
    for service in figures.services:
        packets.add_metric([service.name], service.packets)
        octets.add_metric([service.name], service.bytes)
        begun.add_metric([service.name], service.flows_new)
        for backend in service.backends:
            by_backend.add_metric([service.name, backend.name], backend.packets)
            up.add_metric([service.name, backend.name], float(backend.up))
            takes.add_metric([service.name, backend.name], float(backend.up))
            flows.add_metric([service.name, backend.name], backend.flows)
    yield from (packets, octets, begun, by_backend, up, takes, flows)


def _probes(figures: Figures) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "lb_probe_up", "1 if the last probes through the tunnel found it well.", labels=["service", "backend"]
    )
    for (service, backend), up in figures.probes.items():
        family.add_metric([service, backend], float(up))
    yield family
    yield probe_durations(figures.probe_seconds)


def probe_durations(seconds: Mapping[tuple[str, str], float]) -> Metric:
    """Of the last probe of each backend; the same for a MUX and an agent."""
    family = GaugeMetricFamily(
        "lb_probe_duration_seconds",
        "How long the last probe took until its answer or its time-out.",
        labels=["service", "backend"],
    )
    for (service, backend), took in seconds.items():
        family.add_metric([service, backend], round(took, 6))
    return family


def _flows(figures: Figures) -> Iterator[Metric]:
    yield GaugeMetricFamily("lb_flows", "Entries in the flow tables.", value=figures.flows)
    yield GaugeMetricFamily("lb_flow_capacity", "Entries that the flow tables can hold.", value=figures.flow_capacity)
    family = CounterMetricFamily("lb_flow_evictions", "Entries that made room for another.", labels=["class"])
    for kind, evictions in figures.evictions.items():
        family.add_metric([kind], evictions)
    yield family


def _machine(figures: Figures) -> Iterator[Metric]:
    io = figures.io
    yield GaugeMetricFamily("lb_generation", "Number of the forwarding state that is live.", value=figures.generation)
    name, words = figures.io_mode
    io_info = GaugeMetricFamily("lb_io_info", "1; how packets come in and go out.", labels=["io", "mode"])
    io_info.add_metric([name, words], 1)
    yield io_info
    yield CounterMetricFamily("lb_io_received", "Frames that workers received.", value=io.received)
    yield CounterMetricFamily("lb_io_sent", "Frames that workers sent.", value=io.sent)
    yield CounterMetricFamily("lb_io_missed", "Frames lost before a worker saw them: ring full.", value=io.missed)
    yield GaugeMetricFamily(
        "lb_saturated", "1 while the workers do not keep up and packets are lost before them.", value=figures.saturated
    )
    yield CounterMetricFamily("lb_io_send_errors", "Frames that could not be sent.", value=io.send_errors)
    yield GaugeMetricFamily(
        "lb_backends_unreachable", "Backend addresses without a next hop.", value=figures.unreachable
    )
    yield GaugeMetricFamily(
        "lb_config_rejected", "1 if the last configuration was refused and an older one serves.", value=figures.rejected
    )
    yield GaugeMetricFamily(
        "lb_services_left_out",
        "Services (and other entries) of the manager's state that this node cannot serve.",
        value=figures.left_out,
    )
    family = CounterMetricFamily("lb_worker_bursts", "Turns of a worker's loop: its heartbeat.", labels=["worker"])
    received = CounterMetricFamily("lb_worker_received", "Packets that a worker received.", labels=["worker"])
    flows = GaugeMetricFamily("lb_worker_flows", "Entries in a worker's flow table.", labels=["worker"])
    missed = CounterMetricFamily(
        "lb_worker_missed", "Frames lost before a worker saw them, since its ring was opened.", labels=["worker"]
    )
    for index, worker in enumerate(figures.workers):
        family.add_metric([str(index)], worker.bursts)
        received.add_metric([str(index)], worker.received)
        flows.add_metric([str(index)], worker.flows)
        missed.add_metric([str(index)], worker.missed)
    yield from (family, received, flows, missed)


def _tunnels(figures: TunnelFigures) -> Iterator[Metric]:
    errors = CounterMetricFamily(
        "lb_tunnel_errors", "ICMP errors about tunnels to backends, by what they say.", labels=["kind"]
    )
    for kind, count in figures.errors.items():
        errors.add_metric([kind], count)
    yield errors
    mtu = GaugeMetricFamily(
        "lb_tunnel_mtu", "Bytes that fit on the way to a backend, where less than services say.", labels=["address"]
    )
    for address, size in figures.mtus.items():
        mtu.add_metric([address], size)
    yield mtu
    yield GaugeMetricFamily(
        "lb_tunnels_unreachable",
        "Tunnels of which ICMP said within the last minute that nobody can be reached at their end.",
        value=figures.unreachable,
    )


def _bgp(figures: BgpFigures) -> Iterator[Metric]:
    announced = GaugeMetricFamily("lb_announced", "1 if the VIP was announced to the peer.", labels=["vip", "peer"])
    for vip, peer in figures.announced:
        announced.add_metric([vip, peer], 1.0)
    yield announced
    up = GaugeMetricFamily("lb_bgp_session_up", "1 if the BGP session is established.", labels=["peer"])
    for peer, is_up in figures.sessions:
        up.add_metric([peer], float(is_up))
    yield up


class VitalsCollector(Collector):
    """What the daemon counts of its own faults."""

    def __init__(self, vitals: Vitals = VITALS) -> None:
        self._vitals = vitals

    def describe(self) -> list[Metric]:
        """Nothing: there may be no task yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        crashes = CounterMetricFamily("lb_task_crashes", "Background tasks that ended with an error.", labels=["task"])
        for task, count in self._vitals.crashes.items():
            crashes.add_metric([task], count)
        restarts = CounterMetricFamily("lb_task_restarts", "Background tasks that were begun anew.", labels=["task"])
        for task, count in self._vitals.restarts.items():
            restarts.add_metric([task], count)
        unasked = CounterMetricFamily(
            "lb_probes_not_made", "Probes that this machine could not make: they say nothing.", labels=["source"]
        )
        for source, count in self._vitals.probes_not_made.items():
            unasked.add_metric([source], count)
        lost = CounterMetricFamily(
            "lb_log_lines_lost", "Lines of the log that could not be written.", value=self._vitals.lines_lost
        )
        build = GaugeMetricFamily("lb_build_info", "1; which version runs.", labels=["version", "python"])
        build.add_metric([program_version(), platform.python_version()], 1)
        yield from (crashes, restarts, unasked, lost, build)


@cache
def program_version() -> str:
    """Of the installed package."""
    try:
        return version("vipmux")
    except PackageNotFoundError:
        return "unknown"


class MetricsServer:
    """The HTTP endpoint, in a thread of its own until closed."""

    def __init__(self, server: ScrapeServer) -> None:
        self._server = server
        self._thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.end()
        self._thread.join()


def serve(address: str, collector: Collector, *, key: str) -> MetricsServer:
    """Serves ``/metrics`` at ``host:port``; ``key`` names the setting in the error's sentence."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    registry.register(VitalsCollector())
    try:
        server = ScrapeServer(host.strip("[]"), int(port), registry)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise IoError(f"{key} {address} cannot be served: {reason}; choose another address or port") from None
    return MetricsServer(server)
