# SPDX-License-Identifier: Apache-2.0
"""The one interface through which the agent looks at and changes its host.

:class:`agent.host.linux.LinuxHost` is the real one, :class:`agent.host.fake.FakeHost` stands in for it in unit tests.
Each method does one thing at once and raises a :class:`lb.errors.VipmuxError` with a sentence when it cannot. Methods
that remove succeed where there is nothing to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from agent.host.conntrack import ConntrackEntry, FlowTarget
from agent.rules.foreign_filters import Stranger
from agent.rules.stray_packets import Fence
from lb.model import Address, Network


@dataclass(frozen=True, slots=True)
class HostLink:
    """A network interface."""

    index: int
    header: int | None  #: bytes before the IP header: 14 for Ethernet, 0 where there is none, None: not known
    addresses: frozenset[Address]


@dataclass(frozen=True, slots=True)
class Loopback:
    """Addresses on ``lo``, ours by their label."""

    ours: frozenset[IPv4Address]
    others: frozenset[IPv4Address]
    unrouted: frozenset[IPv4Address] = frozenset()  #: of ours, those whose local route is gone: no packet reaches them


@dataclass(frozen=True, slots=True)
class Ingress:
    """An interface's ingress filters."""

    qdisc: bool = False
    place_taken: bool = False  #: there is a filter in our place,
    program: int | None = None  #: with our name, and this BPF program
    others: bool = False  #: there are filters in other places
    ahead: tuple[Stranger, ...] = ()  #: of these, what stands before ours, in that order


class Host(Protocol):
    """See the module's text."""

    def link(self, name: str) -> HostLink | None: ...
    def loopback(self) -> Loopback: ...
    def local_routes(self) -> frozenset[Network]: ...
    def route_interfaces(self) -> frozenset[str]: ...
    def sysctls(self, names: Collection[str]) -> Mapping[str, int]: ...
    def ingress(self, interface: str) -> Ingress: ...
    def rules(self) -> str | None:
        """Our nftables table as ``nft`` lists it, without its counts; None where there is none."""

    def rules_generation(self) -> int | None:
        """The kernel's number of the whole ruleset, another after each change by anybody; None where it tells none."""

    def receives_on(self, name: str) -> bool:
        """Is a device of ours there, and as :meth:`receive_on` leaves it?"""

    def fence(self) -> Fence: ...

    def set_sysctl(self, name: str, value: int) -> None: ...
    def run_rules(self, text: str) -> None: ...
    def add_vip(self, address: IPv4Address) -> None: ...
    def remove_vip(self, address: IPv4Address) -> None: ...
    def add_route(self, prefix: Network) -> None: ...
    def remove_route(self, prefix: Network) -> None: ...
    def add_fence_rule(self, version: int, interface: str) -> None: ...
    def remove_fence_rule(self, version: int, interface: str) -> None: ...
    def add_fence_route(self, prefix: Network) -> None: ...
    def remove_fence_route(self, prefix: Network) -> None: ...
    def forget_flows(self, places: Collection[FlowTarget], stale: Callable[[ConntrackEntry], bool]) -> int:
        """Of the flows that conntrack knows to these places, removes the stale ones; returns how many."""

    def add_qdisc(self, interface: str) -> None: ...
    def remove_qdisc(self, interface: str) -> None: ...
    def attach(self, interface: str, program_fd: int) -> None: ...
    def detach(self, interface: str) -> None: ...
    def add_ipip(self, name: str, local: IPv4Address) -> None: ...
    def remove_link(self, name: str) -> None: ...
    def receive_on(self, name: str, *, ipv6: bool = False) -> None:
        """Brings a device of ours up so that packets to be decapsulated pass the reverse path filter; ``ipv6``: there
        will be such."""
