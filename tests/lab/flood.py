# SPDX-License-Identifier: Apache-2.0
"""More packets for a VIP than a MUX can take: frames of 60 bytes that the kernel makes, put into the MUXes' network.

They go straight to the MAC address of one MUX, so that the router, which is of this machine as well, need not carry
them. Half of the time they are SYNs of many flows, half of the time ACKs of the same: a flood, and what looks
established. Their TCP checksum is wrong, which no MUX looks at, and which ends them at the backend's kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from lb.bench.packet_rate import merge_received
from lb.bench.testbed import netns as own_netns
from lb.bench.testbed.daemons import first_in_line
from lb.dataplane import Generator, GeneratorKind
from tests.lab import netns
from tests.lab.fleet import Fleet
from tests.lab.topology import Node

#: 64 bytes on the wire, with the frame check sequence.
FRAME_BYTES = 60
FLOWS = 20_000
SOURCE = IPv4Address("198.51.100.7")
SYN, ACK = 0x02, 0x10
#: Of one kind, seconds.
TURN = 0.25
#: Of a busy machine we take three times what others get: else no more comes than a MUX can take.
SHARE = -5
_MAC = "02:00:00:00:66:01"


class Flood:
    """From ``with`` to its end; ``offered`` counts what was sent so far."""

    def __init__(self, fleet: Fleet, mux: Node, vip: str, port: int) -> None:
        self._router = fleet.router
        mac = json.loads(netns.ip("-n", mux.namespace, "-j", "link", "show", "eth0"))[0]["address"]
        self._frames = [frame(mac, vip, port, flags) for flags in (SYN, ACK)]
        self._over = threading.Event()
        self._ready = threading.Event()
        self._lifted = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="flood")
        self.offered = 0
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        lines = [
            "link add name flood0 type veth peer name flood1",
            "link set flood1 master brm up",
            "link set flood0 up",
        ]
        netns.batch(lines, self._router)
        netns.inside(self._router, lambda: merge_received("flood1"))  # else the kernel takes none of such frames
        self._lifted.enter_context(first_in_line(SHARE))
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._lifted.close()
        with contextlib.suppress(netns.LabError):
            netns.ip("-n", self._router, "link", "del", "flood0")
        if self.error is not None and error is None:
            raise self.error

    def _run(self) -> None:
        try:
            own_netns.enter(self._router)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            generators = [Generator("flood0", one, FLOWS, GeneratorKind.LIVE) for one in self._frames]
            try:
                self._ready.set()
                turn = 0
                while not self._over.is_set():
                    self.offered += generators[turn % len(generators)].run(TURN).sent
                    turn += 1
            finally:
                for generator in generators:
                    generator.close()
        except BaseException as error:  # it is raised where the flood ends
            self.error = error
        finally:
            self._ready.set()


def frame(mac: str, vip: str, port: int, flags: int) -> bytes:
    """One frame; the generator writes the source port."""
    tcp = struct.pack("!HHIIBBHHH", 0, port, 1, 1, 0x50, flags, 1024, 0, 0)
    length = 20 + len(tcp)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 6, 0) + SOURCE.packed + IPv4Address(vip).packed
    total: int = sum(struct.unpack("!10H", header))
    checksum = ~(total + (total >> 16)) & 0xFFFF
    ethernet = bytes.fromhex((mac + _MAC).replace(":", "")) + b"\x08\x00"
    return (ethernet + header[:10] + checksum.to_bytes(2) + header[12:] + tcp).ljust(FRAME_BYTES, b"\0")
