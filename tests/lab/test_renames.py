# SPDX-License-Identifier: Apache-2.0
"""What operators do to names, addresses, VIPs and ports in one ``lb apply``, under a thousand requests a second: no
node refuses what it is told on the way, none restarts, and no connection breaks. The table is printed at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from lb.model import PortRange, Service
from tests.lab.fleet import Fleet
from tests.lab.pace import reachable
from tests.lab.process import wait_for
from tests.lab.routers import Routers
from tests.lab.services import FILES_VIP, PROBE, WEB_VIP, web
from tests.lab.topology import Node
from tests.lab.traffic import KeepAlive, Life

pytestmark = pytest.mark.lab

#: So many connections to each of two VIPs, each asking again after so long, and so often in its life.
CONNECTIONS, INTERVAL, REQUESTS = 55, 0.1, 20
RATE = 2 * CONNECTIONS / INTERVAL
#: Until a connection that a change broke has noticed it, seconds.
AFTER = 1.5
PORT = 81

Services = tuple[Service, Service]


def services(hosts: Sequence[Node]) -> Services:
    """Two, with two hosts each; the agents translate their port to one of nginx."""
    one = replace(web(hosts[:2]), ports=PortRange(PORT, PORT), probe=PROBE)
    two = replace(web(hosts[2:]), ports=PortRange(PORT, PORT), probe=PROBE, name="files")
    backends = [replace(backend, name=backend.name.replace("web", "files")) for backend in two.backends]
    return one, replace(two, vip=type(one.vip)(FILES_VIP), backends=tuple(backends))


def rename_one(now: Services) -> Services:
    first, *others = now[0].backends
    return replace(now[0], backends=(replace(first, name="fresh"), *others)), now[1]


def rename_all(now: Services) -> Services:
    backends = [replace(backend, name=f"new-{number}") for number, backend in enumerate(now[0].backends)]
    return replace(now[0], name="shop", backends=tuple(backends)), now[1]


def swap_backends(now: Services) -> Services:
    one, two = now[0].backends
    return replace(now[0], backends=(replace(one, address=two.address), replace(two, address=one.address))), now[1]


def swap_vips(now: Services) -> Services:
    return replace(now[0], vip=now[1].vip), replace(now[1], vip=now[0].vip)


def change_ports(now: Services) -> Services:
    one, two = (
        replace(service, backends=tuple(replace(backend, port=80) for backend in service.backends)) for service in now
    )
    return one, two


CASES: dict[str, Callable[[Services], Services]] = {
    "rename one backend": rename_one,
    "rename a service and all its backends": rename_all,
    "swap two backends' addresses": swap_backends,
    "swap two services' VIPs": swap_vips,
    "change the ports of all backends": change_ports,
}


def test_names_addresses_vips_and_ports_change_under_load_and_no_connection_breaks() -> None:
    with Fleet(Routers.BIRD, muxes=2, hosts=4) as fleet:
        now = services(fleet.hosts)
        fleet.start(now)
        fleet.wait_in_service()
        pids = {node.name: process.pid for node in fleet.nodes for process in node.processes.values()}
        loads = [
            KeepAlive(fleet, vip, PORT, count=CONNECTIONS, interval=INTERVAL, requests=REQUESTS).start()
            for vip in (WEB_VIP, FILES_VIP)
        ]
        began, answers = time.monotonic(), sum(load.answers for load in loads)
        rows = []
        try:
            for name, change in CASES.items():
                now, start = change(now), time.monotonic()
                fleet.apply(now)
                took = time.monotonic() - start
                time.sleep(AFTER)
                rows.append((name, start, took))
                wait_for(lambda: fleet.connected() == len(fleet.nodes), "every node to follow the manager", 20)
            rate = (sum(load.answers for load in loads) - answers) / (time.monotonic() - began)
            refused = [
                event for event in fleet.ask("events") if "refused" in event["text"] or "leaves out" in event["text"]
            ]
            fleet.wait_states(now[0].name, {backend.name: "up" for backend in now[0].backends})
        finally:
            for load in loads:
                load.close()
        broken = [life for load in loads for life in load.lives() if life.flow.broken]
        print(f"\n{table(rows, broken)}\nunder {rate:,.0f} requests/s")
        assert refused == []
        assert broken == []
        assert pids == {node.name: process.pid for node in fleet.nodes for process in node.processes.values()}
        assert rate >= reachable(0.75 * RATE)


def table(rows: Sequence[tuple[str, float, float]], broken: Sequence[Life]) -> str:
    lines = [f"{'change':<42}{'took':>9}{'broken':>8}"]
    for (name, start, took), following in zip(rows, [*(row[1] for row in rows[1:]), float("inf")], strict=True):
        count = sum(start <= (life.ended or 0.0) < following for life in broken)
        lines.append(f"{name:<42}{took:>7.2f} s{count:>8}")
    return "\n".join(lines)
