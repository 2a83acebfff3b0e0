# SPDX-License-Identifier: Apache-2.0
"""Receive rings change with the traffic: a lone packet is sent on at once, and at no change is one lost or doubled."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network

import pytest

pytest.importorskip("lb._dataplane")

from lb.bench.packet_rate import merge_received, open_counters
from lb.bench.testbed.netns import enter
from lb.dataplane import Generator, GeneratorKind, Hop, LinkHeader, PacketIo, Pipeline, Worker
from lb.dataplane.compile.compiler import Compiler
from lb.model import Backend, MuxSettings, PortRange, Protocol, Service
from lb.mux.io.socket_filter import vip_filter
from tests.lab.netns import batch, inside, ip, sysctl, unique_prefix
from tests.lab.process import wait_for
from tests.packets.build import MUX_MAC, ROUTER_MAC, ethernet, ipv4, udp

pytestmark = [pytest.mark.lab, pytest.mark.timed]

VIP = IPv4Network("203.0.113.10/32")
BACKEND = IPv4Address("10.0.3.1")
SERVICE = Service("dns", VIP, Protocol.UDP, PortRange(53, 53), (Backend("one", BACKEND),), slots=251)
SETTINGS = MuxSettings("mux1", IPv4Address("10.0.1.11"), bytes(range(16)), interface="m0", flows=10_000)
PAYLOAD = b"a lone packet"
FRAME = ethernet(ipv4(udp(PAYLOAD)))
ETH_P_ALL, PACKET_OUTGOING = 3, 4
#: Blocks are given out by a timer of 1 ms, and a request through one takes that long; otherwise a tenth of it.
AT_ONCE = 0.0005


class Wire:
    """A MUX at one end of a link; at the other a socket for lone packets, and a generator."""

    def __init__(self, stack: ExitStack) -> None:
        prefix = unique_prefix()
        outside, mux = f"{prefix}-out", f"{prefix}-mux"
        for name in (outside, mux):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            sysctl(name, {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        batch(
            [
                f"link add name m0 address {MUX_MAC.hex(':')} type veth "
                f"peer name o0 address {ROUTER_MAC.hex(':')} netns {outside}",
                "link set dev m0 up",
            ],
            mux,
        )
        batch(["link set dev o0 up"], outside)
        inside(mux, lambda: merge_received("m0"))
        self._outside, self._mux = outside, mux
        self._counters = inside(mux, open_counters)
        stack.callback(self._counters.close)
        forwarding = Compiler(SETTINGS).compile([SERVICE])
        self.io = inside(mux, lambda: PacketIo("m0", filter_=vip_filter([VIP]).program))
        stack.callback(self.io.close)
        snapshot = forwarding.snapshot({BACKEND: Hop(BACKEND, ROUTER_MAC, MUX_MAC, 0)})
        self.worker = Worker(Pipeline(SETTINGS.flows, LinkHeader.NEXT_HOP), self.io, snapshot)
        stack.callback(self.worker.close)
        self.worker.start()
        thread = stack.enter_context(ThreadPoolExecutor(1, initializer=enter, initargs=(outside,)))
        self._generator = thread.submit(Generator, "o0", FRAME, 64, GeneratorKind.LIVE).result()
        stack.callback(self._generator.close)
        self._run = lambda seconds: thread.submit(self._generator.run, seconds).result()

    def blast(self, seconds: float) -> None:
        """As many packets as the machine can make."""
        self._run(seconds)

    def came(self) -> int:
        """Packets that reached the MUX's end of the link."""
        self._counters.seek(0)
        (line,) = (line for line in self._counters.read().decode().splitlines() if line.strip().startswith("m0:"))
        return int(line.partition(":")[2].split()[1])

    def lone(self, number: int) -> list[float]:
        """One packet after the other, each only when the last has come back; how long each took, seconds."""
        taken = []
        with inside(self._outside, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as made:
            made.bind(("o0", ETH_P_ALL))
            made.settimeout(5)
            for _ in range(number):
                began = time.perf_counter()
                made.send(FRAME)
                while True:
                    data, (_, _, kind, *_) = made.recvfrom(2048)
                    if kind != PACKET_OUTGOING and data.endswith(PAYLOAD):
                        break
                taken.append(time.perf_counter() - began)
        return taken

    def interrupt(self) -> None:
        """The link goes down and comes back."""
        batch(["link set dev m0 down", "link set dev m0 up"], self._mux)

    def settle(self) -> None:
        """Until the worker has done all that came."""

        def quiet() -> bool:
            before = self.io.stats().received
            time.sleep(0.05)
            return self.io.stats().received == before

        wait_for(quiet, "the end of the packets")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack)


def test_every_packet_comes_once_however_the_rings_change_and_lone_ones_go_at_once(wire: Wire) -> None:
    times = wire.lone(100)
    for _ in range(4):
        wire.blast(0.15)
        wire.settle()
        times += wire.lone(100)
    stats, counters = wire.io.stats(), wire.worker.pipeline_counters()
    assert wire.io.switches is not None
    assert wire.io.switches >= 2
    assert stats.received + stats.missed == wire.came() > 100_000
    assert (stats.sent + stats.send_errors, counters.received) == (stats.received, stats.received)
    assert statistics.median(times) < AT_ONCE


def test_after_the_link_was_down_lone_packets_still_go_at_once(wire: Wire) -> None:
    """The kernel puts both rings into their group again, in an order that matters."""
    wire.interrupt()
    wait_for(lambda: wire.worker.counters().errors, "the worker to have seen it")
    assert statistics.median(wire.lone(100)) < AT_ONCE
    wire.blast(0.15)
    wire.settle()
    assert wire.io.switches
    assert statistics.median(wire.lone(100)) < AT_ONCE
