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

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from lb.errors import MessageError
from lb.model.persistent_map import PersistentMap, differences
from lb.node.lazy_section import PackedMap, canonical, pack, plain_section, text_of

NodeState = Mapping[str, Mapping[str, Any]]

SECTIONS = ("services", "announcements", "muxes", "options")

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
# JSON objects in text frames, known by "type". Their classes say what may come over the wire, types, lengths and
# ranges; msgspec holds what comes to that as it reads it. Fields of a newer version are passed over. What a state's
# entries mean is checked by whoever applies them.

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
#: Terms and generations are counters; nothing of ours counts so far.
COUNT_MAX = 2**53

Count = Annotated[int, Meta(ge=0, lt=COUNT_MAX)]
Number = Annotated[float, Meta(ge=0, lt=COUNT_MAX)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Name = Annotated[str, Meta(max_length=NAME_MAX)]
Key = Annotated[str, Meta(max_length=LEFT_OUT_KEY_MAX)]
Word = Annotated[str, Meta(max_length=NAME_MAX, pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")]
#: What a node leaves out, and why.
Reasons = Annotated[Mapping[Key, Annotated[str, Meta(max_length=LEFT_OUT_REASON_MAX)]], Meta(max_length=LEFT_OUT_MAX)]


# A store's history is known by two marks, which orders carry and nodes give back:
#
#     lineage   names one history; a new store has a new one, and so has one that was told to go on all the same
#               (lb-manager take-over), whatever it was made of
#     revision  the version of the desired state, counted within the lineage; it never goes back
#
# "" and 0 are of a manager or a node that knows none. A node refuses an order of a lower term; of its own lineage with
# a lower revision, whatever its term: history went back; and of another lineage in a term that is not higher: it is
# another history. take-over makes a new lineage and a higher term, and so leads out of each of these.


class Hello(Struct, frozen=True, tag="hello"):
    """The node begins: what it holds, and what it is."""

    term: Count
    generation: Count
    digest: Text
    settings: Mapping[str, Any]
    version: Text = ""
    lineage: Name = ""  #: of the order of which it has, or would have, its state
    revision: Count = 0  #: the highest of that lineage that it was told
    left_out: Reasons = {}  #: as in an acknowledgement


class Ack(Struct, frozen=True, tag="ack"):
    """A generation is live at the node, or is refused and the one before serves on.

    ``left_out``: what of a generation that is live is not served by this node alone, and why: names of services, and
    ``section/key`` for what is in other sections. The same generation is acknowledged again when that changes.
    """

    term: Count
    generation: Count
    error: Text | None = None
    left_out: Reasons = {}


class HealthReport(Struct, frozen=True, omit_defaults=True):
    """A node's word on one backend."""

    service: Name
    backend: Name
    source: Literal["agent", "tunnel"]
    up: bool
    reason: Text
    since: Number
    host: bool = False  #: it tells of the backend's machine alone, whether that answers at all
    refused: bool = False  #: down, and the backend's machine itself says that nobody listens there

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.service, self.backend, self.source)


class HealthMessage(Struct, frozen=True, tag="health"):
    """Words on backends that are new; those said before stand. An empty one renews the lease."""

    lease: Number
    reports: Annotated[tuple[HealthReport, ...], Meta(max_length=REPORTS_MAX)] = ()
    clock: Number | None = None  #: the node's time, for the manager to see whose clock is wrong


class StatusMessage(Struct, frozen=True, tag="status"):
    """How the node is, for people: of its sections those that are others than it said before on this connection."""

    body: Mapping[str, Any]


class EventMessage(Struct, frozen=True, tag="event"):
    """Something that happened at the node, in words."""

    text: Text


class StateMessage(Struct, frozen=True, tag="state"):
    """The whole state of the node."""

    term: Count
    generation: Count
    digest: Text
    body: NodeState
    lineage: Name = ""
    revision: Count = 0


class DeltaMessage(Struct, frozen=True, tag="delta"):
    """What makes the state of ``generation`` of that of ``base``."""

    term: Count
    base: Count
    generation: Count
    digest: Text
    set: NodeState
    remove: Mapping[str, list[str]]
    lineage: Name = ""
    revision: Count = 0

    @property
    def delta(self) -> dict[str, Any]:
        return {"set": self.set, "remove": self.remove}


class RefusedMessage(Struct, frozen=True, tag="refused"):
    """The manager will not talk to this node, and why; it closes the connection."""

    reason: Text


# Flows that only one MUX knows go from MUX to MUX by way of the manager, which understands nothing of them. A MUX that
# is about to leave begins (``flows``, to all others), and so does one that is about to come (``flows_wanted``, answered
# by the others with ``flows`` to it). The manager tells the one that began how far it is: ``flows_done``. At all other
# times each MUX tells all others what is new of such flows (``flow_news``); nobody answers.


class FlowGroup(Struct, frozen=True, array_like=True):
    """Flows of one backend of one service. The service is known by what it is to its flows, such as
    ``tcp 203.0.113.10/32 80``: numbers and names of services are other ones elsewhere."""

    place: Name
    backend: Name
    records: Annotated[bytes, Meta(min_length=FLOW_BYTES, max_length=FLOWS_MAX * FLOW_BYTES)]  #: in base64

    def __post_init__(self) -> None:
        if len(self.records) % FLOW_BYTES:
            raise ValueError(f"each flow must be {FLOW_BYTES} bytes")

    @property
    def count(self) -> int:
        return len(self.records) // FLOW_BYTES


class FlowsMessage(Struct, frozen=True, tag="flows"):
    """A part of what a MUX alone knows. ``mux``: from a node, the MUX that wants it, or "" for all others; to a node,
    the MUX that it comes from. Only MUXes of one ``pool`` (one hash seed) understand each other's flows."""

    serial: Count  #: given by the MUX that began
    mux: Name
    pool: Name
    last: bool
    left_out: Count  #: flows that were too many to tell
    groups: Annotated[tuple[FlowGroup, ...], Meta(max_length=GROUPS_MAX)]

    def __post_init__(self) -> None:
        if self.count > FLOWS_MAX:
            raise ValueError(f"{self.count} flows in one message; none of ours has more than {FLOWS_MAX}")

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)


class FlowsWantedMessage(Struct, frozen=True, tag="flows_wanted"):
    """A MUX begins to serve. ``mux``: to a node, the MUX that wants them; from a node, ""."""

    serial: Count
    mux: Name = ""


class FlowsTakenMessage(Struct, frozen=True, tag="flows_taken"):
    """A MUX has taken over all parts of what ``mux`` told; how many flows of them it did not know before."""

    serial: Count
    mux: Name
    taken: Count
    refused: Count = 0


class FlowsDoneMessage(Struct, frozen=True, tag="flows_done"):
    """To the MUX that began: how many others have done their part, and how many it waits for: for none, it is over."""

    serial: Count
    muxes: Count
    waiting: Count


class FlowNewsMessage(Struct, frozen=True, tag="flow_news"):
    """What has changed about the flows that this MUX alone would send where they go, to all others. ``mux``: to a node,
    the MUX that it comes from. ``again``: it may have missed something, and asks the others to tell everything."""

    pool: Name
    come: Annotated[tuple[FlowGroup, ...], Meta(max_length=GROUPS_MAX)] = ()
    over: Annotated[tuple[FlowGroup, ...], Meta(max_length=GROUPS_MAX)] = ()  #: to be forgotten
    again: bool = False
    mux: Name = ""

    def __post_init__(self) -> None:
        count = sum(group.count for group in (*self.come, *self.over))
        if count > FLOWS_MAX:
            raise ValueError(f"{count} flows in one message; none of ours has more than {FLOWS_MAX}")


class FlowQuestion(Struct, frozen=True, tag="flow_question"):
    """To a MUX: what of one flow? For ``lb describe flow``."""

    serial: Count
    protocol: Text
    source: Text
    source_port: Count
    destination: Text
    destination_port: Count


class FlowAnswer(Struct, frozen=True, tag="flow_answer"):
    """From a MUX: what a new flow gets, and what its table remembers of this one. None where there is none."""

    serial: Count
    service: Text | None = None
    slot: Count | None = None
    new: Text | None = None  #: the backend that a new flow gets
    remembered: Text | None = None  #: the backend of the entry in the flow table
    flow_class: Text | None = None
    age: Number | None = None  #: seconds since the flow's last packet
    error: Text | None = None


class ExamineQuestion(Struct, frozen=True, tag="examine"):
    """To a node: what does its own doctor find? For ``lb doctor`` of the fleet."""

    serial: Count


class NodeFinding(Struct, frozen=True):
    """One of :mod:`lb.doctor.model.findings`, as a node says it; what is fine is only counted."""

    check: Word
    severity: Literal["fault", "warning", "unknown"]
    what: Annotated[str, Meta(max_length=FINDING_MAX)]
    remedy: Annotated[str, Meta(max_length=FINDING_MAX)] | None = None
    cause: Word | None = None
    about: Annotated[tuple[Key, ...], Meta(max_length=ABOUT_MAX)] = ()


class Examination(Struct, frozen=True, tag="examination"):
    """From a node: what its own doctor found wrong, or why it did not look."""

    serial: Count
    findings: Annotated[tuple[NodeFinding, ...], Meta(max_length=FINDINGS_MAX)] = ()
    fine: Count = 0  #: checks that found nothing
    left_out: Count = 0  #: findings that were too many to tell
    error: Text | None = None


class UnknownMessage(Struct, frozen=True):
    """Of a type that a newer version has: passed over, for while an upgrade lasts versions are mixed."""

    type: str


FlowsFromNode = FlowsMessage | FlowsWantedMessage | FlowsTakenMessage | FlowNewsMessage
FlowsToNode = FlowsMessage | FlowsWantedMessage | FlowsDoneMessage | FlowNewsMessage
#: What is asked of a node, and what it answers.
Question = FlowQuestion | ExamineQuestion
Answer = FlowAnswer | Examination
_KnownFromNode = Hello | Ack | HealthMessage | StatusMessage | EventMessage | FlowsFromNode | Answer
FromNode = _KnownFromNode | UnknownMessage
Order = StateMessage | DeltaMessage
_KnownToNode = Order | RefusedMessage | FlowsToNode | Question
ToNode = _KnownToNode | UnknownMessage


def encode(message: FromNode | ToNode) -> str:
    """One text frame."""
    return _ENCODER.encode(message).decode()


def _plain(value: object) -> Any:
    """A section of a state, or rows that are made when they are read, as JSON has them."""
    if isinstance(value, Mapping):
        return plain_section(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _types(messages: Any) -> frozenset[str]:
    return frozenset(message.__struct_config__.tag for message in get_args(messages))


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
_FROM_NODE: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_KnownFromNode)
_TO_NODE: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_KnownToNode)
_TYPES_FROM_NODE, _TYPES_TO_NODE = _types(_KnownFromNode), _types(_KnownToNode)


class _Type(Struct):
    """What there is of any message."""

    type: Any = None


def parse_from_node(text: str) -> FromNode:
    """A node's message; raises MessageError, and nothing else, whatever it is given."""
    if len(text) > FROM_NODE_MAX:
        raise MessageError(f"a message of {len(text)} characters; none of ours is longer than {FROM_NODE_MAX}")
    if len(text) > VALUES_MAX and (values := _values(text)) > VALUES_MAX:
        raise MessageError(f"a message of {values} values; none of ours has more than {VALUES_MAX}")
    try:
        message: FromNode = _FROM_NODE.decode(text)
    except (ValueError, RecursionError) as error:
        return _newer(text, error, _TYPES_FROM_NODE, _TYPES_TO_NODE)
    if isinstance(message, Examination) and len(text) > EXAMINATION_MAX:
        raise MessageError(f"an examination of {len(text)} characters; none of ours is longer than {EXAMINATION_MAX}")
    return message


def parse_to_node(text: str) -> ToNode:
    """A manager's message; raises MessageError, and nothing else, whatever it is given."""
    if len(text) > TO_NODE_MAX:
        raise MessageError(f"a message of {len(text)} characters; none of ours is longer than {TO_NODE_MAX}")
    try:
        message: ToNode = _TO_NODE.decode(text)
    except (ValueError, RecursionError) as error:
        return _newer(text, error, _TYPES_TO_NODE, _TYPES_FROM_NODE)
    return message


def _values(text: str) -> int:
    """No fewer than there are values in a JSON text: quick to count, long before each is made."""
    return text.count(",") + text.count("{") + text.count("[")


def _newer(text: str, error: Exception, known: frozenset[str], others: frozenset[str]) -> UnknownMessage:
    """What is no message that this side knows. A type that the other side alone says is a mistake, and not of a newer
    version."""
    try:
        kind = msgspec.json.decode(text, type=_Type).type
    except (ValueError, RecursionError):
        raise MessageError("a message must be one JSON object") from None
    if not isinstance(kind, str):
        raise MessageError(f"unknown type of message: {type(kind).__name__}") from None
    if kind in known:
        raise MessageError(f"a message of type {kind} is wrong: {_printable(str(error))}") from None
    if kind in others or not 0 < len(kind) <= NAME_MAX or not kind.isidentifier():
        raise MessageError(f"unknown type of message: {_printable(kind)}") from None
    return UnknownMessage(kind)


def _printable(text: str) -> str:
    """Words that may hold somebody else's, cut short, safe to print."""
    text = "".join(c if c.isprintable() else "?" for c in text[:121])
    return text if len(text) <= 120 else text[:117] + "..."
