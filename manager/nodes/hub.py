# SPDX-License-Identifier: Apache-2.0
"""What the manager knows of its nodes: which are connected, what each should have, has, and says of itself.

:class:`NodeHub` is between the node stream (:mod:`manager.nodes.stream`, which only moves messages) and
:class:`manager.controller.controller.Controller`, which plans. It decides nothing about services; it says which VIPs
something happened to. It owns the list of nodes, which outlives the manager in the store.

The body of a node's status, as far as commands and metrics read it (everything may be missing):

    at              the time of the MUX's own clock at which its counters were read, seconds
    mux             the row of ``lb get muxes --local``
    services        rows: name, packets, bytes, flows_new, dropped, flows (live, as counted every few seconds)
    backends        rows: service, name, packets, flows
    handover        in words: what became of the flows that only this MUX knew, when it last went or came
    drains          rows: service, name, flows; of backends that drain, counted when they got no new flow any more
    peers           rows of BGP sessions: name, address, state, error, ...
    announcements   rows: vip, peer, state ("announced", ...), why; those of many VIPs are told seldom
    announcements_since  the same of a few VIPs of which another is to be told by now, in the place of those above

A node says all of it when it has connected, and then what changed. It is checked as it comes in
(:mod:`manager.nodes.status`): one that says anything of another form is let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import islice
from typing import Any, Protocol

from lb.daemon.clocks import Clocks
from lb.errors import AccessError
from lb.model import Address
from lb.node.client import BACKOFF_MAX
from lb.node.messages import (
    Answer,
    Examination,
    ExamineQuestion,
    FlowAnswer,
    FlowQuestion,
    FlowsFromNode,
    FlowsToNode,
    HealthMessage,
    NodeState,
    Question,
)
from manager.nodes.flow_sync import FlowSyncStep as Passed
from manager.nodes.flow_sync import Handovers
from manager.nodes.node_requests import Questions, Rounds
from manager.nodes.refused import DuplicateError, TurnedAway
from manager.nodes.status import REMEMBERED
from manager.plan.model import AGENT, MUX, Node
from manager.store.interface import NodeRecord
from manager.store.lineage import Behind, Marks, StoreStanding, impossible, newer

#: A node that has not acknowledged for so long holds nobody up any more, seconds.
LATE = 10.0
#: Generations under way to a node that are told apart; a node takes the newest, so they are few.
OWED = 256
#: Words on a node's clock that are remembered.
CLOCKS = 4


#: Sections of a status with rows of services, and which key of a row names it.
_BY_SERVICE = {"services": "name", "backends": "service", "drains": "service"}
_BY_VIP = ("announcements", "announcements_since")
#: Rows of VIPs that there are not that are kept.
OTHERS_KEPT = 500
_NOTHING: Mapping[str, str] = {}


class NodeConnection(Protocol):
    """A node's connection; :class:`manager.nodes.stream.StreamConnection`, or a fake."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def version(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def expires(self) -> float | None:
        """When its certificate does."""
        ...

    @property
    def marks(self) -> Marks:
        """Of the newest orders that it had when it connected."""
        ...

    def wake(self) -> None: ...

    def tell(self, letter: FlowsToNode | Question) -> bool: ...


class NodeListener(Protocol):
    """Who wants to know what happens to nodes; called in the event loop, returns at once."""

    def touched(self, vips: Iterable[str] | None) -> None:
        """Something happened that the plan of these VIPs (None: of all) depends on."""
        ...

    def acknowledged(self, vips: Iterable[str]) -> None:
        """A node has what the plans of these VIPs gave it."""
        ...

    def touched_at(self, addresses: Iterable[Address]) -> None:
        """Another agent, or none, is at these addresses now."""
        ...

    def heard(self, kind: str, name: str, message: HealthMessage) -> None: ...

    def told(self, entry: Entry, body: Mapping[str, Any]) -> None:
        """A node's status, or what of it changed; ``entry.status`` has all of it."""
        ...

    def left(self, entry: Entry) -> None:
        """A node's connection ended."""
        ...

    def looked(self, entry: Entry) -> None:
        """What operators see of a node is another."""
        ...

    def happened(self, subject: str, text: str, *, bad: bool = False) -> None:
        """For the events."""
        ...

    def keep(self, record: NodeRecord) -> None:
        """For the store."""
        ...

    def fell_behind(self) -> None:
        """Another node has newer orders than the store, or one that had has no longer (NodeHub.behind)."""
        ...


@dataclass(slots=True)
class Entry:
    """One node."""

    record: NodeRecord
    since: float  #: when it connected, or left; Unix time, for people
    changed: float  #: the same by the steady clock
    address: Address | None
    address6: Address | None
    connection: NodeConnection | None = None
    gone: bool = False
    generation: int = 0  #: of ``state``
    state: NodeState | None = None  #: what it should have; None: no plan has it yet
    live_generation: int = 0  #: 0: it has acknowledged nothing since the manager began
    live: NodeState | None = None
    pending_since: float | None = None  #: since when it owes an acknowledgement, by the steady clock
    owes: dict[int, frozenset[str]] = field(default_factory=dict)  #: generation -> VIPs that it told news of
    late: bool = False
    refused: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)  #: what of its live state it does not serve, and why
    status: Mapping[str, Any] = field(default_factory=dict)
    expires: float | None = None  #: its certificate, by its last connection
    clocks: deque[float] = field(default_factory=lambda: deque(maxlen=CLOCKS))  #: how far ahead of ours, lately
    node: Node = field(default_factory=lambda: Node(MUX, ""))  #: as the plan sees it

    @property
    def id(self) -> str:
        return f"{self.record.kind}:{self.record.name}"

    @property
    def clock_skew(self) -> float | None:
        """How far its clock is ahead, seconds; None: it has not said. A message that waited somewhere tells too much,
        so of the last ones that counts which tells least."""
        return min(self.clocks.copy(), key=abs, default=None)  # a scrape looks at it from another thread

    @property
    def may_follow(self) -> bool:
        """Whether it is worth waiting for: a MUX that just lost its connection may be back in a moment."""
        return not self.gone and self.refused is None

    @property
    def behind(self) -> str | None:
        """Why it has not what it should have; None: it has. An agent that is away keeps nobody waiting: no MUX sends
        anything new to it."""
        if self.connection is None:
            return None if self.record.kind == AGENT else "it is not connected, and goes on with what it has"
        if self.refused is not None:
            return f"it refused: {self.refused}"
        if self.live is None:
            return "it has not said yet what it has"
        if self.live_generation < self.generation:
            return f"it has not acknowledged generation {self.generation} yet; it has {self.live_generation}"
        return None

    def lacks(self, vips: Set[str], agents: Callable[[str], Container[str]]) -> Set[str]:
        """Of these VIPs those of which it may not have what it was told; of whom nothing is known, all that it has to
        do with: every VIP has to do with every MUX, and with these ``agents``."""
        is_agent = self.record.kind == AGENT
        if self.connection is None:
            return set() if is_agent else vips
        if self.live is None:
            return {vip for vip in vips if self.record.name in agents(vip)} if is_agent else vips
        return vips & set().union(*self.owes.values())

    def owe(self, generation: int, vips: frozenset[str]) -> None:
        """What it has not acknowledged; of a node that never does, bounded."""
        if len(self.owes) >= OWED:
            self.owes = {min(self.owes): frozenset().union(*self.owes.values())}
        self.owes[generation] = vips

    def look(self) -> None:
        """Brings ``node`` up to date."""
        self.node = Node(
            self.record.kind,
            self.record.name,
            self.address,
            self.address6,
            connected=self.connection is not None,
            gone=self.gone,
            late=self.late,
            live=self.live,
            refused=self.refused,
            left_out=self.left_out,
            owes=_Owed(self),
        )


class _Owed(Collection[str]):
    """The VIPs that a node was told something of that it has not acknowledged; always as it is now."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __contains__(self, vip: object) -> bool:
        return any(vip in vips for vips in self._entry.owes.values())

    def __iter__(self) -> Iterator[str]:
        return iter(frozenset().union(*self._entry.owes.values()))

    def __len__(self) -> int:
        return len(frozenset().union(*self._entry.owes.values()))


class NodeHub:
    """All nodes. A :class:`manager.nodes.stream.Hub`."""

    def __init__(
        self,
        standing: StoreStanding,
        generation: int,
        listener: NodeListener,
        hold: float,
        clocks: Clocks,
        *,
        behind: Behind | None = None,
        served: Callable[[Address], bool] = lambda _: False,
        known: Callable[[str], bool] = lambda _: True,
        known_vip: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """``served``: whether an address is a service's; ``known``: whether there is a service of this name, or was one
        that nodes may have yet; ``known_vip``: the same of a VIP, as a prefix."""
        self._served = served
        self._known = known
        self._known_vip = known_vip
        self._standing = standing
        self.behind = behind or Behind()
        self._generation = generation
        self._listener = listener
        self._hold = hold
        self._clocks = clocks
        #: No node can be missed before: it comes back when its pause between two attempts ends.
        self._all_back = clocks.steady() + BACKOFF_MAX
        self._entries: dict[str, Entry] = {}
        self._handovers = Handovers()
        self.agent_at: dict[Address, str] = {}
        self._told: set[str] = set()  # who had orders of ours, also those that were forgotten since
        self.turned_away = TurnedAway()
        self._questions: Questions[FlowAnswer] = Questions(FlowQuestion)
        self._examined: Questions[Examination] = Questions(ExamineQuestion)
        self._rounds = Rounds(self._examined)

    @property
    def term(self) -> int:
        return self._standing.term

    @property
    def lineage(self) -> str:
        """Of the store, which nodes are told with their orders (lb.node.messages)."""
        return self._standing.lineage

    @property
    def revision(self) -> int:
        return self._standing.revision

    @property
    def generation(self) -> int:
        """The latest of any node."""
        return self._generation

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By ``kind:name``."""
        return self._entries

    def of(self, kind: str) -> dict[str, Node]:
        """By name, as the plan sees them."""
        return {entry.record.name: entry.node for entry in self._entries.values() if entry.record.kind == kind}

    def addresses(self) -> dict[Address, str]:
        """Whose they are, in words."""
        words = {MUX: "MUX", AGENT: "agent"}
        return {
            address: f"{words[entry.record.kind]} {entry.record.name}"
            for entry in self._entries.values()
            for address in (entry.address, entry.address6)
            if address is not None
        }

    # -- from the manager ---------------------------------------------------------------------------------------

    def load(self, records: Iterable[NodeRecord]) -> None:
        """Nodes from the store; none is connected yet."""
        for record in records:
            wall, steady = self._clocks.wall(), self._clocks.steady()
            self._add(Entry(record, wall, steady, _parse(record.address), _parse(record.address6)))
        self._map_addresses()

    def want(self, states: Mapping[str, NodeState], vips: Iterable[str], *, complete: bool = True) -> list[str]:
        """What nodes should have from now on, and the VIPs that something is new of; returns whose state changed.
        Not ``complete``: other VIPs wait for their turn, and a node that is new here waits as well, for it must not
        take half of its state for all."""
        compared: dict[tuple[int, int], bool] = {}  # sections that many nodes share are compared once
        changed = []
        for id_, state in states.items():
            entry = self._entries.get(id_)
            if entry is None or (entry.state is None and not complete):
                continue
            if _same(entry.state, state, compared):
                entry.state = state  # equal; the next time it is seen at a glance
            else:
                changed.append((entry, state))
        if not changed:
            return []
        self._generation += 1
        planned, now = frozenset(vips), self._clocks.steady()
        for entry, state in changed:
            entry.owe(self._generation, planned)  # of who is away it is not known either what it has
            if entry.connection is not None:
                entry.pending_since = now if entry.state is None else entry.pending_since or now
                entry.connection.wake()
            entry.state, entry.generation = state, self._generation
        return [entry.id for entry, _ in changed]

    def turn_page(self, revision: int) -> None:
        """The store is of this revision now; nodes hear of it with their next orders."""
        if revision > self._standing.revision:
            self._standing = replace(self._standing, revision=revision)

    def renumber(self) -> None:
        """Every node gets the orders that it has once more, with the present revision: something changed that is in no
        order, and that nobody may forget for it."""
        self._generation += 1
        for entry in self._entries.values():
            if entry.state is not None:
                entry.generation = self._generation
                if entry.connection is not None:
                    entry.pending_since = entry.pending_since or self._clocks.steady()
                    entry.connection.wake()

    def may_forget(self, kind: str, name: str) -> Entry:
        """The node; raises AccessError while it is there."""
        entry = self._entries[f"{kind}:{name}"]
        if entry.connection is not None:
            raise AccessError(f"{entry.id} is connected; stop it first")
        return entry

    def forget(self, kind: str, name: str) -> Entry:
        """The operator says that the node will not come back."""
        entry = self.may_forget(kind, name)
        del self._entries[entry.id]
        if self.behind.clear(entry.id):
            self._listener.fell_behind()
        self._map_addresses()
        self._touch(entry)
        self._touch_at(kind, entry.address, entry.address6)
        return entry

    def tick(self) -> None:
        """Time passes: MUXes are gone for long enough, nodes are late."""
        now = self._clocks.steady()
        self._pass_on(self._handovers.tick(now))
        for entry in self._entries.values():
            gone = entry.connection is None and now - max(entry.changed, self._all_back) > self._hold
            late = entry.state is not None and entry.pending_since is not None and now - entry.pending_since > LATE
            if (gone, late) == (entry.gone, entry.late):
                continue
            if late and not entry.late:
                self._listener.happened(_subject(entry), f"has not acknowledged its state for {LATE:g} s", bad=True)
            if gone and not entry.gone and entry.record.kind == MUX:
                text = f"expired: disconnected for {self._hold:g} s, the hold time; nobody waits for it any more"
                self._listener.happened(_subject(entry), text, bad=True)
            entry.gone, entry.late = gone, late
            self._look(entry)
            self._touch(entry)

    # -- from the stream ----------------------------------------------------------------------------------------

    def wanted(self, kind: str, name: str) -> tuple[int, NodeState]:
        entry = self._entries[f"{kind}:{name}"]
        if entry.id in self.behind.nodes:
            return 0, {}  # it has newer orders than ours, and goes on with them
        if entry.generation:
            self._told.add(entry.id)
        return entry.generation, entry.state or {}

    def arrived(self, connection: NodeConnection) -> None:
        id_ = f"{connection.kind}:{connection.name}"
        address, address6 = (self._address(connection, key) for key in ("address", "address6"))
        if address is None and address6 is None:
            raise AccessError(f"{id_} says no address of its own")
        lie = impossible(connection.marks, self._standing)
        if lie is not None:
            raise AccessError(f"{id_} says that it has {lie}; empty its state_dir, and restart it")
        known = self._entries.get(id_)
        wall, steady = self._clocks.wall(), self._clocks.steady()
        first_seen = known.record.first_seen if known else wall
        record = NodeRecord(
            connection.kind,
            connection.name,
            None if address is None else str(address),
            None if address6 is None else str(address6),
            first_seen,
            wall,
            connection.version,
        )
        before = (known.address, known.address6) if known is not None else (None, None)
        moved = known is not None and before != (address, address6)
        entry = known or Entry(record, wall, steady, address, address6)
        entry.record, entry.address, entry.address6 = record, address, address6
        entry.connection, entry.since, entry.changed, entry.gone, entry.late = connection, wall, steady, False, False
        entry.live, entry.live_generation, entry.refused, entry.left_out = None, 0, None, {}
        entry.pending_since = steady
        entry.owes.clear()
        entry.expires = connection.expires
        entry.clocks.clear()
        self.turned_away.came(id_, connection.address)
        self._add(entry)
        self._map_addresses()
        self._listener.keep(record)
        text = f"connected from {connection.address}" + (f"; its address is now {address or address6}" if moved else "")
        self._listener.happened(_subject(entry), text if known else f"{text}, for the first time")
        if known is None or moved:
            self._touch_at(connection.kind, *before, address, address6)
        self._compare(entry, connection.marks)
        self._touch(entry)

    def _compare(self, entry: Entry, marks: Marks) -> None:
        """Has it newer orders than this store knows of?"""
        why = newer(marks, self._standing, self._generation, told=entry.id in self._told)
        if why is None:
            if self.behind.clear(entry.id):
                self._listener.fell_behind()
            return
        entry.refused = f"it has {why}, and goes on with them; see `lb get status`"
        self._look(entry)
        if self.behind.add(entry.id, marks, why):
            self._listener.happened(_subject(entry), f"has {why}: it gets no orders, and no change is taken", bad=True)
            self._listener.fell_behind()

    def left(self, connection: NodeConnection) -> None:
        entry = self._current(connection)
        if entry is None:
            return
        wall, steady = self._clocks.wall(), self._clocks.steady()
        entry.connection, entry.since, entry.changed = None, wall, steady
        entry.pending_since, entry.late = None, False
        entry.record = replace(entry.record, last_seen=wall)
        self._look(entry)
        self._listener.keep(entry.record)
        self._listener.left(entry)
        self._listener.happened(_subject(entry), "is not connected any more; it goes on with what it has", bad=True)
        if entry.record.kind == MUX:
            self._pass_on(self._handovers.left(entry.record.name))
        self._touch(entry)

    def live(
        self, connection: NodeConnection, generation: int, state: NodeState, left_out: Mapping[str, str] = _NOTHING
    ) -> None:
        entry = self._current(connection)
        if entry is None:
            return
        differs = {name for name in {*left_out, *entry.left_out} if left_out.get(name) != entry.left_out.get(name)}
        self._say_left_out(entry, left_out)
        entry.left_out = left_out
        known = entry.live is not None and entry.refused is None and not entry.late
        # Which MUXes' tunnels an agent accepts is of no VIP, and matters to all that it serves.
        known = known and entry.live is not None and entry.live.get("muxes") == state.get("muxes")
        if entry.refused is not None:
            self._listener.happened(_subject(entry), "accepted its state")
        entry.live, entry.live_generation, entry.refused = state, generation, None
        entry.pending_since = None if generation >= entry.generation else self._clocks.steady()
        entry.late = False
        self._look(entry)
        if not known:
            self._touch(entry)
        self._touch_owed(entry, generation)
        if differs:
            tables = [state.get("services", {}).get(name.removeprefix("services/")) for name in differs]
            self._listener.touched({_prefix(table["vip"]) for table in tables if table is not None})

    def refused(self, connection: NodeConnection, generation: int, reason: str) -> None:
        entry = self._current(connection)
        if entry is None or generation < entry.generation:
            return  # a newer one is on its way
        if entry.refused != reason:
            self._listener.happened(_subject(entry), f"refused its state, and goes on with the old: {reason}", bad=True)
        entry.refused, entry.pending_since, entry.late = reason, None, False
        self._look(entry)
        self._touch(entry)

    def refused_at_door(self, kind: str, name: str, address: str, reason: str, *, duplicate: bool) -> None:
        """Somebody who says, or can prove, to be this node was not let in."""
        if self.turned_away.add(f"{kind}:{name}", address, reason, self._clocks.wall(), duplicate=duplicate):
            word = "another machine of this name or address" if duplicate else "a machine of this name"
            self._listener.happened(f"{kind} {name}", f"{word}, at {address}, was turned away: {reason}", bad=True)

    def health(self, connection: NodeConnection, message: HealthMessage) -> None:
        entry = self._current(connection)
        if entry is not None:
            if message.clock is not None:
                entry.clocks.append(message.clock - self._clocks.wall())
            self._listener.heard(connection.kind, connection.name, message)

    def status(self, connection: NodeConnection, body: Mapping[str, Any]) -> None:
        entry = self._current(connection)
        if entry is not None:
            body = self._of_ours(body)
            if "peers" in body:
                self._say_sessions(entry, body)
            entry.status = {**entry.status, **{name: body[name] for name in body.keys() & REMEMBERED}}
            self._listener.told(entry, body)

    def _of_ours(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without rows of services that there are not, or one node could have all of the manager work on them; of VIPs
        that there are not some are kept, for whoever looks for what should not be announced."""
        found: dict[str, list[Any]] = {
            section: [row for row in body[section] if self._known(row[key])]
            for section, key in _BY_SERVICE.items()
            if section in body
        }
        for section in _BY_VIP:
            if section in body:
                found[section] = [row for row in body[section] if self._known_vip(_prefix(row["vip"]))]
                if len(found[section]) < len(body[section]):
                    others = (row for row in body[section] if not self._known_vip(_prefix(row["vip"])))
                    found[section] += islice(others, OTHERS_KEPT)
        return {**body, **found} if found else body

    def event(self, connection: NodeConnection, text: str) -> None:
        entry = self._current(connection)
        if entry is not None:
            self._listener.happened(_subject(entry), text)

    async def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, FlowAnswer | str]:
        """What each MUX says of a flow, or why it says nothing. ``question``: the fields of a FlowQuestion."""
        return await self._questions.ask(
            {entry.record.name: entry.connection for entry in self._entries.values() if entry.record.kind == MUX},
            question,
            seconds,
        )

    async def examine(self, seconds: float) -> dict[str, Examination | str]:
        """What each node's own doctor finds, by ``kind:name``, or why it says nothing."""
        return await self._rounds.ask(lambda: {entry.id: entry.connection for entry in self._entries.values()}, seconds)

    def answered(self, connection: NodeConnection, answer: Answer) -> None:
        entry = self._current(connection)
        if entry is None:
            return
        if isinstance(answer, Examination):
            self._examined.answered(entry.id, answer)
        elif connection.kind == MUX:  # an agent may have a MUX's name
            self._questions.answered(connection.name, answer)

    def flows(self, connection: NodeConnection, message: FlowsFromNode) -> None:
        """A part of a hand-over between MUXes."""
        entry = self._current(connection)
        if entry is not None:
            others = [name for name, other in self._muxes().items() if other is not entry]
            self._pass_on(self._handovers.said(entry.record.name, message, others, self._clocks.steady()))

    def is_connected(self, kind: str, name: str) -> bool:
        entry = self._entries.get(f"{kind}:{name}")
        return entry is not None and entry.connection is not None

    # -- inside -------------------------------------------------------------------------------------------------

    def _current(self, connection: NodeConnection) -> Entry | None:
        """The node, if this connection is the one that counts."""
        entry = self._entries.get(f"{connection.kind}:{connection.name}")
        return entry if entry is not None and entry.connection is connection else None

    def _muxes(self) -> dict[str, Entry]:
        """Those that are connected, by name."""
        found = self._entries.values()
        return {
            entry.record.name: entry for entry in found if entry.record.kind == MUX and entry.connection is not None
        }

    def _pass_on(self, answer: Passed) -> None:
        muxes = self._muxes() if answer.letters else {}
        for name, letter in answer.letters:
            connection = muxes[name].connection if name in muxes else None
            if connection is not None and not connection.tell(letter):
                self._listener.happened(f"mux {name}", "takes part in too many hand-overs of flows at once", bad=True)
        for subject, text, bad in answer.words:
            self._listener.happened(subject, text, bad=bad)

    def _look(self, entry: Entry) -> None:
        entry.look()
        self._listener.looked(entry)

    def _add(self, entry: Entry) -> None:
        self._look(entry)
        self._entries[entry.id] = entry

    def _map_addresses(self) -> None:
        found = {
            address: entry.record.name
            for entry in self._entries.values()
            if entry.record.kind == AGENT
            for address in (entry.address, entry.address6)
            if address is not None
        }
        if found != self.agent_at:
            self.agent_at = found

    def _address(self, connection: NodeConnection, key: str) -> Address | None:
        """An address that the node says is its own, unless it is another's."""
        text = connection.settings.get(key)
        if text is None:
            return None
        address = _parse(text)
        if address is None:
            raise AccessError(f"{connection.kind}:{connection.name} says an {key} that is none: {str(text)[:80]!r}")
        why = unfit(address) or ("is a service's" if self._served(address) else None)
        if why is not None:
            raise AccessError(f"{connection.kind}:{connection.name} says {key} {address}, which {why}")
        for entry in self._entries.values():
            other = entry.connection
            if (
                entry.record.kind != connection.kind
                and address in (entry.address, entry.address6)
                and other is not None
                and other.address != connection.address
            ):
                raise DuplicateError(
                    f"{connection.kind}:{connection.name} at {connection.address} says address {address}, which is "
                    f"that of {entry.id} at {other.address}"
                )
            same = entry.record.kind == connection.kind and address in (entry.address, entry.address6)
            if same and entry.record.name != connection.name:
                raise DuplicateError(
                    f"{connection.kind}:{connection.name} says address {address}, which is that of {entry.id}; "
                    f"`lb delete {connection.kind} {entry.record.name}` frees it if that node is no more"
                )
        return address

    def _touch(self, entry: Entry) -> None:
        """All that the node has to do with. Every VIP has to do with every MUX."""
        if entry.record.kind == MUX:
            self._listener.touched(None)
            return
        states = [state for state in (entry.state, entry.live) if state is not None]
        self._listener.touched(
            {_prefix(table["vip"]) for state in states for table in state.get("services", {}).values()}
        )

    def _say_left_out(self, entry: Entry, left_out: Mapping[str, str]) -> None:
        """What a node cannot serve, once for each reason."""
        for name, reason in left_out.items():
            if entry.left_out.get(name) != reason:
                self._listener.happened(_subject(entry), f"leaves out {name}, and serves the rest: {reason}", bad=True)
        for name in entry.left_out:
            if name not in left_out:
                self._listener.happened(_subject(entry), f"leaves out {name} no more")

    def _touch_at(self, kind: str, *addresses: Address | None) -> None:
        """An agent more or less at these addresses. Ten thousand services need not hear of each."""
        if kind == AGENT:
            self._listener.touched_at([address for address in addresses if address is not None])

    def _touch_owed(self, entry: Entry, generation: int) -> None:
        """The VIPs whose plans gave the node what it has now: nothing else of what a plan knows of it is new."""
        owed = [number for number in entry.owes if number <= generation]
        vips: set[str] = set()
        for number in owed:
            vips |= entry.owes.pop(number)
        self._listener.acknowledged(vips)

    def _say_sessions(self, entry: Entry, body: Mapping[str, Any]) -> None:
        """BGP sessions that came up or went down since the last status."""
        before = {row["name"]: row.get("state") for row in rows(entry.status, "peers") if "name" in row}
        for row in rows(body, "peers"):
            name, state = row.get("name"), row.get("state")
            if name is None or before.get(name) == state:
                continue
            up = state == "established"
            if up or before.get(name) == "established":
                why = f": {row['error']}" if row.get("error") and not up else ""
                what = "is established" if up else f"is {state}"
                self._listener.happened(_subject(entry), f"BGP session with {name} {what}{why}", bad=not up)


def rows(status: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Of a status; whatever a node says, only tables are rows."""
    found = status.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def unfit(address: Address) -> str | None:
    """Why this is no address that packets can be sent to; None: it may be a machine's."""
    if address.is_unspecified:
        return "is nobody's"
    if address.is_loopback:
        return "is every machine's own"
    if address.is_multicast or address == ip_address("255.255.255.255"):
        return "is that of many"
    return None


def _same(old: NodeState | None, new: NodeState, compared: dict[tuple[int, int], bool]) -> bool:
    """``old == new``."""
    if old is new:
        return True
    if old is None or old.keys() != new.keys():
        return False
    for section, entries in new.items():
        before = old[section]
        if before is entries:
            continue
        pair = (id(before), id(entries))
        if pair not in compared:
            compared[pair] = before == entries
        if not compared[pair]:
            return False
    return True


def _subject(entry: Entry) -> str:
    return f"{entry.record.kind} {entry.record.name}"


def _parse(text: object) -> Address | None:
    try:
        return ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _prefix(vip: str) -> str:
    """The VIP of a table as the plan's key."""
    if "/" in vip:
        return vip
    return f"{vip}/{128 if ':' in vip else 32}"
