# SPDX-License-Identifier: Apache-2.0
"""What operators see of a fleet under load: its rates, and single flows explained by the MUXes that carry them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import pytest

from lb.config.render import format_config
from lb.daemon.control_socket import request
from lb.doctor.model.findings import Severity
from tests.lab import netns
from tests.lab.fleet import Fleet
from tests.lab.process import wait_for
from tests.lab.services import WEB_VIP, web
from tests.lab.topology import CLIENT
from tests.lab.traffic import KeepAlive

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet() as started:
        started.start((web(started.hosts),))
        started.wait_hops(f"{WEB_VIP}/32", *started.muxes)
        yield started


@contextmanager
def running(fleet: Fleet, count: int) -> Iterator[KeepAlive]:
    """Connections that each ask twenty times a second."""
    load = KeepAlive(fleet, WEB_VIP, 80, count=count, interval=0.05)
    try:
        yield load.start()
    finally:
        load.close()


def asked(fleet: Fleet, *arguments: str) -> Any:
    return json.loads(fleet.lb(*arguments, "-o", "json"))


def describe(fleet: Fleet, source: str, port: int) -> dict[str, Any]:
    """``lb describe flow -o json``, by the same client."""
    query = {"protocol": "tcp", "source": source, "source_port": port, "destination": WEB_VIP, "destination_port": 80}
    found: dict[str, Any] = netns.inside(fleet.manager.namespace, lambda: fleet.remote.get("flow", **query))
    return found


def test_top_shows_the_load_of_a_real_client(fleet: Fleet) -> None:
    with running(fleet, 20) as load:
        began, answers = time.monotonic(), load.answers
        time.sleep(5)
        rate = (load.answers - answers) / (time.monotonic() - began)
        services = asked(fleet, "top", "--once")
        muxes = asked(fleet, "top", "--once", "--by", "mux")
        backends = asked(fleet, "top", "--once", "--by", "backend")
    row = services["rows"][0]
    assert row["service"] == "web"
    # Of a request the client sends one packet and acknowledges the answer with another, or with the next request.
    assert rate * 0.5 < row["pps"] < rate * 4, (rate, row)
    assert row["bps"] > row["pps"] * 8 * 40
    assert 15 <= row["flows"] <= 60, "20 connections, and the probes'"
    assert sum(found["pps"] for found in muxes["rows"]) == pytest.approx(row["pps"], rel=0.5)
    assert all(found["fill"] > 0 for found in muxes["rows"])
    assert {found["service"] for found in backends["rows"]} == {"web"}
    assert sum(found["pps"] for found in backends["rows"]) == pytest.approx(row["pps"], rel=0.5)


def test_a_real_flow_is_described_by_the_muxes_that_carry_it(fleet: Fleet) -> None:
    with running(fleet, 4) as load:
        flow = load.lives()[0].flow

        def classes() -> list[str]:
            muxes = describe(fleet, str(CLIENT), flow.source_port)["muxes"]
            return [row["flow_class"] for row in muxes if row["remembered"] is not None]

        wait_for(lambda: classes() == ["tcp_trusted"], "a packet of a later tick")
        found = describe(fleet, str(CLIENT), flow.source_port)
        carrying = [row for row in found["muxes"] if row["remembered"] is not None]
        assert len(carrying) == 1, "the router sends a flow to one MUX"
        assert carrying[0]["age"] < 5
        assert carrying[0]["goes_to"].endswith(flow.host)
        assert found["agree"] is True
        said = fleet.lb("describe", "flow", "--src", f"{CLIENT}:{flow.source_port}", "--dst", f"{WEB_VIP}:80")
        assert f"remembers it with {carrying[0]['remembered']} (seen in both a first and a later packet" in said
        assert "All MUXes agree." in said
        # It drains: it stays where it is, which the one MUX tells the other; a new flow goes elsewhere by both.
        fleet.lb("drain", f"web/{carrying[0]['remembered']}")
        wait_for(lambda: "though that drains" in said_of(fleet, flow.source_port), "the drain to be known")

        def new() -> set[str]:
            return {row["new"] for row in describe(fleet, str(CLIENT), flow.source_port)["muxes"]}

        wait_for(lambda: len(new()) == 1, "the other MUX to have the drain as well")
        wait_for(
            lambda: describe(fleet, str(CLIENT), flow.source_port)["agree"], "the other MUX to be told of the flow"
        )
        found = describe(fleet, str(CLIENT), flow.source_port)
        assert {row["remembered"] for row in found["muxes"]} == {carrying[0]["remembered"]}
        assert len({row["new"] for row in found["muxes"]}) == 1
        fleet.lb("undrain", f"web/{carrying[0]['remembered']}")


def said_of(fleet: Fleet, port: int) -> str:
    return " ".join(row["words"] for row in describe(fleet, str(CLIENT), port)["muxes"])


def test_a_flow_that_nobody_remembers_is_told_what_a_new_one_gets(fleet: Fleet) -> None:
    wait_for(lambda: describe(fleet, "198.51.100.250", 1)["agree"], "the MUXes to agree")
    found = describe(fleet, "198.51.100.250", 1)
    assert [row["remembered"] for row in found["muxes"]] == [None, None]
    for mux in fleet.muxes:
        flow = {"source": "198.51.100.250", "source_port": 1, "destination": WEB_VIP, "destination_port": 80}
        local = request(mux.state_dir / "mux.sock", {"op": "lookup", "protocol": "tcp", **flow})
        assert (local["backend"], local["slot"]) == (found["muxes"][0]["new"], found["muxes"][0]["slot"])


def test_a_router_that_does_not_use_the_route_is_seen_by_a_manager_that_looks(fleet: Fleet) -> None:
    """Every MUX is content: its router was told. Another route there is better, and leads nowhere."""
    fleet.manager.processes["manager"].stop()
    fleet.manager.config.write_text(format_config(replace(fleet.manager_settings(), path_interval=1.0)))
    fleet.start_manager()
    wait_for(lambda: fleet.connected() == 5, "all nodes to be back", 60)

    def row() -> dict[str, Any]:
        return fleet.ask("services")[0]

    def metric() -> str:
        scraped = "http://127.0.0.1:9743/metrics"
        with netns.inside(fleet.manager.namespace, lambda: urlopen(scraped, timeout=10)) as answer:
            text: str = answer.read().decode()
        return text

    wait_for(lambda: 'lb_vip_reached{vip="203.0.113.10"} 1.0' in metric(), "the manager to get through", 60)
    netns.batch([f"route add blackhole {WEB_VIP} metric 1"], fleet.router)
    try:
        wait_for(lambda: row()["unreached"], "the manager to see that it does not any more", 60)
        wait_for(lambda: row()["announced_by"] == ["mux1", "mux2"], "both MUXes to say that they announce it", 30)
        assert "announced by mux1, mux2, but no client gets through" in fleet.lb("get", "services")
        said = "but no client gets through: connections from the manager to 203.0.113.10:80 fail"
        wait_for(lambda: said in fleet.lb("get", "events", "--bad", "--subject", f"vip {WEB_VIP}/32"), "the event", 30)
        assert 'lb_vip_reached{vip="203.0.113.10"} 0.0' in metric()
        assert any(found.severity is Severity.FAULT and said in found.what for found in fleet.examine())
    finally:
        netns.batch([f"route del blackhole {WEB_VIP} metric 1"], fleet.router)
    wait_for(lambda: not row()["unreached"], "the manager to get through again", 60)
