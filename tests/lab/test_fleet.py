# SPDX-License-Identifier: Apache-2.0
"""A whole fleet, manager and BGP included: services come by ``lb apply``, and whatever is killed, the budget holds.

What each death cost is measured and printed as a table at the end (``pytest -s`` shows it while tests pass).
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest

from lb.model import Probe, ProbeType, Service
from tests.lab import netns
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet, exabgp_of, helper_of, kill
from tests.lab.process import in_namespace, wait_for
from tests.lab.routers import Routers, missing, withdrawn_at
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import PROGRAMS, Node
from tests.lab.traffic import Flow, KeepAlive, requests

pytestmark = pytest.mark.lab

NEW_VIP = "203.0.113.40"
#: A probe may wait long for its answer: this machine may be busy with other things than the lab.
PROBE = Probe(ProbeType.TCP, interval=0.5, timeout=0.5, rise=2, fall=2)
#: From a SIGKILL of lb-mux, ExaBGP or its helper to the router's kernel, seconds.
WITHDRAWN = {Routers.BIRD: 0.3, Routers.FRR: 0.6}
APPLY_BUDGET = 2.0
#: 2,000 requests a second, if the machine has time for them.
CONNECTIONS, INTERVAL = 200, 0.1


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


def patience() -> float:
    """How many times slower this machine is with what else it does: times count where it has time for us."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def services(hosts: list[Node]) -> tuple[Service, ...]:
    return replace(web(hosts), probe=PROBE), replace(files(hosts), probe=PROBE)


@pytest.fixture(scope="module", params=[Routers.BIRD, Routers.FRR], ids=lambda routers: routers.value)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    routers: Routers = request.param
    if why := missing(routers):
        pytest.skip(why)
    with Fleet(routers) as started:
        started.start(services(started.hosts))
        yield started


@pytest.fixture(scope="module")
def report(fleet: Fleet) -> Iterator[Report]:
    rows = Report()
    yield rows
    print(rows.text(fleet.routers))


@pytest.fixture
def whole(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet in service; afterwards the counters add up."""
    in_service(fleet)
    yield fleet
    assert unbalanced(fleet) == []


def in_service(fleet: Fleet) -> None:
    """Both MUXes announced, and every backend up on both."""
    for service in services(fleet.hosts):
        vip = str(service.vip.network_address)
        fleet.wait_hops(vip, *fleet.muxes)
        fleet.wait_states(service.name, {f"{service.name}-{host.name}": "up" for host in fleet.hosts})


def only_bird(fleet: Fleet) -> None:
    if fleet.routers is not Routers.BIRD:
        pytest.skip("the router has no part in this: BIRD's run is enough")


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


def test_an_applied_service_is_served_within_two_seconds_and_deleted_leaves_no_route(whole: Fleet) -> None:
    fleet = whole
    new = replace(web(fleet.hosts), name="new", vip=ip_network(NEW_VIP), probe=PROBE)
    file = fleet.write_services([new])
    operator = in_namespace(fleet.manager.namespace, [PROGRAMS / "lb", "apply", "-f", file])
    began = time.monotonic()
    with subprocess.Popen(operator, env=fleet.environment, stdout=subprocess.DEVNULL) as applying:
        wait_for(lambda: netns.inside(fleet.client, lambda: try_once(NEW_VIP)), "the first served request", 20)
        took = time.monotonic() - began
        assert applying.wait(20) == 0
    print(f"\n{fleet.routers.value}: lb apply to the first served request: {took * 1000:,.0f} ms")
    fleet.lb("delete", "service", "new")
    fleet.wait_hops(NEW_VIP)
    assert took <= APPLY_BUDGET * patience()


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
    assert at - since <= WITHDRAWN[fleet.routers]
    return f"withdrawn after {(at - since) * 1000:.0f} ms"


def nobody(fleet: Fleet, since: float) -> str:
    return "by nobody"


def backend_down(fleet: Fleet, since: float) -> str:
    """The verdict of the agent, and how much later the last MUX sent nothing new there any more."""
    host, wall = fleet.hosts[0], time.time() - time.monotonic()
    moments: dict[str, float] = {}

    def there() -> bool:
        for mux in fleet.muxes:
            if mux.name not in moments and fleet.states(mux, "web").get("web-host1") == "down":
                moments[mux.name] = time.monotonic()
        return len(moments) == len(fleet.muxes)

    wait_for(there, "web-host1 to be down on every MUX", 15)
    verdict = next(row for row in fleet.get(host, "backends") if row["name"] == "web-host1")
    told = verdict["since"] - wall
    lag = max(moments.values()) - told
    assert lag <= 1.0 * patience()  # 0.1 on a machine with nothing else to do, and looking costs time as well
    return f"agent {told - since:.2f} s, MUXes +{lag * 1000:.0f} ms"


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
#: Where the router has a part.
OF_THE_ROUTER = ("lb-mux", "ExaBGP")


@pytest.mark.parametrize("victim", DEATHS)
def test_a_death_costs_no_more_than_the_budget_allows(whole: Fleet, report: Report, victim: str) -> None:
    fleet, death = whole, DEATHS[victim]
    if victim not in OF_THE_ROUTER:
        only_bird(fleet)
    load = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL).start()
    try:
        answers, began = load.answers, time.monotonic()
        death.strike(fleet)
        noticed = death.noticed(fleet, began)
        load.one_more_answer()
        death.revive(fleet)
        in_service(fleet)
        back = time.monotonic() - began
        load.one_more_answer()
        rate = (load.answers - answers) / (time.monotonic() - began)
    finally:
        load.close()
    broken = [flow for flow in load.flows() if flow.broken]
    report.append(Row(victim, noticed, back, rate, load.slowest, len(broken), death.allowed))
    assert [flow for flow in broken if not death.may_break(fleet, flow)] == []
    assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0


# --- without the manager ---------------------------------------------------------------------------------------------


def test_without_the_manager_all_restart_and_serve_and_its_return_makes_nothing_flap(whole: Fleet) -> None:
    fleet = whole
    only_bird(fleet)
    load = KeepAlive(fleet, WEB_VIP, 80, count=60, interval=INTERVAL).start()
    try:
        fleet.manager.processes["manager"].kill()
        fleet.muxes[0].processes["mux"].kill()
        fleet.hosts[0].processes["agent"].kill()
        fleet.start_daemons([fleet.muxes[0], fleet.hosts[0]])
        in_service(fleet)
        load.one_more_answer()
        assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
        quiet_since = time.monotonic()
        published = fleet.muxes[1].processes["mux"].output().count('event="configuration published"')
        fleet.revive(fleet.manager)
        wait_for(lambda: fleet.connected() == len(fleet.nodes), "every node to be connected again", 60)
        in_service(fleet)
        load.one_more_answer()
    finally:
        load.close()
    assert [flow for flow in load.flows() if flow.broken] == []
    assert [change for change in fleet.watch.changes if change.at >= quiet_since] == []
    assert fleet.muxes[1].processes["mux"].output().count('event="configuration published"') == published


# --- panic -----------------------------------------------------------------------------------------------------------


def test_all_backends_failing_at_once_is_panic_in_words_and_no_route_changes_when_they_fail_or_return(
    whole: Fleet,
) -> None:
    fleet = whole
    only_bird(fleet)
    began = time.monotonic()
    for _ in range(3):  # who notices first is another one each time
        for host in fleet.hosts:
            host.processes["nginx"].kill()
        wait_for(
            lambda: "PANIC: only 0 of 3" in fleet.lb("describe", "service", "web"), "the panic to be described", 30
        )
        time.sleep(2.0)  # nobody is told of what must not happen, so it is given the time to
        words = fleet.lb("describe", "service", "web")
        for host in fleet.hosts:
            fleet.start_web_server(host)
        wait_for(lambda: "PANIC: " not in fleet.lb("get", "services"), "the panic to end", 30)
        in_service(fleet)
    print("\n" + words)
    assert "the last good set stays in service" in words
    assert "its agent says:" in words
    assert [change for change in fleet.watch.changes if change.at >= began] == [], "the policy is always"
    wait_for(lambda: requests(fleet, f"http://{WEB_VIP}/", 30)["failed"] == 0, "everything to be served again", 30)
