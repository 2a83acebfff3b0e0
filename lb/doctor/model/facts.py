# SPDX-License-Identifier: Apache-2.0
"""What was seen of a machine, before anybody judges it. Values only, made by :mod:`lb.doctor.collect` and
:mod:`lb.doctor.path_tests`.

``None`` says "not seen" throughout; an ``error`` beside it says why, in words.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

from lb.model import Address

Row = Mapping[str, Any]


class Role(enum.Enum):
    """What a machine is, by its file; the value is the table's name."""

    MUX = "mux"
    AGENT = "agent"
    MANAGER = "manager"

    @property
    def program(self) -> str:
        return f"lb-{self.value}"


@dataclass(frozen=True, slots=True)
class Rights:
    """Who examines."""

    root: bool
    capabilities: int  #: effective, as a bit mask


@dataclass(frozen=True, slots=True)
class Kernel:
    """What programs find on this machine."""

    release: str
    nft: bool  #: the program is installed
    tun: str | None  #: why /dev/net/tun cannot be opened; None: it can


@dataclass(frozen=True, slots=True)
class DaemonSeen:
    """The daemon that the file is for."""

    socket: str
    answers: bool
    error: str | None = None  #: why it was not asked, or does not answer
    may_ask: bool = True  #: False: it may well run, but we may not talk to it
    pid: int | None = None
    capabilities: int | None = None
    status: Row = field(default_factory=dict)  #: its one row
    services: tuple[Row, ...] = ()
    backends: tuple[Row, ...] = ()
    peers: tuple[Row, ...] = ()

    @property
    def manager(self) -> Row | None:
        """Its connection to the manager; None: it has none to have."""
        found = self.status.get("manager")
        return found if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class Twin:
    """A running daemon of this machine (this network namespace), by its file."""

    pid: int
    config: str
    name: str | None  #: None: the file cannot be read
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """One link."""

    name: str
    exists: bool
    up: bool = False
    carrier: bool = False
    mtu: int = 0
    lro: bool | None = None  #: large receive offload


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses, routes and settings of this machine."""

    interface: Interface
    addresses: Mapping[Address, str] = field(default_factory=dict)  #: address -> interface
    labels: frozenset[IPv4Address] = frozenset()  #: on lo, by the agent
    default_by: str | None = None  #: the interface that the IPv4 default route leaves by
    other_routes: frozenset[str] = frozenset()  #: interfaces but ours that routes leave by
    sysctls: Mapping[str, int] = field(default_factory=dict)  #: by path below /proc/sys/net
    filter: bool | None = None  #: the agent's BPF program is at the interface's ingress
    ahead: tuple[int, ...] = ()  #: priorities of filters of others before it
    local_rule: bool | None = None  #: a rule leads to the table of local addresses


@dataclass(frozen=True, slots=True)
class OwnBackend:
    """A backend on this host, and what is done with its service's packets."""

    label: str  #: service/backend
    vip: IPv4Network | IPv6Network
    protocol: str  #: tcp or udp
    ports: tuple[int, int]  #: of the service, the first and the last
    address: Address  #: the host's
    port: int | None = None  #: what VIP and port are translated to, at that address; None: nothing is
    tracked: bool = False  #: conntrack knows its connections
    health: str = "unknown"  #: the agent's word
    reason: str = ""

    @property
    def place(self) -> tuple[Address, int | None]:
        """Where packets are for when the host's processes get them; a port of several is None."""
        if self.port is not None:
            return self.address, self.port
        return self.vip.network_address, self.ports[0] if self.ports[0] == self.ports[1] else None

    @property
    def about(self) -> str:
        return f"backend {self.label}"


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A socket that takes connections, or datagrams of anybody."""

    protocol: str  #: tcp or udp
    address: Address  #: the unspecified one of IPv6 takes IPv4 as well
    port: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the kernel would do with a packet that comes in by our interface."""

    source: IPv4Address
    destination: IPv4Address
    local: bool  #: it is for this host, and taken in
    back: str | None = None  #: the interface by which an answer to its source would leave; None: none would


@dataclass(frozen=True, slots=True)
class ConntrackUse:
    """The table of connections, and what it did not take between two looks."""

    count: int
    maximum: int
    dropped: int = 0  #: packets that found no room
    early: int = 0  #: connections that were thrown out for others
    seconds: float = 0.0  #: between the looks


@dataclass(frozen=True, slots=True)
class Private:
    """A file or directory that not everybody should have to do with."""

    path: str
    owner: int  #: user's number
    mode: int
    link: str | None = None  #: where a symbolic link leads


@dataclass(frozen=True, slots=True)
class NftTable:
    """One nftables table of ours."""

    family: str
    name: str
    addresses: frozenset[str] = frozenset()  #: whose packets it drops, in a MUX's


@dataclass(frozen=True, slots=True)
class Disk:
    """The filesystem under a state directory."""

    path: str
    free: int = 0  #: bytes that an ordinary user may still write
    total: int = 0
    inodes_free: int = 0
    inodes: int = 0
    read_only: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """One certificate's file."""

    file: str
    owner: str | None = None  #: the name in it
    not_before: float = 0.0
    not_after: float = 0.0
    missing: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """This machine's clock."""

    now: float
    synchronised: bool | None
    ahead: float | None = None  #: of the manager's, seconds
    manager: str | None = None  #: its URL
    error: str | None = None  #: why the manager's clock is not known


class WayAnswer(enum.Enum):
    """What came back."""

    ACCEPTED = "accepted"  #: SYN+ACK, or an echo
    REFUSED = "refused"  #: RST
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class WayTarget:
    """A way to be tried: to one backend, for one of its services."""

    name: str  #: service/backend
    address: IPv4Address
    vip: IPv4Address
    port: int
    exact: bool = True  #: the service has this port alone, so something must listen there
    told: str = "up"  #: its state: up, drain or down
    inside: int | None = None  #: the backend's port at the host's own address, where it has one
    request: bytes | None = None  #: of UDP: what is asked, and answered by whoever is well


@dataclass(frozen=True, slots=True)
class Path:
    """What came back from one target. ``mtu`` is what the MUX believes of the way."""

    target: WayTarget
    mtu: int
    plain: WayAnswer  #: to a small packet without a tunnel
    plain_full: WayAnswer | None = None  #: to one of ``mtu`` bytes
    largest: int | None = None  #: the largest of some sizes that was answered without a tunnel
    tunnel: WayAnswer = WayAnswer.SILENT  #: to a small one in a tunnel
    tunnel_some: WayAnswer | None = None  #: to one with data, in a tunnel
    tunnel_full: WayAnswer | None = None  #: to one that fills ``mtu``
    said: str | None = None  #: what ICMP said of tunnel packets
    said_mtu: int | None = None  #: the MTU that ICMP told
    direct: WayAnswer | None = None  #: to a plain connection to the port at the host's own address; None: not tried


@dataclass(frozen=True, slots=True)
class Datagram:
    """Who answered a UDP service's request that went through a tunnel."""

    target: WayTarget
    answered_by: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Dialled:
    """What a BGP peer's port answers."""

    ping: bool
    unsigned: WayAnswer
    signed: WayAnswer | None = None  #: with the file's password; None: the file has none


@dataclass(frozen=True, slots=True)
class ArpClaim:
    """Somebody on the link who answers ARP for a VIP."""

    vip: IPv4Address
    mac: str
    neighbour: str | None = None  #: an address known for that MAC
