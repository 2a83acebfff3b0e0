# SPDX-License-Identifier: Apache-2.0
"""A fleet without a network: nodes that take what the plan gives them, when a test says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec

from lb.config.load import parse_service_tables
from lb.model import Address
from manager.desired.state import Desired, Rules, apply_tables, purge
from manager.plan.health import Report, Reports, Source
from manager.plan.model import AGENT, MUX, BackendPlan, Node, Plan, PlanCache, World
from manager.plan.plan import plan, replan

#: Rows as JSON has them.
plain = msgspec.to_builtins

RULES = Rules((IPv4Network("203.0.113.0/24"),))


def service(
    name: str = "web",
    vip: str = "203.0.113.10",
    hosts: tuple[int, ...] = (1, 2),
    port: int | str = 80,
    **keys: Any,
) -> dict[str, Any]:
    """A ``[[service]]`` table with a backend on each host."""
    backends = [{"name": f"{name}-{host}", "address": f"10.0.3.{host}"} for host in hosts]
    return {"name": name, "vip": vip, "protocol": "tcp", "port": port, "backend": backends} | keys


def with_probe(table: dict[str, Any], **announce: Any) -> dict[str, Any]:
    found = {**table, "probe": {"type": "tcp"}}
    return {**found, "announce": announce} if announce else found


class Fleet:
    """Some MUXes and agents (host N at 10.0.3.N), and the last plan for them."""

    def __init__(self, muxes: int = 2, hosts: int = 3, withdraw_cap: float = 0.5) -> None:
        self.desired = Desired()
        self.muxes: dict[str, Node] = {}
        self.agents: dict[str, Node] = {}
        self.reports = Reports()
        self.now = 1000.0
        self.last = Plan()
        self.withdraw_cap = withdraw_cap
        self.tables = PlanCache()
        self.agent_at: dict[Address, str] = {}
        for n in range(1, muxes + 1):
            self.muxes[f"mux{n}"] = Node(MUX, f"mux{n}", IPv4Address(f"10.0.1.{10 + n}"), connected=True, live={})
        for n in range(1, hosts + 1):
            self.agents[f"host{n}"] = Node(AGENT, f"host{n}", IPv4Address(f"10.0.3.{n}"), connected=True, live={})

    # -- what happens -------------------------------------------------------------------------------------------

    def apply(self, *tables: Mapping[str, Any], only: bool = False) -> None:
        self.desired = apply_tables(self.desired, list(tables), RULES, replace_all=only).new

    def set(self, node: str, **changes: Any) -> None:
        nodes = self.muxes if node in self.muxes else self.agents
        nodes[node] = replace(nodes[node], **changes)

    def report(
        self, node: str, service: str, backend: str, up: bool, reason: str = "", *, refused: bool = False
    ) -> None:
        source = Source.TUNNEL if node in self.muxes else Source.AGENT
        report = Report(
            up, reason or ("3 of 3 checks passed" if up else "3 of 3 checks timed out"), self.now, refused=refused
        )
        self.reports.heard(source, node, {(service, backend): report}, self.now, lease=10)

    def all_healthy(self) -> None:
        """Every agent says that its backends are well."""
        for found in self.desired.services.values():
            for backend in found.backends:
                host = f"host{str(backend.address).rpartition('.')[2]}"
                if host in self.agents:
                    self.report(host, found.name, backend.name, True)

    def all_reached(self) -> None:
        """Every MUX says so of every backend."""
        for found in self.desired.services.values():
            for backend in found.backends:
                for mux in self.muxes:
                    self.report(mux, found.name, backend.name, True)

    # -- planning -----------------------------------------------------------------------------------------------

    def world(self) -> World:
        agent_at: dict[Address, str] = {node.address: name for name, node in self.agents.items() if node.address}
        if agent_at == self.agent_at:
            agent_at = self.agent_at
        self.agent_at = agent_at
        return World(
            self.desired,
            dict(self.muxes),
            dict(self.agents),
            agent_at,
            self.reports,
            self.last.memory,
            self.now,
            self.withdraw_cap,
            tables=self.tables,
            wall=self.now,
        )

    def plan(self) -> Plan:
        return self.tell(plan(self.world()))

    def replan(self, *vips: str) -> Plan:
        return self.tell(replan(self.last, self.world(), vips), vips)

    def tell(self, new: Plan, vips: Iterable[str] | None = None) -> Plan:
        """This is the plan now, and nodes are told what it made anew (None: all)."""
        planned = frozenset({*self.last.vips, *new.vips} if vips is None else vips)
        for name, node in {**self.muxes, **self.agents}.items():
            if new.states.get(node.id) != self.last.states.get(node.id):
                self.set(name, owes=planned.union(node.owes))
        self.last = new
        return new

    def take(self, *nodes: str) -> None:
        """These nodes (all that are connected, if none is named) have what the last plan gives them."""
        for name, node in {**self.muxes, **self.agents}.items():
            if (name in nodes or not nodes) and node.connected and node.id in self.last.states:
                self.set(name, live=self.last.states[node.id], refused=None, owes=frozenset())
                if name in self.agents:
                    self._report_what_has_no_probe(name)

    def _report_what_has_no_probe(self, host: str) -> None:
        """An agent connects to those backends as well; here they are well unless somebody says otherwise."""
        for name, table in self.last.states[f"agent:{host}"].get("services", {}).items():
            for backend in () if "probe" in table else table["backend"]:
                if self.reports.agent(host, (name, backend["name"])) is None:
                    self.report(host, name, backend["name"], True)

    def settle(self, rounds: int = 10) -> int:
        """Plans and takes until nothing changes; returns how many rounds it took."""
        for count in range(rounds):
            before = {**self.muxes, **self.agents}
            done = [key for found in self.plan().vips.values() for key in found.done]
            if done:
                self.desired = purge(self.desired, done).new
            self.take()
            if not done and {**self.muxes, **self.agents} == before:
                return count
        raise AssertionError(f"no rest after {rounds} rounds")

    # -- looking ------------------------------------------------------------------------------------------------

    def announced(self, mux: str = "mux1") -> set[str]:
        return set(self.last.states[f"mux:{mux}"].get("announcements", {}))

    def table(self, name: str = "web", node: str = "mux:mux1") -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.last.states[node].get("services", {}).get(name)
        return found

    def states(self, name: str = "web") -> dict[str, str]:
        """What MUXes are told of each backend."""
        table = self.table(name)
        assert table is not None
        assert parse_service_tables([table])
        return {backend["name"]: backend.get("state", "up") for backend in table["backend"]}

    def shown(self, name: str = "web") -> dict[str, str]:
        return {
            b.backend.name: b.shown for found in self.last.vips.values() for b in found.backends if b.service == name
        }

    def reason(self, backend: str) -> str:
        return next(b.reason for b in self._backends() if b.backend.name == backend)

    def _backends(self) -> list[BackendPlan]:
        return [item for found in self.last.vips.values() for item in found.backends]

    def withheld(self, mux: str, vip: str = "203.0.113.10") -> str | None:
        return self.last.vips[f"{vip}/32"].withheld.get(mux)
