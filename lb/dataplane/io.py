# SPDX-License-Identifier: Apache-2.0
"""Where a worker's packets come from and go to: AF_PACKET and TUN; AF_XDP is in :mod:`lb.dataplane.xdp`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lb.dataplane.binding import Cdata, Closable, c, ffi
from lb.dataplane.bpf_programs import TunnelGsoProgram, TunSteeringProgram, attach_refusal
from lb.errors import IoError

#: Receive ring of one worker: some 100,000 small frames.
RING_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class IoStats:
    """Counters of one io; ``missed``: the kernel dropped them before we saw them."""

    received: int = 0
    sent: int = 0
    missed: int = 0
    send_errors: int = 0

    def __add__(self, other: IoStats) -> IoStats:
        return IoStats(
            self.received + other.received,
            self.sent + other.sent,
            self.missed + other.missed,
            self.send_errors + other.send_errors,
        )


class Io(Closable):
    """Where one worker's packets come from and go to."""

    def __init__(self, what: str, open_: Callable[[Cdata], int]) -> None:
        out = ffi.new("struct io **")
        code = open_(out)
        if code < 0:
            raise IoError(f"{what}: {self._why(-code)}")
        self._c = ffi.gc(out[0], c.io_close)

    @staticmethod
    def _why(number: int) -> str:
        return os.strerror(number).lower()

    def stats(self) -> IoStats:
        """From any thread."""
        raw = ffi.new("struct io_stats *")
        c.io_stats_read(self._c, raw)
        return IoStats(raw.received, raw.sent, raw.missed, raw.send_errors)

    def close(self) -> None:
        """Closes sockets and devices: at once, or when the worker that runs on them has ended."""
        super().close()


class TapIo(Io):
    """One whose super-packets leave by a device of their own (``native/io/gso_tap.h``)."""

    def set_gso_tap(self, name: str | None, program: TunnelGsoProgram | None = None, *, shared: bool = False) -> None:
        """Before a worker runs: super-packets leave whole by a TAP device, which is made; None, or an IoError: they are
        cut.

        ``shared``: other ios have queues of the same device."""
        device = ffi.NULL if name is None else name.encode()
        code = self._set_gso_tap(device, int(shared), program.fd if program is not None else -1)
        if code < 0:
            raise IoError(f"no device {name} for them: {attach_refusal(-code)}")

    def _set_gso_tap(self, name: Cdata, shared: int, program: int) -> int:
        raise NotImplementedError


class PacketIo(TapIo):
    """AF_PACKET on one interface; sends by any."""

    #: The only ring of the interface, or the first of a group; see native/io/af_packet/io_packet.h.
    ALONE = -1
    NEW_GROUP = -2

    def __init__(
        self, interface: str, *, group: int = ALONE, filter_: Sequence[int] = (), ring_bytes: int = RING_BYTES
    ) -> None:
        """``filter_``: classic BPF, one 64-bit word an instruction; ``group``: of the ring to share frames with."""
        program, name = ffi.new("uint64_t[]", list(filter_)), interface.encode()
        super().__init__(
            f"AF_PACKET on {interface}",
            lambda out: c.packet_io_open(name, ring_bytes, group, program, len(filter_), out),
        )
        self._interface = interface

    @property
    def group(self) -> int:
        return int(c.packet_io_group(self._c))

    @property
    def switches(self) -> int | None:
        """How often the ring for much traffic took over; None: there is none, in a group or on a kernel that cannot."""
        count = int(c.packet_io_switches(self._c))
        return None if count < 0 else count

    def set_filter(self, filter_: Sequence[int]) -> None:
        """Replaces the filter at once; empty: everything enters the ring."""
        code = c.packet_io_filter(self._c, ffi.new("uint64_t[]", list(filter_)), len(filter_))
        if code < 0:
            raise IoError(f"cannot change the packet filter on {self._interface}: {os.strerror(-code).lower()}")

    @staticmethod
    def swap(before: Sequence[PacketIo], after: Sequence[PacketIo], filter_: Sequence[int]) -> None:
        """Packets enter the rings of ``after``, by this filter, and no more those of ``before``.

        None is lost; for some microseconds one may enter both. Raises IoError, with all as it was."""
        old, new = (ffi.new("struct io *[]", [io._c for io in ios]) for ios in (before, after))
        code = c.packet_io_swap(old, len(before), new, len(after), ffi.new("uint64_t[]", list(filter_)), len(filter_))
        if code < 0:
            raise IoError(f"cannot let packets into other rings: {os.strerror(-code).lower()}")

    def _set_gso_tap(self, name: Cdata, shared: int, program: int) -> int:
        return int(c.packet_io_set_gso_tap(self._c, name, shared, program))


class TunIo(Io):
    """One queue of a TUN device, which exists as long as its queues do."""

    def __init__(self, name: str, *, shared: bool = False, program: TunnelGsoProgram | None = None) -> None:
        """``shared``: further queues of the same device will follow, or this is one. ``program``: super-packets come
        and go whole; else the kernel cuts them before."""
        fd = program.fd if program is not None else -1
        super().__init__(f"TUN device {name}", lambda out: c.tun_io_open(name.encode(), int(shared), fd, out))
        self._name = name

    def steer(self, program: TunSteeringProgram | None) -> None:
        """Every packet goes to the device's first queue while it has the program; None: to all queues again."""
        code = c.tun_io_steer(self._c, program.fd if program is not None else -1)
        if code < 0:
            raise IoError(f"cannot steer the packets of TUN device {self._name}: {os.strerror(-code).lower()}")
