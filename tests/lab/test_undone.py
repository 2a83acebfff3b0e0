# SPDX-License-Identifier: Apache-2.0
"""Whatever another program undoes, on any node of a fleet, under a thousand requests a second: soon it is whole again.

Connections that are there outlive it, for their packets are sent again; those that begin at that moment may be lost.
What a node does about it alone is told by the tests of kept things of MUX and agent.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab import netns
from tests.lab.accounts import unbalanced
from tests.lab.fleet import Fleet
from tests.lab.pace import allowed, reachable
from tests.lab.process import Process, wait_for
from tests.lab.services import WEB_VIP, probed
from tests.lab.topology import Node
from tests.lab.traffic import KeepAlive

pytestmark = pytest.mark.lab

#: How soon everything is whole again, seconds.
SOON = 2.0
#: More than a thousand requests a second.
CONNECTIONS, INTERVAL, RATE = 130, 0.1, 1000
OF_A_MUX = ("nft flush ruleset", "ip rule flush", "tc qdisc add dev eth0 clsact; tc qdisc del dev eth0 clsact")
OF_A_HOST = (
    "nft flush ruleset",
    "ip addr flush dev lo label lo:vipmux",
    "tc qdisc del dev eth0 clsact",
    "ip rule flush",
    "ip route flush table 19522; ip route flush table local proto 177",
    "nft flush ruleset; ip addr flush dev lo label lo:vipmux; tc qdisc del dev eth0 clsact; ip rule flush",
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(muxes=2, hosts=2) as started:
        started.start(probed(started.hosts))
        started.wait_in_service()
        yield started


class Newcomers:
    """New connections, one after the other; when those began that were not served."""

    def __init__(self, fleet: Fleet) -> None:
        self.failed: list[float] = []
        self.served = 0
        self.slowest = 0.0  # of those that were, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: netns.inside(fleet.client, self._come))
        self._thread.start()

    def _come(self) -> None:
        while not self._stop.wait(0.01):
            began = time.monotonic()
            try:
                # Longer than the first SYN's retransmission, which may be what is served.
                with socket.create_connection((WEB_VIP, 80), timeout=allowed(SOON) + 1) as connection:
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    self.served += connection.recv(100).startswith(b"HTTP/1.1 200")
                self.slowest = max(self.slowest, time.monotonic() - began)
            except OSError:
                self.failed.append(began)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def daemon(fleet: Fleet, node: Node) -> Process:
    return node.processes["mux" if node in fleet.muxes else "agent"]


def said(fleet: Fleet, node: Node) -> int:
    return len(re.findall(r'event="(?:put back|interface opened again)"', daemon(fleet, node).output()))


def undo(node: Node, command: str) -> None:
    subprocess.run(["ip", "netns", "exec", node.namespace, "sh", "-c", command], check=True, capture_output=True)


def interface_made_again(fleet: Fleet, node: Node) -> None:
    bridge, network = ("brm", 1) if node in fleet.muxes else ("brh", 3)
    netns.ip("-n", node.namespace, "link", "del", "eth0")
    batch = [f"link add name to{node.name} type veth peer name eth0 netns {node.namespace}"]
    netns.batch([*batch, f"link set to{node.name} master {bridge} up"], fleet.router)
    batch = [f"addr add {node.address}/24 dev eth0", "link set eth0 up", f"route add default via 10.0.{network}.1"]
    netns.batch(batch, node.namespace)


def breaks(fleet: Fleet) -> Iterator[tuple[Node, str, Callable[[], None]]]:
    for nodes, commands in ((fleet.muxes, OF_A_MUX), (fleet.hosts, OF_A_HOST)):
        for number, command in enumerate(commands):
            node = nodes[number % len(nodes)]
            yield node, command, lambda node=node, command=command: undo(node, command)  # type: ignore[misc]
        yield nodes[0], "eth0 deleted and made again", lambda node=nodes[0]: interface_made_again(fleet, node)  # type: ignore[misc]


def test_what_is_undone_on_any_node_under_load_is_whole_again_soon(fleet: Fleet) -> None:
    load = KeepAlive(fleet, WEB_VIP, 80, count=CONNECTIONS, interval=INTERVAL).start()
    newcomers = Newcomers(fleet)
    began, answers, rows = time.monotonic(), load.answers, []
    try:
        for node, what, act in breaks(fleet):
            lines, failed, newcomers.slowest = said(fleet, node), len(newcomers.failed), 0.0
            act()
            broke = time.monotonic()
            if "qdisc add" not in what:  # of which a MUX has nothing to lose
                wait_for(lambda: said(fleet, node) > lines, f"{node.name} to say what was put back after {what}")  # noqa: B023
            time.sleep(SOON)
            late = [at - broke for at in newcomers.failed[failed:] if at - broke > allowed(SOON)]
            lost = f"{len(newcomers.failed) - failed} lost, the slowest served in {newcomers.slowest:.2f} s"
            rows.append(f"{node.name}: {what}: new connections: {lost}")
            assert late == [], rows
            fleet.wait_in_service()
        rate = (load.answers - answers) / (time.monotonic() - began)
        load.one_more_answer()
    finally:
        newcomers.close()
        load.close()
        print("", *rows, sep="\n")
    print(f"{rate:,.0f} requests/s, {newcomers.served:,} new connections, longest wait {load.slowest:.2f} s")
    assert [flow for flow in load.flows() if flow.broken] == []
    assert rate >= reachable(RATE)
    assert unbalanced(fleet) == []
