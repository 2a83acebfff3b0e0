# SPDX-License-Identifier: Apache-2.0
"""What the other MUXes are to be told of this one's unsynchronised flows; see native/control/flow_news.h."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lb.dataplane.binding import TICK_SHIFT, Cdata, c, ffi
from lb.dataplane.pipeline import Pipeline
from lb.dataplane.records import RECORD_BYTES
from lb.dataplane.snapshot import Snapshot

#: A flow's age is told in units of so many seconds.
_AGE_UNIT = 4 * 2**TICK_SHIFT / 1e9
_FACT_BYTES = 16
_ANY_NUMBER = 2**32 - 1
#: Marks; see native/control/flow_news.h.
_HEARD, _HEARD_NOW, _OVER, _SYNCHRONISED = 1, 2, 4, 8

#: Flows by (service id, backend number), each as records.
Records = dict[tuple[int, int], bytes]


@dataclass(frozen=True, slots=True)
class FlowNews:
    """``come``: flows that the others do not know, or would forget soon; ``over``: those that they are to forget."""

    come: Records
    over: Records
    settled: Records  #: copies of others' flows, which are synchronised by now: of no use
    known: int  #: flows that the others know once they have heard this
    left_out: int  #: that are too many to tell


class FlowLedger:
    """What the others know by now. One thread at a time asks for news; :meth:`heard` may be called beside it."""

    def __init__(self, most: int, young_max: int) -> None:
        """``most``: flows that are told at all; ``young_max``: of more young ones than these none is."""
        self._most, self._young_max = most, young_max
        self._known, self._count = ffi.new("struct flow_fact[]", 1), 0
        self._anew = False
        self._heard: list[tuple[int, bytes]] = []
        self._looked: float | None = None  # when the latest news were
        #: By (service id, backend number), how many flows are there of which another MUX told and that go on there.
        self.copies: Mapping[tuple[int, int], int] = {}

    @property
    def known(self) -> int:
        return self._count

    def tell_anew(self) -> None:
        """Nobody may know anything that this MUX told; what others told, they tell."""
        self._anew = True

    def heard(self, service_id: int, backend: int, records: bytes) -> None:
        """Another MUX told everybody of these."""
        self._heard.append((service_id << 12 | backend, records))

    def news(self, pipelines: Sequence[Pipeline], snapshot: Snapshot, again: float, clock: float) -> FlowNews:
        """Compares with the flow tables; the caller tells everybody, or calls :meth:`tell_anew`. Takes a while, and
        disturbs no worker. ``again``: those with a packet in the last so many seconds are told again. ``clock``: now,
        seconds."""
        known, known_count = self._with_heard()
        now, found, total = _scan(pipelines, snapshot, self._most)
        count = c.flow_news_settle(now, found, self._young_max)
        come, gone = _facts(count), _facts(known_count)
        since = math.ceil(again / _AGE_UNIT) + 1 if again > 0 else 0
        anew, self._anew = self._anew, False
        elapsed = 0 if self._looked is None else int((clock - self._looked) / _AGE_UNIT)
        self._looked = clock
        news = c.flow_news_compare(known, known_count, now, count, since, elapsed, anew, come, gone)
        for pipeline in pipelines:
            c.flow_news_judge(pipeline._c, snapshot._c, gone, news.gone)
        self._known, self._count = now, count
        self.copies = _copies(now, count)
        return FlowNews(
            _records(come, news.come, lambda mark: True),
            _records(gone, news.gone, lambda mark: bool(mark & _OVER)),
            _records(gone, news.gone, lambda mark: bool(mark & _SYNCHRONISED and mark & (_HEARD | _HEARD_NOW))),
            count,
            max(0, total - self._most),
        )

    def _with_heard(self) -> tuple[Cdata, int]:
        heard, self._heard = self._heard, []
        if not heard:
            return self._known, self._count
        count = self._count + sum(len(records) // RECORD_BYTES for _, records in heard)
        facts = _facts(count)
        ffi.memmove(facts, self._known, self._count * _FACT_BYTES)
        words = memoryview(ffi.buffer(facts)).cast("B").cast("Q")
        at = 2 * self._count
        for owner, records in heard:
            told = memoryview(records).cast("Q")
            for record in told:
                words[at], words[at + 1] = record, _HEARD_NOW << 32 | owner
                at += 2
        return facts, c.flow_news_settle(facts, count, _ANY_NUMBER)


def _copies(facts: Cdata, count: int) -> dict[tuple[int, int], int]:
    room = 256
    while True:
        found = ffi.new("struct flow_heard[]", room)
        owners = int(c.flow_news_heard(facts, count, found, room))
        if owners <= room:
            return {(found[i].owner >> 12, found[i].owner & 0xFFF): found[i].count for i in range(owners)}
        room = owners


def _facts(count: int) -> Cdata:
    return ffi.new("struct flow_fact[]", max(count, 1))


def _scan(pipelines: Sequence[Pipeline], snapshot: Snapshot, most: int) -> tuple[Cdata, int, int]:
    """The facts, how many, and how many there would be; asks twice where there are many, which is rare."""
    room = min(most, 4096)
    while True:
        facts, written, total = _facts(room), 0, 0
        for pipeline in pipelines:
            found = int(c.flow_scan_facts(pipeline._c, snapshot._c, facts + written, room - written))
            written += min(found, room - written)
            total += found
        if total <= room or room == most:
            return facts, written, total
        room = min(most, total + total // 8)


def _records(facts: Cdata, count: int, wanted: Callable[[int], bool]) -> Records:
    """Of the marks that are wanted. Facts are in the order of their owners."""
    words = memoryview(ffi.buffer(facts)).cast("B").cast("Q")[: 2 * count]
    flows, owners = words[0::2], words[1::2].tolist()
    records: Records = {}
    start = 0
    for word, group in itertools.groupby(owners):  # owner, and mark above it
        end = start + sum(1 for _ in group)
        if wanted(word >> 32):
            key = (word >> 12 & 0xFFFFF, word & 0xFFF)
            records[key] = records.get(key, b"") + flows[start:end].tobytes()
        start = end
    return records
