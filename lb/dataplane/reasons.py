# SPDX-License-Identifier: Apache-2.0
"""What can become of a packet of a MUX, and why; the list is C's (native/packet/mux_reason.h)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lb.dataplane.binding import c, text


class Verdict(enum.IntEnum):
    """What became of a packet."""

    FORWARD = 0
    PASS = 1
    DROP = 2
    REPLY = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """Why; ``name`` is stable and has one counter."""

    name: str
    verdict: Verdict
    help: str


REASONS: tuple[Reason, ...] = tuple(
    Reason(text(c.reason_name(i)), Verdict(c.reason_verdict(i)), text(c.reason_sentence(i)))
    for i in range(c.reason_count())
)
