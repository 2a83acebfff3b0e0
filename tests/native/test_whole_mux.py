# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline, at each vector level and whatever the burst, does what reference_mux.c does, byte for byte.

``VIPMUX_PACKETS=10000000`` sends so many instead of a few; ``-s`` shows what was met.
"""

from __future__ import annotations

import os
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_size_t, c_uint32, c_uint64, create_string_buffer
from functools import cache

import pytest

from lb.dataplane import REASONS
from tests.native.compiled import NATIVE, library

PACKETS = int(os.environ.get("VIPMUX_PACKETS", "160000"))
#: What of native/ is no part of the pipeline; whatever else there is may be.
PIPELINE = ("flow", "mux", "packet", "services")
NONE, NEXT_HOP, SWAP = range(3)  #: enum mux_link


class Setup(Structure):
    _fields_ = [
        ("seed", c_uint64),
        ("packets", c_uint64),
        *(
            (name, c_uint32)
            for name in ("link", "flows", "partial", "whole", "fails", "crowded", "flood", "supers", "exact")
        ),
    ]


class Seen(Structure):
    _fields_ = [
        ("reasons", c_uint64 * len(REASONS)),
        ("flows", c_uint64 * 4),
        *((name, c_uint64) for name in ("whole", "evicted", "refused", "expired")),
        ("twins", c_uint32),
    ]


#: Each with its share of all packets; super-packets are many packets each.
RUNS = {
    "over raw IP": (18, {"link": NONE, "flows": 1}),
    "one address and port each": (6, {"link": SWAP, "flows": 1, "exact": 1}),
    "sending fails": (14, {"link": NEXT_HOP, "flows": 1, "fails": 7, "whole": 1}),
    "checksums to find out": (14, {"link": SWAP, "flows": 1, "partial": 1}),
    "without a table": (14, {"link": NEXT_HOP}),
    "thousands of services": (8, {"link": NEXT_HOP, "flows": 1, "crowded": 1}),
    "a flood into a full table": (24, {"link": NEXT_HOP, "flows": 1, "flood": 1}),
    "super-packets, whole": (1, {"link": NEXT_HOP, "flows": 1, "supers": 1, "whole": 1}),
    "super-packets, cut": (1, {"link": NONE, "flows": 1, "supers": 1, "partial": 1, "fails": 50}),
}
#: What a run meets whatever its seed, beside packets that are forwarded.
MEETS = {
    "checksums to find out": {r.name for r in REASONS}
    - {"segmented", "send_failed", "no_backend", "shed"}
    - {"echo", "time_exceeded", "frag_needed", "unreachable", "reset", "answer_limited"}  # nothing is answered here
    - {"hairpin", "source_route", "routing_header", "link_local_source", "mapped_source"},  # rare
    "without a table": {"no_backend"},
    "thousands of services": {"no_service", "not_vip", "fragment"},
    "one address and port each": {"no_service", "not_vip"},
    "sending fails": {"send_failed"},
    "super-packets, cut": {"segmented", "too_big", "send_failed"},
}


@cache
def c() -> CDLL:
    pipeline = sorted(str(path.relative_to(NATIVE)) for room in PIPELINE for path in (NATIVE / room).rglob("*.c"))
    lib = library("whole_probe.c", "reference_mux.c", "traffic.c", *pipeline)
    lib.whole_run.argtypes, lib.whole_run.restype = [POINTER(Setup), POINTER(Seen), c_char_p, c_size_t], None
    return lib


def test_shares_are_of_all_packets() -> None:
    assert sum(share for share, _ in RUNS.values()) == 100


@pytest.mark.parametrize("name", RUNS)
def test_the_pipeline_is_the_reference_mux(name: str) -> None:
    share, how = RUNS[name]
    seen, report = Seen(), create_string_buffer(4000)
    setup = Setup(seed=list(RUNS).index(name) + 1, packets=PACKETS * share // 100, **how)
    c().whole_run(byref(setup), byref(seen), report, len(report))
    assert not report.value, report.value.decode()
    reasons = {reason.name: count for reason, count in zip(REASONS, seen.reasons, strict=True)}
    print(f"\n{name}: {sum(seen.reasons)} packets, {seen.twins} pipelines; {reasons}", end="")
    print(f"; {seen.whole} left whole; {seen.evicted} evicted, {seen.refused} refused, {seen.expired} expired")
    assert sum(seen.reasons) >= setup.packets
    assert seen.twins >= 2  # plain, and one at a time
    assert {"forwarded"} | MEETS.get(name, set()) <= {met for met, count in reasons.items() if count}
    assert all(seen.flows[1:3]) if how.get("flows") else seen.flows[3]
    assert not how.get("flood") or (seen.evicted and seen.refused and seen.flows[3])
    assert not (how.get("supers") and how.get("whole")) or seen.whole
