# SPDX-License-Identifier: Apache-2.0
"""From routes, links and neighbours to the next hop of each backend address. Pure: values in, values out.

A backend is reached either on the link or through a gateway; in both cases the frame goes to the link address
of a *neighbour*, by the route's interface. What is not known yet, or cannot work, is an :class:`Unreachable`
with the reason in words. :mod:`lb.mux.hops.watch` keeps the inputs current and publishes what comes out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from lb.model import Address


class RouteKind(enum.Enum):
    """What the kernel's routing says of an address; the values are its numbers (RTN_*)."""

    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """The kernel's answer for one destination."""

    kind: RouteKind
    ifindex: int
    gateway: Address | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of this machine."""

    index: int
    name: str
    up: bool  #: set up by the operator, and with a carrier
    mac: bytes | None  #: 6 bytes; None where the link has no Ethernet addresses


class NeighbourState(enum.IntFlag):
    """The kernel's states of a neighbour (NUD_*)."""

    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80


#: States in which the link address may be used.
USABLE = (
    NeighbourState.REACHABLE
    | NeighbourState.STALE
    | NeighbourState.DELAY
    | NeighbourState.PROBE
    | NeighbourState.NOARP
    | NeighbourState.PERMANENT
)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the kernel knows of a machine on a link."""

    state: NeighbourState
    mac: bytes | None


#: Where a neighbour is found: the link's index, and the address.
NeighbourKey = tuple[int, Address]


@dataclass(frozen=True, slots=True)
class NextHop:
    """How a frame for one backend address leaves."""

    address: Address
    ifindex: int
    interface: str
    neighbour: Address
    mac: bytes
    source_mac: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Why no frame for this backend address can leave now."""

    address: Address
    reason: str
    neighbour: NeighbourKey | None = None  #: the neighbour whose link address is wanted, if it is only that
    pending: bool = False  #: it was not asked for long enough to say that it does not answer


Resolution = NextHop | Unreachable


def resolve(
    address: Address,
    route: RouteAnswer | None,
    links: Mapping[int, Link],
    neighbours: Mapping[NeighbourKey, Neighbour],
) -> Resolution:
    """The way to one backend address; ``route`` None: the kernel has none."""
    if route is None:
        return Unreachable(address, "no route")
    if route.kind is not RouteKind.UNICAST:
        local = route.kind is RouteKind.LOCAL
        return Unreachable(
            address, "it is an address of this machine" if local else f"its route is {route.kind.name.lower()}"
        )
    link = links.get(route.ifindex)
    if link is None:
        return Unreachable(address, f"its route leaves by interface {route.ifindex}, which does not exist")
    if link.mac is None:
        return Unreachable(address, f"its route leaves by {link.name}, which has no Ethernet addresses")
    if not link.up:
        return Unreachable(address, f"interface {link.name} is down")
    return _by_neighbour(address, link, link.mac, route.gateway or address, neighbours)


def _by_neighbour(
    address: Address,
    link: Link,
    source_mac: bytes,
    wanted: Address,
    neighbours: Mapping[NeighbourKey, Neighbour],
) -> Resolution:
    key = (link.index, wanted)
    neighbour = neighbours.get(key)
    if neighbour is not None and neighbour.mac is not None and _usable(neighbour):
        return NextHop(address, link.index, link.name, wanted, neighbour.mac, source_mac)
    what = "gateway " if wanted != address else ""
    protocol = "ARP" if wanted.version == 4 else "neighbour discovery"
    if neighbour is not None and neighbour.state & NeighbourState.FAILED:
        return Unreachable(address, f"{what}{wanted} on {link.name} does not answer {protocol}", key)
    return Unreachable(address, f"{what}{wanted} on {link.name} has not answered {protocol} yet", key, pending=True)


def remember(old: Neighbour | None, new: Neighbour | None) -> Neighbour | None:
    """What to hold of a neighbour, given what the kernel now says (None: it forgot the entry).

    A known link address serves until the kernel says that it failed: while an entry is only being renewed, frames go
    on. A failure stands until somebody answers, although the kernel begins to ask again.
    """
    if old is None or (new is not None and (new.state & NeighbourState.FAILED or _usable(new))):
        return new
    if _usable(old):
        return Neighbour(NeighbourState.STALE, old.mac)
    return old if old.state & NeighbourState.FAILED else new


def _usable(neighbour: Neighbour) -> bool:
    return bool(neighbour.state & USABLE) and neighbour.mac is not None


def to_ask(
    resolutions: Mapping[Address, Resolution], neighbours: Mapping[NeighbourKey, Neighbour]
) -> set[NeighbourKey]:
    """Neighbours that the kernel should look for, or confirm.

    Our frames bypass the kernel's neighbour table, so it never sees an entry being used: without asking, entries
    would grow stale and be forgotten, and a neighbour's new link address would go unnoticed.
    """
    wanted: set[NeighbourKey] = set()
    for resolution in resolutions.values():
        if isinstance(resolution, Unreachable):
            if resolution.neighbour is not None:
                wanted.add(resolution.neighbour)
            continue
        key = (resolution.ifindex, resolution.neighbour)
        neighbour = neighbours.get(key)
        if neighbour is None or neighbour.state & NeighbourState.STALE:
            wanted.add(key)
    return wanted


@dataclass(frozen=True, slots=True)
class HopChange:
    """Backend addresses whose way changed alike, in words for the log."""

    addresses: tuple[Address, ...]
    reachable: bool
    text: str


def changes(before: Mapping[Address, Resolution], after: Mapping[Address, Resolution]) -> list[HopChange]:
    """What the log should say, each thing once: a gateway that moved is one change, however many are behind it."""
    said: dict[tuple[bool, str], list[Address]] = {}
    for address, new in after.items():
        change = _change(before.get(address), new)
        if change is not None:
            said.setdefault(change, []).append(address)
    return [HopChange(tuple(addresses), reachable, text) for (reachable, text), addresses in said.items()]


def _change(old: Resolution | None, new: Resolution) -> tuple[bool, str] | None:
    """What was only not known yet is no change."""
    if isinstance(new, Unreachable):
        told = isinstance(old, Unreachable) and old.reason == new.reason
        return None if new.pending or told else (False, new.reason)
    if isinstance(old, Unreachable):
        return None if old.pending else (True, f"by {new.interface}, {_mac_text(new.mac)}")
    if old is not None and (old.mac, old.ifindex) != (new.mac, new.ifindex):
        return True, f"moved to {new.interface}, {_mac_text(new.mac)}"
    return None


def _mac_text(mac: bytes) -> str:
    return mac.hex(":")
