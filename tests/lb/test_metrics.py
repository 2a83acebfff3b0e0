# SPDX-License-Identifier: Apache-2.0
"""The names that dashboards rely on, and the endpoint."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from lb.errors import IoError
from lb.metrics import BackendFigures, Figures, IoFigures, MuxCollector, ServiceFigures, WorkerMetrics, serve

BACKENDS = (BackendFigures("web-1", True, 60), BackendFigures("web-2", False, 30))
FIGURES = Figures(
    packets={("forward", "forwarded"): 90, ("drop", "no_backend"): 10},
    services=(
        ServiceFigures("web", 90, 9000, (BackendFigures("web-1", True, 60), BackendFigures("web-2", False, 30))),
    ),
    flows=5,
    flow_capacity=1000,
    evictions={"untrusted": 3},
    generation=7,
    io_mode=("xdp", "AF_XDP: native, copying, 1 queue"),
    io=IoFigures(received=100, sent=89, missed=2, send_errors=1),
    unreachable=1,
    rejected=True,
    saturated=True,
    workers=(WorkerMetrics(11, 5, 2, 1), WorkerMetrics(12, 7, 3, 0)),
)


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(MuxCollector(lambda: FIGURES))
    return made


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("lb_packets_total", {"verdict": "forward", "reason": "forwarded"}, 90),
        ("lb_packets_total", {"verdict": "drop", "reason": "no_backend"}, 10),
        ("lb_service_packets_total", {"service": "web"}, 90),
        ("lb_service_bytes_total", {"service": "web"}, 9000),
        ("lb_backend_packets_total", {"service": "web", "backend": "web-1"}, 60),
        ("lb_backend_up", {"service": "web", "backend": "web-1"}, 1),
        ("lb_backend_up", {"service": "web", "backend": "web-2"}, 0),
        ("lb_flows", {}, 5),
        ("lb_flow_capacity", {}, 1000),
        ("lb_flow_evictions_total", {"class": "untrusted"}, 3),
        ("lb_generation", {}, 7),
        ("lb_io_info", {"io": "xdp", "mode": "AF_XDP: native, copying, 1 queue"}, 1),
        ("lb_io_received_total", {}, 100),
        ("lb_io_sent_total", {}, 89),
        ("lb_io_missed_total", {}, 2),
        ("lb_io_send_errors_total", {}, 1),
        ("lb_saturated", {}, 1),
        ("lb_backends_unreachable", {}, 1),
        ("lb_config_rejected", {}, 1),
        ("lb_worker_bursts_total", {"worker": "1"}, 12),
        ("lb_worker_received_total", {"worker": "1"}, 7),
        ("lb_worker_flows", {"worker": "0"}, 2),
        ("lb_worker_missed_total", {"worker": "0"}, 1),
    ],
)
def test_every_metric_of_the_contract_is_there(name: str, labels: dict[str, str], value: float) -> None:
    assert registry().get_sample_value(name, labels) == value


def test_the_endpoint_serves_what_the_figures_are_at_the_scrape() -> None:
    generations = iter(range(1, 10))
    server = serve("127.0.0.1:0", MuxCollector(lambda: Figures(generation=next(generations))), key="mux.metrics")
    try:
        for expected in (1, 2):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
                families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
            assert families["lb_generation"].samples[0].value == expected
    finally:
        server.close()


def test_an_address_in_use_is_one_sentence() -> None:
    server = serve("127.0.0.1:0", MuxCollector(Figures), key="mux.metrics")
    try:
        with pytest.raises(IoError, match=r"mux.metrics 127.0.0.1:\d+ cannot be served: .*in use; choose another"):
            serve(f"127.0.0.1:{server.port}", MuxCollector(Figures), key="mux.metrics")
    finally:
        server.close()
