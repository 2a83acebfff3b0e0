# SPDX-License-Identifier: Apache-2.0
"""ICMP about packets of our tunnels, from routers and hosts between us and a backend: read, judged, told on. Pure.

Whoever can send to this MUX can forge such a message, so it counts only where it quotes a packet that this MUX would
have sent: from its own address to the far end of a tunnel it has, of that tunnel's kind, not cut, to a VIP that it
serves. What becomes of it (RFC 2003, 4; RFC 2473, 8):

=========================================  ==========================================================================
fragmentation needed, packet too big       remembered as the tunnel's MTU: the next packet that does not fit is
                                           answered with what does (RFC 2003, 5.1)
net, host, protocol, port unreachable,     the tunnel is unreachable; the sender is told that the VIP's host is, where
prohibited, time exceeded                  ``mux.unserved`` lets the MUX answer and enough is quoted
source route failed, redirect, quench,     nothing: they are about the tunnel, and its own business
parameter problem, time to reassemble
=========================================  ==========================================================================

Used by :mod:`lb.mux.hops.tunnel_watch`; what is remembered of it is :mod:`lb.mux.hops.soft_state`.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lb.model import Address, Encap, MuxSettings

#: No less is believed: what Linux believes of IPv4, and the least of any IPv6 link (RFC 8200, 5).
MTU_FLOOR = {4: 552, 6: 1280}
#: The length of a packet whose header says 0: a kernel on the way has merged more than that can hold.
MERGED = 1 << 16
#: Of routers that do not say what fits (RFC 1191, 7): the next lower of these.
_PLATEAUS = (17914, 8166, 4352, 2002, 1492, 1006)

_IP = struct.Struct("!BBHHHBBH4s4s")
_IP6 = struct.Struct("!IHBB16s16s")
_ICMP = struct.Struct("!BBHHH")
_IN_IP = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}
_DONT_FRAGMENT, _OFFSET = 0x4000, 0x1FFF
_UDP_BYTES, _GUE_BYTES = 8, 4
_FIRST_PORT = 0xC000  #: of the tunnel's UDP, see native/services/snapshot/encap.c
_TTL = 64
#: How long an error may be (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
_ANSWER_MAX = {4: 576, 6: 1280}

#: ICMP destination unreachable, by code; what is not here is not listened to.
_UNREACHABLE = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable: IP-in-IP is not accepted there",
    3: "port unreachable: GUE is not accepted there",
    6: "network unknown",
    7: "host unknown",
    9: "prohibited",
    10: "prohibited",
    13: "prohibited",
}
_UNREACHABLE6 = {
    0: "no route to destination",
    1: "prohibited",
    3: "address unreachable",
    4: "port unreachable: GUE is not accepted there",
    5: "prohibited",
    6: "no route to destination",
}
_LOOP = "the packet's time was up: its way there is a loop"


class ErrorKind(enum.Enum):
    """What an error says of a tunnel."""

    TOO_BIG = "too_big"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class TunnelError:
    """What somebody says of a packet that we sent into a tunnel."""

    kind: ErrorKind
    far_end: Address  #: of the tunnel
    sender: Address
    text: str
    mtu: int = 0  #: of the way there, with TOO_BIG: not below the floor
    inner: bytes = b""  #: the packet in the tunnel, as far as it is quoted

    @property
    def words(self) -> str:
        return f"{self.sender} says: {self.text}"


@dataclass(frozen=True, slots=True)
class Outer:
    """The outer header that an error quotes."""

    source: Address
    far_end: Address
    encap: Encap
    version: int  #: of the packet inside
    length: int  #: of the whole packet, as its header says
    may_be_cut: bool
    inner: bytes


@dataclass(frozen=True, slots=True)
class OwnTunnels:
    """What this MUX sends, to tell its own packets by."""

    settings: MuxSettings
    has: Callable[[Address, Encap], bool]  #: a tunnel of this kind leads there
    serves: Callable[[Address], bool]  #: a VIP of ours

    def would_send(self, outer: Outer) -> bool:
        """Whether an error that quotes this may be about a packet of ours."""
        if outer.source != self.settings.source(outer.far_end) or not self.has(outer.far_end, outer.encap):
            return False
        vip = destination(outer.version, outer.inner)
        return vip is None or self.serves(vip)


def read_error(message: bytes, sender: Address, tunnels: OwnTunnels) -> TunnelError | None:
    """Of a whole ICMP message, of the sender's family; None: it says nothing of a tunnel of ours."""
    if len(message) < _ICMP.size or (sender.version == 4 and checksum(message)):
        return None
    kind, code, _, high, low = _ICMP.unpack_from(message)
    too_big, text = _says(sender.version, kind, code)
    if text is None:
        return None
    outer = read_outer(message[_ICMP.size :], sender.version, tunnels.settings)
    if outer is None or not tunnels.would_send(outer):
        return None
    if not too_big:
        return TunnelError(ErrorKind.UNREACHABLE, outer.far_end, sender, text, inner=outer.inner)
    mtu = fits(low if sender.version == 4 else high << 16 | low, outer)
    return TunnelError(ErrorKind.TOO_BIG, outer.far_end, sender, text, mtu, outer.inner) if mtu else None


def _says(version: int, kind: int, code: int) -> tuple[bool, str | None]:
    """Whether something did not fit, and in words; None: nothing that counts."""
    if version == 4:
        if kind == 3:
            return code == 4, "fragmentation needed" if code == 4 else _UNREACHABLE.get(code)
        return False, _LOOP if (kind, code) == (11, 0) else None
    if kind == 2:
        return True, "packet too big"
    if kind == 1:
        return False, _UNREACHABLE6.get(code)
    return False, _LOOP if (kind, code) == (3, 0) else None


def fits(told: int, outer: Outer) -> int:
    """The MTU to remember, where this is what was told (0: the router does not say); 0: it makes no sense."""
    if outer.may_be_cut:
        return 0
    if not told:
        told = next((size for size in _PLATEAUS if size < outer.length), 0)
    if told >= outer.length:
        return 0  # the packet would have fitted
    return max(told, MTU_FLOOR[outer.far_end.version])


def read_outer(quoted: bytes, version: int, settings: MuxSettings) -> Outer | None:
    """The header that the data plane writes (native/services/snapshot/encap.h); None: it does not write this."""
    if version == 4:
        if len(quoted) < _IP.size:
            return None
        first, _, length, _, flags, ttl, protocol, _, source, to = _IP.unpack_from(quoted)
        if first != 0x45 or flags & ~_DONT_FRAGMENT or ttl > _TTL:
            return None
        ends: tuple[Address, Address] = (IPv4Address(source), IPv4Address(to))
        header, length, may_be_cut = _IP.size, length or MERGED, not flags & _DONT_FRAGMENT
    else:
        if len(quoted) < _IP6.size:
            return None
        word, payload, protocol, ttl, source, to = _IP6.unpack_from(quoted)
        if word >> 28 != 6 or ttl > _TTL:
            return None
        ends = (IPv6Address(source), IPv6Address(to))
        header, length, may_be_cut = _IP6.size, _IP6.size + (payload or MERGED), False
    inside = _inside(quoted[header:], protocol, settings)
    return Outer(*ends, inside[0], inside[1], length, may_be_cut, inside[2]) if inside is not None else None


def _inside(rest: bytes, protocol: int, settings: MuxSettings) -> tuple[Encap, int, bytes] | None:
    """The tunnel, the version of the packet in it, and what is quoted of that."""
    encap = Encap.IPIP
    if protocol == socket.IPPROTO_UDP:
        encap, header = Encap.GUE, _UDP_BYTES + (_GUE_BYTES if settings.gue_variant == 0 else 0)
        if len(rest) < header:  # eight bytes of it are quoted: the ports, and no more
            return _bare_udp(rest, settings)
        if _bare_udp(rest, settings) is None:
            return None
        if settings.gue_variant == 0 and (rest[_UDP_BYTES] or rest[_UDP_BYTES + 2 : header] != b"\0\0"):
            return None
        protocol = rest[_UDP_BYTES + 1] if settings.gue_variant == 0 else 0
        rest = rest[header:]
        if not protocol and rest:
            protocol = _IN_IP.get(rest[0] >> 4, 0)
        elif not protocol:
            return encap, 0, b""
    version = next((version for version, number in _IN_IP.items() if number == protocol), None)
    if version is None or (rest and rest[0] >> 4 != version):
        return None
    return encap, version, rest


def _bare_udp(rest: bytes, settings: MuxSettings) -> tuple[Encap, int, bytes] | None:
    if len(rest) < _UDP_BYTES:
        return None
    source, to = struct.unpack_from("!HH", rest)
    return (Encap.GUE, 0, b"") if source >= _FIRST_PORT and to == settings.gue_port else None


def destination(version: int, packet: bytes) -> Address | None:
    """Where a packet goes of which the beginning is at hand; None: that does not say."""
    if version == 4 and len(packet) >= 20:
        return IPv4Address(packet[16:20])
    if version == 6 and len(packet) >= 40:
        return IPv6Address(packet[24:40])
    return None


# --- told on ---------------------------------------------------------------------------------------------------------


def told_on(error: TunnelError) -> tuple[bytes, Address] | None:
    """What the sender of the packet in the tunnel is told, and who that is: its host is unreachable, says the VIP
    (RFC 2003, 4.1 and 4.4; RFC 2473, 8). None: nobody is told anything.

    Only of TCP and UDP whose ports are quoted; an IPv4 header's identification and checksum are left to the kernel.
    """
    inner = error.inner
    version = inner[0] >> 4 if inner else 0
    header = _whole_header(version, inner)
    to = _sender(version, inner) if header else None
    vip = destination(version, inner)
    if error.kind is not ErrorKind.UNREACHABLE or to is None or vip is None:
        return None
    room = _ANSWER_MAX[version] - (_IP.size if version == 4 else _IP6.size) - _ICMP.size
    if version == 4:
        message = _ICMP.pack(3, 1, 0, 0, 0) + inner[:room]
        message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        return _IP.pack(0x45, 0, _IP.size + len(message), 0, 0, _TTL, 1, 0, vip.packed, to.packed) + message, to
    message = _ICMP.pack(1, 3, 0, 0, 0) + inner[:room]
    pseudo = vip.packed + to.packed + struct.pack("!II", len(message), socket.IPPROTO_ICMPV6)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return _IP6.pack(6 << 28, len(message), socket.IPPROTO_ICMPV6, _TTL, vip.packed, to.packed) + message, to


def _whole_header(version: int, inner: bytes) -> int:
    """The length of its IP header, of a first TCP or UDP packet of which eight bytes more are there; 0: it is none."""
    if version == 4 and len(inner) >= _IP.size:
        header, protocol = (inner[0] & 15) * 4, inner[9]
        later = int.from_bytes(inner[6:8]) & _OFFSET
    elif version == 6 and len(inner) >= _IP6.size:
        header, protocol, later = _IP6.size, inner[6], 0
    else:
        return 0
    known = protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and not later and header >= _IP.size
    return header if known and len(inner) >= header + 8 else 0


def _sender(version: int, inner: bytes) -> Address | None:
    """One machine that may be told something."""
    source: Address = IPv4Address(inner[12:16]) if version == 4 else IPv6Address(inner[8:24])
    nobody = source.is_multicast or source.is_unspecified or source.is_loopback or source.is_link_local
    reserved = version == 4 and (source.is_reserved or int(source) >> 24 == 0)
    return None if nobody or reserved else source


def checksum(data: bytes) -> int:
    """RFC 1071; zero of data that has its own in it."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total ^ 0xFFFF
