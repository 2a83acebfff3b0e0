# SPDX-License-Identifier: Apache-2.0
"""The TUN mode's place in the kernel: the device, the routes of the VIPs into it, and the sysctls it needs.

Behind the route of each VIP into the device stands a blackhole route with a worse metric: when ``lb-mux`` dies its
device goes and takes its routes along, and the kernel then drops the VIPs' packets instead of answering them. So this
is the isolation of the TUN mode; it is repaired at start and removed by a clean stop. Routes of ours are known by
their protocol number.

Sysctls: forwarding must be on (remembered in ``restore.json`` and put back by a clean stop). What we write into the
device has our own address as source, which needs ``accept_local``, and a loose ``rp_filter`` together with an
address on the device, whatever ``rp_filter`` is elsewhere; both are set on the device alone and vanish with it.

While ``lb-mux`` runs all of it is kept: :class:`Tun` is one of the parts of :mod:`lb.daemon.kernel.keeper`, and
:attr:`Tun.settings` another. A device that is taken away is made anew by :class:`lb.mux.io.ports.TunPort`, which owns
it.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lb.daemon.files.private_files import write_private
from lb.daemon.kernel import routes, sysctls
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.rtnetlink import NetlinkError
from lb.daemon.kernel.watch import Area
from lb.daemon.log import get_logger
from lb.errors import IoError
from lb.model import Network
from lb.mux.hops.netlink import Netlink

#: "Who installed this route", as ``ip route`` shows it; not used by any routing daemon.
ROUTE_PROTOCOL = 118
METRIC = 10
BLACKHOLE_METRIC = 4_000_000_000
#: Only makes the kernel willing to take packets from the device; link-local, never used as a source.
DEVICE_ADDRESS = "169.254.118.1"
MTU = 9000
#: Packets that wait for a worker that lost its CPU; the default of 500 lasts a few milliseconds.
QUEUE_LENGTH = 10_000
RESTORE_FILE = "restore.json"

_RTN_BLACKHOLE = 6
_RT_TABLE_MAIN = 254
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_IFF_UP = 0x1

log = get_logger()


def device_name(mux: str) -> str:
    """At most 15 characters, as the kernel wants."""
    return ("lb-" + re.sub(r"[^A-Za-z0-9_.-]", "-", mux))[:15]


@dataclass(frozen=True, slots=True)
class VipRoute:
    """One of the two routes of a VIP."""

    vip: Network
    blackhole: bool

    def named(self, device: str) -> str:
        """As an operator would look for it."""
        return f"blackhole route of VIP {self.vip}" if self.blackhole else f"route of VIP {self.vip} into {device}"


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What to do, in this order: at no instant does a VIP have the route into the device alone."""

    add: tuple[VipRoute, ...]
    delete: tuple[VipRoute, ...]


def plan_routes(present: Iterable[VipRoute], vips: Iterable[Network]) -> RoutePlan:
    """From the routes of ours that exist to those of exactly these VIPs."""
    have = frozenset(present)
    wanted = frozenset(VipRoute(vip, blackhole) for vip in vips for blackhole in (True, False))
    return RoutePlan(
        add=tuple(sorted(wanted - have, key=lambda route: (not route.blackhole, str(route.vip)))),
        delete=tuple(sorted(have - wanted, key=lambda route: (route.blackhole, str(route.vip)))),
    )


class Tun:
    """The device of one MUX. The C side opened its queues; it exists as long as they are open."""

    areas = Area.LINK | Area.ADDRESS | Area.ROUTE
    interval = 10.0

    def __init__(self, netlink: Netlink, mux: str, state_dir: Path) -> None:
        self._netlink = netlink
        self._restore = state_dir / RESTORE_FILE
        self._lock = asyncio.Lock()  # the keeper must not look while a change is half done
        self._routes = routes.RoutesOf(ROUTE_PROTOCOL)
        self._vips: frozenset[Network] = frozenset()
        self._well: tuple[int, frozenset[Network], list[bytes]] | None = None  # what there was when all was well
        self._set: dict[str, str] = {}  # sysctls that we have set
        self.settings = sysctls.KeptSysctls(lambda: self._set)
        self.name = device_name(mux)
        #: A killed predecessor left its blackholes behind.
        self.inherited = False

    async def set_up(self) -> None:
        """Address, MTU, sysctls; then up. The routes come with :meth:`cover`."""
        async with self._lock:
            await self._set_up()

    async def _set_up(self) -> None:
        index = self._index()
        if index is None:
            raise IoError(f"the TUN device {self.name} vanished while it was set up")
        self.inherited = self.inherited or bool(self._present(index))
        self._write(f"ipv4/conf/{self.name}/accept_local", "1")
        self._write(f"ipv4/conf/{self.name}/rp_filter", "2")
        self._silence()
        ipr = self._netlink.ipr
        try:
            await ipr.addr("replace", index=index, address=DEVICE_ADDRESS, prefixlen=32)
            await ipr.link("set", index=index, mtu=MTU, txqlen=QUEUE_LENGTH)
            # Before it is up: else the kernel has a second queue of that length for each of 256 possible workers.
            await ipr.tc("replace", "noqueue", index=index, handle=0)
            await ipr.link("set", index=index, state="up")
        except NetlinkError as error:
            raise IoError(f"cannot set up the TUN device {self.name}: {error}") from None
        self._remember_and_write("ipv4/ip_forward", "1")

    async def cover(self, vips: Iterable[Network]) -> None:
        """Routes exactly these VIPs into the device. Before a publish give the old and the new, afterwards the new.

        Without the device the blackholes alone; the rest comes when the device is made anew."""
        async with self._lock:
            self._vips = frozenset(vips)
            await self._cover()

    async def _cover(self) -> None:
        if any(vip.version == 6 for vip in self._vips):
            self._remember_and_write("ipv6/conf/all/forwarding", "1")
        index = self._index()
        plan = plan_routes(self._present(index), self._vips)
        for route in plan.add:
            if index is not None or route.blackhole:
                await self._change("add", route, index or 0)
        for route in plan.delete:
            await self._change("del", route, index or 0)

    async def remove(self) -> None:
        """Takes routes away, blackholes last, and puts sysctls back. Also repairs what another mode left behind."""
        async with self._lock:
            index = self._index()
            for route in plan_routes(self._present(index), ()).delete:
                await self._change("del", route, index or 0)
            self._vips = frozenset()
            self._put_settings_back()
            self._routes.close()

    # -- kept -------------------------------------------------------------------------------------------------------

    async def look(self) -> Sequence[Difference]:
        """Nothing where the device is gone: that is the port's affair."""
        async with self._lock:
            index = self._index()
            if index is None:
                return ()
            return [*await self._device_amiss(index), *self._routes_amiss(index)]

    async def put_back(self, differences: Sequence[Difference]) -> None:
        del differences
        async with self._lock:
            await self._set_up()
            await self._cover()

    async def _device_amiss(self, index: int) -> list[Difference]:
        try:
            (link,) = await self._netlink.ipr.link("get", index=index)
            addresses = await self._netlink.dump("addr", index=index)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return []
            raise IoError(f"cannot look at the TUN device {self.name}: {error}") from None
        found: list[Difference] = []
        if not link["flags"] & _IFF_UP:
            found.append(Difference("interface", f"device {self.name}", "was set down", urgent=True))
        if link.get_attr("IFLA_MTU") != MTU:
            found.append(Difference("interface", f"MTU of device {self.name}", "was changed"))
        if not any(message.get_attr("IFA_LOCAL") == DEVICE_ADDRESS for message in addresses):
            found.append(Difference("address", f"address {DEVICE_ADDRESS} of device {self.name}"))
        return found

    def _routes_amiss(self, index: int) -> list[Difference]:
        dumps = [self._routes.dump(family) for family in _FAMILIES]
        if self._well == (index, self._vips, dumps):
            return []
        self._well = None
        plan = plan_routes(self._among(dumps, index), self._vips)
        if not plan.add and not plan.delete:
            self._well = (index, self._vips, dumps)
        return [
            *(Difference("route", route.named(self.name)) for route in plan.add),
            *(Difference("route", route.named(self.name), "is none that lb-mux made") for route in plan.delete),
        ]

    # -- the kernel -------------------------------------------------------------------------------------------------

    def _index(self) -> int | None:
        try:
            return socket.if_nametoindex(self.name)
        except OSError:
            return None

    def _present(self, ifindex: int | None) -> list[VipRoute]:
        return self._among([self._routes.dump(family) for family in _FAMILIES], ifindex)

    @staticmethod
    def _among(dumps: Iterable[bytes], ifindex: int | None) -> list[VipRoute]:
        """Those of ours, among all of our protocol; probes have routes of it in another table."""
        found: list[VipRoute] = []
        for route in (route for dump in dumps for route in routes.parse(dump) if route.table == _RT_TABLE_MAIN):
            if route.kind == _RTN_BLACKHOLE:
                found.append(VipRoute(route.network, True))
            elif ifindex is not None and route.ifindex == ifindex:
                found.append(VipRoute(route.network, False))
        return found

    async def _change(self, command: str, route: VipRoute, ifindex: int) -> None:
        where = (
            {"type": "blackhole", "priority": BLACKHOLE_METRIC}
            if route.blackhole
            else {"oif": ifindex, "priority": METRIC}
        )
        family = 2 if route.vip.version == 4 else 10
        try:
            await self._netlink.ipr.route(command, dst=str(route.vip), family=family, proto=ROUTE_PROTOCOL, **where)
        except NetlinkError as error:
            if command == "add" and error.code != errno.EEXIST:
                raise IoError(f"cannot route VIP {route.vip} into {self.name}: {error}") from None

    # -- sysctls ------------------------------------------------------------------------------------------------

    def _silence(self) -> None:
        """No link-local address, so that the kernel sends nothing of its own into the device."""
        if Path(f"/proc/sys/net/ipv6/conf/{self.name}").exists():
            self._write(f"ipv6/conf/{self.name}/addr_gen_mode", "1")

    def _write(self, key: str, value: str) -> None:
        sysctls.write(key, value)
        self._set[key] = value

    def _remember_and_write(self, key: str, value: str) -> None:
        try:
            before = (sysctls.SYSCTLS / key).read_text().strip()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise IoError(f"cannot read {sysctls.shown(key)}: {reason}") from None
        if before != value and key not in self._set:  # else somebody changed it after us: that is not what it was
            remembered = self._remembered()
            remembered.setdefault(key, before)  # a life that crashed remembered the true one
            self._remember(remembered)
        self._write(key, value)

    def _remember(self, settings: dict[str, str]) -> None:
        """Whole or not at all. A disk that cannot be written keeps no packet waiting; it is said."""
        try:
            write_private(self._restore, msgspec.json.encode(settings))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            what = ", ".join(sysctls.shown(key) for key in settings)
            log.error("settings not remembered", file=str(self._restore), reason=reason, then=f"{what} stay as set")

    def _remembered(self) -> dict[str, str]:
        try:
            return {str(key): str(value) for key, value in msgspec.json.decode(self._restore.read_bytes()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _put_settings_back(self) -> None:
        self._set.clear()
        for key, value in self._remembered().items():
            sysctls.write(key, value)
        self._restore.unlink(missing_ok=True)
