# SPDX-License-Identifier: Apache-2.0
"""The names that dashboards rely on, and the endpoint."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from lb.daemon.metrics.collectors import (
    BackendFigures,
    Figures,
    IoFigures,
    MetricsServer,
    MuxCollector,
    ServiceFigures,
    VitalsCollector,
    WorkerMetrics,
    serve,
)
from lb.daemon.metrics.server import CONNECTIONS_MAX
from lb.errors import IoError

BACKENDS = (BackendFigures("web-1", True, 60), BackendFigures("web-2", False, 30))
FIGURES = Figures(
    packets={("forward", "forwarded"): 90, ("drop", "no_backend"): 10},
    services=(ServiceFigures("web", 90, 9000, BACKENDS, flows_new=12),),
    flows=5,
    flow_capacity=1000,
    evictions={"untrusted": 3},
    generation=7,
    io_mode=("xdp", "AF_XDP: native, copying, 1 queue"),
    io=IoFigures(received=100, sent=89, missed=2, send_errors=1),
    unreachable=1,
    rejected=True,
    saturated=True,
    probe_seconds={("web", "web-1"): 0.0123},
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
        ("lb_service_flows_new_total", {"service": "web"}, 12),
        ("lb_mux_backend_takes_flows", {"service": "web", "backend": "web-2"}, 0),
        ("lb_probe_duration_seconds", {"service": "web", "backend": "web-1"}, 0.0123),
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


def test_every_daemon_says_which_version_it_is() -> None:
    families = {metric.name: metric for metric in VitalsCollector().collect()}
    (sample,) = families["lb_build_info"].samples
    assert sample.labels["version"] == version("vipmux")
    assert sample.value == 1


def test_an_address_in_use_is_one_sentence() -> None:
    server = serve("127.0.0.1:0", MuxCollector(Figures), key="mux.metrics")
    try:
        with pytest.raises(IoError, match=r"mux.metrics 127.0.0.1:\d+ cannot be served: .*in use; choose another"):
            serve(f"127.0.0.1:{server.port}", MuxCollector(Figures), key="mux.metrics")
    finally:
        server.close()


# --- whoever connects and does nothing -------------------------------------------------------------------------------


@contextmanager
def served(collector: Collector | None = None) -> Iterator[MetricsServer]:
    server = serve("127.0.0.1:0", collector or MuxCollector(Figures), key="mux.metrics")
    try:
        yield server
    finally:
        server.close()


def connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10, (address, 0))


def scraped(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
        return bytes(reply.read())


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_many_that_ask_nothing_keep_nobody_from_the_metrics() -> None:
    with served() as server, ExitStack() as kept:
        for number in range(300):
            kept.enter_context(connected(server.port, f"127.0.0.{number % 3 + 2}"))
            if number % 100 == 99:
                assert b"lb_generation" in scraped(server.port)
        end = time.monotonic() + 20
        while threads() > CONNECTIONS_MAX and time.monotonic() < end:
            time.sleep(0.01)
        assert threads() <= CONNECTIONS_MAX


def test_who_does_not_ask_in_time_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.daemon.metrics.server.HEAD_TIMEOUT", 0.3)
    with served() as server, connected(server.port) as silent, connected(server.port) as slow:
        ended = False
        began = time.monotonic()
        while not ended and time.monotonic() - began < 20:  # a byte now and then is no request either
            try:
                slow.sendall(b"G")
                time.sleep(0.05)
            except OSError:
                ended = True
        assert ended
        assert silent.recv(1) == b""


def test_who_does_not_take_the_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.daemon.metrics.server.ANSWER_TIMEOUT", 3.0)
    services = tuple(ServiceFigures("x" * (1 << 20) + str(number), 1, 1) for number in range(10))
    with served(MuxCollector(lambda: Figures(services=services))) as server, connected(server.port) as asked:
        asked.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert asked.recv(4) == b"HTTP"
        end = time.monotonic() + 30
        while threads() and time.monotonic() < end:
            time.sleep(0.02)
        assert threads() == 0


def test_where_all_have_asked_who_comes_is_sent_away_and_nobody_waits_for_ever() -> None:
    free = threading.Event()

    def figures() -> Figures:
        free.wait(20)
        return Figures()

    with served(MuxCollector(figures)) as server, ExitStack() as kept:
        asked = [kept.enter_context(connected(server.port)) for _ in range(CONNECTIONS_MAX)]
        for one in asked:
            one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        end = time.monotonic() + 20
        while (
            sum(guest.asked for guest in list(server._server._open.values())) < CONNECTIONS_MAX
            and time.monotonic() < end
        ):
            time.sleep(0.01)
        with connected(server.port) as late:
            assert late.recv(1) == b""
        free.set()
        assert all(one.recv(12).startswith(b"HTTP/1.0 200") for one in asked)


def test_of_a_head_without_end_no_more_is_read_than_that() -> None:
    with served() as server, connected(server.port) as endless:
        with suppress(OSError):
            endless.sendall(b"GET /metrics HTTP/1.0\r\n" + b"X: y\r\n" * 100_000)
        assert b"lb_generation" in scraped(server.port)


def test_an_answer_is_packed_for_who_takes_it_packed() -> None:
    with served() as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})) as reply:
            assert b"lb_flows 0.0" in gzip.decompress(reply.read())
