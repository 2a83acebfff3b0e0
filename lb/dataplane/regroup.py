# SPDX-License-Identifier: Apache-2.0
"""Flows between the workers of one MUX, whose number or whose queues change; see native/control/regroup_flows.h.

Where a worker runs the pipeline, it is asked between two bursts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lb.dataplane.binding import Cdata, Closable, c, check, ffi
from lb.dataplane.pipeline import Pipeline
from lb.dataplane.records import Adoption, pieces
from lb.dataplane.snapshot import Snapshot
from lb.dataplane.worker import ASK_TIMEOUT, Worker

#: Keys that a worker notes until it is asked for them; see native/flow/sibling_tables.h.
CLAIMS_MAX = 4096
#: Of one piece, between two bursts.
RELEASE_MAX, INHERIT_LINES = 256, 128

_TIMEOUT = int(ASK_TIMEOUT * 1000)


class RegroupMember(NamedTuple):
    """A pipeline, and the worker that runs it; None: none does."""

    pipeline: Pipeline
    worker: Worker | None


class FlowTable(Closable):
    """The flow table of a pipeline, with a reference of its own: it stays while somebody looks into it."""

    def __init__(self, handle: Cdata) -> None:
        self._c = ffi.gc(handle, c.flow_table_destroy)

    @staticmethod
    def of(pipeline: Pipeline) -> FlowTable | None:
        """None: it has none."""
        handle = c.mux_table(pipeline._c)
        return None if handle == ffi.NULL else FlowTable(handle)

    @property
    def lines(self) -> int:
        return int(c.flow_table_lines(self._c))


def replace_table(pipeline: Pipeline, flows: int, file: int = -1, mark: int = 0) -> FlowTable | None:
    """An empty table for so many flows, 0: none, for a pipeline that no worker runs; returns the one that it had.

    ``file``: descriptor of an empty file that it is to be in, with a mark of the seed; see native/flow/kept_table.h."""
    out = ffi.new("struct flow_table **")
    code = c.mux_replace_table(pipeline._c, flows, file, mark, out)
    check(code, f"Cannot make a flow table for {flows:,} flows")
    return None if out[0] == ffi.NULL else FlowTable(out[0])


def seed_mark(seed: bytes) -> int:
    """A number that tells the seeds of pools apart, and nothing about them."""
    return int(c.kept_table_mark(seed))


def open_table(path: Path, mark: int) -> FlowTable:
    """What a process before left in a file. Raises OSError; native/flow/kept_table.h says what its number means."""
    out = ffi.new("struct flow_table **")
    with path.open("rb") as file:
        code = c.kept_table_open(file.fileno(), mark, out)
    if code < 0:
        raise OSError(-code, os.strerror(-code), str(path))
    return FlowTable(out[0])


def inherit_counters(pipeline: Pipeline, elder: FlowTable) -> None:
    """What the table counted counts on in that of the pipeline, which no worker runs."""
    c.mux_inherit_counters(pipeline._c, elder._c)


def meet(member: RegroupMember, tables: Sequence[FlowTable], *, asked: bool) -> None:
    """All other tables of its MUX, which tell whose flow an ICMP error is about; ``asked``: flows that it does not know
    are asked for there as well, and taken over."""
    handles = ffi.new("struct flow_table *[]", [table._c for table in tables])
    if member.worker is None:
        code = c.mux_meet(member.pipeline._c, handles, len(tables), asked)
    else:
        code = c.worker_ask_meet(member.worker._c, member.pipeline._c, handles, len(tables), asked, _TIMEOUT)
    check(code, "The worker did not learn of the other workers' flows")


def claims(member: RegroupMember) -> tuple[int, ...]:
    """Keys of the flows that it found there since it was asked last."""
    keys, count = ffi.new("uint64_t[]", CLAIMS_MAX), ffi.new("uint32_t *")
    if member.worker is None:
        count[0] = c.mux_claims(member.pipeline._c, keys, CLAIMS_MAX)
    else:
        code = c.worker_ask_claims(member.worker._c, member.pipeline._c, keys, CLAIMS_MAX, count, _TIMEOUT)
        check(code, "The worker did not tell which flows it took over")
    return tuple(ffi.unpack(keys, count[0])) if count[0] else ()


def release(member: RegroupMember, keys: Sequence[int]) -> int:
    """Forgets flows that another worker took over; how many."""
    total, out = 0, ffi.new("uint32_t *")
    for start in range(0, len(keys), RELEASE_MAX):
        piece = keys[start : start + RELEASE_MAX]
        if member.worker is None:
            total += int(c.mux_release(member.pipeline._c, piece, len(piece)))
            continue
        code = c.worker_ask_release(member.worker._c, member.pipeline._c, piece, len(piece), out, _TIMEOUT)
        check(code, "The worker did not forget flows that another took over")
        total += out[0]
    return total


def inherit(member: RegroupMember, snapshot: Snapshot, elder: FlowTable, first_line: int, now_ns: int) -> int:
    """Takes over the flows of INHERIT_LINES lines of a table that nobody writes any more; how many."""
    if member.worker is None:
        return int(c.mux_inherit(member.pipeline._c, snapshot._c, elder._c, first_line, INHERIT_LINES, now_ns))
    out = ffi.new("uint32_t *")
    code = c.worker_ask_inherit(
        member.worker._c, member.pipeline._c, snapshot._c, elder._c, first_line, INHERIT_LINES, out, _TIMEOUT
    )
    check(code, "The worker did not take over flows of the workers before")
    return int(out[0])


def adopt_known(
    member: RegroupMember, snapshot: Snapshot, service_id: int, backend: int, records: bytes, *, now_ns: int
) -> tuple[Adoption, bytes]:
    """Of another MUX's flows, takes over those that this worker knows; the outcome, and the records of the others."""
    raw, left = ffi.new("struct adoption *"), ffi.new("uint32_t *")
    others: list[bytes] = []
    for piece, count in pieces(records):
        if member.worker is None:
            left[0] = c.mux_adopt_known(member.pipeline._c, snapshot._c, service_id, backend, piece, count, now_ns, raw)
        else:
            asked = (member.worker._c, member.pipeline._c, snapshot._c, service_id, backend)
            code = c.worker_ask_adopt_known(*asked, piece, count, raw, left, _TIMEOUT)
            check(code, "The worker did not take flows over")
        others.append(_packed(piece, left[0]))
    return Adoption(raw.taken, raw.known, raw.useless, raw.refused), b"".join(others)


def _packed(records: Cdata, count: int) -> bytes:
    return struct.pack(f"<{count}Q", *ffi.unpack(records, count)) if count else b""
