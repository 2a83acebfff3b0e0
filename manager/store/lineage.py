# SPDX-License-Identifier: Apache-2.0
"""Whether the store is the one that nodes had their orders from, and not an older or an empty one in its place. Pure.

A database file that was lost, a backup that was put back, a directory that was copied: the manager starts all the same,
with what it has, and knows nothing of what came after. Nodes do, for orders carry the marks of the store
(:mod:`lb.node.messages`: lineage and revision) and nodes say theirs when they connect; and a file beside the database
has them as well (:class:`manager.store.sqlite.SqliteStore`). Once anybody has newer marks than the store the manager is
*behind*: those who have are told nothing and go on with what they have; no change is taken; and it is said wherever
somebody asks, until ``lb-manager take-over`` makes a new lineage of what there is, or the right store is put back.
Others are told as ever: one node that lies must not stop verdicts. It can be revoked and deleted, and then it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: So many nodes are named.
NAMED = 5
#: No manager comes to a higher term by starting, and none takes over from one: who says so says what never was, and the
#: terms that messages can carry would be used up by following it.
TERM_MAX = 2**52


@dataclass(frozen=True, slots=True)
class Marks:
    """What somebody knows of the history of orders."""

    term: int = 0
    generation: int = 0
    lineage: str = ""  #: "": not known
    revision: int = 0


@dataclass(frozen=True, slots=True)
class StoreStanding:
    """What a store says of itself."""

    term: int = 0
    lineage: str = ""
    revision: int = 0  #: counts committed changes and revocations; at least the version of the desired state
    floor: int = 0  #: orders of terms below this are of histories that a take-over ended; 0: there was none
    witness: Marks | None = None  #: what the file beside it says
    ends: Mapping[int, int] = field(default_factory=dict)  #: by earlier terms: the revision that each ended with


def impossible(theirs: Marks, ours: StoreStanding) -> str | None:
    """Why nobody can have given out such orders, as the end of a sentence; None: somebody can."""
    if theirs.term > max(ours.term, TERM_MAX):
        return f"orders of term {theirs.term}, which no manager ever had"
    return None


def newer(theirs: Marks, ours: StoreStanding, generation: int, *, told: bool = True) -> str | None:
    """Why whoever has these marks had newer orders than the store knows of, as the end of a sentence; None: it had not.
    ``generation``: the latest that this manager has given out. ``told``: it gave them some. A manager takes a term of
    its own at each start, so nobody else can have given orders of it but one that began with another copy of the
    store; that is known whatever was changed here in the meantime."""
    if theirs.term > ours.term:
        return f"orders of term {theirs.term}, and this manager is of term {ours.term}"
    if theirs.term < ours.floor:
        return None
    if not theirs.lineage:
        # Of a version that knew no marks. In an earlier term it can have been told anything by this very store.
        later = theirs.term == ours.term and theirs.generation > generation
        return "orders that this store knows nothing of" if later else None
    if theirs.lineage != ours.lineage:
        return "orders of another store than this one"
    if theirs.term == ours.term and not told:
        return f"orders of term {theirs.term}, which this manager did not give: another copy of the store was used"
    return _later(theirs, ours)


def _later(theirs: Marks, ours: StoreStanding) -> str | None:
    """Of one lineage."""
    if theirs.revision > ours.revision:
        return f"orders of revision {theirs.revision}, and this store is of revision {ours.revision}"
    ended = ours.ends.get(theirs.term, ours.revision)
    if theirs.revision > ended:  # this store went on from an earlier point, so equal numbers are not the same
        return f"orders of revision {theirs.revision} of term {theirs.term}, which in this store ended with {ended}"
    return None


@dataclass(slots=True)
class Behind:
    """Who had newer orders, as far as is known. Empty: nobody."""

    nodes: dict[str, str] = field(default_factory=dict)  #: node -> what it has
    store: str | None = None  #: what the file beside the store says
    term: int = 0  #: the highest that anybody has

    def __bool__(self) -> bool:
        return bool(self.nodes) or self.store is not None

    def clear(self, node: str) -> bool:
        """It has nothing newer, or is no longer one of ours; whether that is news."""
        return self.nodes.pop(node, None) is not None

    def add(self, node: str, marks: Marks, why: str) -> bool:
        """Whether that is news."""
        self.term = max(self.term, marks.term)
        known = self.nodes.get(node) == why
        self.nodes[node] = why
        return not known

    @property
    def sentence(self) -> str:
        """For people."""
        named = [f"{node} has {why}" for node, why in sorted(self.nodes.items())[:NAMED]]
        if len(self.nodes) > NAMED:
            named.append(f"and {len(self.nodes) - NAMED} more nodes have newer ones")
        found = [*([self.store] if self.store is not None else []), *named]
        return (
            "the store is older than the orders that were given out: " + "; ".join(found) + ". Whoever has newer ones "
            "goes on with them and gets no orders, and no change is taken, until the right store is put back or "
            "`lb-manager take-over` makes this one count; what was revoked since is valid again: see "
            "`lb-manager certificates`"
        )

    def row(self) -> Mapping[str, object] | None:
        """For ``lb get status``."""
        return {"why": self.sentence, "nodes": sorted(self.nodes), "term": self.term} if self else None


def lost(ours: StoreStanding) -> str | None:
    """What the file beside the store says against it, as a sentence's part."""
    if ours.witness is None:
        return None
    why = newer(ours.witness, ours, 0)
    return None if why is None else f"the file beside manager.db tells of {why}, so manager.db or its -wal was lost"


def kept(behind: Behind) -> dict[str, object] | None:
    """For the store: the next start must know before any node connects."""
    return {"nodes": dict(behind.nodes), "term": behind.term} if behind.nodes else None


def behind_of(value: Mapping[str, object] | None, ours: StoreStanding) -> Behind:
    """What an earlier start kept of it, and what the file beside the store says."""
    found = Behind(store=lost(ours), term=ours.witness.term if ours.witness is not None else 0)
    nodes = value.get("nodes") if isinstance(value, Mapping) else None
    if isinstance(nodes, Mapping) and isinstance(value, Mapping):
        found.nodes = {str(node): str(why) for node, why in nodes.items()}
        term = value.get("term")
        found.term = max(found.term, term if isinstance(term, int) else 0)
    return found
