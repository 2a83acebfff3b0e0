# SPDX-License-Identifier: Apache-2.0
"""The kernel's routes, links and neighbours, as values of :mod:`lb.mux.hops.next_hops`. The thin edge to netlink.

Questions go through one pyroute2 ``AsyncIPRoute``. Notices arrive on a socket of their own, which is only read
for what kind of thing changed (and neighbours decoded), so that a storm of route changes costs little; when the
kernel had to drop notices, everything counts as changed. Used by :mod:`lb.mux.hops.watch`, :mod:`lb.mux.io.tun` and
:mod:`lb.mux.io.startup`, all in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import TracebackType
from typing import Any

from lb.daemon.kernel.netlink_bytes import with_headers
from lb.daemon.kernel.rtnetlink import AsyncIPRoute, MarshalRtnl, NetlinkDumpInterrupted, NetlinkError
from lb.model import Address
from lb.mux.hops.next_hops import Link, Neighbour, NeighbourKey, NeighbourState, RouteAnswer, RouteKind

#: How often a table that changes while it is read is read anew.
DUMP_ATTEMPTS = 20

_NTF_USE = 0x01
_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_ARPHRD_ETHER = 1

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29
_OF_MACHINE = {_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR}

#: RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE; rules of IPv6 have no such bit
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400
_RECEIVE_BUFFER = 4 << 20


@dataclass(slots=True)
class HopNotices:
    """What changed since they were last taken."""

    everything: bool = False  #: notices were lost
    routes: bool = False  #: routes, rules or addresses
    links: bool = False
    neighbours: dict[NeighbourKey, Neighbour | None] = field(default_factory=dict)  #: None: gone

    def __bool__(self) -> bool:
        return self.everything or self.routes or self.links or bool(self.neighbours)


class Netlink:
    """One connection to the kernel's routing; close it, it holds sockets."""

    def __init__(self) -> None:
        self._ipr = AsyncIPRoute()
        self._marshal = MarshalRtnl()
        self._listener: socket.socket | None = None
        self._notices = HopNotices()
        self._dumping = asyncio.Lock()
        self._changed: Callable[[], None] = lambda: None
        self._told = 0  # notices of links and addresses so far
        self._machine: tuple[Mapping[int, Link], Mapping[Address, str]] | None = None
        self._machine_told = 0  # how many of them there were when it was asked for

    async def __aenter__(self) -> Netlink:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ipr(self) -> Any:
        """For what has no function here: devices and routes of the TUN mode."""
        return self._ipr

    def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        self._ipr.close()

    @property
    def port(self) -> int:
        """Of the socket by which changes are made: what the kernel tells of them bears it. After the first question."""
        return int(self._ipr.socket.getsockname()[0])

    # -- questions ----------------------------------------------------------------------------------------------

    async def dump(self, table: str, **filters: Any) -> list[Any]:
        """All of ``table``. One at a time: the kernel refuses a second dump while one goes on (EBUSY)."""
        async with self._dumping:
            for attempt in range(DUMP_ATTEMPTS):
                try:
                    return [message async for message in await getattr(self._ipr, table)("dump", **filters)]
                except NetlinkDumpInterrupted:  # something changed meanwhile, so it may not be whole
                    if attempt == DUMP_ATTEMPTS - 1:
                        raise
                    await asyncio.sleep(0.01)
        raise AssertionError("the last attempt returns or raises")

    async def route(self, address: Address) -> RouteAnswer | None:
        """Where the kernel would send a packet for this address."""
        try:
            answers = await self._ipr.route("get", dst=str(address), family=_family(address))
        except NetlinkError as error:
            if error.code in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
                return None
            if error.code == errno.EINVAL:  # how IPv4 answers for a blackhole
                return RouteAnswer(RouteKind.BLACKHOLE, 0)
            if error.code == errno.EACCES:
                return RouteAnswer(RouteKind.PROHIBIT, 0)
            raise
        return _route(answers[0]) if answers else None

    async def links(self) -> dict[int, Link]:
        """All interfaces, by index."""
        messages = await self.dump("link")
        return {link.index: link for link in map(_link, (m for m in messages if m.get("event") == "RTM_NEWLINK"))}

    async def link(self, name: str) -> Link | None:
        """The interface of that name."""
        for link in (await self.links()).values():
            if link.name == name:
                return link
        return None

    async def neighbours(self) -> dict[NeighbourKey, Neighbour]:
        """All neighbours of all links."""
        found: dict[NeighbourKey, Neighbour] = {}
        for message in await self.dump("neigh"):
            key, neighbour = _neighbour(message)
            if key is not None:
                found[key] = neighbour
        return found

    async def machine(self) -> tuple[Mapping[int, Link], Mapping[Address, str]]:
        """Links, and the addresses of this machine with the name of their interface.

        Once :meth:`listen` was called, the kernel is only asked again when it has told of a change: until then these
        are the same objects.
        """
        self._read()  # what it told so far
        told = self._told
        if self._machine is None or self._machine_told != told:
            links = await self.links()
            self._machine, self._machine_told = (links, await self._local_addresses(links)), told
        return self._machine

    async def local_addresses(self) -> Mapping[Address, str]:
        """As :meth:`machine` says."""
        return (await self.machine())[1]

    async def _local_addresses(self, links: Mapping[int, Link]) -> dict[Address, str]:
        names = {link.index: link.name for link in links.values()}
        found: dict[Address, str] = {}
        for message in await self.dump("addr"):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                found[ip_address(text)] = names.get(message["index"], str(message["index"]))
        return found

    async def ask_for(self, key: NeighbourKey) -> None:
        """Makes the kernel look for a neighbour, or confirm that it is still there."""
        ifindex, address = key
        with contextlib.suppress(NetlinkError):  # the link went away: a notice of that is on its way
            await self._ipr.neigh(
                "set", dst=str(address), family=_family(address), ifindex=ifindex, flags=_NTF_USE, state=0
            )

    # -- notices ------------------------------------------------------------------------------------------------

    def listen(self, changed: Callable[[], None]) -> None:
        """From now on collects what changes; ``changed`` is called when there is something to take."""
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        listener.bind((0, _GROUPS))
        self._listener = listener
        self._changed = changed
        self._told += 1
        asyncio.get_running_loop().add_reader(listener.fileno(), self._read)

    def take_notices(self) -> HopNotices:
        """What was collected; begins anew."""
        taken, self._notices = self._notices, HopNotices()
        return taken

    def _read(self) -> None:
        if self._listener is None:
            self._told += 1  # it tells nothing, so everything may be another
            return
        try:
            while True:
                self._note(self._listener.recv(65536))
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: the kernel dropped notices
            self._notices.everything = True
            self._told += 1
        if self._notices:
            self._changed()

    def _note(self, data: bytes) -> None:
        for kind, message in with_headers(data):
            self._told += kind in _OF_MACHINE
            if kind in {_RTM_NEWLINK, _RTM_DELLINK}:
                self._notices.links = True
            elif kind in {_RTM_NEWNEIGH, _RTM_DELNEIGH}:
                self._note_neighbour(message)
            else:
                self._notices.routes = True

    def _note_neighbour(self, data: bytes) -> None:
        for message in self._marshal.parse(data):
            key, neighbour = _neighbour(message)
            if key is not None:
                gone = message["header"]["type"] == _RTM_DELNEIGH
                self._notices.neighbours[key] = None if gone else neighbour


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _route(message: Any) -> RouteAnswer:
    try:
        kind = RouteKind(message["type"])
    except ValueError:
        kind = RouteKind.UNREACHABLE
    gateway = message.get_attr("RTA_GATEWAY")
    via = message.get_attr("RTA_VIA")  # an IPv4 route through an IPv6 gateway
    if gateway is None and via:
        gateway = via["addr"]
    return RouteAnswer(kind, message.get_attr("RTA_OIF") or 0, ip_address(gateway) if gateway else None)


def _link(message: Any) -> Link:
    flags = message["flags"]
    mac = message.get_attr("IFLA_ADDRESS")
    ethernet = message["ifi_type"] == _ARPHRD_ETHER and mac is not None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        up=bool(flags & _IFF_UP and flags & _IFF_RUNNING),
        mac=bytes.fromhex(mac.replace(":", "")) if ethernet else None,
    )


def _neighbour(message: Any) -> tuple[NeighbourKey | None, Neighbour]:
    mac = message.get_attr("NDA_LLADDR")
    octets = bytes.fromhex(mac.replace(":", "")) if mac else None
    neighbour = Neighbour(NeighbourState(message["state"]), octets if octets and len(octets) == 6 else None)
    address = message.get_attr("NDA_DST")
    if not address:
        return None, neighbour
    return (message["ifindex"], ip_address(address)), neighbour
