# SPDX-License-Identifier: Apache-2.0
"""The manager's Prometheus metrics, read from the controller at each scrape, in the thread of the metrics server.

What a scrape sees may be a moment old and is never half of a plan: plans are values, and are replaced as a whole.
``lb_generation`` and ``lb_generation_wanted`` of a node that differ for long are a node that does not follow.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lb.model import BackendState
from manager.controller.controller import Controller
from manager.nodes.hub import rows
from manager.observed.announcements import bare
from manager.plan.health import Source
from manager.plan.model import MUX


class ManagerCollector(Collector):
    """Turns the moment into metric families."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._backends()
        yield from self._nodes()
        yield from self._announced()
        yield from self._manager()

    def _backends(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "lb_backend_up",
            "1 if the backend is healthy; the same as lb_backend_healthy, for a MUX's means another thing.",
            labels=["service", "backend"],
        )
        healthy = GaugeMetricFamily("lb_backend_healthy", "1 if the backend is healthy.", labels=["service", "backend"])
        drained = GaugeMetricFamily(
            "lb_backend_drained",
            "1 if operators drain the backend or took it out, by command or by its table.",
            labels=["service", "backend"],
        )
        taking = GaugeMetricFamily(
            "lb_backend_takes_flows", "1 if MUXes give it new flows, healthy or not.", labels=["service", "backend"]
        )
        panic = GaugeMetricFamily(
            "lb_panic", "1 if too few backends are healthy, so that the last good set is kept.", labels=["service"]
        )
        plan = self._controller.plan
        for found in plan.vips.values():
            for item in found.backends:
                labels = [item.service, item.backend.name]
                up.add_metric(labels, float(item.healthy))
                healthy.add_metric(labels, float(item.healthy))
                taking.add_metric(labels, float(item.takes_flows))
                drained.add_metric(labels, float(item.shown == "drain" or item.backend.state is not BackendState.UP))
            for service in found.tables:
                panic.add_metric([service], float(service in found.panic))
        yield from (up, healthy, taking, drained, panic)

    def _nodes(self) -> Iterator[Metric]:
        labels = ["kind", "node"]
        connected = GaugeMetricFamily("lb_node_connected", "1 if the node is connected.", labels=labels)
        live = GaugeMetricFamily("lb_generation", "The generation that the node acknowledged.", labels=labels)
        wanted = GaugeMetricFamily("lb_generation_wanted", "The generation that the node should have.", labels=labels)
        refused = GaugeMetricFamily("lb_node_refused", "1 if the node refused its state.", labels=labels)
        without = GaugeMetricFamily("lb_node_left_out", "Services that the node alone does not serve.", labels=labels)
        passed_over = CounterMetricFamily(
            "lb_node_reports_passed_over",
            "Reports of the node on backends that there are not, or that are not its to judge.",
            labels=labels,
        )
        skew = GaugeMetricFamily(
            "lb_node_clock_skew_seconds", "How far the node's clock is ahead of the manager's.", labels=labels
        )
        expires = GaugeMetricFamily(
            "lb_node_certificate_expires_seconds",
            "When the node's certificate ends, Unix time; the same as lb_node_certificate_expires_timestamp_seconds.",
            labels=labels,
        )
        ends = GaugeMetricFamily(
            "lb_node_certificate_expires_timestamp_seconds",
            "When the node's certificate ends, Unix time.",
            labels=labels,
        )
        draining = GaugeMetricFamily("lb_mux_drained", "1 if operators drain the MUX.", labels=["mux"])
        differing = GaugeMetricFamily(
            "lb_mux_differs",
            "1 if the MUX has another seed or default of slots than the others, and so chooses other backends.",
            labels=["mux"],
        )
        drains, differs = self._controller.plan.drains, self._controller.pools.differs
        for entry in list(self._controller.hub.entries.values()):
            names = [entry.record.kind, entry.record.name]
            if entry.clock_skew is not None:
                skew.add_metric(names, entry.clock_skew)
            if entry.expires is not None:
                expires.add_metric(names, entry.expires)
                ends.add_metric(names, entry.expires)
            if entry.record.kind == MUX:
                draining.add_metric([entry.record.name], float(entry.record.name in drains))
                differing.add_metric([entry.record.name], float(entry.record.name in differs))
            connected.add_metric(names, float(entry.connection is not None))
            live.add_metric(names, entry.live_generation)
            wanted.add_metric(names, entry.generation)
            refused.add_metric(names, float(entry.refused is not None))
            without.add_metric(names, len(entry.left_out))
            source = Source.TUNNEL if entry.record.kind == MUX else Source.AGENT
            passed_over.add_metric(names, self._controller.planner.reports.passed_over(source, entry.record.name))
        yield from (connected, live, wanted, refused, without, passed_over, skew, expires, ends, draining, differing)

    def _announced(self) -> Iterator[Metric]:
        """By peer, as MUXes tell of it; and what they were told to."""
        told = GaugeMetricFamily(
            "lb_announced", "1 if the MUX announces the VIP to the peer.", labels=["vip", "peer", "mux"]
        )
        for entry in list(self._controller.hub.entries.values()):
            if entry.record.kind == MUX and entry.connection is not None:
                for row in rows(entry.status, "announcements"):
                    if row.get("peer") is not None:
                        said = row.get("state") in ("announced", "draining")
                        told.add_metric([str(row.get("vip")), str(row["peer"]), entry.record.name], float(said))
        yield told
        granted = GaugeMetricFamily("lb_announce_wanted", "How many MUXes should announce the VIP.", labels=["vip"])
        by = GaugeMetricFamily("lb_announced_by", "How many MUXes announce the VIP now.", labels=["vip"])
        lacking = GaugeMetricFamily(
            "lb_announce_lacking", "VIPs that the MUX should announce and for some seconds does not.", labels=["mux"]
        )
        announced = self._controller.announced
        for vip, found in self._controller.plan.vips.items():
            labels = [bare(vip)]
            granted.add_metric(labels, len(found.granted))
            by.add_metric(labels, len(announced.by.get(vip, ())))
        for entry in list(self._controller.hub.entries.values()):
            if entry.record.kind == MUX:
                lacking.add_metric([entry.record.name], announced.lacking.get(entry.record.name, 0))
        reached = GaugeMetricFamily(
            "lb_vip_reached",
            "1 if the manager's own connections to the VIP get through, as clients' do.",
            labels=["vip"],
        )
        for vip, through in (self._controller.paths.reached if self._controller.paths is not None else {}).items():
            reached.add_metric([bare(vip)], float(through))
        yield from (granted, by, lacking, reached)

    def _manager(self) -> Iterator[Metric]:
        controller = self._controller
        yield GaugeMetricFamily("lb_manager_term", "Number of this leadership.", value=controller.hub.term)
        yield GaugeMetricFamily("lb_manager_version", "Version of the desired state.", value=controller.desired.version)
        yield GaugeMetricFamily("lb_manager_services", "Services wanted.", value=len(controller.desired.services))
        yield GaugeMetricFamily(
            "lb_confirm_pending",
            "1 if a change is rolled back soon, unless it is confirmed.",
            value=float(controller.desired.unconfirmed is not None),
        )
