# SPDX-License-Identifier: Apache-2.0
"""The TUN mode's place in the kernel: the device, the routes of the VIPs into it, and the sysctls it needs.

Behind the route of each VIP into the device stands a blackhole route with a worse metric: when ``lb-mux`` dies its
device goes and takes its routes along, and the kernel then drops the VIPs' packets instead of answering them. So this
is the isolation of the TUN mode; it is repaired at start and removed by a clean stop. Routes of ours are known by
their protocol number.

Sysctls: forwarding must be on (remembered in ``restore.json`` and put back by a clean stop). What we write into the
device has our own address as source, which needs ``accept_local``, and a loose ``rp_filter`` together with an
address on the device, whatever ``rp_filter`` is elsewhere; both are set on the device alone and vanish with it.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from lb.errors import IoError
from lb.model import Network
from lb.mux.netlink import Netlink

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

_RTN_UNICAST, _RTN_BLACKHOLE = 1, 6


def device_name(mux: str) -> str:
    """At most 15 characters, as the kernel wants."""
    return ("lb-" + re.sub(r"[^A-Za-z0-9_.-]", "-", mux))[:15]


@dataclass(frozen=True, slots=True)
class VipRoute:
    """One of the two routes of a VIP."""

    vip: Network
    blackhole: bool


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

    def __init__(self, netlink: Netlink, mux: str, state_dir: Path) -> None:
        self._netlink = netlink
        self._restore = state_dir / RESTORE_FILE
        self.name = device_name(mux)
        #: A killed predecessor left its blackholes behind.
        self.inherited = False

    async def set_up(self) -> None:
        """Address, MTU, sysctls; then up. The routes come with :meth:`cover`."""
        link = await self._netlink.link(self.name)
        if link is None:
            raise IoError(f"the TUN device {self.name} vanished while it was set up")
        self.inherited = bool(await self._present(link.index))
        self._write(f"ipv4/conf/{self.name}/accept_local", "1")
        self._write(f"ipv4/conf/{self.name}/rp_filter", "2")
        self._silence()
        ipr = self._netlink.ipr
        try:
            await ipr.addr("replace", index=link.index, address=DEVICE_ADDRESS, prefixlen=32)
            await ipr.link("set", index=link.index, mtu=MTU, txqlen=QUEUE_LENGTH, state="up")
        except NetlinkError as error:
            raise IoError(f"cannot set up the TUN device {self.name}: {error}") from None
        self._remember_and_write("ipv4/ip_forward", "1")

    async def cover(self, vips: Iterable[Network]) -> None:
        """Routes exactly these VIPs into the device. Before a publish give the old and the new, afterwards the new."""
        vips = frozenset(vips)
        if any(vip.version == 6 for vip in vips):
            self._remember_and_write("ipv6/conf/all/forwarding", "1")
        link = await self._netlink.link(self.name)
        plan = plan_routes(await self._present(link.index if link else None), vips)
        for route in plan.add:
            await self._change("add", route, link.index if link else 0)
        for route in plan.delete:
            await self._change("del", route, link.index if link else 0)

    async def remove(self) -> None:
        """Takes routes away, blackholes last, and puts sysctls back. Also repairs what another mode left behind."""
        link = await self._netlink.link(self.name)
        index = link.index if link else None
        for route in plan_routes(await self._present(index), ()).delete:
            await self._change("del", route, index or 0)
        self._put_back()

    async def _present(self, ifindex: int | None) -> list[VipRoute]:
        found: list[VipRoute] = []
        for message in await self._netlink.dump("route"):
            if message["proto"] != ROUTE_PROTOCOL or message.get_attr("RTA_DST") is None:
                continue
            vip = ip_network(f"{message.get_attr('RTA_DST')}/{message['dst_len']}")
            if message["type"] == _RTN_BLACKHOLE:
                found.append(VipRoute(vip, True))
            elif ifindex is not None and message.get_attr("RTA_OIF") == ifindex:
                found.append(VipRoute(vip, False))
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
        try:
            Path("/proc/sys/net", key).write_text(value)
        except OSError as error:
            name = "net." + key.replace("/", ".")
            raise IoError(f"cannot set {name} to {value}: {(error.strerror or str(error)).lower()}") from None

    def _remember_and_write(self, key: str, value: str) -> None:
        before = Path("/proc/sys/net", key).read_text().strip()
        if before == value:
            return
        remembered = self._remembered()
        remembered.setdefault(key, before)  # a life that crashed remembered the true one
        self._restore.write_text(json.dumps(remembered))
        self._write(key, value)

    def _remembered(self) -> dict[str, str]:
        try:
            return {str(key): str(value) for key, value in json.loads(self._restore.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _put_back(self) -> None:
        for key, value in self._remembered().items():
            self._write(key, value)
        self._restore.unlink(missing_ok=True)
