# SPDX-License-Identifier: Apache-2.0
"""Flows that this MUX alone knows are told to the others at all times, so that it may die at any time.

A change makes flows unsynchronised: those whose Maglev choice is another one than when they began. Each MUX looks for
such flows of its own as soon as the change is live in all of its workers, and tells the others. It looks again while
flows that had only begun then become trusted, and every few seconds after: an unsynchronised flow that goes on must not
be forgotten elsewhere, and one that is over must be. Flows that began under an older state, on a MUX that was late, are
found when the change comes to that MUX. Untrusted flows are not told, nor young ones where there are very many, for
those are a flood's.

Others know a flow by the age of its last packet, so they forget it when this MUX would. What they were told, or told
themselves, is written down (:class:`lb.dataplane.FlowLedger`), so that each flow is told once, by one of them. Where
something may have been missed, after a connection broke, a MUX tells all of its own anew and asks the others to do the
same. All of it goes by way of the manager: there MUXes are known to one another, and trusted, already.

:class:`lb.mux.workers.flow_sync.FlowSync` owns the one :class:`FlowSharing`; :mod:`lb.mux.daemon` runs it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from lb.daemon.log import get_logger
from lb.dataplane import Adoption, FlowLedger
from lb.errors import VipmuxError
from lb.model import MuxSettings
from lb.model import Protocol as Transport
from lb.mux.workers.engine import Engine
from lb.mux.workers.flow_groups import groups_of, numbered, parts_of
from lb.node.messages import FlowGroup, FlowNewsMessage, FlowsFromNode

#: Flows that are told in all; what is beyond is counted, said, and left to Maglev.
SHARED_MAX = 1_000_000
#: More young flows than these at once are a flood's.
YOUNG_MAX = 10_000
#: After a change the flow table is looked at at once, then after these pauses, and on after the last one, seconds.
PAUSES = (0.3, 0.3, 0.5, 1.0, 2.0, 4.0, 5.0)
#: So long after a change flows may become trusted that began before, seconds; then nobody looks if none is known.
SETTLED = 30.0
#: All is told anew no more often than that, whoever asks, seconds.
ANEW_EVERY = 1.0
#: How long to wait where too many letters are under way, seconds.
FULL_WAIT = 0.01

log = get_logger()


class Wire(Protocol):
    """The way to the other MUXes."""

    connected: bool
    joined: Callable[[], None] | None

    def send_letter(self, letter: FlowsFromNode) -> bool: ...

    def send_event(self, text: str) -> None: ...


class FlowSharing:
    """See the module's text. Everything runs in the daemon's event loop."""

    def __init__(self, settings: MuxSettings, engine: Callable[[], Engine], post: Wire, pool: str) -> None:
        self._settings = settings
        self._engine = engine
        self._post = post
        self._pool = pool
        self._ledger = FlowLedger(SHARED_MAX, YOUNG_MAX)
        #: A look sees others' flows either nowhere or both in the table and in the ledger: else it would tell of them.
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed_at: float | None = None  # None: nothing has changed since the start
        self._looks = 0  # since then
        self._joined = False  # since the last look: others may not know anything, nor we
        self._asked = False  # another MUX wants to be told everything
        self._anew_at = float("-inf")  # when everything was told last
        self._refreshed = time.monotonic()  # what had a packet since is to be told again
        self._said_left_out = False
        self._idle, self._idle_until = 0.0, float("-inf")
        post.joined = self.joined

    def changed(self) -> None:
        """Another state is published."""
        self._changed_at, self._looks = time.monotonic(), 0
        self._wake.set()

    def joined(self) -> None:
        """There is a connection that was not there."""
        self._joined = True
        self.changed()

    def copies(self, service_id: int, backend: int) -> int:
        """Of the flows remembered here, those that go on at another MUX, which told of them. From any thread."""
        return self._ledger.copies.get((service_id, backend), 0)

    # -- telling ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Returns never."""
        while True:
            await self._wait()
            if not self._post.connected:
                continue  # whoever connects, tells everything
            try:
                await self._look()
            except VipmuxError as error:  # a worker that stands still, or is being replaced
                log.warning("flows not shared", reason=str(error), then="looked at again in a moment")

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._pause(time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            self._looks += 1
        self._wake.clear()

    def _pause(self, now: float) -> float | None:
        """Seconds; None: until something happens."""
        if self._asked:
            return max(0.0, self._anew_at + ANEW_EVERY - now)
        if not self._ledger.known and (self._changed_at is None or now - self._changed_at > SETTLED):
            return None
        return min(PAUSES[min(self._looks, len(PAUSES) - 1)], self._shortest_idle(now) / 3)

    def _shortest_idle(self, now: float) -> float:
        """So long others remember a flow of which they see no packet, at least, seconds. Not computed each time."""
        if now >= self._idle_until:
            self._idle, self._idle_until = self._look_at_idle(), now + PAUSES[-1]
        return self._idle

    def _look_at_idle(self) -> float:
        idle = self._settings.idle
        default = {Transport.TCP: idle.tcp, Transport.UDP: idle.udp}
        services = self._engine().forwarding.services
        return max(2.0, min((service.idle or default[service.protocol] for service in services), default=idle.udp))

    async def _look(self) -> None:
        """Tells what is new, or everything."""
        now = time.monotonic()
        joined, self._joined = self._joined, False
        if joined or (self._asked and now >= self._anew_at + ANEW_EVERY):
            self._asked = False
            self._anew_at = now
            self._ledger.tell_anew()
        again = now - self._refreshed
        if again < self._shortest_idle(now) / 3:
            again = 0.0
        else:
            self._refreshed = now
        async with self._looking:
            forwarding, news = await asyncio.to_thread(self._engine().news, self._ledger, again)
        for numbers, records in news.settled.items():
            await asyncio.to_thread(self._engine().forget, *numbers, records)
        come, over = list(groups_of(forwarding, news.come)), list(groups_of(forwarding, news.over))
        if not await self._tell(come, over, again=joined):
            self._ledger.tell_anew()
            self._joined = True
            return
        if come or over:
            seconds = time.monotonic() - now
            log.debug("flows shared", told=_count(come), over=_count(over), known=news.known, seconds=f"{seconds:.3f}")
        self._say_left_out(news.left_out)

    async def _tell(self, come: list[FlowGroup], over: list[FlowGroup], *, again: bool) -> bool:
        """False: the connection is gone."""
        letters = [FlowNewsMessage(self._pool, come=part) for part in parts_of(come)]
        letters += [FlowNewsMessage(self._pool, over=part) for part in parts_of(over)]
        if again:
            letters.append(FlowNewsMessage(self._pool, again=True))
        for letter in letters:
            while not self._post.send_letter(letter):
                if not self._post.connected:
                    return False
                await asyncio.sleep(FULL_WAIT)
        return True

    def _say_left_out(self, left_out: int) -> None:
        if left_out and not self._said_left_out:
            text = f"{left_out:,} flows are more than the {SHARED_MAX:,} that other MUXes are told; they may break"
            log.warning("flows not shared", reason=text)
            self._post.send_event(text)
        self._said_left_out = left_out > 0

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(self, letter: FlowNewsMessage) -> None:
        """What another MUX tells. Raises DataplaneError if a worker stands still."""
        if letter.again:
            self._asked = True
            self._wake.set()
        engine = self._engine()
        async with self._looking:
            found = await asyncio.to_thread(self._take, engine, letter.come)
        forgotten = await asyncio.to_thread(_forget, engine, letter.over)
        if found != Adoption() or forgotten:
            log.debug("flows heard", mux=letter.mux, taken=found.taken, known=found.known, forgotten=forgotten)
        if found.refused:
            log.warning(
                "flows found no room", mux=letter.mux, flows=found.refused, consequence="they may break with it"
            )
        if found.taken and not self._ledger.known:
            self._wake.set()  # they are ours to tell of, should their packets come here

    def _take(self, engine: Engine, groups: Iterable[FlowGroup]) -> Adoption:
        total = Adoption()
        for group, numbers in _known(engine, groups):
            total += engine.adopt(*numbers, group.records)
            self.heard(*numbers, group.records)
        return total

    def heard(self, service_id: int, backend: int, records: bytes) -> None:
        """Others told of these flows, and tell of them again. From any thread."""
        self._ledger.heard(service_id, backend, records)


def _forget(engine: Engine, groups: Iterable[FlowGroup]) -> int:
    return sum(engine.forget(*numbers, group.records) for group, numbers in _known(engine, groups))


def _known(engine: Engine, groups: Iterable[FlowGroup]) -> Iterator[tuple[FlowGroup, tuple[int, int]]]:
    """Those of services and backends that are here."""
    for group, numbers in numbered(engine.forwarding, groups):
        if numbers is not None:
            yield group, numbers


def _count(groups: Iterable[FlowGroup]) -> int:
    return sum(group.count for group in groups)
