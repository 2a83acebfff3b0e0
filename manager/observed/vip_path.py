# SPDX-License-Identifier: Apache-2.0
"""Whether clients get through to VIPs: this machine connects to them as a client would, where its file asks for it.

What MUXes tell ends at their routers: one that was told of a VIP need not take the route (a prefix list, another route
that is better), and nobody behind it notices. A manager that stands where clients stand, or whose way to VIPs leads by
the same router, can. :mod:`manager.controller.controller` owns one :class:`Paths` if ``[manager] path_interval`` is
set, and tells
:class:`manager.observed.announcements.Announced` what it finds, which says it everywhere.

A connection that is refused came through as well. A connection that this machine could not make is no news. UDP
services are not asked: what they would answer to is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lb.model import Network, Protocol
from manager.plan.model import Plan, Vip

#: A connection must be there after so long, seconds.
PATIENCE = 2.0
#: So many in a row that fail are news; one that does not is as well.
FALL = 3
#: So many are begun at once at most, and so much later the next begins, seconds.
AT_ONCE, PACE = 32, 0.01
#: What says more of this machine than of the way.
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EPERM})


class VipTarget(NamedTuple):
    """Where a VIP is asked."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class NotConnectedError(Exception):
    """This machine could not make the connection."""


#: Connects once; why it did not come through, or None. Raises NotMadeError.
Connect = Callable[[VipTarget], Awaitable[str | None]]


async def connect(target: VipTarget) -> str | None:
    """As a client does, and leaves at once."""
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(target.address, target.port)
    except ConnectionRefusedError:
        return None
    except TimeoutError:
        return f"no answer within {PATIENCE:g} s"
    except OSError as error:
        if error.errno in _OWN:
            raise NotConnectedError(str(error)) from None
        return (error.strerror or str(error)).lower()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


def targets(plan: Plan, announced: Collection[Vip]) -> dict[Vip, VipTarget]:
    """Of each single VIP that is announced, a TCP port behind which somebody is well; in the plan's order."""
    found: dict[Vip, VipTarget] = {}
    for vip in plan.vips.keys() & announced:
        well = {item.service for item in plan.vips[vip].backends if item.takes_flows and item.healthy}
        for service in plan.vips[vip].served:
            if (
                service.name in well
                and service.protocol is Protocol.TCP
                and service.ports.exact
                and _single(service.vip)
            ):
                found[vip] = VipTarget(str(service.vip.network_address), service.ports.first)
                break
    return found


def _single(vip: Network) -> bool:
    return vip.prefixlen == vip.max_prefixlen


@dataclass(slots=True)
class _Known:
    target: VipTarget
    failed: int = 0
    reached: bool | None = None  # None: not known yet


@dataclass(slots=True)
class Paths:
    """See the module's text. Runs in the event loop; ``reached`` may be read from any thread."""

    interval: float  #: each VIP is asked once in so long; more of them than a hundred a second take longer
    wanted: Callable[[], Mapping[Vip, VipTarget]]
    changed: Callable[[Vip, str | None], None]  #: hears why no client gets through, or None once one does
    connect: Connect = connect
    _known: dict[Vip, _Known] = field(default_factory=dict)

    @property
    def reached(self) -> dict[Vip, bool]:
        """Of VIPs of which it is known."""
        return {vip: known.reached for vip, known in self._known.copy().items() if known.reached is not None}

    async def run(self) -> None:
        """A task; returns never."""
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(AT_ONCE)
        while True:
            began = loop.time()
            wanted = self.wanted()
            self.keep(wanted)
            async with asyncio.TaskGroup() as group:
                for vip, target in wanted.items():
                    await places.acquire()
                    group.create_task(self._ask(vip, target, places), name=f"path to {vip}")
                    await asyncio.sleep(PACE)
            await asyncio.sleep(max(0.0, began + self.interval - loop.time()))

    def keep(self, wanted: Mapping[Vip, VipTarget]) -> None:
        """Of others nothing is known any more."""
        for vip in [vip for vip, known in self._known.items() if wanted.get(vip) != known.target]:
            if self._known.pop(vip).reached is False:
                self.changed(vip, None)
        for vip, target in wanted.items():
            self._known.setdefault(vip, _Known(target))

    async def _ask(self, vip: Vip, target: VipTarget, places: asyncio.Semaphore) -> None:
        try:
            why = await self.connect(target)
        except NotConnectedError:
            return
        finally:
            places.release()
        self.heard(vip, target, why)

    def heard(self, vip: Vip, target: VipTarget, why: str | None) -> None:
        """One connection came through, or why it did not."""
        known = self._known.get(vip)
        if known is None or known.target != target:
            return
        known.failed = 0 if why is None else known.failed + 1
        before = known.reached
        if why is None:
            known.reached = True
        elif known.failed >= FALL:
            known.reached = False
        if known.reached is not before and (known.reached is False or before is False):
            self.changed(vip, None if known.reached else f"connections from the manager to {target} fail: {why}")
