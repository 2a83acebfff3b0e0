# SPDX-License-Identifier: Apache-2.0
"""``make demo-standalone``: the path at work, changed live under traffic, with an honest account of what clients saw.

Run as root: ``.venv/bin/python -m tests.lab.demo [--io xdp]``. Here MUXes and agents are changed by files and signals,
and routes are set for them; :mod:`tests.lab.demo_fleet`, which is ``make demo``, plays the same with a manager and BGP.
Ends with 1 if a connection broke that must not break.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lb.model import IoMode, Service
from tests.lab.netns import LabError
from tests.lab.prediction import choices
from tests.lab.process import wait_for
from tests.lab.services import FILES_VIP, WEB_VIP, drained, files, web
from tests.lab.topology import Lab, Node
from tests.lab.traffic import Download, Flow, KeepAlive, requests, wrk

L = TypeVar("L", bound=Lab)

URL = f"http://{WEB_VIP}/"
WITHDRAWN_WITHIN = 0.3


def say(text: str = "") -> None:
    print(text, flush=True)


def counts(tally: Counter[str]) -> str:
    return "   ".join(f"{name} {number:,}" for name, number in sorted(tally.items()))


@dataclass(frozen=True, slots=True)
class Step:
    """One live change and what the open connections noticed of it."""

    what: str
    seconds: float
    answers: int
    broken: int


class Demo:
    """Everything that goes on in one lab; each method is a paragraph of what is printed."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.two = lab.hosts[:2]
        self.history: list[tuple[Service, ...]] = []
        self.steps: list[Step] = []
        self.keep_alives: list[tuple[KeepAlive, int]] = []  #: and the index in history at which they began
        self.downloads: list[tuple[Download, int]] = []
        self.failures: list[str] = []

    def start(self) -> None:
        began = time.monotonic()
        services = (web(self.two), files(self.two))
        self.lab.start(services)
        self.history.append(services)
        muxes = ", ".join(f"{mux.name} ({self.lab.status(mux)['io']})" for mux in self.lab.muxes)
        hosts = ", ".join(host.name for host in self.lab.hosts)
        decap = self.lab.get(self.lab.hosts[0], "agents")[0]["mode"]
        say(f"  up in {time.monotonic() - began:.1f} s: {muxes}; {hosts} (decap {decap})")
        say(f"  {WEB_VIP}:80 goes to port 8080 of host1 and host2 (translated)")
        say(f"  {FILES_VIP}:80 goes to port 80 of the same (not translated)")

    def ask(self) -> None:
        say("\nWho serves what")
        tally = requests(self.lab, URL, 2000)
        say(f"  curl, 2,000 connections: {counts(tally)}")
        if tally["failed"]:
            self.failures.append(f"{tally['failed']} of 2,000 curl requests failed")
        result = wrk(self.lab, URL, seconds=2)
        say(f"  wrk, 32 connections, 2 s: {result.requests:,} requests, {result.errors} errors")
        if result.errors:
            self.failures.append(f"wrk saw {result.errors} errors")

    def open_connections(self, count: int, first_port: int) -> None:
        """Keep-alive connections to the one service, downloads from the other (from ports that nobody else picks)."""
        now = len(self.history) - 1
        self.keep_alives.append((KeepAlive(self.lab, WEB_VIP, 80, count=count).start(), now))
        for port in range(first_port, first_port + 2):
            self.downloads.append((Download(self.lab, FILES_VIP, 80, port, rate="4M"), now))
        for fetch, _ in self.downloads[-2:]:
            wait_for(lambda fetch=fetch: fetch.received or not fetch.process.running, "a download to begin")  # type: ignore[misc]
        say(f"  {count} keep-alive connections and 2 downloads of 30 MB opened")

    def broken(self) -> int:
        kept = sum(1 for keep_alive, _ in self.keep_alives for flow in keep_alive.flows() if flow.broken)
        return kept + sum(1 for fetch, _ in self.downloads if not fetch.process.running and fetch.process.wait(0))

    def answers(self) -> int:
        return sum(keep_alive.answers for keep_alive, _ in self.keep_alives)

    def step(self, what: str, change: Callable[[], str | None]) -> None:
        """Makes a change, waits until every open connection was answered after it, and notes what broke."""
        answers, broken, began = self.answers(), self.broken(), time.monotonic()
        note = change()
        seconds = time.monotonic() - began
        for keep_alive, _ in self.keep_alives:
            keep_alive.one_more_answer()
        done = Step(what, seconds, self.answers() - answers, self.broken() - broken)
        self.steps.append(done)
        say(f"  {what:<34}{seconds * 1000:>7.0f} ms {done.answers:>9,} {done.broken:>8}")
        if note:
            say(f"    {note}")

    def change(self) -> None:
        say("\nLive changes, with connections open")
        self.open_connections(60, 20000)
        say(f"\n  {'what was done':<34}{'took':>10} {'answers':>9} {'broken':>8}")
        self.step("add host3 to both services", lambda: self.publish((web(self.lab.hosts), files(self.lab.hosts))))
        drain = tuple(drained(service, "host1") for service in self.lab.services)
        self.step("drain host1", lambda: self.publish(drain))
        self.open_connections(60, 21000)
        self.step("kill mux1 with SIGKILL", self.kill)
        self.step("start mux1 again", self.restart)
        self.new_connections()

    def new_connections(self) -> None:
        tally = requests(self.lab, URL, 300)
        say(f"  300 new connections: {counts(tally)} (host1 drains)")
        if tally["failed"] or tally["host1"]:
            self.failures.append(f"of 300 new connections {tally['failed']} failed and {tally['host1']} went to host1")

    def publish(self, services: tuple[Service, ...]) -> None:
        self.lab.publish_agents(services)
        self.lab.publish(services)
        self.history.append(services)

    def kill(self) -> str:
        mux = self.lab.muxes[0]
        killed = self.lab.kill_mux(mux)
        withdrawn = wait_for(lambda: self.lab.guardian.withdrawn_at(mux.name, killed), "the routes to leave mux1")
        assert withdrawn is not None
        if withdrawn - killed > WITHDRAWN_WITHIN:
            self.failures.append(f"mux1 stayed in the routes for {withdrawn - killed:.3f} s")
        return f"out of the routes after {(withdrawn - killed) * 1000:.0f} ms (the lab, standing in for BGP)"

    def restart(self) -> str:
        self.lab.start_mux(self.lab.muxes[0])
        return "back in the routes; it repaired what the killed one had left"

    def account(self) -> None:
        """What became of every connection, and of every packet."""
        ended = [(flow, began) for keep_alive, began in self.keep_alives for flow in keep_alive.stop()]
        ended += [(fetch.finish(), began) for fetch, began in self.downloads]
        settings = self.lab.mux_settings(self.lab.muxes[0])
        flows = [flow for flow, _ in ended]
        by_time = [choices(settings, services, flows) for services in self.history]
        moved = [flow for flow, began in ended if by_time[began][flow.source_port] != by_time[-1][flow.source_port]]
        kept = [flow for flow in flows if flow not in moved]
        say("\nWhat clients saw")
        say(f"  connections whose Maglev choice stayed:   {_fate(kept)}")
        say(f"  connections whose choice moved before:    {_fate(moved)}")
        self.judge_moved(moved)
        waited = max(keep_alive.slowest for keep_alive, _ in self.keep_alives)
        say(f"  longest wait for an answer: {waited * 1000:,.0f} ms")
        self.forbid_broken(kept)
        for step in self.steps[:2]:
            if step.broken:
                self.failures.append(f"{step.broken} connections broke at: {step.what}")
        self.packets()

    def judge_moved(self, moved: Sequence[Flow]) -> None:
        say("    Counted apart: with no manager, only the MUX that died remembered where")
        say("    these went, so those that passed through it end (docs/flow.md tells why).")

    def forbid_broken(self, flows: Sequence[Flow]) -> None:
        for flow in flows:
            if flow.broken:
                self.failures.append(
                    f"{flow.vip}:{flow.port} from port {flow.source_port} on {flow.host}: {flow.broken}"
                )

    def packets(self) -> None:
        say("\nEvery packet accounted for")
        say(f"  {'':<8}{'received':>11} = {'forwarded':>11} + {'passed':>7} + {'replied':>7} + {'dropped':>7}")
        for mux in self.lab.muxes:
            row = self.lab.status(mux)
            numbers = [row[word] for word in ("received", "forwarded", "passed", "replied", "dropped")]
            widths = (11, 11, 7, 7, 7)
            shown = [f"{number:>{width},}" for number, width in zip(numbers, widths, strict=True)]
            say(f"  {mux.name:<8}{shown[0]} = {' + '.join(shown[1:])}")
            if numbers[0] != sum(numbers[1:]):
                self.failures.append(f"{mux.name}: counters do not add up")

    def stop(self) -> None:
        nodes: Sequence[tuple[Node, str]] = [(m, "mux") for m in self.lab.muxes] + [
            (h, "agent") for h in self.lab.hosts
        ]
        for node, program in nodes:
            code = self.lab.stop_mux(node) if program == "mux" else node.processes[program].stop()
            if code:
                self.failures.append(f"{node.processes[program].name} ended with {code}")


def _fate(flows: Sequence[Flow]) -> str:
    return f"{len(flows):>4}, of which {sum(1 for flow in flows if flow.broken)} broke"


def perform(lab: L, make: Callable[[L], Demo]) -> int:
    """Brings the lab up and has the demo played in it. Returns the exit code."""
    began = time.monotonic()
    try:
        with lab:
            demo = make(lab)
            demo.start()
            demo.ask()
            demo.change()
            demo.account()
            demo.stop()
    except LabError as error:
        say(f"\nThe demo could not go on: {error}")
        return 1
    say(f"\nTaken down; {time.monotonic() - began:.0f} s in all.")
    for failure in demo.failures:
        say(f"FAILED: {failure}")
    if not demo.failures:
        say("Nothing broke that must not break.")
    return 1 if demo.failures else 0


def io_mode() -> IoMode:
    """Asked for by ``--io``."""
    parser = argparse.ArgumentParser(description="Show vipmux at work in network namespaces.")
    parser.add_argument("--io", type=IoMode, default=IoMode.AUTO, metavar="MODE", help="auto, xdp, packet or tun")
    chosen: IoMode = parser.parse_args().io
    return chosen


def main() -> int:
    io = io_mode()
    say("vipmux standalone demo: client - router - 2 MUXes - 3 hosts, in namespaces")
    return perform(Lab(io=io), Demo)


if __name__ == "__main__":
    sys.exit(main())
