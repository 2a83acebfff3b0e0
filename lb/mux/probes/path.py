# SPDX-License-Identifier: Apache-2.0
"""The way of tunnel probes out of a MUX: the kernel's own sockets, but each through the tunnel of one backend.

    socket, marked ── ip rule ──► table of ours ──► TUN device ──► us: outer header ── raw socket ──► backend's host
       ▲                                                                                                   │
       └──────────────────────── reply of the VIP to the MUX's address, as to any client ◄─────────────────┘

A socket is bound to the MUX's address; its source port says whose tunnel its packets take. What the hosts and
routers have to say about tunnel packets (ICMP) is kept by backend, for the reasons of probes that fail.

:class:`ProbePath` is owned by :mod:`lb.mux.probes.tunnel_probes`. The device and the route into it go with the process;
the rule stays behind when ``lb-mux`` is killed, does no harm (its table is empty then), and is removed by the next
start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.routes import RoutesOf, parse
from lb.daemon.kernel.rtnetlink import NetlinkError
from lb.daemon.kernel.watch import Area
from lb.errors import FeatureError, IoError
from lb.model import Address, Encap, MuxSettings, tunnel_bytes
from lb.mux.hops.netlink import Netlink
from lb.mux.io.tun import ROUTE_PROTOCOL
from lb.probe.checkers import OWN_WANTS

#: Before the rules that others may have; it matches exactly our mark, so it takes nothing from them.
PRIORITY = 118
#: Upper bits of mark and table, which are one number; the lower ones tell the MUXes of one machine apart.
BASE = 0x76700000

_V4, _V6 = socket.AF_INET, socket.AF_INET6
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IPPROTO_IPIP, _IPPROTO_IPV6 = 4, 41
_IP_RECVERR = 11
_IP_HDRINCL = 3
_IPV6_RECVERR, _IPV6_HDRINCL = 25, 36
_SO_ATTACH_FILTER = 26
_MSG_ERRQUEUE = 0x2000
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_HEADER6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_DONT_FRAGMENT = 0x4000
_TTL = 64
#: Packets taken at a time, so that other tasks get their turn.
_BURST = 64

#: ICMP destination unreachable, by code.
_UNREACHABLE = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable: IP-in-IP is not accepted there",
    3: "port unreachable: GUE is not accepted there",
    4: "fragmentation needed",
    9: "prohibited",
    10: "prohibited",
    13: "prohibited",
}


#: The same of ICMPv6.
_UNREACHABLE6 = {
    0: "no route to destination",
    1: "prohibited",
    3: "address unreachable",
    4: "port unreachable: GUE is not accepted there",
    5: "prohibited",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What is ours in the kernel, of one MUX."""

    device: str
    mark: int  #: also the number of the routing table


def names(mux: str) -> Names:
    """Several MUXes may run on one machine."""
    number = zlib.crc32(mux.encode()) & 0xFFF
    return Names(f"vipmux-probe{number:03x}", BASE + number)


class TunnelTo(NamedTuple):
    """The tunnel of a backend."""

    address: Address
    encap: Encap = Encap.IPIP


def tunnel_packet(inner: bytes, to: TunnelTo, settings: MuxSettings, entropy: int = 0) -> bytes:
    """As the data plane sends it (native/services/snapshot/encap.h); an IPv4 header's identification and checksum are
    left to the kernel. ``entropy``: of the flow inside."""
    four = inner[0] >> 4 == 4
    tos = inner[1] if four else (inner[0] & 15) << 4 | inner[1] >> 4
    protocol, payload = (_IPPROTO_IPIP if four else _IPPROTO_IPV6), inner
    if to.encap is Encap.GUE:
        header = bytes([0, protocol, 0, 0]) if settings.gue_variant == 0 else b""
        length = 8 + len(header) + len(inner)
        payload = _UDP.pack(0xC000 | entropy & 0x3FFF, settings.gue_port, length, 0) + header + inner
        protocol = socket.IPPROTO_UDP
    source = settings.source(to.address)
    assert source is not None  # noqa: S101  asked before
    if to.address.version == 6:
        first = 6 << 28 | tos << 20 | entropy & 0xFFFFF
        return _HEADER6.pack(first, len(payload), protocol, _TTL, source.packed, to.address.packed) + payload
    flags = int.from_bytes(inner[6:8]) & _DONT_FRAGMENT if four else _DONT_FRAGMENT
    length = _HEADER.size + len(payload)
    return _HEADER.pack(0x45, tos, length, 0, flags, _TTL, protocol, 0, source.packed, to.address.packed) + payload


def source_port(inner: bytes) -> tuple[int, int, int] | None:
    """IP version, protocol and source port of a packet of ours; None for whatever else the kernel sent into the
    device."""
    version = inner[0] >> 4 if inner else 0
    if version == 6 and len(inner) >= 44 and inner[6] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return 6, inner[6], int.from_bytes(inner[40:42])
    header = (inner[0] & 0x0F) * 4 if inner else 0
    if header < 20 or version != 4 or len(inner) < header + 4:
        return None
    if int.from_bytes(inner[6:8]) & 0x1FFF:  # a later fragment has no ports
        return None
    return 4, inner[9], int.from_bytes(inner[header : header + 2])


class ProbePath:
    """See the module's text. While it is open, what it has put into the kernel is kept by
    :mod:`lb.daemon.kernel.keeper`."""

    areas = Area.LINK | Area.ROUTE | Area.RULE
    interval = 10.0

    def __init__(self, settings: MuxSettings, netlink: Netlink, lost: asyncio.Event) -> None:
        """``lost`` is set when somebody takes the device away; see :attr:`is_lost`."""
        self._lock = asyncio.Lock()  # the keeper must not look while it is half open
        self._routes = RoutesOf(ROUTE_PROTOCOL)
        self.names = names(settings.name)
        self._settings = settings
        self._families = [f for f, own in ((_V4, settings.address), (_V6, settings.address6)) if own is not None]
        self._netlink = netlink
        self._lost = lost
        #: The device is gone, though we did not close it: close and open again.
        self.is_lost = False
        self._tun: int | None = None
        self._raws: dict[tuple[int, int], socket.socket] = {}  # by IP version and protocol of the outer header
        # IP version, protocol and source port -> tunnel; ports come again
        self._ways: dict[tuple[int, int, int], TunnelTo] = {}
        self._complaints: dict[Address, tuple[float, str]] = {}  # by backend: when, what
        self._unsent: dict[Address, tuple[float, str]] = {}  # by backend: when this machine did not send, and why

    @property
    def is_open(self) -> bool:
        return self._tun is not None

    async def open(self) -> None:
        """Raises IoError or FeatureError, with nothing left behind."""
        async with self._lock:
            await self._open()

    async def _open(self) -> None:
        try:
            self._tun = self._open_tun()
            await self._route()
        except (IoError, FeatureError):
            await self._close()
            raise
        asyncio.get_running_loop().add_reader(self._tun, self._forward)

    async def repair(self) -> bool:
        """Removes the rule that a killed predecessor left; whether there was one."""
        found = await self._rules()
        for family, priority in found:
            await self._rule("del", priority, family)
        return bool(found)

    async def _rules(self) -> list[tuple[int, int]]:
        """Family and priority of our rules; one of each family, if all is well."""
        mark = self.names.mark
        return [
            (family, rule.get_attr("FRA_PRIORITY") or 0)
            for family in self._families
            for rule in await self._netlink.dump("rule", family=family)
            if rule.get_attr("FRA_FWMARK") == mark and rule.get_attr("FRA_TABLE") == mark
        ]

    async def close(self) -> None:
        """The rule first, so that at no time marked packets go elsewhere; then the device, with its route."""
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._tun is not None:
            loop.remove_reader(self._tun)
            await self.repair()
            os.close(self._tun)
            self._tun = None
        for raw in self._raws.values():
            loop.remove_reader(raw.fileno())
            raw.close()
        self._raws.clear()
        self._routes.close()
        self._ways.clear()
        self.is_lost = False

    # --- kept --------------------------------------------------------------------------------------------------------

    async def look(self) -> Sequence[Difference]:
        """Nothing where it is not open, or the device is lost, which is heard of by reading from it."""
        async with self._lock:
            links, _ = await self._netlink.machine()
            link = links.get(self._index()) if self._tun is not None else None
            if link is None or self.is_lost:
                return ()
            found: list[Difference] = []
            if not link.up:
                found.append(Difference("interface", f"device {link.name}", "was set down"))
            rules = {family for family, _ in await self._rules()}
            for family in self._families:
                routes = parse(self._routes.dump(family))
                if not any((route.table, route.ifindex) == (self.names.mark, link.index) for route in routes):
                    found.append(Difference("route", f"route of probes into {link.name}"))
            if rules != set(self._families):
                found.append(Difference("rule", f"ip rule of probes, fwmark {self.names.mark:#x}"))
            return found

    async def put_back(self, differences: Sequence[Difference]) -> None:
        del differences
        async with self._lock:
            if self._tun is not None and not self.is_lost:
                await self._route()

    def _index(self) -> int:
        try:
            return socket.if_nametoindex(self.names.device)
        except OSError:
            return 0

    # --- for probes --------------------------------------------------------------------------------------------------

    def sockets(self, to: TunnelTo, version: int) -> TunnelSockets:
        """``version``: of the VIP that is asked."""
        return TunnelSockets(self, to, version)

    @contextlib.contextmanager
    def leading_to(self, kind: socket.SocketKind, to: TunnelTo, version: int) -> Iterator[socket.socket]:
        """What it sends goes through the tunnel of the backend. The way stays after it: closing sends as well."""
        family, own = (_V4, self._settings.address) if version == 4 else (_V6, self._settings.address6)
        with socket.socket(family, kind | socket.SOCK_NONBLOCK) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.names.mark)
            opened.bind((str(own), 0))
            protocol = socket.IPPROTO_TCP if kind is socket.SOCK_STREAM else socket.IPPROTO_UDP
            self._ways[version, protocol, opened.getsockname()[1]] = to
            yield opened

    def complaint(self, backend: Address, since: float) -> str | None:
        """What was said of the way to the backend, not before ``since``."""
        at, text = self._complaints.get(backend, (0.0, ""))
        return text if at >= since and text else None

    def unsent(self, backend: Address, since: float) -> str | None:
        """Why this machine did not send a packet to the backend, not before ``since``; None: it sent them all."""
        at, text = self._unsent.get(backend, (0.0, ""))
        return text if at >= since and text else None

    # --- packets -----------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        assert self._tun is not None  # noqa: S101  it is what became readable
        for _ in range(_BURST):
            try:
                inner = os.read(self._tun, 65535)
            except BlockingIOError:
                return
            except OSError:  # somebody took the device away
                asyncio.get_running_loop().remove_reader(self._tun)
                self.is_lost = True
                self._lost.set()
                return
            came = source_port(inner)
            to = self._ways.get(came) if came is not None else None
            if came is not None and to is not None:
                self._send(tunnel_packet(inner, to, self._settings, entropy=came[2]), to.address)

    def _send(self, packet: bytes, backend: Address) -> None:
        try:
            raw = self._raw(backend.version, packet[9] if backend.version == 4 else packet[6])
        except IoError as error:
            self._own_want(backend, str(error))
            return
        for attempt in range(2):
            try:
                raw.sendto(packet, (str(backend), 0))
                return
            except BlockingIOError:
                self._own_want(backend, "the socket for tunnel packets is full")
                return
            except OSError as error:
                # The first may be what ICMP said of an earlier packet, which says nothing of this one.
                if attempt and error.errno in OWN_WANTS:
                    self._own_want(backend, f"cannot send to {backend}: {os.strerror(error.errno or 0).lower()}")
                elif attempt:
                    self._complain(backend, f"cannot send to {backend}: {os.strerror(error.errno or 0).lower()}")
                self._listen(raw)

    def _listen(self, raw: socket.socket) -> None:
        """Takes what ICMP says of tunnel packets off a raw socket's queue of errors."""
        raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        for _ in range(_BURST):
            try:
                quoted, ancillary, _, _ = raw.recvmsg(128, 512, _MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, data in ancillary:
                if level == socket.IPPROTO_IP and kind == _IP_RECVERR and len(quoted) >= _HEADER.size:
                    self._heard(IPv4Address(quoted[16:20]), data)
                elif level == socket.IPPROTO_IPV6 and kind == _IPV6_RECVERR and len(quoted) >= _HEADER6.size:
                    self._heard(IPv6Address(quoted[24:40]), data)

    def _heard(self, backend: Address, extended: bytes) -> None:
        """One ``struct sock_extended_err``, followed by who sent it."""
        code, origin, icmp_type, icmp_code = struct.unpack_from("=IBBB", extended)
        sender: Address = backend
        if origin == _ORIGIN_ICMP:
            what = _UNREACHABLE.get(icmp_code) if icmp_type == 3 else None
            sender = IPv4Address(extended[20:24]) if len(extended) >= 24 else backend
            self._complain(backend, f"{sender} says: {what or f'ICMP type {icmp_type} code {icmp_code}'}")
        elif origin == _ORIGIN_ICMP6:
            what = _UNREACHABLE6.get(icmp_code) if icmp_type == 1 else "packet too big" if icmp_type == 2 else None
            sender = IPv6Address(extended[24:40]) if len(extended) >= 40 else backend
            self._complain(backend, f"{sender} says: {what or f'ICMPv6 type {icmp_type} code {icmp_code}'}")
        elif code:
            self._complain(backend, f"cannot send to {backend}: {os.strerror(code).lower()}")

    def _own_want(self, backend: Address, text: str) -> None:
        self._unsent[backend] = (asyncio.get_running_loop().time(), text)

    def _complain(self, backend: Address, text: str) -> None:
        self._complaints[backend] = (asyncio.get_running_loop().time(), text)

    # --- the kernel's side -------------------------------------------------------------------------------------------

    def _raw(self, version: int, protocol: int) -> socket.socket:
        """Sends whole packets. Of the tunnels' protocol, for ICMP about their packets to come to it; it takes in
        nothing."""
        raw = self._raws.get((version, protocol))
        if raw is not None:
            return raw
        try:
            raw = socket.socket(_V4 if version == 4 else _V6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            raise IoError(f"cannot open a raw socket for probes: {os.strerror(error.errno or 0).lower()}") from None
        nothing = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF: return 0
        raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(nothing)))
        if version == 4:
            raw.setsockopt(socket.IPPROTO_IP, _IP_HDRINCL, 1)
            raw.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        self._raws[version, protocol] = raw
        asyncio.get_running_loop().add_reader(raw.fileno(), self._listen, raw)
        return raw

    def _open_tun(self) -> int:
        try:
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise FeatureError(f"/dev/net/tun cannot be opened: {reason}; load the module tun") from None
        try:
            request = struct.pack("16sH22x", self.names.device.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(tun, _TUNSETIFF, request)
        except OSError as error:
            os.close(tun)
            reason = os.strerror(error.errno or 0).lower()
            raise IoError(f"cannot make the TUN device {self.names.device}: {reason}") from None
        return tun

    async def _route(self) -> None:
        link = await self._netlink.link(self.names.device)
        if link is None:
            raise IoError(f"the TUN device {self.names.device} vanished while it was set up")
        self._silence()
        ipr = self._netlink.ipr
        try:
            await self.repair()
            await ipr.link("set", index=link.index, mtu=self._mtu(), state="up")
            table = self.names.mark
            for family in self._families:
                to = {"dst": "0.0.0.0/0", "scope": 253} if family == _V4 else {"dst": "::/0", "family": _V6}
                await ipr.route("replace", oif=link.index, table=table, proto=ROUTE_PROTOCOL, **to)
                await self._rule("add", PRIORITY, family)
        except NetlinkError as error:
            raise IoError(f"cannot route probes into {self.names.device}: {error}") from None

    def _mtu(self) -> int:
        """What fits in every tunnel that there may be; of IPv6 no less than its least (RFC 8200, 5)."""
        widest = tunnel_bytes(6 if _V6 in self._families else 4, Encap.GUE)
        return max(self._settings.mtu - widest, 1280 if _V6 in self._families else 68)

    def _silence(self) -> None:
        """Otherwise the kernel sends of its own into the device. Where there is no IPv6, it does not."""
        here = Path(f"/proc/sys/net/ipv6/conf/{self.names.device}")
        with contextlib.suppress(OSError):
            (here / "addr_gen_mode").write_text("1")
            (here / "disable_ipv6").write_text("0" if _V6 in self._families else "1")

    async def _rule(self, command: str, priority: int, family: int) -> None:
        number = self.names.mark
        try:
            await self._netlink.ipr.rule(
                command, family=family, priority=priority, fwmark=number, fwmask=0xFFFFFFFF, table=number
            )
        except NetlinkError as error:
            if command == "add" or error.code not in (errno.ENOENT, errno.ESRCH):
                raise


class TunnelSockets:
    """Sockets for one probe, and what was said of their way."""

    def __init__(self, path: ProbePath, to: TunnelTo, version: int) -> None:
        self._path = path
        self._to = to
        self._version = version
        self._began = asyncio.get_running_loop().time()

    def open(self, kind: socket.SocketKind) -> contextlib.AbstractContextManager[socket.socket]:
        return self._path.leading_to(kind, self._to, self._version)

    @property
    def unsent(self) -> str | None:
        return self._path.unsent(self._to.address, self._began)

    @property
    def complaint(self) -> str | None:
        return self._path.complaint(self._to.address, self._began)
