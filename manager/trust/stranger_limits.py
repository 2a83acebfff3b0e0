# SPDX-License-Identifier: Apache-2.0
"""Who of those nobody knows yet may come in, and who has to wait: the accounts of one listening socket. Pure.

A *guest* is a connection; it is a stranger until a certificate or a token told who it is, and costs nothing here from
then on. Strangers are counted for each address (of IPv6: for each /64) and in all. Whoever says nothing waits outside,
where it is a descriptor and no more; who has spoken waits for its turn. A handshake with a first request, and every
further request, takes one unit of the address's credit and of everybody's; both come back when the stranger turns out
to be somebody, so a fleet that connects at once waits for nothing, and who only knocks is let in at a slow rate. Where
all places inside are taken, an address with fewer of them has one of the address with most, at once; among equals only
who had time to become known loses its place, so that no fleet puts out its own. An address where somebody was known
lately is a friend: it has more credit, and needs none of everybody's. Used by :mod:`manager.trust.bounded_listener`, in
the event loop.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Generic, TypeVar

#: Addresses that are remembered; the one that was seen longest ago makes room.
ADDRESSES_MAX = 4096
#: An address is a friend for so long after somebody was known there, seconds.
FRIEND = 24 * 3600.0
#: A friend's credit is so many times a stranger's.
FAVOUR = 5
#: Time for a handshake and a request, seconds: who is inside for longer, and still a stranger, is in the way.
PATIENCE = 3.0

G = TypeVar("G")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of strangers at one listening socket."""

    waiting: int = 1024  #: accepted, silent or not yet at their turn: a descriptor each
    waiting_each: int = 512  #: of one address
    inside: int = 256  #: at their handshake, or after it: some tens of KiB each
    inside_each: int = 64
    burst: float = 128.0  #: handshakes and requests of one address at once, and how many a second after that
    rate: float = 8.0
    burst_all: float = 192.0  #: the same of all that are no friends
    rate_all: float = 25.0

    def for_descriptors(self, limit: int) -> Limits:
        """Of a process that may have so many: the greater part is for those who are known."""
        waiting, inside = min(self.waiting, limit // 8), min(self.inside, limit // 8)
        return replace(
            self,
            waiting=waiting,
            inside=inside,
            waiting_each=min(self.waiting_each, -(-waiting // 2)),
            inside_each=min(self.inside_each, -(-inside // 2)),
        )


class Credit:
    """So much at once, and so much a second after that."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self.burst, self.rate = burst, rate
        self._left, self._at = burst, now

    def left(self, now: float) -> float:
        self._left = min(self.burst, self._left + max(0.0, now - self._at) * self.rate)
        self._at = now
        return self._left

    def take(self, now: float) -> bool:
        if self.left(now) < 1.0:
            return False
        self._left -= 1.0
        return True

    def give_back(self, number: float) -> None:
        self._left = min(self.burst, self._left + number)


class _Address(Generic[G]):
    """What is known of one."""

    __slots__ = ("credit", "friend_until", "inside", "ready", "waiting")

    def __init__(self, credit: Credit) -> None:
        self.credit = credit
        self.friend_until = float("-inf")
        self.waiting: dict[G, None] = {}  # the oldest first; all that are outside
        self.ready: deque[G] = deque()  # those of them that have spoken
        self.inside: dict[G, float] = {}  # and since when; the oldest first

    @property
    def empty(self) -> bool:
        return not self.waiting and not self.inside


class Guests(Generic[G]):
    """See the module's text. ``G`` is whatever stands for a connection."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._all = Credit(limits.burst_all, limits.rate_all, clock())
        self._addresses: OrderedDict[str, _Address[G]] = OrderedDict()
        self.waiting = 0
        self.inside = 0

    # -- at the door --------------------------------------------------------------------------------------------

    def came(self, guest: G, address: str) -> list[G]:
        """It waits outside; returns those that have to go for it."""
        limits, at = self.limits, self._address(address)
        at.waiting[guest] = None
        self.waiting += 1
        if len(at.waiting) > limits.waiting_each:
            return [self._give_up(at)]
        if self.waiting > limits.waiting:
            return [self._give_up(max(self._addresses.values(), key=lambda one: len(one.waiting)))]
        return []

    def spoke(self, guest: G, address: str) -> None:
        """It waits for its turn now."""
        at = self._address(address)
        if guest in at.waiting:
            at.ready.append(guest)

    def _give_up(self, at: _Address[G]) -> G:
        """The oldest outside."""
        guest = next(iter(at.waiting))
        self._let_go(at, guest)
        return guest

    def _let_go(self, at: _Address[G], guest: G) -> None:
        del at.waiting[guest]
        self.waiting -= 1
        if guest in at.ready:
            at.ready.remove(guest)

    def next(self) -> tuple[G, list[G]] | None:
        """Who may begin its handshake now, and those inside that have to go for it; None: nobody. Of the addresses
        where somebody waits that one is next which has most of its credit left: who never knocked comes first."""
        now = self._clock()
        found: _Address[G] | None = None
        best = 1.0
        everybody = self._all.left(now) >= 1.0
        most = self._most() if self.inside >= self.limits.inside else None
        for at in self._addresses.values():
            if at.ready and (everybody or at.friend_until > now):
                left = at.credit.left(now)
                if left >= best and (found is None or left > best) and self._room(at, most, now):
                    found, best = at, left
        if found is None:
            return None
        loser = self._loser(found, most)
        found.credit.take(now)
        if found.friend_until <= now:
            self._all.take(now)
        guest = found.ready.popleft()
        del found.waiting[guest]
        self.waiting -= 1
        out = [self._oldest(loser)] if loser is not None else []
        found.inside[guest] = now
        self.inside += 1
        return guest, out

    def _most(self) -> _Address[G]:
        return max(self._addresses.values(), key=lambda at: len(at.inside))

    def _loser(self, at: _Address[G], most: _Address[G] | None) -> _Address[G] | None:
        """Of whom one has to go where one more of this address comes in; None: there is a place."""
        return at if len(at.inside) >= self.limits.inside_each else most

    def _room(self, at: _Address[G], most: _Address[G] | None, now: float) -> bool:
        loser = self._loser(at, most)
        if loser is None:
            return True
        own = len(at.inside)
        fewer = own + (1 if own else 0) < len(loser.inside)  # else two that are equal would go on taking from another
        return fewer or now - next(iter(loser.inside.values())) >= PATIENCE

    def _oldest(self, at: _Address[G]) -> G:
        guest = next(iter(at.inside))
        del at.inside[guest]
        self.inside -= 1
        return guest

    # -- inside -------------------------------------------------------------------------------------------------

    def asks(self, address: str) -> bool:
        """A stranger's request; False: its address has no credit left for it."""
        now, at = self._clock(), self._address(address)
        if at.friend_until > now:
            return at.credit.take(now)
        return self._all.left(now) >= 1.0 and at.credit.take(now) and self._all.take(now)

    def known(self, guest: G, address: str, spent: float = 1) -> None:
        """It is somebody: a stranger no more, and what it ``spent`` comes back; less than nothing is taken as well."""
        now, at = self._clock(), self._address(address)
        if at.friend_until <= now:
            self._all.give_back(spent)
            at.credit.burst, at.credit.rate = self.limits.burst * FAVOUR, self.limits.rate * FAVOUR
            at.credit.give_back(at.credit.burst)
        at.friend_until = now + FRIEND
        at.credit.give_back(spent)
        self.left(guest, address)

    def left(self, guest: G, address: str) -> None:
        """It is gone, or is no stranger any more."""
        at = self._addresses.get(group(address))
        if at is None:
            return
        if guest in at.inside:
            del at.inside[guest]
            self.inside -= 1
        elif guest in at.waiting:
            self._let_go(at, guest)

    @property
    def ready(self) -> bool:
        """Somebody waits for its turn."""
        return any(at.ready for at in self._addresses.values())

    def all_waiting(self) -> list[G]:
        """Nobody waits any more; returns who did."""
        found = [guest for at in self._addresses.values() for guest in at.waiting]
        for at in self._addresses.values():
            at.waiting.clear()
            at.ready.clear()
        self.waiting = 0
        return found

    def _address(self, address: str) -> _Address[G]:
        key = group(address)
        at = self._addresses.get(key)
        if at is None:
            at = self._addresses[key] = _Address(Credit(self.limits.burst, self.limits.rate, self._clock()))
            if len(self._addresses) > ADDRESSES_MAX:
                self._forget_one()
        else:
            self._addresses.move_to_end(key)
        return at

    def _forget_one(self) -> None:
        """There are fewer guests than addresses, so one of them is empty; a friend rather stays."""
        now = self._clock()
        empty = [key for key, at in self._addresses.items() if at.empty]
        del self._addresses[next((key for key in empty if self._addresses[key].friend_until <= now), empty[0])]


def group(address: str) -> str:
    """What counts as one address: of IPv6 the /64, for whoever has one has all of it."""
    if ":" not in address:
        return address
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ip_address(int(found) >> 64 << 64))
