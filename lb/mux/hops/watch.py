# SPDX-License-Identifier: Apache-2.0
"""Keeps the next hops of all backend addresses current, and says when one changes.

Owns the mirror of routes (of the wanted addresses only), links and neighbours. Notices of the kernel are applied
as they come, several at once where they come together; a neighbour's new link address is told to ``on_change``
within milliseconds. Runs in the event loop of ``lb-mux``; the decisions are in :mod:`lb.mux.hops.next_hops`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence

from lb.daemon.kernel.rtnetlink import NetlinkError
from lb.daemon.log import get_logger
from lb.model import Address
from lb.mux.hops.netlink import HopNotices, Netlink
from lb.mux.hops.next_hops import (
    Link,
    Neighbour,
    NeighbourKey,
    Resolution,
    RouteAnswer,
    Unreachable,
    changes,
    remember,
    resolve,
    to_ask,
)

#: How often stale or missing neighbours are asked for, seconds.
ASK_INTERVAL = 1.0
#: Route changes come in storms (BGP): wait this long for the rest, seconds.
ROUTE_SETTLE = 0.02
#: Addresses named in one line of the log.
SHOWN = 5

log = get_logger()

OnChange = Callable[[Mapping[Address, Resolution]], None]
OnLinks = Callable[[Mapping[int, Link]], None]


class HopWatch:
    """The next hops of a set of addresses, as the kernel changes its mind."""

    def __init__(self, netlink: Netlink, on_change: OnChange, on_links: OnLinks | None = None) -> None:
        self._netlink = netlink
        self._on_change = on_change
        self._on_links = on_links
        self._wanted: frozenset[Address] = frozenset()
        self._routes: dict[Address, RouteAnswer | None] = {}
        self._links: dict[int, Link] = {}
        self._neighbours: dict[NeighbourKey, Neighbour] = {}
        self._resolutions: dict[Address, Resolution] = {}
        self._noticed = asyncio.Event()
        self._decided = asyncio.Event()
        self._mirror = asyncio.Lock()
        self._blind: str | None = None  # why the kernel could not be asked; then everything is asked for anew

    @property
    def resolutions(self) -> Mapping[Address, Resolution]:
        """The last decision for each wanted address."""
        return self._resolutions

    @property
    def links(self) -> Mapping[int, Link]:
        return self._links

    def unreachable(self) -> list[Unreachable]:
        return [found for found in self._resolutions.values() if isinstance(found, Unreachable)]

    async def start(self, addresses: Collection[Address]) -> None:
        """Fills the mirror; after this the resolutions are as good as the kernel's tables are."""
        self._netlink.listen(self._noticed.set)
        self._wanted = frozenset(addresses)
        async with self._mirror:
            await self._read_everything()
            self._decide()

    async def want(self, addresses: Collection[Address]) -> Mapping[Address, Resolution]:
        """Adds addresses ahead of a change that needs them; returns the resolutions of all."""
        async with self._mirror:
            self._wanted |= frozenset(addresses)
            await self._read_routes(self._wanted - self._routes.keys())
            self._decide()
        await self._ask()
        return self._resolutions

    def forget_all_but(self, addresses: Collection[Address]) -> None:
        """After the change: what is no longer used is no longer watched."""
        self._wanted = frozenset(addresses)
        self._routes = {address: route for address, route in self._routes.items() if address in self._wanted}
        self._resolutions = {address: found for address, found in self._resolutions.items() if address in self._wanted}

    async def settle(self, addresses: Collection[Address], seconds: float) -> None:
        """Waits until the ways to these are known one way or the other, no longer than this; run() must be running."""
        await self._ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(found.pending and found.address in addresses for found in self.unreachable()):
                    self._decided.clear()
                    await self._decided.wait()

    async def run(self) -> None:
        """Until cancelled: apply notices; ask for stale and missing neighbours once a second."""
        loop = asyncio.get_running_loop()
        ask_at = loop.time()
        while True:
            await self._look(max(0.0, ask_at - loop.time()))
            if loop.time() >= ask_at:
                await self._ask()
                ask_at = loop.time() + ASK_INTERVAL

    async def _look(self, seconds: float) -> None:
        """What the kernel does not answer now is asked for again a moment later: links come and go meanwhile."""
        try:
            await self._next_notices(seconds)
        except (NetlinkError, OSError) as error:
            if self._blind != str(error):
                log.error(
                    "cannot ask the kernel for routes, links or neighbours", reason=str(error), then="asked again"
                )
            self._blind = str(error)
            await asyncio.sleep(ASK_INTERVAL)

    async def _next_notices(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(0 if self._blind else seconds):
                await self._noticed.wait()
        except TimeoutError:
            if not self._blind:
                return
        self._noticed.clear()
        notices = self._netlink.take_notices()
        notices.everything = notices.everything or self._blind is not None
        if notices.routes and not notices.everything:
            await asyncio.sleep(ROUTE_SETTLE)
        async with self._mirror:
            await self._apply(notices)
        self._blind = None

    async def _apply(self, notices: HopNotices) -> None:
        links_before = self._links
        if notices.everything:
            await self._read_everything()
        else:
            for key, neighbour in notices.neighbours.items():
                self._remember(key, neighbour)
            if notices.links:
                self._links = await self._netlink.links()
            if notices.routes or notices.links:
                await self._read_routes(self._wanted)
        if self._on_links and self._links != links_before:
            self._on_links(self._links)
        self._decide()

    async def _read_everything(self) -> None:
        self._links = await self._netlink.links()
        found = await self._netlink.neighbours()
        for key in self._neighbours.keys() | found.keys():
            self._remember(key, found.get(key))
        await self._read_routes(self._wanted)

    def _remember(self, key: NeighbourKey, told: Neighbour | None) -> None:
        held = remember(self._neighbours.get(key), told)
        if held is None:
            self._neighbours.pop(key, None)
        else:
            self._neighbours[key] = held

    async def _read_routes(self, addresses: Collection[Address]) -> None:
        for address in addresses:
            self._routes[address] = await self._netlink.route(address)

    def _decide(self) -> None:
        before = self._resolutions
        after: dict[Address, Resolution] = {
            address: resolve(address, self._routes.get(address), self._links, self._neighbours)
            for address in sorted(self._wanted, key=lambda address: (address.version, address))
        }
        if after != before:  # else they stay the same object
            self._resolutions = after
        for change in changes(before, after):
            if change.reachable:
                log.info("backend reachable", address=_some(change.addresses), way=change.text)
            else:
                log.warning("backend unreachable", address=_some(change.addresses), reason=change.text)
        self._decided.set()
        if self._resolutions is not before:
            self._on_change(self._resolutions)

    async def _ask(self) -> None:
        for key in sorted(to_ask(self._resolutions, self._neighbours), key=str):
            await self._netlink.ask_for(key)


def _some(addresses: Sequence[Address]) -> str:
    """All of a few, a few of many."""
    shown = ", ".join(str(address) for address in addresses[:SHOWN])
    more = len(addresses) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
