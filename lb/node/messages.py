# SPDX-License-Identifier: Apache-2.0
"""What manager and nodes say to each other: a node's state, the difference of two, their digest, the messages. Pure.

A node's state is generic, ``{section: {key: plain JSON value}}``, so that the stream need not know what it carries:

    services       name -> ``[[service]]`` table, with the state of each backend as it shall be now
    announcements  VIP prefix -> {"communities", "med", "prepend", "peers"}     MUXes only
    muxes          name -> {"address", "address6"}, whose tunnels to accept     agents only
    options        "drain": true                                                MUXes only

Used by ``manager/nodes/hub.py``, ``manager/nodes/stream.py`` and by the nodes. Values are never changed in place:
whoever changes one makes a new one, so that the same object is the same value and comparing large states is cheap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lb.errors import MessageError
from lb.model.persistent_map import PersistentMap, differences
from lb.node.lazy_section import PackedMap, canonical, pack, text_of

NodeState = Mapping[str, Mapping[str, Any]]

SECTIONS = ("services", "announcements", "muxes", "options")

#: The state of a node that was never told anything.
EMPTY: NodeState = {}


#: What makes one state of another: ``{"set": {section: {key: value}}, "remove": {section: [key]}}``.
Delta = Mapping[str, Any]
#: Keys by section.
Keys = Mapping[str, Collection[str]]


def diff(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], keys: Keys | None = None
) -> dict[str, Any]:
    """What makes ``new`` of ``old``. ``keys``: where else they are known to be the same."""
    changed: dict[str, Mapping[str, Any]] = {}
    removed: dict[str, list[str]] = {}
    for section in sorted(old.keys() | new.keys() if keys is None else keys):
        before, after = old.get(section, {}), new.get(section, {})
        found, gone = _differences(before, after, None if keys is None else keys[section])
        if found:
            changed[section] = found
        if gone:
            removed[section] = sorted(gone)
    return {"set": changed, "remove": removed}


def _replaced(entries: Mapping[str, Any], old: Iterable[str], new: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(new, PackedMap):
        entries = pack(entries)
    if isinstance(entries, PackedMap | PersistentMap):
        return entries.replaced(old, new)
    after = dict(entries)
    for key in old:
        after.pop(key, None)
    after.update(new)
    return after


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], keys: Collection[str] | None
) -> tuple[Mapping[str, Any], list[str]]:
    """What differs ``after``, and the keys that it lacks; ``keys``: where it may differ."""
    if isinstance(before, PackedMap) or isinstance(after, PackedMap):
        return pack(before).changes(pack(after), keys)
    return differences(before, after, keys)


def keys_of(delta: Delta) -> dict[str, set[str]]:
    """The keys that a delta is about, by section."""
    found: dict[str, set[str]] = {}
    for sections in delta.values():
        for section, keys in sections.items():
            found.setdefault(section, set()).update(keys)
    return found


def apply(state: Mapping[str, Mapping[str, Any]], delta: Delta) -> NodeState:
    """The state after a delta; the one before stays as it is. Sections that become empty go; others that the delta is
    not about are the same objects."""
    new: dict[str, Mapping[str, Any]] = dict(state)
    remove, put = delta.get("remove", {}), delta.get("set", {})
    for section in remove.keys() | put.keys():
        new[section] = _replaced(state.get(section, {}), remove.get(section, ()), put.get(section, {}))
    return {section: entries for section, entries in new.items() if entries}


class Digest:
    """The digest of a state, kept up to date by deltas without looking at the whole state again.

    Each entry counts as the sha256 of its canonical ``[section, key, value]``; the digest is their sum, which does
    not depend on order. It shows divergence; it is no signature (the stream's TLS is what keeps strangers out).
    """

    _WIDTH = 2**256

    def __init__(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self._sum = 0
        for section, entries in state.items():
            for key in entries:
                self._sum += _entry(section, key, entries)

    def update(self, old: Mapping[str, Mapping[str, Any]], delta: Delta) -> None:
        """After ``old`` was changed by ``delta``."""
        for section, keys in delta.get("remove", {}).items():
            for key in keys:
                if key in old.get(section, {}):
                    self._sum -= _entry(section, key, old[section])
        for section, entries in delta.get("set", {}).items():
            for key in entries:
                if key in old.get(section, {}):
                    self._sum -= _entry(section, key, old[section])
                self._sum += _entry(section, key, entries)

    def copy(self) -> Digest:
        twin = Digest({})
        twin._sum = self._sum
        return twin

    def __str__(self) -> str:
        return f"{self._sum % self._WIDTH:064x}"


def _entry(section: str, key: str, entries: Mapping[str, Any]) -> int:
    text = b"[%s,%s,%s]" % (canonical(section), canonical(key), text_of(entries, key))
    return int.from_bytes(hashlib.sha256(text).digest())


def digest(state: Mapping[str, Mapping[str, Any]]) -> str:
    """64 hex digits; equal states, and only those, have equal ones."""
    return str(Digest(state))


# --- messages --------------------------------------------------------------------------------------------------------
#
# JSON objects in text frames, known by "type". What came over the wire is checked here once: types, lengths, finite
# numbers. What a state's entries mean is checked by whoever applies them.

#: Largest message from a node, characters: a status with thousands of rows. Reports are cut into several messages.
FROM_NODE_MAX = 16 * 2**20
#: And of so many values at most, for what is short as text may be long in memory: four tables of 20,000 rows are half.
VALUES_MAX = 800_000
#: Largest message to a node: the whole state of 30,000 services with many backends.
TO_NODE_MAX = 256 * 2**20
REPORTS_MAX = 1000
TEXT_MAX = 1000
NAME_MAX = 128
#: What a node may leave out, and the length of each reason. A key of another section is longer than a name.
LEFT_OUT_MAX, LEFT_OUT_REASON_MAX, LEFT_OUT_KEY_MAX = 32_768, 200, 300
#: Flows, and groups of them, in one message of a hand-over.
FLOWS_MAX = GROUPS_MAX = 4096
#: Bytes of one flow; see native/control/flow_table_scan.h.
FLOW_BYTES = 8
#: Findings of one examination, things that one is about, and characters of it all: a thousand nodes are asked at once.
FINDINGS_MAX, ABOUT_MAX, EXAMINATION_MAX = 100, 64, 1 << 16
#: Characters of what a finding says, and of its remedy.
FINDING_MAX = 2000
#: How grave a finding may be; what is fine is only counted. As in lb.doctor.model.findings, which this need not
#: import.
SEVERITIES = frozenset({"fault", "warning", "unknown"})
#: Terms and generations are counters; nothing of ours counts so far.
COUNT_MAX = 2**53


# A store's history is known by two marks, which orders carry and nodes give back:
#
#     lineage   names one history; a new store has a new one, and so has one that was told to go on all the same
#               (lb-manager take-over), whatever it was made of
#     revision  the version of the desired state, counted within the lineage; it never goes back
#
# "" and 0 are of a manager or a node that knows none. A node refuses an order of a lower term; of its own lineage with
# a lower revision, whatever its term: history went back; and of another lineage in a term that is not higher: it is
# another history. take-over makes a new lineage and a higher term, and so leads out of each of these.


@dataclass(frozen=True, slots=True)
class Hello:
    """The node begins: what it holds, and what it is."""

    term: int
    generation: int
    digest: str
    settings: Mapping[str, Any]
    version: str = ""
    lineage: str = ""  #: of the order of which it has, or would have, its state
    revision: int = 0  #: the highest of that lineage that it was told
    left_out: Mapping[str, str] = field(default_factory=dict)  #: as in an acknowledgement

    def plain(self) -> dict[str, Any]:
        return {"type": "hello", **_fields(self)}


@dataclass(frozen=True, slots=True)
class Ack:
    """A generation is live at the node, or is refused and the one before serves on.

    ``left_out``: what of a generation that is live is not served by this node alone, and why: names of services, and
    ``section/key`` for what is in other sections. The same generation is acknowledged again when that changes.
    """

    term: int
    generation: int
    error: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {"type": "ack", **_fields(self)}


@dataclass(frozen=True, slots=True)
class HealthReport:
    """A node's word on one backend."""

    service: str
    backend: str
    source: str  #: agent or tunnel
    up: bool
    reason: str
    since: float
    host: bool = False  #: it tells of the backend's machine alone, whether that answers at all
    refused: bool = False  #: down, and the backend's machine itself says that nobody listens there

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.service, self.backend, self.source)


@dataclass(frozen=True, slots=True)
class HealthMessage:
    """Words on backends that are new; those said before stand. An empty one renews the lease."""

    lease: float
    reports: tuple[HealthReport, ...] = ()
    clock: float | None = None  #: the node's time, for the manager to see whose clock is wrong

    def plain(self) -> dict[str, Any]:
        reports = [_report_fields(report) for report in self.reports]
        return {"type": "health", "lease": self.lease, "reports": reports, "clock": self.clock}


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """How the node is, for people: of its sections those that are others than it said before on this connection."""

    body: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        return {"type": "status", "body": dict(self.body)}


@dataclass(frozen=True, slots=True)
class EventMessage:
    """Something that happened at the node, in words."""

    text: str

    def plain(self) -> dict[str, Any]:
        return {"type": "event", "text": self.text}


@dataclass(frozen=True, slots=True)
class StateMessage:
    """The whole state of the node."""

    term: int
    generation: int
    digest: str
    body: NodeState
    lineage: str = ""
    revision: int = 0

    def plain(self) -> dict[str, Any]:
        return {"type": "state", **_fields(self)}


@dataclass(frozen=True, slots=True)
class DeltaMessage:
    """What makes the state of ``generation`` of that of ``base``."""

    term: int
    base: int
    generation: int
    digest: str
    set: Mapping[str, Mapping[str, Any]]
    remove: Mapping[str, Sequence[str]]
    lineage: str = ""
    revision: int = 0

    @property
    def delta(self) -> dict[str, Any]:
        return {"set": self.set, "remove": self.remove}

    def plain(self) -> dict[str, Any]:
        return {"type": "delta", **_fields(self)}


@dataclass(frozen=True, slots=True)
class RefusedMessage:
    """The manager will not talk to this node, and why; it closes the connection."""

    reason: str

    def plain(self) -> dict[str, Any]:
        return {"type": "refused", "reason": self.reason}


# Flows that only one MUX knows go from MUX to MUX by way of the manager, which understands nothing of them. A MUX that
# is about to leave begins (``flows``, to all others), and so does one that is about to come (``flows_wanted``, answered
# by the others with ``flows`` to it). The manager tells the one that began how far it is: ``flows_done``.


@dataclass(frozen=True, slots=True)
class FlowGroup:
    """Flows of one backend of one service. The service is known by what it is to its flows, such as
    ``tcp 203.0.113.10/32 80``: numbers and names of services are other ones elsewhere."""

    place: str
    backend: str
    records: bytes

    @property
    def count(self) -> int:
        return len(self.records) // FLOW_BYTES

    def plain(self) -> list[str]:
        return [self.place, self.backend, base64.b64encode(self.records).decode()]


@dataclass(frozen=True, slots=True)
class FlowsMessage:
    """A part of what a MUX alone knows. ``mux``: from a node, the MUX that wants it, or "" for all others; to a node,
    the MUX that it comes from. Only MUXes of one ``pool`` (one hash seed) understand each other's flows."""

    serial: int  #: given by the MUX that began
    mux: str
    pool: str
    last: bool
    left_out: int  #: flows that were too many to tell
    groups: tuple[FlowGroup, ...]

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    def plain(self) -> dict[str, Any]:
        return {"type": "flows", **_fields(self), "groups": [group.plain() for group in self.groups]}


@dataclass(frozen=True, slots=True)
class FlowsWantedMessage:
    """A MUX begins to serve. ``mux``: to a node, the MUX that wants them; from a node, ""."""

    serial: int
    mux: str = ""

    def plain(self) -> dict[str, Any]:
        return {"type": "flows_wanted", **_fields(self)}


@dataclass(frozen=True, slots=True)
class FlowsTakenMessage:
    """A MUX has taken over all parts of what ``mux`` told; how many flows of them it did not know before."""

    serial: int
    mux: str
    taken: int
    refused: int = 0

    def plain(self) -> dict[str, Any]:
        return {"type": "flows_taken", **_fields(self)}


@dataclass(frozen=True, slots=True)
class FlowsDoneMessage:
    """To the MUX that began: how many others have done their part, and how many it waits for: for none, it is over."""

    serial: int
    muxes: int
    waiting: int

    def plain(self) -> dict[str, Any]:
        return {"type": "flows_done", **_fields(self)}


@dataclass(frozen=True, slots=True)
class FlowQuestion:
    """To a MUX: what of one flow? For ``lb describe flow``."""

    serial: int
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int

    def plain(self) -> dict[str, Any]:
        return {"type": "flow_question", **_fields(self)}


@dataclass(frozen=True, slots=True)
class FlowAnswer:
    """From a MUX: what a new flow gets, and what its table remembers of this one. None where there is none."""

    serial: int
    service: str | None = None
    slot: int | None = None
    new: str | None = None  #: the backend that a new flow gets
    remembered: str | None = None  #: the backend of the entry in the flow table
    flow_class: str | None = None
    age: float | None = None  #: seconds since the flow's last packet
    error: str | None = None

    def plain(self) -> dict[str, Any]:
        return {"type": "flow_answer", **_fields(self)}


@dataclass(frozen=True, slots=True)
class ExamineQuestion:
    """To a node: what does its own doctor find? For ``lb doctor`` of the fleet."""

    serial: int

    def plain(self) -> dict[str, Any]:
        return {"type": "examine", "serial": self.serial}


@dataclass(frozen=True, slots=True)
class NodeFinding:
    """One of :mod:`lb.doctor.model.findings`, as a node says it."""

    check: str
    severity: str
    what: str
    remedy: str | None = None
    cause: str | None = None
    about: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        return {**_fields(self), "about": list(self.about)}


@dataclass(frozen=True, slots=True)
class Examination:
    """From a node: what its own doctor found wrong, or why it did not look."""

    serial: int
    findings: tuple[NodeFinding, ...] = ()
    fine: int = 0  #: checks that found nothing
    left_out: int = 0  #: findings that were too many to tell
    error: str | None = None

    def plain(self) -> dict[str, Any]:
        return {"type": "examination", **_fields(self), "findings": [finding.plain() for finding in self.findings]}


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """Of a type that a newer version has: passed over, for while an upgrade lasts versions are mixed."""

    type: str

    def plain(self) -> dict[str, Any]:
        return {"type": self.type}


FlowsFromNode = FlowsMessage | FlowsWantedMessage | FlowsTakenMessage
FlowsToNode = FlowsMessage | FlowsWantedMessage | FlowsDoneMessage
#: What is asked of a node, and what it answers.
Question = FlowQuestion | ExamineQuestion
Answer = FlowAnswer | Examination
FromNode = Hello | Ack | HealthMessage | StatusMessage | EventMessage | FlowsFromNode | Answer | UnknownMessage
Order = StateMessage | DeltaMessage
ToNode = Order | RefusedMessage | FlowsToNode | Question | UnknownMessage

#: Types that only the one side says; from the other they are a mistake, and not of a newer version.
_NODES_OWN = frozenset({"hello", "ack", "health", "status", "event", "flows_taken", "flow_answer", "examination"})
_MANAGERS_OWN = frozenset({"state", "delta", "refused", "flows_done", "flow_question", "examine"})


def encode(message: FromNode | ToNode) -> str:
    """One text frame."""
    return json.dumps(message.plain(), separators=(",", ":"), ensure_ascii=False, default=_in_order)


def _in_order(value: object) -> dict[str, Any] | list[Any]:
    """A section of a whole state, or rows that are made when they are read, as JSON has them."""
    if isinstance(value, PersistentMap):
        return dict(sorted(value.items()))
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def parse_from_node(text: str) -> FromNode:  # noqa: PLR0911  one way for each type
    """A node's message; raises MessageError, and nothing else, whatever it is given."""
    read = _Fields(text, FROM_NODE_MAX)
    match read.type:
        case "hello":
            return Hello(
                read.count("term"),
                read.count("generation"),
                read.text("digest"),
                read.table("settings"),
                read.text("version", ""),
                read.text("lineage", "", NAME_MAX),
                read.optional_count("revision") or 0,
                read.reasons("left_out"),
            )
        case "ack":
            return Ack(
                read.count("term"), read.count("generation"), read.optional_text("error"), read.reasons("left_out")
            )
        case "health":
            array = read.array("reports", REPORTS_MAX)
            return HealthMessage(
                read.number("lease"), tuple(_report(item) for item in array), read.optional_number("clock")
            )
        case "status":
            return StatusMessage(read.table("body"))
        case "event":
            return EventMessage(read.text("text"))
        case "flows":
            return _flows(read)
        case "flows_wanted":
            return FlowsWantedMessage(read.count("serial"), read.text("mux", "", NAME_MAX))
        case "flows_taken":
            taken, refused = read.count("taken"), read.count("refused")
            return FlowsTakenMessage(read.count("serial"), read.text("mux", limit=NAME_MAX), taken, refused)
        case "flow_answer":
            return FlowAnswer(
                read.count("serial"),
                read.optional_text("service"),
                read.optional_count("slot"),
                read.optional_text("new"),
                read.optional_text("remembered"),
                read.optional_text("flow_class"),
                read.optional_number("age"),
                read.optional_text("error"),
            )
        case "examination":
            return _examination(read, len(text))
        case _:
            return _newer(read.type, _MANAGERS_OWN, "a node")


def parse_to_node(text: str) -> ToNode:  # noqa: PLR0911  one way for each type
    """A manager's message; raises MessageError, and nothing else, whatever it is given."""
    read = _Fields(text, TO_NODE_MAX)
    match read.type:
        case "state":
            return StateMessage(
                read.count("term"),
                read.count("generation"),
                read.text("digest"),
                _sections(read.table("body")),
                read.text("lineage", "", NAME_MAX),
                read.optional_count("revision") or 0,
            )
        case "delta":
            return DeltaMessage(
                read.count("term"),
                read.count("base"),
                read.count("generation"),
                read.text("digest"),
                _sections(read.table("set")),
                _removals(read.table("remove")),
                read.text("lineage", "", NAME_MAX),
                read.optional_count("revision") or 0,
            )
        case "refused":
            return RefusedMessage(read.text("reason"))
        case "flows":
            return _flows(read)
        case "flows_wanted":
            return FlowsWantedMessage(read.count("serial"), read.text("mux", limit=NAME_MAX))
        case "flows_done":
            return FlowsDoneMessage(read.count("serial"), read.count("muxes"), read.count("waiting"))
        case "flow_question":
            return FlowQuestion(
                read.count("serial"),
                read.text("protocol"),
                read.text("source"),
                read.count("source_port"),
                read.text("destination"),
                read.count("destination_port"),
            )
        case "examine":
            return ExamineQuestion(read.count("serial"))
        case _:
            return _newer(read.type, _NODES_OWN, "a manager")


def _newer(kind: object, others: frozenset[str], whose: str) -> UnknownMessage:
    if isinstance(kind, str) and 0 < len(kind) <= NAME_MAX and kind.isidentifier() and kind not in others:
        return UnknownMessage(kind)
    raise MessageError(f"unknown type of message from {whose}: {_show(kind)}")


def _values(text: str) -> int:
    """No fewer than there are values in a JSON text: quick to count, long before each is made."""
    return text.count(",") + text.count("{") + text.count("[")


class _Fields:
    """One message's fields, each checked as it is read. Unknown fields are of a newer version, and left alone."""

    def __init__(self, source: str | Mapping[str, Any], limit: int = 0) -> None:
        if isinstance(source, str):
            if len(source) > limit:
                raise MessageError(f"a message of {len(source)} characters; none of ours is longer than {limit}")
            if limit == FROM_NODE_MAX and len(source) > VALUES_MAX and (values := _values(source)) > VALUES_MAX:
                raise MessageError(f"a message of {values} values; none of ours has more than {VALUES_MAX}")
            try:
                source = json.loads(source, parse_constant=_no_constant)
            except (ValueError, RecursionError):
                raise MessageError("a message must be one JSON object") from None
        if not isinstance(source, dict):
            raise MessageError("a message must be one JSON object")
        self._raw: dict[str, Any] = source
        self.type = source.get("type")

    def _wrong(self, key: str, expected: str) -> MessageError:
        where = f"in a message of type {_show(self.type)}" if self.type is not None else "in a part of a message"
        return MessageError(f"{key} {where} must be {expected}, not {_show(self._raw.get(key))}")

    def count(self, key: str) -> int:
        value = self._raw.get(key)
        if type(value) is not int or not 0 <= value < COUNT_MAX:
            raise self._wrong(key, "a counter")
        return value

    def optional_count(self, key: str) -> int | None:
        return None if self._raw.get(key) is None else self.count(key)

    def number(self, key: str) -> float:
        value = self._raw.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < COUNT_MAX:
            raise self._wrong(key, "a number that is not negative")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self._raw.get(key) is None else self.number(key)

    def text(self, key: str, default: str | None = None, limit: int = TEXT_MAX) -> str:
        value = self._raw.get(key, default)
        if not isinstance(value, str) or len(value) > limit or not _is_text(value):
            raise self._wrong(key, f"text of at most {limit} characters")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self._raw.get(key) is None else self.text(key)

    def flag(self, key: str) -> bool:
        value = self._raw.get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self._raw.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "a table")
        return value

    def reasons(self, key: str) -> dict[str, str]:
        """What is left out, and why; nothing where an older version says none."""
        value = self.table(key) if self._raw.get(key) is not None else {}
        if len(value) > LEFT_OUT_MAX:
            raise self._wrong(key, f"a table of at most {LEFT_OUT_MAX}")
        for name, reason in value.items():
            if not _is_short(name, LEFT_OUT_KEY_MAX) or not _is_short(reason, LEFT_OUT_REASON_MAX):
                raise self._wrong(key, "reasons by name")
        return value

    def array(self, key: str, limit: int) -> list[Any]:
        value = self._raw.get(key)
        if not isinstance(value, list) or len(value) > limit:
            raise self._wrong(key, f"an array of at most {limit}")
        return value


def _report_fields(report: HealthReport) -> dict[str, Any]:
    """There may be many, and what is so of few is left out of the others."""
    plain = _fields(report)
    for key in ("host", "refused"):
        if not plain[key]:
            del plain[key]
    return plain


def _report(raw: object) -> HealthReport:
    if not isinstance(raw, dict):
        raise MessageError(f"a report must be a table, not {_show(raw)}")
    read = _Fields({key: value for key, value in raw.items() if key != "type"})
    source = read.text("source")
    if source not in ("agent", "tunnel"):
        raise MessageError(f"source in a report must be agent or tunnel, not {_show(source)}")
    return HealthReport(
        read.text("service", limit=NAME_MAX),
        read.text("backend", limit=NAME_MAX),
        source,
        read.flag("up"),
        read.text("reason"),
        read.number("since"),
        raw.get("host") is True,
        raw.get("refused") is True,
    )


def _flows(read: _Fields) -> FlowsMessage:
    groups = tuple(_group(raw) for raw in read.array("groups", GROUPS_MAX))
    count = sum(group.count for group in groups)
    if count > FLOWS_MAX:
        raise MessageError(f"{count} flows in one message; none of ours has more than {FLOWS_MAX}")
    return FlowsMessage(
        read.count("serial"),
        read.text("mux", "", NAME_MAX),
        read.text("pool", limit=NAME_MAX),
        read.flag("last"),
        read.count("left_out"),
        groups,
    )


def _group(raw: object) -> FlowGroup:
    if not isinstance(raw, list) or len(raw) != 3:
        raise MessageError(f"a group of flows must be a service, a backend and flows, not {_show(raw)}")
    read = _Fields(dict(zip(("service", "backend", "flows"), raw, strict=True)))
    place, backend = read.text("service", limit=NAME_MAX), read.text("backend", limit=NAME_MAX)
    text = read.text("flows", limit=FLOWS_MAX * FLOW_BYTES * 4 // 3 + 4)
    try:
        records = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise MessageError(f"flows of {_show(place)} must be base64") from None
    if not records or len(records) % FLOW_BYTES:
        raise MessageError(f"flows of {_show(place)} must be {FLOW_BYTES} bytes each")
    return FlowGroup(place, backend, records)


def _examination(read: _Fields, size: int) -> Examination:
    if size > EXAMINATION_MAX:
        raise MessageError(f"an examination of {size} characters; none of ours is longer than {EXAMINATION_MAX}")
    return Examination(
        read.count("serial"),
        tuple(_finding(raw) for raw in read.array("findings", FINDINGS_MAX)),
        read.count("fine"),
        read.count("left_out"),
        read.optional_text("error"),
    )


def _finding(raw: object) -> NodeFinding:
    if not isinstance(raw, dict):
        raise MessageError(f"a finding must be a table, not {_show(raw)}")
    read = _Fields(raw)
    severity = read.text("severity", limit=NAME_MAX)
    if severity not in SEVERITIES:
        raise MessageError(f"severity of a finding must be fault, warning or unknown, not {_show(severity)}")
    about = read.array("about", ABOUT_MAX)
    if not all(_is_short(one, LEFT_OUT_KEY_MAX) for one in about):
        raise MessageError("what a finding is about must be names")
    what, remedy, cause = read.text("what", limit=FINDING_MAX), None, None
    if raw.get("remedy") is not None:
        remedy = read.text("remedy", limit=FINDING_MAX)
    if raw.get("cause") is not None:
        cause = _word(read, "cause")
    return NodeFinding(_word(read, "check"), severity, what, remedy, cause, tuple(about))


def _word(read: _Fields, key: str) -> str:
    word = read.text(key, limit=NAME_MAX)
    if not word.isidentifier() or not word.isascii():
        raise MessageError(f"{key} of a finding must be a word, not {_show(word)}")
    return word


def _sections(raw: dict[str, Any]) -> NodeState:
    """Sections that a newer manager knows are kept: the digest counts them."""
    for section, entries in raw.items():
        if not isinstance(entries, dict):
            raise MessageError(f"section {_show(section)} must be a table, not {_show(entries)}")
    return raw


def _removals(raw: dict[str, Any]) -> dict[str, list[str]]:
    for section, keys in raw.items():
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise MessageError(f"what is removed from section {_show(section)} must be an array of names")
    return raw


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _is_short(value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit and _is_text(value)


def _is_text(value: str) -> bool:
    """Half a surrogate pair can be written in JSON, and could not be sent or printed again."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: object) -> str:
    """A value of somebody else's, cut short, safe to print."""
    text = ascii(value) if not isinstance(value, dict | list) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in fields(message)}
