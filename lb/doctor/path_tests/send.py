# SPDX-License-Identifier: Apache-2.0
"""Tries the ways of a MUX with packets of its own: plain ones, ones in a tunnel, small and full. Judges nothing.

    ping      ICMP echo to the host, small and of the full MTU, never fragmented
    tunnel    a SYN for VIP:port in IP-in-IP, as the data plane sends it; the answer comes from the VIP, to us.
              Full: with data, as much as fits. A SYN may carry some; Linux answers, and leaves it unread.

The answers are taken off the wire before any filter of ours sees them; the kernel resets what nobody opened. Also
here: who answers ARP for a VIP, and what a BGP peer's port says. All need root (CAP_NET_RAW).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from lb.doctor.model.facts import ArpClaim, Datagram, Dialled, Path, WayAnswer, WayTarget
from lb.doctor.path_tests.explain import TUNNEL
from lb.model import Address

#: A packet may be lost: so many attempts, so long apart, and so long for the last answer; seconds.
ATTEMPTS, PAUSE, PATIENCE = 3, 0.15, 0.4
#: Sizes tried when the full one does not arrive: those of common links and tunnels.
SIZES = (8942, 4352, 1492, 1480, 1476, 1460, 1450, 1440, 1420, 1400, 1380, 1360, 1300, 1280, 1024, 576)
#: Source ports of our own, above those that the kernel gives out.
PORTS = range(61000, 65000)
SMALL, SOME = 64, 160  #: bytes of the packets that are not full

_ETH_P_IP, _ETH_P_ARP, _ETH_P_ALL = 0x0800, 0x0806, 0x0003
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_ICMP_FILTER = 1
_SO_ATTACH_FILTER = 26
_TCP_MD5SIG = 14
_IP = struct.Struct("!BBHHHBBH4s4s")
_TCP = struct.Struct("!HHIIBBHHH")
_ICMP = struct.Struct("!BBHHH")
_UDP = struct.Struct("!HHHH")
_DONT_FRAGMENT = 0x4000
_UNREACHABLE = {
    0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
    4: "fragmentation needed", 9: "prohibited", 10: "prohibited", 13: "prohibited",
}  # fmt: skip


@dataclass(slots=True, eq=False)
class _Way:
    """What is known of one target so far."""

    target: WayTarget
    pings: set[int] = field(default_factory=set)  #: sizes that were answered
    tunnels: dict[int, WayAnswer] = field(default_factory=dict)  #: by size
    said: str | None = None
    said_mtu: int | None = None
    answered_by: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class _Try:
    """One packet to be sent, until it is answered."""

    way: _Way
    size: int
    tunnel: bool


def paths(targets: Sequence[WayTarget], source: IPv4Address, mtu: int) -> list[Path]:
    """Tries all at once. Raises PermissionError without CAP_NET_RAW."""
    ways = [_Way(target) for target in targets]
    with contextlib.closing(_Prober(source)) as prober:
        prober.run([_Try(way, size, tunnel) for way in ways for size, tunnel in ((SMALL, False), (SMALL, True))])
        reached = [way for way in ways if SMALL in way.tunnels]
        prober.run([_Try(way, size, True) for way in reached for size in (SOME, mtu)])
        plain = [way for way in ways if SMALL in way.pings]
        prober.run([_Try(way, mtu, False) for way in plain])
        short = [way for way in plain if mtu not in way.pings or (way in reached and mtu not in way.tunnels)]
        prober.run([_Try(way, size, False) for way in short for size in SIZES if size < mtu])
    silent = [way for way in ways if way not in reached]
    with ThreadPoolExecutor(32) as dialling:
        inside = dict(zip(map(id, silent), dialling.map(_dial_inside, silent), strict=True))
        mute = [way for way in silent if not way.pings and inside[id(way)] in (None, WayAnswer.SILENT)]
        other = dict(zip(map(id, mute), dialling.map(_dial_other, mute), strict=True))
    return [
        _path(way, mtu, inside.get(id(way)), other.get(id(way), WayAnswer.ACCEPTED), way in reached) for way in ways
    ]


def datagrams(targets: Sequence[WayTarget], source: IPv4Address) -> list[Datagram]:
    """Has each UDP service asked what its probe asks, through the tunnel. Raises PermissionError without
    CAP_NET_RAW."""
    ways = [_Way(target) for target in targets]
    with contextlib.closing(_Prober(source)) as prober:
        prober.run([_Try(way, SMALL, True) for way in ways])
    return [Datagram(way.target, way.answered_by) for way in ways]


def _dial_inside(way: _Way) -> WayAnswer | None:
    """To the backend's own port, beside the tunnel."""
    port = way.target.inside
    return _dial(str(way.target.address), port, None, None, 1.0) if port is not None else None


def _dial_other(way: _Way) -> WayAnswer:
    """To some port: whoever refuses is there."""
    return _dial(str(way.target.address), way.target.port, None, None, 1.0)


def _path(way: _Way, mtu: int, inside: WayAnswer | None, plain: WayAnswer, reached: bool) -> Path:
    target = way.target
    below = [size for size in way.pings if SMALL < size < mtu]
    return Path(
        target,
        mtu,
        plain,
        None if SMALL not in way.pings else WayAnswer.ACCEPTED if mtu in way.pings else WayAnswer.SILENT,
        max(below, default=None),
        way.tunnels.get(SMALL, WayAnswer.SILENT),
        way.tunnels.get(SOME, WayAnswer.SILENT) if reached else None,
        way.tunnels.get(mtu, WayAnswer.SILENT) if reached else None,
        way.said,
        way.said_mtu,
        inside,
    )


class _Prober:
    """The sockets, and what was sent by them."""

    def __init__(self, source: IPv4Address) -> None:
        self._source = source
        self._identifier = random.randrange(1, 1 << 16)  # noqa: S311
        self._ports = itertools.cycle(random.sample(PORTS, len(PORTS)))
        self._waiting: dict[tuple[str, int], _Try] = {}
        self._sequence = itertools.count(1)
        self._icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with contextlib.ExitStack() as undo:
            undo.callback(self._icmp.close)
            self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            undo.callback(self._raw.close)
            self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
            undo.callback(self._tap.close)
            self._prepare()
            undo.pop_all()

    def _prepare(self) -> None:
        wanted = 1 << 0 | 1 << 3 | 1 << 11  # echo reply, unreachable, time exceeded
        self._icmp.setsockopt(socket.SOL_RAW if hasattr(socket, "SOL_RAW") else 255, _ICMP_FILTER,
                              struct.pack("=I", ~wanted & 0xFFFFFFFF))  # fmt: skip
        for opened in (self._icmp, self._raw):
            opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self._icmp.bind((str(self._source), 0))
        program = _answers_to(self._source, PORTS)
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
        self._tap.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )
        for opened in (self._icmp, self._raw, self._tap):
            opened.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._tap.recv(1):  # came in before there was a filter
                pass

    def close(self) -> None:
        for opened in (self._icmp, self._raw, self._tap):
            opened.close()

    def run(self, tries: Sequence[_Try]) -> None:
        """Sends each until it is answered, then listens a little longer."""
        open_ = list(tries)
        for attempt in range(ATTEMPTS):
            for item in open_:
                self._send(item)
            if open_:
                self._listen(PAUSE if attempt + 1 < ATTEMPTS else PATIENCE, open_)
            open_ = [item for item in open_ if not _answered(item)]

    def _send(self, item: _Try) -> None:
        target = item.way.target
        try:
            if item.tunnel:
                port = next(self._ports)
                self._waiting["tunnel", port] = item
                make = tunnel_packet if target.request is None else tunnel_datagram
                packet = make(self._source, target, port, item.size)
                self._raw.sendto(packet, (str(target.address), 0))
            else:
                sequence = next(self._sequence) & 0xFFFF
                self._waiting["ping", sequence] = item
                self._icmp.sendto(echo(self._identifier, sequence, item.size), (str(target.address), 0))
        except OSError as error:
            # Larger than our own link takes, or a full queue: both are packets that do not arrive.
            if error.errno not in (errno.EMSGSIZE, errno.EAGAIN, errno.ENOBUFS) and item.way.said is None:
                item.way.said = f"cannot send to {target.address}: {os.strerror(error.errno or 0).lower()}"

    def _listen(self, seconds: float, open_: Sequence[_Try]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not all(map(_answered, open_)):
            ready, _, _ = select.select([self._icmp, self._tap], [], [], left)
            for opened in ready:
                with contextlib.suppress(BlockingIOError):
                    data = opened.recv(65535)
                    (self._heard_icmp if opened is self._icmp else self._heard_answer)(data)

    def _heard_answer(self, packet: bytes) -> None:
        heard = read_answer(packet)
        item = self._waiting.get(("tunnel", heard.port)) if heard is not None else None
        if heard is None or item is None:
            return
        target = item.way.target
        if heard.source == target.vip or (target.request is not None and heard.source == target.address):
            item.way.tunnels[item.size] = heard.answer
            item.way.answered_by = heard.source

    def _heard_icmp(self, packet: bytes) -> None:
        heard = read_icmp(packet)
        if isinstance(heard, Echo) and heard.identifier == self._identifier:
            item = self._waiting.get(("ping", heard.sequence))
            if item is not None:
                item.way.pings.add(item.size)
        elif isinstance(heard, Complaint):
            for item in self._waiting.values():
                if item.way.target.address == heard.about:
                    _note(item.way, heard)


def _note(way: _Way, heard: Complaint) -> None:
    """What is said of tunnel packets goes before what is said of plain ones."""
    if heard.mtu:
        way.said_mtu, way.said = heard.mtu, f"{heard.sender} says: fragmentation needed"
    elif heard.protocol == 4 or way.said is None:
        way.said = f"{heard.sender} says: {_UNREACHABLE.get(heard.code, f'ICMP type 3 code {heard.code}')}"


def _answered(item: _Try) -> bool:
    return item.size in (item.way.tunnels if item.tunnel else item.way.pings)


# --- packets ---------------------------------------------------------------------------------------------------------


def tunnel_packet(source: IPv4Address, target: WayTarget, port: int, size: int) -> bytes:
    """A SYN for the VIP in a tunnel to the backend, ``size`` bytes in all, as the data plane would send it."""
    data = bytes(max(0, size - TUNNEL - _IP.size - _TCP.size))
    segment = _TCP.pack(port, target.port, random.getrandbits(32), 0, 5 << 4, 0x02, 64240, 0, 0) + data
    pseudo = source.packed + target.vip.packed + struct.pack("!BBH", 0, 6, len(segment))
    segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    inner = _header(source, target.vip, socket.IPPROTO_TCP, len(segment)) + segment
    return _header(source, target.address, 4, len(inner)) + inner


def tunnel_datagram(source: IPv4Address, target: WayTarget, port: int, size: int) -> bytes:
    """A UDP service's request in a tunnel to the backend; ``size`` says nothing here."""
    data = target.request or b""
    length = _UDP.size + len(data)
    datagram = _UDP.pack(port, target.port, length, 0) + data
    pseudo = source.packed + target.vip.packed + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    datagram = datagram[:6] + struct.pack("!H", checksum(pseudo + datagram) or 0xFFFF) + datagram[8:]
    inner = _header(source, target.vip, socket.IPPROTO_UDP, length) + datagram
    return _header(source, target.address, 4, len(inner)) + inner


def _header(source: IPv4Address, destination: IPv4Address, protocol: int, length: int) -> bytes:
    whole = _IP.pack(
        0x45, 0, _IP.size + length, random.getrandbits(16), _DONT_FRAGMENT, 64, protocol, 0,
        source.packed, destination.packed,
    )  # fmt: skip
    return whole[:10] + struct.pack("!H", checksum(whole)) + whole[12:]


def echo(identifier: int, sequence: int, size: int) -> bytes:
    """An echo request whose IP packet has ``size`` bytes."""
    body = bytes(max(0, size - _IP.size - _ICMP.size))
    whole = _ICMP.pack(8, 0, 0, identifier, sequence) + body
    return whole[:2] + struct.pack("!H", checksum(whole)) + whole[4:]


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment, or a datagram, to a port of ours."""

    source: IPv4Address
    port: int
    answer: WayAnswer


@dataclass(frozen=True, slots=True)
class Echo:
    identifier: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Complaint:
    """What somebody says (ICMP destination unreachable) of a packet of ours, of which he quotes the beginning."""

    sender: IPv4Address
    code: int
    mtu: int  #: with code 4, if he knows it; else 0
    about: IPv4Address  #: where our packet went
    protocol: int


def read_answer(packet: bytes) -> Segment | None:
    """Of a packet that begins with its IP header, TCP or UDP; None for whatever else it may be."""
    header = (packet[0] & 0x0F) * 4 if packet else 0
    if header >= _IP.size and len(packet) >= header + _UDP.size and packet[9] == socket.IPPROTO_UDP:
        return Segment(IPv4Address(packet[12:16]), _UDP.unpack_from(packet, header)[1], WayAnswer.ACCEPTED)
    if header < _IP.size or len(packet) < header + _TCP.size:
        return None
    _, port, _, _, _, flags, _, _, _ = _TCP.unpack_from(packet, header)
    return Segment(IPv4Address(packet[12:16]), port, WayAnswer.REFUSED if flags & 0x04 else WayAnswer.ACCEPTED)


def read_icmp(packet: bytes) -> Echo | Complaint | None:
    """Of a packet that begins with its IP header; None for whatever else it may be."""
    header = (packet[0] & 0x0F) * 4 if packet else 0
    if header < _IP.size or len(packet) < header + _ICMP.size:
        return None
    kind, code, _, first, second = _ICMP.unpack_from(packet, header)
    if kind == 0:
        return Echo(first, second)
    quoted = packet[header + _ICMP.size :]
    if kind != 3 or len(quoted) < _IP.size:
        return None
    mtu = second if code == 4 else 0
    return Complaint(IPv4Address(packet[12:16]), code, mtu, IPv4Address(quoted[16:20]), quoted[9])


def read_arp(frame: bytes) -> tuple[bytes, IPv4Address] | None:
    """Who answers for which address, of an Ethernet frame; None for whatever else it may be."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x06" or frame[20:22] != b"\0\2":
        return None
    return frame[22:28], IPv4Address(frame[28:32])


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total ^ 0xFFFF


def _answers_to(source: IPv4Address, ports: range) -> list[tuple[int, int, int, int]]:
    """Classic BPF for a socket that begins at the IP header: TCP or UDP to our address and one of our ports."""
    return [
        (0x30, 0, 0, 9),  # A = protocol
        (0x15, 1, 0, socket.IPPROTO_TCP),
        (0x15, 0, 7, socket.IPPROTO_UDP),
        (0x20, 0, 0, 16),  # A = destination
        (0x15, 0, 5, int(source)),
        (0xB1, 0, 0, 0),  # X = length of the IP header
        (0x48, 0, 0, 2),  # A = destination port
        (0x35, 0, 2, ports.start),
        (0x35, 1, 0, ports.stop),
        (0x06, 0, 0, 0xFFFF),  # take it
        (0x06, 0, 0, 0),
    ]


# --- BGP -------------------------------------------------------------------------------------------------------------


def dial_bgp(address: Address, source: Address, password: str | None) -> Dialled:
    """What port 179 of a router answers to us, without and with the password."""
    ping = isinstance(address, IPv4Address) and isinstance(source, IPv4Address) and _ping(address, source)
    where, own = str(address), str(source)
    signed = _dial(where, 179, own, password, 1.2) if password else None
    return Dialled(ping, _dial(where, 179, own, None, 1.2), signed)


def _ping(address: IPv4Address, source: IPv4Address) -> bool:
    way = _Way(WayTarget("", address, address, 1))
    with contextlib.closing(_Prober(source)) as prober:
        prober.run([_Try(way, SMALL, False)])
    return bool(way.pings)


def _dial(address: str, port: int, source: str | None, password: str | None, seconds: float) -> WayAnswer:
    """Connects and closes at once."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as dialled:
        dialled.settimeout(seconds)
        try:
            if password is not None:
                dialled.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, _signature(address, family, password))
            if source is not None:
                dialled.bind((source, 0))
            dialled.connect((address, port))
        except ConnectionRefusedError:
            return WayAnswer.REFUSED
        except OSError:
            return WayAnswer.SILENT
    return WayAnswer.ACCEPTED


def _signature(address: str, family: int, password: str) -> bytes:
    """``struct tcp_md5sig``."""
    packed = socket.inet_pton(family, address)
    where = struct.pack("=HH4s" if family == socket.AF_INET else "=HHI16s",
                        family, 0, *((packed,) if family == socket.AF_INET else (0, packed)))  # fmt: skip
    key = password.encode()
    return struct.pack("=128sBBHi80s", where, 0, 0, len(key), 0, key)


# --- ARP -------------------------------------------------------------------------------------------------------------


def claims(interface: str, vips: Iterable[IPv4Address]) -> list[ArpClaim]:
    """Who answers for these on the link. Asked as RFC 5227 probes, which change nobody's cache."""
    asked = set(vips)
    found: dict[tuple[IPv4Address, str], None] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((interface, _ETH_P_ARP))
        mac = link.getsockname()[4]
        if len(mac) != 6:
            return []
        for _ in range(2):
            for vip in asked:
                with contextlib.suppress(OSError):
                    link.send(_arp(mac, vip))
            for sender, address in _arp_answers(link, 0.2):
                if address in asked and sender != mac:
                    found[address, ":".join(f"{byte:02x}" for byte in sender)] = None
    known = _neighbours() if found else {}
    return [ArpClaim(vip, mac, known.get(mac)) for vip, mac in found]


def _arp(mac: bytes, vip: IPv4Address) -> bytes:
    return (
        b"\xff" * 6
        + mac
        + struct.pack("!HHHBBH", _ETH_P_ARP, 1, _ETH_P_IP, 6, 4, 1)
        + mac
        + bytes(4)
        + bytes(6)
        + vip.packed
    )


def _arp_answers(link: socket.socket, seconds: float) -> Iterator[tuple[bytes, IPv4Address]]:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        link.settimeout(left)
        try:
            frame = link.recv(2048)
        except TimeoutError:
            return
        answer = read_arp(frame)
        if answer is not None:
            yield answer


def _neighbours() -> dict[str, str]:
    """Address by MAC, from the kernel's table."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as netlink:
        return {
            str(message.get_attr("NDA_LLADDR")): str(message.get_attr("NDA_DST"))
            for message in netlink.get_neighbours(family=socket.AF_INET)
            if message.get_attr("NDA_LLADDR")
        }
