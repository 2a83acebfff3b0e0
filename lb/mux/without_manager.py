# SPDX-License-Identifier: Apache-2.0
"""While the manager is away dead backends get no new flows from this MUX; undone when it is back.

:mod:`lb.mux.probes.own_verdicts` decides; this asks the probes, and changes the live services. Owned by
:mod:`lb.mux.daemon`, whose event loop runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from lb.daemon.log import get_logger
from lb.model.service_diff import ServiceDiff
from lb.mux.live_services import LiveServices
from lb.mux.probes.own_verdicts import PATIENCE, own_verdicts
from lb.mux.probes.tunnel_probes import TunnelProbes
from lb.mux.status import Condition
from lb.mux.workers.engine import Engine

if TYPE_CHECKING:
    from lb.node.follower import Follower

#: How often it is looked for dead backends, seconds.
INTERVAL = 1.0

log = get_logger()


class WithoutManager:
    """Of one MUX that has a manager."""

    def __init__(
        self, follower: Follower, live: LiveServices, probes: TunnelProbes, engine: Engine, condition: Condition
    ) -> None:
        self._follower = follower
        self._live = live
        self._probes = probes
        self._engine = engine
        self._condition = condition
        self._capped: Set[str] = frozenset()  # services of which too much seems dead

    async def run(self) -> None:
        """Returns never."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(INTERVAL)
            since = self._follower.client.away_since
            away = since is not None and clock() - since > PATIENCE
            if away or self._condition.own_verdicts:
                async with self._live.changing:
                    await self._go_by(away=away)

    async def _go_by(self, *, away: bool) -> None:
        """Our own verdicts, or the manager's word again."""
        wanted = self._follower.services
        found = own_verdicts(wanted, self._probes.known(), self._engine.reachable) if away else None
        drained = dict(found.drained) if found is not None else {}
        self._mention_capped(found.capped if found is not None else {})
        before = self._condition.own_verdicts
        if drained.keys() != before.keys() or not away:
            services = found.services if found is not None else wanted
            await self._live.put(ServiceDiff.between(self._live.services, services))
        self._condition.own_verdicts = drained
        for service, backend in drained.keys() - before.keys():
            reason = drained[service, backend]
            log.warning(
                "backend drained by this MUX itself", backend=f"{service}/{backend}", reason=reason, manager="away"
            )
        for service, backend in before.keys() - drained.keys():
            why = "it is healthy again" if away else "the manager is back"
            log.info("backend no longer drained by this MUX itself", backend=f"{service}/{backend}", reason=why)

    def _mention_capped(self, capped: Mapping[str, str]) -> None:
        """Once for each."""
        for service in capped.keys() - self._capped:
            log.error("too many backends seem dead", service=service, reason=capped[service], manager="away")
        self._capped = frozenset(capped)
