# SPDX-License-Identifier: Apache-2.0
"""The lab's stand-in for BGP: keeps the router's ECMP routes to the VIPs pointing at the MUXes that live.

Called by :mod:`tests.lab.topology`. It watches the MUX processes (pidfd) and takes a dead one out of the routes
within milliseconds; the lab tells it when one is ready. The thread owns the routes of the VIPs on the router and
nothing else. In a real installation the routers learn all this from each MUX's BGP session.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.lab import netns


@dataclass(frozen=True, slots=True)
class Event:
    """What the guardian did, and when (monotonic seconds, after the routes were changed)."""

    at: float
    mux: str
    action: str  #: "announced" or "withdrawn"
    why: str


@dataclass(slots=True)
class _Watched:
    address: str
    pidfd: int


class Guardian:
    """Owns the routes ``VIP via MUX, MUX...`` in the router's namespace."""

    def __init__(self, router: str, device: str, say: Callable[[str], None] = lambda line: None) -> None:
        self.events: list[Event] = []
        self._router = router
        self._device = device
        self._say = say
        self._vips: tuple[str, ...] = ()
        self._muxes: dict[str, _Watched] = {}
        self._paused = False
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="guardian", daemon=True)
        self._thread.start()

    def serve(self, vips: tuple[str, ...]) -> None:
        """Says which VIPs there are; their routes follow."""
        with self._lock:
            gone = set(self._vips) - set(vips)
            self._vips = vips
            if self._muxes and gone:
                netns.batch([f"route del {vip}" for vip in sorted(gone)], self._router)
            self._set_routes()

    def announce(self, mux: str, address: str, pid: int) -> None:
        """A MUX is ready: routes include it from now on, until it dies or is withdrawn."""
        with self._lock:
            self._muxes[mux] = _Watched(address, os.pidfd_open(pid))
            self._set_routes()
            self._note(mux, "announced", "it is ready")
        os.write(self._wake_write, b".")

    def withdraw(self, mux: str, why: str = "a planned stop") -> None:
        """Takes a MUX out of the routes; nothing happens if it is not in them."""
        with self._lock:
            self._withdraw(mux, why)
        os.write(self._wake_write, b".")

    @contextlib.contextmanager
    def blind(self) -> Iterator[None]:
        """While this lasts, deaths go unnoticed: the routers of a pool whose BGP hold timer still runs."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            os.write(self._wake_write, b".")

    def withdrawn_at(self, mux: str, since: float) -> float | None:
        """When this MUX was taken out after the given moment; None if it was not."""
        return next(
            (
                event.at
                for event in self.events
                if (event.mux, event.action) == (mux, "withdrawn") and event.at >= since
            ),
            None,
        )

    def close(self) -> None:
        self._stopping = True
        os.write(self._wake_write, b".")
        self._thread.join()
        for watched in self._muxes.values():
            os.close(watched.pidfd)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _watch(self) -> None:
        while not self._stopping:
            with self._lock:
                by_fd = {} if self._paused else {watched.pidfd: mux for mux, watched in self._muxes.items()}
            readable, _, _ = select.select([self._wake_read, *by_fd], [], [])
            if self._wake_read in readable:
                os.read(self._wake_read, 64)
            if self._paused or self._stopping:
                continue
            with self._lock:
                for fd in readable:
                    mux = by_fd.get(fd)
                    if mux in self._muxes and self._muxes[mux].pidfd == fd:
                        self._withdraw(mux, "its process died")

    def _withdraw(self, mux: str, why: str) -> None:
        watched = self._muxes.pop(mux, None)
        if watched is None:
            return
        os.close(watched.pidfd)
        self._set_routes()
        self._note(mux, "withdrawn", why)

    def _note(self, mux: str, action: str, why: str) -> None:
        self.events.append(Event(time.monotonic(), mux, action, why))
        self._say(f"{mux} {action}: {why}")

    def _set_routes(self) -> None:
        hops = [f"via {watched.address} dev {self._device}" for _, watched in sorted(self._muxes.items())]
        if not self._vips:
            return
        if not hops:  # a router without a route says so at once, as it would after a withdrawal
            netns.batch([f"route replace unreachable {vip}" for vip in self._vips], self._router)
            return
        target = hops[0] if len(hops) == 1 else " ".join(f"nexthop {hop}" for hop in hops)
        netns.batch([f"route replace {vip} {target}" for vip in self._vips], self._router)
