# SPDX-License-Identifier: Apache-2.0
"""What a port remembers of a change that failed half way: nothing that is not so."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from lb.daemon.kernel.watch import OwnMarks
from lb.dataplane import IoStats
from lb.errors import DataplaneError, IoError
from lb.model import MuxSettings
from lb.mux.io import gso_tap, ports
from lb.mux.io.mode import WHOLE, cut
from lb.mux.io.ports import PacketPort, TunPort
from lb.mux.io.socket_filter import vip_filter

OLD, NEW = ip_network("203.0.113.10/32"), ip_network("203.0.113.20/32")


class Ring:
    """Of a worker."""

    #: What the kernel says of the device by which super-packets leave.
    gso_tap_refused: str | None = None
    switches = None
    group = 1

    def __init__(self) -> None:
        self.filter: Any = vip_filter([OLD]).program
        self.refuses = False

    def set_filter(self, program: Any) -> None:
        if self.refuses:
            raise IoError("cannot change the packet filter on eth0: cannot allocate memory")
        self.filter = program

    def set_gso_tap(self, name: str | None, *_: object, **__: object) -> None:
        if name is not None and self.gso_tap_refused is not None:
            raise IoError(self.gso_tap_refused)

    def close(self) -> None:
        pass


class Isolation:
    async def cover(self, vips: object) -> None:
        pass

    async def put_back(self, differences: object) -> None:
        pass


@pytest.fixture
def port(tmp_path: Path) -> Any:
    settings = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=str(tmp_path))
    netlink: Any = None
    made: Any = PacketPort(settings, netlink, tmp_path, OwnMarks(), ())
    made._isolation, made._ios = Isolation(), [Ring(), Ring()]
    made._vips, made._filter = frozenset([OLD]), vip_filter([OLD])
    return made


def filters(port: Any) -> list[Any]:
    return [ring.filter for ring in port.ios]


def test_a_filter_that_one_ring_refuses_is_tried_again(port: Any) -> None:
    """As the same change is; else no packet of the new VIP ever reached that worker."""
    port.ios[1].refuses = True
    with pytest.raises(IoError):
        asyncio.run(port.cover([OLD, NEW]))
    port.ios[1].refuses = False
    asyncio.run(port.cover([OLD, NEW]))
    assert filters(port) == [vip_filter([OLD, NEW]).program] * 2


def test_a_change_that_is_taken_back_leaves_all_rings_with_the_same_filter(port: Any) -> None:
    port.ios[1].refuses = True
    with pytest.raises(IoError):
        asyncio.run(port.cover([OLD, NEW]))
    port.ios[1].refuses = False
    asyncio.run(port.cover([OLD]))
    assert filters(port) == [vip_filter([OLD]).program] * 2


def test_a_port_that_is_opened_again_says_what_becomes_of_super_packets_now(
    port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out of whole ones may be refused then, and be had the next time."""
    monkeypatch.setattr(ports, "PacketIo", lambda *_, **__: Ring())
    monkeypatch.setattr(ports, "Anchor", lambda _: Ring())
    monkeypatch.setattr(gso_tap, "TunnelGsoProgram", lambda _: None)
    monkeypatch.setattr(gso_tap, "_silence", lambda _: None)
    monkeypatch.setattr(gso_tap, "_set_up", lambda _: None)
    monkeypatch.setattr(gso_tap.socket, "if_nametoindex", lambda _: 7)
    said = []
    for refused in (None, "cannot make device lbwhole7: invalid argument", None):
        monkeypatch.setattr(Ring, "gso_tap_refused", refused)
        asyncio.run(port.reopen())
        said.append(port.details.partition("; ")[2])
    assert said == [WHOLE, cut("cannot make device lbwhole7: invalid argument"), WHOLE]


# ---- more workers, and fewer ----


class Queue(Ring):
    """An io with packets in it, of which each look of its worker takes some."""

    def __init__(self, *_: object, waiting: int = 0, **__: object) -> None:
        super().__init__()
        self.waiting, self.received = waiting, 0
        self.steered: list[bool] = []
        self.open = True

    def stats(self) -> IoStats:
        return IoStats(received=self.received)

    def steer(self, program: object) -> None:
        self.steered.append(program is not None)

    def close(self) -> None:
        assert self.waiting == 0, "a packet is lost"
        self.open = False


class Crew:
    """The workers of some ios."""

    def __init__(self, ios: list[Any]) -> None:
        self.ios, self.regrouped = list(ios), 0
        self.stands_still = False

    def look(self) -> None:
        if self.stands_still:
            raise DataplaneError("The worker did not answer")
        for io in self.ios:
            taken = min(io.waiting, 3)
            io.waiting -= taken
            io.received += taken

    def regroup(self, ios: list[Any]) -> None:
        self.ios, self.regrouped = list(ios), self.regrouped + 1


@pytest.fixture
def swaps(monkeypatch: pytest.MonkeyPatch, port: Any) -> list[tuple[int, int]]:
    """How many rings took over from how many; a port with two that have packets, where new ones get some at once."""
    done: list[tuple[int, int]] = []

    class Packets(Queue):
        @staticmethod
        def swap(before: list[Any], after: list[Any], program: object) -> None:
            assert program == vip_filter([OLD]).program
            done.append((len(before), len(after)))

    monkeypatch.setattr(ports, "PacketIo", Packets)
    monkeypatch.setattr(gso_tap, "TunnelGsoProgram", lambda _: None)
    monkeypatch.setattr(gso_tap, "_silence", lambda _: None)
    monkeypatch.setattr(gso_tap, "_set_up", lambda _: None)
    monkeypatch.setattr(gso_tap.socket, "if_nametoindex", lambda _: 7)
    Packets.NEW_GROUP, Packets.ALONE = -2, -1
    port._ios = [Packets(waiting=10), Packets(waiting=4)]
    port._gso_tap.open(port._ios)
    return done


@pytest.mark.parametrize("workers", [1, 3])
def test_rings_are_closed_when_their_workers_have_seen_to_all_that_is_in_them(
    port: Any, swaps: list[tuple[int, int]], workers: int
) -> None:
    old, crew = port.ios, Crew(port.ios)
    asyncio.run(port.resize(workers, crew))
    assert swaps == [(2, workers)]
    assert [ring.open for ring in old] == [False, False]
    assert crew.ios == port.ios
    assert len(port.ios) == workers
    assert port._gso_tap.name == "lbwhole7b", "beside that of the rings before"


def test_rings_go_on_where_others_cannot_take_over(port: Any, swaps: list[tuple[int, int]]) -> None:
    old, crew = port.ios, Crew(port.ios)
    crew.stands_still = True
    with pytest.raises(DataplaneError):
        asyncio.run(port.resize(3, crew))
    assert swaps == [(2, 3), (3, 2)]
    assert port.ios == old
    assert all(ring.open for ring in old)
    assert (crew.regrouped, port._settings.workers, port._gso_tap.name) == (0, 1, "lbwhole7")


@pytest.fixture
def tun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ports, "TunIo", Queue)
    settings = MuxSettings("m", IPv4Address("10.0.1.11"), bytes(16), "eth0", state_dir=str(tmp_path), workers=3)
    netlink: Any = None
    made: Any = TunPort(settings, netlink, tmp_path, OwnMarks(), ())
    made._ios, made._steer = [Queue(waiting=5) for _ in range(3)], object()
    return made


def test_queues_go_when_they_are_empty_and_those_that_stay_have_the_packets(tun: Any) -> None:
    old, crew = tun.ios, Crew(tun.ios)
    asyncio.run(tun.resize(1, crew))
    assert tun.ios == crew.ios == old[:1]
    assert [queue.open for queue in old] == [True, False, False]
    assert old[0].steered == [True, False]


def test_queues_stay_where_their_workers_stand_still(tun: Any) -> None:
    old, crew = tun.ios, Crew(tun.ios)
    crew.stands_still = True
    with pytest.raises(DataplaneError):
        asyncio.run(tun.resize(1, crew))
    assert tun.ios == old
    assert all(queue.open for queue in old)
    assert (old[0].steered, tun._settings.workers) == ([True, False], 3)


def test_queues_come_to_those_that_there_are(tun: Any) -> None:
    old, crew = tun.ios, Crew(tun.ios)
    asyncio.run(tun.resize(5, crew))
    assert tun.ios == crew.ios
    assert tun.ios[:3] == old
    assert len(tun.ios) == 5


def test_fewer_queues_are_refused_where_packets_cannot_be_steered(tun: Any) -> None:
    tun._steer, tun._unsteered = None, "BPF is not permitted"
    assert tun.keeps_workers(4) is None
    assert tun.keeps_workers(2) == (
        "cannot become 2 while the MUX runs, for packets in the queues that go would be lost (BPF is not permitted): "
        "restart lb-mux, or put it back"
    )
