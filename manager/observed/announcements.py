# SPDX-License-Identifier: Apache-2.0
"""Who announces each VIP now, and where that is not who should. :mod:`manager.controller.controller` owns one
:class:`Announced`.

Wanted is what the plan says. Announced is what MUXes tell: a VIP of which a router was told. A MUX that speaks no BGP
tells nothing of the kind, so of it counts what it has made live; of one that is not connected nothing is known. Both
change seldom, and with ten thousand VIPs mostly for none or for all of them: so only what differs is looked at, and of
much only :data:`SLICE` VIPs at once.

What differs for longer than :data:`LATE` is said in words, for rows, page, events, metrics and doctor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from manager.nodes.hub import Entry, rows
from manager.plan.model import Plan, Vip, VipPlan, prefix_of

#: States of an announcement by which a router may still send packets.
HEARD = frozenset({"announced", "draining", "leaving"})
#: What differs for so long is said; a MUX may take longer to tell of a VIP that is new to it; seconds.
LATE, UNTOLD = 3.0, 15.0
#: Of many VIPs, so many are judged in one turn, some 12 ms: verdicts wait for it.
SLICE = 500
#: Words about what differs are made anew at most so often, seconds.
ANEW = 2.0
#: What comes together is told together, if it comes within so long, seconds.
GATHER = 1.5
#: So many VIPs have events of their own; of more there is one for all.
EACH = 8
#: Of a node's words, so many characters are told on.
TEXT = 200
#: Names in one sentence.
NAMES = 4

ToldByVip = Mapping[str, list[Mapping[str, Any]]]
#: Subject, text, and whether it is bad.
Said = tuple[str, str, bool]
_NOBODY: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """What is to be said of a VIP."""

    #: "silent": nobody announces it; "unreached": it is announced, and no client gets through (vip_path); "alone":
    #: one MUX of several announces it; "differs": some do not, or should not.
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class _Lack:
    """A MUX that should announce a VIP and does not."""

    mux: str
    soon: bool  #: it may well do in a moment
    text: str  #: what follows its name


@dataclass(slots=True)
class _Mux:
    """What one MUX says."""

    entry: Entry
    told: object = None  #: its rows of announcements, as they came last
    since: object = None  #: those that came later, of a few VIPs
    whole: frozenset[str] = frozenset()  #: VIPs of which a router was told, by the former alone
    sessions: object = None  #: those of its BGP sessions
    down: frozenset[str] = frozenset()  #: which of these are
    live: object = None  #: the announcements that it has made live
    heard: frozenset[str] = frozenset()  #: VIPs, as the MUX writes them


@dataclass(slots=True)
class Announced:
    """See the module's text. Used in the event loop; ``lacking`` and ``problems`` are only replaced, and may be read
    from any thread."""

    by: dict[Vip, tuple[str, ...]] = field(default_factory=dict)  #: MUXes that announce it, sorted
    notes: dict[Vip, Note] = field(default_factory=dict)  #: of what differs for too long
    drained: frozenset[str] = frozenset()  #: MUXes that shall announce nothing, whatever the plan of a VIP says
    lacking: Mapping[str, int] = field(
        default_factory=dict
    )  #: connected MUX -> VIPs that it should announce, and does not
    problems: tuple[tuple[str, str], ...] = ()  #: subject and text, of MUXes, and of VIPs that one MUX alone announces
    unreached: dict[Vip, str] = field(default_factory=dict)  #: why no client gets through
    alone: tuple[str, ...] = ()  #: VIPs that one MUX of several announces, as operators write them
    version: int = 0  #: another one whenever anything of this is
    _muxes: dict[str, _Mux] = field(default_factory=dict)  # those that are connected
    _known: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    _drains: object = None
    _touched: set[Vip] | None = field(default_factory=set)  # None: all
    _since: dict[Vip, float] = field(default_factory=dict)  # of what differs, said or not
    _place: int = 0  # among those that wait
    _waiting: set[Vip] = field(default_factory=set)  # what differs and is not said yet
    _lacks: dict[Vip, tuple[_Lack, ...]] = field(default_factory=dict)  # where there is a note
    _causes: dict[tuple[object, ...], str] = field(default_factory=dict)
    _same: dict[tuple[Note, tuple[_Lack, ...]], tuple[Note, tuple[_Lack, ...]]] = field(default_factory=dict)
    _unsaid: float | None = None  # since when there may be events to tell
    _said_vips: dict[Vip, Note] = field(default_factory=dict)
    _said_muxes: frozenset[str] = frozenset()
    _stale: bool = False  # why something is not announced may be something else by now
    _anew: float = 0.0  # when that was looked at
    _heard: dict[str, tuple[object, ToldByVip]] = field(default_factory=dict)
    _heard_by_now: dict[str, tuple[object, object, ToldByVip]] = field(default_factory=dict)

    # -- what MUXes say -----------------------------------------------------------------------------------------

    def told(self, entry: Entry) -> set[Vip]:
        """A MUX told something, or has acknowledged, or came or left; the VIPs that others announce now."""
        name = entry.record.name
        mux = self._muxes.get(name)
        if entry.connection is None:
            if mux is None:
                return set()
            del self._muxes[name]
            self._touch(None)
            return self._hear(name, mux.heard, frozenset())
        if mux is None or mux.entry is not entry:
            mux = self._muxes[name] = _Mux(entry)
            self._touch(None)
        told, sessions = entry.status.get("announcements"), entry.status.get("peers")
        since = entry.status.get("announcements_since")
        live = (entry.live or {}).get("announcements")
        if mux.told is told and mux.since is since and mux.live is live and mux.sessions is sessions:
            return set()
        if mux.told is not told:
            mux.whole = _heard_of(rows(entry.status, "announcements"))
        if mux.told is not told or mux.since is not since or _states(mux.sessions) != _states(sessions):
            self._stale = True
        if mux.sessions is not sessions:
            mux.down = _down(rows(entry.status, "peers"))
        mux.told, mux.since, mux.sessions, mux.live = told, since, sessions, live
        before, mux.heard = mux.heard, frozenset(live or ()) if silent(entry) else _heard_since(mux.whole, entry)
        return self._hear(name, before, mux.heard)

    def _hear(self, name: str, before: frozenset[str], now: frozenset[str]) -> set[Vip]:
        gone, come = set(map(prefix_of, before - now)), set(map(prefix_of, now - before))
        for vip in gone ^ come:
            found = set(self.by.get(vip, _NOBODY))
            (found.add if vip in come else found.discard)(name)
            names = tuple(sorted(found))
            if names:
                self.by[vip] = self._known.setdefault(names, names)
            else:
                self.by.pop(vip, None)
        if changed := gone ^ come:
            self.version += 1
            self._touch(changed)
        return changed

    def planned(self, old: Plan, new: Plan, vips: Iterable[Vip]) -> bool:
        """Of these VIPs the plan is another; whether it is so of every row, for a MUX drains or does no more."""
        self._touch({vip for vip in vips if _granted(old.vips.get(vip)) != _granted(new.vips.get(vip))})
        if new.drains is self._drains:
            return False
        self._drains = new.drains
        drained = frozenset(name for name, waits in new.drains.items() if waits is None)
        if drained == self.drained:
            return False
        self.drained = drained
        self.version += 1
        self._touch(None)
        return True

    def path(self, vip: Vip, why: str | None) -> None:
        """Whether clients get through is another thing now; ``why`` they do not."""
        if why is None:
            self.unreached.pop(vip, None)
        else:
            self.unreached[vip] = why
        self.version += 1
        self._touch({vip})

    def _touch(self, vips: Collection[Vip] | None) -> None:
        if vips is None:
            self._touched = None
        elif self._touched is not None:
            self._touched.update(vips)

    def by_vip(self, entry: Entry) -> ToldByVip:
        """What it tells, looked through once for as long as the MUX does not tell it anew."""
        told, since = entry.status.get("announcements"), entry.status.get("announcements_since")
        whole = self._heard.get(entry.id)
        if whole is None or whole[0] is not told:
            whole = self._heard[entry.id] = told, by_vip(rows(entry.status, "announcements"))
        known = self._heard_by_now.get(entry.id)
        if known is None or known[0] is not told or known[1] is not since:
            later = by_vip(rows(entry.status, "announcements_since"))
            known = self._heard_by_now[entry.id] = told, since, {**whole[1], **later} if later else whole[1]
        return known[2]

    # -- who should ---------------------------------------------------------------------------------------------

    def wanted(self, found: VipPlan | None) -> list[str]:
        """MUXes that shall announce it now."""
        return sorted(found.granted - self.drained) if found is not None else []

    def key(self, vip: Vip) -> tuple[object, ...]:
        """All that a row about this VIP has from here: equal for as long as that is the same."""
        return self.by.get(vip), self.drained, self.notes.get(vip)

    def words(self, vip: Vip, found: VipPlan) -> tuple[Note | None, bool]:
        """What is to be said of a VIP just now, however short it is so; and whether waiting may mend it."""
        if self._fine(vip, found):
            return None, False
        note, lacks = self._judge(vip, found)
        return note, any(lack.soon for lack in lacks)

    def _fine(self, vip: Vip, found: VipPlan) -> bool:
        by, wanted = self.by.get(vip, _NOBODY), found.granted
        if vip in self.unreached:
            return False
        if self.drained:
            wanted -= self.drained
        if len(by) != len(wanted) or not wanted.issuperset(by):
            return False
        return len(by) > 1 or (len(by) == 1 and len(found.granted) + len(found.withheld) == 1)

    def _judge(self, vip: Vip, found: VipPlan) -> tuple[Note, tuple[_Lack, ...]]:
        """Of a VIP that is not fine."""
        by = self.by.get(vip, _NOBODY)
        lacks: list[_Lack] = []
        why: dict[str, list[str]] = {}
        for mux in sorted(found.granted | found.withheld.keys()):
            if mux in by:
                continue
            if mux in found.granted and mux not in self.drained:
                lack = self._lack(mux, vip)
                lacks.append(lack)
                why.setdefault(lack.text, []).append(mux)
            elif len(by) < 2:  # it is as it should be, and explains why so few are left
                why.setdefault(f": {found.withheld.get(mux, 'it drains')}", []).append(mux)
        words = [f"{_names(muxes)}{_of(muxes, text)}" for text, muxes in why.items()]
        over = [mux for mux in by if mux not in found.granted and mux not in self.drained]
        if over:
            words.append(f"{_names(over)} {'announces' if len(over) == 1 else 'announce'} it and should not")
        if not by:
            return Note("silent", f"nobody announces it: {'; '.join(words) or 'no MUX has joined'}"), tuple(lacks)
        alone = len(by) == 1 and len(found.granted) + len(found.withheld) > 1
        head = f"announced by {_names(by)}{' alone' if alone else ''}"
        if vip in self.unreached:
            head = f"{head}, but {NO_WAY}: {self.unreached[vip]}"
            return Note("unreached", "; ".join([head, *words])), tuple(lacks)
        return Note("alone" if alone else "differs", "; ".join([head, *words])), tuple(lacks)

    def _lack(self, mux: str, vip: Vip) -> _Lack:
        """Why a MUX that should does not."""
        known = self._muxes.get(mux)
        if known is None:
            return _Lack(mux, False, f" should, and {_NOT_THERE[0]} now is not known")
        entry = known.entry
        if entry.refused is not None:
            return _Lack(mux, False, f"{_DOES_NOT}it refused its state: {entry.refused}")
        if entry.live is None or vip not in entry.live.get("announcements", {}):
            return _Lack(mux, True, f"{_DOES_NOT}it has not taken its latest state yet")
        told = self.by_vip(entry).get(vip)
        if not told:
            return _Lack(mux, True, f"{_DOES_NOT}it has not reported it yet")
        key = (mux, *((row.get("peer"), row.get("state"), row.get("why")) for row in told))
        cause = self._causes.get(key)
        if cause is None:
            cause = self._causes[key] = f"{_DOES_NOT}{_why(told, known.down)}"
        soon = any(row.get("state") == "waiting" and row.get("peer") not in known.down for row in told)
        return _Lack(mux, soon, cause)

    # -- time ---------------------------------------------------------------------------------------------------

    def look(self, now: float, plan: Plan) -> tuple[set[Vip], list[Said]]:
        """Time passes (steady clock): VIPs of which something else is to be said, and events."""
        if self._stale and not 0 <= now - self._anew < ANEW:
            self._stale, self._anew = False, now
            self._causes.clear()
            self._same.clear()
            self._touch(self.notes.keys())
        if self._touched is None:
            self._touched = {*plan.vips, *self._since}
        changed: set[Vip] = set()
        turn = set(islice(self._touched, SLICE))
        self._touched -= turn
        for vip in turn:
            found = plan.vips.get(vip)
            if found is None or found.announcement is None or self._fine(vip, found):
                self._since.pop(vip, None)
                self._waiting.discard(vip)
                if self.notes.pop(vip, None) is not None:
                    self._lacks.pop(vip, None)
                    changed.add(vip)
            elif vip in self.notes:
                changed |= self._note(vip, found)
            else:
                self._since.setdefault(vip, now)
                self._waiting.add(vip)
        due = [vip for vip in self._waiting if now - self._since[vip] >= LATE]
        if len(due) > SLICE:  # what has patience stays among them, and must not be in the way of the others
            self._place = (self._place + SLICE) % len(due)
            due = due[self._place :] + due[: self._place]
        for vip in due[:SLICE]:
            found = plan.vips.get(vip)
            if found is not None:
                changed |= self._note(vip, found, now - self._since[vip])
        if changed:
            self.version += 1
            self._unsaid = now if self._unsaid is None else self._unsaid
        if self._unsaid is None or ((self._touched or self._waiting) and now - self._unsaid < GATHER):
            return changed, []
        return changed, self._say(plan)

    def _note(self, vip: Vip, found: VipPlan, age: float = UNTOLD) -> set[Vip]:
        found_now = self._judge(vip, found)
        note, lacks = self._same.setdefault(found_now, found_now)  # of ten thousand mostly one text
        if age < UNTOLD and lacks and all(lack.soon for lack in lacks):
            return set()
        self._waiting.discard(vip)
        before, self.notes[vip], self._lacks[vip] = self.notes.get(vip), note, lacks
        return set() if before == note else {vip}

    def _say(self, plan: Plan) -> list[Said]:
        """What began and what ended since this was asked last."""
        self._unsaid = None
        lacking: dict[str, list[tuple[Vip, str]]] = {}
        for vip, lacks in self._lacks.items():
            for lack in lacks:
                if lack.mux in self._muxes:
                    lacking.setdefault(lack.mux, []).append((vip, lack.text))
        lines = {mux: _lacking_words(found) for mux, found in sorted(lacking.items())}
        few = {vip: note for vip, note in self.notes.items() if note.level != "differs"}
        begun = {vip: note for vip, note in few.items() if vip not in self._said_vips}
        begun |= {
            vip: note for vip, note in few.items() if vip not in begun and note.level != self._said_vips[vip].level
        }
        said = self._said_vips
        ended = [vip for vip in self._said_vips if vip not in few and vip in plan.vips and vip in self.by]
        events = [(f"mux {mux}", text, True) for mux, text in lines.items() if mux not in self._said_muxes]
        events += [
            (f"mux {mux}", "announces all that it should again", False)
            for mux in sorted(self._said_muxes - lines.keys())
            if mux in self._muxes
        ]
        events += [(*line, True) for line in _together(begun)]
        events += [
            (subject, text, False)
            for subject, text in _together({vip: Note("", self._again(vip, said[vip])) for vip in ended})
        ]
        self._said_muxes, self._said_vips = frozenset(lines), few
        self.lacking = {mux: len(found) for mux, found in lacking.items()}
        alone = {vip: note for vip, note in few.items() if note.level == "alone"}
        self.alone = tuple(map(bare, alone))
        self.problems = (*((f"mux {mux}", text) for mux, text in lines.items()), *_together(alone))
        return events

    def _again(self, vip: Vip, before: Note) -> str:
        if before.level == "unreached":
            return "clients get through again"
        return f"is announced by {_names(self.by.get(vip, _NOBODY))} again"


#: Said where a VIP is announced and nobody comes through.
NO_WAY = "no client gets through"
_DOES_NOT = " should and does not: "
_NOT_THERE = ("is not connected: what it announces", "are not connected: what they announce")


def _together(notes: Mapping[Vip, Note]) -> list[tuple[str, str]]:
    """Subjects and texts: a line each, or where they are many a line for all of which the same is to be said."""
    if len(notes) <= EACH:
        return [(f"vip {vip}", note.text) for vip, note in sorted(notes.items())]
    counts = Counter(note.text for note in notes.values())
    return [("vips", f"{count:,} VIPs: {text}") for text, count in counts.most_common(EACH)]


def _lacking_words(found: list[tuple[Vip, str]]) -> str:
    counts = Counter(text.removeprefix(_DOES_NOT) for _, text in found)
    (why, _), *others = counts.most_common()
    what = bare(found[0][0]) if len(found) == 1 else f"{len(found):,} VIPs"
    return f"does not announce {what}, which it should: {why}" + ("; and for other reasons" if others else "")


def _why(told: Sequence[Mapping[str, Any]], down: Collection[str]) -> str:
    """Why no router was told. The state of a session changes every few seconds while it is down, and is in its own
    row: here it is but down."""
    without = [str(row["peer"]) for row in told if row.get("peer") in down and row.get("state") == "waiting"]
    words = []
    if without:
        one = len(without) == 1
        words.append(f"BGP session{'' if one else 's'} with {_names(without)} {'is' if one else 'are'} down")
    for row in told:
        if row.get("peer") not in without:
            text = str(row.get("why") or row.get("state"))[:TEXT]
            words.append(f"to {row['peer']}: {text}" if row.get("peer") and row.get("state") != "held" else text)
    return "; ".join(dict.fromkeys(words))


def _down(peers: list[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(str(row.get("name")) for row in peers if row.get("state") != "established")


def _of(muxes: Sequence[str], text: str) -> str:
    """What follows the names of one MUX, or of several."""
    return text if len(muxes) == 1 else text.replace(_DOES_NOT, " should and do not: ").replace(*_NOT_THERE)


def _names(names: Collection[str]) -> str:
    shown = ", ".join(islice(names, NAMES))
    return f"{shown} and {len(names) - NAMES} more" if len(names) > NAMES else shown


def _granted(found: VipPlan | None) -> tuple[object, ...]:
    return (found.granted, found.withheld, found.announcement is None) if found is not None else ()


def _states(sessions: object) -> list[tuple[object, bool]]:
    found = sessions if isinstance(sessions, list) else []
    return [(row.get("name"), row.get("state") == "established") for row in found]


def bare(vip: Vip) -> str:
    """A single address without its length, as MUXes and operators write it."""
    return vip.removesuffix("/128" if ":" in vip else "/32")


def silent(entry: Entry) -> bool:
    """Whether a MUX tells nothing of its announcements, for it speaks no BGP, or has not told anything yet."""
    return not entry.status.get("peers")


def _heard_of(told: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(row["vip"] for row in told if row.get("state") in HEARD)


def _heard_since(whole: frozenset[str], entry: Entry) -> frozenset[str]:
    """``whole``, but for the VIPs that were told of later."""
    since = rows(entry.status, "announcements_since")
    return (whole - {row["vip"] for row in since}) | _heard_of(since) if since else whole


def by_vip(told: Iterable[Mapping[str, Any]]) -> ToldByVip:
    """What a MUX tells of its announcements, by the VIP as the plan writes it."""
    written: dict[str, list[Mapping[str, Any]]] = {}  # as the MUX does: a VIP has as many rows as there are routers
    for row in told:
        vip = row.get("vip")
        if isinstance(vip, str):
            of_it = written.get(vip)
            if of_it is None:
                written[vip] = [row]
            else:
                of_it.append(row)
    return {prefix_of(vip): of_it for vip, of_it in written.items()}
