# SPDX-License-Identifier: Apache-2.0
"""What probes say of backends: the reports of agents and MUXes, and the verdict on each backend, in words.

``Reports`` keeps the latest word of every node and for how long to believe it; :mod:`manager.controller.controller`
owns one.
:func:`judge` is pure and is called by :mod:`manager.plan.verdicts` for each backend of a service with a probe:

    agent   tunnels (MUXes)        verdict
    up      no majority says down  up
    up      a majority says down   down: the path is broken for most
    down    any                    down: the agent sees the process itself
    none    a majority says down   down
    none    at least one says up   up
    none    else                   unknown: no news is not bad news; the plan keeps what was

Of what they cannot ask through a tunnel, MUXes say whether its machine is there. That counts only where there is no
word of the agent, and only against the backend: a machine that is there says nothing of the process.

A node may report on what it was told of and on nothing else, so that what is kept of it is bounded by the services that
there are: a MUX on all backends, an agent on those of its own host. The rest is passed over and counted.

A node's reports are believed until its lease ends; each message of the node renews the lease. All moments here are of
the manager's steady clock, so a wall's clock that jumps ends no lease and keeps none alive.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from lb.model import Address

#: Service and backend, by name.
Key = tuple[str, str]


class Health(enum.Enum):
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Source(enum.Enum):
    """Who probed: the agent on the backend's own host, or a MUX through its tunnel."""

    AGENT = "agent"
    TUNNEL = "tunnel"


@dataclass(frozen=True, slots=True)
class Report:
    """One node's word on one backend."""

    up: bool
    reason: str
    since: float  #: Unix time, of the node's clock: for people only
    heard: float = 0.0  #: since when, by the manager's steady clock, it has said that it is up, or down
    address: Address | None = None  #: of the backend, when that was said: by now the name may be another's; None: any
    host: bool = False  #: it tells of the backend's machine alone
    refused: bool = False  #: down, and the backend's machine itself says that nobody listens there


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is believed of one backend at a moment."""

    agent: Report | None = None
    tunnels: Mapping[str, Report] = field(default_factory=dict)  #: by MUX
    muxes: int = 0  #: how many MUXes have a vote


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    health: Health
    reason: str
    refused: bool = False  #: down beyond doubt: its machine itself says that nobody listens there


def judge(evidence: Evidence) -> HealthVerdict:
    """The table above."""
    agent = evidence.agent
    tunnels = {name: report for name, report in evidence.tunnels.items() if agent is None or not report.host}
    failing = {name: report for name, report in tunnels.items() if not report.up}
    working = sum(report.up and not report.host for report in tunnels.values())
    veto = 2 * len(failing) > max(evidence.muxes, len(tunnels))
    if agent is not None and not agent.up:
        return HealthVerdict(Health.DOWN, f"its agent says: {agent.reason}", agent.refused)
    if veto:
        refused = all(report.refused for report in failing.values())
        return HealthVerdict(Health.DOWN, _cannot_reach(failing, evidence), refused)
    minority = f"; but {_cannot_reach(failing, evidence)}" if failing else ""
    if agent is not None:
        return HealthVerdict(Health.UP, f"its agent says: {agent.reason}{minority}")
    if working:
        return HealthVerdict(
            Health.UP, f"no report from an agent; {working} of {evidence.muxes} MUXes reach it{minority}"
        )
    return HealthVerdict(Health.UNKNOWN, f"no report from an agent or a MUX{minority}")


def _cannot_reach(failing: Mapping[str, Report], evidence: Evidence) -> str:
    who, report = min(failing.items(), key=lambda item: item[0])
    if report.host:
        silent = f"{len(failing)} of {evidence.muxes} MUXes hear nothing ({who}: {report.reason})"
        return f"no report from an agent, and {silent}"
    return f"{len(failing)} of {evidence.muxes} MUXes cannot reach it through the tunnel ({who}: {report.reason})"


class Reports:
    """The latest word of every node; of nodes that are silent for longer than their lease, nothing."""

    def __init__(self) -> None:
        self._of: dict[tuple[Source, str], dict[Key, Report]] = {}  # node -> its reports
        self._expires: dict[tuple[Source, str], float] = {}  # node -> end of its lease; no key once it has ended
        self._tunnels: dict[Key, dict[str, Report]] = {}  # backend -> MUX -> report, of live leases
        self._passed_over: dict[tuple[Source, str], int] = {}  # node -> reports that were none of its affair

    def heard(self, source: Source, node: str, reports: Mapping[Key, Report], now: float, lease: float) -> set[str]:
        """A message of a node; returns the services on which its word is another than before."""
        who = (source, node)
        known = self._of.setdefault(who, {})
        revived = who not in self._expires
        self._expires[who] = now + lease
        changed = {key[0] for key, report in reports.items() if _differs(known.get(key), report)}
        before = {} if revived else known
        known.update({key: _dated(before.get(key), report, now) for key, report in reports.items()})
        if revived:
            changed |= {key[0] for key in known}
        if source is Source.TUNNEL:
            for key in known if revived else reports:
                self._tunnels.setdefault(key, {})[node] = known[key]
        return changed

    def turned(self, source: Source, node: str, reports: Mapping[Key, Report]) -> set[Key]:
        """Of what a node is about to say, the backends that are up now and were not, or the other way; to be asked
        before :meth:`heard`. Why they are down may be put into other words each time, and many services may hang on
        one host."""
        who = (source, node)
        known = self._of.get(who, {}) if who in self._expires else {}
        return {key for key, report in reports.items() if not _same_word(known.get(key), report)}

    def expire(self, now: float) -> set[str]:
        """Ends leases; returns the services on which somebody's word is no longer believed."""
        ended = [who for who, expires in self._expires.items() if expires <= now]
        return set().union(*(self._end(who) for who in ended))

    def forget(self, source: Source, node: str) -> set[str]:
        """The node is no longer one of ours."""
        changed = self._end((source, node))
        self._of.pop((source, node), None)
        self._passed_over.pop((source, node), None)
        return changed

    def pass_over(self, source: Source, node: str, count: int) -> None:
        """So many reports of a message were on what the node was not told to look at; they are not kept."""
        if count:
            self._passed_over[source, node] = self.passed_over(source, node) + count

    def passed_over(self, source: Source, node: str) -> int:
        """How many those were since this manager began; from any thread."""
        return self._passed_over.get((source, node), 0)

    def keep_only(self, there: Callable[[str, str], bool]) -> None:
        """Forgets backends that are no longer there, as told by service and backend."""
        tables: list[MutableMapping[Key, Any]] = [*self._of.values(), self._tunnels]
        for known in tables:
            for key in [key for key in known if not there(*key)]:
                del known[key]

    def agent(self, node: str | None, key: Key, address: Address | None = None) -> Report | None:
        """``address``: the backend's; what was said of a backend of that name elsewhere does not count."""
        who = (Source.AGENT, node or "")
        found = self._of[who].get(key) if who in self._expires else None
        return found if found is not None and _is_of(found, address) else None

    def tunnels(self, key: Key, address: Address | None = None) -> Mapping[str, Report]:
        """By MUX; ``address`` as for :meth:`agent`."""
        found = self._tunnels.get(key, {})
        if all(_is_of(report, address) for report in found.values()):
            return found
        return {mux: report for mux, report in found.items() if _is_of(report, address)}

    def _end(self, who: tuple[Source, str]) -> set[str]:
        if self._expires.pop(who, None) is None:
            return set()
        keys = self._of.get(who, {}).keys()
        if who[0] is Source.TUNNEL:
            for key in keys:
                self._tunnels.get(key, {}).pop(who[1], None)
        return {key[0] for key in keys}


def _dated(old: Report | None, new: Report, now: float) -> Report:
    """Said anew or with another reason, it is as old as it was."""
    return replace(new, heard=old.heard if old is not None and _same_word(old, new) else now)


def _same_word(old: Report | None, new: Report) -> bool:
    """Up or down as before, whatever the reason."""
    return old is not None and (old.up, old.address) == (new.up, new.address)


def _is_of(report: Report, address: Address | None) -> bool:
    return address is None or report.address is None or report.address == address


def _differs(old: Report | None, new: Report) -> bool:
    return old is None or (old.up, old.reason, old.refused, old.address) != (
        new.up,
        new.reason,
        new.refused,
        new.address,
    )
