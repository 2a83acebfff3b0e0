# SPDX-License-Identifier: Apache-2.0
"""The services that are live in a MUX's data plane, and one change of them after the other.

A change is compiled aside, the ways to machines that are new are found, routers get no VIP that goes any more, the
isolation covers what was and what comes; then the new table is published with one pointer store, and what went is let
go of. Until that store everything is as it was, and a change that cannot be is refused with no trace of it.

Owned by :mod:`lb.mux.daemon`; used in its event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import VipmuxError
from lb.model import Address, Service
from lb.model.service_diff import ServiceDiff, Vips
from lb.mux.announcer import Announcer
from lb.mux.hops.netlink import Netlink
from lb.mux.hops.watch import HopWatch
from lb.mux.plane import MuxPlane
from lb.mux.probes.tunnel_probes import TunnelProbes
from lb.mux.rules.reload import check_vips
from lb.mux.rules.unservable import compile_most, local_vips

#: How long a change waits for backends to answer ARP before it goes on without them, seconds.
SETTLE = 1.0
#: So many services are compiled in the event loop: it takes less time than to ask a thread.
SMALL = 20

log = get_logger()

T = TypeVar("T")


class LiveServices:
    """Of one MUX. Whoever changes something holds :attr:`changing`."""

    def __init__(
        self,
        *,
        compiler: Compiler,
        netlink: Netlink,
        watch: HopWatch,
        probes: TunnelProbes,
        tasks: Tasks,
        plane: Callable[[], MuxPlane],
        announcer: Callable[[], Announcer | None],
    ) -> None:
        """``plane``: once it is open; ``announcer``: None where no BGP is spoken."""
        self.changing = asyncio.Lock()  #: one change of services or workers at a time, whoever wants it
        self.published: Callable[[], None] = lambda: None  #: called when other services are live
        self.vips = Vips.of(())
        self._compiler = compiler
        self._netlink = netlink
        self._watch = watch
        self._probes = probes
        self._tasks = tasks
        self._plane = plane
        self._announcer = announcer
        self._local: Mapping[Address, str] = {}  # this machine's addresses, when VIPs were last checked against them

    @property
    def services(self) -> tuple[Service, ...]:
        return self._plane().engine.forwarding.services

    # -- before the plane is open -------------------------------------------------------------------------------

    def begin(self, services: tuple[Service, ...], local: Mapping[Address, str]) -> Forwarding:
        """All services of a file. Raises VipmuxError where one cannot be served here."""
        check_vips(services, local)
        return self._begun(self._compiler.compile(services), local)

    def begin_most(
        self, services: tuple[Service, ...], local: Mapping[Address, str]
    ) -> tuple[Forwarding, dict[str, str]]:
        """What of the last good state can be served here; and what is left out, and why."""
        left_out = local_vips(services, local, ())
        change = ServiceDiff.between((), services).without(left_out)
        forwarding, no_room = compile_most(self._compiler, change, self._compiler.compile(()))
        return self._begun(forwarding, local), left_out | no_room

    def _begun(self, forwarding: Forwarding, local: Mapping[Address, str]) -> Forwarding:
        self.vips, self._local = Vips.of(forwarding.services), local
        return forwarding

    # -- while it is open ---------------------------------------------------------------------------------------

    async def take(self, services: tuple[Service, ...]) -> None:
        """Makes the services of a file live; raises VipmuxError, with everything as it was, where it cannot."""
        change = ServiceDiff.between(self.services, services)
        local = await self._netlink.local_addresses()
        check_vips(change.services, local, change.come if local is self._local else None)
        self._local = local
        await self._go_live(change, await self._compiled(self._compiler.change, change))

    async def take_most(self, change: ServiceDiff) -> dict[str, str]:
        """Makes the services of a state live, and returns those that this MUX cannot serve, and why; raises
        VipmuxError, with everything as it was, where not even the others can be."""
        change = change.since(self.services)
        local = await self._netlink.local_addresses()
        left_out = local_vips(change.come, local, self.vips.networks)
        self._local = local
        change = change.without(left_out)
        return left_out | await self.put(change)  # without a change: what was left out before still is

    async def put(self, change: ServiceDiff) -> dict[str, str]:
        """As :meth:`take_most`, with no look at this machine's addresses."""
        if not change:
            return {}
        forwarding, no_room = await self._compiled(partial(compile_most, self._compiler), change)
        change = change.without(no_room)
        if change:
            await self._go_live(change, forwarding)
        return no_room

    async def _compiled(self, compile_: Callable[[ServiceDiff, Forwarding], T], change: ServiceDiff) -> T:
        live = self._plane().engine.forwarding
        if len(change.come) <= SMALL:  # a thread costs more, on a machine that is busy
            return compile_(change, live)
        return await asyncio.to_thread(compile_, change, live)

    async def _go_live(self, change: ServiceDiff, forwarding: Forwarding) -> None:
        """What stays is not looked at: of ten thousand services mostly one changes, and somebody waits for it.

        Raises VipmuxError only as long as everything is as it was; the change is of the very services of the table.
        """
        plane, announcer = self._plane(), self._announcer()
        live = plane.engine.forwarding
        change = ServiceDiff(change.before, forwarding.services, change.gone, change.come)
        vips = self.vips.after(change)
        new_ways = plane.port.watches_hops and forwarding.hop_addresses is not live.hop_addresses
        if new_ways:
            await self._find_ways(forwarding)
        if announcer is not None:
            await announcer.release(self.vips.networks - vips.networks if vips is not self.vips else ())
        try:
            await self._publish(forwarding, vips)
        finally:
            if announcer is not None:
                announcer.restore(change)
        if new_ways:
            self._watch.forget_all_but(forwarding.hop_addresses)
        self._probes.update(change)
        log.info("configuration published", services=len(forwarding.services), generation=plane.engine.generation)

    async def _find_ways(self, forwarding: Forwarding) -> None:
        """To machines that are new."""
        before = frozenset(self._watch.resolutions)
        await self._watch.want(forwarding.hop_addresses)
        await self._watch.settle(frozenset(forwarding.hop_addresses) - before, SETTLE)

    async def _publish(self, forwarding: Forwarding, vips: Vips) -> None:
        """Packets of old and new VIPs come in until the new table is live."""
        plane, old = self._plane(), self.vips.networks
        if vips.networks is not old:
            await plane.port.cover(old | vips.networks)
        hops = plane.hops(forwarding.hop_addresses, self._watch.resolutions)
        plane.engine.publish(forwarding, hops)
        self.vips = vips
        self.published()
        plane.engine.reclaim()
        if vips.networks is not old:
            try:
                await plane.port.cover(vips.networks)
            except VipmuxError as error:  # what is live is right all the same; packets of VIPs that went are dropped
                log.warning("isolation is wider than it should be", reason=str(error), then="it is tried again")
                self._tasks.retried("isolation of VIPs that went", self._cover_again)

    async def _cover_again(self) -> None:
        async with self.changing:
            await self._plane().port.cover(self.vips.networks)
