# SPDX-License-Identifier: Apache-2.0
"""``make demo``: the demo with a whole control plane, where a router learns the VIPs by BGP.

Run as root: ``.venv/bin/python -m tests.lab.demo_fleet [--io xdp]``. What is done and counted is
:mod:`tests.lab.demo`'s; here services come to a manager by ``lb apply``, nodes follow it, and it is killed as well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lb.model import Probe, ProbeType, Service
from tests.lab import netns
from tests.lab.demo import Demo, io_mode, perform, say
from tests.lab.fleet import Fleet
from tests.lab.process import Process, wait_for
from tests.lab.services import FILES_VIP, WEB_VIP, drained, files, web
from tests.lab.topology import Node
from tests.lab.traffic import Flow

#: Patient, for the demo may run on a busy machine.
PROBE = Probe(ProbeType.TCP, interval=1.0, timeout=1.0)


class FleetDemo(Demo):
    """The same paragraphs, with a manager and BGP."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.fleet = fleet

    def start(self) -> None:
        began = time.monotonic()
        services = self.services(self.two)
        self.fleet.start(services)
        self.fleet.wait_live(services)
        self.history.append(services)
        muxes = ", ".join(f"{mux.name} ({self.lab.status(mux)['io']})" for mux in self.lab.muxes)
        hosts = ", ".join(host.name for host in self.lab.hosts)
        decap = self.lab.get(self.lab.hosts[0], "agents")[0]["mode"]
        say(f"  up in {time.monotonic() - began:.1f} s: {muxes}; {hosts} (decap {decap})")
        say("  all have joined the manager, and follow it over mutual TLS")
        say(f"  {WEB_VIP}:80 goes to port 8080 of host1 and host2 (translated)")
        say(f"  {FILES_VIP}:80 goes to port 80 of the same (not translated)")
        self.routes("What the router has learned by BGP")

    @staticmethod
    def services(hosts: Sequence[Node]) -> tuple[Service, ...]:
        return replace(web(hosts), probe=PROBE), replace(files(hosts), probe=PROBE)

    def routes(self, title: str) -> None:
        say(f"\n{title} (ip route)")
        shown = netns.ip("-n", self.lab.router, "route", "show", "proto", "bird")
        for line in shown.splitlines():
            say("  " + line.replace("\t", "    ").rstrip())

    def change(self) -> None:
        say("\nLive changes, with connections open")
        self.open_connections(60, 20000)
        say(f"\n  {'what was done':<34}{'took':>10} {'answers':>9} {'broken':>8}")
        self.step("lb apply: host3 for both services", lambda: self.publish(self.services(self.lab.hosts)))
        drain = tuple(drained(service, "host1") for service in self.services(self.lab.hosts))
        self.step("lb apply: drain host1", lambda: self.publish(drain))
        self.open_connections(60, 21000)
        self.step("kill the manager with SIGKILL", self.kill_manager)
        self.step("kill mux1 with SIGKILL", self.kill)
        self.step("start mux1 again", self.restart)
        self.step("start the manager again", self.restart_manager)
        self.new_connections()

    def publish(self, services: tuple[Service, ...]) -> None:
        self.fleet.apply(services)
        self.fleet.wait_live(services)
        self.history.append(services)

    def kill_manager(self) -> str:
        self.fleet.manager.processes["manager"].kill()
        return "every node goes on with its last good state"

    def kill(self) -> str:
        return super().kill().replace("the lab, standing in for BGP", "the router's kernel, by BGP")

    def restart(self) -> str:
        self.fleet.revive(self.lab.muxes[0])
        for service in self.history[-1]:
            self.fleet.wait_hops(str(service.vip.network_address), *self.lab.muxes)
        return "back in the routes, from the state on its disk"

    def restart_manager(self) -> str:
        before = len(self.fleet.watch.changes)
        self.fleet.revive(self.fleet.manager)
        wait_for(lambda: self.fleet.connected() == len(self.lab.nodes), "every node to be connected again", 30)
        changes = len(self.fleet.watch.changes) - before
        if changes:
            self.failures.append(f"the manager's return changed {changes} routes")
        return f"every node is connected again; routes changed meanwhile: {changes}"

    def judge_moved(self, moved: Sequence[Flow]) -> None:
        """Each MUX had told the others of them."""
        self.forbid_broken(moved)

    def stop(self) -> None:
        """All at once: each MUX says farewell to its routers first, which takes a moment."""
        nodes = [*self.lab.muxes, *self.lab.hosts, self.fleet.manager]
        processes = [process for node in nodes for name, process in node.processes.items() if name != "nginx"]
        with ThreadPoolExecutor(len(processes)) as pool:
            codes = list(pool.map(Process.stop, processes))
        self.failures += [f"{p.name} ended with {code}" for p, code in zip(processes, codes, strict=True) if code]


def main() -> int:
    io = io_mode()
    say("vipmux demo: client - router (BIRD) - 2 MUXes - 3 hosts - manager, in namespaces")
    return perform(Fleet(io=io), FleetDemo)


if __name__ == "__main__":
    sys.exit(main())
