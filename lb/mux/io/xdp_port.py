# SPDX-License-Identifier: Apache-2.0
"""The AF_XDP port: an XDP program in the place of the socket filter, everything else as in packet mode.

Chosen by :mod:`lb.mux.io.open_port`; how it is tried is decided by :mod:`lb.mux.io.xdp_support`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.watch import OwnMarks
from lb.daemon.log import get_logger
from lb.dataplane import Io, Redirect, XdpIo
from lb.errors import IoError, VipmuxError
from lb.model import MuxSettings, Network
from lb.mux.hops.netlink import Netlink
from lb.mux.io.ethernet import Facts, Offloads, OffNote, address_of, facts_of, queues_of
from lb.mux.io.mode import TOGETHER, apart
from lb.mux.io.ports import Anchor, Crew, PacketPort, exists
from lb.mux.io.startup import NamespaceClaim
from lb.mux.io.xdp_support import LINK_HEADER, Attempt, attempts, described, refusal

log = get_logger()

#: Sockets that the map of queues has room for, should their number grow.
QUEUES_ROOM = 256
#: In the state directory, while offloads are off because of the program.
OFF_NOTE = "offloads.off"


class XdpPort(PacketPort):
    """AF_XDP on the interface: as packet mode, with an XDP program in the place of the socket filter."""

    guesses_checksums = True

    def __init__(
        self, settings: MuxSettings, netlink: Netlink, state_dir: Path, own: OwnMarks, claims: Sequence[NamespaceClaim]
    ) -> None:
        super().__init__(settings, netlink, state_dir, own, claims)
        self._redirect: Redirect | None = None  # loaded while all privileges are there, and kept
        self._taken: set[Network] = set()  # what it has
        self._address = b""  # of the interface, as it has it
        self._offloads: Offloads | None = None
        self._off_note = OffNote(state_dir / OFF_NOTE)
        self._xdp_ios: list[XdpIo] = []
        self._queues = 0
        self._attempt: Attempt | None = None

    @property
    def ios(self) -> list[Io]:
        return list(self._xdp_ios)

    @property
    def details(self) -> str:
        if self._attempt is None:
            return ""
        words = described(
            self._attempt,
            self._queues,
            busy_asked=self._settings.busy_poll,
            busy=[io.busy_poll for io in self._xdp_ios],
        )
        if self._attempt.zero_copy:
            return words  # frames are on their way for a while: others must not overtake them
        return f"{words}; {TOGETHER if self._gso_tap.refused is None else apart(self._gso_tap.refused)}"

    async def open(self, vips: Iterable[Network]) -> None:
        """What speaks against it is found before anything is touched."""
        facts = self._facts()
        try:
            self._redirect = Redirect(max(facts.queues, QUEUES_ROOM))
            await super().open(vips)
        except VipmuxError:
            self._forget_program()
            raise

    def _facts(self) -> Facts:
        facts = facts_of(self._settings.interface)
        why_not = refusal(facts, self._settings.workers, self._settings.io)
        if why_not is not None:
            raise IoError(why_not)
        return facts

    def _open_rings(self) -> None:
        """The program first: drivers set their queues up anew when they get one."""
        facts = self._facts()
        interface = self._settings.interface
        self._anchor = Anchor(interface)
        self._take(self._vips)
        self._tell_address()
        self._offloads = Offloads(interface)
        refused: dict[str, None] = {}  # in their order, each once
        for attempt in attempts(facts, self._settings.io):
            try:
                self._attach(attempt)
                self._open_sockets(facts, attempt)
            except IoError as error:
                self._close_sockets()
                refused[f"{attempt.text}: {error}"] = None
                continue
            self._attempt, self._queues = attempt, queues_of(interface)
            if not attempt.zero_copy:
                self._gso_tap.open(self._xdp_ios)
            self._say(facts, list(refused))
            return
        raise IoError("; ".join(refused))

    def _program(self) -> Redirect:
        if self._redirect is None:
            raise IoError("there is no XDP program")
        return self._redirect

    def _attach(self, attempt: Attempt) -> None:
        self._program().attach(socket.if_nametoindex(self._settings.interface), generic=attempt.generic)
        if attempt.generic and self._offloads is not None:
            self._offloads.merge_nothing()

    def _open_sockets(self, facts: Facts, attempt: Attempt) -> None:
        workers, queues = self._settings.workers, queues_of(self._settings.interface)
        for worker in range(workers):
            self._xdp_ios.append(
                XdpIo(
                    self._settings.interface,
                    self._program(),
                    queues=queues,
                    first=worker,
                    every=workers,
                    frame_max=facts.mtu + LINK_HEADER,
                    zero_copy=attempt.zero_copy,
                    busy_poll=self._settings.busy_poll,
                )
            )

    def _say(self, facts: Facts, refused: Sequence[str]) -> None:
        went_off = self._offloads.went_off() if self._offloads is not None else []
        if went_off:
            self._off_note.write(self._settings.interface, went_off)
        log.info(
            "XDP program attached",
            interface=self._settings.interface,
            driver=facts.driver,
            mode=self.details,
            refused="; ".join(refused) or "nothing",
            offloads_off=" ".join(went_off) or "none",
            neighbours="no segmentation offload towards us" if facts.driver == "veth" else "as before",
            until="it is detached",
        )

    async def cover(self, vips: Iterable[Network]) -> None:
        wanted = frozenset(vips)
        if wanted == self._vips == self._taken:
            return
        await self._isolation.cover(wanted)
        self._vips = wanted
        self._take(wanted)

    def _take(self, vips: frozenset[Network]) -> None:
        """What fails half way is known, and done again with the next change."""
        program = self._program()
        for network in vips - self._taken:
            program.add(network)
            self._taken.add(network)
        for network in self._taken - vips:
            program.remove(network)
            self._taken.remove(network)

    def keeps_workers(self, workers: int) -> str | None:
        return (
            f"cannot become {workers} while the MUX runs with AF_XDP, which has one socket for each queue of the "
            "interface: restart lb-mux, or put it back"
        )

    async def resize(self, workers: int, crew: Crew) -> None:
        del crew
        raise IoError(f"mux.workers {self.keeps_workers(workers)}")

    def _tell_address(self) -> None:
        address = address_of(self._settings.interface)
        if address != self._address:
            self._program().set_address(address)
            self._address = address

    def lost(self) -> Difference | None:
        interface = self._settings.interface
        lost = super().lost()
        if lost is not None or not exists(interface):
            return lost
        with contextlib.suppress(IoError):
            self._tell_address()
        if self._redirect is None or not self._redirect.attached:
            return Difference("interface", f"XDP program on {interface}", "was detached", urgent=True)
        if queues_of(interface) != self._queues:
            return Difference("interface", f"queues of {interface}", "are others", urgent=True)
        return None

    def _close_sockets(self) -> None:
        for io in self._xdp_ios:
            io.close()
        self._xdp_ios = []
        if self._redirect is not None:
            self._redirect.detach()
        if self._offloads is not None:
            self._offloads.put_back()
            self._off_note.forget()

    def close_ios(self) -> None:
        self._close_sockets()
        super().close_ios()

    def _forget_program(self) -> None:
        if self._redirect is not None:
            self._redirect.close()
            self._redirect = None
        self._taken, self._address = set(), b""

    async def remove(self) -> None:
        await super().remove()
        self._forget_program()
