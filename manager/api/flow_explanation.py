# SPDX-License-Identifier: Apache-2.0
"""``lb describe flow`` in sentences: what each MUX makes of a flow, whether they agree, and why they may not. Pure.

The manager computes no table and knows no flow: what a flow gets, MUXes say. What it adds is what it knows of services
and backends. Used by :mod:`manager.api.view`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lb.config.render import vip_text
from lb.model import Address, Protocol, Service
from lb.node.messages import FlowAnswer
from manager.plan.model import BackendPlan

#: Services that are shown where none takes the flow.
NEAREST = 5


@dataclass(frozen=True, slots=True)
class AskedFlow:
    """What is asked about."""

    protocol: Protocol
    source: Address
    source_port: int
    destination: Address
    destination_port: int

    def __str__(self) -> str:
        source, destination = (
            f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
            for address, port in ((self.source, self.source_port), (self.destination, self.destination_port))
        )
        return f"{self.protocol.value} {source} → {destination}"


def taker(flow: AskedFlow, services: Iterable[Service]) -> Service | None:
    """The service that takes a flow: the most specific one."""
    found = [service for service in services if _takes(service, flow)]
    return max(found, key=lambda s: (s.vip.prefixlen, s.ports.first - s.ports.last), default=None)


def _takes(service: Service, flow: AskedFlow) -> bool:
    return _address_fits(service, flow) and service.protocol is flow.protocol and _port_fits(service, flow)


def _address_fits(service: Service, flow: AskedFlow) -> bool:
    return service.vip.version == flow.destination.version and flow.destination in service.vip


def _port_fits(service: Service, flow: AskedFlow) -> bool:
    return service.ports.first <= flow.destination_port <= service.ports.last


def nearest(flow: AskedFlow, services: Iterable[Service]) -> list[str]:
    """Services that nearly take it, and what is in the way; the nearest first."""
    found = []
    for service in services:
        if service.vip.version != flow.destination.version:
            continue
        wrong = []
        if not _address_fits(service, flow):
            wrong.append(f"is at {vip_text(service.vip)}")
        if service.protocol is not flow.protocol:
            wrong.append(f"is for {service.protocol.value}")
        if not _port_fits(service, flow):
            wrong.append(f"is for port {service.ports}")
        far = int(service.vip.network_address) ^ int(flow.destination) if not _address_fits(service, flow) else 0
        found.append((far, len(wrong), service.name, f'service "{service.name}" {" and ".join(wrong)}'))
    return [words for *_, words in sorted(found)[:NEAREST]]


# --- what a MUX says -------------------------------------------------------------------------------------------------


def mux_words(flow: AskedFlow, answer: FlowAnswer | str, backends: Mapping[str, BackendPlan]) -> str:
    """One MUX's word as a sentence."""
    if isinstance(answer, str):
        return f"does not say: {answer}"
    if answer.error is not None:
        return f"cannot say: {answer.error}"
    if answer.service is None:
        return "has no service for it"
    new = f"a new flow gets {answer.new}" if answer.new else "no backend of it takes new flows"
    slot = f" (slot {answer.slot})" if answer.slot is not None else ""
    if answer.flow_class is None:
        return f"does not remember it; {new}{slot}"
    age = f"its last packet was {answer.age:.0f} s ago" if answer.age is not None else "its age is not known"
    trust = _trust(answer.flow_class)
    if answer.remembered is None:
        return (
            f"remembers it ({trust}; {age}) with a backend that is no more, so it goes where new ones go: {new}{slot}"
        )
    return f"remembers it with {answer.remembered} ({trust}; {age}): {_fate(flow, answer, backends)}"


def _trust(flow_class: str) -> str:
    """A class of lb.dataplane.FLOW_CLASSES in words."""
    if "_young" in flow_class:
        words = "seen more than once, but within a quarter second"
    else:
        words = "seen in both a first and a later packet" if "_trusted" in flow_class else "seen only once so far"
    return f"{words}; the client ended it" if flow_class.endswith("_ended") else words


def goes_to(flow: AskedFlow, answer: FlowAnswer, backends: Mapping[str, BackendPlan]) -> str | None:
    """The backend that the flow's next packet goes to by this MUX."""
    if answer.remembered is None or _moves(flow, backends.get(answer.remembered)):
        return answer.new
    return answer.remembered


def _moves(flow: AskedFlow, item: BackendPlan | None) -> bool:
    """Whether a remembered flow leaves its backend: by docs/flow.md, in the order of decisions."""
    if item is None:
        return False  # the MUX knows it, and we do not yet
    state = item.state.value
    return state == "down" or (state == "drain" and flow.protocol is Protocol.UDP)


def _fate(flow: AskedFlow, answer: FlowAnswer, backends: Mapping[str, BackendPlan]) -> str:
    item = backends.get(answer.remembered or "")
    instead = answer.new or "no backend, for none takes new flows"
    if _moves(flow, item):
        assert item is not None  # noqa: S101
        if item.state.value == "drain":
            return f"that drains, and UDP moves at once: the next packet goes to {instead}"
        return f"that is down ({item.reason}): the next packet goes to {instead}"
    if item is not None and item.state.value == "drain":
        return f"it stays there until it ends, though that drains; a new flow gets {instead}"
    if answer.new == answer.remembered:
        return "it stays there, and a new flow gets the same"
    return f"it stays there; a new flow gets {instead}"


# --- all of them -----------------------------------------------------------------------------------------------------


def together(
    flow: AskedFlow,
    answers: Mapping[str, FlowAnswer | str],
    backends: Mapping[str, BackendPlan],
    behind: Collection[str],
) -> tuple[bool | None, list[str]]:
    """Whether the MUXes agree (None: fewer than two say anything), and sentences on it. ``behind``: MUXes that do not
    have their latest state."""
    said = {mux: answer for mux, answer in answers.items() if isinstance(answer, FlowAnswer) and answer.error is None}
    if not answers:
        return None, ["No MUX has joined yet, and only a MUX can say which backend a flow gets."]
    if not said:
        return None, ["No MUX answers, and only a MUX can say which backend a flow gets."]
    words = []
    if len({answer.new for answer in said.values()}) > 1:
        choices = ", ".join(f"{mux} {answer.new or 'none'}" for mux, answer in sorted(said.items()))
        words.append(f"MUXes disagree on what a new flow gets: {choices}. {_why_tables_differ(said, behind)}")
    words += _remembrance(flow, said, backends)
    if len(said) < 2:
        return None, words
    agree = len({goes_to(flow, answer, backends) for answer in said.values()}) == 1
    if agree and not words:
        words = ["All MUXes agree."]
    return agree, words


def _why_tables_differ(said: Mapping[str, FlowAnswer], behind: Collection[str]) -> str:
    late = sorted(set(behind) & said.keys())
    if late:
        return f"{', '.join(late)} {'has' if len(late) == 1 else 'have'} not taken the latest state yet."
    if len({answer.slot for answer in said.values()}) > 1:
        return "They compute other slots for it: their seeds or slots in [mux] differ, and must be the same."
    return "They have the same state, so something other differs: compare [mux] of their files."


def _remembrance(flow: AskedFlow, said: Mapping[str, FlowAnswer], backends: Mapping[str, BackendPlan]) -> list[str]:
    """What follows from who remembers the flow where."""
    places: dict[str, list[str]] = {}
    for mux, answer in sorted(said.items()):
        if answer.remembered is not None and not _moves(flow, backends.get(answer.remembered)):
            places.setdefault(answer.remembered, []).append(mux)
    if len(places) > 1:
        where = "; ".join(f"{', '.join(muxes)}: {backend}" for backend, muxes in sorted(places.items()))
        return [
            f"MUXes remember it with different backends ({where}): it came by one of them before and by another since "
            "the table changed. The one that the router sends it by now decides."
        ]
    for backend, muxes in places.items():
        strangers = {mux: answer.new for mux, answer in said.items() if mux not in muxes and answer.new != backend}
        if strangers:
            would = ", ".join(f"{mux} would send it to {new or 'nobody'}" for mux, new in sorted(strangers.items()))
            return [
                f"Only {', '.join(muxes)} knows that it is at {backend}; {would}. It breaks if its packets come by "
                f"another MUX: {muxes[0]} hands it over when it is drained or restarted, but not when it is lost."
            ]
    return []
