# SPDX-License-Identifier: Apache-2.0
"""What the web page shows of the fleet: a verdict, what is wrong, and services with the problems first.

Read by :mod:`manager.web.server`, up to four times a second, with ten thousand services: so what is known of a service
is kept until its table or its plan is another object. What nodes tell is taken for numbers and short texts,
whatever it is. Changes nothing.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from lb.daemon.kernel.repairs import goes_on
from lb.model import Service
from lb.rows.node import NodeRow
from manager.api.reader import Row
from manager.api.view import View
from manager.controller.controller import Controller
from manager.nodes.hub import Entry, rows
from manager.observed.announcements import NO_WAY
from manager.observed.pool_agreement import CHOOSES
from manager.observed.rates import NONE, Rate
from manager.plan.model import AGENT, MUX, BackendPlan, VipPlan

#: Services of one page, at most.
PAGE_MAX = 200
#: Lines of what is wrong.
PROBLEMS_MAX = 30
#: Of so many bad backends those that are alike are told in one line.
GROUPED_MAX = 2000
#: Names in one sentence of the verdict.
NAMES_MAX = 3
#: VIPs that the row of a MUX names.
VIPS_MAX = 8
#: Reasons of a service's backends that its row names.
REASONS_MAX = 3
#: Text of a node's that is shown.
TEXT_MAX = 300
#: Rates of services are looked up anew after so long, seconds.
RATES_KEPT = 0.5
#: A flow table is nearly full from here on.
NEARLY_FULL = 0.9

#: States of services, the worst first.
RANK = {state: rank for rank, state in enumerate(("PANIC", "down", "degraded", "new", "up"))}
#: A name as numbers and what is between them.
Natural = list[tuple[int, int, str]]
_WORDS = re.compile(r"[0-9]{1,18}|[^0-9]+")

#: States of nodes that an operator did not want.
_TROUBLE = {
    "gone": "has expired: disconnected for longer than the hold time",
    "away": "is disconnected",
    "refused": "refused its state",
    "late": "does not acknowledge",
}


@dataclass(frozen=True, slots=True)
class Query:
    """What is on somebody's screen."""

    text: str = ""  #: part of a service's or backend's name, or of an address
    state: str = ""  #: "problems", or a state; empty: all
    offset: int = 0
    limit: int = 25
    service: str | None = None  #: shown in detail


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong."""

    level: str  #: "bad": clients may notice; "warn": they do not
    subject: str
    text: str
    since: float | None = None
    service: str | None = None  #: where there is more about it


@dataclass(slots=True)
class ServiceLine:
    """What is known of one service, for as long as ``service`` and ``vip`` are the same objects, and ``said`` equal."""

    service: Service
    vip: VipPlan | None
    said: tuple[object, ...]  #: who announces it, and what there is to say of that
    row: Row
    text: str  #: what a search looks at, in small letters
    place: Natural  #: among names: web-2 comes before web-10
    backends: list[BackendPlan] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, Natural, str]:
        """The worst first, then by name."""
        return RANK.get(self.row["state"], 0), self.place, self.row["name"]


class Overview:
    """Reads one controller. Call :meth:`refresh` first; then everything is of one moment."""

    def __init__(self, controller: Controller, view: View, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._controller = controller
        self._view = view
        self._lines: dict[str, ServiceLine] = {}
        self._sorted: list[ServiceLine] = []
        self._states: Counter[str] = Counter()  # of services
        self._shown: Counter[str] = Counter()  # of backends
        self._hosts: dict[str, Counter[str]] = {}
        self._bad: dict[tuple[str, str, str], BackendPlan] = {}
        self._silent: dict[str, str] = {}  # VIPs that nobody announces, and why
        self._alike = 0  # bad backends that have no line of their own, for another on their host has the same to say
        self._troubles: list[Problem] = []  # of services and their backends, the first of them
        self._worst: dict[str, list[str]] = {}  # state -> names of services
        self._seen: tuple[object, object, int] = (None, None, 0)
        self._rates: tuple[float, Mapping[str, Rate] | None] = (0.0, None)

    # -- what is kept -------------------------------------------------------------------------------------------

    @property
    def current(self) -> bool:
        """Whether a refresh would find nothing."""
        controller = self._controller
        desired, plan, announced = self._seen
        return desired is controller.desired and plan is controller.plan and announced == controller.announced.version

    def refresh(self, most: int | None = None) -> bool:
        """Looks at what is another object than before, ``most`` services at once; False: that was not all."""
        desired, plan, announced = self._controller.desired, self._controller.plan, self._controller.announced
        if self.current:
            return True
        changed = []
        for name, service in desired.services.items():
            old = self._lines.get(name)
            place = str(service.vip)
            vip = plan.vips.get(place)
            if old is None or old.service is not service or old.vip is not vip or old.said != announced.key(place):
                changed.append(name)
        whole = most is None or len(changed) <= most
        self._seen = (desired, plan, announced.version) if whole else (None, None, 0)
        changed = changed[:most]
        gone = self._lines.keys() - desired.services.keys()
        for name in gone:
            self._count(self._lines.pop(name), -1)
        for name in changed:
            self._replace(name)
        if changed or gone:
            self._sorted = sorted(self._lines.values(), key=lambda line: line.order)
            self._troubles = [*self._of_services(), *self._of_backends()]
            self._worst = {state: self._named(state) for state in ("PANIC", "down")}
        return whole

    def _replace(self, name: str) -> None:
        service = self._controller.desired.services[name]
        row: Row = msgspec.to_builtins(self._view.services.plain(service))
        vip = self._controller.plan.vips.get(str(service.vip))
        backends = [item for item in vip.backends if item.service == name] if vip is not None else []
        words = [name, row["vip"], *(word for item in backends for word in (item.backend.name, item.address))]
        if name in self._lines:
            self._count(self._lines[name], -1)
        row["backend_states"] = dict(sorted(Counter(item.shown for item in backends).items()))
        row["why"] = _why(row, vip, backends)
        said = self._controller.announced.key(str(service.vip))
        line = self._lines[name] = ServiceLine(service, vip, said, row, " ".join(words).lower(), _place(name), backends)
        self._count(line, 1)

    def _count(self, line: ServiceLine, one: int) -> None:
        self._states[line.row["state"]] += one
        if one > 0 and line.vip is not None and (why := self._why_silent(line.vip)) is not None:
            self._silent[line.row["vip"]] = why
        else:
            self._silent.pop(line.row["vip"], None)
        for item in line.backends:
            self._shown[item.shown] += one
            self._hosts.setdefault(item.agent or item.address, Counter())[item.shown] += one
            if one > 0 and item.shown in ("down", "panic"):
                self._bad[item.key] = item
            else:
                self._bad.pop(item.key, None)

    def _why_silent(self, vip: VipPlan) -> str | None:
        note = self._controller.announced.notes.get(vip.vip)
        if note is not None and note.level in ("silent", "unreached"):
            return note.text
        if vip.granted:
            return None
        why = "; ".join(f"{mux}: {reason}" for mux, reason in sorted(vip.withheld.items()))
        return f"nobody announces it: {why or 'no MUX has joined'}"

    # -- services -----------------------------------------------------------------------------------------------

    def services(self, query: Query) -> tuple[int, list[Row]]:
        """How many match, and one page of them, problems first."""
        text = query.text.strip().lower()
        found = [
            line for line in self._sorted if (not text or text in line.text) and _is_in(line.row["state"], query.state)
        ]
        page = found[query.offset : query.offset + min(query.limit, PAGE_MAX)]
        rates = self._by_service()
        return len(found), [{**line.row, **_rate(rates, line.row["name"])} for line in page]

    def detail(self, name: str) -> Row | None:
        """One service in words, as ``lb describe``, and what its backends forward; None: there is no such service."""
        if name not in self._lines:
            return None
        found: Row = msgspec.to_builtins(self._view.explanations.service(name))
        told = self._controller.rates.total(self._controller.clocks.steady()) is not None
        rates = self._controller.rates.backends(self._controller.clocks.steady(), name)
        for row in found["backends"]:
            rate = rates.get((name, row["name"]), NONE)
            row["pps"] = round(rate.pps, 1) if told else None
        found["service"] |= _rate(self._by_service(), name)
        return found

    def _by_service(self) -> Mapping[str, Rate] | None:
        """Packets and flows of services; None: nobody told. Looked up at most twice a second."""
        now = self._controller.clocks.steady()
        if not 0 <= now - self._rates[0] < RATES_KEPT:
            told = self._controller.rates.total(now) is not None
            self._rates = now, self._controller.rates.services(now) if told else None
        return self._rates[1]

    # -- nodes --------------------------------------------------------------------------------------------------

    def muxes(self) -> list[Row]:
        """As ``lb get muxes``, with what a MUX tells of itself."""
        entries = {entry.record.name: entry for entry in self._entries(MUX)}
        found = []
        for mux in self._view.nodes.muxes():
            row, entry = msgspec.to_builtins(mux), entries[mux.name]
            told = entry.status.get("mux")
            told = told if isinstance(told, dict) else {}
            found.append(
                {
                    **{
                        key: row[key]
                        for key in ("name", "state", "address", "address6", "since", "generation", "wanted", "clock")
                    },
                    **{key: row[key] for key in ("refused", "version", "drain", "announces", "announced", "differs")},
                    "why": _why_of_node(mux, told),
                    **{key: _text(told.get(key)) for key in ("io", "mode", "rejected")},
                    "condition": _text(told.get("state")),
                    "repaired": _text(row["repaired"]),
                    **{
                        key: _number(told.get(key))
                        for key in ("flows", "flow_capacity", "forwarded", "dropped", "missed")
                    },
                    "vips": [vip.removesuffix("/32").removesuffix("/128") for vip in _announcements(entry)[:VIPS_MAX]],
                    "peers": [_peer(peer) for peer in rows(entry.status, "peers")],
                }
            )
        return found

    def hosts(self) -> list[Row]:
        """Agents, and addresses of backends where none is, with how their backends are."""
        known = {entry.record.name: entry for entry in self._entries(AGENT)}
        found = [
            {
                **{key: getattr(row, key) for key in ("name", "state", "address", "since", "refused", "clock")},
                "why": _why_of_node(row, {}),
                "repaired": _text(row.repaired),
                "backends": dict(+self._hosts.get(row.name, Counter())),
            }
            for row in self._view.nodes.agents()
        ]
        for name, states in sorted(self._hosts.items()):
            if name not in known and +states:
                found.append(
                    {"name": name, "state": "no agent", "address": name, "since": None, "refused": None}
                    | {"why": "no agent has joined with this address", "backends": dict(+states)}
                )
        return found

    def _entries(self, kind: str) -> list[Entry]:
        entries = self._controller.hub.entries.values()
        return sorted((e for e in entries if e.record.kind == kind), key=lambda entry: entry.record.name)

    # -- the verdict --------------------------------------------------------------------------------------------

    def summary(self, muxes: list[Row], hosts: list[Row]) -> Row:
        """One sentence, and what is behind it."""
        announced = [Problem("warn", *found) for found in self._controller.announced.problems]
        problems = [*self._of_history(), *self._troubles, *announced, *_of_nodes(muxes, hosts)]
        # Of services and backends there are more than those that have a line.
        services = self._states["PANIC"] + self._states["down"]
        many = services + len(self._silent) + len(self._bad) - self._alike + len(problems) - len(self._troubles)
        bad = any(problem.level == "bad" for problem in problems)
        level = "bad" if bad else "warn" if problems else "well"
        parts = list(self._phrases(muxes, hosts, problems))
        if self._controller.hub.behind:
            parts.insert(0, "the store is older than what nodes have: no change is taken")
        size = ", ".join(
            (_count(len(self._lines), "service"), _count(len(muxes), "MUX", "MUXes"), _count(len(hosts), "host"))
        )
        drained = [row["name"] for row in muxes if row["drain"] is not None]
        parts += [f"{_names(drained)} drained"] if drained and parts else []
        text = "; ".join(parts) if parts else f"All well: {size}" + (f"; {_names(drained)} drained" if drained else "")
        if not self._lines and not problems:
            level, text = "idle", f"Nothing to serve yet: {size}"
        return {
            "level": level,
            "text": text,
            "size": size,
            "problems": [
                {"level": p.level, "subject": p.subject, "text": p.text, "since": p.since, "service": p.service}
                for p in sorted(problems, key=lambda p: p.level != "bad")[:PROBLEMS_MAX]
            ],
            "more_problems": max(0, many - PROBLEMS_MAX),
            "service_states": dict(+self._states),
            "backend_states": dict(+self._shown),
        }

    def _of_history(self) -> list[Problem]:
        behind = self._controller.hub.behind
        return [Problem("bad", "manager", behind.sentence)] if behind else []

    def _phrases(self, muxes: list[Row], hosts: list[Row], problems: list[Problem]) -> Iterator[str]:
        """The parts of the sentence, the worst first."""
        for state, words in (("PANIC", "in PANIC"), ("down", "down")):
            if self._states[state]:
                yield f"{_names(self._worst[state], self._states[state])} {words}"
        silent = [vip for vip, why in self._silent.items() if why.startswith("nobody")]
        if silent:
            yield f"nobody announces {_names(silent)}"
        if len(silent) < len(self._silent):
            yield f"{NO_WAY} to {_names([vip for vip in self._silent if vip not in silent])}"
        if alone := self._controller.announced.alone:
            yield f"one MUX alone announces {_names(alone)}"
        if self._shown["down"]:
            yield f"{_count(self._shown['down'], 'backend')} down"
        for word, nodes in (("", muxes), ("host ", hosts)):
            for state in ("gone", "away", "refused", "late"):
                named = [row["name"] for row in nodes if row["state"] == state]
                if named:
                    yield f"{word}{_names(named)} {'refused its state' if state == 'refused' else state}"
        sessions = [
            f"{row['name']} with {peer['name']}"
            for row in muxes
            for peer in row["peers"]
            if row["state"] not in ("away", "gone") and peer["state"] != "established"
        ]
        if sessions:
            yield f"BGP {_names(sessions)} not established"
        others = [p for p in problems if p.subject.startswith("mux ") and p.text.startswith(_OF_MUX)]
        yield from (f"{p.subject.removeprefix('mux ')} {p.text.partition(':')[0]}" for p in others[:NAMES_MAX])
        yield from _told_by(muxes, hosts)
        without = [row["name"] for row in hosts if row["state"] == "no agent"]
        if without:
            yield f"no agent on {_names(without)}"

    def _named(self, state: str) -> list[str]:
        """Some of the services in a state."""
        found = (line.row["name"] for line in self._sorted if line.row["state"] == state)
        return list(islice(found, NAMES_MAX))

    def _of_services(self) -> Iterator[Problem]:
        for line in islice(self._sorted, PROBLEMS_MAX):  # the worst come first
            name = line.row["name"]
            if line.vip is not None and name in line.vip.panic:
                yield Problem("bad", f"service {name}", f"PANIC: {line.vip.panic[name]}", service=name)
            elif line.row["state"] == "down":
                yield Problem("bad", f"service {name}", _why_down(line), service=name)
        for vip, why in islice(self._silent.items(), PROBLEMS_MAX):
            yield Problem("bad", f"vip {vip}", why)

    def _of_backends(self) -> Iterator[Problem]:
        """The newest first; what befell a host is one line, however many backends are there."""
        newest = heapq.nsmallest(GROUPED_MAX, self._bad.values(), key=lambda item: (-item.since, item.key))
        alike: dict[tuple[str, str, str], list[BackendPlan]] = {}
        for item in newest:
            alike.setdefault((item.agent or item.address, item.shown, item.reason), []).append(item)
        self._alike = len(newest) - len(alike)
        for (host, shown, reason), items in islice(alike.items(), PROBLEMS_MAX):
            first, *others = items
            label = f"{first.service}/{first.backend.name}"
            if not others:
                yield Problem("warn", f"backend {label}", f"{shown}: {reason}", first.since, first.service)
            else:
                names = _names([f"{item.service}/{item.backend.name}" for item in items])
                yield Problem("warn", f"host {host}", f"{len(items)} backends {shown}: {reason} ({names})", first.since)


def _told_by(muxes: list[Row], hosts: list[Row]) -> Iterator[str]:
    """Parts of the sentence, of what nodes tell of themselves."""
    clocks = [row["name"] for row in (*muxes, *hosts) if row.get("clock")]
    if clocks:
        yield f"{'clock' if len(clocks) == 1 else 'clocks'} of {_names(clocks)} not the manager's"
    undone = [row["name"] for row in (*muxes, *hosts) if goes_on(row.get("repaired"))]
    if undone:
        yield f"what {_names(undone)} {'keeps' if len(undone) == 1 else 'keep'} in the kernel is undone"


_OF_MUX = ("does not announce", "goes on with an older", "chooses other", "is degraded", "has a flow table")


def _of_nodes(muxes: list[Row], hosts: list[Row]) -> Iterator[Problem]:
    for row in muxes:
        yield from _of_node("mux", row)
        if row["state"] not in ("away", "gone"):
            yield from _of_mux(row)
    for row in hosts:
        yield from _of_node("agent", row)
        if row["state"] == "no agent":
            yield Problem("warn", f"host {row['name']}", "no agent has joined with this address")


def _of_node(kind: str, row: Row) -> Iterator[Problem]:
    if row.get("clock"):
        yield Problem("warn", f"{kind} {row['name']}", str(row["clock"]))
    if goes_on(repaired := row.get("repaired")):
        yield Problem("warn", f"{kind} {row['name']}", repaired)
    words = _TROUBLE.get(row["state"])
    if words is None:
        return
    reason = row["refused"] or ("it goes on with what it has" if row["state"] in ("away", "gone") else "")
    level = "bad" if kind == "mux" and row["state"] != "late" else "warn"
    yield Problem(level, f"{kind} {row['name']}", f"{words}: {reason}" if reason else words, row["since"])


def _of_mux(row: Row) -> Iterator[Problem]:
    subject = f"mux {row['name']}"
    if row["rejected"]:
        yield Problem("warn", subject, f"goes on with an older configuration: {row['rejected']}")
    if row["differs"]:
        yield Problem("bad", subject, f"{CHOOSES}: {row['differs']}")
    if row["condition"] == "degraded":
        yield Problem("bad", subject, "is degraded: its interface is gone")
    flows, capacity = row["flows"], row["flow_capacity"]
    if flows is not None and capacity and flows >= NEARLY_FULL * capacity:
        yield Problem("warn", subject, f"has a flow table that is {flows / capacity:.0%} full")
    for peer in row["peers"]:
        if peer["state"] != "established":
            why = f": {peer['error']}" if peer["error"] else ""
            yield Problem("warn", subject, f"BGP session with {peer['name']} is {peer['state'] or 'not known'}{why}")


def _why(row: Row, vip: VipPlan | None, backends: list[BackendPlan]) -> str | None:
    """Why a service is in its state, and whatever else `lb get` tells of it and of its backends; None: all is well."""
    panic = vip.panic.get(row["name"]) if vip is not None else None
    unwell: dict[tuple[str, str], list[str]] = {}
    for item in backends:
        if item.shown != "up" or not item.healthy:
            unwell.setdefault((item.shown, item.reason), []).append(item.backend.name)
    words = [
        f"PANIC: {panic}" if panic else None,
        row["note"],
        None if backends else "it has no backends" if vip is not None else "it is planned in a moment",
        *(f"{_names(names)} {shown}: {reason}" for (shown, reason), names in islice(unwell.items(), REASONS_MAX)),
        f"{len(unwell) - REASONS_MAX} more reasons" if len(unwell) > REASONS_MAX else None,
    ]
    return _text("; ".join(word for word in words if word)) or None


def _why_of_node(row: NodeRow, told: Mapping[str, Any]) -> str | None:
    """As `lb get` tells it below its table, and why it is in its state."""
    rejected = _text(told.get("rejected"))
    words = [
        f"{_TROUBLE[row.state]}; it goes on with what it has" if row.state in ("away", "gone", "late") else None,
        f"goes on with an older configuration: {rejected}" if rejected else None,
        *row.troubles(),
    ]
    return _text("; ".join(word for word in words if word)) or None


def _why_down(line: ServiceLine) -> str:
    if not line.backends:
        return "it has no backends"
    if line.row["note"]:
        return str(line.row["note"])
    states = ", ".join(f"{count} {state}" for state, count in line.row["backend_states"].items())
    return f"no backend takes traffic: {states}"


def _place(name: str) -> Natural:
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in _WORDS.findall(name)]


def _rate(rates: Mapping[str, Rate] | None, name: str) -> Row:
    if rates is None:
        return {"pps": None, "flows": None}
    rate = rates.get(name, NONE)
    return {"pps": round(rate.pps, 1), "flows": rate.flows}


def _is_in(state: str, wanted: str) -> bool:
    return not wanted or state == wanted or (wanted == "problems" and state not in ("up", "new"))


def _announcements(entry: Entry) -> list[str]:
    return sorted((entry.state or {}).get("announcements", {}))


def _peer(row: Mapping[str, Any]) -> Row:
    return {
        **{key: _text(row.get(key)) for key in ("name", "address", "state", "error", "kind")},
        **{key: _number(row.get(key)) for key in ("asn", "announced", "seconds")},
    }


def _text(value: object) -> str | None:
    return value[:TEXT_MAX] if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _names(names: Collection[str], of: int | None = None) -> str:
    """The first of them; ``of``: how many there are, where ``names`` has but some."""
    shown = ", ".join(islice(names, NAMES_MAX))
    more = (len(names) if of is None else of) - NAMES_MAX
    return f"{shown} and {more:,} more" if more > 0 else shown
