# SPDX-License-Identifier: Apache-2.0
"""Hears what happens to nodes and what they say, and passes it on; a :class:`manager.nodes.hub.NodeListener`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lb.model import Address, Protocol
from lb.node.messages import HealthMessage
from manager.controller.chronicle import Chronicle
from manager.controller.shared_state import Core
from manager.controller.ticker import Ticker
from manager.nodes.hub import Entry
from manager.plan.health import Report, Source
from manager.plan.model import AGENT, MUX
from manager.store.interface import NodeRecord
from manager.store.lineage import kept

#: Leases of nodes are bounded by the manager's own setting, and by this from below.
LEASE_MIN = 1.0


class NodeEvents:
    """One method for each thing that is heard; called in the event loop, returns at once."""

    def __init__(self, core: Core, chronicle: Chronicle, ticker: Ticker) -> None:
        self._core = core
        self._chronicle = chronicle
        self._ticker = ticker

    def touched(self, vips: Iterable[str] | None) -> None:
        self._core.planner.touched(vips)

    def acknowledged(self, vips: Iterable[str]) -> None:
        self._core.planner.acknowledged(vips)

    def touched_at(self, addresses: Iterable[Address]) -> None:
        known = self._core.desired
        names = {name for address in addresses for name in known.by_address.get(address, ())}
        self.touched({*self._vips_of(names), *known.retiring_by_vip})

    def heard(self, kind: str, name: str, message: HealthMessage) -> None:
        """A node's reports on backends that it was told of; an agent's only of its own host's."""
        source = Source.TUNNEL if kind == MUX else Source.AGENT
        found, passed_over = {}, 0
        addresses = self._addresses({report.service for report in message.reports})
        for report in message.reports:
            address = addresses.get((report.service, report.backend))
            if address is None or (source is Source.AGENT and self._core.hub.agent_at.get(address) != name):
                passed_over += 1
                continue
            found[report.service, report.backend] = Report(
                report.up,
                report.reason,
                report.since,
                address=address,
                host=report.host,
                refused=report.refused and not report.up,
            )
        self._core.planner.reports.pass_over(source, name, passed_over)
        lease = max(LEASE_MIN, min(message.lease, self._core.settings.health_lease))
        reports = self._core.planner.reports
        turned = reports.turned(source, name, found) if source is Source.TUNNEL else ()
        self.touched(self._vips_of(reports.heard(source, name, found, self._core.clocks.steady(), lease)))
        if turned:  # it tells of the host as well, see manager.plan.verdicts
            self.touched(self._vips_of(self._without_other_word({addresses[key] for key in turned})))

    def told(self, entry: Entry, body: Mapping[str, Any]) -> None:
        if isinstance(row := body.get(entry.record.kind), dict):
            self._chronicle.tell(
                self._core.undone.heard(f"{entry.record.kind} {entry.record.name}", row.get("repaired"))
            )
        if entry.record.kind == MUX:
            self._core.changes.counted(self._core.rates.heard(entry.record.name, body, self._core.clocks.steady()))
            if isinstance(mux := body.get("mux"), dict):
                self._chronicle.tell(self._core.pools.heard(entry.record.name, mux))
            self._hear_announcements(entry)
            self._core.changes.tables("muxes", *({"announcements"} & body.keys()))
        else:
            self._core.changes.tables("agents")

    def left(self, entry: Entry) -> None:
        if entry.record.kind == MUX:
            self._core.rates.left(entry.record.name)
            self._chronicle.tell(self._core.pools.left(entry.record.name))

    def looked(self, entry: Entry) -> None:
        if entry.record.kind == MUX:
            self._hear_announcements(entry)
        self._core.changes.tables("muxes" if entry.record.kind == MUX else "agents", "announcements", "status")

    def keep(self, record: NodeRecord) -> None:
        self._core.journal.node(record)
        self._core.planner.wake()

    def fell_behind(self) -> None:
        self._core.journal.behind(kept(self._core.hub.behind))
        self._core.changes.tables("status", "muxes", "agents")

    def _without_other_word(self, hosts: Iterable[Address]) -> set[str]:
        """Services that no MUX asks through a tunnel, on hosts whose agent is away. Of a host that never had one nobody
        asks whether it is lost."""
        known, agent_at = self._core.desired, self._core.hub.agent_at
        away = [host for host in hosts if host in agent_at and not self._core.hub.is_connected(AGENT, agent_at[host])]
        names = {name for address in away for name in known.by_address.get(address, ())}
        services = [known.services[name] for name in names]
        return {it.name for it in services if it.probe is None or it.protocol is Protocol.UDP}

    def _addresses(self, services: Iterable[str]) -> dict[tuple[str, str], Address]:
        """Of the backends of these services. Those of deleted ones that nodes still have count as well: they may come
        back before a node has heard that they went, and it would not say again what it has said."""
        names, known = set(services), self._core.desired
        found = [service for service in known.retiring.values() if service.name in names]
        found += [known.services[name] for name in names if name in known.services]
        return {(service.name, backend.name): backend.address for service in found for backend in service.backends}

    def _hear_announcements(self, entry: Entry) -> None:
        if vips := self._core.announced.told(entry):
            self._chronicle.announced_anew(vips)
            self._ticker.look_at_announcements(self._core.clocks.steady())  # what is well again is so at once

    def _vips_of(self, services: Iterable[str]) -> set[str]:
        known = self._core.desired.services
        return {str(known[name].vip) for name in services if name in known}

    def happened(self, subject: str, text: str, *, bad: bool = False) -> None:
        self._chronicle.happened(subject, text, bad=bad)
