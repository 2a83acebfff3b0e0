# SPDX-License-Identifier: Apache-2.0
"""A whole fleet, manager and BGP included: services come by ``lb apply``, and whatever is killed, the budget holds.

What each death cost is measured and printed as a table at the end (``pytest -s`` shows it while tests pass). Where the
router plays no part, BIRD's run is the only one.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest

from lb.config.render import format_config
from tests.lab import netns
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet, exabgp_of, helper_of, kill
from tests.lab.pace import allowed, reachable
from tests.lab.process import in_namespace, wait_for
from tests.lab.routers import Routers, missing, withdrawn_at
from tests.lab.services import DETECT, FILES_VIP, PROBE, WEB_VIP, probed, web
from tests.lab.topology import PROGRAMS
from tests.lab.traffic import Flow, KeepAlive, requests

pytestmark = pytest.mark.lab

NEW_VIP = "203.0.113.40"
#: From a SIGKILL of lb-mux, ExaBGP or its helper to the router's kernel, seconds.
WITHDRAWN = {Routers.BIRD: 0.3, Routers.FRR: 0.6}
#: From ``lb apply`` to the first served request, at the median of so many.
APPLY_BUDGET, APPLIES = 2.0, 3
#: So many connections, each of which asks again this long after an answer, make more than RATE requests a second.
CONNECTIONS, INTERVAL, RATE = 240, 0.1, 2000


@dataclass(frozen=True, slots=True)
class Row:
    """One death, and what came of it."""

    victim: str
    noticed: str
    back: float
    rate: float
    slowest: float
    broken: int
    allowed: str


class Report(list[Row]):
    def text(self, routers: Routers) -> str:
        head = f"{'SIGKILL of':<22}{'noticed':<32}{'back':>7}{'req/s':>8}{'slowest':>10}{'broken':>8}  allowed"
        lines = [
            f"{row.victim:<22}{row.noticed:<32}{row.back:>5.1f} s{row.rate:>8,.0f}{row.slowest * 1000:>7.0f} ms"
            f"{row.broken:>8}  {row.allowed}"
            for row in self
        ]
        return "\n".join(["", f"Router: {routers.value}", head, *lines])


@pytest.fixture(scope="module", params=[Routers.BIRD, Routers.FRR], ids=lambda routers: routers.value)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    routers: Routers = request.param
    if why := missing(routers):
        pytest.skip(why)
    with Fleet(routers) as started:
        started.start(probed(started.hosts))
        yield started


@pytest.fixture(scope="module")
def report(fleet: Fleet) -> Iterator[Report]:
    rows = Report()
    yield rows
    print(rows.text(fleet.routers))


@pytest.fixture
def whole(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet in service; afterwards the counters add up."""
    fleet.wait_in_service()
    yield fleet
    assert unbalanced(fleet) == []


# --- apply -----------------------------------------------------------------------------------------------------------


def try_once(vip: str) -> bool:
    """One request on a connection of its own, that gives up soon: a lost SYN would cost a second."""
    with socket.socket() as client:
        client.settimeout(0.1)
        try:
            client.connect((vip, 80))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def time_of_apply(fleet: Fleet) -> float:
    """Seconds from ``lb apply`` of a new service to its first served request; then deletes it again."""
    new = replace(web(fleet.hosts), name="new", vip=ip_network(NEW_VIP), probe=PROBE)
    file = fleet.directory / "new.toml"
    file.write_text(format_config((new,)))
    operator = in_namespace(fleet.manager.namespace, [PROGRAMS / "lb", "apply", "-f", file])
    began = time.monotonic()
    with subprocess.Popen(operator, env=fleet.environment, stdout=subprocess.DEVNULL) as applying:
        wait_for(lambda: netns.inside(fleet.client, lambda: try_once(NEW_VIP)), "the first served request", 20)
        took = time.monotonic() - began
        assert applying.wait(20) == 0
    fleet.lb("delete", "service", "new")
    fleet.wait_hops(NEW_VIP)
    return took


def test_an_applied_service_is_served_within_two_seconds_and_deleted_leaves_no_route(whole: Fleet) -> None:
    took = sorted(time_of_apply(whole) for _ in range(APPLIES))
    shown = " ".join(f"{seconds * 1000:,.0f}" for seconds in took)
    print(f"\n{whole.routers.value}: lb apply to the first served request: {shown} ms")
    assert statistics.median(took) <= allowed(APPLY_BUDGET)


# --- deaths ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """What is killed, what tells that it was noticed, and what brings it back."""

    strike: Callable[[Fleet], object]
    revive: Callable[[Fleet], object]
    #: Returns what was noticed, in words, and asserts that it was in time.
    noticed: Callable[[Fleet, float], str]
    allowed: str = "0"
    #: Whose connections may end with it.
    may_break: Callable[[Fleet, Flow], bool] = lambda fleet, flow: False


def withdrawn(fleet: Fleet, since: float) -> str:
    vips, address = (WEB_VIP, FILES_VIP), str(fleet.muxes[0].address)
    at = wait_for(lambda: withdrawn_at(fleet.watch, vips, address, since), "mux1 to be withdrawn")
    assert at is not None
    assert at - since <= allowed(WITHDRAWN[fleet.routers])
    return f"withdrawn after {(at - since) * 1000:.0f} ms"


def nobody(fleet: Fleet, since: float) -> str:
    return "by nobody"


def backend_down(fleet: Fleet, since: float) -> str:
    """How soon MUXes follow the verdict is measured many times in test_verdicts.py."""
    for mux in fleet.muxes:
        wait_for(lambda mux=mux: fleet.states(mux, "web").get("web-host1") == "down", f"{mux.name} to know", 15)  # type: ignore[misc]
    verdict = next(row for row in fleet.get(fleet.hosts[0], "backends") if row["name"] == "web-host1")
    took = verdict["since"] - (time.time() - time.monotonic()) - since
    assert took <= allowed(DETECT + 0.2)
    return f"by its agent after {took:.2f} s"


def restart(name: str, number: int = 0) -> Callable[[Fleet], object]:
    def revive(fleet: Fleet) -> object:
        return fleet.revive({"mux": fleet.muxes, "agent": fleet.hosts, "manager": [fleet.manager]}[name][number])

    return revive


def on_host1(fleet: Fleet, flow: Flow) -> bool:
    return flow.host == "host1"


DEATHS = {
    "manager": Death(lambda f: f.manager.processes["manager"].kill(), restart("manager"), nobody),
    "lb-mux": Death(lambda f: f.muxes[0].processes["mux"].kill(), restart("mux"), withdrawn),
    "ExaBGP": Death(lambda f: kill(exabgp_of(f.muxes[0])), lambda f: None, withdrawn),
    "ExaBGP's helper": Death(lambda f: kill(helper_of(f.muxes[0])), lambda f: None, withdrawn),
    "lb-agent": Death(lambda f: f.hosts[0].processes["agent"].kill(), restart("agent"), nobody),
    "nginx": Death(
        lambda f: f.hosts[0].processes["nginx"].kill(), lambda f: f.start_web_server(f.hosts[0]), backend_down,
        allowed="its own", may_break=on_host1,
    ),
}  # fmt: skip
#: Those in which the router has a part.
ROUTED = ("lb-mux", "ExaBGP")


@pytest.mark.parametrize("victim", ROUTED)
def test_a_death_that_the_router_hears_of_costs_no_more_than_the_budget(
    whole: Fleet, report: Report, victim: str
) -> None:
    strike(whole, report, victim)


@pytest.mark.parametrize("fleet", [Routers.BIRD], indirect=True, ids=["bird"])
@pytest.mark.parametrize("victim", [victim for victim in DEATHS if victim not in ROUTED])
def test_any_other_death_costs_no_more_than_the_budget(whole: Fleet, report: Report, victim: str) -> None:
    strike(whole, report, victim)


def strike(fleet: Fleet, report: Report, victim: str) -> None:
    """Kills it under load, waits until all is as before, and notes what it cost."""
    death = DEATHS[victim]
    load = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL).start()
    try:
        rate = rate_of(load)
        began = time.monotonic()
        death.strike(fleet)
        noticed = death.noticed(fleet, began)
        load.one_more_answer()
        death.revive(fleet)
        fleet.wait_in_service()
        back = time.monotonic() - began
        load.one_more_answer()
    finally:
        load.close()
    broken = [flow for flow in load.flows() if flow.broken]
    report.append(Row(victim, noticed, back, rate, load.slowest, len(broken), death.allowed))
    assert [flow for flow in broken if not death.may_break(fleet, flow)] == []
    assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
    assert rate >= reachable(RATE)


def rate_of(load: KeepAlive) -> float:
    """Requests a second."""
    answers, began = load.answers, time.monotonic()
    time.sleep(1.0)
    return (load.answers - answers) / (time.monotonic() - began)
