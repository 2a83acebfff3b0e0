# SPDX-License-Identifier: Apache-2.0
"""What the agent put into this host's kernel is kept there: the parts that :mod:`lb.daemon.keeper` looks after.

Looking is planning: what the plan from the configuration in force to the host as it is would do is what somebody else
undid (:func:`amiss`, which is pure). Putting back is applying once more. Both take the turn of any other change, so
that none is seen half done, and run in a helper thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from agent import fence, nat
from agent import plan as planning
from agent.agent import Agent
from agent.decap import IPIP_DEVICE, TUN_DEVICE
from agent.linux import FILTER_NAME
from agent.plan import Action
from lb.daemon.kernel_watch import EVERYTHING, NOTHING, Area
from lb.daemon.repairs import Difference
from lb.daemon.sysctls import shown
from lb.model import DecapMode


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
