# SPDX-License-Identifier: Apache-2.0
"""Twice as many packets as a MUX can take, for longer than three BGP hold times: what is lost is packets, and not the
MUX. What it loses is counted and told, and its end as well; what it needs to stay alive goes before the packets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest

from lb.doctor.model.findings import Severity
from lb.model import Backend, IoMode, Service
from lb.probe.scheduler import spread
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet
from tests.lab.flood import Flood
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.routers import HOLD, Routers
from tests.lab.services import DETECT, FILES_VIP, PROBE, probed, web
from tests.lab.topology import PUBLISHED, Node
from tests.lab.traffic import KeepAlive

pytestmark = [pytest.mark.lab, pytest.mark.timed]

FLOODED_VIP, PORT = "203.0.113.66", 80
#: At least so long, seconds.
LONG = 3 * HOLD + 2
OVER = "no longer saturated; it lost"


def flooded(hosts: list[Node]) -> Service:
    """A service of the second host alone."""
    backends = (Backend("flooded-host2", hosts[1].address),)
    return replace(web(hosts), name="flooded", vip=ip_network(FLOODED_VIP), backends=backends)


@pytest.fixture(
    scope="module",
    params=[(Routers.BIRD, IoMode.PACKET), (Routers.FRR, IoMode.XDP), (Routers.FRR, IoMode.TUN)],
    ids=lambda param: f"{param[0].value}-{param[1].value}",
)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    routers, io = request.param
    with Fleet(routers, muxes=1, hosts=3, io=io) as started:
        started.start([*probed(started.hosts), flooded(started.hosts)])
        started.wait_in_service()
        yield started


@dataclass(frozen=True, slots=True)
class Moment:
    """What was offered, and what became of it, so far."""

    at: float
    offered: int
    forwarded: int
    missed: int
    dropped: int

    @classmethod
    def now(cls, fleet: Fleet, flood: Flood) -> Moment:
        row = fleet.status(fleet.muxes[0])
        return cls(time.monotonic(), flood.offered, row["forwarded"], row["missed"], row["dropped"])


def test_twice_what_a_mux_can_take_costs_packets_and_neither_bgp_nor_manager_nor_health_nor_another_vip(
    fleet: Fleet,
) -> None:
    mux, host = fleet.muxes[0], fleet.hosts[0]
    log = mux.processes["mux"]
    before = fleet.status(mux)
    assert (before["missed"], before["saturated"]) == (0, None)
    others = KeepAlive(fleet, FILES_VIP, PORT, count=20, interval=0.2, patience=30).start()
    began = time.monotonic()
    try:
        with Flood(fleet, mux, FLOODED_VIP, PORT) as flood:
            wait_for(lambda: fleet.status(mux)["saturated"], "the MUX to find that it is saturated")
            first = Moment.now(fleet, flood)
            wait_for(lambda: fleet.ask("muxes")[0]["saturated"], "the manager to know it", allowed(5))
            table = " ".join(fleet.lb("get", "muxes").split())
            found = {finding.check: finding for finding in fleet.examine()}
            struck = time.time()
            host.processes["nginx"].kill()
            wait_for(lambda: log.stamps(PUBLISHED, struck), "the MUX to take the backend out")
            out = log.stamps(PUBLISHED, struck)[0] - struck
            late = KeepAlive(fleet, FILES_VIP, PORT, count=20, interval=0.1, patience=30).start()
            time.sleep(max(0.0, began + LONG - time.monotonic()))
            late.close()
            last = Moment.now(fleet, flood)
        wait_for(lambda: fleet.status(mux)["saturated"] is None, "it to be over")
        wait_for(lambda: any(text.startswith(OVER) for text in events(fleet, mux)), "the manager to know that as well")
        flows = others.stop()
    finally:
        others.close()
        if not host.processes["nginx"].running:
            fleet.start_web_server(host)
    seconds = last.at - first.at
    offered, forwarded, missed, dropped = (
        (getattr(last, what) - getattr(first, what)) / seconds for what in ("offered", "forwarded", "missed", "dropped")
    )
    print(
        f"\n{seconds:.1f} s: {offered:,.0f} packets/s offered, {forwarded:,.0f} forwarded, {missed:,.0f} missed, "
        f"{dropped:,.0f} shed; {table}\na dead backend was out after {out:.2f} s, of which probes have {DETECT:.1f}; "
        f"another VIP's slowest answer took {others.slowest:.2f} s, and {late.slowest:.2f} s once the flood was shed"
    )
    assert missed + dropped > forwarded, "more than twice what it takes was offered"
    # Told in words, wherever somebody looks.
    words = log.wait_output(r'event=saturated reason="(loses [^"]+)"')[1]
    assert "its worker is saturated; service flooded has" in words
    assert "mux1: loses" in table
    assert found["saturated"].severity is Severity.FAULT
    assert "mux1" in found["saturated"].what, "by the manager's word, or by that of the MUX's own look"
    assert " loses " in found["saturated"].what
    assert [text for text in events(fleet, mux) if text.startswith("saturated")] == [f"saturated: {words}"]
    # And nothing but packets was lost.
    changes = [change for change in fleet.watch.changes if change.at >= began and change.vip.startswith("203.0.113.")]
    assert changes == [], "no route to a VIP was taken away"
    assert "BGP session down" not in log.output()
    for node in fleet.nodes:
        assert "no manager" not in node.processes["mux" if node is mux else "agent"].output()
    assert out <= allowed(DETECT + spread(PROBE) + 1.0)
    assert [flow for flow in flows if flow.broken and flow.host != host.name] == []
    assert [flow for flow in flows if not flow.broken] != []
    assert unbalanced(fleet) == []


def events(fleet: Fleet, mux: Node) -> list[str]:
    """What the manager tells of the MUX, the oldest first."""
    return [str(row["text"]) for row in fleet.ask("events") if row["subject"] == f"mux {mux.name}"]
