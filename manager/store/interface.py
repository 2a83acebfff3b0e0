# SPDX-License-Identifier: Apache-2.0
"""What the manager keeps, behind one small interface: desired state, audit, memory of the plan, nodes, trust, terms.

:class:`Store` is all that the rest of the manager knows of it; :mod:`manager.store.sqlite` is the one implementation,
and another for etcd would be a second. Values are plain JSON. A change is atomic, and lasts once the call has returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lb.errors import VipmuxError
from manager.store.lineage import StoreStanding
from manager.trust.tokens import Deed, TrustStore

#: {section: {key: plain value}}
Entries = dict[str, dict[str, Any]]


class ConflictError(VipmuxError):
    """Somebody else changed the desired state in the meantime; read it again."""


class StoreError(VipmuxError):
    """The store cannot be read or written; nothing was changed."""


class SupersededError(StoreError):
    """The store is another manager's by now; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The desired state at one version."""

    version: int = 0
    entries: Entries = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who changed the desired state, or who takes part, when, and what. Never changed, never deleted."""

    version: int  #: of the desired state, once it was done; who takes part changes nothing of it
    at: float  #: Unix time
    who: str
    what: str
    #: {"set": {section: {key: value}}, "remove": {section: [key]}}; None: left out of an answer that is long enough
    change: Mapping[str, Any] | None
    why: str = ""  #: in the words of whoever did it


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A line of the audit without what makes it long."""

    version: int
    at: float
    who: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A MUX or agent that was connected once."""

    kind: str
    name: str
    address: str | None
    address6: str | None
    first_seen: float
    last_seen: float
    version: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    id: int  #: counts on over the lives of a manager
    at: float  #: Unix time
    subject: str  #: "backend web/web-1", "vip 203.0.113.10/32", "mux mux1", "agent host1", "service web"
    text: str
    bad: bool = False


class Store(TrustStore, Protocol):
    """One manager's store."""

    async def load(self) -> Stored: ...

    async def commit(
        self, expected: int, change: Mapping[str, Any], who: str, what: str, at: float, *, why: str = ""
    ) -> int:
        """Makes the next version by a change and writes it into the audit, both or neither; returns its number.
        Raises ConflictError if the version is not the expected one."""
        ...

    async def audit(self, limit: int, most: int = 2**62) -> list[AuditRecord]:
        """The latest first. Of all that they changed no more than ``most`` characters: of the lines after that it is
        left out."""
        ...

    async def history(self, limit: int) -> list[VersionLine]:
        """The latest first; however large the changes were, it is quick."""
        ...

    async def touched(self, limit: int) -> list[tuple[int, frozenset[str], int | None]]:
        """The latest versions, the last first, which sections each changed, and which version's wait for a confirmation
        each ended, if it did."""
        ...

    async def undo(self, after: int, last: int) -> dict[str, Any]:
        """A change that takes back the versions from ``after`` + 1 to ``last``, as if they had come alone."""
        ...

    async def memory(self) -> Entries:
        """What the plan must remember; see manager.plan.model.PlanMemory."""
        ...

    async def keep(
        self, memory: Mapping[str, Any], nodes: Sequence[NodeRecord], events: Sequence[Event], most: int
    ) -> None:
        """Changes the memory, as commit() does the desired state, but with no version and no audit; and what is new of
        nodes; and adds events, of which the last ``most`` are kept. All of it or nothing."""
        ...

    async def nodes(self) -> list[NodeRecord]: ...

    async def forget_node(self, kind: str, name: str, deed: Deed) -> None:
        """``deed`` stands in the audit with it."""
        ...

    async def events(self) -> list[Event]:
        """Those that are kept; the oldest first."""
        ...

    async def next_term(self) -> int:
        """A number that no manager had before."""
        ...

    async def standing(self) -> StoreStanding:
        """Which history this is, and how far it has come."""
        ...

    async def take_over(self, above: int) -> int:
        """A new lineage of what there is, with a term above this one, above every other, and above whatever nodes are
        known to have; returns it. The next start has a higher one still."""
        ...

    async def close(self) -> None: ...
