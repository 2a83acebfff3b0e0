# SPDX-License-Identifier: Apache-2.0
"""Datagrams in fragments, in any order, over several workers, and what must not be made of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations

import pytest
from lb._dataplane import ffi
from lb._dataplane import lib as c

from lb.dataplane import REASONS, Fragments, LinkHeader, Pipeline, Snapshot
from lb.dataplane.compile.compiler import Compiler
from lb.model import Backend, BackendState
from tests.model.fragments import pieces
from tests.packets.build import ipv4, ipv6, udp
from tests.packets.size import data
from tests.packets.world import DNS, DNS6, FIRST_ID, SERVICES, SETTINGS, to

SECOND = 1_000_000_000
#: As :data:`lb.mux.workers.engine.FRAGMENTS_KEEP`.
KEEP = 1 << 20
FORWARDING = Compiler(SETTINGS).compile(SERVICES)
SNAPSHOT = FORWARDING.offline_snapshot()


def datagram(size: int, ident: int = 0x1234) -> list[bytes]:
    """In fragments that fit."""
    return list(pieces(ipv4(udp(data(size)), df=False, ident=ident), 1420))


PIECES = datagram(3990)


def pieces6(payload: bytes, size: int, ident: int = 9) -> list[bytes]:
    """A UDP datagram over IPv6 as its sender cuts it."""
    whole = ipv6(udp(payload))
    rest, found = whole[40:], []
    for at in range(0, len(rest), size):
        part, more = rest[at : at + size], at + size < len(rest)
        header = bytes([17, 0]) + (at | more).to_bytes(2) + ident.to_bytes(4)
        found.append(whole[:4] + (8 + len(part)).to_bytes(2) + bytes([44]) + whole[7:40] + header + part)
    return found


PIECES6 = pieces6(data(3990), 1280)


class Mux:
    """One worker's pipeline; what it sent and counted since the last look."""

    def __init__(self, fragments: Fragments | None = None, *, flows: int = 1000, keep: int = KEEP) -> None:
        self.pipeline = Pipeline(flows, LinkHeader.NONE, first_id=FIRST_ID, fragments=fragments or Fragments(keep))
        self.snapshot: Snapshot = SNAPSHOT
        self.now = 0
        memory = ffi.new("struct io **")
        assert c.io_memory_open(0, memory) == 0
        self._io = ffi.gc(memory[0], c.io_close)
        self._counted = dict.fromkeys((reason.name for reason in REASONS), 0)

    def send(self, *packets: bytes) -> list[bytes]:
        """In one burst; what leaves."""
        for packet in packets:
            assert c.io_memory_load(self._io, packet, len(packet), len(packet)) == 0
        results = ffi.new("struct memory_result[]", len(packets))
        assert c.mux_run_loaded(self.pipeline._c, self.snapshot._c, self._io, self.now, results) == len(packets)
        sent, found = ffi.new("struct memory_sent *"), []
        for i in range(c.io_memory_sent_count(self._io)):
            c.io_memory_sent(self._io, i, sent)
            found.append(bytes(ffi.buffer(sent.data, sent.len)))
        assert self.pipeline.check() is None
        return found

    def counted(self) -> dict[str, int]:
        """What each reason counted since the last call, where that is something; all of it was received."""
        counters = self.pipeline.counters()
        assert counters.received == sum(counters.reasons)
        now = dict(zip(self._counted, counters.reasons, strict=True))
        new = {name: now[name] - before for name, before in self._counted.items() if now[name] != before}
        self._counted = now
        return new


def constant(packet: bytes) -> bytes:
    """Without the field that a hop changes, and its checksum."""
    return packet[:8] + packet[9:10] + packet[12:] if packet[0] >> 4 == 4 else packet[:7] + packet[8:]


def inner(frames: Iterable[bytes]) -> Counter[bytes]:
    """What is in the tunnels."""
    return Counter(constant(frame[20 if frame[0] >> 4 == 4 else 40 :]) for frame in frames)


def ends(frames: Iterable[bytes]) -> set[str]:
    """The hosts that they go to."""
    return {str(ip_address(frame[16:20] if frame[0] >> 4 == 4 else frame[24:40])) for frame in frames}


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in one burst"])
@pytest.mark.parametrize("flows", [0, 1000], ids=["stateless", "with a table"])
@pytest.mark.parametrize(("whole", "host"), [(PIECES, DNS), (PIECES6, DNS6)], ids=["IPv4", "IPv6"])
def test_in_any_order_all_fragments_go_to_one_host(whole: list[bytes], host: str, flows: int, together: bool) -> None:
    for order in permutations(whole):
        mux = Mux(flows=flows)
        out = mux.send(*order) if together else [frame for packet in order for frame in mux.send(packet)]
        assert ends(out) == {host}
        assert inner(out) == Counter(map(constant, whole))
        assert mux.counted() == {"fragment": len(whole)}


def test_one_that_waits_leaves_with_the_first_and_not_before() -> None:
    mux = Mux()
    assert mux.send(PIECES[1]) == []
    assert mux.send(PIECES[2]) == []
    assert mux.counted() == {}, "nobody knows yet what becomes of them"
    out = mux.send(PIECES[0])
    assert out == [to(DNS, PIECES[n], FIRST_ID + i) for i, n in enumerate((0, 1, 2))]


def test_one_that_waits_in_vain_is_alone_after_two_seconds() -> None:
    mux = Mux()
    mux.send(PIECES[1])
    mux.now = 2 * SECOND - SECOND // 100
    mux.send(ipv4(udp()))
    assert mux.counted() == {"forwarded": 1}
    mux.now = 2 * SECOND + SECOND // 100
    mux.send(ipv4(udp()))
    assert mux.counted() == {"forwarded": 1, "fragment_alone": 1}
    assert mux.send(PIECES[0]), "the first of another datagram, which has the same ID"
    assert mux.send(PIECES[1])


def test_a_datagram_that_is_complete_is_forgotten_so_that_its_id_may_come_again() -> None:
    mux = Mux()
    for _ in range(3):
        assert len(mux.send(*PIECES)) == len(PIECES)
    assert mux.counted() == {"fragment": 3 * len(PIECES)}


@pytest.mark.parametrize("whole", [PIECES, PIECES6], ids=["IPv4", "IPv6"])
def test_what_came_twice_goes_once(whole: list[bytes]) -> None:
    mux = Mux()
    assert len(mux.send(whole[0], whole[0], whole[1], whole[1], whole[2], *whole[3:])) == len(whole)
    assert mux.counted() == {"fragment": len(whole), "fragment_overlap": 2}


def shifted(packet: bytes, units: int) -> bytes:
    """The same fragment somewhere else."""
    where = int.from_bytes(packet[6:8]) + units
    header = packet[:6] + where.to_bytes(2) + packet[8:10] + bytes(2) + packet[12:20]
    check = 0xFFFF - sum(int.from_bytes(header[i : i + 2]) for i in range(0, 20, 2)) % 0xFFFF
    return header[:10] + check.to_bytes(2) + header[12:] + packet[20:]


@pytest.mark.parametrize("units", [-1, 1])
def test_a_fragment_that_overlaps_ends_its_datagram(units: int) -> None:
    """RFC 5722, and RFC 8200, 4.5: nobody shall read what was not looked at."""
    mux = Mux()
    mux.send(PIECES[0], PIECES[2])
    assert mux.send(shifted(PIECES[1], units)) == []
    assert mux.send(PIECES[1]) == []
    assert mux.send(PIECES[0]) == []
    counted = mux.counted()
    assert counted == {"fragment": 2, "fragment_overlap": 3}


def test_what_lies_behind_the_end_ends_the_datagram() -> None:
    mux = Mux()
    assert len(mux.send(PIECES[0], PIECES[-1])) == 2
    assert mux.send(shifted(PIECES[-1], 400)) == []
    assert mux.send(PIECES[1]) == []
    assert mux.counted() == {"fragment": 2, "fragment_overlap": 2}


def test_what_waits_is_bounded_in_bytes() -> None:
    mux = Mux(keep=3 * 1500)
    for ident in range(5):
        mux.send(datagram(3990, ident)[1])
    assert mux.counted() == {"fragment_alone": 2}, "three have room"


def test_datagrams_under_way_are_bounded_and_the_oldest_makes_room() -> None:
    mux = Mux(keep=16 << 20)
    many = 3000
    for ident in range(many):
        mux.send(datagram(1500, ident)[1])
    counted = mux.counted()
    assert 0 < counted["fragment_alone"] < many
    assert len(mux.send(datagram(1500, many - 1)[0])) == 2, "the youngest is there"


def test_workers_know_of_each_others_datagrams() -> None:
    fragments = Fragments(KEEP)
    one, other = Mux(fragments), Mux(fragments)
    assert len(one.send(PIECES[0])) == 1
    assert ends(other.send(PIECES[1])) == {DNS}
    assert other.send(datagram(3990, 77)[1]) == []
    assert len(one.send(datagram(3990, 77)[0])) == 2
    assert other.counted() == {"fragment": 1}
    assert one.counted() == {"fragment": 3}


Publish = Callable[[Sequence[Backend]], Snapshot]


@pytest.fixture
def publish() -> Publish:
    compiler = Compiler(SETTINGS)

    def compiled(backends: Sequence[Backend]) -> Snapshot:
        services = [replace(s, backends=tuple(backends)) if s.name == "dns" else s for s in SERVICES]
        return compiler.compile(services).offline_snapshot()

    return compiled


def test_fragments_go_where_the_flow_was_before_its_slot_moved(publish: Publish) -> None:
    hosts = [Backend(f"b{n}", ip_address(f"10.0.3.{n}")) for n in range(1, 9)]
    mux, moved = Mux(), 0
    for port in range(1, 60):
        mux.snapshot = publish(hosts[:1])
        assert ends(mux.send(ipv4(udp(sport=port)))) == {"10.0.3.1"}
        mux.snapshot = publish(hosts)
        fresh = Mux()
        fresh.snapshot = mux.snapshot
        moved += ends(fresh.send(ipv4(udp(sport=port)))) != {"10.0.3.1"}
        order = list(pieces(ipv4(udp(data(3990), sport=port), df=False, ident=port), 1420))
        random.Random(port).shuffle(order)
        assert ends(mux.send(*order)) == {"10.0.3.1"}
    assert moved > 20


def test_fragments_of_a_backend_that_has_gone_down_go_nowhere(publish: Publish) -> None:
    backend = Backend("b1", ip_address("10.0.3.1"))
    mux = Mux()
    mux.snapshot = publish([backend])
    mux.send(PIECES[0])
    mux.snapshot = publish([replace(backend, state=BackendState.DOWN)])
    assert mux.send(PIECES[1]) == []
    assert mux.counted() == {"fragment": 1, "no_backend": 1}


def test_any_fragments_in_any_order_go_where_the_first_went_or_nowhere() -> None:
    """With losses, repetitions and several datagrams at once; nothing leaves that did not come."""
    chance = random.Random(3)
    for _ in range(100):
        mux, sent = Mux(), []
        for ident in range(4):
            size = chance.randrange(64, 1400) & ~7
            cut = list(pieces(ipv4(udp(data(chance.randrange(100, 6000))), df=False, ident=ident), size + 20))
            sent += [packet for packet in cut if chance.random() < 0.9 or packet is cut[0]] if len(cut) > 1 else []
            sent += [packet for packet in sent[-3:] if chance.random() < 0.2]
        chance.shuffle(sent)
        out = [frame for packet in sent for frame in mux.send(packet)]
        assert inner(out) <= Counter(map(constant, sent))
        mux.now += 3 * SECOND
        mux.send(ipv4(udp()))
        counted = mux.counted()
        assert counted.pop("forwarded") == 1
        assert sum(counted.values()) == len(sent)
        assert set(counted) <= {"fragment", "fragment_overlap", "fragment_alone"}
