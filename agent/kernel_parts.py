# SPDX-License-Identifier: Apache-2.0
"""What the agent put into this host's kernel is kept there: the parts that :mod:`lb.daemon.kernel.keeper` looks after.

Looking is planning: what the plan from the configuration in force to the host as it is would do is what somebody else
undid (:func:`amiss`, which is pure). Putting back is applying once more. Both take the turn of any other change, so
that none is seen half done, and run in a helper thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence

from agent import plan as planning
from agent.agent import Agent
from agent.decap import IPIP_DEVICE, TUN_DEVICE
from agent.host.linux import FILTER_NAME, FILTER_PRIORITY
from agent.plan import Action
from agent.rules import nftables_table as nat
from agent.rules import stray_packets as fence
from agent.rules.foreign_filters import Judge
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.sysctls import shown
from lb.daemon.kernel.watch import EVERYTHING, NOTHING, Area
from lb.daemon.log import get_logger
from lb.errors import IoError
from lb.model import DecapMode

log = get_logger()


class HostParts:
    """All but the settings, of which the kernel tells no change."""

    areas: Area = EVERYTHING
    interval = 10.0

    def __init__(self, agent: Agent, changing: asyncio.Lock) -> None:
        """``changing`` is held by whoever has the agent work."""
        self._agent = agent
        self._changing = changing

    async def look(self) -> Sequence[Difference]:
        async with self._changing:
            await asyncio.to_thread(self._agent.forget_again)
            return list(amiss(await asyncio.to_thread(self._agent.undone)))

    async def put_back(self, differences: Sequence[Difference]) -> None:
        del differences  # applying puts back whatever there is
        async with self._changing:
            await asyncio.to_thread(self._agent.apply_again)


class HostSettings:
    """The settings that the agent raised, read once a second. One that is higher still is left as it is."""

    areas: Area = NOTHING
    interval = 1.0

    def __init__(self, agent: Agent, changing: asyncio.Lock) -> None:
        self._agent = agent
        self._changing = changing

    async def look(self) -> Sequence[Difference]:
        async with self._changing:
            lowered = await asyncio.to_thread(self._agent.lowered)
        return [Difference("sysctl", shown(name), f"was set to {value}") for name, value in lowered.items()]

    async def put_back(self, differences: Sequence[Difference]) -> None:
        del differences
        async with self._changing:
            await asyncio.to_thread(self._agent.apply_again)


class HostInterface:
    """The interface of the configuration, with its addresses; they are the operator's, so none of it is put back."""

    areas: Area = Area.LINK | Area.ADDRESS
    interval = 10.0

    def __init__(self, agent: Agent, changing: asyncio.Lock) -> None:
        self._agent = agent
        self._changing = changing
        self.amiss: str | None = None  #: in words

    async def look(self) -> Sequence[Difference]:
        async with self._changing:
            self.amiss = await asyncio.to_thread(self._agent.interface_amiss)
        if self.amiss is not None:
            raise IoError(self.amiss)
        return ()

    async def put_back(self, differences: Sequence[Difference]) -> None:
        """There is never anything."""


class FiltersAhead:
    """Filters of others before ours, see :mod:`agent.rules.foreign_filters`. They are theirs: nothing is taken away,
    all is said."""

    areas: Area = Area.FILTER
    interval = 1.0

    def __init__(self, agent: Agent, changing: asyncio.Lock) -> None:
        self._agent = agent
        self._changing = changing
        self.judge = Judge()

    async def look(self) -> Sequence[Difference]:
        async with self._changing:
            found = await asyncio.to_thread(self._agent.ahead)
        if found is None:  # ours is gone, which others put back
            return ()
        filters, judge = found[0], self.judge
        if judge.look(time.monotonic(), *found) and filters:
            log.warning(
                "foreign_filter", filters=self.named, done="left alone", then="it may keep packets from our filter"
            )
        if not judge.blocked:
            return ()
        return [Difference("filter", str(one), "stands before lb-agent's and takes its packets") for one in filters]

    async def put_back(self, differences: Sequence[Difference]) -> None:
        del differences
        raise IoError(f"it is not lb-agent's; `{self.remedy}`, or give it a priority behind {FILTER_PRIORITY}")

    @property
    def remedy(self) -> str:
        interface = self._agent.applied.config.agent.interface if self._agent.applied is not None else "INTERFACE"
        return "; ".join(
            f"tc filter del dev {interface} ingress pref {number}"
            for number in dict.fromkeys(one.priority for one in self.judge.filters)
        )

    @property
    def named(self) -> list[str]:
        return [str(one) for one in self.judge.filters]

    @property
    def amiss(self) -> str | None:
        """In words, where they keep packets from ours."""
        if not self.judge.blocked:
            return None
        return f"no tunnel packet comes to lb-agent's filter since {' and '.join(self.named)} stands before it"


def amiss(undone: Iterable[Action]) -> Iterator[Difference]:
    """What somebody else did, from what the agent would do about it. Without translation and decapsulation no client
    is served, so those are put back soon also where another program takes them away again and again."""
    for action in undone:
        match action:
            case planning.ReplaceRules():
                yield Difference("nftables", f"table inet {nat.TABLE}", "was removed or changed", urgent=True)
            case planning.AddVip(address):
                yield Difference("address", f"{address} on lo")
            case planning.AddRoute(prefix):
                yield Difference("route", f"local route {prefix}")
            case planning.AddFenceRoute(prefix):
                yield Difference("route", f"blackhole {prefix} in table {fence.TABLE}")
            case planning.AddFenceRule(version, interface):
                yield Difference("rule", f"{'ip' if version == 4 else 'ip -6'} rule {fence.PRIORITY} for {interface}")
            case planning.AddQdisc(interface):
                yield Difference("qdisc", f"clsact of {interface}", urgent=True)
            case planning.Decapsulate(DecapMode.BPF, interface):
                name = f"{FILTER_NAME} at the ingress of {interface}"
                yield Difference("filter", name, "was removed or replaced", urgent=True)
            case planning.Decapsulate(mode, _):
                device = TUN_DEVICE if mode is DecapMode.TUN else IPIP_DEVICE
                yield Difference("interface", f"device {device}", "was removed or changed", urgent=True)
            case _:  # what goes because nobody needs it, or comes with one of the above
                pass
