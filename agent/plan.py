# SPDX-License-Identifier: Apache-2.0
"""From what should be and what was found to the steps between them. Pure; called by :mod:`agent.agent`.

    desired (configuration)  +  found (host, remembered changes)  ->  [action, ...]

The order keeps every connection alive: what packets will need comes first (settings, nftables, VIPs), then
decapsulation, and only then goes what nobody needs any more. Planning again after the actions gives none, and after
somebody else's those that put it right: so it is kept, and a change that failed half way goes on from where it is. The
same function makes the clean-up: it plans for :data:`NOTHING`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from agent.host.change_log import HostChanges
from agent.rules.stray_packets import Fence
from agent.rules.sysctls import TCP_LIBERAL, needed
from agent.rules.vips import OwnedVips
from lb.model import DecapMode, Network


class FilterState(enum.Enum):
    """What is at our place among an interface's ingress filters."""

    ABSENT = "absent"
    CURRENT = "current"  #: ours, and just as it should be
    STALE = "stale"  #: ours, with another address, other MUXes or other VIPs
    FOREIGN = "foreign"  #: somebody else's, in our place


@dataclass(frozen=True, slots=True)
class FoundFilter:
    """An interface's ingress filters, as far as they are our business."""

    state: FilterState = FilterState.ABSENT
    qdisc: bool = False  #: there is a clsact qdisc
    others: bool = False  #: with filters of others in it


@dataclass(frozen=True, slots=True)
class DesiredHost:
    """What the host should have."""

    interface: str | None = None
    mode: DecapMode | None = None  #: never AUTO: that was decided before
    vips: OwnedVips = OwnedVips(frozenset(), frozenset())  # noqa: RUF009  immutable
    rules: str | None = None
    translates: bool = False  #: the rules change ports
    fence: Fence = Fence()  # noqa: RUF009  immutable


#: What a host without an agent has.
NOTHING = DesiredHost()


@dataclass(frozen=True, slots=True)
class Found:
    """What the host has, of what could be ours."""

    addresses: frozenset[IPv4Address] = frozenset()  #: on lo, with our label
    unrouted: frozenset[IPv4Address] = frozenset()  #: of these, what the kernel has no local route for any more
    taken: frozenset[IPv4Address] = frozenset()  #: on lo, without it: the operator's, to be left alone
    routes: frozenset[Network] = frozenset()  #: of type local, with our protocol
    table: bool = False
    rules: str | None = None  #: the text that is known to be in force, and unchanged since
    decapsulates: bool = False  #: outside BPF: the device is there, and works for just the desired tunnel
    fence: Fence = Fence()  # noqa: RUF009  immutable
    ipip_device: bool = False
    other_routes: frozenset[str] = frozenset()  #: interfaces other than ours that routes leave by
    sysctls: Mapping[str, int] = field(default_factory=dict)
    filters: Mapping[str, FoundFilter] = field(default_factory=dict)  #: by interface
    changes: HostChanges = HostChanges()  # noqa: RUF009  immutable


@dataclass(frozen=True, slots=True)
class SetSysctl:
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class RestoreSysctl:
    """To ``value``, unless somebody has changed it after us."""

    name: str
    value: int
    restore: bool


@dataclass(frozen=True, slots=True)
class ReplaceRules:
    text: str


@dataclass(frozen=True, slots=True)
class RemoveRules:
    pass


@dataclass(frozen=True, slots=True)
class AddVip:
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class RemoveVip:
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class AddRoute:
    prefix: Network


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    prefix: Network


@dataclass(frozen=True, slots=True)
class AddFenceRoute:
    prefix: Network


@dataclass(frozen=True, slots=True)
class RemoveFenceRoute:
    prefix: Network


@dataclass(frozen=True, slots=True)
class AddFenceRule:
    version: int
    interface: str


@dataclass(frozen=True, slots=True)
class RemoveFenceRule:
    version: int
    interface: str


@dataclass(frozen=True, slots=True)
class AddQdisc:
    interface: str


@dataclass(frozen=True, slots=True)
class EvictFilter:
    """Somebody else's filter stands where ours belongs."""

    interface: str


@dataclass(frozen=True, slots=True)
class Decapsulate:
    """Start, or change over to, the desired way of decapsulation."""

    mode: DecapMode
    interface: str


@dataclass(frozen=True, slots=True)
class RemoveFilter:
    """Also forgets the interface, and takes our qdisc away where nobody else uses it."""

    interface: str
    filter: bool
    qdisc: bool


@dataclass(frozen=True, slots=True)
class RemoveIpipDevice:
    pass


Action = (
    SetSysctl
    | RestoreSysctl
    | ReplaceRules
    | RemoveRules
    | AddVip
    | RemoveVip
    | AddRoute
    | RemoveRoute
    | AddFenceRoute
    | RemoveFenceRoute
    | AddFenceRule
    | RemoveFenceRule
    | AddQdisc
    | EvictFilter
    | Decapsulate
    | RemoveFilter
    | RemoveIpipDevice
)


#: What is done on the interface of the configuration.
NEEDS_INTERFACE = AddQdisc | EvictFilter | Decapsulate


def plan(desired: DesiredHost, found: Found) -> list[Action]:
    """The actions that make the host as desired, in the order in which to perform them."""
    least = needed_sysctls(desired, found)
    return [*_install(desired, found, least), *_decapsulate(desired, found), *_remove(desired, found, least)]


def needed_sysctls(desired: DesiredHost, found: Found) -> Mapping[str, int]:
    """The least value of each setting that must be raised."""
    if desired.interface is None:
        return {}

    def before_us(name: str) -> int | None:
        change = found.changes.sysctls.get(name)
        return found.sysctls.get(name) if change is None else change.original

    return needed(
        owns_vips=bool(desired.vips.addresses) or any(route.version == 4 for route in desired.vips.routes),
        translates=desired.translates,
        interface=desired.interface,
        other_routes=found.other_routes,
        decapsulates_on_interface=desired.mode is DecapMode.BPF,
        read=before_us,
    )


def _install(desired: DesiredHost, found: Found, least: Mapping[str, int]) -> Iterator[Action]:
    for name, value in least.items():
        current = found.sysctls.get(name)
        if name != TCP_LIBERAL and current is not None and current < value:
            yield SetSysctl(name, value)
    if desired.rules is not None and desired.rules != found.rules:
        yield ReplaceRules(desired.rules)
    # Conntrack is there, with its settings, once rules need it.
    if TCP_LIBERAL in least and found.sysctls.get(TCP_LIBERAL, 0) < least[TCP_LIBERAL]:
        yield SetSysctl(TCP_LIBERAL, least[TCP_LIBERAL])
    broken = desired.vips.addresses & found.unrouted
    for address in sorted(broken):
        yield RemoveVip(address)
    for address in sorted((desired.vips.addresses - found.addresses - found.taken) | broken):
        yield AddVip(address)
    for prefix in sorted(desired.vips.routes - found.routes, key=_route_key):
        yield AddRoute(prefix)
    for prefix in sorted(desired.fence.routes - found.fence.routes, key=_route_key):
        yield AddFenceRoute(prefix)
    for version, interface in sorted(desired.fence.rules - found.fence.rules):
        yield AddFenceRule(version, interface)


def _decapsulate(desired: DesiredHost, found: Found) -> Iterator[Action]:
    if desired.interface is None or desired.mode is None:
        return
    if desired.mode is not DecapMode.BPF:
        if not found.decapsulates:
            yield Decapsulate(desired.mode, desired.interface)
        return
    place = found.filters.get(desired.interface, FoundFilter())
    if not place.qdisc:
        yield AddQdisc(desired.interface)
    if place.state is FilterState.FOREIGN:
        yield EvictFilter(desired.interface)
    if place.state is not FilterState.CURRENT or desired.interface not in found.changes.interfaces:
        yield Decapsulate(desired.mode, desired.interface)


def _remove(desired: DesiredHost, found: Found, least: Mapping[str, int]) -> Iterator[Action]:
    keep = desired.interface if desired.mode is DecapMode.BPF else None
    for interface, place in sorted(found.filters.items()):
        if interface == keep:
            continue
        ours = place.state in (FilterState.CURRENT, FilterState.STALE)
        made = interface in found.changes.qdiscs and place.qdisc
        unused = not place.others and place.state is not FilterState.FOREIGN
        if ours or interface in found.changes.interfaces:
            yield RemoveFilter(interface, filter=ours, qdisc=made and unused)
    if found.ipip_device and desired.mode is not DecapMode.IPIP:
        yield RemoveIpipDevice()
    for address in sorted(found.addresses - desired.vips.addresses):
        yield RemoveVip(address)
    for prefix in sorted(found.routes - desired.vips.routes, key=_route_key):
        yield RemoveRoute(prefix)
    for version, interface in sorted(found.fence.rules - desired.fence.rules):
        yield RemoveFenceRule(version, interface)
    for prefix in sorted(found.fence.routes - desired.fence.routes, key=_route_key):
        yield RemoveFenceRoute(prefix)
    if found.table and desired.rules is None:
        yield RemoveRules()
    for name, change in sorted(found.changes.sysctls.items()):
        if name not in least:
            yield RestoreSysctl(name, change.original, restore=found.sysctls.get(name) == change.ours)


def _route_key(prefix: Network) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
