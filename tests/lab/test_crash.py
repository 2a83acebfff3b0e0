# SPDX-License-Identifier: Apache-2.0
"""Daemons that start, stop, are killed and come back: what clients see, and what is left on the machines."""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lb.model import IoMode
from tests.lab import netns
from tests.lab.pace import allowed
from tests.lab.prediction import choices
from tests.lab.process import Process, wait_for
from tests.lab.services import FILES_VIP, LOAD_PORT, LOAD_VIP, WEB_VIP, files, load, web
from tests.lab.topology import PROGRAMS, Lab, Node
from tests.lab.traffic import Capture, KeepAlive, checksum, download, requests

pytestmark = pytest.mark.lab

VIPS = (WEB_VIP, FILES_VIP, LOAD_VIP)
#: Tests in which nothing depends on how packets come in.
ONE_MODE = pytest.mark.parametrize("lab", [IoMode.PACKET], ids=["packet"], indirect=True)


@pytest.fixture(scope="module", params=[IoMode.PACKET, IoMode.XDP, IoMode.TUN], ids=lambda io: io.value)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two MUXes, three hosts, every service on every host, over each I/O mode."""
    with Lab(io=request.param) as started:
        started.start((web(started.hosts), files(started.hosts), load(started.hosts)))
        yield started


def received_packets(namespace: str) -> int:
    links = json.loads(netns.ip("-n", namespace, "-s", "-j", "link", "show", "dev", "eth0"))
    return int(links[0]["stats64"]["rx"]["packets"])


def traces(node: Node) -> dict[str, str]:
    """What of ours can be seen on a machine: nftables, tc, devices, addresses, routes, the socket."""

    def command(*argv: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", node.namespace, *argv], capture_output=True, text=True, check=True
        ).stdout

    return {
        "nftables": command("nft", "list", "ruleset"),
        "filters": command("tc", "filter", "show", "dev", "eth0", "ingress"),
        "devices": " ".join(sorted(link["ifname"] for link in json.loads(command("ip", "-j", "link")))),
        "addresses": command("ip", "-o", "-4", "address", "show", "scope", "global"),
        "routes": command("ip", "route", "show", "table", "all", "type", "unicast"),
        "sockets": " ".join(path.name for path in node.state_dir.glob("*.sock")),
    }


@contextlib.contextmanager
def capture(lab: Lab) -> Iterator[Capture]:
    tap = Capture(lab)
    try:
        yield tap
    finally:
        tap.close()


def test_kernel_of_a_killed_mux_answers_no_client_and_a_restart_serves_again(all_running: Lab) -> None:
    """Both MUXes are killed and the routes stay; connections that began meanwhile are served after the restart."""
    lab = all_running
    with lab.guardian.blind(), capture(lab) as seen:
        for mux in lab.muxes:
            lab.kill_mux(mux)
        before = sum(received_packets(mux.namespace) for mux in lab.muxes)
        waiting = netns.inside(lab.client, lambda: [begin_connection(vip) for vip in (WEB_VIP, FILES_VIP) * 10])
        netns.inside(lab.client, throw_everywhere)
        wait_for(
            lambda: sum(received_packets(mux.namespace) for mux in lab.muxes) >= before + 29, "the packets to arrive"
        )
        assert [seen.resets(vip) for vip in VIPS] == [0, 0, 0]
        assert seen.icmp_errors(*VIPS, *(str(mux.address) for mux in lab.muxes)) == 0
        for mux in lab.muxes:
            lab.start_mux(mux)
        for connection in waiting:
            with connection:
                wait_writable(connection)
                connection.settimeout(10)
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert seen.icmp_errors(*VIPS) == 0


def begin_connection(vip: str) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    assert connection.connect_ex((vip, 80)) == errno.EINPROGRESS
    return connection


def wait_writable(connection: socket.socket) -> None:
    assert select.select([], [connection], [], 10)[1], "the connection was not served after the restart"


def throw_everywhere() -> None:
    """UDP to a service, to a port without one, and to a TCP service's port, on every VIP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for vip in VIPS:
            for port in (LOAD_PORT, 9, 80):
                sender.sendto(b"x", (vip, port))


def test_killed_mux_breaks_no_connection_whose_choice_stayed(all_running: Lab) -> None:
    lab = all_running
    keep_alive = KeepAlive(lab, WEB_VIP, 80, count=60).start()
    killed = lab.kill_mux(lab.muxes[0])
    withdrawn = wait_for(lambda: lab.guardian.withdrawn_at("mux1", killed), "the routes to leave mux1")
    assert withdrawn is not None
    assert withdrawn - killed <= allowed(0.3)
    keep_alive.one_more_answer()
    lab.start_mux(lab.muxes[0])
    flows = keep_alive.stop()
    expected = choices(lab.mux_settings(lab.muxes[0]), lab.services, flows)
    assert [flow for flow in flows if flow.broken or f"web-{flow.host}" != expected[flow.source_port]] == []


def test_muxes_that_are_all_killed_and_started_again_go_on_with_every_connection(all_running: Lab) -> None:
    """Also with those whose choice has moved, which nobody else knows: the routes stay, and there is nobody else."""
    lab = all_running
    services = lab.services
    two = tuple(replace(service, backends=service.backends[:2]) for service in services)
    lab.publish(two)
    keep_alive = KeepAlive(lab, WEB_VIP, 80, count=300, patience=60).start()
    keep_alive.one_more_answer()
    lab.publish(services)
    for _ in range(2):  # the second time, what was taken over must be taken over
        with lab.guardian.blind():
            for mux in lab.muxes:
                lab.kill_mux(mux)
            lab.start_daemons(lab.muxes)
        keep_alive.one_more_answer()
    flows = keep_alive.stop()
    expected = choices(lab.mux_settings(lab.muxes[0]), services, flows)
    assert [flow for flow in flows if flow.broken] == []
    assert sum(f"web-{flow.host}" != expected[flow.source_port] for flow in flows) > len(flows) // 6


def test_planned_stop_of_a_mux_loses_no_request(all_running: Lab) -> None:
    lab = all_running
    keep_alive = KeepAlive(lab, WEB_VIP, 80, count=30).start()
    assert lab.stop_mux(lab.muxes[1]) == 0
    assert requests(lab, f"http://{WEB_VIP}/", 100)["failed"] == 0
    lab.start_mux(lab.muxes[1])
    assert [flow for flow in keep_alive.stop() if flow.broken] == []


@ONE_MODE
def test_mux_own_port_works_while_lb_mux_starts_reloads_dies_and_returns(all_running: Lab) -> None:
    """A listener on the MUX's own address stands in for its SSH and BGP."""
    lab = all_running
    mux = lab.muxes[0]
    configuration = mux.directory / "own.conf"
    configuration.write_text(
        f"daemon off; user root; pid {mux.directory}/own.pid; error_log {mux.directory}/own.log;"
        "events {} http { access_log off; keepalive_requests 1000000;"
        'server { listen 179; location / { return 200 "own\\n"; } } }'
    )
    argv: list[str | Path] = ["nginx", "-e", mux.directory / "own.log", "-c", configuration]
    listener = Process("the MUX's own listener", mux.namespace, argv, mux.directory / "own.out")
    mux.processes["own"] = listener
    wait_for((mux.directory / "own.pid").exists, "the MUX's own listener")
    own = KeepAlive(lab, str(mux.address), 179, count=5, interval=0.02, patience=5).start()
    lab.publish(lab.services)
    own.one_more_answer()
    lab.kill_mux(mux)
    own.one_more_answer()
    lab.start_mux(mux)
    own.one_more_answer()
    assert lab.stop_mux(mux) == 0
    own.one_more_answer()
    lab.start_mux(mux)
    assert [flow for flow in own.stop() if flow.broken] == []
    assert own.slowest < allowed(1.0)
    listener.stop()


@ONE_MODE
def test_clean_stop_of_a_mux_leaves_nothing(all_running: Lab) -> None:
    lab = all_running
    mux = lab.muxes[0]
    assert lab.stop_mux(mux) == 0
    left = traces(mux)
    assert left["nftables"] == ""
    assert left["filters"] == ""
    assert left["devices"] == "eth0 lo"
    assert left["sockets"] == ""
    assert not any(vip in left["routes"] for vip in VIPS)
    lab.start_mux(mux)


@ONE_MODE
def test_stopping_killing_and_starting_an_agent_cuts_no_connection(all_running: Lab) -> None:
    lab = all_running
    translated = KeepAlive(lab, WEB_VIP, 80, count=30).start()
    plain = KeepAlive(lab, FILES_VIP, 80, count=30).start()
    host = lab.hosts[0]
    for end in (Process.stop, Process.kill):
        end(host.processes["agent"])
        translated.one_more_answer()
        plain.one_more_answer()
        assert requests(lab, f"http://{WEB_VIP}/", 60)["failed"] == 0
        lab.start_agent(host)
    assert [flow for flow in [*translated.stop(), *plain.stop()] if flow.broken] == []


@ONE_MODE
def test_agent_cleanup_leaves_the_host_as_it_was(all_running: Lab) -> None:
    lab = all_running
    host = lab.hosts[2]
    assert host.processes["agent"].stop() == 0
    kept = traces(host)
    assert FILES_VIP in kept["addresses"] or any(FILES_VIP in text for text in kept.values())
    done = subprocess.run(
        ["ip", "netns", "exec", host.namespace, PROGRAMS / "lb-agent", "cleanup", "--config", host.config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = traces(host)
    assert left["nftables"] == ""
    assert left["filters"] == ""
    assert left["devices"] == "eth0 lo"
    assert not any(vip in left["addresses"] for vip in VIPS)
    lab.start_agent(host)
    assert requests(lab, f"http://{WEB_VIP}/", 100)["failed"] == 0


@ONE_MODE
def test_everything_serves_after_all_this(all_running: Lab) -> None:
    assert download(all_running, f"http://{FILES_VIP}/big") == checksum(all_running.big_file)
