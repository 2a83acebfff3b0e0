# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus asks the real daemons of a fleet: every query of dashboard and alerts finds its series."""

from __future__ import annotations

import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lb.model import AgentConfig, ManagerSettings, MuxConfig, Probe, ProbeType
from tests.lab import netns
from tests.lab.fleet import Fleet
from tests.lab.process import Process, wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import files, web
from tests.lab.topology import Node

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "vipmux.json"

_WHY = "prometheus is not installed" if shutil.which("prometheus") is None else missing(Routers.BIRD)
pytestmark = [pytest.mark.lab, pytest.mark.skipif(_WHY is not None, reason=str(_WHY))]

PROBE = Probe(ProbeType.TCP, interval=0.5, timeout=0.5, rise=2, fall=2)
URL = "http://127.0.0.1:9090/api/v1"


class Watched(Fleet):
    """A fleet whose metrics are to be had from the manager's machine."""

    def configuration(self, node: Node) -> MuxConfig | AgentConfig:
        found = super().configuration(node)
        if isinstance(found, MuxConfig):
            return replace(found, mux=replace(found.mux, metrics=f"{node.address}:9741"))
        return replace(found, agent=replace(found.agent, metrics=f"{node.address}:9742"))

    def manager_settings(self) -> ManagerSettings:
        return replace(super().manager_settings(), metrics="10.0.1.9:9743")


class Prometheus:
    """In the manager's machine, with the files of ``deploy/``, asking every second."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self._fleet = fleet
        shutil.copy(DEPLOY / "vipmux-alerts.yml", directory)
        text = (DEPLOY / "prometheus.yml").read_text()
        (directory / "prometheus.yml").write_text(text.replace("interval: 5s", "interval: 1s"))
        argv: list[str | Path] = [
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--web.listen-address=127.0.0.1:9090",
        ]
        self.process = Process("prometheus", fleet.manager.namespace, argv, directory / "prometheus.log")

    def get(self, path: str, **query: str) -> Any:
        def ask() -> Any:
            with urllib.request.urlopen(f"{URL}/{path}?{urllib.parse.urlencode(query)}", timeout=10) as reply:  # noqa: S310
                return json.load(reply)["data"]

        return netns.inside(self._fleet.manager.namespace, ask)

    def ready(self) -> bool:
        targets = self.get("targets")["activeTargets"]
        return bool(targets) and all(target["health"] == "up" for target in targets)

    def series(self, query: str) -> int:
        return len(self.get("query", query=query)["result"])

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with Watched(Routers.BIRD) as fleet:
        services = [replace(service(fleet.hosts), probe=PROBE) for service in (web, files)]
        fleet.start(services)
        for service in services:
            fleet.wait_states(service.name, {f"{service.name}-{host.name}": "up" for host in fleet.hosts})
        yield fleet


@pytest.fixture(scope="module")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    started = Prometheus(watched, tmp_path_factory.mktemp("prometheus"))
    try:
        started.process.wait_output("Server is ready to receive web requests", 30)
        wait_for(started.ready, "Prometheus to reach every daemon", 30)
        yield started
    finally:
        started.process.kill()


def queries() -> list[str]:
    """Of the dashboard, as Grafana would send them."""
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "10s").replace("$service", ".*") for query in found]


def test_every_query_of_the_dashboard_finds_its_series(prometheus: Prometheus) -> None:
    def empty() -> list[str]:
        return [query for query in queries() if prometheus.series(query) == 0]

    wait_for(lambda: empty() == [], "every query to find something", 30)


def test_every_alert_looks_at_series_that_there_are(prometheus: Prometheus) -> None:
    """Without its comparison each alert's query finds something; a name that nobody exports would find nothing."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 19
    names = set()
    for rule in rules:
        assert rule["health"] in ("ok", "unknown"), rule
        names |= set(re.findall(r"\b(?:lb_[a-z_]+|up)\b(?:\{[^}]*\})?", rule["query"]))

    def lost() -> set[str]:
        return {name for name in names if prometheus.series(name) == 0}

    wait_for(lambda: not lost(), f"each of {sorted(names)} to be there", 30)


def test_a_fleet_in_service_alerts_nobody_and_a_dead_mux_does(watched: Watched, prometheus: Prometheus) -> None:
    assert prometheus.firing() == set()
    watched.muxes[1].processes["mux"].kill()
    wait_for(lambda: "LbMuxAway" in prometheus.firing(), "the alert of a MUX that is away", 60)
    watched.revive(watched.muxes[1])
    try:
        wait_for(lambda: prometheus.firing() == set(), "the alert to end", 60)
    finally:
        print(prometheus.get("alerts")["alerts"])
