# SPDX-License-Identifier: Apache-2.0
"""The shape of each table of a configuration file: its keys, and what one value alone must be.

Used only by :mod:`lb.config.load`, which reads a file into these, checks what spans several values, and turns
them into the values of :mod:`lb.model`. Every key is optional here and ``None`` where it is absent or was
wrong, so that one mistake hides no other; ``REQUIRED`` says what must be there. A check raises
``ValueError`` with the end of a sentence that begins with the key's path. :func:`key` says what a key means;
docs/reference.md is made of that, of what the checks say, and of the defaults in :mod:`lb.model`.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import re
import socket
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from lb.model import (
    Address,
    AnnouncePeers,
    AnnouncePolicy,
    BackendState,
    BgpFamily,
    DecapMode,
    Encap,
    HashMode,
    IoMode,
    Network,
    PeerKind,
    PortRange,
    ProbeType,
    Protocol,
    Unserved,
)
from lb.quic_ids import CONFIGURATIONS, NONCE_MIN, SERVER_ID_MAX

#: Largest Maglev table; the paper's largest is 655,373.
MAX_SLOTS = 1_000_003
MAX_FLOWS = 100_000_000
MAX_IDLE = 14_400
MTU_MIN, MTU_MIN6, MTU_MAX = 576, 1280, 9216
NAME_MAX = 128
#: TCP MD5's limit, bytes.
PASSWORD_MAX = 80
#: Where a manager listens, unless told.
MANAGER_PORT = 9740


def show(value: object) -> str:
    """A value of the file as it may stand in a one-line message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return text if len(text) <= 60 else text[:57] + "..."


# --- addresses ---------------------------------------------------------------------------------------------------

#: (first, last, what it is) for ranges that are no destination of their own.
_SPECIAL4 = [
    (int(network.network_address), int(network.broadcast_address), word)
    for network, word in (
        (IPv4Network("0.0.0.0/8"), "unspecified"),
        (IPv4Network("127.0.0.0/8"), "loopback"),
        (IPv4Network("169.254.0.0/16"), "link-local"),
        (IPv4Network("224.0.0.0/4"), "multicast"),
        (IPv4Network("255.255.255.255/32"), "broadcast"),
    )
]
_SPECIAL6 = [
    (int(network.network_address), int(network.broadcast_address), word)
    for network, word in (
        (IPv6Network("::/128"), "unspecified"),
        (IPv6Network("::1/128"), "loopback"),
        (IPv6Network("::ffff:0:0/96"), "IPv4-mapped"),
        (IPv6Network("fe80::/10"), "link-local"),
        (IPv6Network("ff00::/8"), "multicast"),
    )
]


def _special(version: int, first: int, last: int) -> str | None:
    """What makes the range unusable as an address of ours, or None."""
    for start, end, word in _SPECIAL4 if version == 4 else _SPECIAL6:
        if first <= end and last >= start:
            return word
    return None


@functools.lru_cache(maxsize=65_536)
def _address(text: str) -> Address:
    address: Address
    try:  # inet_pton is as strict as IPv4Address, and faster
        address = IPv6Address(text) if ":" in text else IPv4Address(socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        raise ValueError(f"must be an IP address, not {show(text)}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"must be an address without a zone, not {show(text)}")
    word = _special(address.version, int(address), int(address))
    if word is not None:
        raise ValueError(f"must be a unicast address that can be routed; {address} is {word}")
    return address


def forget_addresses() -> None:
    """Addresses repeat within one file and are shared; afterwards the cache only costs memory."""
    _address.cache_clear()


def parse_address(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError(f"must be an IP address in quotes, not {show(value)}")
    return _address(value)


def parse_address4(value: object) -> IPv4Address:
    address = parse_address(value)
    if not isinstance(address, IPv4Address):
        raise ValueError(f"must be an IPv4 address, not {address}; IPv6 goes in address6")
    return address


def parse_address6(value: object) -> IPv6Address:
    address = parse_address(value)
    if not isinstance(address, IPv6Address):
        raise ValueError(f"must be an IPv6 address, not {address}")
    return address


def parse_vip(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError(f"must be an address or a prefix in quotes, not {show(value)}")
    address, slash, length = value.partition("/")
    try:
        if "%" in value or (slash and not re.fullmatch(r"[0-9]{1,3}", length)):
            raise ValueError
        network: Network = (IPv6Network if ":" in value else IPv4Network)(value, strict=False)
    except ValueError:
        raise ValueError(f'must be an address, or a prefix such as "203.0.113.128/25", not {show(value)}') from None
    if slash and network.network_address != type(network.network_address)(address):
        raise ValueError(f'has host bits set; the prefix is "{network}"')
    word = _special(network.version, int(network.network_address), int(network.broadcast_address))
    if word is not None:
        verb = "is" if network.prefixlen == network.max_prefixlen else "holds addresses that are"
        raise ValueError(f"cannot be a VIP; {value} {verb} {word}")
    return network


def parse_listen(value: object) -> str:
    """``ADDRESS:PORT`` to listen on; port 0 lets the kernel choose."""
    text = check_text(value)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError
        if bracketed:
            IPv6Address(host[1:-1])
        else:
            IPv4Address(host)
    except ValueError:
        raise ValueError(
            f'must be an address and port such as "127.0.0.1:9741" or "[::1]:9741", not {show(value)}'
        ) from None
    return text


# --- words, texts, numbers ---------------------------------------------------------------------------------------


def check_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, not {show(value)}")
    return value


def check_name(value: object) -> str:
    text = check_text(value)
    if not text or len(text) > NAME_MAX or not text.isprintable() or text != text.strip():
        raise ValueError(f"must be 1 to {NAME_MAX} printable characters with no space at either end, not {show(value)}")
    return text


def check_interface(value: object) -> str:
    """What the kernel takes as an interface name."""
    text = check_text(value)
    if not re.fullmatch(r"[!-.0-9;-~]{1,15}", text) or text in (".", ".."):
        raise ValueError(f"must be the name of a network interface (1 to 15 characters), not {show(value)}")
    return text


def check_directory(value: object) -> str:
    text = check_text(value)
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(f"must be an absolute path, not {show(value)}")
    return text


def check_seed(value: object) -> bytes:
    text = check_text(value)
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise ValueError(f"must be 32 hex digits, not {show(value)} ({len(text)} characters)")
    return bytes.fromhex(text)


def check_server_id(value: object) -> str:
    text = check_text(value)
    if not re.fullmatch(rf"([0-9a-fA-F]{{2}}){{1,{SERVER_ID_MAX}}}", text):
        raise ValueError(f"must be 1 to {SERVER_ID_MAX} bytes in hex digits, not {show(value)}")
    return text.lower()


def between(first: int, last: int, unit: str = "") -> Callable[[object], int]:
    """A whole number from first to last."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"must be a whole number, {first} to {last}{unit}, not {show(value)}")
        if not first <= value <= last:
            raise ValueError(f"must be {first} to {last}{unit}, not {show(value)}")
        return value

    return check


def seconds(first: float, last: float) -> Callable[[object], float]:
    """A number of seconds, fractions allowed."""

    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"must be a number of seconds, {first:g} to {last:g}, not {show(value)}")
        if not first <= value <= last:
            raise ValueError(f"must be {first:g} to {last:g} s, not {show(value)}")
        return float(value)

    return check


@functools.lru_cache(maxsize=64)
def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


@functools.lru_cache(maxsize=64)
def _neighbours(n: int) -> tuple[int, ...]:
    """The primes on either side of n."""
    below = next((p for p in range(n - 1, 1, -1) if is_prime(p)), None)
    above = next(p for p in range(n + 1, 2 * n + 3) if is_prime(p))
    return tuple(p for p in (below, above) if p is not None and p <= MAX_SLOTS)


def check_slots(value: object) -> int:
    slots = between(2, MAX_SLOTS)(value)
    if not is_prime(slots):
        near = " and ".join(str(p) for p in _neighbours(slots))
        raise ValueError(f"must be a prime number, not {slots}; the nearest are {near}")
    return slots


def word(kind: type[enum.Enum]) -> Callable[[object], Any]:
    """One of an enum's words."""
    members = {member.value: member for member in kind}
    choices = [f'"{value}"' for value in members]
    expected = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def check(value: object) -> enum.Enum:
        if isinstance(value, str) and value in members:
            return members[value]
        raise ValueError(f"must be {expected}, not {show(value)}")

    return check


def parse_ports(value: object) -> PortRange:
    if isinstance(value, int) and not isinstance(value, bool):
        if value == 0:
            return PortRange(0, 65535)
        if 1 <= value <= 65535:
            return PortRange(value, value)
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", value)
        if match:
            first, last = int(match[1]), int(match[2])
            if 1 <= first <= last <= 65535:
                return PortRange(first, last)
            if first == 0:
                raise ValueError(f"must begin at port 1 or later, not {show(value)}; 0 alone means any port")
            if first > last:
                raise ValueError(f"must have the lower port first, not {show(value)}")
        elif re.fullmatch(r"[0-9]{1,5}", value):
            raise ValueError(f"must be a number without quotes, not {show(value)}")
    raise ValueError(f'must be 1 to 65535, a range such as "8000-8099", or 0 for any port, not {show(value)}')


# --- probe and announce ------------------------------------------------------------------------------------------


def parse_status(value: object) -> tuple[int, int]:
    """``200``, or ``"200-399"``."""
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return (value, value)
    if isinstance(value, str):
        match = re.fullmatch(r"([1-5][0-9]{2})-([1-5][0-9]{2})", value)
        if match and int(match[1]) <= int(match[2]):
            return (int(match[1]), int(match[2]))
    raise ValueError(f'must be 100 to 599, or a range such as "200-399", not {show(value)}')


def check_http_path(value: object) -> str:
    text = check_text(value)
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or " " in text or len(text) > 2048:
        raise ValueError(f'must begin with "/" and hold no spaces, not {show(value)}')
    return text


def check_payload(value: object) -> str:
    text = check_text(value)
    if not 1 <= len(text.encode()) <= 1024:
        raise ValueError(f"must be 1 to 1024 bytes, not {len(text.encode())}")
    return text


def check_command(value: object) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 64
        or not all(isinstance(item, str) and item and "\0" not in item for item in value)
    ):
        raise ValueError('must be the program and its arguments, such as ["/usr/bin/check", "--fast"]')
    return tuple(value)


def check_communities(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f'must be an array such as ["65000:100"], not {show(value)}')
    if len(value) > 32:
        raise ValueError(f"must be at most 32 communities, not {len(value)}")
    for item in value:
        parts = item.split(":") if isinstance(item, str) else []
        limit = {2: 0xFFFF, 3: 0xFFFFFFFF}.get(len(parts), -1)
        if not all(re.fullmatch(r"[0-9]{1,10}", part) and int(part) <= limit for part in parts) or not parts:
            raise ValueError(f'must hold communities such as "65000:100" or "65000:1:2", not {show(item)}')
    return tuple(value)


def check_url(value: object) -> str:
    """Where a manager is, in one form: https://HOST:PORT."""
    text = check_text(value)
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port or MANAGER_PORT
    except ValueError:
        host, port = None, 0
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username) if host else False
    if not host or parts.scheme != "https" or not plain or not host.isprintable() or " " in host:
        raise ValueError(f'must be an address such as "https://10.0.1.9:9740", not {show(value)}')
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


# --- BGP ---------------------------------------------------------------------------------------------------------


def check_asn(value: object) -> int:
    """AS numbers that a session can be opened with: not 0, AS_TRANS, or the last ones of either size (RFC 7300)."""
    asn = between(1, 0xFFFFFFFE)(value)
    if asn in (23456, 65535):
        raise ValueError(f"must be an AS number that is not reserved, not {asn}")
    return asn


def check_router_id(value: object) -> IPv4Address:
    """Only has the form of an address."""
    try:
        router_id = IPv4Address(check_text(value))
    except AddressValueError:
        raise ValueError(f'must look like an IPv4 address, such as "10.0.1.11", not {show(value)}') from None
    if router_id == IPv4Address(0):
        raise ValueError("must not be 0.0.0.0")
    return router_id


def check_password(value: object) -> str:
    """What TCP MD5 can sign with; never shown."""
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    if not 1 <= len(value.encode()) <= PASSWORD_MAX:
        raise ValueError(f"must be 1 to {PASSWORD_MAX} bytes, not {len(value.encode())}")
    if "\0" in value:
        raise ValueError("must not hold a NUL")
    return value


def check_families(value: object) -> tuple[BgpFamily, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'must be an array such as ["ipv4", "ipv6"], not {show(value)}')
    check = word(BgpFamily)
    families = tuple(check(item) for item in value)
    if len(set(families)) != len(families):
        raise ValueError("names a family more than once")
    return families


def check_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {show(value)}")
    return value


def check_user(value: object) -> str:
    """An account's name; whether there is one is seen on the host."""
    text = check_text(value)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?", text):
        raise ValueError(f'must be the name of a user, such as "nobody", not {show(value)}')
    return text


# --- the tables --------------------------------------------------------------------------------------------------

_PORT = between(1, 65535)
_MTU = between(MTU_MIN, MTU_MAX)
_IDLE = between(1, MAX_IDLE, " s")
_COUNT = between(1, 100)


def _check_muxes(value: object) -> tuple[Address, ...]:
    if not isinstance(value, list):
        raise ValueError(f'must be an array such as ["10.0.1.11", "10.0.1.12"], not {show(value)}')
    if not value:
        raise ValueError("must name at least one MUX")
    return tuple(parse_address(item) for item in value)


def _check_prefixes(value: object) -> tuple[Network, ...]:
    if not isinstance(value, list):
        raise ValueError(f'must be an array such as ["203.0.113.0/24"], not {show(value)}')
    if not value:
        raise ValueError("must hold at least one prefix")
    return tuple(parse_vip(item) for item in value)


def _check_share(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"must be more than 0 and at most 1, not {show(value)}")
    return float(value)


def _check_panic(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"must be 0 (never) to 1, a share of the backends, not {show(value)}")
    return float(value)


class TomlKey(NamedTuple):
    """A key of a table, which may be absent."""

    #: Makes a value of what the file says, or raises ValueError. None: a table, which is read by itself.
    check: Callable[[object], Any] | None
    meaning: str  #: to an operator, a sentence or two, for the reference


def key(check: Callable[[object], Any] | None, meaning: str) -> Any:
    """A :class:`TomlKey`, where its value is annotated."""
    return TomlKey(check, meaning)


class TomlTable:
    """A table of the file."""

    #: Keys that must be there, and what to write.
    REQUIRED: ClassVar[dict[str, str]] = {}
    KEYS: ClassVar[dict[str, TomlKey]]

    def __init_subclass__(cls) -> None:
        cls.KEYS = {name: item for name, item in vars(cls).items() if isinstance(item, TomlKey)}

    def __init__(self, given: Mapping[str, Any]) -> None:
        """``given``: the keys that the file has, checked; the others are None."""
        vars(self).update(dict.fromkeys(self.KEYS), **given)

    def given(self, *without: str) -> dict[str, Any]:
        """The keys that the file has."""
        return {name: value for name, value in vars(self).items() if value is not None and name not in without}


class IdleTable(TomlTable):
    """``[mux.idle]``"""

    tcp: int | None = key(_IDLE, "Seconds without a packet after which a trusted TCP flow is forgotten.")
    tcp_untrusted: int | None = key(
        _IDLE,
        "The same for a TCP flow that was seen only once, and for one whose client said FIN or RST once room is "
        "needed.",
    )
    udp: int | None = key(_IDLE, "The same for a UDP flow.")


class MuxTable(TomlTable):
    """``[mux]``"""

    REQUIRED: ClassVar = {
        "name": 'the name of this MUX, such as "mux1"',
        "address": "the IPv4 address that tunnels come from",
        "interface": 'the interface that packets arrive on, such as "eth0"',
        "seed": "32 hex digits, the same on every MUX of the pool",
    }

    name: str | None = key(
        check_name, "The MUX's name: in metrics, in commands, and in its certificate. Two MUXes must not share one."
    )
    address: IPv4Address | None = key(
        parse_address4,
        "Tunnels to backends with IPv4 addresses come from this one. It must be this machine's. One of `address` and "
        "`address6` is needed.",
    )
    address6: IPv6Address | None = key(parse_address6, "The same for IPv6. Tunnels carry packets of either family.")
    interface: str | None = key(check_interface, "Clients' packets arrive on this interface.")
    io: IoMode | None = key(
        word(IoMode),
        "How packets come in and go out. `auto` takes the fastest mode that works, and says which and why.",
    )
    busy_poll: bool | None = key(
        check_bool, "With `xdp`: workers never sleep. Less latency, and a whole core for each worker all the time."
    )
    workers: int | None = key(between(1, 64), "Data-plane threads. May change with SIGHUP in `packet` and `tun` mode.")
    flows: int | None = key(
        between(1, MAX_FLOWS), "How many flows are remembered, over all workers. `lb check` prints the memory."
    )
    keep_flows: bool | None = key(
        check_bool,
        "Whether flow tables lie in memory that outlives `lb-mux` (`/dev/shm`): killed, restarted or upgraded, it goes "
        "on with them.",
    )
    encap: Encap | None = key(
        word(Encap),
        "The tunnel to the hosts, of services that do not say: `ipip`, IP in IP, or `gue`, over UDP, where the network "
        "drops protocol 4.",
    )
    gue_port: int | None = key(_PORT, "UDP port of `gue` tunnels. The same as `agent.gue_port`.")
    gue_variant: int | None = key(
        between(0, 1),
        "`0`: four bytes of GUE header behind UDP, which say what follows. `1`: none, and so much more room.",
    )
    seed: bytes | None = key(
        check_seed, "The hash seed, the same on every MUX of the pool. Make one with `openssl rand -hex 16`."
    )
    mtu: int | None = key(
        _MTU, "MTU of the network between MUXes and hosts, in bytes. Raise it there rather than lower it here."
    )
    slots: int | None = key(
        check_slots,
        "Size of a service's Maglev table, a prime; at least 100 for each backend. The same on every MUX of the pool.",
    )
    answers: int | None = key(
        between(0, 1_000_000),
        "Pings to VIPs that are answered for each second; and as many ICMP errors and resets of each kind. 0: none.",
    )
    unserved: Unserved | None = key(
        word(Unserved),
        "What a client gets that asks for a closed port, or for a service without backend: nothing (`drop`), ICMP"
        " unreachable, or a `reset` where it speaks TCP.",
    )
    metrics: str | None = key(parse_listen, "Where Prometheus asks.")
    state_dir: str | None = key(check_directory, "Local socket, certificate, last good state.")
    # An IdleTable, read by itself.
    idle: Any = key(None, "Idle timeouts of flows: [`[mux.idle]`](#muxidle).")


class BgpTable(TomlTable):
    """``[bgp]``"""

    REQUIRED: ClassVar = {"asn": "this MUX's AS number", "peer": "at least one router, in a table [[bgp.peer]]"}

    asn: int | None = key(check_asn, "The MUX's AS number.")
    router_id: IPv4Address | None = key(check_router_id, "BGP identifier. Default: `mux.address`.")
    hold: int | None = key(
        between(3, 65535, " s"), "Hold time in seconds: a router gives up a MUX that was silent for so long."
    )
    shutdown: float | None = key(
        seconds(0, 300),
        "Seconds that routers get at a planned stop, after GRACEFUL_SHUTDOWN and again after the withdrawal.",
    )
    # PeerTables, read by themselves.
    peer: Any = key(None, "The routers: [`[[bgp.peer]]`](#bgppeer).")


class PeerTable(TomlTable):
    """``[[bgp.peer]]``"""

    REQUIRED: ClassVar = {
        "name": 'a unique name, such as "router1"',
        "address": "the router's address on this side",
        "asn": "the router's AS number",
    }

    name: str | None = key(check_name, "The router's name in `lb get peers` and in metrics.")
    address: Address | None = key(
        parse_address, "The router's address. Sessions come from `mux.address` or `mux.address6`."
    )
    asn: int | None = key(check_asn, "The router's AS number.")
    password: str | None = key(
        check_password, "TCP MD5 password (RFC 2385). Default: none. FRR takes none with a space."
    )
    kind: PeerKind | None = key(
        word(PeerKind), "Who is behind the router. A service's `announce.peers` may choose one kind."
    )
    families: tuple[BgpFamily, ...] | None = key(
        check_families, "Which prefixes the session carries. Default: the family of the address."
    )
    gtsm: bool | None = key(check_bool, "TTL security (RFC 5082): both ends send TTL 255 and accept nothing less.")


class AgentTable(TomlTable):
    """``[agent]``"""

    REQUIRED: ClassVar = {
        "name": 'the name of this host, such as "host1"',
        "address": "this host's DIP",
        "interface": 'the interface that tunnels arrive on, such as "eth0"',
        "muxes": "the addresses that tunnels are accepted from",
    }

    name: str | None = key(check_name, "The host's name: in metrics, in commands, and in its certificate.")
    address: IPv4Address | None = key(
        parse_address4,
        "The host's own IPv4 address (DIP). Backends with this address are its own. One of `address` and `address6` is "
        "needed.",
    )
    address6: IPv6Address | None = key(parse_address6, "The same for IPv6.")
    interface: str | None = key(check_interface, "Tunnels arrive on this interface.")
    muxes: tuple[Address, ...] | None = key(
        _check_muxes,
        "Tunnels are accepted from these addresses only. Needed without a manager; refused with one, which knows the "
        "MUXes.",
    )
    decap: DecapMode | None = key(
        word(DecapMode),
        "How the outer header is taken off. `auto` takes the fastest that works, and says which and why.",
    )
    encap: Encap | None = key(
        word(Encap),
        "The tunnel that leaves least room of those that MUXes use: TCP's segment size is clamped to fit it. Hosts "
        "always take both.",
    )
    gue_port: int | None = key(_PORT, "UDP port of `gue` tunnels. The same as `mux.gue_port`.")
    mtu: int | None = key(_MTU, "MTU of the network from the MUXes, in bytes. TCP's segment size is clamped to fit.")
    metrics: str | None = key(parse_listen, "Where Prometheus asks.")
    state_dir: str | None = key(
        check_directory,
        "Local socket, certificate, last good state, and the record of what the agent changed on the host.",
    )
    command_probes: bool | None = key(
        check_bool, "Whether this host runs probes of type `command`. Without it TCP is asked in their place."
    )
    command_user: str | None = key(check_user, "The account that runs them. `root` is possible.")


class FollowTable(TomlTable):
    """``[manager]`` in the file of a MUX or an agent"""

    REQUIRED: ClassVar = {"url": 'the manager\'s address, such as "https://10.0.1.9:9740"'}

    url: str | None = key(check_url, "Where the manager is. The port is 9740 unless it is given.")


class ManagerTable(TomlTable):
    """``[manager]``"""

    REQUIRED: ClassVar = {
        "name": 'the name of this manager, such as "manager1"',
        "vip_prefixes": 'the prefixes that VIPs must be in, such as ["203.0.113.0/24"]',
    }

    name: str | None = key(check_name, "The manager's name.")
    vip_prefixes: tuple[Network, ...] | None = key(_check_prefixes, "VIPs must be inside one of these prefixes.")
    listen: str | None = key(parse_listen, "Where operators and nodes connect, over mutual TLS.")
    metrics: str | None = key(parse_listen, "Where Prometheus asks.")
    web: str | None = key(parse_listen, "Where the web page is served. Default: nowhere.")
    state_dir: str | None = key(check_directory, "The store (`manager.db`) and the CA. [Back it up](backup.md).")
    withdraw_cap: float | None = key(
        _check_share, "The largest share of MUXes that may withdraw a VIP at once for reasons of their own."
    )
    health_lease: float | None = key(
        seconds(1, 300), "Seconds for which a node's health reports count after its last message."
    )
    node_lifetime: float | None = key(
        seconds(5, 366 * 86400),
        "Seconds for which a node's certificate is valid. The node renews it after a third of that.",
    )
    hold: float | None = key(
        seconds(0.1, 600),
        "Seconds after which a disconnected MUX counts as expired and announces nothing any more: the hold time of "
        "its BGP sessions.",
    )
    path_interval: float | None = key(
        seconds(1, 3600),
        "Connect to each VIP as a client does, once in so many seconds. Default: never. Only where this machine "
        "reaches VIPs as clients do.",
    )


class BackendTable(TomlTable):
    """``[[service.backend]]``"""

    REQUIRED: ClassVar = {
        "name": 'a name that is unique in the service, such as "web-1"',
        "address": "the backend's address",
    }

    name: str | None = key(
        check_name,
        "The backend's name, unique in the service. Names decide the places in the Maglev table, so keep them.",
    )
    address: Address | None = key(parse_address, "The backend's own address (DIP); the tunnel leads there.")
    port: int | None = key(
        _PORT,
        "Where the server listens. The agent translates VIP and port to this; give it to UDP servers also where it is "
        "the service's own. Default: not translated. Refused with a range or any port.",
    )
    weight: int | None = key(between(0, 1000), "Share of new flows, relative to the other backends. 0 takes none.")
    state: BackendState | None = key(
        word(BackendState), "`drain` keeps TCP flows and takes no new ones; `down` takes nothing."
    )
    server_id: str | None = key(
        check_server_id,
        "The server id in QUIC connection ids, in hex digits, as long as `server_id_bytes` says. Default: made of the "
        "backend's name.",
    )


class ProbeTable(TomlTable):
    """``[service.probe]``"""

    REQUIRED: ClassVar = {"type": '"tcp", "http", "udp" or "command"'}

    type: ProbeType | None = key(word(ProbeType), "How the backend is asked.")
    port: int | None = key(_PORT, "Where to ask. Default: the backend's own port. Not for `command`.")
    path: str | None = key(check_http_path, "`http`: what to get.")
    status: tuple[int, int] | None = key(parse_status, "`http`: which status counts as success, a number or a range.")
    request: str | None = key(check_payload, "`tcp`, `udp`: text that is sent first. Default: nothing.")
    expect: str | None = key(
        check_payload, "`tcp`, `udp`, `http`: text that the answer must contain. Default: any answer."
    )
    command: tuple[str, ...] | None = key(
        check_command, "`command`: the program and its arguments, without a shell. Exit code 0 is success."
    )
    interval: float | None = key(seconds(0.1, 300), "Seconds between probes.")
    timeout: float | None = key(seconds(0.05, 60), "Seconds until a probe has failed; at most `interval`.")
    rise: int | None = key(_COUNT, "Successes in a row that bring the backend up.")
    fall: int | None = key(_COUNT, "Failures in a row that take it down.")


class AnnounceTable(TomlTable):
    """``[service.announce]``"""

    policy: AnnouncePolicy | None = key(
        word(AnnouncePolicy),
        "When the VIP is announced: always, while any backend can take flows, or while at least `n` can.",
    )
    n: int | None = key(
        between(1, 4095),
        "`min-healthy`: how many backends; at most as many as there are. Required there, refused elsewhere.",
    )
    communities: tuple[str, ...] | None = key(
        check_communities, "BGP communities, plain (`65000:100`) or large (`65000:1:2`)."
    )
    med: int | None = key(between(0, 0xFFFFFFFF), "Multi-exit discriminator. Default: none.")
    prepend: int | None = key(between(0, 16), "How often the own AS is put in front, towards other ASes.")
    peers: AnnouncePeers | None = key(word(AnnouncePeers), "Which kind of BGP peers hear of the VIP.")


class QuicTable(TomlTable):
    """``[[service.quic]]``"""

    REQUIRED: ClassVar = {"id": f"a number from 0 to {CONFIGURATIONS - 1}, unique in the service"}

    id: int | None = key(
        between(0, CONFIGURATIONS - 1),
        "The configuration's number, which connection ids begin with. Several at once: keys and lengths change from "
        "one to the next.",
    )
    key_file: str | None = key(
        check_directory,
        "A file on each MUX with the key of AES-128 that ids are encrypted with, 32 hex digits, which not everybody "
        "may read. Default: ids are plain, and tell everybody which server they are of.",
    )
    server_id_bytes: int | None = key(between(1, SERVER_ID_MAX), "How long server ids are.")
    nonce_bytes: int | None = key(
        between(NONCE_MIN, 18), "How long what follows them is, which makes ids unique. Together at most 19 bytes."
    )


class ServiceTable(TomlTable):
    """``[[service]]``"""

    REQUIRED: ClassVar = {
        "name": 'a unique name, such as "web"',
        "vip": "the address that clients connect to",
        "protocol": '"tcp" or "udp"',
        "port": 'a number, a range such as "8000-8099", or 0 for any port',
    }

    name: str | None = key(check_name, "The service's name, unique in the file.")
    vip: Network | None = key(parse_vip, "The address that clients connect to, or a prefix.")
    protocol: Protocol | None = key(word(Protocol), "The protocol.")
    port: PortRange | None = key(
        parse_ports,
        "The port that clients connect to. The most specific service gets a packet: exact port, then range, then any.",
    )
    slots: int | None = key(
        check_slots, "Size of the Maglev table, a prime; at least the number of backends. Default: the MUX's."
    )
    hash: HashMode | None = key(
        word(HashMode), "What chooses the backend of a new flow: the whole 5-tuple, or the client's address alone."
    )
    mtu: int | None = key(_MTU, "MTU towards these backends, in bytes. Default: the MUX's.")
    encap: Encap | None = key(word(Encap), "The tunnel to these backends, `ipip` or `gue`. Default: the MUX's.")
    track: bool | None = key(
        check_bool, "Hosts track these connections, for a stateful firewall or published containers."
    )
    idle: int | None = key(
        _IDLE, "Seconds without a packet after which a trusted flow is forgotten. Default: the MUX's."
    )
    slow_start: float | None = key(
        seconds(1, 3600),
        "Seconds in which a backend that returns gets its weight back, in ten steps. Needs a manager. Default: at "
        "once.",
    )
    panic: float | None = key(
        _check_panic,
        "Below this share of healthy backends, by weight and by number, probes take none out; 0: they may take out "
        "all. Default: 0.5.",
    )
    # Tables of their own, read by themselves.
    quic: Any = key(None, "UDP: connection ids of QUIC that say whose a packet is: [`[[service.quic]]`](#servicequic).")
    probe: Any = key(
        None, "How backends are probed: [`[service.probe]`](#serviceprobe). Default: TCP connect, or nothing for UDP."
    )
    announce: Any = key(None, "How the VIP is announced: [`[service.announce]`](#serviceannounce).")
    backend: Any = key(None, "The backends: [`[[service.backend]]`](#servicebackend).")
