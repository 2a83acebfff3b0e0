# SPDX-License-Identifier: Apache-2.0
"""What is remembered of the tunnels to backends, and forgotten again: their MTU, and that nobody is at their end
(RFC 2003, 5; RFC 2473, 8). Pure: time is an argument.

The MTU is forgotten after ten minutes without another word of it (RFC 1191, 6.3; RFC 8201, 4), then larger packets are
tried again. That a tunnel's end cannot be reached is forgotten after 15 seconds: each packet that is lost says so
again. Only errors about tunnels that there are come here, so it is no more than there are backends, or were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lb.model import Address
from lb.mux.hops.tunnel_errors import ErrorKind, TunnelError

MTU_LIFE = 600.0
UNREACHABLE_LIFE = 15.0


@dataclass(frozen=True, slots=True)
class TunnelState:
    """Of one tunnel's far end. Times are of the clock that the errors' are of."""

    mtu: int = 0  #: 0: not known to be less than services say
    mtu_words: str = ""
    mtu_until: float = 0.0
    unreachable: str | None = None  #: why; None: nobody says so
    unreachable_until: float = 0.0

    def at(self, now: float) -> TunnelState:
        """What is left of it."""
        left = self
        if left.mtu and now >= left.mtu_until:
            left = replace(left, mtu=0, mtu_words="", mtu_until=0.0)
        if left.unreachable is not None and now >= left.unreachable_until:
            left = replace(left, unreachable=None, unreachable_until=0.0)
        return left

    @property
    def ends(self) -> float:
        """When some of it is forgotten."""
        return min(until for until in (self.mtu_until, self.unreachable_until) if until)

    def row(self, address: Address, now: float) -> dict[str, Any]:
        """As it is shown; how long it is remembered yet in seconds."""
        left = max(self.mtu_until, self.unreachable_until) - now
        said = "; ".join(words for words in (self.unreachable, self.mtu_words) if words)
        return {
            "address": str(address),
            "mtu": self.mtu or None,
            "unreachable": self.unreachable is not None,
            "reason": said,
            "forgotten_in": round(max(left, 0.0), 1),
        }


_NOTHING = TunnelState()


class SoftState:
    """Of all tunnels."""

    def __init__(self) -> None:
        self._states: dict[Address, TunnelState] = {}

    @property
    def states(self) -> Mapping[Address, TunnelState]:
        return self._states

    def hear(self, error: TunnelError, now: float) -> bool:
        """Whether it is news. An error never makes an MTU larger: only time does."""
        before = self._states.get(error.far_end, _NOTHING).at(now)
        if error.kind is ErrorKind.UNREACHABLE:
            after = replace(before, unreachable=error.words, unreachable_until=now + UNREACHABLE_LIFE)
        elif before.mtu and before.mtu < error.mtu:
            return False
        else:
            words = f"{error.words}, {error.mtu:,} bytes at most"
            after = replace(before, mtu=error.mtu, mtu_words=words, mtu_until=now + MTU_LIFE)
        self._states[error.far_end] = after
        return (before.mtu, before.unreachable is None) != (after.mtu, after.unreachable is None)

    def forget(self, now: float) -> bool:
        """What is too old; whether there was any."""
        after = {address: left for address, state in self._states.items() if (left := state.at(now)) != _NOTHING}
        changed = after != self._states
        self._states = after
        return changed

    @property
    def next_end(self) -> float | None:
        """When something is forgotten next."""
        return min((state.ends for state in self._states.values()), default=None)
