# SPDX-License-Identifier: Apache-2.0
"""Flows that this MUX alone knows go to the others before it leaves, and theirs come to it before it serves.

Every other flow needs no telling: the Maglev tables of all MUXes agree on it. See docs/flow.md. Most are known to the
others already (:mod:`lb.mux.workers.flow_sharing`); this makes sure of all of them before routers move. What is told
goes by way of the manager; without one, or where it does not answer in time, this MUX leaves or serves all the same,
and says so.
:mod:`lb.mux.daemon` owns the one :class:`FlowSync` and runs it; :mod:`lb.mux.status` shows its :attr:`~FlowSync.words`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from lb.daemon.log import get_logger
from lb.dataplane import Adoption, with_age
from lb.errors import VipmuxError
from lb.model import MuxSettings
from lb.mux.workers.engine import Engine
from lb.mux.workers.flow_groups import groups_of, numbered, parts_of
from lb.mux.workers.flow_sharing import FlowSharing
from lb.node.messages import (
    FlowGroup,
    FlowNewsMessage,
    FlowsDoneMessage,
    FlowsFromNode,
    FlowsMessage,
    FlowsTakenMessage,
    FlowsToNode,
    FlowsWantedMessage,
)

#: Flows of one hand-over; what is beyond is counted, said, and left to Maglev.
MOST = 100_000
#: How long the manager may take to answer at all, and the other MUXes to do their part, seconds.
ANSWER, WHOLE = 1.0, 3.0
#: Letters that wait to be read; more are lost, and the hand-over is one that did not end in time.
WAITING_MAX = 256

log = get_logger()


class Post(Protocol):
    """The way to the manager; :class:`lb.node.client.NodeClient`, or a fake."""

    connected: bool
    letters: Callable[[FlowsToNode], None] | None
    joined: Callable[[], None] | None

    def send_letter(self, letter: FlowsFromNode) -> bool: ...

    def send_event(self, text: str) -> None: ...


@dataclass(slots=True)
class _Ours:
    """A hand-over that this MUX began."""

    serial: int
    heard: asyncio.Event  #: the manager answered
    done: asyncio.Event
    muxes: int = 0
    waiting: int = 0
    parts: list[FlowsMessage] = field(default_factory=list)  #: what others told; taken over together


class FlowSync:
    """See the module's text. Everything runs in the daemon's event loop."""

    def __init__(self, settings: MuxSettings, engine: Callable[[], Engine], post: Post) -> None:
        """``engine`` is asked for once it is there."""
        self._engine = engine
        self._post = post
        self._pool = pool_name(settings.seed)
        self._letters: asyncio.Queue[FlowsToNode] = asyncio.Queue(WAITING_MAX)
        self._ours: _Ours | None = None
        self._serial = int(time.time() * 1000)  # another one after a restart
        self._incoming: dict[tuple[str, int], Adoption] = {}
        self._given: tuple[FlowGroup, ...] = ()  # what the others know since this MUX left
        #: What became of the last one, for people.
        self.words: str | None = None
        #: Between hand-overs.
        self.sharing = FlowSharing(settings, engine, post, self._pool)
        post.letters = self._read

    def _read(self, letter: FlowsToNode) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._letters.put_nowait(letter)

    # -- what the daemon wants ----------------------------------------------------------------------------------

    async def give(self) -> None:
        """Before this MUX leaves. Returns when the others have its flows, or soon."""
        if not self._post.connected:
            log.warning("no flow sync", reason="no manager is connected; flows that only this MUX knows may break")
            self.words = "no flow sync: no manager was connected"
            return
        found = await self._export()
        ours = self._begin()
        whole = self._tell(ours.serial, "", found)
        ended = whole and await self._ended(ours)
        left_out = found.total - found.count
        if ended and ours.muxes:
            self._given = found.groups
        self._say(f"{found.count:,} flows sent to {_muxes(ours.muxes)}", ours, ended, left_out)

    async def fetch(self, away: float | None = None) -> None:
        """Before this MUX serves. Returns when it has the others' flows, or soon.

        ``away``: for how long no packet came here, seconds; None: it begins with an empty flow table. What it handed
        over is the others' to tell by now: a connection that ended may have left its ports to a new one.
        """
        if not self._post.connected:
            log.warning("no flow sync", reason="no manager is connected; flows that only others know may break")
            self.words = "no flow sync: no manager was connected"
            return
        ours = self._begin()
        ended = self._post.send_letter(FlowsWantedMessage(ours.serial)) and await self._ended(ours)
        if away is not None and ended and ours.muxes:
            forgotten = await asyncio.to_thread(forget, self._engine(), self._given, away)
            log.info("flows forgotten", flows=forgotten, reason="the other MUXes know by now where they go")
        found = await asyncio.to_thread(
            take_over, self._engine(), [g for part in ours.parts for g in part.groups], self.sharing.heard
        )
        _log_taken(", ".join(sorted({part.mux for part in ours.parts})), found)
        self._say(f"{found.taken + found.known:,} flows received from {_muxes(ours.muxes)}", ours, ended, 0)

    async def connected(self, seconds: float) -> None:
        """Waits for the manager, but no longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._post.connected:  # noqa: ASYNC110  a connection tells nobody
                    await asyncio.sleep(0.02)

    def _begin(self) -> _Ours:
        self._serial += 1
        self._ours = _Ours(self._serial, asyncio.Event(), asyncio.Event())
        return self._ours

    async def _ended(self, ours: _Ours) -> bool:
        """Whether all had done their part in time."""
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER):
                await ours.heard.wait()
            async with asyncio.timeout(max(0.0, began + WHOLE - time.monotonic())):
                await ours.done.wait()
        self._ours = None
        return ours.done.is_set()

    def _say(self, words: str, ours: _Ours, ended: bool, left_out: int) -> None:
        problems = []
        if not ended:
            problems.append(
                f"{_muxes(ours.waiting)} did not answer in time" if ours.waiting else "the manager did not answer"
            )
        if left_out:
            problems.append(f"{left_out:,} more were beyond the limit of {MOST:,}")
        self.words = "; ".join([words, *problems])
        if problems:
            log.warning("flow sync incomplete", what=self.words, consequence="those left out may break")
            self._post.send_event(f"flow sync incomplete: {self.words}; those left out may break")
        else:
            log.info("flow sync", what=self.words)

    # -- telling ------------------------------------------------------------------------------------------------

    async def _export(self) -> Export:
        engine = self._engine()
        return await asyncio.to_thread(export, engine)

    def _tell(self, serial: int, mux: str, found: Export) -> bool:
        """False: it could not all be said."""
        parts = list(parts_of(found.groups)) or [()]
        left_out = found.total - found.count
        return all(
            self._post.send_letter(FlowsMessage(serial, mux, self._pool, part is parts[-1], left_out, part))
            for part in parts
        )

    # -- reading ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads what others tell and want; returns never."""
        while True:
            letter = await self._letters.get()
            try:
                await self._obey(letter)
            except VipmuxError as error:  # a worker that stands still: the flow table stays as it is
                log.warning("flows not accepted", reason=str(error))

    async def _obey(self, letter: FlowsToNode) -> None:
        ours = self._ours
        match letter:
            case FlowsDoneMessage(serial, muxes, waiting):
                if ours is not None and ours.serial == serial:
                    ours.muxes, ours.waiting = muxes, waiting
                    ours.heard.set()
                    if waiting == 0:
                        ours.done.set()
            case FlowsWantedMessage(serial, mux):
                self._tell(serial, mux, await self._export())
            case FlowsMessage():
                await self._take(letter, ours)
            case FlowNewsMessage():
                if self._of_this_pool(letter):
                    await self.sharing.read(letter)

    def _of_this_pool(self, letter: FlowsMessage | FlowNewsMessage) -> bool:
        if letter.pool == self._pool:
            return True
        log.error("flows not accepted", mux=letter.mux, reason="its hash seed is another one: set it right in [mux]")
        return False

    async def _take(self, letter: FlowsMessage, ours: _Ours | None) -> None:
        """Takes over a part and says so after the last; what was asked for waits until all of it is here."""
        if not self._of_this_pool(letter):
            letter = msgspec.structs.replace(letter, groups=())
        if ours is not None and ours.serial == letter.serial:
            if len(ours.parts) < WAITING_MAX:
                ours.parts.append(letter)
            return
        found = await asyncio.to_thread(take_over, self._engine(), letter.groups, self.sharing.heard)
        key = (letter.mux, letter.serial)
        total = self._incoming.pop(key, Adoption()) + found
        if not letter.last:
            self._incoming[key] = total
            while len(self._incoming) > WAITING_MAX:  # those that never ended
                del self._incoming[next(iter(self._incoming))]
            return
        _log_taken(letter.mux, total)
        self._post.send_letter(FlowsTakenMessage(letter.serial, letter.mux, total.taken, total.refused))


def _log_taken(muxes: str, total: Adoption) -> None:
    log.info(
        "flows received",
        mux=muxes,
        taken=total.taken,
        known=total.known,
        useless=total.useless,
        refused=total.refused,
    )


# --- between the data plane's numbers and what all MUXes understand --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Export:
    """Unsynchronised flows as others understand them; ``total`` counts those beyond MOST as well."""

    groups: tuple[FlowGroup, ...]
    total: int

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)


def pool_name(seed: bytes) -> str:
    """Tells pools apart, and says nothing of the seed."""
    return hashlib.sha256(b"vipmux pool " + seed).hexdigest()[:16]


def export(engine: Engine, most: int = MOST) -> Export:
    """From any thread."""
    forwarding, found = engine.unsynchronised(most)
    return Export(tuple(groups_of(forwarding, found.records)), found.total)


def take_over(
    engine: Engine, groups: Iterable[FlowGroup], heard: Callable[[int, int, bytes], None] = lambda *_: None
) -> Adoption:
    """Writes others' flows into the flow tables. From any thread, a piece at a time. ``heard`` is told of each."""
    total = Adoption()
    for group, numbers in numbered(engine.forwarding, groups):
        if numbers is None:
            total += Adoption(useless=group.count)
        else:
            total += engine.adopt(*numbers, group.records)
            heard(*numbers, group.records)
    return total


def forget(engine: Engine, groups: Iterable[FlowGroup], seconds: float) -> int:
    """Forgets those of the flows that got no packet for so long. From any thread, a piece at a time."""
    return sum(
        engine.forget(*numbers, with_age(group.records, seconds))
        for group, numbers in numbered(engine.forwarding, groups)
        if numbers is not None
    )


def _muxes(count: int) -> str:
    return "1 MUX" if count == 1 else f"{count} MUXes"
