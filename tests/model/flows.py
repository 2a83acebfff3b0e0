# SPDX-License-Identifier: Apache-2.0
"""What a MUX remembers of its flows: a dict, and idle timeouts in ticks.

The table of the data plane is bounded, the dict is not: tests that fill the table must allow for flows that made room
for others (tests/native/test_flow_table.py has a model of that order). So whether a flow is young or trusted, which
matters there alone, is one here: a later packet came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tests.model.hashing import Endpoint

TICK_NS = 1 << 28


def ticks(seconds: int) -> int:
    """An idle timeout in ticks of the clock: never early, at most two ticks late."""
    return seconds * 1_000_000_000 // TICK_NS + 2


class Tuple(NamedTuple):
    """A flow's name: service (vip, protocol, ports) and the 5-tuple."""

    service: object
    source: Endpoint
    destination: Endpoint


@dataclass
class Flow:
    backend: str
    trusted: bool  #: or young
    seen: int  #: tick of the last packet


class Flows:
    """Flow entries by tuple. The clock never goes back."""

    def __init__(self) -> None:
        self.entries: dict[Tuple, Flow] = {}
        self.tick = 0

    def advance(self, now_ns: int) -> None:
        self.tick = max(self.tick, now_ns // TICK_NS)

    def find(self, key: Tuple, *, idle: int, idle_untrusted: int) -> Flow | None:
        """The entry, if it is not idle for too long; the timeouts in ticks."""
        flow = self.entries.get(key)
        if flow is None or self.tick - flow.seen >= (idle if flow.trusted else idle_untrusted):
            return None
        return flow

    def start(self, key: Tuple, backend: str) -> None:
        self.entries[key] = Flow(backend, False, self.tick)

    def forget(self, key: Tuple) -> None:
        self.entries.pop(key, None)
