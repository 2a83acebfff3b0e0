# SPDX-License-Identifier: Apache-2.0
"""The data plane of one MUX while it is open: the port that packets come and go by, and the engine that forwards them.

It is opened again when the interface is another one (:meth:`MuxPlane.reopen`), and gets other workers while it forwards
(:meth:`MuxPlane.resize`); flows are remembered over both. Owned by :mod:`lb.mux.daemon`; used in its event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from lb.daemon.log import get_logger
from lb.daemon.supervise import Tasks
from lb.dataplane.snapshot import Hop
from lb.errors import DataplaneError, VipmuxError
from lb.model import Address
from lb.mux.hops.next_hops import Resolution
from lb.mux.io.mode import Mode
from lb.mux.io.ports import Port
from lb.mux.workers.engine import Engine

#: Between two looks whether there are services, seconds.
INHERIT_WAIT = 0.5

log = get_logger()


class MuxPlane:
    """What forwards packets."""

    def __init__(
        self,
        port: Port,
        mode: Mode,
        engine: Engine,
        *,
        interface: str,
        workers: int,
        tasks: Tasks,
        lost: Callable[[], None],
        narrowed: Callable[[Mapping[Address, Hop]], Mapping[Address, Hop]] = lambda hops: hops,
    ) -> None:
        """``lost`` is called when nobody forwards any more, because the port could not be opened again. ``narrowed``:
        ways with what is known of their MTU; the same object where that is the same."""
        self.port = port
        self.mode = mode  #: what was obtained when the port was opened last
        self.engine = engine
        self.workers = workers
        self._interface = interface
        self._tasks = tasks
        self._lost = lost
        self._narrowed = narrowed
        self._opening = asyncio.Lock()  # one who opens and closes ios at a time

    def hops(self, addresses: tuple[Address, ...], found: Mapping[Address, Resolution]) -> Mapping[Address, Hop]:
        """The ways to backends as the port has them, and as wide as they are known to be."""
        return self._narrowed(self.port.hops(addresses, found))

    async def reopen(self) -> None:
        """A new interface of the old name: new isolation, new rings, the same flow tables. Raises VipmuxError."""
        async with self._opening:
            self.engine.stop()
            try:
                await self.port.reopen()
                self.engine.start(self.port.ios)
            except Exception:  # whatever it is: else the port looks open, and nobody forwards
                self._lose()
                raise
            self._opened_again()
        self.inherit_soon()

    def _lose(self) -> None:
        """The keeper opens it again."""
        self.engine.stop()
        self.port.close_ios()
        self._lost()

    def _opened_again(self) -> None:
        """What was had of the port before may not be had now, and what was refused may be."""
        before, self.mode = self.mode, replace(self.mode, details=self.port.details)
        say = log.warning if self.mode.cuts and not before.cuts else log.info
        more = {} if self.mode == before else {"before": before.text}
        say("interface opened again", interface=self._interface, mode=self.mode.text, **more)

    async def resize(self, workers: int) -> None:
        """More workers or fewer, and every flow is known to them.

        Raises VipmuxError, with the workers as they were or with the port lost."""
        before = self.workers
        if workers == before:
            return
        async with self._opening:
            await asyncio.to_thread(self.engine.inherit)  # what a change before left
            self.engine.expect_strangers()
            try:
                await self.port.resize(workers, self.engine)
            except VipmuxError as error:
                if not self.engine.bursts() and self.port.ios:
                    self._lose()
                raise DataplaneError(f"mux.workers: {before} did not become {workers}: {error}") from None
            self.mode = replace(self.mode, details=self.port.details)
            self.workers = workers
        self.inherit_soon()
        log.info("workers changed", before=before, workers=workers, mode=self.mode.text)

    def inherit_soon(self) -> None:
        """What workers before knew goes to those of now, beside their work."""
        if self.engine.inherits:
            self._tasks.retried("flows to other workers", self._inherit)

    async def _inherit(self) -> None:
        # What nobody serves would be forgotten, and a manager may be about to tell of services.
        while not self.engine.forwarding.services:  # noqa: ASYNC110  whoever publishes knows nothing of this
            await asyncio.sleep(INHERIT_WAIT)
        flows = await asyncio.to_thread(self.engine.inherit)
        log.info("flows moved to other workers", flows=flows)
