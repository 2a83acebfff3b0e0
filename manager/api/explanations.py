# SPDX-License-Identifier: Apache-2.0
"""``lb describe`` and ``lb doctor``: one service, VIP or flow in words, and what nodes find of themselves."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from lb.config.render import service_table, vip_text
from lb.errors import NotFoundError
from lb.model import Address, AnnouncePolicy, Network, Protocol, Service
from lb.node.messages import Examination, FlowAnswer
from manager.api.announcement_rows import VipRows
from manager.api.answers import Description, ExaminationRow, FindingRow, FlowByMux, FlowRow, LeftOut, Vip
from manager.api.flow_explanation import AskedFlow, goes_to, mux_words, nearest, taker, together
from manager.api.reader import Reader, event_rows, node_state
from manager.api.requests import ServiceTableRow
from manager.api.service_rows import ServiceRows
from manager.controller.controller import Controller
from manager.plan.model import AGENT, MUX, BackendPlan
from manager.store.events import about


class Explanations(Reader):
    """Everything on one thing, and the sentences that explain it."""

    def __init__(self, controller: Controller, services: ServiceRows, announcements: VipRows) -> None:
        super().__init__(controller)
        self._services, self._announcements = services, announcements

    def service(self, name: str) -> Description:
        """Everything on one service, and the sentences that explain it."""
        service = self._controller.desired.services.get(name)
        if service is None:
            known = ", ".join(sorted(self._controller.desired.services)[:8]) or "none yet"
            raise NotFoundError(f'there is no service "{name}"; there are {known}')
        backends = self.backend_plans(service)
        vip = self.vip_plan(service)
        subjects = {f"service {name}", f"vip {service.vip}"}
        subjects |= {f"backend {name}/{backend.name}" for backend in service.backends}
        return Description(
            service=self._services.rows([name])[0],
            table=msgspec.convert(service_table(service), ServiceTableRow),
            panic=vip.panic.get(name) if vip else None,
            probe=_probe_words(service),
            policy=_policy_words(service),
            backends=self._services.backends([name]),
            announcements=[self._announcements.words(entry, vip) for entry in self.entries(MUX)],
            left_out=self._left_out(name, f"announcements/{service.vip}"),
            explanation=[_explain(item, self._steady()) for item in backends],
            events=event_rows(self._controller.events.latest(20, about(subjects))),
        )

    async def flow(self, flow: AskedFlow, seconds: float) -> FlowRow:
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
        backends = {item.backend.name: item for item in self.backend_plans(service)} if service else {}
        behind = [entry.record.name for entry in self.entries(MUX) if node_state(entry) != "ready"]
        agree, words = together(flow, answers, backends, behind)
        if service is None:
            near = nearest(flow, services)
            words = [f"No service takes {flow}.", *near] if near else [f"No service takes {flow}: there is none yet."]
            agree = None
        return FlowRow(
            flow=str(flow),
            service=self._services.rows([service.name])[0] if service else None,
            agree=agree,
            words=words,
            muxes=[_by_mux(name, flow, answer, backends) for name, answer in sorted(answers.items())],
            backends=self._services.backends([service.name]) if service else [],
        )

    async def examination(self, seconds: float) -> list[ExaminationRow]:
        """What each node's own doctor finds, as it says it."""
        answers = await self._controller.hub.examine(seconds)
        return [_examined(id_, answer) for id_, answer in sorted(answers.items())]

    def vip(self, address: Address) -> Vip:
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
        return Vip(
            vip=vip_text(vip),
            services=self._services.rows(names),
            announcements=[self._announcements.words(entry, plan) for entry in self.entries(MUX)],
            left_out=self._left_out(*names, f"announcements/{vip}"),
            events=event_rows(self._controller.events.latest(20, about(subjects))),
        )

    def _left_out(self, *names: str) -> list[LeftOut]:
        """Which nodes do not serve some of these, and why."""
        return [
            LeftOut(node=entry.id, what=name, reason=entry.left_out[name])
            for kind in (MUX, AGENT)
            for entry in self.entries(kind)
            for name in names
            if name in entry.left_out
        ]


def _within(address: Address, vip: Network) -> bool:
    return address.version == vip.version and address in vip


def _by_mux(name: str, flow: AskedFlow, answer: FlowAnswer | str, backends: Mapping[str, BackendPlan]) -> FlowByMux:
    """An answer that is a text says why there is none."""
    told = answer if not isinstance(answer, str) else FlowAnswer(0)
    return FlowByMux(
        mux=name,
        service=told.service,
        slot=told.slot,
        new=told.new,
        remembered=told.remembered,
        flow_class=told.flow_class,
        age=told.age,
        goes_to=None if isinstance(answer, str) else goes_to(flow, answer, backends),
        words=mux_words(flow, answer, backends),
    )


def _examined(id_: str, answer: Examination | str) -> ExaminationRow:
    """An answer that is a text says why there is none."""
    kind, _, name = id_.partition(":")
    told = Examination(0, error=answer) if isinstance(answer, str) else answer
    findings = [msgspec.convert(msgspec.to_builtins(finding), FindingRow) for finding in told.findings]
    return ExaminationRow(
        kind=kind, name=name, findings=findings, fine=told.fine, left_out=told.left_out, error=told.error
    )


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
