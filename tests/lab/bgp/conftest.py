# SPDX-License-Identifier: Apache-2.0
"""Labs with real BGP: one or more MUXes, hosts that only answer ARP, and BIRD or FRR as their router."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from lb.model import BgpPeer, BgpSettings, Service
from tests.lab.process import wait_for
from tests.lab.routers import Neighbour, Routers, RouteWatch, missing, withdrawn_at
from tests.lab.topology import Lab, Node

#: The budget from a SIGKILL to the kernel's route, seconds.
BUDGET = {Routers.BIRD: 0.3, Routers.FRR: 0.6}


class BgpLab(Lab):
    """A lab whose MUXes and routers need not agree on everything."""

    def __init__(self, muxes: int, hosts: int, routers: Routers, *, ipv6: bool = False) -> None:
        super().__init__(muxes, hosts, routers=routers, ipv6=ipv6)
        #: By name of the MUX: what its file says of the router, where that differs.
        self.peer_changes: dict[str, dict[str, Any]] = {}
        #: By name of the MUX: what the router says of it, where that differs.
        self.neighbour_changes: dict[str, dict[str, Any]] = {}
        self.bgp_changes: dict[str, Any] = {}
        self.more_peers: tuple[BgpPeer, ...] = ()

    def bgp_settings(self, mux: Node) -> BgpSettings | None:
        settings = super().bgp_settings(mux)
        assert settings is not None
        peer = replace(settings.peers[0], **self.peer_changes.get(mux.name, {}))
        return replace(settings, peers=(peer, *self.more_peers), **self.bgp_changes)

    def neighbours(self) -> list[Neighbour]:
        return [replace(each, **self.neighbour_changes.get(each.name, {})) for each in super().neighbours()]

    # What tests ask for again and again.

    @property
    def watch(self) -> RouteWatch:
        assert self.routes is not None
        return self.routes

    def up(self, services: Sequence[Service], muxes: Sequence[Node] | None = None) -> None:
        """Starts MUXes without waiting for routes."""
        self.write_files(services)
        self.start_daemons(self.muxes if muxes is None else muxes)

    def wait_hops(self, vip: str, *muxes: Node, seconds: float = 30) -> None:
        """Until the kernel's next hops of the VIP are exactly these MUXes."""
        wanted = frozenset(str(mux.address6 if ":" in vip else mux.address) for mux in muxes)
        names = ", ".join(mux.name for mux in muxes) or "nobody"
        wait_for(lambda: self.watch.hops(vip) == wanted, f"{vip} by {names}, not {self.watch.hops(vip)}", seconds)

    def withdrawn_after(self, mux: Node, vips: Sequence[str], since: float) -> float:
        """Seconds from then until the kernel had no route by this MUX to any of the VIPs."""
        at = wait_for(lambda: withdrawn_at(self.watch, vips, str(mux.address), since), f"{mux.name} to be withdrawn")
        assert at is not None
        return at - since

    def peer(self, mux: Node, name: str = "router") -> dict[str, Any]:
        return next(row for row in self.get(mux, "peers") if row["name"] == name)

    def announcements(self, mux: Node) -> dict[tuple[str, str | None], dict[str, Any]]:
        return {(row["vip"], row["peer"]): row for row in self.get(mux, "announcements")}

    def wait_announced(self, mux: Node, *vips: str) -> None:
        """Until the MUX says that it announces exactly these: it hears of that after its routers do."""

        def told() -> bool:
            rows = self.announcements(mux)
            announced = all(row["state"] == "announced" for row in rows.values())
            return announced and {vip for vip, _ in rows} == set(vips)

        wait_for(told, f"{mux.name} to announce {', '.join(vips)}")

    def wait_peer(self, mux: Node, question: Callable[[dict[str, Any]], bool], what: str, seconds: float = 30) -> None:
        wait_for(lambda: question(self.peer(mux)), f"{mux.name} to say {what}, not {self.peer(mux)}", seconds)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP while this lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module", params=[Routers.BIRD, Routers.FRR], ids=lambda routers: routers.value)
def routers(request: pytest.FixtureRequest) -> Routers:
    """Each test runs with both."""
    chosen: Routers = request.param
    why = missing(chosen)
    if why is not None:
        pytest.skip(why)
    return chosen
