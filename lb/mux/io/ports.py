# SPDX-License-Identifier: Apache-2.0
"""Where a MUX's packets come in and go out, with what keeps the kernel away from them: one class for each I/O mode.

A port owns the ios of the workers, the socket filter and the isolation (packet), or the device and its routes (TUN);
AF_XDP is in :mod:`lb.mux.io.xdp_port`. Isolation is in place before the first io opens and is the last to go.
:mod:`lb.mux.io.open_port` chooses one, :mod:`lb.mux.daemon` uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lb.daemon.kernel.keeper import KeptPart
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.watch import Area, OwnMarks
from lb.daemon.log import get_logger
from lb.dataplane import NO_MAC, Hop, Io, LinkHeader, PacketIo, TunIo, TunnelGsoProgram, TunSteeringProgram
from lb.errors import FeatureError, IoError, VipmuxError
from lb.model import Address, MuxSettings, Network
from lb.mux.hops.netlink import Netlink
from lb.mux.hops.next_hops import NextHop, Resolution
from lb.mux.io.gso_tap import GsoTap
from lb.mux.io.isolation import Isolation
from lb.mux.io.mode import RINGS_BOTH, RINGS_SLOTS, WHOLE, cut
from lb.mux.io.socket_filter import Filter, vip_filter
from lb.mux.io.startup import NamespaceClaim
from lb.mux.io.tun import Tun

log = get_logger()

#: A socket filter that lets no packet in: one instruction, "return 0".
NOTHING = (0x06,)
#: Rings and queues that get no more packets are empty when their workers looked so often and found none, so long apart,
#: seconds: a block that is not full comes when its timer has run out, within 8 ms.
LOOKS, APART = 4, 0.004
#: How long that is waited for, seconds.
DRY_AT_LAST = 2.0


class Crew(Protocol):
    """The workers, as who changes their number needs them: :class:`lb.mux.workers.engine.Engine`."""

    def look(self) -> None:
        """Returns when each has looked for packets. From any thread. Raises DataplaneError if one stands still."""

    def regroup(self, ios: Sequence[Io]) -> None:
        """Ends those that there are, and begins others on these ios."""


class Port(Protocol):
    """One I/O mode of one MUX."""

    link: LinkHeader  #: what pipelines write before the outer header
    watches_hops: bool  #: frames need next hops; otherwise the kernel finds the way
    guesses_checksums: bool  #: its ios cannot tell which checksums are left unfinished

    @property
    def ios(self) -> list[Io]:
        """One for each worker."""

    @property
    def details(self) -> str:
        """What was obtained beyond the mode itself, in words; empty: nothing to tell."""

    def hops(self, addresses: tuple[Address, ...], found: Mapping[Address, Resolution]) -> Mapping[Address, Hop]:
        """The ways to backends, as the data plane takes them; those that are missing cannot be reached. The same
        object as before where both arguments are."""

    async def cover(self, vips: Iterable[Network]) -> None:
        """Takes in exactly the packets of these VIPs, and keeps the kernel away from them."""

    def lost(self) -> Difference | None:
        """What the ios are of was taken away, and may be opened anew."""

    async def reopen(self) -> None:
        """After that; the workers have stopped. Raises VipmuxError, and may be called again."""

    def keeps_workers(self, workers: int) -> str | None:
        """Why their number cannot become this one while the MUX runs, and what to do; None: it can."""

    async def resize(self, workers: int, crew: Crew) -> None:
        """Ios for another number of workers; no packet is lost. Nothing else is called before it returns.

        Raises VipmuxError, with all as it was unless no worker runs."""

    def parts(self, reopen: Callable[[], Awaitable[None]]) -> list[KeptPart]:
        """What is kept in the kernel. ``reopen`` stops the workers, reopens the port and starts them again."""

    @property
    def tables(self) -> Sequence[str]:
        """Of nftables, that are ours."""

    def close_ios(self) -> None:
        """The workers have stopped."""

    @property
    def inherited(self) -> bool:
        """Isolation was there already: a predecessor was killed. A start that fails must leave it."""

    async def remove(self) -> None:
        """The end of a clean stop: the kernel may have the packets again."""


class Anchor:
    """Whether an interface is still the one that it was, though another may have its name and even its number.

    A packet socket that takes in nothing is bound to it; the kernel unties it when the interface is unregistered.
    """

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.bind((interface, 0))
        except OSError as error:
            self._socket.close()
            raise IoError(f"cannot bind to {interface}: {(error.strerror or str(error)).lower()}") from None

    def holds(self, interface: str) -> bool:
        try:
            return bool(self._socket.getsockname()[0] == interface)
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()


async def _run_dry(ios: Sequence[Io], crew: Crew) -> None:
    """Returns when their workers have seen to all packets that there are; no more come."""
    clock = asyncio.get_running_loop().time
    end = clock() + DRY_AT_LAST
    seen, looks = -1, 0
    while looks < LOOKS:
        await asyncio.sleep(APART)
        await asyncio.to_thread(crew.look)
        received = sum(io.stats().received for io in ios)
        looks = looks + 1 if received == seen else 0
        seen = received
        if clock() > end:
            raise IoError("packets still come where none should")


def _open_packet_ios(ios: list[PacketIo], interface: str, workers: int, filter_: Sequence[int]) -> None:
    """One for each worker. Those that were opened are in ``ios``, whatever happens."""
    if workers == 1:
        ios.append(PacketIo(interface, filter_=filter_))
        return
    ios.append(PacketIo(interface, filter_=filter_, group=PacketIo.NEW_GROUP))
    for _ in range(workers - 1):
        ios.append(PacketIo(interface, filter_=filter_, group=ios[0].group))


def _close(ios: Iterable[Io]) -> None:
    for io in ios:
        io.close()


class _Opened:
    """A part of the keeper: what the ios of a port are of is deleted and made again, and they are opened anew."""

    areas = Area.LINK
    interval = 2.0

    def __init__(self, port: Port, reopen: Callable[[], Awaitable[None]]) -> None:
        self._port = port
        self._reopen = reopen

    async def look(self) -> Sequence[Difference]:
        lost = self._port.lost()
        return () if lost is None else (lost,)

    async def put_back(self, differences: Sequence[Difference]) -> None:
        del differences
        await self._reopen()


class PacketPort:
    """AF_PACKET on the interface, nftables below it."""

    link = LinkHeader.NEXT_HOP
    watches_hops = True
    guesses_checksums = False  # the virtio header tells

    def __init__(
        self, settings: MuxSettings, netlink: Netlink, state_dir: Path, own: OwnMarks, claims: Sequence[NamespaceClaim]
    ) -> None:
        self._settings = settings
        self._claims = claims
        self._isolation = Isolation(settings.name, settings.interface, own)
        self._anchor: Anchor | None = None
        self._gso_tap = GsoTap(settings.interface)
        self._left_by_tun = Tun(netlink, settings.name, state_dir)
        self._vips: frozenset[Network] = frozenset()
        self._ios: list[PacketIo] = []
        self._filter: Filter | None = None  # of all of them; None: not the same of all, or not known
        self._hops_of: tuple[object, object] = (None, None)  # the addresses and resolutions that the hops are made of
        self._hops: Mapping[Address, Hop] = {}

    @property
    def ios(self) -> list[Io]:
        return list(self._ios)

    @property
    def details(self) -> str:
        both = all(io.switches is not None for io in self._ios)
        return f"{RINGS_BOTH if both else RINGS_SLOTS}; {_supers(self._gso_tap.refused)}"

    async def open(self, vips: Iterable[Network]) -> None:
        self._vips = frozenset(vips)
        await self._isolation.install(self._vips)
        try:
            self._open_rings()
        except IoError:
            self.close_ios()
            if not self.inherited:
                await self._isolation.remove()
            raise
        await self._left_by_tun.remove()

    @property
    def inherited(self) -> bool:
        return self._isolation.inherited

    def _open_rings(self) -> None:
        interface = self._settings.interface
        self._anchor = Anchor(interface)  # first: what happens from now on is not missed
        self._filter = vip_filter(self._vips)
        _open_packet_ios(self._ios, interface, self._settings.workers, self._filter.program)
        self._gso_tap.open(self._ios)

    def keeps_workers(self, workers: int) -> str | None:
        del workers
        return None

    async def resize(self, workers: int, crew: Crew) -> None:
        """Other rings take over while the old ones stay: the workers see to what is in those, and what comes while
        workers change waits in the new ones."""
        if not self._ios:  # the interface is lost: they are opened for so many
            self._settings = replace(self._settings, workers=workers)
            return
        self._filter = self._filter or vip_filter(self._vips)
        fresh: list[PacketIo] = []
        before = self._gso_tap.now
        try:
            _open_packet_ios(fresh, self._settings.interface, workers, NOTHING)
            self._gso_tap.open(fresh)
            PacketIo.swap(self._ios, fresh, self._filter.program)
            await self._see_to_the_last(fresh, crew)
        except VipmuxError:
            _close(fresh)
            self._gso_tap.now = before
            raise
        old, self._ios = self._ios, fresh
        self._settings = replace(self._settings, workers=workers)
        try:
            crew.regroup(self.ios)
        finally:
            _close(old)

    async def _see_to_the_last(self, fresh: Sequence[PacketIo], crew: Crew) -> None:
        """Of the packets in the rings that there are, while others come into the fresh ones."""
        try:
            await _run_dry(self._ios, crew)
        except VipmuxError:
            if self._filter is not None:
                PacketIo.swap(fresh, self._ios, self._filter.program)
            raise

    def hops(self, addresses: tuple[Address, ...], found: Mapping[Address, Resolution]) -> Mapping[Address, Hop]:
        if addresses is not self._hops_of[0] or found is not self._hops_of[1]:
            ways: dict[Address, Hop] = {}
            for address in addresses:
                way = found.get(address)
                if isinstance(way, NextHop):
                    ways[address] = Hop(address, way.mac, way.source_mac, way.ifindex)
            self._hops_of, self._hops = (addresses, found), ways
        return self._hops

    async def cover(self, vips: Iterable[Network]) -> None:
        wanted = frozenset(vips)
        if wanted == self._vips and self._filter is not None:
            return
        await self._isolation.cover(wanted)
        before, self._filter = self._filter, None  # what the ios have, should one of them refuse
        filter_ = vip_filter(wanted, before, wanted - self._vips)
        self._vips = wanted
        if filter_ != before:
            for io in self._ios:
                io.set_filter(filter_.program)
        self._filter = filter_

    def lost(self) -> Difference | None:
        interface = self._settings.interface
        if not exists(interface):
            return None  # it may come back
        if self._anchor is None or not self._anchor.holds(interface):
            return Difference("interface", f"interface {interface}", "was made anew", urgent=True)
        return Difference("interface", f"device {self._gso_tap.name}", urgent=True) if self._gso_tap.lost else None

    async def reopen(self) -> None:
        self.close_ios()
        await self._isolation.put_back(())
        try:
            self._open_rings()
        except IoError:
            self.close_ios()
            raise

    def parts(self, reopen: Callable[[], Awaitable[None]]) -> list[KeptPart]:
        return [_Opened(self, reopen), self._isolation, self._gso_tap]

    @property
    def tables(self) -> Sequence[str]:
        return (self._isolation.table,)

    def close_ios(self) -> None:
        _close(self._ios)
        self._ios = []
        self._gso_tap.closed()
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    async def remove(self) -> None:
        await self._isolation.remove()


class TunPort:
    """A TUN device that the kernel routes the VIPs into."""

    link = LinkHeader.NONE
    watches_hops = False
    guesses_checksums = False  # the kernel finishes them all

    def __init__(
        self, settings: MuxSettings, netlink: Netlink, state_dir: Path, own: OwnMarks, claims: Sequence[NamespaceClaim]
    ) -> None:
        del own
        self._settings = settings
        self._claims = claims
        self._anchor: Anchor | None = None
        self._tun = Tun(netlink, settings.name, state_dir)
        self._left_by_packet = Isolation(settings.name, settings.interface)
        self._vips: frozenset[Network] = frozenset()
        self._ios: list[TunIo] = []
        self._program: TunnelGsoProgram | None = None
        self._cut: str | None = None  # why super-packets are
        self._steer: TunSteeringProgram | None = None
        self._unsteered = ""  # why there is none
        self._hops_of: tuple[Address, ...] = ()
        self._hops: Mapping[Address, Hop] = {}

    @property
    def ios(self) -> list[Io]:
        return list(self._ios)

    @property
    def details(self) -> str:
        return _supers(self._cut)

    async def open(self, vips: Iterable[Network]) -> None:
        self._vips = frozenset(vips)
        try:
            await self._open_device()
        except IoError:
            self.close_ios()
            if not self.inherited:
                await self._tun.remove()
            raise
        await self._forget_packet_mode()

    @property
    def inherited(self) -> bool:
        return self._tun.inherited

    async def _open_device(self) -> None:
        try:
            # The right to load it is given up before the device may have to be made anew.
            self._cut = None
            self._program = self._program or TunnelGsoProgram(LinkHeader.NONE)
            self._open_queues(self._ios, self._settings.workers)
        except IoError as error:
            self._cut = str(error)
            self.close_ios()
            self._open_queues(self._ios, self._settings.workers)
        try:
            self._steer = self._steer or TunSteeringProgram()
        except IoError as error:
            self._unsteered = str(error)
        self._anchor = Anchor(self._tun.name)
        await self._tun.set_up()
        await self._tun.cover(self._vips)

    def _open_queues(self, ios: list[TunIo], workers: int) -> None:
        """So many more, of a device that may get others. Those that were opened are in ``ios``, whatever happens."""
        program = self._program if self._cut is None else None
        for _ in range(workers):
            ios.append(TunIo(self._tun.name, shared=True, program=program))

    def keeps_workers(self, workers: int) -> str | None:
        if workers >= self._settings.workers or self._steer is not None:
            return None
        return (
            f"cannot become {workers} while the MUX runs, for packets in the queues that go would be lost "
            f"({self._unsteered}): restart lb-mux, or put it back"
        )

    async def resize(self, workers: int, crew: Crew) -> None:
        """Queues come to those that there are, or the last of them go. What comes while workers change waits in those
        that stay."""
        stay, go = self._ios[:workers], self._ios[workers:]
        if not self._ios:  # the device is lost: it is made anew with so many
            pass
        elif go:
            await self._without(stay, go, crew)
        else:
            await self._with_more(workers - len(stay), crew)
        self._settings = replace(self._settings, workers=workers)

    async def _with_more(self, more: int, crew: Crew) -> None:
        fresh: list[TunIo] = []
        try:
            self._open_queues(fresh, more)
        except IoError:
            _close(fresh)
            raise
        self._ios += fresh
        crew.regroup(self.ios)

    async def _without(self, stay: list[TunIo], go: Sequence[TunIo], crew: Crew) -> None:
        stay[0].steer(self._steer)
        try:
            await _run_dry(go, crew)
            self._ios = stay
            crew.regroup(self.ios)
        finally:
            if self._ios is stay:
                _close(go)
            stay[0].steer(None)

    async def _forget_packet_mode(self) -> None:
        """A drop that a killed MUX left behind would keep the packets from the device."""
        with contextlib.suppress(FeatureError, IoError):  # no nftables here: then nothing was left behind either
            await self._left_by_packet.remove()

    def hops(self, addresses: tuple[Address, ...], found: Mapping[Address, Resolution]) -> Mapping[Address, Hop]:
        del found
        if addresses is not self._hops_of:
            self._hops_of, self._hops = addresses, {address: Hop(address, NO_MAC) for address in addresses}
        return self._hops

    async def cover(self, vips: Iterable[Network]) -> None:
        self._vips = frozenset(vips)
        await self._tun.cover(self._vips)

    def lost(self) -> Difference | None:
        """The device is ours, whatever happens to the interface."""
        if self._anchor is not None and self._anchor.holds(self._tun.name):
            return None
        return Difference("interface", f"TUN device {self._tun.name}", urgent=True)

    async def reopen(self) -> None:
        self.close_ios()
        try:
            await self._open_device()
        except IoError:
            self.close_ios()
            raise

    def parts(self, reopen: Callable[[], Awaitable[None]]) -> list[KeptPart]:
        return [_Opened(self, reopen), self._tun, self._tun.settings]

    @property
    def tables(self) -> Sequence[str]:
        return ()

    def close_ios(self) -> None:
        _close(self._ios)
        self._ios = []
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    async def remove(self) -> None:
        await self._tun.remove()


def _supers(why_cut: str | None) -> str:
    return WHOLE if why_cut is None else cut(why_cut)


def exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True
