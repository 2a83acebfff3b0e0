# SPDX-License-Identifier: Apache-2.0
"""One BGP session as ExaBGP reports it: its state, since when, and why it is not up, in an operator's words. Pure.

    state        event                                     next
    connecting   connected: TCP is open, OPEN was sent     opening
    opening      up                                        established
    any          down, with ExaBGP's reason                connecting, the reason kept as ``error``
    any          ExaBGP itself ended                       stopped

:func:`step` is fed by :mod:`lb.bgp.speaker`, which holds one :class:`BgpSession` for each peer.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lb.model import Address, BgpPeer

#: A session that takes longer than this deserves an explanation, seconds.
PATIENCE = 3.0


class SessionState(enum.Enum):
    """Where a session is."""

    STOPPED = "stopped"  #: ExaBGP does not run
    CONNECTING = "connecting"  #: no TCP connection yet
    OPENING = "opening"  #: connected, not agreed yet
    ESTABLISHED = "established"


@dataclass(frozen=True, slots=True)
class BgpSession:
    """One peer's session at one moment; times are those of the caller's clock."""

    peer: BgpPeer
    state: SessionState = SessionState.STOPPED
    since: float = 0.0
    error: str | None = None  #: the last thing that went wrong, until the session is up again
    established: int = 0  #: how often it came up

    @property
    def up(self) -> bool:
        return self.state is SessionState.ESTABLISHED

    def why(self, now: float) -> str | None:
        """Why it is not up, if it is not and should be by now."""
        if self.up:
            return None
        waited = now - self.since
        if self.state is SessionState.CONNECTING and waited > PATIENCE:
            told = f"; before that: {self.error}" if self.error else ""
            return (
                f"{self.peer.address} has not taken a connection to port 179 for {waited:.0f} s: it is unreachable, "
                f"does not expect this MUX, or has another password{told}"
            )
        if self.state is SessionState.OPENING and waited > PATIENCE:
            return self.error or f"connected for {waited:.0f} s, and {self.peer.address} has not agreed to a session"
        return self.error


def peer_of(event: Mapping[str, Any]) -> str | None:
    """The address of the peer that an event is about."""
    try:
        return str(event["neighbor"]["address"]["peer"])
    except (KeyError, TypeError):
        return None


def step(session: BgpSession, event: Mapping[str, Any], now: float) -> BgpSession:
    """What is known after one of ExaBGP's events about this peer."""
    about = event.get("neighbor")
    if event.get("type") != "state" or not isinstance(about, dict):
        return session
    state, reason = about.get("state"), about.get("reason")
    if state == "connected":
        return replace(session, state=SessionState.OPENING, since=now)
    if state == "up":
        return replace(
            session, state=SessionState.ESTABLISHED, since=now, error=None, established=session.established + 1
        )
    if state == "down":
        error = in_words(reason if isinstance(reason, str) else "", session.peer.address, was_up=session.up)
        return replace(session, state=SessionState.CONNECTING, since=now, error=error)
    return session


def started(session: BgpSession, now: float) -> BgpSession:
    """ExaBGP runs again and dials."""
    return replace(session, state=SessionState.CONNECTING, since=now)


def stopped(session: BgpSession, why: str, now: float) -> BgpSession:
    """ExaBGP ended."""
    return replace(session, state=SessionState.STOPPED, since=now, error=why)


# --- ExaBGP's reasons --------------------------------------------------------------------------------------------

_NOTIFICATION = re.compile(r"notification (sent|received) \((\d+),\s*(\d+)\)")

#: RFC 4271 section 6, RFC 4486, RFC 8538, RFC 9384; without a subcode: any other of the code.
_MEANINGS: dict[tuple[int, int | None], str] = {
    (1, None): "a damaged message header",
    (2, 1): "another version of BGP",
    (2, 2): "another AS number is expected; compare bgp.asn and the peer's asn on both sides",
    (2, 3): "the BGP identifier is refused; router_id must differ from the router's",
    (2, 4): "an option of ours is not known",
    (2, 6): "the hold time is refused; raise bgp.hold",
    (2, 7): "no family in common; compare families with the router's",
    (2, None): "our OPEN is refused",
    (3, None): "a damaged UPDATE",
    (4, None): "the hold timer expired: nothing arrived in time",
    (5, None): "a message that the state does not allow",
    (6, 1): "too many prefixes for the router's limit",
    (6, 2): "shut down by its administrator",
    (6, 3): "this MUX is no longer configured there",
    (6, 4): "reset by its administrator",
    (6, 5): "the connection is refused: this MUX is not configured there",
    (6, 6): "its configuration changed",
    (6, 7): "two connections met; one goes on",
    (6, 8): "it is out of resources",
    (6, 10): "BFD found the path down",
    (6, None): "the session was ended",
}


def in_words(reason: str, address: Address, *, was_up: bool = True) -> str:
    """One of ExaBGP's reasons as an operator's sentence. What a router said is not repeated, only its codes."""
    found = _NOTIFICATION.search(reason)
    if found:
        code, subcode = int(found[2]), int(found[3])
        meaning = _MEANINGS.get((code, subcode)) or _MEANINGS.get((code, None)) or "an unknown code"
        who = f"{address} says" if found[1] == "received" else f"told {address}"
        return f"{who}: {meaning} (notification {code}/{subcode})"
    if "closing connection" in reason and not was_up:
        # ExaBGP takes a connection that fails for one that opened, so the two look the same.
        return f"{address} refuses the connection or closes it at once: is BGP running there, and expects it this MUX?"
    if "closing connection" in reason:
        return f"{address} closed the connection"
    if "failed" in reason:
        return f"the connection to {address} failed"
    kept = "".join(c if c.isascii() and c.isprintable() else "?" for c in reason)[:120]
    return f"the session with {address} ended ({kept})" if kept else f"the session with {address} ended"
