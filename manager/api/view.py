# SPDX-License-Identifier: Apache-2.0
"""What operators see: the rows of ``lb get`` and the words of ``lb describe``. Reads the controller, never changes it.

Used by :mod:`manager.api.server`. Packets and flows are what MUXes last told, summed over them; what nobody told is
null.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from lb.config.render import service_table, vip_text
from lb.errors import NotFoundError
from lb.model import Address, AnnouncePolicy, Network, Protocol, Service
from lb.node.messages import FlowAnswer
from manager.api.flow_explanation import AskedFlow, goes_to, mux_words, nearest, taker, together
from manager.api.preview import live_flows, preview
from manager.controller.controller import Controller
from manager.desired.state import DesiredChange
from manager.nodes.hub import Entry, rows
from manager.observed.announcements import ToldByVip, bare, silent
from manager.observed.drains import announced, left_of, withdrawn
from manager.observed.rates import FIELDS, NONE, MuxRate, Rate
from manager.plan.model import AGENT, MUX, BackendPlan, VipPlan, why_idle
from manager.store.events import ANY, Wanted, about

Row = dict[str, Any]
#: By what names a service or a backend: sums over the MUXes; what none told is not in it.
Counters = dict[tuple[Any, ...], dict[str, int | None]]
#: A name, its rate, and what makes its row: only of those that are shown.
Rated = tuple[str, Rate, Callable[[], Row]]

#: Counters of a service that MUXes tell, and of a backend.
SERVICE_COUNTERS = ("flows_new", "flows", "packets", "bytes")
BACKEND_COUNTERS = ("flows", "packets")


#: Said of what a MUX without BGP has live.
NO_BGP = "it speaks no BGP, so what it has live counts"

#: So many groups of VIPs are told of after a change.
GROUPS = 20

_NOTHING: Row = {}
#: Backends of which nothing is known yet.
_COMING = ("unknown", "installing")


@dataclass(frozen=True, slots=True)
class MuxAnnouncements:
    """What one MUX tells of its announcements."""

    name: str
    away: bool
    silent: bool  #: it speaks no BGP
    by_vip: ToldByVip


class View:
    """Reads one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._wall, self._steady = controller.clocks.wall, controller.clocks.steady

    # -- rows ---------------------------------------------------------------------------------------------------

    def services(self, names: Iterable[str] | None = None) -> list[Row]:
        """Sorted by name; those that retire come last. ``names``: only those of them that there are."""
        services = self._controller.desired.services
        wanted = services if names is None else services.keys() & set(names)
        counters = self.counters_of_services(None if names is None else wanted)
        found = [
            self.plain_service(services[name]) | _counted(counters.get((name,), {}), SERVICE_COUNTERS)
            for name in sorted(wanted)
        ]
        return found + self.retiring(names)

    def plain_service(self, service: Service) -> Row:
        """What hangs on the service, the plan of its VIP and who announces it: without what MUXes count."""
        return self.planned_service(service) | self.announced_service(service)

    def planned_service(self, service: Service) -> Row:
        """What hangs on the service and the plan of its VIP alone."""
        backends = self._backends_of(service)
        return {
            "name": service.name,
            "vip": vip_text(service.vip),
            "protocol": service.protocol.value,
            "port": str(service.ports),
            "state": _state(service, backends, self._vip(service)),
            "backends": len(service.backends),
            "healthy": sum(item.healthy for item in backends),
        }

    def announced_service(self, service: Service) -> Row:
        """Who announces it, who should, and in words what clients may notice and its state alone does not tell."""
        place, announced = str(service.vip), self._controller.announced
        vip, said = self._vip(service), announced.notes.get(place)
        idle = why_idle(self._backends_of(service)) if vip is not None else None
        words = [word for word in (idle, said.text if said is not None else None) if word]
        return {
            "announced_by": list(announced.by.get(place, ())),
            "wanted_by": announced.wanted(vip),
            "unreached": said is not None and said.level == "unreached",
            "note": "; ".join(words) or None,
        }

    def retiring(self, names: Iterable[str] | None = None) -> list[Row]:
        """Services that are deleted, and not yet withdrawn everywhere."""
        retiring = self._controller.desired.retiring
        wanted = retiring if names is None else retiring.keys() & set(names)
        return [self._retiring(key, retiring[key]) for key in sorted(wanted)]

    @staticmethod
    def _retiring(key: str, service: Service) -> Row:
        return {
            "name": key,
            "vip": vip_text(service.vip),
            "protocol": service.protocol.value,
            "port": str(service.ports),
            "state": "retiring",
            "backends": len(service.backends),
            "healthy": 0,
            "announced_by": [],
            "wanted_by": [],
            "unreached": False,
            "note": None,
            **dict.fromkeys(SERVICE_COUNTERS),
        }

    def backends(self, names: Iterable[str] | None = None) -> list[Row]:
        services = self._controller.desired.services
        wanted = services if names is None else services.keys() & set(names)
        counters = self.counters_of_backends(None if names is None else wanted)
        return [
            row | _counted(counters.get((name, row["name"]), {}), BACKEND_COUNTERS)
            for name in sorted(wanted)
            for row in self.plain_backends(services[name])
        ]

    def plain_backends(self, service: Service) -> list[Row]:
        """Without what MUXes count. While a backend drains, ``empty_since`` hangs on what they told before; else, as of
        a service, all hangs on the service and the plan of its VIP."""
        vip, port = vip_text(service.vip), str(service.ports)
        return [
            {
                "service": service.name,
                "vip": vip,
                "protocol": service.protocol.value,
                "service_port": port,
                "name": item.backend.name,
                "address": item.address,
                "port": str(item.backend.port) if item.backend.port else port,
                "weight": item.backend.weight,
                "slow_start": item.ramp.share if item.ramp is not None else None,
                "state": item.shown,
                "takes_flows": item.takes_flows,
                "healthy": item.healthy,
                "agent": item.agent,
                "since": item.since,
                "empty_since": self._empty_since(item),
                "reason": item.reason,
            }
            for item in self._backends_of(service)
        ]

    def _empty_since(self, item: BackendPlan) -> float | None:
        label = item.service, item.backend.name
        return self._controller.emptied.since.get(label) if item.shown == "drain" else None

    def backend(self, service: str, name: str) -> Row:
        """One backend, and what each MUX has left of it while it drains."""
        found = self._controller.desired.services.get(service)
        row = next((row for row in self.backends([service]) if row["name"] == name), None) if found else None
        if row is None:
            known = f'service "{service}" has no backend "{name}"' if found else f'there is no service "{service}"'
            raise NotFoundError(known)
        left = left_of((service, name), self._controller.hub.entries.values(), self._controller.plan.drains)
        shown = left if row["state"] == "drain" else []
        return {**row, "left": [{"mux": item.mux, "flows": item.flows, "why": item.why} for item in shown]}

    def muxes(self) -> list[Row]:
        differs = self._controller.pools.differs
        return [
            {
                **self._node(entry),
                "differs": differs.get(entry.record.name),
                "drain": self._drain(entry.record.name),
                "announces": len((entry.state or {}).get("announcements", {})),
                "announced": announced(entry),
                "handover": self._handover(entry),
                "io": self._mux_row(entry).get("io"),
                "mode": self._mux_row(entry).get("mode"),
                "flows": self._mux_row(entry).get("flows"),
                "forwarded": self._mux_row(entry).get("forwarded"),
                "dropped": self._mux_row(entry).get("dropped"),
                "missed": self._mux_row(entry).get("missed"),
                "saturated": self._mux_row(entry).get("saturated"),
                "peers": [
                    {key: row.get(key) for key in ("name", "address", "state", "announced", "error")}
                    for row in rows(entry.status, "peers")
                ],
            }
            for entry in self._entries(MUX)
        ]

    def agents(self) -> list[Row]:
        return [
            {**self._node(entry), "services": len((entry.state or {}).get("services", {}))}
            for entry in self._entries(AGENT)
        ]

    def _node(self, entry: Entry) -> Row:
        return {
            "name": entry.record.name,
            "state": _node_state(entry),
            "address": entry.record.address,
            "address6": entry.record.address6,
            "since": entry.since,
            "generation": entry.live_generation if entry.live is not None else None,
            "wanted": entry.generation,
            "refused": entry.refused,
            "left_out": dict(entry.left_out),
            "repaired": self._repaired(entry),
            "clock": self._controller.skews.differs.get(entry.id),
            "version": entry.record.version,
            "clock_skew": None if entry.clock_skew is None else round(entry.clock_skew, 1),
            "certificate_expires": entry.expires,
        }

    def announcements(self) -> list[Row]:
        """One row for each VIP and MUX, and for each BGP peer where the MUX tells of them."""
        told = self.told()
        return [
            row for vip, found in sorted(self._controller.plan.vips.items()) for row in announced_rows(vip, found, told)
        ]

    def told(self) -> list[MuxAnnouncements]:
        """What MUXes tell of their announcements, by name."""
        return [
            MuxAnnouncements(
                entry.record.name,
                entry.connection is None,
                silent(entry) and "peers" in entry.status,
                self._by_vip(entry),
            )
            for entry in self._entries(MUX)
        ]

    def _by_vip(self, entry: Entry) -> ToldByVip:
        return self._controller.announced.by_vip(entry)

    def events(self, limit: int, wanted: Wanted = ANY) -> list[Row]:
        """The oldest first."""
        return [asdict(event) for event in self._controller.events.latest(limit, wanted)]

    def status(self) -> Row:
        """The manager itself."""
        controller = self._controller
        connected = [entry for entry in controller.hub.entries.values() if entry.connection is not None]
        behind = [entry.id for entry in connected if entry.live is None or entry.live_generation < entry.generation]
        return {
            "name": controller.settings.name,
            "version": controller.desired.version,
            "term": controller.hub.term,
            "generation": controller.hub.generation,
            "services": len(controller.desired.services),
            "nodes": len(controller.hub.entries),
            "connected": len(connected),
            "behind": sorted(behind),
            "now": self._wall(),
            "refusals": controller.hub.turned_away.rows(),
            "confirm": self._unconfirmed(),
            "history": controller.hub.behind.row(),
            "held": [
                {"service": name, "served": held.served, "why": held.why}
                for name, held in sorted(controller.writer.held.items())
            ],
        }

    def preview(self, change: DesiredChange) -> list[Row]:
        """What a change would mean to MUXes, and the live flows of what is there now. From any thread."""
        plan = self._controller.plan
        flows = live_flows(list(self._controller.hub.entries.values()), plan.drains, change.names | change.drained())
        return preview(change, plan, flows)

    def _unconfirmed(self) -> Row | None:
        waiting = self._controller.desired.unconfirmed
        if waiting is None:
            return None
        version, pending = waiting
        until = self._wall() + self._controller.writer.seconds_left(pending)
        return {"version": version, "who": pending.who, "at": pending.at, "until": until}

    def table(self, name: str) -> list[Row]:
        """The rows of a table that is watched, and has none for each service; of those see
        :mod:`manager.api.json_rows`."""
        tables: dict[str, Callable[[], list[Row]]] = {
            "muxes": self.muxes,
            "agents": self.agents,
            "announcements": self.announcements,
            "status": lambda: [self.status()],
        }
        return tables[name]()

    # -- rates --------------------------------------------------------------------------------------------------

    def top(self, by: str, sort: str, limit: int, service: str | None = None) -> Row:
        """The busiest services, backends or MUXes, over all MUXes that told their counters twice."""
        now = self._steady()
        kinds = {"service": self._top_services, "backend": self._top_backends, "mux": self._top_muxes}
        rates = kinds[by](now, service)
        return {
            "at": self._wall(),
            "by": by,
            "total": _rate_row(self._controller.rates.total(now)),
            "of": len(rates),
            "rows": [make() for make in top_of(rates, sort, limit)],
        }

    def _top_services(self, now: float, only: str | None) -> list[Rated]:
        services = self._controller.desired.services
        rates = self._controller.rates.services(now)
        told = self._controller.rates.total(now) is not None

        def row(service: Service, rate: Rate) -> Row:
            return {
                "service": service.name,
                "vip": vip_text(service.vip),
                "protocol": service.protocol.value,
                "port": str(service.ports),
                "state": _state(service, self._backends_of(service), self._vip(service)),
                **_rate_row(rate if told else None),
            }

        return [
            (name, rate := rates.get(name, NONE), partial(row, service, rate))
            for name, service in services.items()
            if only is None or name == only
        ]

    def _top_backends(self, now: float, only: str | None) -> list[Rated]:
        rates = self._controller.rates.backends(now, only)
        told = self._controller.rates.total(now) is not None

        def row(service: Service, item: BackendPlan, rate: Rate) -> Row:
            known = _rate_row(rate if told else None)
            return {
                "service": service.name,
                "backend": item.backend.name,
                "address": item.address,
                "state": item.shown,
                "weight": item.backend.weight,
                "pps": known["pps"],
                "flows": known["flows"],
            }

        found = (service for name, service in self._controller.desired.services.items() if only in (None, name))
        return [
            (f"{service.name}/{item.backend.name}", rate, partial(row, service, item, rate))
            for service in found
            for item in self._backends_of(service)
            for rate in [rates.get((service.name, item.backend.name), NONE)]
        ]

    def _top_muxes(self, now: float, _: str | None) -> list[Rated]:
        rates = self._controller.rates.muxes(now)

        def row(entry: Entry, rate: MuxRate | None) -> Row:
            return {
                "mux": entry.record.name,
                "state": _node_state(entry),
                "received": round(rate.received, 1) if rate else None,
                "capacity": rate.capacity if rate else None,
                "fill": rate.rate.flows / rate.capacity if rate and rate.capacity else None,
                **_rate_row(rate.rate if rate else None),
            }

        return [
            (name, rate.rate if rate else NONE, partial(row, entry, rate))
            for entry in self._entries(MUX)
            for name, rate in [(entry.record.name, rates.get(entry.record.name))]
        ]

    def rates(self, since: float | None, services: int, names: list[str]) -> Row:
        """The last minutes of the total, of the MUXes, and of the services named or else the busiest."""
        history = self._controller.rates.history
        return history.read(since, names or history.services()[:services])

    # -- changes ------------------------------------------------------------------------------------------------

    def announced_by(self, vips: Iterable[str]) -> tuple[list[Row], bool]:
        """Of these VIPs, those of which the same is to be said together; and whether that may soon be another: a MUX is
        about to announce; where none does yet, one should, or backends are new, for which the policy may wait."""
        announced, plan = self._controller.announced, self._controller.plan
        without = {entry.record.name for entry in self._entries(MUX) if silent(entry)}
        groups: dict[tuple[object, ...], list[str]] = {}
        later = False
        for vip in sorted(vips):
            found = plan.vips.get(vip)
            if found is None:
                continue
            note, soon = announced.words(vip, found)
            by = announced.by.get(vip, ())
            # A session that is down may be up in a moment, as after a start; and backends may be well.
            coming = found.granted - announced.drained or any(it.shown in _COMING for it in found.backends)
            later = later or soon or bool(not by and coming)
            told = note.text if note is not None else None
            if told is None and (some := [mux for mux in by if mux in without]):
                told = f"{', '.join(some[:4])}: without BGP, what is live counts"
            silent_ = not by and bool(found.granted or found.withheld)
            groups.setdefault((by, tuple(announced.wanted(found)), told, silent_), []).append(bare(vip))
        rows_: list[Row] = [
            {
                "count": len(some),
                "vips": some[:3],
                "announced_by": key[0],
                "wanted_by": key[1],
                "note": key[2],
                "silent": key[3],
            }
            for key, some in groups.items()
        ]
        return rows_[:GROUPS], later

    def left_by(self, change: DesiredChange) -> list[Row]:
        """Of each service of which a backend is drained, what is left of it, and what it has to finish."""
        controller, orders = self._controller, change.new.drains
        names = sorted(change.drained() & controller.desired.services.keys())
        flows = live_flows(list(controller.hub.entries.values()), controller.plan.drains, names)
        found = []
        for name in names:
            items = self._backends_of(controller.desired.services[name])
            gone = [item.backend.name for item in items if f"{name}/{item.backend.name}" in orders]
            counts = [flows(name, backend) for backend in gone]
            found.append(
                {
                    "service": name,
                    "backends": len(items),
                    "takes_flows": sum(item.takes_flows and item.backend.name not in gone for item in items),
                    "flows": None if None in counts else sum(count or 0 for count in counts),
                }
            )
        return found

    # -- one service in words -----------------------------------------------------------------------------------

    def describe(self, name: str) -> Row:
        """Everything on one service, and the sentences that explain it."""
        service = self._controller.desired.services.get(name)
        if service is None:
            known = ", ".join(sorted(self._controller.desired.services)[:8]) or "none yet"
            raise NotFoundError(f'there is no service "{name}"; there are {known}')
        backends = self._backends_of(service)
        vip = self._vip(service)
        subjects = {f"service {name}", f"vip {service.vip}"}
        subjects |= {f"backend {name}/{backend.name}" for backend in service.backends}
        return {
            "service": self.services([name])[0],
            "table": service_table(service),
            "panic": vip.panic.get(name) if vip else None,
            "probe": _probe_words(service),
            "policy": _policy_words(service),
            "backends": self.backends([name]),
            "announcements": [self._announcement_words(entry, vip) for entry in self._entries(MUX)],
            "left_out": self._left_out(name, f"announcements/{service.vip}"),
            "explanation": [_explain(item, self._steady()) for item in backends],
            "events": [asdict(event) for event in self._controller.events.latest(20, about(subjects))],
        }

    async def flow(self, flow: AskedFlow, seconds: float) -> Row:
        """Which backend a flow gets by each MUX, and why; see :mod:`manager.api.flow_explanation`."""
        controller = self._controller
        question = {
            "protocol": flow.protocol.value,
            "source": str(flow.source),
            "source_port": flow.source_port,
            "destination": str(flow.destination),
            "destination_port": flow.destination_port,
        }
        answers = await controller.hub.ask(question, seconds)
        services = controller.desired.services.values()
        service = taker(flow, services)
        backends = {item.backend.name: item for item in self._backends_of(service)} if service else {}
        behind = [entry.record.name for entry in self._entries(MUX) if _node_state(entry) != "ready"]
        agree, words = together(flow, answers, backends, behind)
        if service is None:
            near = nearest(flow, services)
            words = [f"No service takes {flow}.", *near] if near else [f"No service takes {flow}: there is none yet."]
            agree = None
        return {
            "flow": str(flow),
            "service": self.services([service.name])[0] if service else None,
            "agree": agree,
            "words": words,
            "muxes": [
                {
                    "mux": name,
                    **_flow_row(flow, answer, backends),
                    "words": mux_words(flow, answer, backends),
                }
                for name, answer in sorted(answers.items())
            ],
            "backends": self.backends([service.name]) if service else [],
        }

    async def examination(self, seconds: float) -> list[Row]:
        """What each node's own doctor finds, as it says it."""
        found = []
        for id_, answer in sorted((await self._controller.hub.examine(seconds)).items()):
            kind, _, name = id_.partition(":")
            row: Row = {"kind": kind, "name": name, "findings": [], "fine": 0, "left_out": 0, "error": None}
            if isinstance(answer, str):
                row["error"] = answer
            else:
                row |= {key: value for key, value in answer.plain().items() if key in row}
            found.append(row)
        return found

    def vip(self, address: Address) -> Row:
        """What is at one address: services, who announces it and why, and what happened to it."""
        desired = self._controller.desired
        vips = {service.vip for service in desired.services.values() if _within(address, service.vip)}
        if not vips:
            known = sorted({vip_text(service.vip) for service in desired.services.values()})
            raise NotFoundError(f"no service is at {address}; there are {', '.join(known[:8]) or 'none yet'}")
        vip = max(vips, key=lambda one: one.prefixlen)
        plan = self._controller.plan.vips.get(str(vip))
        names = [name for name, service in desired.services.items() if service.vip == vip]
        subjects = {f"vip {vip}", *(f"service {name}" for name in names)}
        return {
            "vip": vip_text(vip),
            "services": self.services(names),
            "announcements": [self._announcement_words(entry, plan) for entry in self._entries(MUX)],
            "left_out": self._left_out(*names, f"announcements/{vip}"),
            "events": [asdict(event) for event in self._controller.events.latest(20, about(subjects))],
        }

    def _announcement_words(self, entry: Entry, vip: VipPlan | None) -> Row:
        name = entry.record.name
        if vip is None or name not in vip.granted:
            reason = vip.withheld.get(name, "it is new") if vip else "it is not planned yet"
            return {"mux": name, "announces": False, "reason": reason, "peers": []}
        if silent(entry) and entry.connection is not None and "peers" in entry.status:
            live = vip.vip in (entry.live or {}).get("announcements", {})
            return {"mux": name, "announces": live, "reason": f"wanted; {NO_BGP}", "peers": []}
        told = self._by_vip(entry).get(vip.vip, [])
        peers = [{"name": row.get("peer"), "state": row.get("state"), "why": row.get("why")} for row in told]
        if self._controller.plan.drains.get(name, "") is None:
            reason = "wanted, but it drains"
        elif entry.connection is None:
            reason = "wanted, and it goes on by itself while it is disconnected"
        elif entry.live_generation < entry.generation:
            reason = f"wanted; it has not acknowledged generation {entry.generation} yet"
        else:
            reason = "wanted"
        announces = any(peer["state"] in ("announced", "draining") for peer in peers) if peers else None
        return {"mux": name, "announces": announces, "reason": reason, "peers": peers}

    def _left_out(self, *names: str) -> list[Row]:
        """Which nodes do not serve some of these, and why."""
        return [
            {"node": entry.id, "what": name, "reason": entry.left_out[name]}
            for kind in (MUX, AGENT)
            for entry in self._entries(kind)
            for name in names
            if name in entry.left_out
        ]

    # -- what they share ----------------------------------------------------------------------------------------

    def _vip(self, service: Service) -> VipPlan | None:
        return self._controller.plan.vips.get(str(service.vip))

    def _backends_of(self, service: Service) -> list[BackendPlan]:
        vip = self._vip(service)
        return [item for item in vip.backends if item.service == service.name] if vip else []

    def _entries(self, kind: str) -> list[Entry]:
        found = [entry for entry in self._controller.hub.entries.values() if entry.record.kind == kind]
        return sorted(found, key=lambda entry: entry.record.name)

    def _drain(self, mux: str) -> str | None:
        waits = self._controller.plan.drains.get(mux, "no")
        return None if waits == "no" else waits or "told to drain"

    @staticmethod
    def _handover(entry: Entry) -> str | None:
        """In words, what became of the flows that only this MUX knew, when it last went or came."""
        told = entry.status.get("handover")
        return told if isinstance(told, str) else None

    @staticmethod
    def _repaired(entry: Entry) -> str | None:
        """In words, what the node lately put back into its kernel, or cannot."""
        row = entry.status.get(entry.record.kind)
        told = row.get("repaired") if isinstance(row, dict) else None
        return told if isinstance(told, str) else None

    @staticmethod
    def _mux_row(entry: Entry) -> Mapping[str, Any]:
        found = entry.status.get("mux")
        return found if isinstance(found, dict) else {}

    def counters_of_services(self, services: Collection[str] | None) -> Counters:
        """By (name,); of these services (None: of all)."""
        return self._counters("services", ("name",), SERVICE_COUNTERS, services)

    def counters_of_backends(self, services: Collection[str] | None) -> Counters:
        """By (service, name)."""
        return self._counters("backends", ("service", "name"), BACKEND_COUNTERS, services)

    def _counters(
        self, what: str, keys: tuple[str, ...], counters: tuple[str, ...], services: Collection[str] | None
    ) -> Counters:
        """Summed over the MUXes; of these services (None: of all)."""
        chosen = None if services is None else set(services)
        total: Counters = {}
        drains = self._controller.plan.drains
        for entry in self._entries(MUX):
            # A flow that a MUX remembers and gets no packets of any more lives elsewhere.
            idle = entry.gone or withdrawn(entry, drains)
            for row in rows(entry.status, what):
                if chosen is not None and row.get(keys[0]) not in chosen:
                    continue
                sums = total.setdefault(tuple(row.get(key) for key in keys), {})
                for name in counters:
                    value = 0 if idle and name == "flows" else row.get(name)
                    if isinstance(value, int):
                        sums[name] = (sums.get(name) or 0) + value
        return total


def warn_of_drain(left: Iterable[Row], what: str) -> list[str]:
    """What it means where a service has no other backend; ``left``: as of :meth:`View.left_by`; ``what`` is drained."""
    return [
        f"service {row['service']} has no other backend that takes new flows: clients that come from now on are not "
        f"served; `lb undrain {what}` ends the drain"
        for row in left
        if not row["takes_flows"]
    ]


def top_of(rates: list[Rated], sort: str, limit: int) -> list[Callable[[], Row]]:
    """The rows of those with the highest rate, or the first names; what is equal goes by name."""
    if sort == "name":
        key: Callable[[Rated], Any] = itemgetter(0)
    else:
        place = FIELDS.index(sort)
        key = lambda rated: (-rated[1][place], -rated[1].pps, rated[0])  # noqa: E731
    return [make for _, _, make in heapq.nsmallest(limit, rates, key=key)]


def _counted(counters: Mapping[str, int | None], names: Iterable[str]) -> Row:
    return {name: counters.get(name) for name in names}


def _within(address: Address, vip: Network) -> bool:
    return address.version == vip.version and address in vip


def _flow_row(flow: AskedFlow, answer: FlowAnswer | str, backends: Mapping[str, BackendPlan]) -> Row:
    keys = ("service", "slot", "new", "remembered", "flow_class", "age")
    if isinstance(answer, str):
        return {**dict.fromkeys(keys), "goes_to": None}
    return {**{key: getattr(answer, key) for key in keys}, "goes_to": goes_to(flow, answer, backends)}


def _rate_row(rate: Rate | None) -> Row:
    """Null: nobody told."""
    if rate is None:
        return dict.fromkeys(FIELDS)
    return {name: round(value, 1) for name, value in zip(FIELDS, rate, strict=True)}


def announced_rows(vip: str, found: VipPlan, told: Iterable[MuxAnnouncements]) -> Iterator[Row]:
    """Of one VIP, as the plan has it, and of each MUX."""
    for mux in told:
        wanted = mux.name in found.granted
        why = None if wanted else found.withheld.get(mux.name)
        rows_ = mux.by_vip.get(vip)
        if wanted and not rows_:
            why = (
                "the MUX is not connected" if mux.away else NO_BGP if mux.silent else "the MUX has not reported it yet"
            )
        for row in rows_ or [_NOTHING]:
            yield {
                "vip": vip,
                "mux": mux.name,
                "wanted": wanted,
                "peer": row.get("peer"),
                "state": row.get("state"),
                "reason": why or row.get("why"),
            }


def _node_state(entry: Entry) -> str:
    if entry.connection is None:
        return "gone" if entry.gone else "away"
    if entry.refused is not None:
        return "refused"
    if entry.late:
        return "late"
    return "ready" if entry.live is not None and entry.live_generation >= entry.generation else "following"


def _state(service: Service, backends: list[BackendPlan], vip: VipPlan | None) -> str:
    if vip is None:
        return "new"
    if service.name in vip.panic:
        return "PANIC"
    wanted = [item for item in backends if item.shown != "drain"]
    if not any(item.takes_flows for item in backends):
        return "down"
    return "up" if all(item.healthy for item in wanted) else "degraded"


def _explain(item: BackendPlan, now: float) -> str:
    words = {
        "up": "takes traffic",
        "down": "takes no traffic",
        "drain": "keeps its connections and takes no new ones",
        "panic": "is not healthy, but kept in service",
        "unknown": "takes no traffic yet",
        "installing": "takes no traffic yet",
    }
    idle = "; its weight is 0, so it takes no new flows" if item.backend.weight == 0 else ""
    slow = ""
    if item.ramp is not None:
        left = max(0.0, item.ramp.begun + item.ramp.seconds - now)
        slow = f"; slow start: it has {item.ramp.share:.0%} of its weight, and all of it in {left:.0f} s"
    return f"{item.backend.name} {words.get(item.shown, item.shown)}: {item.reason}{idle}{slow}"


def _probe_words(service: Service) -> str:
    probe = service.probe
    if probe is None and service.protocol is Protocol.UDP:
        return "none: backends count as healthy once their agents have installed them"
    if probe is None:
        return "none of its own: agents connect to their backends all the same, and what they find counts"
    worst = probe.interval * probe.fall + probe.timeout
    return (
        f"{probe.type.value} every {probe.interval:g} s, down after {probe.fall} failures (at worst {worst:g} s), "
        f"up after {probe.rise} successes"
    )


def _policy_words(service: Service) -> str:
    policy = service.announce.policy if service.announce else AnnouncePolicy.ALWAYS
    if policy is AnnouncePolicy.ALWAYS:
        return "always: the VIP stays announced whatever happens to backends"
    if policy is AnnouncePolicy.ANY_BACKEND:
        return "any-backend: the VIP is announced while a backend is healthy"
    needed = service.announce.n if service.announce else 1
    return f"min-healthy: the VIP is announced while {needed} backends are healthy"
