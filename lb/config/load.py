# SPDX-License-Identifier: Apache-2.0
"""Configuration files: text, then a plain dict, then the checked values of :mod:`lb.model`.

Called by the daemons at start and on reload, and by the offline tools. :func:`parse` is the one function
that decides whether a file is right; it reports every mistake at once, each with its path, such as
``service[2].backend[0].weight: must be 0 to 1000, not 1200``. Paths count from 0. Nothing later re-checks.
Whatever is wrong with a file raises :class:`lb.errors.ConfigError`. Holds no state.
"""

from __future__ import annotations

import contextlib
import difflib
import enum
import gc
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from lb.config import tables, toml
from lb.config.render import service_table as service_table  # noqa: PLC0414  offered here, beside its counterpart
from lb.config.tables import MTU_MIN6, show
from lb.errors import ConfigError
from lb.model import (
    DEFAULT_SLOTS,
    MAX_BACKENDS_PER_SERVICE,
    MAX_SERVICES,
    Address,
    AgentConfig,
    AgentSettings,
    Announce,
    AnnouncePolicy,
    Backend,
    BackendState,
    BgpFamily,
    BgpPeer,
    BgpSettings,
    Encap,
    Idle,
    IoMode,
    ManagerSettings,
    MuxConfig,
    MuxSettings,
    Network,
    Probe,
    ProbeType,
    Protocol,
    QuicIds,
    Service,
    tunnel_bytes,
)
from lb.quic_ids import BLOCK_MAX, server_id_of

#: What a file may turn out to be: a MUX's, an agent's, a manager's, or services alone.
Config = MuxConfig | AgentConfig | ManagerSettings | tuple[Service, ...]

#: Where in the file: keys and indices from the top.
Path_ = tuple[str | int, ...]

TableT = TypeVar("TableT", bound=tables.TomlTable)
KeyT = TypeVar("KeyT")

#: The table of the program that the file is for; services alone have none.
Owner = tables.MuxTable | tables.AgentTable | tables.ManagerTable | None

_PROBE = Probe(ProbeType.TCP)

_TOP = ("mux", "bgp", "agent", "manager", "service")

#: What of ``announce`` belongs to the VIP rather than to the service.
ANNOUNCED = ("communities", "med", "prepend", "peers")
#: Where a manager listens unless its file says so.
_LISTENERS = {item.name: str(item.default) for item in fields(ManagerSettings) if item.name in ("listen", "metrics")}
_EVERYWHERE = {"0.0.0.0", "[::]"}  # noqa: S104  nothing is bound to it here

#: Which types of probe use a key; the others suit every type.
_PROBE_KEYS: dict[str, tuple[ProbeType, ...]] = {
    "port": (ProbeType.TCP, ProbeType.HTTP, ProbeType.UDP),
    "path": (ProbeType.HTTP,),
    "status": (ProbeType.HTTP,),
    "request": (ProbeType.TCP, ProbeType.UDP),
    "expect": (ProbeType.TCP, ProbeType.UDP, ProbeType.HTTP),
    "command": (ProbeType.COMMAND,),
}

#: Characters from which on a text is read in pieces, and services in each.
_PIECES_FROM = 2**18
_PIECE = 100


class Kind(enum.Enum):
    """What the reader of a file needs it to be."""

    ANY = "any"
    MUX = "mux"
    AGENT = "agent"
    MANAGER = "manager"
    SERVICES = "services"


def load_mux(path: str | Path, *, offline: bool = False, manager: str | None = None) -> MuxConfig:
    """A MUX's file. ``offline`` tools never look at the interface, so for them it may be absent. ``manager``: as
    ``[manager] url`` would be, and instead of it."""
    config = parse(toml.read_text(path), Kind.MUX, file=str(path), offline=offline, manager=manager)
    assert isinstance(config, MuxConfig)  # noqa: S101  what Kind.MUX promises
    return config


def load_agent(path: str | Path, *, manager: str | None = None) -> AgentConfig:
    """A host agent's file; ``manager`` as for a MUX's."""
    config = parse(toml.read_text(path), Kind.AGENT, file=str(path), manager=manager)
    assert isinstance(config, AgentConfig)  # noqa: S101  what Kind.AGENT promises
    return config


def load_manager(path: str | Path) -> ManagerSettings:
    """A manager's file."""
    config = parse(toml.read_text(path), Kind.MANAGER, file=str(path))
    assert isinstance(config, ManagerSettings)  # noqa: S101  what Kind.MANAGER promises
    return config


def load_services(path: str | Path) -> tuple[Service, ...]:
    """A file of services alone."""
    config = parse(toml.read_text(path), Kind.SERVICES, file=str(path))
    assert isinstance(config, tuple)  # noqa: S101  what Kind.SERVICES promises
    return config


def load_any(path: str | Path) -> Config:
    """Whichever of the four the file is."""
    return parse(toml.read_text(path), Kind.ANY, file=str(path))


def parse(
    text: str,
    kind: Kind = Kind.ANY,
    *,
    file: str | None = None,
    offline: bool = False,
    manager: str | None = None,
) -> Config:
    """Decides whether a text is a right configuration; raises ConfigError with every mistake otherwise."""
    reader = _Reader(offline, manager)
    with _no_collection():
        try:
            config = reader.read(*_in_pieces(text), kind)
        except _OnlyWholeError:
            reader = _Reader(offline, manager)
            document = toml.loads(text, file)
            config = reader.read(document, document.pop("service", []), kind)
    tables.forget_addresses()
    if config is None:
        raise ConfigError(reader.in_order(), file)
    return config


def parse_service_tables(
    array: Iterable[object], owner: MuxSettings | AgentSettings | None = None
) -> tuple[Service, ...]:
    """``[[service]]`` tables as plain values, from an API, a store or a manager; ``service_table(service)`` is the
    other way. With an ``owner`` they are checked as if they stood in its file."""
    reader = _Reader(offline=False)
    with _no_collection():
        services = reader.services(array, _owner_table(owner))
    tables.forget_addresses()
    if services is None:
        raise ConfigError(reader.in_order())
    return services


def _owner_table(owner: MuxSettings | AgentSettings | None) -> Owner:
    """As much of the owner's table as services are checked against."""
    if isinstance(owner, MuxSettings):
        return tables.MuxTable({"address": owner.address, "address6": owner.address6, "slots": owner.slots})
    if isinstance(owner, AgentSettings):
        return tables.AgentTable({"address": owner.address, "address6": owner.address6})
    return None


def parse_manager_url(text: str) -> str:
    """``--manager`` in one form; raises ConfigError."""
    try:
        return tables.check_url(text)
    except ValueError as error:
        raise ConfigError([("--manager", str(error))]) from None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A large file makes millions of objects and no cycles; looking for cycles would take a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _OnlyWholeError(Exception):
    """The text is small, or wrong, or written in a way that cannot be read in pieces."""


def _in_pieces(text: str) -> tuple[dict[str, Any], Iterator[Any]]:
    """Everything before the first service, and the services: the same as from the whole text.

    Dicts of a hundred thousand backends at once would take, and leave behind as holes, twice the memory of the
    values that are made of them.
    """
    pieces = toml.cut(text) if len(text) >= _PIECES_FROM else None
    if pieces is None:
        raise _OnlyWholeError
    head = _piece(pieces[0])
    if "service" in head:
        raise _OnlyWholeError
    return head, _services_in_pieces(pieces[1])


def _services_in_pieces(pieces: list[str]) -> Iterator[Any]:
    for first in range(0, len(pieces), _PIECE):
        piece = _piece("".join(pieces[first : first + _PIECE]))
        if piece.keys() != {"service"}:
            raise _OnlyWholeError  # a table of another name after a service
        yield from piece["service"]


def _piece(text: str) -> dict[str, Any]:
    try:
        return toml.loads(text)
    except ConfigError:
        raise _OnlyWholeError from None


def format_path(path: Path_) -> str:
    """``("service", 2, "vip")`` as ``service[2].vip``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else show(part)
            text += f".{key}" if text else key
    return text


class _Reader:
    """Reads one document, gathering mistakes; used once."""

    def __init__(self, offline: bool, manager: str | None = None) -> None:
        self.mistakes: list[tuple[Path_, str]] = []
        self._offline = offline
        self._manager = manager
        self._wrong: set[Path_] = set()
        self._announces = False  # VIPs, by BGP
        # The service and backend being read: mistakes name them, for those who do not count from 0.
        self._service_raw: object = None
        self._backend_raw: object = None

    def mistake(self, path: Path_, message: str) -> None:
        self._wrong.add(path)
        if path[-1] != "name":
            message += _about(self._service_raw, self._backend_raw)
        self.mistakes.append((path, message))

    def in_order(self) -> list[tuple[str, str]]:
        """Mistakes from the top of the file to its end, as far as indices tell."""
        rank = {"mux": 0, "bgp": 1, "agent": 2, "manager": 3, "service": 4}

        def place(mistake: tuple[Path_, str]) -> tuple[int, ...]:
            path = mistake[0]
            return (rank.get(str(path[0]) if path else "", -1), *(part for part in path if isinstance(part, int)))

        return [(format_path(path), message) for path, message in sorted(self.mistakes, key=place)]

    # --- documents and tables ------------------------------------------------------------------------------------

    def read(self, document: dict[str, Any], raw_services: object, kind: Kind) -> Config | None:
        """The configuration, or None if there were mistakes; ``raw_services`` may be an iterator."""
        self._check_top(document, kind)
        self._announces = "bgp" in document
        owner: Owner = None
        idle = None
        bgp = None
        if "mux" in document and kind in (Kind.ANY, Kind.MUX):
            self._follow(document)
            owner, idle = self._mux(document.pop("mux"))
            if "bgp" in document:
                bgp = self._bgp(document.pop("bgp"), owner)
        elif "agent" in document and kind in (Kind.ANY, Kind.AGENT):
            self._follow(document)
            owner = self._agent(document.pop("agent"))
        elif "manager" in document and kind in (Kind.ANY, Kind.MANAGER):
            owner = self._table(tables.ManagerTable, document.pop("manager"), ("manager",))
        if kind is Kind.MANAGER or isinstance(owner, tables.ManagerTable):
            self._check_no_services(raw_services, "a manager's file; `lb apply -f FILE` brings services")
            if isinstance(owner, tables.ManagerTable):
                self._check_listeners(owner)
                return None if self.mistakes else ManagerSettings(**owner.given())
            return None  # [manager] is missing, or no table
        if self._manager is not None:
            self._check_no_services(raw_services, "a file with a manager; services come from the manager")
            raw_services = []
        services = self._services(raw_services, owner)
        if self.mistakes:
            return None
        if isinstance(owner, tables.MuxTable):
            given = {"interface": "", "address": None, **owner.given("idle")}
            return MuxConfig(
                MuxSettings(**given, idle=Idle() if idle is None else Idle(**idle.given())),
                services,
                bgp,
                self._manager,
            )
        if isinstance(owner, tables.AgentTable):
            return AgentConfig(
                AgentSettings(**{"muxes": (), "address": None, **owner.given()}), services, self._manager
            )
        self._check_announcements(services)
        return None if self.mistakes else services

    def services(self, array: Iterable[object], owner: Owner) -> tuple[Service, ...] | None:
        """Services alone, or None if there were mistakes."""
        services = self._services(iter(array), owner)
        return None if self.mistakes else services

    def _check_listeners(self, manager: tables.ManagerTable) -> None:
        """Two cannot listen at one address and port; what is not given is the default."""
        taken: dict[str, tuple[str, str]] = {}
        for key in ("listen", "metrics", "web"):
            address = getattr(manager, key) or _LISTENERS.get(key)
            if address is None:
                continue
            host, _, port = address.rpartition(":")
            for other, (its_host, its_port) in taken.items():
                same = host == its_host or _EVERYWHERE & {host, its_host}
                if port == its_port != "0" and same:
                    words = f"is where manager.{other} listens already, {address}; choose another port"
                    self.mistake(("manager", key), words)
                    break
            taken[key] = host, port

    def _check_announcements(self, services: tuple[Service, ...]) -> None:
        """A VIP has one announcement, so services that share it must not want different ones: a manager refuses it."""
        first: dict[Network, Service] = {}
        for i, service in enumerate(services):
            if service.announce is None:
                continue
            other = first.setdefault(service.vip, service)
            differing = [key for key in ANNOUNCED if getattr(other.announce, key) != getattr(service.announce, key)]
            if differing:
                words = f"must agree with that of service {show(other.name)} at the same VIP in {', '.join(differing)}"
                self.mistake(("service", i, "announce"), f"{words} (service {show(service.name)})")

    def _check_top(self, document: dict[str, Any], kind: Kind) -> None:
        for key in document:
            if key not in _TOP:
                self.mistake((key,), "unknown key" + _suggest(key, _TOP))
        which = {Kind.MUX: "MUX", Kind.AGENT: "host agent", Kind.MANAGER: "manager"}.get(kind)
        if which is not None and kind.value not in document:
            self.mistake((kind.value,), f"is missing; a {which}'s file has a table [{kind.value}]")
        for key in ("mux", "agent", "manager"):
            follows = key == "manager" and kind in (Kind.MUX, Kind.AGENT)
            if key in document and kind not in (Kind.ANY, Kind(key)) and not follows:
                self.mistake((key,), "has no place in this file")
        if "bgp" in document and "mux" not in document:
            self.mistake(("bgp",), "has no place in a file without [mux]; only MUXes announce")
        if kind is Kind.ANY and "mux" in document and "agent" in document:
            self.mistake(("agent",), "has no place beside [mux]; a file is either a MUX's or an agent's")

    def _check_no_services(self, raw: object, where: str) -> None:
        if next(iter(raw), None) is not None if isinstance(raw, Iterable) else True:
            self.mistake(("service",), f"has no place in {where}")

    def _table(self, shape: type[TableT], raw: object, path: Path_) -> TableT | None:
        """A table with what was right in it; mistakes are gathered and their keys left out."""
        if not isinstance(raw, dict):
            self.mistake(path, f"must be a table, not {show(raw)}")
            return None
        for key, hint in shape.REQUIRED.items():
            if key not in raw and not self._may_lack(key, shape, raw):
                self.mistake((*path, key), f"is missing: {hint}")
        known, right = shape.KEYS, {}
        for key, value in raw.items():
            try:
                right[key] = value if (check := known[key].check) is None else check(value)
            except KeyError:
                self.mistake((*path, key), "unknown key" + _suggest(key, known))
            except ValueError as error:
                self.mistake((*path, key), str(error))
        return shape(right)

    def _may_lack(self, key: str, shape: type[tables.TomlTable], raw: dict[str, Any]) -> bool:
        if key == "address" and "address6" in raw and "address6" in shape.KEYS:
            return True
        return (self._offline and key == "interface") or (self._manager is not None and key == "muxes")

    def _array(self, raw: object, path: Path_) -> list[Any]:
        """An array of tables, each still unread."""
        if isinstance(raw, list):
            return raw
        name = ".".join(str(part) for part in path if isinstance(part, str))
        wrong = f"must be an array of tables, not {show(raw)}"
        self.mistake(path, f"{wrong}; write [[{name}]] above each" if isinstance(raw, dict) else wrong)
        return []

    # --- [mux] and [agent] ---------------------------------------------------------------------------------------

    def _follow(self, document: dict[str, Any]) -> None:
        """``[manager]`` of a node; a URL from the command line goes before it."""
        if "manager" in document:
            table = self._table(tables.FollowTable, document.pop("manager"), ("manager",))
            self._manager = self._manager or (table.url if table is not None else None) or ""  # wrong, but there

    def _mux(self, raw: object) -> tuple[tables.MuxTable | None, tables.IdleTable | None]:
        table = self._table(tables.MuxTable, raw, ("mux",))
        if table is None:
            return None, None
        self._check_mtu6(table, ("mux",))
        if table.busy_poll and table.io in (IoMode.PACKET, IoMode.TUN):
            self.mistake(("mux", "busy_poll"), f'needs io = "xdp" or "auto", not "{table.io.value}"')
        idle = None if table.idle is None else self._table(tables.IdleTable, table.idle, ("mux", "idle"))
        return table, idle

    def _agent(self, raw: object) -> tables.AgentTable | None:
        table = self._table(tables.AgentTable, raw, ("agent",))
        if table is None:
            return None
        self._check_mtu6(table, ("agent",))
        path = ("agent", "muxes")
        if self._manager is not None and isinstance(raw, dict) and "muxes" in raw:
            self.mistake(path, "has no place beside a manager, who knows the MUXes; leave it out")
        if table.muxes is None:
            return table
        versions = {mux.version for mux in table.muxes}
        for mux in {mux for mux in table.muxes if table.muxes.count(mux) > 1}:
            self.mistake(path, f"names {mux} more than once")
        if 6 in versions and table.address6 is None and ("agent", "address6") not in self._wrong:
            self.mistake(path, "holds IPv6 addresses, which need agent.address6")
        if 6 not in versions and table.address6 is not None:
            self.mistake(path, "holds no IPv6 address, which agent.address6 needs")
        if 4 not in versions and table.address is not None:
            self.mistake(path, "holds no IPv4 address, which agent.address needs")
        return table

    def _check_mtu6(self, table: tables.MuxTable | tables.AgentTable, path: Path_) -> None:
        if table.address6 is not None and table.mtu is not None and table.mtu < MTU_MIN6:
            self.mistake((*path, "mtu"), f"must be at least {MTU_MIN6} where address6 is set, not {table.mtu}")

    # --- [bgp] ---------------------------------------------------------------------------------------------------

    def _bgp(self, raw: object, mux: tables.MuxTable | None) -> BgpSettings | None:
        table = self._table(tables.BgpTable, raw, ("bgp",))
        if table is None:
            return None
        array = [] if table.peer is None else self._array(table.peer, ("bgp", "peer"))
        if table.peer == []:
            self.mistake(("bgp", "peer"), "must be at least one router")
        if mux is not None and table.router_id is None and not self._has(mux, "address"):
            self.mistake(("bgp", "router_id"), "is missing: there is no mux.address, which it would be")
        peers: list[BgpPeer] = []
        names: dict[str, int] = {}
        addresses: dict[Address, int] = {}
        for i, item in enumerate(array):
            here: Path_ = ("bgp", "peer", i)
            peer = self._table(tables.PeerTable, item, here)
            if peer is None:
                continue
            self._check_first_peer(names, peer.name, i, (*here, "name"), "is also the name of")
            self._check_first_peer(addresses, peer.address, i, (*here, "address"), "is also the address of")
            self._check_peer(peer, mux, here)
            if not self.mistakes and peer.address is not None:
                own = BgpFamily.IPV4 if peer.address.version == 4 else BgpFamily.IPV6
                peers.append(BgpPeer(**{"families": (own,), **peer.given()}))
        if self.mistakes:
            return None
        return BgpSettings(peers=tuple(peers), **table.given("peer"))

    def _check_first_peer(self, seen: dict[KeyT, int], key: KeyT | None, i: int, path: Path_, message: str) -> None:
        if key is not None and seen.setdefault(key, i) != i:
            self.mistake(path, f"{message} peer[{seen[key]}]")

    def _check_peer(self, peer: tables.PeerTable, mux: tables.MuxTable | None, path: Path_) -> None:
        """A peer against its MUX."""
        if mux is None or ("mux", "address6") in self._wrong:
            return
        if peer.address is not None and peer.address in (mux.address, mux.address6):
            self.mistake((*path, "address"), f"is the MUX's own address, {peer.address}")
        for version, key, family in ((6, "address6", BgpFamily.IPV6), (4, "address", BgpFamily.IPV4)):
            if self._has(mux, key):
                continue
            if peer.address is not None and peer.address.version == version:
                self.mistake((*path, "address"), f"is IPv{version}, which needs mux.{key}")
            elif family in (peer.families or ()):
                message = f"holds {family.value}, whose next hop is mux.{key}; it is missing"
                self.mistake((*path, "families"), message)

    # --- services ------------------------------------------------------------------------------------------------

    def _services(self, raw: object, owner: Owner) -> tuple[Service, ...]:
        """All services; once there was a mistake they are only checked, not kept."""
        array = raw if isinstance(raw, Iterator) else iter(self._array(raw, ("service",)))
        default_slots = DEFAULT_SLOTS
        if isinstance(owner, tables.MuxTable):
            default_slots = owner.slots or default_slots
        services: list[Service] = []
        partly: list[_Partly] = []
        for i, item in enumerate(array):
            if i == MAX_SERVICES:
                self._service_raw = None
                self.mistake(("service",), f"must be at most {MAX_SERVICES} services")
                break
            self._service_raw = item
            table = self._table(tables.ServiceTable, item, ("service", i))
            if table is not None:
                service = self._service(i, table, partly, default_slots)
                if service is not None:
                    services.append(service)
        self._service_raw = None
        self._check_together(partly, owner)
        return tuple(services)

    def _service(self, i: int, table: tables.ServiceTable, partly: list[_Partly], default_slots: int) -> Service | None:
        """One service with its backends, checked by itself; None once there was a mistake."""
        path: Path_ = ("service", i)
        if table.mtu is not None and table.vip is not None and table.vip.version == 6 and table.mtu < MTU_MIN6:
            self.mistake((*path, "mtu"), f"must be at least {MTU_MIN6} for IPv6, not {table.mtu}")
        quic = () if table.quic is None else self._quic(table, (*path, "quic"))
        probe = None if table.probe is None else self._probe(table.probe, (*path, "probe"))
        raw_backends = [] if table.backend is None else self._array(table.backend, (*path, "backend"))
        announce = None if table.announce is None else self._announce(table, len(raw_backends), (*path, "announce"))
        slots = table.slots or default_slots
        if len(raw_backends) > MAX_BACKENDS_PER_SERVICE:
            message = f"must be at most {MAX_BACKENDS_PER_SERVICE} backends, not {len(raw_backends)}"
            self.mistake((*path, "backend"), message)
            return None
        if len(raw_backends) > slots and (*path, "slots") not in self._wrong:
            self.mistake((*path, "slots"), f"must be at least the number of backends, {len(raw_backends)}, not {slots}")
        backends, addresses = self._backends(raw_backends, table, path)
        partly.append(_Partly(i, table, addresses))
        if not self.mistakes:
            self._check_server_ids(backends, quic, path)
        if self.mistakes:
            return None
        given = table.given("backend", "probe", "announce", "quic")
        return Service(
            ports=given.pop("port"), **given, backends=tuple(backends), quic=quic, probe=probe, announce=announce
        )

    def _backends(
        self, array: list[Any], service: tables.ServiceTable, path: Path_
    ) -> tuple[list[Backend], list[Address | None]]:
        """The backends of a service, until there was a mistake; and the address of each, where it is known."""
        backends: list[Backend] = []
        addresses: list[Address | None] = []
        names: dict[str, int] = {}
        places: dict[Address, tuple[int, int | None]] = {}
        service_port = service.port.first if service.port is not None and service.port.exact else None
        for j, item in enumerate(array):
            self._backend_raw = item
            here = (*path, "backend", j)
            table = self._table(tables.BackendTable, item, here)
            addresses.append(table.address if table else None)
            if table is None:
                continue
            self._check_backend(table, service, here)
            self._check_first(names, table.name, j, (*here, "name"), "is also the name of")
            if table.address is not None:
                self._check_place(places, table.address, j, table.port or service_port, here)
            if not self.mistakes:
                backends.append(Backend(**table.given()))
        self._backend_raw = None
        return backends, addresses

    def _check_backend(self, table: tables.BackendTable, service: tables.ServiceTable, path: Path_) -> None:
        """A backend against its service."""
        ports, vip = service.port, service.vip
        if table.port is not None and ports is not None and not ports.exact:
            reason = "any port" if ports.any else "a range of ports"
            self.mistake((*path, "port"), f"cannot be translated where the service has {reason}; leave it out")
        if table.address is not None and vip is not None and table.address.version < vip.version:
            self._check_6in4(service, path)

    def _check_6in4(self, service: tables.ServiceTable, path: Path_) -> None:
        """What a link must carry of IPv6 (RFC 8200, 5) must fit in the tunnel, for nobody takes it apart on the way."""
        least = MTU_MIN6 + tunnel_bytes(4, service.encap or Encap.IPIP)
        if service.mtu is not None and service.mtu < least:
            where = (*path[:2], "mtu")
            self.mistake(where, f"must be at least {least} for IPv6 in tunnels of IPv4, not {service.mtu}")

    def _check_place(
        self, seen: dict[Address, tuple[int, int | None]], address: Address, j: int, port: int | None, path: Path_
    ) -> None:
        """A tunnel ends at an address: what comes out of it is for one process of the service, whatever the ports."""
        first, other = seen.setdefault(address, (j, port))
        if first == j:
            return
        if port == other:
            self.mistake((*path, "address"), f"and port are also those of backend[{first}]")
        else:
            self.mistake(
                (*path, "address"),
                f"is also that of backend[{first}], and a host can translate a service to one port only; give one of "
                "them an address of its own",
            )

    def _check_first(self, seen: dict[KeyT, int], key: KeyT | None, j: int, path: Path_, message: str) -> None:
        """Each key belongs to the first backend that has it."""
        if key is not None and seen.setdefault(key, j) != j:
            self.mistake(path, f"{message} backend[{seen[key]}]")

    # --- QUIC ----------------------------------------------------------------------------------------------------

    def _quic(self, service: tables.ServiceTable, path: Path_) -> tuple[QuicIds, ...]:
        """How connection ids are read; as far as they are right."""
        found: list[QuicIds] = []
        numbers: dict[int, int] = {}
        if service.protocol is Protocol.TCP:
            self.mistake(path, 'has a meaning only with protocol = "udp"')
        for j, item in enumerate(self._array(service.quic, path)):
            here = (*path, j)
            table = self._table(tables.QuicTable, item, here)
            if table is None or table.id is None:
                continue
            if numbers.setdefault(table.id, j) != j:
                self.mistake((*here, "id"), f"is also that of quic[{numbers[table.id]}]: {table.id}")
            one = QuicIds(**table.given())
            if one.server_id_bytes + one.nonce_bytes > BLOCK_MAX:
                key = "nonce_bytes" if table.nonce_bytes is not None else "server_id_bytes"
                total = one.server_id_bytes + one.nonce_bytes
                self.mistake((*here, key), f"makes {total} bytes of server id and nonce; at most {BLOCK_MAX} fit")
            found.append(one)
        return tuple(found)

    def _check_server_ids(self, backends: Sequence[Backend], quic: Sequence[QuicIds], path: Path_) -> None:
        """Each backend has an id of its own. One that drains may have that of who comes in its place."""
        lengths = {2 * one.server_id_bytes for one in quic}
        for j, backend in enumerate(backends):
            given = backend.server_id
            where = (*path, "backend", j, "server_id")
            if given is not None and not quic:
                self.mistake(where, "has a meaning only where the service has [[service.quic]]")
            elif given is not None and len(given) not in lengths:
                wanted = " or ".join(str(length // 2) for length in sorted(lengths))
                self.mistake(where, f"has {len(given) // 2} bytes, and server_id_bytes is {wanted}")
        for size in sorted(lengths):
            seen: dict[bytes, int] = {}
            for j, backend in enumerate(backends):
                if backend.state is BackendState.DRAIN:
                    continue
                server_id = server_id_of(backend.name, size // 2, backend.server_id)
                if seen.setdefault(server_id, j) != j:
                    message = f"{server_id.hex()} is also that of backend[{seen[server_id]}]; give one of them another"
                    self.mistake((*path, "backend", j, "server_id"), message)

    # --- probe and announce --------------------------------------------------------------------------------------

    def _probe(self, raw: object, path: Path_) -> Probe | None:
        table = self._table(tables.ProbeTable, raw, path)
        if table is None:
            return None
        if table.type is not None:
            self._check_probe_keys(table, table.type, path)
        interval, timeout = table.interval or _PROBE.interval, table.timeout or _PROBE.timeout
        if timeout > interval and self._wrong.isdisjoint({(*path, "interval"), (*path, "timeout")}):
            key = "timeout" if table.timeout else "interval"
            self.mistake((*path, key), f"leaves timeout ({timeout:g} s) longer than interval ({interval:g} s)")
        return None if self.mistakes else Probe(**table.given())

    def _check_probe_keys(self, table: tables.ProbeTable, kind: ProbeType, path: Path_) -> None:
        """Each type has keys of its own."""
        for key, kinds in _PROBE_KEYS.items():
            if getattr(table, key) is not None and kind not in kinds:
                self.mistake((*path, key), f'has no meaning for a probe of type "{kind.value}"; leave it out')
        if kind is ProbeType.COMMAND and table.command is None and (*path, "command") not in self._wrong:
            self.mistake((*path, "command"), "is missing: the program to run and its arguments")

    def _announce(self, service: tables.ServiceTable, backends: int, path: Path_) -> Announce | None:
        table = self._table(tables.AnnounceTable, service.announce, path)
        if table is None:
            return None
        if table.policy is AnnouncePolicy.MIN_HEALTHY:
            if table.n is None and (*path, "n") not in self._wrong:
                self.mistake((*path, "n"), "is missing: how many backends must be healthy")
            elif table.n is not None and table.n > backends:
                self.mistake((*path, "n"), f"must be at most the number of backends, {backends}, not {table.n}")
        elif table.n is not None and (*path, "policy") not in self._wrong:
            self.mistake((*path, "n"), 'has a meaning only with policy = "min-healthy"')
        return None if self.mistakes else Announce(**table.given())

    # --- what spans services -------------------------------------------------------------------------------------

    def _check_together(self, partly: list[_Partly], owner: Owner) -> None:
        self._check_names(partly)
        self._check_ties(partly)
        self._check_backends_outside_vips(partly)
        if isinstance(owner, tables.MuxTable):
            self._check_own_addresses(partly, owner, "the MUX's own address")
            self._check_mux(partly, owner)
        elif isinstance(owner, tables.AgentTable):
            self._check_own_addresses(partly, owner, "the agent's own address")

    def _check_names(self, partly: list[_Partly]) -> None:
        names: dict[str, int] = {}
        for part in partly:
            name = part.name
            if name is not None and names.setdefault(name, part.i) != part.i:
                self.mistake(("service", part.i, "name"), f"is also the name of service[{names[name]}]: {show(name)}")

    def _check_ties(self, partly: list[_Partly]) -> None:
        """Two services tie when a packet could be of both and neither is the more specific."""
        groups: dict[tuple[Network, Protocol], list[_Partly]] = defaultdict(list)
        for part in partly:
            if part.vip is not None and part.protocol is not None and part.ports is not None:
                groups[part.vip, part.protocol].append(part)
        for group in groups.values():
            for part, other in _ties(group):
                name = f" {show(other.name)}" if other.name else ""
                message = f"ties with service[{other.i}]{name}: same VIP and protocol, and the ports overlap"
                self.mistake(("service", part.i, "port"), message + part.about)

    def _check_own_addresses(
        self, partly: list[_Partly], owner: tables.MuxTable | tables.AgentTable, whose: str
    ) -> None:
        """A VIP must not take this machine's own packets."""
        for part in partly:
            vip = part.vip
            own = None if vip is None else owner.address if vip.version == 4 else owner.address6
            if vip is not None and own is not None and own in vip:
                verb = "is" if vip.prefixlen == vip.max_prefixlen else "holds"
                self.mistake(("service", part.i, "vip"), f"{verb} {whose}, {own}{part.about}")

    def _check_mux(self, partly: list[_Partly], mux: tables.MuxTable) -> None:
        """A tunnel needs an outer source, and must lead to another machine."""
        own = {mux.address, mux.address6} - {None}
        sources = {version for version, key in ((4, "address"), (6, "address6")) if self._has(mux, key)}
        for part in partly:
            if part.vip is not None and self._announces and part.vip.version not in sources:
                key = "mux.address6" if part.vip.version == 6 else "mux.address"
                message = f"is IPv{part.vip.version}, whose next hop in BGP is {key}; it is missing{part.about}"
                self.mistake(("service", part.i, "vip"), message)
            for j, address in enumerate(part.addresses):
                here: Path_ = ("service", part.i, "backend", j, "address")
                if address in own:
                    self.mistake(here, "is the MUX's own address; a MUX cannot be its own backend" + part.about)
                elif address is not None and address.version not in sources:
                    key = "mux.address6" if address.version == 6 else "mux.address"
                    self.mistake(here, f"is IPv{address.version}, which needs {key}{part.about}")

    def _has(self, mux: tables.MuxTable, key: str) -> bool:
        """Or would have, were it not wrong."""
        return getattr(mux, key) is not None or ("mux", key) in self._wrong

    def _check_backends_outside_vips(self, partly: list[_Partly]) -> None:
        """A tunnel to an address inside a VIP would come back to the MUXes for ever."""
        vips: dict[tuple[int, int], dict[int, _Partly]] = defaultdict(dict)
        for part in partly:
            vip = part.vip
            if vip is not None:
                vips[vip.version, vip.prefixlen].setdefault(int(vip.network_address), part)
        known: dict[Address, _Partly | None] = {}
        for part in partly:
            for j, address in enumerate(part.addresses):
                if address is None:
                    continue
                if address not in known:
                    known[address] = _holder(address, vips)
                holder = known[address]
                if holder is not None:
                    which = f"must be outside the VIP of service[{holder.i}], {holder.vip}; {address} is not"
                    self.mistake(("service", part.i, "backend", j, "address"), which + part.about)


class _Partly:
    """What is known of a service for the checks between services; keys that were wrong are None."""

    __slots__ = ("addresses", "i", "name", "ports", "protocol", "vip")

    def __init__(self, i: int, table: tables.ServiceTable, addresses: list[Address | None]) -> None:
        # Not the table itself: it holds what the file said of the backends, and that is large.
        self.i = i
        self.name = table.name
        self.vip = table.vip
        self.protocol = table.protocol
        self.ports = table.port
        self.addresses = addresses  # of its backends

    @property
    def about(self) -> str:
        """As _about(), for a mistake found after all services were read."""
        return f" (service {show(self.name)})" if self.name is not None else ""


def _ties(group: list[_Partly]) -> Iterator[tuple[_Partly, _Partly]]:
    """Each later service of one VIP and protocol that ties, with the one it ties with."""
    if len(group) == 1:
        return
    exact: dict[int, _Partly] = {}
    ranges: list[_Partly] = []
    any_port: _Partly | None = None
    for part in group:
        ports = part.ports
        assert ports is not None  # noqa: S101  the group holds only such
        if ports.exact:
            other = exact.setdefault(ports.first, part)
            if other is not part:
                yield part, other
        elif ports.any:
            if any_port is not None:
                yield part, any_port
            any_port = any_port or part
        else:
            ranges.append(part)
    yield from _range_ties(ranges)


def _range_ties(ranges: list[_Partly]) -> Iterator[tuple[_Partly, _Partly]]:
    """Sorted by first port, a range overlaps an earlier one exactly if it begins before the farthest end so far."""

    def ends(part: _Partly) -> tuple[int, int]:
        ports = part.ports
        assert ports is not None  # noqa: S101  ranges hold only such
        return ports.first, ports.last

    farthest: _Partly | None = None
    for part in sorted(ranges, key=ends):
        if farthest is not None and ends(part)[0] <= ends(farthest)[1]:
            yield (part, farthest) if part.i > farthest.i else (farthest, part)
        if farthest is None or ends(part)[1] > ends(farthest)[1]:
            farthest = part


def _holder(address: Address, vips: dict[tuple[int, int], dict[int, _Partly]]) -> _Partly | None:
    """The service whose VIP holds the address."""
    number, width = int(address), address.max_prefixlen
    for (version, length), networks in vips.items():
        if version == address.version:
            part = networks.get(number >> (width - length) << (width - length))
            if part is not None:
                return part
    return None


def _suggest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.lower(), list(known), 1, 0.6)
    return f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"


def _about(service: object, backend: object) -> str:
    """``(backend "web-1" of service "web")``, as far as the names are known."""
    named = []
    for what, raw in (("backend", backend), ("service", service)):
        name = raw.get("name") if isinstance(raw, dict) else None
        if isinstance(name, str):
            named.append(f"{what} {show(name)}")
    return f" ({' of '.join(named)})" if named else ""
