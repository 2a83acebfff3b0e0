# SPDX-License-Identifier: Apache-2.0
"""What nodes find of themselves and what the manager knows of all, as one list with one finding for each cause. Pure.

A finding is known by what it is about: ``backend web/web-1``, ``vip 203.0.113.10``, ``mux mux1`` (what that MUX does
not announce), or ``mux mux1: bgp`` (one check of one node). Three steps:

    attributed   a node's findings get its name, as its own word, and may be about nothing that is not its to know
    grouped      what several nodes say of the same thing is one finding; what they could not look at is one line
    explained    a finding of which all is what another, deeper one is about becomes a part of that one's text

What lies deeper: what a host says of itself goes before what a MUX sees of the way to it, and both before what follows
of it in the manager's view. Nothing is lost: a finding that explains others names them.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lb.doctor.model.findings import Finding, Severity, ok, unknown

#: Checks of a MUX that judge others from outside: the way to a backend, and who answers for a VIP.
OUTSIDE = frozenset(
    {
        "host_firewall",
        "host_silent",
        "udp_answer",
        "vip_arp",
        "unreachable",
        "no_agent",
        "protocol_4",
        "mtu_path",
        "backend",
        "path",
        "no_next_hop",
        "probes_off",
    }
)
#: Checks of a host by which none of its backends is served.
WHOLE_HOST = frozenset(
    {"decapsulation", "translation", "filter_ahead", "rp_filter", "interface", "mtu", "address", "stale_table"}
)
#: Checks of a MUX by which a whole host is away, and with it its agent.
WHOLE_WAY = frozenset({"unreachable", "no_next_hop"})
#: What a MUX takes for the reason while the agent is away: that it is away comes first.
WITHOUT_AGENT = frozenset({"protocol_4", "no_agent", "host_silent", "path"})
#: Checks of a MUX by which it announces nothing.
WHOLE_MUX = frozenset({"bgp", "bgp_password", "bgp_refused", "interface", "address", "manager_state"})
#: What a node calls otherwise than the manager.
SAME = {"bgp_password": "bgp", "bgp_refused": "bgp", "manager_state": "node_state"}
#: What every node says and the manager knows best: it is one finding for all. Where its store is older than what nodes
#: have, it gives them no orders, and they say that they do not follow it.
OF_ALL = frozenset({"history"})
#: So many of what a finding explains, and of the nodes that say the same, are named.
NAMED = 4

_RANK = {severity: number for number, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node's word."""

    kind: str  #: mux or agent
    name: str
    findings: Sequence[Finding] = ()
    fine: int = 0
    left_out: int = 0  #: findings that were too many to tell
    error: str | None = None  #: why it did not look

    @property
    def id(self) -> str:
        return f"{self.kind} {self.name}"


class _Depth(enum.IntEnum):
    """Who goes before whom in naming a cause."""

    VIEW = 0  #: the manager's
    MUX = 1
    AWAY = 2  #: an agent that is not there, by the manager's view
    UNREACHED = 3  #: a host, by a MUX's word
    HOST = 4  #: of itself


@dataclass(slots=True)
class _Found:
    """One finding that will be shown, unless another explains it."""

    finding: Finding
    depth: _Depth
    about: frozenset[str]
    by: list[str]  #: nodes that say so; none: the manager
    explains: list[Finding] = field(default_factory=list)


def merged(
    own: Iterable[Finding], said: Sequence[NodeReport], backends_of: Mapping[str, Sequence[str]]
) -> list[Finding]:
    """``own``: the manager's view; ``backends_of``: by agent its backends, ``backend SERVICE/NAME``."""
    view = list(own)
    found = [_Found(finding, _depth(finding), frozenset(finding.about), []) for finding in view if _is_wrong(finding)]
    of_all = OF_ALL | {"manager"} if any(finding.check == "history" for finding in view) else OF_ALL
    for node in said:
        found += [_attributed(node, finding, backends_of, of_all) for finding in node.findings if _is_wrong(finding)]
    found = _grouped(found)
    shown = [_shown(one) for one in _explained(found)]
    shown += _unseen(said)
    looked = [node for node in said if node.error is None]
    if looked:
        shown.append(_fine(looked))
    return [*shown, *(finding for finding in view if not _is_wrong(finding))]


def _is_wrong(finding: Finding) -> bool:
    return finding.severity in (Severity.FAULT, Severity.WARNING)


def _attributed(
    node: NodeReport, finding: Finding, backends_of: Mapping[str, Sequence[str]], of_all: Collection[str]
) -> _Found:
    """An agent may speak of its own backends alone, and a MUX of no other node, whatever they say: they could hide what
    is wrong with others."""
    about = {name for name in finding.about if not _is_of_node(name)}
    agent = node.kind == "agent"
    if agent:
        backends = set(backends_of.get(node.name, ()))
        about = {name for name in about if name in backends or name.startswith("vip ")}
        if finding.check in WHOLE_HOST and not about & backends and finding.severity is Severity.FAULT:
            about |= backends
    elif finding.check in WHOLE_MUX and finding.severity is Severity.FAULT:
        about.add(node.id)
    elif finding.check in WHOLE_WAY:
        about |= {f"agent {name}: node" for name, labels in backends_of.items() if about.intersection(labels)}
    if finding.check in of_all:
        return _Found(replace(finding, cause=None), _Depth.VIEW, frozenset({"history"}), [node.id])
    about.add(f"{node.id}: {SAME.get(finding.check, finding.check)}")
    depth = _Depth.HOST if agent else _Depth.UNREACHED if finding.check in WHOLE_WAY else _Depth.MUX
    return _Found(finding, depth, frozenset(about), [node.id])


def _depth(finding: Finding) -> _Depth:
    """Of the manager's view."""
    of_agent = finding.check == "node" and any(name.startswith("agent ") for name in finding.about)
    return _Depth.AWAY if of_agent else _Depth.VIEW


def _is_of_node(name: str) -> bool:
    """No service and no backend has a name with a space."""
    return name.startswith(("mux ", "agent "))


def _grouped(found: Iterable[_Found]) -> list[_Found]:
    """Nodes that say the same of the same things."""
    groups: dict[tuple[object, ...], _Found] = {}
    for number, one in enumerate(found):
        finding = one.finding
        topic = frozenset(name for name in one.about if not _is_of_node(name))
        key = (one.depth, finding.check, finding.cause, finding.severity, topic or number)
        if key in groups and one.by:
            groups[key].by += one.by
            groups[key].about |= one.about
        else:
            groups[key] = one
    return list(groups.values())


def _explained(found: list[_Found]) -> list[_Found]:
    """Without those that others explain, which tell of them instead. The deepest explains first."""
    deep = sorted(found, key=lambda one: (-one.depth, _RANK[one.finding.severity], one.finding.cause is None))
    kept: list[_Found] = []
    concerned: dict[str, list[_Found]] = {}  # those kept, by what they are about: of many few have to do with one
    for one in deep:
        near = list({id(other): other for name in _topics(one) for other in concerned.get(name, ())}.values())
        reason = next((other for other in near if _explains(other, one)), None) or _together(near, one)
        if reason is None:
            kept.append(one)
            for name in one.about:
                concerned.setdefault(name, []).append(one)
        else:
            reason.explains.append(one.finding)
    return kept


def _explains(cause: _Found, other: _Found) -> bool:
    """Whether all of the other is what the cause is about."""
    return bool(other.about) and _may_explain(cause, other) and _topics(other) <= cause.about


def _may_explain(cause: _Found, other: _Found) -> bool:
    """A warning is no reason for a fault, and nobody else knows what a MUX is by itself."""
    if _RANK[cause.finding.severity] > _RANK[other.finding.severity]:
        return False
    if cause.depth == other.depth and not (cause.finding.cause and other.finding.cause is None):
        return False
    if other.depth is _Depth.MUX:
        return other.finding.check in (WITHOUT_AGENT if cause.depth is _Depth.AWAY else OUTSIDE)
    return True


def _together(near: Sequence[_Found], other: _Found) -> _Found | None:
    """A fault of which several causes are each the reason of a part: the first of them tells of it."""
    topics = _topics(other)
    if other.depth not in (_Depth.VIEW, _Depth.MUX) or len(topics) < 2:
        return None
    reasons = [one for one in near if one.finding.severity is Severity.FAULT]
    if other.depth is _Depth.MUX:
        reasons = [one for one in reasons if _may_explain(one, other)]
    covered: frozenset[str] = frozenset().union(*(one.about for one in reasons))
    return reasons[0] if reasons and topics <= covered else None


def _topics(one: _Found) -> frozenset[str]:
    """What a MUX says of a way is about the way, and not about the MUX."""
    topics = frozenset(name for name in one.about if not _is_of_node(name))
    return topics or one.about if one.by else one.about


def _shown(one: _Found) -> Finding:
    finding = one.finding
    what = finding.what
    if one.by:
        what = f"{one.by[0]} says: {what}"
        if others := one.by[1:]:
            what += f"; {_few(others)} {'says' if len(others) == 1 else 'say'} the same"
    # What the manager knows of the same thing is nothing more.
    words = [_brief(other) for other in one.explains if other.check != SAME.get(finding.check, finding.check)]
    if words:
        what += f". Of it come: {'; '.join(words[:NAMED])}"
        if len(words) > NAMED:
            what += f"; and {len(words) - NAMED:,} more"
    return replace(finding, what=what, about=tuple(sorted(one.about)))


def _brief(finding: Finding) -> str:
    """Its name, and its first words."""
    what = finding.what if len(finding.what) <= 100 else finding.what[:97] + "..."
    return f"{finding.check}: {what}"


def _unseen(said: Sequence[NodeReport]) -> list[Finding]:
    """What nodes could not look at, one finding for all of them, and one for those that did not look at all."""
    found = []
    lacking: dict[str, list[str]] = {}
    for node in said:
        for finding in node.findings:
            if finding.severity is Severity.UNKNOWN:
                lacking.setdefault(finding.check, []).append(node.id)
    if lacking:
        words = ", ".join(f"{check} ({_few(sorted(set(nodes)))})" for check, nodes in sorted(lacking.items()))
        found.append(
            unknown(
                "node_view",
                f"daemons could not look at everything of their machines: {words}",
                "there, as root: `lb doctor --local`",
            )
        )
    mute: dict[str, list[str]] = {}
    for node in said:
        if node.error is not None:
            mute.setdefault(node.error, []).append(node.id)
    for error, nodes in mute.items():
        found.append(unknown("node_view", f"{_few(nodes)}: not examined: {error}", "there: `lb doctor --local`"))
    for node in said:
        if node.left_out:
            what = f"{node.id} found {node.left_out:,} more than it may tell"
            found.append(unknown("node_view", what, "there: `lb doctor --local`"))
    return found


def _fine(looked: Sequence[NodeReport]) -> Finding:
    checks = sum(node.fine for node in looked)
    nodes = "1 node" if len(looked) == 1 else f"{len(looked)} nodes"
    return ok("node_view", f"{nodes} examined their machines, and found {checks:,} things as they should be")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
