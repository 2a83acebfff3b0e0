# SPDX-License-Identifier: Apache-2.0
"""The examination of the whole fleet: what the manager knows of it, and what every node's own doctor finds.

Rows of the manager's API in, findings out; :mod:`lb.doctor.merge` makes one of what both say of one cause.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lb.doctor.checks.machine import another_name, judge_skew
from lb.doctor.checks.mux import check_saturation
from lb.doctor.merge import NodeReport, merged
from lb.doctor.model.facts import Row
from lb.doctor.model.findings import Finding, Severity, fault, of_row, ok, warning
from lb.errors import NotFoundError

#: A certificate that ends sooner has missed its renewal: it renews after a third of its life. Seconds.
CERTIFICATE_ENDS = 86400.0
#: Refusals are told as long as they go on, seconds.
RECENT = 15.0
#: How the reason of a backend begins that is down because an operator wants it so.
BY_WISH = ("its table says", "taken out by")
#: States of a node without a connection.
AWAY = ("away", "gone")


@dataclass(frozen=True, slots=True)
class FleetSeen:
    """The manager's word."""

    status: Row
    muxes: Sequence[Row]
    agents: Sequence[Row]
    services: Sequence[Row]
    backends: Sequence[Row]
    announcements: Sequence[Row]

    @property
    def now(self) -> float:
        return _number(self.status.get("now"))

    @property
    def nodes(self) -> tuple[tuple[str, Sequence[Row]], ...]:
        return ("mux", self.muxes), ("agent", self.agents)


def examine(ask: Callable[[str], Any]) -> list[Finding]:
    """All that the manager knows, and what every node finds of itself; ``ask`` gets ``/v1/NAME``."""
    try:
        said = [told(row) for row in ask("examination")]
    except NotFoundError:  # an older manager, which does not ask its nodes
        said = []
    fleet = FleetSeen(
        **{field.name: ask(field.name) for field in fields(FleetSeen)}
    )  # afterwards, for looking takes a while
    away = {(kind, row.get("name")) for kind, rows in fleet.nodes for row in rows if row.get("state") in AWAY}
    said = [node for node in said if (node.kind, node.name) not in away]
    return merged(check_fleet(fleet), said, backends_of(fleet))


def told(row: Row) -> NodeReport:
    """What one node said of itself; the manager has checked its form."""
    return NodeReport(
        str(row.get("kind")),
        str(row.get("name")),
        tuple(map(of_row, row.get("findings") or ())),
        int(row.get("fine") or 0),
        int(row.get("left_out") or 0),
        row.get("error"),
    )


def backends_of(fleet: FleetSeen) -> dict[str, list[str]]:
    """By agent its backends, as findings name them."""
    found: dict[str, list[str]] = {}
    for row in fleet.backends:
        if row.get("agent"):
            found.setdefault(str(row["agent"]), []).append(_name(row))
    return found


def check_fleet(fleet: FleetSeen) -> Iterator[Finding]:
    """Everything."""
    hosted = backends_of(fleet)
    for kind, rows in fleet.nodes:
        for row in rows:
            node = f"{kind} {row.get('name')}"
            follows = (node,) if kind == "mux" else tuple(hosted.get(str(row.get("name")), ()))
            for finding in check_node(kind, row, fleet.now):
                yield _of_node(node, finding, follows)
    yield from check_pool(fleet.muxes)
    yield from check_history(fleet.status.get("history"))
    yield from check_held(fleet.status.get("held"))
    yield from check_refusals(fleet.status.get("refusals"), fleet.now)
    for row in fleet.muxes:
        if row.get("state") not in AWAY:  # of one that is away nobody knows
            yield from check_sessions(row)
            where = f"MUX {row.get('name')} ({row.get('address') or row.get('address6')})"
            for finding in check_saturation(row, where, "lb top"):
                yield _of_node(f"mux {row.get('name')}", finding)
    ill: dict[object, list[str]] = {}
    for row in filter(is_ill, fleet.backends):
        ill.setdefault(row.get("service"), []).append(_name(row))
    for row in fleet.services:
        of_it = tuple(ill.get(row.get("name"), ()))
        if row.get("state") == "down" and row.get("note") and not of_it:
            continue  # nobody is ill, and its note says why nobody serves
        for finding in check_service(row):
            yield replace(finding, about=of_it)
    yield from check_notes(fleet.services, ill, wishes(fleet))
    yield from check_backends(fleet.backends)
    yield from check_announcements(fleet.announcements, {row.get("name") for row in fleet.muxes if row.get("drain")})
    if not fleet.muxes:
        yield warning("node", "no MUX has joined", "`lb-manager token --kind mux --name NAME`; see docs/joining.md")


#: Of a node whose orders are newer than the manager's store: what it says of the orders that it gets, and what the
#: manager says, which gives it none.
_OF_HISTORY = ("take-over", "and goes on with them")
#: What comes of these is that the node does nothing of what it should.
_WHOLE = frozenset({"node", "node_state"})


def _of_node(node: str, finding: Finding, follows: tuple[str, ...] = ()) -> Finding:
    """With what it is about: the node itself and, where it does not follow, all that hangs on it."""
    if finding.severity is Severity.OK:
        return finding
    if finding.check == "node_state" and any(words in finding.what for words in _OF_HISTORY):
        return replace(finding, about=("history",))  # of all nodes one, where the manager knows of it
    whole = finding.check in _WHOLE
    about = (f"{node}: {finding.check}", *(follows if whole else ()))
    return replace(finding, cause=finding.check if whole else None, about=about)


def check_node(kind: str, row: Row, now: float) -> Iterator[Finding]:
    """Connected, obedient, of one clock, with a certificate."""
    word, name, state = _word(kind), row.get("name"), row.get("state")
    where = f"{word} {name} ({row.get('address') or row.get('address6')})"
    since = _ago(now - _number(row.get("since")))
    expires = row.get("certificate_expires")
    if state in AWAY:
        if isinstance(expires, int | float) and expires <= now:
            yield fault(
                "certificate",
                f"{where} is disconnected, and its certificate expired {_ago(now - expires)} ago",
                f"`lb-manager token --config MANAGER.toml --kind {kind} --name {name}`, then there `lb-{kind} "
                "--config "
                "FILE --token TOKEN`",
            )
        else:
            yield fault(
                "node",
                f"{where} is not connected since {since}; it serves on with what it has, if it runs",
                f"on it: `lb doctor --config {kind.upper()}.toml`; if it will not come back: `lb delete {kind} {name}`",
            )
        return
    if state == "refused":
        yield fault(
            "node_state",
            f"{where} refused what it should have, and goes on with the old: {row.get('refused')}",
            f"remove the cause on {name}; it tries again every 10 s",
        )
    elif state == "late":
        yield fault(
            "node_state",
            f"{where} does not follow: it has generation {row.get('generation')} and should have {row.get('wanted')}",
            f"on it: `lb doctor --config {kind.upper()}.toml`, and `journalctl -u lb-{kind}`",
        )
    else:
        yield ok("node", f"{where} is connected and {state}")
    if row.get("repaired"):
        yield warning(
            "kernel_kept",
            f"{where} {row['repaired']}",
            f"`lb doctor` on {name} says what, how often and by whom; have that program leave alone what is of vipmux",
        )
    ahead = row.get("clock_skew")
    if isinstance(ahead, int | float):
        remedy = f"on {name}: `timedatectl set-ntp true` (or chrony), and `chronyc makestep` at once; likewise here"
        yield judge_skew(f"the clock of {where}", ahead, remedy)
    if isinstance(expires, int | float):
        if expires - now < CERTIFICATE_ENDS:
            yield warning(
                "certificate",
                f"the certificate of {where} ends in {_ago(expires - now)} and was not renewed",
                f"on it: `journalctl -u lb-{kind} | grep 'certificate not renewed'`",
            )
        else:
            yield ok("certificate", f"the certificate of {where} is valid for another {_ago(expires - now)}")


def check_pool(rows: Sequence[Row]) -> Iterator[Finding]:
    """MUXes that choose other backends than the rest. Of two nobody knows which is right; the one that came last has to
    be looked at first."""
    found = [row for row in rows if row.get("differs") and row.get("state") not in AWAY]
    if found:
        last = max(found, key=lambda row: _number(row.get("since")))
        name, others = last.get("name"), sorted(str(row.get("name")) for row in found if row is not last)
        likewise = f" (and so {'does' if len(others) == 1 else 'do'} {', '.join(others[:4])})" if others else ""
        yield fault(
            "pool",
            f"MUX {name} ({last.get('address') or last.get('address6')}) chooses other backends than the others"
            f"{likewise}: {last['differs']}",
            f"drain it (`lb drain mux {name}`), put the pool's `seed` and `slots` into its file, restart lb-mux there",
        )


def check_history(history: object) -> Iterator[Finding]:
    """Is the manager's store the one that nodes had their orders from?"""
    if isinstance(history, dict):
        remedy = (
            "put the right manager.db back; or `lb-manager take-over --config FILE`, restart lb-manager, apply what is "
            "missing, and revoke again what was revoked"
        )
        yield fault("history", str(history.get("why")), remedy, cause="backup_restored", about=("history",))


def check_held(held: object) -> Iterator[Finding]:
    """Are there services that the manager's version does not take as they stand in its store?"""
    for row in (one for one in held if isinstance(one, dict)) if isinstance(held, list) else ():
        how = "is served without it" if row.get("served") else "is not served"
        remedy = "`lb apply` it whole as this version takes it, or `lb delete` it"
        yield fault("held", f"service {row.get('service')} {how}: {row.get('why')}", remedy)


def check_refusals(refusals: object, now: float) -> Iterator[Finding]:
    """Nodes that the manager turned away: names and addresses that somebody else has, certificates."""
    recent = [
        row
        for row in (refusals if isinstance(refusals, list) else [])
        if isinstance(row, dict) and now - _number(row.get("last")) < RECENT
    ]
    for row in recent:
        kind, _, name = str(row.get("node")).partition(":")
        reason, count = str(row.get("reason")), row.get("count")
        times = f"refused {count} times, last {_ago(now - _number(row.get('last')))} ago"
        if row.get("duplicate"):
            yield fault(
                "duplicate_name",
                f'two machines are {_word(kind)} "{name}": the one at {row.get("address")} was {times}: {reason}',
                another_name(kind, name),
            )
        else:
            yield fault(
                "refused",
                f'{_word(kind)} "{name}" at {row.get("address")} was {times}: {reason}',
                f"stop it there, or have it join anew: `lb-manager token --kind {kind} --name {name}`",
            )
    if not recent:
        yield ok("refused", "the manager turned no node away lately")


def check_sessions(row: Row) -> Iterator[Finding]:
    """BGP, by the MUX's own word."""
    peers = row.get("peers")
    for peer in peers if isinstance(peers, list) else []:
        where = f"MUX {row.get('name')}: the BGP session with {peer.get('name')} ({peer.get('address')})"
        if peer.get("state") == "established":
            yield ok("bgp", f"{where} is established")
        elif peer.get("error") is None and peer.get("state") in ("connecting", "opening"):
            yield warning("bgp", f"{where} is not up yet: {peer.get('state')}", "ask again in a few seconds")
        else:
            mux = f"mux {row.get('name')}"
            found = fault(
                "bgp",
                f"{where} is {peer.get('state')}: {peer.get('error') or 'no reason yet'}",
                f"on {row.get('name')}: `lb doctor --config MUX.toml` tries the router's port, also without password",
            )
            yield replace(found, cause="bgp", about=(f"{mux}: bgp", mux))


def check_service(row: Row) -> Iterator[Finding]:
    name, state = row.get("name"), row.get("state")
    of = f"{row.get('healthy')} of {row.get('backends')} backends are healthy"
    if state == "PANIC":
        yield fault(
            "panic",
            f"service {name}: {of}; too few, so that those that served last are kept in service, well or not",
            f"`lb describe service {name}` says why each is ill; repair them, or `lb drain backend {name}/NAME` "
            "those that "
            "must not serve",
        )
    elif state == "down":
        yield fault("service", f"service {name} is down: {of}", f"`lb describe service {name}` says why for each")
    else:
        yield ok("service", f"service {name} is {state}: {of}")


def wishes(fleet: FleetSeen) -> dict[str, str]:
    """The command that takes back what an operator wished, where it leaves too little: by service of its backends, and
    by ``mux NAME`` of a MUX that drains."""
    found = {f"mux {row.get('name')}": f"`lb undrain mux {row.get('name')}`" for row in fleet.muxes if row.get("drain")}
    for row in fleet.backends:
        service, label = str(row.get("service")), _label(row)
        if row.get("state") == "drain":
            found.setdefault(service, f"`lb undrain backend {label}`")
        elif row.get("weight") == 0:
            found.setdefault(service, f"`lb set weight {label} 1`")
    return found


def check_notes(
    rows: Sequence[Row], ill: Mapping[object, Sequence[str]] | None = None, wished: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Who announces services, and whether their backends take flows; a finding for each thing that is said. ``ill``: by
    service its backends that are; ``wished``: what takes back operators' wishes."""
    ill, wished = ill or {}, wished or {}
    drained = [command for name, command in wished.items() if name.startswith("mux ")]
    notes: dict[tuple[str, bool], list[str]] = {}
    about: dict[tuple[str, bool], set[str]] = {}
    for row in rows:
        if row.get("note") and row.get("state") != "retiring":
            name, down = row.get("name"), row.get("state") == "down"
            key = str(row["note"]), down or not row.get("announced_by") or bool(row.get("unreached"))
            notes.setdefault(key, []).append(str(name))
            reasons = about.setdefault(key, set())
            if not down or name in ill:  # else operators want it so, and that is the cause
                lacking = set(row.get("wanted_by") or ()) - set(row.get("announced_by") or ())
                reasons |= {f"mux {mux}" for mux in lacking}
                reasons.update(ill[name] if down else ())
    for (note, unheard), names in notes.items():
        one = len(names) == 1
        where = f"service{'' if one else 's'} {', '.join(names[:3])}" + (
            f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        )
        say = fault if unheard else warning
        remedy = f"`lb describe service {names[0]}` tells of each MUX and each backend"
        if any(row.get("unreached") for row in rows if row.get("name") in names):
            remedy = "see whether the router takes the route: its import filter, and `ip route get` with the VIP on it"
        if not about[note, unheard]:
            if unheard and names[0] in wished:
                remedy = f"{wished[names[0]]}; {remedy}"
            elif drained:
                remedy = f"{drained[0]} when its work is done; {remedy}"
        yield replace(say("announced", f"{where}: {note}", remedy), about=tuple(sorted(about[note, unheard])))


def check_backends(rows: Sequence[Row]) -> Iterator[Finding]:
    """One finding for each host and reason: of a host that is away every backend is."""
    ill = [row for row in rows if is_ill(row)]
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in ill:
        alike.setdefault((row.get("address"), row.get("state"), str(row.get("reason"))), []).append(row)
    for same in alike.values():
        row, label = same[0], _label(same[0])
        say = warning if row.get("state") == "unknown" else fault  # nobody has looked yet, or nobody can
        others = ", ".join(_label(one) for one in same[1:4]) + (f" and {len(same) - 4:,} more" if len(same) > 4 else "")
        found = say(
            "backend",
            f"backend {label} ({row.get('address')}:{row.get('port')}) is {row.get('state')}: {row.get('reason')}"
            + (f"; likewise, on this host, {others}" if others else ""),
            f"`lb doctor` on a MUX tries the way to it; meanwhile `lb drain backend {label}`",
        )
        yield replace(found, cause="backend", about=tuple(map(_name, same)))
    if rows and not ill:
        yield ok("backend", f"all of {len(rows)} backends are as they should be")


def check_announcements(rows: Sequence[Row], drained: Collection[object] = ()) -> Iterator[Finding]:
    """What was ordered and is not done; one finding for all VIPs of one MUX, peer and reason. A MUX without BGP tells
    nothing here, and one that is ``drained`` holds them back because an operator wants it so."""
    told = [row for row in rows if row.get("wanted") and row.get("peer") and row.get("mux") not in drained]
    lacking = [row for row in told if row.get("state") not in _ANNOUNCED]
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in lacking:
        alike.setdefault(tuple(row.get(key) for key in ("mux", "peer", "state", "reason")), []).append(row)
    for same in alike.values():
        row = same[0]
        vips = ", ".join(str(one.get("vip")) for one in same[:3]) + (
            f" and {len(same) - 3:,} more" if len(same) > 3 else ""
        )
        found = warning(
            "announcement",
            f"MUX {row.get('mux')} does not announce {vips} to {row.get('peer')}: {row.get('state')}"
            + (f": {row['reason']}" if row.get("reason") else ""),
            f"`lb get announcements --local` on {row.get('mux')}; see docs/bgp.md",
        )
        yield replace(found, about=(f"mux {row.get('mux')}",))
    if rows and not lacking:
        yield ok("announcement", "MUXes announce what they should")


_ANNOUNCED = ("announced", "draining")


def is_ill(row: Row) -> bool:
    """A backend that should serve, and does not, or nobody knows; not one that an operator wants down."""
    wished = str(row.get("reason")).startswith(BY_WISH)
    return row.get("state") in ("down", "panic", "unknown") and not wished


def _label(row: Row) -> str:
    return f"{row.get('service')}/{row.get('name')}"


def _name(row: Row) -> str:
    return f"backend {_label(row)}"


def _word(kind: str) -> str:
    return "MUX" if kind == "mux" else kind


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _ago(seconds: float) -> str:
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
