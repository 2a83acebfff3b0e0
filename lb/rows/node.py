# SPDX-License-Identifier: Apache-2.0
"""The rows of MUXes and agents."""

from collections.abc import Sequence
from typing import Annotated, Self

from msgspec import field

from lb.rows.row import Column, Row, Time, shown
from lb.tables.values import ago, cell, rate


class NodeRow(Row, kw_only=True, gc=False):
    """What MUXes and agents have in common."""

    name: str
    state: Annotated[
        str,
        shown(None, Column("State", place=2), values=("ready", "following", "late", "refused", "away", "gone")),
    ]
    address: Annotated[str | None, shown(None, Column("Address", lambda row: cell(row.address or row.address6), 4))]
    address6: str | None
    since: Annotated[Time, shown(None, Column("Since", lambda row: ago(row.since), 3))]
    generation: Annotated[int | None, shown("that it has live; null: it has not told")]
    wanted: Annotated[int, shown("the generation that it should have")]
    refused: Annotated[str | None, shown("why it could not take its state")]
    version: str
    clock_skew: Annotated[float | None, shown("seconds by which its clock is ahead of the manager's")]
    certificate_expires: Annotated[Time | None, shown("Unix time, seconds")]
    left_out: Annotated[dict[str, str], shown("services that it alone does not serve, and why; it serves the rest")] = (
        field(default_factory=dict)
    )
    repaired: Annotated[str | None, shown("what of its own it lately put back into the kernel, or cannot")] = None
    clock: Annotated[str | None, shown("that its clock is not the manager's, in words")] = None

    def troubles(self) -> list[str]:
        """What is not as it should be."""
        found = [
            f"has generation {cell(self.generation)} of {cell(self.wanted)}"
            if self.generation != self.wanted
            else None,
            f"refused its state: {cell(self.refused)}" if self.refused else None,
            *(f"leaves out {cell(name)}: {cell(why)}" for name, why in self.left_out.items()),
            *(cell(why) for why in self.remarks() if why),
        ]
        return [word for word in found if word]

    def remarks(self) -> tuple[str | None, ...]:
        """Sentences that it has of its own."""
        return self.repaired, self.clock

    def words(self) -> list[str]:
        """What is not as it should be, or worth knowing."""
        return self.troubles()

    @property
    def amiss(self) -> bool:
        return self.state != "ready" or any((self.refused, self.left_out, self.repaired, self.clock))

    @classmethod
    def notes(cls, rows: Sequence[Self]) -> list[str]:
        return [f"{cell(row.name)}: {'; '.join(words)}" for row in rows if (words := row.words())]


class SessionRow(Row, kw_only=True, gc=False):
    """One of a MUX's sessions, as far as it tells of it."""

    name: str | None = None
    address: str | None = None
    state: str | None = None
    announced: Annotated[int | None, shown("prefixes that the router has from it")] = None
    error: str | None = None


class MuxRow(NodeRow, kw_only=True, gc=False):
    """A MUX, as the manager knows it; null: it has not reported."""

    name: Annotated[str, shown(None, Column("MUX", place=1))]
    drain: Annotated[str | None, shown("why it drains, in words; null: it does not")]
    announces: Annotated[
        int, shown("VIPs that it should announce", Column("VIPs", lambda row: row.vips(), 5, number=True))
    ]
    announced: Annotated[int | None, shown("VIPs that it announces to a router; null: it has not reported")]
    handover: Annotated[str | None, shown("what became of its last flow sync")]
    io: Annotated[str | None, shown(None, Column("IO", place=7))]
    mode: str | None
    flows: Annotated[int | None, shown("flows alive", Column("Flows", lambda row: rate(row.flows), 6, number=True))]
    forwarded: int | None
    dropped: int | None
    missed: Annotated[int | None, shown("packets that its kernel dropped before a worker saw them")] = None
    differs: Annotated[str | None, shown("that its seed or slots are not those of the other MUXes")] = None
    saturated: Annotated[str | None, shown("that its workers do not keep up, and whose packets come")] = None
    peers: Annotated[list[SessionRow], shown(None, Column("BGP", lambda row: row.sessions(), 8))] = field(
        default_factory=list
    )

    def vips(self) -> str:
        """How many VIPs routers hear of by it; and of how many that they should, where these are others."""
        now = self.announced
        same = now is None or now == self.announces or self.drain is not None
        return cell(self.announces) if same else f"{cell(now)}/{cell(self.announces)}"

    def sessions(self) -> str:
        up = sum(peer.state == "established" for peer in self.peers)
        return f"{up}/{len(self.peers)}" if self.peers else cell(None)

    def remarks(self) -> tuple[str | None, ...]:
        return self.repaired, self.differs, self.clock, self.saturated, self.drain

    def words(self) -> list[str]:
        return [*self.troubles(), *([cell(self.handover)] if self.handover else [])]

    @property
    def amiss(self) -> bool:
        lacks = self.drain is None and self.announced is not None and self.announced != self.announces
        down = any(peer.state != "established" for peer in self.peers)
        return super().amiss or bool(self.differs or self.saturated) or down or lacks


class AgentRow(NodeRow, kw_only=True, gc=False):
    """A host agent, as the manager knows it."""

    name: Annotated[str, shown(None, Column("Agent", place=1))]
    services: Annotated[int, shown("with a backend on its host", Column("Services", place=5, number=True))]
