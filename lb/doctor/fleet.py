# SPDX-License-Identifier: Apache-2.0
"""Checks of the whole fleet, from what the manager knows: rows of its API in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lb.doctor.facts import Row
from lb.doctor.findings import Finding, fault, ok, warning
from lb.doctor.machine import another_name, judge_skew
from lb.doctor.mux import check_saturation

#: A certificate that ends sooner has missed its renewal: it renews after a third of its life. Seconds.
CERTIFICATE_ENDS = 86400.0
#: Refusals are told as long as they go on, seconds.
RECENT = 15.0


@dataclass(frozen=True, slots=True)
class Fleet:
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


def examine(ask: Callable[[str], Any]) -> list[Finding]:
    """All that the manager knows; ``ask`` gets ``/v1/NAME``."""
    return list(check_fleet(Fleet(**{field.name: ask(field.name) for field in fields(Fleet)})))


def check_fleet(fleet: Fleet) -> Iterator[Finding]:
    """Everything."""
    for kind, rows in (("mux", fleet.muxes), ("agent", fleet.agents)):
        for row in rows:
            yield from check_node(kind, row, fleet.now)
    yield from check_history(fleet.status.get("history"))
    yield from check_held(fleet.status.get("held"))
    yield from check_refusals(fleet.status.get("refusals"), fleet.now)
    for row in fleet.muxes:
        yield from check_sessions(row)
        if row.get("state") not in ("away", "gone"):
            yield from check_saturation(
                row, f"MUX {row.get('name')} ({row.get('address') or row.get('address6')})", "lb top"
            )
    for row in fleet.services:
        yield from check_service(row)
    yield from check_notes(fleet.services)
    yield from check_backends(fleet.backends)
    yield from check_announcements(fleet.announcements)
    if not fleet.muxes:
        yield warning("node", "no MUX has joined", "`lb-manager token --kind mux --name NAME`; see docs/joining.md")


def check_node(kind: str, row: Row, now: float) -> Iterator[Finding]:
    """Connected, obedient, of one clock, with a certificate."""
    word, name, state = _word(kind), row.get("name"), row.get("state")
    where = f"{word} {name} ({row.get('address') or row.get('address6')})"
    since = _ago(now - _number(row.get("since")))
    expires = row.get("certificate_expires")
    if state in ("away", "gone"):
        if isinstance(expires, int | float) and expires <= now:
            yield fault(
                "certificate",
                f"{where} is away, and its certificate expired {_ago(now - expires)} ago",
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
    if row.get("differs"):
        yield fault(
            "pool",
            f"{where} chooses other backends than the others: {row['differs']}",
            f"drain it (`lb drain mux {name}`), put the pool's `seed` and `slots` into its file, restart lb-mux there",
        )
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


def check_history(history: object) -> Iterator[Finding]:
    """Is the manager's store the one that nodes had their orders from?"""
    if isinstance(history, dict):
        remedy = (
            "put the right manager.db back; or `lb-manager take-over --config FILE`, restart lb-manager, apply what is "
            "missing, and revoke again what was revoked"
        )
        yield fault("history", str(history.get("why")), remedy)


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
            yield fault(
                "bgp",
                f"{where} is {peer.get('state')}: {peer.get('error') or 'no reason yet'}",
                f"on {row.get('name')}: `lb doctor --config MUX.toml` tries the router's port, also without password",
            )


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


def check_notes(rows: Sequence[Row]) -> Iterator[Finding]:
    """Who announces services, and whether their backends take flows; a finding for each thing that is said."""
    notes: dict[tuple[str, bool], list[str]] = {}
    for row in rows:
        if row.get("note") and row.get("state") != "retiring":
            unheard = not row.get("announced_by") or row.get("state") == "down"
            notes.setdefault((str(row["note"]), unheard), []).append(str(row.get("name")))
    for (note, unheard), names in notes.items():
        one = len(names) == 1
        where = f"service{'' if one else 's'} {', '.join(names[:3])}" + (
            f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        )
        say = fault if unheard else warning
        yield say(
            "announced", f"{where}: {note}", f"`lb describe service {names[0]}` tells of each MUX and each backend"
        )


def check_backends(rows: Sequence[Row]) -> Iterator[Finding]:
    ill = [row for row in rows if row.get("state") in ("down", "panic", "unknown")]
    for row in ill:
        label = f"{row.get('service')}/{row.get('name')}"
        say = warning if row.get("state") == "unknown" else fault  # nobody has looked yet, or nobody can
        yield say(
            "backend",
            f"backend {label} ({row.get('address')}:{row.get('port')}) is {row.get('state')}: {row.get('reason')}",
            f"`lb doctor` on a MUX tries the way to it; meanwhile `lb drain backend {label}`",
        )
    if rows and not ill:
        yield ok("backend", f"all of {len(rows)} backends are as they should be")


def check_announcements(rows: Sequence[Row]) -> Iterator[Finding]:
    """What was ordered and is not done. A MUX without BGP tells nothing here."""
    lacking = [row for row in rows if row.get("wanted") and row.get("peer") and row.get("state") not in _ANNOUNCED]
    for row in lacking:
        yield warning(
            "announcement",
            f"MUX {row.get('mux')} does not announce {row.get('vip')} to {row.get('peer')}: {row.get('state')}"
            + (f": {row['reason']}" if row.get("reason") else ""),
            f"`lb get announcements --local` on {row.get('mux')}; see docs/bgp.md",
        )
    if rows and not lacking:
        yield ok("announcement", "MUXes announce what they were told to")


_ANNOUNCED = ("announced", "draining")


def _word(kind: str) -> str:
    return "MUX" if kind == "mux" else kind


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _ago(seconds: float) -> str:
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
