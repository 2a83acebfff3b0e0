# SPDX-License-Identifier: Apache-2.0
"""What conntrack remembers of flows to our services, and which of it is wrong by now. Reads and removes by netlink.

A flow's translation is decided with its first packet and lives as long as it has packets. When a UDP service moves to
another port, a client that keeps its source port would therefore be sent to the old one for as long as it sends. So
after a change such flows are forgotten, and their next packet is a first one again (:class:`Expected`, which is pure).
A TCP connection is left alone, for it may well live on with the old process; only a SYN that nobody has answered is
forgotten.

:class:`ConntrackSocket` is the edge, used by :class:`agent.host.linux.LinuxHost`. It asks the kernel for the flows of
one service at a time where there are few, and for all where there are many; kernels before 5.8 give all of them in
either case.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from agent.rules.local_services import OwnService
from lb.daemon.kernel.netlink_bytes import HEADER, NESTED, attribute, attributes, messages
from lb.errors import FeatureError, IoError, PrivilegeError
from lb.model import Address, Network, PortRange, Protocol

#: For more places than this, one look at all flows is cheaper than one look at each.
PLACES_ONE_BY_ONE = 16
#: Flows that are removed with one system call.
BATCH = 256

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ZONE, _FILTER = 1, 2, 3, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SRC = {4: 1, 6: 3}
_IP_DST = {4: 2, 6: 4}
_PROTO_NUMBER, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS = 1
_FLAG_IP_DST, _FLAG_PROTO_NUMBER, _FLAG_DST_PORT = 1 << 1, 1 << 3, 1 << 5
_SEEN_REPLY = 1 << 1
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_SECONDS = 10.0
_RECEIVE = 1 << 18


@dataclass(frozen=True, slots=True)
class FlowTarget:
    """Where flows of a service go to: what of a service decides which packets are its."""

    vip: Network
    protocol: Protocol
    ports: PortRange

    @classmethod
    def of(cls, own: OwnService) -> FlowTarget:
        return cls(own.vip, own.protocol, own.ports)


@dataclass(frozen=True, slots=True)
class ConntrackEntry:
    """One entry of conntrack, of a protocol that has ports."""

    version: int
    protocol: int
    destination: bytes  #: where its first packet went
    port: int
    answers_from: bytes  #: where replies to it come from: the target of its translation, if it has one
    answers_port: int
    answered: bool
    key: bytes = b""  #: the attributes by which the kernel knows it


def changed_places(old: Iterable[OwnService] | None, new: Iterable[OwnService]) -> frozenset[FlowTarget]:
    """Where flows may have a translation of before; ``old`` None: nobody knows what was before."""
    now = {FlowTarget.of(own): (own.port, own.track) for own in new}
    if old is None:
        return frozenset(now)
    before = {FlowTarget.of(own): (own.port, own.track) for own in old}
    return frozenset(place for place in now.keys() | before.keys() if now.get(place) != before.get(place))


class Expected:
    """What the services of now would make of a flow."""

    def __init__(self, services: Iterable[OwnService], addresses: Iterable[Address]) -> None:
        """``services``: the most specific first; ``addresses``: the host's own, to which is translated."""
        self._exact: dict[tuple[int, bytes, int], OwnService] = {}
        self._wide: list[OwnService] = []
        for own in services:
            if own.ports.exact and own.vip.prefixlen == own.vip.max_prefixlen:
                self._exact[own.protocol.number, own.vip.network_address.packed, own.ports.first] = own
            else:
                self._wide.append(own)
        self._own: dict[int, bytes] = {address.version: address.packed for address in addresses}

    def service(self, flow: ConntrackEntry) -> OwnService | None:
        """Whose the flow is."""
        found = self._exact.get((flow.protocol, flow.destination, flow.port))
        return found or next((own for own in self._wide if holds(FlowTarget.of(own), flow)), None)

    def is_stale(self, flow: ConntrackEntry) -> bool:
        """Would its first packet be treated otherwise today?"""
        if flow.protocol == Protocol.TCP.number and flow.answered:
            return False
        own = self.service(flow)
        if own is None or not own.tracked:
            return True
        here = self._own.get(flow.version)
        if own.port is None:  # the host's own rules may have translated it, we must not have
            return flow.answers_from == here
        return (flow.answers_from, flow.answers_port) != (here, own.port)


def holds(place: FlowTarget, flow: ConntrackEntry) -> bool:
    """Does the flow go there?"""
    return (
        place.protocol.number == flow.protocol
        and place.vip.version == flow.version
        and place.ports.first <= flow.port <= place.ports.last
        and ip_address(flow.destination) in place.vip
    )


class ConntrackSocket:
    """A socket to the kernel's table, for one thread; ``with`` closes it."""

    def __init__(self) -> None:
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        except OSError as error:
            raise _sentence(error.errno or 0) from None
        self._socket.bind((0, 0))
        self._socket.settimeout(_SECONDS)
        self._sequence = 0

    def __enter__(self) -> ConntrackSocket:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def flows(self, places: Collection[FlowTarget]) -> Iterator[ConntrackEntry]:
        """The flows that go to these places."""
        if len(places) <= PLACES_ONE_BY_ONE:
            for place in places:
                yield from (flow for flow in self._dump(place.vip.version, _question(place)) if holds(place, flow))
            return
        exact = {
            (place.protocol.number, place.vip.network_address.packed, place.ports.first)
            for place in places
            if place.ports.exact and place.vip.prefixlen == place.vip.max_prefixlen
        }
        wide = [p for p in places if not p.ports.exact or p.vip.prefixlen != p.vip.max_prefixlen]
        for version in sorted({place.vip.version for place in places}):
            for flow in self._dump(version, b""):
                if (flow.protocol, flow.destination, flow.port) in exact or any(holds(p, flow) for p in wide):
                    yield flow

    def forget(self, flows: Sequence[ConntrackEntry]) -> int:
        """Removes them; returns how many there still were."""
        removed = 0
        for first in range(0, len(flows), BATCH):
            batch = flows[first : first + BATCH]
            sent = [self._message(_DELETE, _REQUEST | _ACK, flow.version, flow.key) for flow in batch]
            try:
                self._socket.send(b"".join(sent))
                removed += self._acknowledged(len(batch))
            except OSError as error:
                raise _sentence(error.errno or errno.ETIMEDOUT) from None
        return removed

    def _dump(self, version: int, question: bytes) -> Iterator[ConntrackEntry]:
        try:
            self._socket.send(self._message(_GET, _REQUEST | _DUMP, version, question))
            while True:
                for kind, sequence, _, body in messages(self._socket.recv(_RECEIVE)):
                    if sequence != self._sequence:
                        continue
                    if kind == _DONE:
                        return
                    if kind == _ERROR:
                        (code,) = struct.unpack_from("=i", body)
                        raise _sentence(-code)
                    flow = _flow(body)
                    if flow is not None:
                        yield flow
        except OSError as error:
            raise _sentence(error.errno or errno.ETIMEDOUT) from None

    def _acknowledged(self, count: int) -> int:
        """Reads the answers to the last ``count`` messages."""
        removed, first = 0, self._sequence - count + 1
        while count:
            for kind, sequence, _, body in messages(self._socket.recv(_RECEIVE)):
                if sequence < first or kind != _ERROR:
                    continue
                (code,) = struct.unpack_from("=i", body)
                if code and -code != errno.ENOENT:
                    raise _sentence(-code)
                removed += code == 0
                count -= 1
        return removed

    def _message(self, command: int, flags: int, version: int, asked: bytes) -> bytes:
        self._sequence += 1
        length = HEADER.size + 4 + len(asked)
        header = HEADER.pack(length, _SUBSYSTEM | command, flags, self._sequence, 0)
        return header + struct.pack("=BBH", _FAMILY[version], 0, 0) + asked


def _sentence(code: int) -> IoError | PrivilegeError | FeatureError:
    if code == errno.EPERM:
        return PrivilegeError("cannot look at conntrack: needs CAP_NET_ADMIN; start lb-agent as root")
    if code in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
        return FeatureError("this kernel does not let conntrack be looked at: load the module nf_conntrack_netlink")
    return IoError(f"cannot look at conntrack: {os.strerror(code).lower()}")


# --- netlink's attributes ----------------------------------------------------------------------------------------


def _question(place: FlowTarget) -> bytes:
    """Has the kernel choose, as far as it can."""
    flags, version = _FLAG_PROTO_NUMBER, place.vip.version
    protocol = attribute(_PROTO_NUMBER, bytes([place.protocol.number]))
    if place.ports.exact:
        protocol += attribute(_PROTO_DST_PORT, place.ports.first.to_bytes(2))
        flags |= _FLAG_DST_PORT
    wanted = attribute(_TUPLE_PROTO | NESTED, protocol)
    if place.vip.prefixlen == place.vip.max_prefixlen:
        to = attribute(_IP_DST[version], place.vip.network_address.packed)
        wanted = attribute(_TUPLE_IP | NESTED, to) + wanted
        flags |= _FLAG_IP_DST
    chosen = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
    return attribute(_TUPLE_ORIG | NESTED, wanted) + attribute(_FILTER | NESTED, chosen)


def _flow(body: bytes) -> ConntrackEntry | None:
    """None for what has no ports."""
    version = 4 if body[0] == socket.AF_INET else 6
    entry = attributes(body[4:])
    asked, answers = _ends(entry.get(_TUPLE_ORIG, b"")), _ends(entry.get(_TUPLE_REPLY, b""))
    if asked is None or answers is None:
        return None
    (addresses, protocol), (reply_addresses, reply_protocol) = asked, answers
    zone = attribute(_ZONE, entry[_ZONE]) if _ZONE in entry else b""
    return ConntrackEntry(
        version=version,
        protocol=protocol[_PROTO_NUMBER][0],
        destination=addresses[_IP_DST[version]],
        port=int.from_bytes(protocol[_PROTO_DST_PORT]),
        answers_from=reply_addresses[_IP_SRC[version]],
        answers_port=int.from_bytes(reply_protocol[_PROTO_SRC_PORT]),
        answered=bool(int.from_bytes(entry.get(_STATUS, b"")) & _SEEN_REPLY),
        key=attribute(_TUPLE_ORIG | NESTED, entry[_TUPLE_ORIG]) + zone,
    )


def _ends(data: bytes) -> tuple[dict[int, bytes], dict[int, bytes]] | None:
    found = attributes(data)
    addresses, protocol = attributes(found.get(_TUPLE_IP, b"")), attributes(found.get(_TUPLE_PROTO, b""))
    return (addresses, protocol) if _PROTO_DST_PORT in protocol else None
