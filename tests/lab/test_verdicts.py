# SPDX-License-Identifier: Apache-2.0
"""What becomes of what probes find: how soon MUXes follow, and that ``lb describe`` explains it in words."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest

from lb.model import Backend, PortRange, Probe, ProbeType, Protocol, Service
from lb.probe.scheduler import spread
from tests.lab import netns
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet
from tests.lab.pace import allowed, reachable
from tests.lab.process import Process, wait_for
from tests.lab.services import DETECT, FILES_VIP, PROBE, WEB_VIP, probed, web
from tests.lab.topology import PUBLISHED, Node
from tests.lab.traffic import KeepAlive, requests

pytestmark = pytest.mark.lab

#: From the agent's verdict to every MUX, seconds, at the median of so many deaths.
BUDGET, TRIES = 0.1, 9
#: 2,000 requests a second.
CONNECTIONS, INTERVAL, RATE = 240, 0.1, 2000


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet() as started:
        started.start(probed(started.hosts))
        yield started


@pytest.fixture
def whole(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet in service; afterwards the counters add up."""
    fleet.wait_in_service()
    yield fleet
    assert unbalanced(fleet) == []


@dataclass(frozen=True, slots=True)
class Extra:
    """A service of its own, with a listener on each host that can be killed without harm to others."""

    fleet: Fleet
    service: Service
    port: int

    def start(self, host: Node) -> None:
        argv = [sys.executable, "-m", "http.server", str(self.port)]
        name = f"listener-{self.port}"
        host.processes[name] = Process(f"{name} on {host.name}", host.namespace, argv, host.directory / f"{name}.log")

    def kill(self, host: Node) -> None:
        host.processes[f"listener-{self.port}"].kill()

    def wait(self, **states: str) -> None:
        """By host; the others are up."""
        names = {backend.name.rpartition("-")[2]: backend.name for backend in self.service.backends}
        wanted = {names[host]: states.get(host, "up") for host in names}
        self.fleet.wait_states(self.service.name, wanted)


@contextlib.contextmanager
def extra(fleet: Fleet, name: str, vip: str, port: int, probe: Probe) -> Iterator[Extra]:
    """The service, up everywhere."""
    backends = tuple(Backend(f"{name}-{host.name}", host.address, port) for host in fleet.hosts)
    service = replace(web(fleet.hosts), name=name, vip=ip_network(vip), backends=backends, probe=probe)
    made = Extra(fleet, service, port)
    before = fleet.services
    for host in fleet.hosts:
        made.start(host)
    fleet.apply([*before, service])
    try:
        made.wait()
        yield made
    finally:
        for host in fleet.hosts:
            made.kill(host)
        fleet.apply(before)


# --- how soon --------------------------------------------------------------------------------------------------------


@pytest.mark.timed
def test_every_mux_follows_the_agents_verdict_within_100_ms_and_nobody_elses_connection_breaks(whole: Fleet) -> None:
    """By the clocks of agent and MUXes themselves; looking would cost more time than there is to measure."""
    fleet, lags = whole, []
    with extra(fleet, "one", "203.0.113.41", 9101, replace(PROBE, rise=1)) as one:
        load = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL).start()
        try:
            answers, began = load.answers, time.monotonic()
            for number in range(TRIES):
                host = fleet.hosts[number % len(fleet.hosts)]
                struck = time.time()
                one.kill(host)
                one.wait(**{host.name: "down"})
                lags.append(followed(fleet, host, struck))
                one.start(host)
                one.wait()
            rate = (load.answers - answers) / (time.monotonic() - began)
        finally:
            load.close()
    shown = " ".join(f"{lag * 1000:.0f}" for lag in sorted(lags))
    print(f"\nagent's verdict to the last MUX: {shown} ms (sorted), at {rate:,.0f} requests/s")
    assert [flow for flow in load.flows() if flow.broken] == []
    assert statistics.median(lags) <= allowed(BUDGET)
    assert rate >= reachable(RATE)


def followed(fleet: Fleet, host: Node, since: float) -> float:
    """How long after the verdict the last MUX sent nothing new there. Where all MUXes found the end through their
    tunnels before the agent did, that was the verdict."""
    down = "event=backend_down .*backend=one/"
    logs = [mux.processes["mux"] for mux in fleet.muxes]

    def verdicts() -> list[float]:
        tunnels = [log.stamps(down, since) for log in logs]
        found = [max(moments[0] for moments in tunnels)] if all(tunnels) else []
        return host.processes["agent"].stamps(down, since)[:1] + found

    verdict = min(wait_for(verdicts, "who found the end to say so"))  # a log may lag behind
    wait_for(lambda: all(log.stamps(PUBLISHED, verdict) for log in logs), "every MUX to say so")
    return max(log.stamps(PUBLISHED, verdict)[0] for log in logs) - verdict


# --- in words --------------------------------------------------------------------------------------------------------


def test_all_backends_failing_at_once_is_panic_in_words_and_no_route_changes_when_they_fail_or_return(
    whole: Fleet,
) -> None:
    fleet = whole
    began = time.monotonic()
    for _ in range(3):  # who notices first is another one each time
        for host in fleet.hosts:
            host.processes["nginx"].kill()
        wait_for(lambda: "PANIC: only 0 of 3" in fleet.describe("web"), "the panic to be described", 30)
        time.sleep(spread(PROBE) + 0.5)  # nobody is told of what must not happen, so it is given the time to
        words = fleet.describe("web")
        for host in fleet.hosts:
            fleet.start_web_server(host)
        wait_for(lambda: "PANIC: " not in fleet.lb("get", "services"), "the panic to end", 30)
        fleet.wait_in_service()
    print("\n" + words)
    assert "the last good set stays in service" in words
    assert "its agent says:" in words
    assert [change for change in fleet.watch.changes if change.at >= began] == [], "the policy is always"
    wait_for(lambda: requests(fleet, f"http://{WEB_VIP}/", 30)["failed"] == 0, "everything to be served again", 30)


def test_a_target_that_flaps_must_be_well_for_longer_and_that_is_described(whole: Fleet) -> None:
    fleet, host = whole, whole.hosts[1]
    agent = host.processes["agent"]
    with extra(fleet, "flap", "203.0.113.42", 9102, PROBE) as flap:
        for fall in (1, 2, 3, 4):
            struck = time.time()
            flap.kill(host)
            # The agent must have counted it: the MUXes may find out first, through their tunnels.
            wait_for(lambda: agent.stamps(r"event=backend_down .*backend=flap/", struck), "the agent to see the fall")  # noqa: B023
            flap.wait(host2="down")
            flap.start(host)
            back = time.monotonic()
            if fall < 4:
                flap.wait()
        why = "went up and down too often: it comes up after 8 successes in a row"
        wait_for(lambda: why in " ".join(fleet.describe("flap").split()), "the damping to be described")
        print("\n" + fleet.describe("flap"))
        flap.wait()
        assert time.monotonic() - back >= 7 * 0.8 * PROBE.interval, "the first of eight, and seven more"


@contextlib.contextmanager
def cut_off(fleet: Fleet, muxes: Sequence[Node], hosts: Sequence[Node]) -> Iterator[None]:
    """The fabric drops what these MUXes send to these hosts in their tunnels; all else passes."""
    pairs = ", ".join(f"{mux.address} . {host.address}" for mux in muxes for host in hosts)
    rule = f"ip protocol 4 ip saddr . ip daddr {{ {pairs} }} drop;"
    rules = f"table ip lab_cut {{\nchain forward {{\ntype filter hook forward priority 0;\n{rule}\n}}\n}}\n"
    netns.ip("netns", "exec", fleet.router, "nft", "-f", "-", stdin=rules)
    try:
        yield
    finally:
        netns.ip("netns", "exec", fleet.router, "nft", "delete table ip lab_cut")


def test_a_mux_that_cannot_reach_a_backend_others_reach_is_named_and_the_backend_stays(whole: Fleet) -> None:
    fleet, (mux1, _), host2 = whole, whole.muxes, whole.hosts[1]
    began = time.monotonic()
    with cut_off(fleet, [mux1], [host2]):
        words = "its agent says: TCP connects; but 1 of 2 MUXes cannot reach it through the tunnel (mux1: connect timed"
        wait_for(lambda: words in " ".join(fleet.describe("web").split()), "the MUX to be named")
        print("\n" + fleet.describe("web"))
        time.sleep(spread(PROBE) + 0.5)
        fleet.wait_in_service()
    wait_for(lambda: "cannot reach it" not in fleet.describe("web").partition("Events")[0], "all to be well again")
    assert [change for change in fleet.watch.changes if change.at >= began] == []


@pytest.mark.timed
def test_a_mux_that_reaches_none_is_withdrawn_and_when_none_reaches_any_one_stays(whole: Fleet) -> None:
    fleet, (mux1, mux2) = whole, whole.muxes
    began = time.monotonic()
    with cut_off(fleet, [mux1], fleet.hosts):
        fleet.wait_hops(WEB_VIP, mux2)
        fleet.wait_hops(FILES_VIP, mux2)
        took = time.monotonic() - began
        print(f"\nmux1 reaches nobody: withdrawn after {took:.1f} s\n{fleet.describe('web')}")
        assert took <= allowed(DETECT + spread(PROBE) + 1.0)
        why = "it reaches no healthy backend through the tunnel, other MUXes do"
        assert why in " ".join(fleet.describe("web").split())
        assert requests(fleet, f"http://{WEB_VIP}/", 60)["failed"] == 0
    fleet.wait_in_service()
    began = time.monotonic()
    with cut_off(fleet, fleet.muxes, fleet.hosts):
        wait_for(lambda: "PANIC: only 0 of 3" in fleet.describe("web"), "the panic to be described", 30)
        assert "2 of 2 MUXes cannot reach it through the tunnel" in " ".join(fleet.describe("web").split())
        time.sleep(spread(PROBE) + 0.5)
        assert fleet.watch.changed(WEB_VIP, lambda hops: not hops, began) is None, "withdraw_cap keeps one"
    fleet.wait_in_service()


@contextlib.contextmanager
def switched_off(fleet: Fleet, host: Node) -> Iterator[None]:
    """The machine is gone without a word; its switch goes on."""
    port = ["bridge", "-n", fleet.router, "link", "set", "dev", f"to{host.name}", "state"]
    subprocess.run([*port, "0"], check=True)
    try:
        yield
    finally:
        subprocess.run([*port, "3"], check=True)


def test_a_host_with_udp_services_alone_that_is_lost_silently_takes_no_more_flows_and_comes_back(whole: Fleet) -> None:
    """Nothing there can be asked through a tunnel; what is there to be seen is that the machine answers no more."""
    fleet, before, lost = whole, whole.services, whole.hosts[2]
    probe = Probe(ProbeType.UDP, interval=0.5, timeout=0.5, rise=2, fall=2)
    port = PortRange(9000, 9000)
    backends = tuple(Backend(f"udp-{host.name}", host.address) for host in fleet.hosts)
    fleet.apply([Service("udp", ip_network("203.0.113.43"), Protocol.UDP, port, backends, probe=probe)])
    servers = [netns.inside(host.namespace, silent_server) for host in fleet.hosts]
    try:
        fleet.wait_in_service()
        for mux in fleet.muxes:
            wait_for(lambda mux=mux: met(fleet, mux) == 3, f"{mux.name} to have heard of each machine")  # type: ignore[misc]
        with switched_off(fleet, lost):
            began = time.monotonic()
            fleet.wait_states("udp", {"udp-host1": "up", "udp-host2": "up", "udp-host3": "down"}, 60)
            print(f"\nlost silently: no new flows {time.monotonic() - began:.1f} s later\n{fleet.describe('udp')}")
            words = " ".join(fleet.describe("udp").split())
            assert "no report from an agent, and 2 of 2 MUXes hear nothing" in words
            assert "10.0.3.23 does not answer any more" in words
        fleet.wait_states("udp", {backend.name: "up" for backend in backends}, 60)
    finally:
        for server in servers:
            server.close()
        fleet.apply(before)


def silent_server() -> socket.socket:
    """It takes what comes, and says nothing."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("", 9000))
    return opened


def met(fleet: Fleet, mux: Node) -> int:
    return sum("its machine is there" in str(row["reason"]) for row in fleet.get(mux, "backends"))
