# SPDX-License-Identifier: Apache-2.0
"""What operators want of whole nodes: hosts and MUXes drained, and nodes forgotten."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from lb.errors import NotFoundError
from lb.model import Address
from manager.controller.chronicle import Chronicle
from manager.controller.shared_state import Core
from manager.controller.writer import Applied
from manager.plan.health import Source
from manager.plan.model import AGENT, MUX
from manager.trust.tokens import forgotten


class NodeOrders:
    """Orders that name a node; the others are :class:`manager.controller.writer.Writer`'s."""

    def __init__(self, core: Core, chronicle: Chronicle) -> None:
        self._core = core
        self._chronicle = chronicle

    async def drain_host(self, host: str, who: str, *, drain: bool, **how: Any) -> Applied:
        """All backends on an agent's host, or at an address. See :meth:`Writer.drain_host`."""
        return await self._core.writer.drain_host(host, self.addresses_of(host), who, drain=drain, **how)

    def addresses_of(self, host: str) -> tuple[Address, ...]:
        """Of an agent's host, or what is an address itself."""
        agents = self._core.hub.of(AGENT)
        if host in agents:
            return tuple(address for address in (agents[host].address, agents[host].address6) if address is not None)
        try:
            return (ip_address(host),)
        except ValueError:
            known = f"known are {', '.join(sorted(agents))}" if agents else "none has joined yet"
            raise NotFoundError(f'there is no agent "{host[:100]}", and it is no address; {known}') from None

    async def drain_mux(self, mux: str, who: str, *, drain: bool, why: str = "") -> Applied:
        self._known(MUX, mux)
        return await self._core.writer.drain_mux(mux, who, drain=drain, why=why)

    async def forget(self, kind: str, name: str, who: str) -> None:
        """A node that will not come back."""
        self._known(kind, name)
        self._core.hub.may_forget(kind, name)
        self._core.journal.forget(kind, name)  # else it would be written once more, after it is gone
        # The disk comes first: what is forgotten here alone would be there again after the next start.
        await self._core.store.forget_node(kind, name, forgotten(kind, name, self._core.clocks.wall(), who))
        self._core.hub.forget(kind, name)
        self._core.planner.reports.forget(Source.TUNNEL if kind == MUX else Source.AGENT, name)
        self._chronicle.happened(f"{kind} {name}", f"forgotten by {who}")
        if kind == MUX and name in self._core.desired.mux_drains:
            await self._core.writer.forget_drain(name, who)

    def _known(self, kind: str, name: str) -> None:
        names = [entry.record.name for entry in self._core.hub.entries.values() if entry.record.kind == kind]
        if name not in names:
            word = "MUX" if kind == MUX else kind
            known = f"known are {', '.join(sorted(names))}" if names else "none has joined yet"
            raise NotFoundError(f'there is no {word} "{name}"; {known}')
