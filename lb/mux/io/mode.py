# SPDX-License-Identifier: Apache-2.0
"""Which packet I/O a MUX uses, and why. Pure: the start tries what :func:`candidates` says, in that order.

The choice is made once, said in one log line, and shown by ``lb get muxes``. What a port says of itself besides may be
another whenever it is opened anew, and is said and shown again.
"""

from __future__ import annotations

from dataclasses import dataclass

from lb.errors import FeatureError, IoError
from lb.model import IoMode

WHAT = {
    IoMode.XDP: "AF_XDP",
    IoMode.PACKET: "AF_PACKET",
    IoMode.TUN: "TUN device, packets routed by the kernel",
}
#: What receives in packet mode.
RINGS_BOTH = "a ring of slots for few packets, one of blocks for many"
RINGS_SLOTS = "a ring of slots"
#: What becomes of super-packets.
WHOLE = "super-packets stay whole"
#: What AF_XDP makes of segments: it is given no super-packets.
TOGETHER = "segments that come together leave together"
_CUT = "super-packets are cut"


def cut(why: str) -> str:
    return f"{_CUT} ({why})"


def apart(why: str) -> str:
    return f"segments leave one by one ({why})"


@dataclass(frozen=True, slots=True)
class Mode:
    """What was obtained."""

    io: IoMode
    reason: str
    details: str = ""  #: what else the port says of itself

    @property
    def text(self) -> str:
        return f"{WHAT[self.io]}: {self.details}" if self.details else WHAT[self.io]

    @property
    def cuts(self) -> bool:
        """Super-packets, though there is a way to leave them whole."""
        return _CUT in self.details


def candidates(asked: IoMode) -> tuple[IoMode, ...]:
    """What to try, best first. AF_XDP that is asked for but cannot be had is no reason to serve nobody."""
    return {
        IoMode.AUTO: (IoMode.XDP, IoMode.PACKET, IoMode.TUN),
        IoMode.XDP: (IoMode.XDP, IoMode.PACKET),
    }.get(asked, (asked,))


def obtained(asked: IoMode, got: IoMode, refused: dict[IoMode, str], *, busy_poll: bool = False) -> Mode:
    """The mode with its reason; ``refused`` says why the ones tried before did not work."""
    if asked is got:
        return Mode(got, "asked for by the configuration")
    why = "the fastest that this version and this machine can do"
    if refused:
        why = "; ".join(f"{mode.value} refused: {reason}" for mode, reason in refused.items())
        if busy_poll:
            why += "; so there is no busy polling either"
    return Mode(got, f"automatic: {why}" if asked is IoMode.AUTO else f"asked for was {asked.value}: {why}")


def nothing_works(asked: IoMode, refused: dict[IoMode, str]) -> FeatureError | IoError:
    """The error when every candidate was refused."""
    if len(refused) == 1:
        ((mode, reason),) = refused.items()
        return IoError(f"mux.io = {asked.value!r} does not work here: {mode.value}: {reason}")
    reasons = "; ".join(f"{mode.value}: {reason}" for mode, reason in refused.items())
    return FeatureError(f"no packet I/O works here: {reasons}")
