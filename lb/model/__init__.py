# SPDX-License-Identifier: Apache-2.0
"""The words of the project as values: services, backends, and the settings of a MUX and a host agent.

Plain immutable values with no behaviour beyond a few derived answers. They are made by :mod:`lb.config.load`,
which has checked everything; whoever holds one need not check again. Imports nothing of ours, so that
every other module may use it. Ports are host integers, times are seconds, sizes are bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: A flow entry names its backend in 12 bits, within its service.
MAX_BACKENDS_PER_SERVICE = 4095
#: A flow key names its service in 15 bits.
MAX_SERVICES = 32767
#: Size of a Maglev table where nobody says otherwise, a prime.
DEFAULT_SLOTS = 65537


class Protocol(enum.Enum):
    """Transport protocols that can be balanced; the value is the word used in configuration files."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """The IP protocol number."""
        return 6 if self is Protocol.TCP else 17


class BackendState(enum.Enum):
    """What the operator (or a probe) wants of a backend."""

    UP = "up"  #: takes new flows and keeps old ones
    DRAIN = "drain"  #: keeps old TCP flows, takes no new ones; UDP moves at once
    DOWN = "down"  #: takes nothing; its flows re-hash


class HashMode(enum.Enum):
    """What of a packet chooses the Maglev slot."""

    FIVE_TUPLE = "5-tuple"
    SOURCE = "source"


class IoMode(enum.Enum):
    """How a MUX receives and sends packets; ``auto`` takes the fastest that works here."""

    AUTO = "auto"
    XDP = "xdp"
    PACKET = "packet"
    TUN = "tun"


class DecapMode(enum.Enum):
    """How a host agent takes the outer header off; ``auto`` takes the fastest that works here."""

    AUTO = "auto"
    BPF = "bpf"
    IPIP = "ipip"
    TUN = "tun"


class Encap(enum.Enum):
    """The tunnel between MUX and host agent."""

    IPIP = "ipip"
    GUE = "gue"


class Unserved(enum.Enum):
    """What a MUX answers to who asks for a service that is not there, or that has no backend."""

    DROP = "drop"  #: nothing
    UNREACHABLE = "unreachable"  #: ICMP unreachable
    RESET = "reset"  #: to TCP a reset, else ICMP unreachable


#: UDP port of tunnels in GUE (IANA's).
GUE_PORT = 6080


def tunnel_bytes(version: int, encap: Encap, variant: int = 0) -> int:
    """What a tunnel takes of the MTU; ``version``: of the outer IP header."""
    udp = (12 if variant == 0 else 8) if encap is Encap.GUE else 0
    return (20 if version == 4 else 40) + udp


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports ``first`` to ``last``, both included; any port is 0 to 65535."""

    first: int
    last: int

    @property
    def exact(self) -> bool:
        return self.first == self.last

    @property
    def any(self) -> bool:
        return self.first == 0 and self.last == 65535

    def __str__(self) -> str:
        """As in a configuration file: ``80``, ``8000-8099``, or ``0`` for any port."""
        if self.any:
            return "0"
        return str(self.first) if self.exact else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Backend:
    """One server behind a service."""

    name: str
    address: Address  #: the outer destination, and the DIP
    port: int | None = None  #: where the process listens, if not at the service's port (the agent translates)
    weight: int = 1  #: 0 to 1000, share of the Maglev table; 0 takes no new flows
    state: BackendState = BackendState.UP
    server_id: str | None = None  #: in QUIC connection ids, hex digits; None: made of the name (:mod:`lb.quic_ids`)


class ProbeType(enum.Enum):
    """How a backend is asked whether it can serve."""

    TCP = "tcp"
    HTTP = "http"
    UDP = "udp"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Probe:
    """A service's health probe; which of the fields a type uses is checked in :mod:`lb.config.load`."""

    type: ProbeType
    port: int | None = None  #: where to ask; None: the backend's own port
    path: str = "/"  #: http: what to get
    status: tuple[int, int] = (200, 299)  #: http: first and last status that count as success
    request: str | None = None  #: tcp, udp: what to send
    expect: str | None = None  #: tcp, udp, http: text that the answer must contain
    command: tuple[str, ...] = ()  #: command: program and arguments; exit code 0 is success
    interval: float = 2.0  #: seconds between probes
    timeout: float = 1.0  #: seconds until a probe has failed
    rise: int = 3  #: successes to go up
    fall: int = 3  #: failures to go down


class AnnouncePolicy(enum.Enum):
    """When a service's VIP is announced."""

    ALWAYS = "always"
    ANY_BACKEND = "any-backend"
    MIN_HEALTHY = "min-healthy"


class AnnouncePeers(enum.Enum):
    """Which BGP peers hear of a service's VIP."""

    ALL = "all"
    EXTERNAL = "external"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Announce:
    """How a service's VIP is announced by BGP."""

    policy: AnnouncePolicy = AnnouncePolicy.ALWAYS
    n: int | None = None  #: min-healthy: how many backends must be healthy
    communities: tuple[str, ...] = ()  #: "65000:1", or large "65000:1:2"
    med: int | None = None
    prepend: int = 0  #: how often the own AS is put in front
    peers: AnnouncePeers = AnnouncePeers.ALL


@dataclass(frozen=True, slots=True)
class QuicIds:
    """A ``[[service.quic]]`` table: one way to read QUIC connection ids; of a service there may be several at once."""

    id: int  #: 0 to 6, as ids say in their first three bits
    key_file: str | None = None  #: on each MUX, with the key that ids are encrypted with; None: they are not
    server_id_bytes: int = 4
    nonce_bytes: int = 12


@dataclass(frozen=True, slots=True)
class Service:
    """VIP + protocol + ports, with the backends that serve it."""

    name: str
    vip: Network  #: a single address is a /32 or /128
    protocol: Protocol
    ports: PortRange
    backends: tuple[Backend, ...] = ()
    slots: int | None = None  #: size of the Maglev table, prime; None: the MUX's default
    hash: HashMode = HashMode.FIVE_TUPLE
    mtu: int | None = None  #: underlay MTU towards the backends; None: the MUX's
    encap: Encap | None = None  #: the tunnel to its backends; None: the MUX's
    track: bool = False  #: the hosts' kernels track its connections, so that their own firewall and NAT rules apply
    idle: int | None = None  #: idle timeout of trusted flows, seconds; None: the MUX's for the protocol
    slow_start: float | None = None  #: seconds in which a backend that returns comes to its whole weight; None: at once
    #: Share, 0 to 1: where fewer of its backends are healthy, by weight and by number, none is taken out; None: 0.5
    panic: float | None = None
    quic: tuple[QuicIds, ...] = ()  #: UDP: whose packets are by their connection ids
    probe: Probe | None = None
    announce: Announce | None = None

    def backend_port(self, backend: Backend) -> int | None:
        """The port that the agent translates to, together with the address; None where VIP and port stay.

        A port that is given counts even where it is the service's: the process then gets packets at its host's own
        address, and a UDP server that listens on all of them answers from the right one.
        """
        return backend.port

    @property
    def udp_request(self) -> str | None:
        """What a UDP service is asked at its own port, and must answer to; None: there is no such question."""
        probe = self.probe
        if self.protocol is not Protocol.UDP or probe is None or probe.type is not ProbeType.UDP:
            return None
        return (probe.request or "") if probe.expect is not None and probe.port is None else None


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle timeouts of flows, seconds."""

    tcp: int = 900
    tcp_untrusted: int = 10
    udp: int = 60


@dataclass(frozen=True, slots=True)
class MuxSettings:
    """The ``[mux]`` table."""

    name: str
    address: IPv4Address | None  #: None: address6 is there
    seed: bytes  #: 16 bytes, the same on every MUX of the pool
    interface: str
    address6: IPv6Address | None = None
    io: IoMode = IoMode.AUTO
    busy_poll: bool = False  #: workers of AF_XDP never sleep
    workers: int = 1
    flows: int = 1_000_000
    keep_flows: bool = True  #: in memory that outlives the process
    encap: Encap = Encap.IPIP  #: of services that do not say
    gue_port: int = GUE_PORT  #: UDP port of GUE tunnels at the hosts
    gue_variant: int = 0  #: 0: four bytes of header behind UDP; 1: none
    mtu: int = 1500
    slots: int = DEFAULT_SLOTS
    metrics: str = "127.0.0.1:9741"
    state_dir: str = "/var/lib/lb"
    idle: Idle = Idle()
    answers: int = 1000  #: pings answered for each second, and ICMP errors sent; 0: none
    unserved: Unserved = Unserved.DROP

    def source(self, destination: Address) -> Address | None:
        """Where tunnels to an address come from; None: this MUX has none of its family."""
        return self.address if destination.version == 4 else self.address6

    @property
    def own_address(self) -> Address:
        """The one that it is known by."""
        found = self.address or self.address6
        assert found is not None  # noqa: S101  lb.config asks for one
        return found


class PeerKind(enum.Enum):
    """Who is behind a BGP peer; a service may be announced to one kind only."""

    EXTERNAL = "external"
    INTERNAL = "internal"


class BgpFamily(enum.Enum):
    """What prefixes a BGP session carries."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


@dataclass(frozen=True, slots=True)
class BgpPeer:
    """A ``[[bgp.peer]]`` table: one router."""

    name: str
    address: Address
    asn: int
    families: tuple[BgpFamily, ...]  #: that of the address, unless the file says otherwise
    password: str | None = field(default=None, repr=False)  #: TCP MD5 (RFC 2385)
    kind: PeerKind = PeerKind.EXTERNAL
    gtsm: bool = False  #: TTL security (RFC 5082): both ends send 255 and accept nothing less


@dataclass(frozen=True, slots=True)
class BgpSettings:
    """The ``[bgp]`` table."""

    asn: int
    peers: tuple[BgpPeer, ...]
    router_id: IPv4Address | None = None  #: None: the MUX's address
    hold: int = 9  #: seconds after which a silent MUX is given up
    shutdown: float = 3.0  #: seconds that routers get at a planned stop, after GRACEFUL_SHUTDOWN and after withdrawal


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The ``[agent]`` table."""

    name: str
    address: IPv4Address | None  #: None: address6 is there
    interface: str
    muxes: tuple[Address, ...]  #: outer sources that are accepted; none of them, no tunnels
    address6: IPv6Address | None = None
    decap: DecapMode = DecapMode.AUTO
    encap: Encap = Encap.IPIP  #: the tunnel with most headers that MUXes use, of services that do not say
    gue_port: int = GUE_PORT
    mtu: int = 1500
    metrics: str = "127.0.0.1:9742"
    state_dir: str = "/var/lib/lb"
    command_probes: bool = False  #: whether probes of type "command" run here
    command_user: str = "nobody"  #: as whom they run, where the agent is root

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The host's own, one or two."""
        return tuple(address for address in (self.address, self.address6) if address is not None)


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """The ``[manager]`` table, which is all of a manager's file."""

    name: str
    vip_prefixes: tuple[Network, ...]  #: VIPs must be inside one of them
    listen: str = "0.0.0.0:9740"
    metrics: str = "127.0.0.1:9743"
    state_dir: str = "/var/lib/lb-manager"
    withdraw_cap: float = 0.5  #: share of the MUXes that may withdraw a VIP at once for reasons of their own
    health_lease: float = 10.0  #: a node's health reports are believed for so long after its last message
    node_lifetime: float = 2_592_000.0  #: seconds that a node's certificate is valid; it renews after a third of it
    web: str | None = None  #: where the web page is served; None: nowhere
    hold: float = 9.0  #: a MUX that is gone for so long announces nothing any more: the routers' hold time
    path_interval: float | None = None  #: it connects to each VIP once in so many seconds, as a client; None: never


@dataclass(frozen=True, slots=True)
class MuxConfig:
    """A whole MUX file."""

    mux: MuxSettings
    services: tuple[Service, ...] = ()
    bgp: BgpSettings | None = None
    manager: str | None = None  #: the manager's URL; the services come from it then


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """A whole agent file; the services are all services, the agent's own are those with its address."""

    agent: AgentSettings
    services: tuple[Service, ...] = ()
    manager: str | None = None  #: the manager's URL; services and MUXes come from it then
