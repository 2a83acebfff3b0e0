# SPDX-License-Identifier: Apache-2.0
"""The same rows over real interfaces: a veth pair between two namespaces, AF_PACKET, and a worker.

The rows go in as the kernel of a neighbouring machine would send them: super-packets whole, checksums left to the NIC.
What a wire cannot carry is left out, and said so by :func:`why_not`.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from lb.dataplane import REASONS, Answers, Hop, LinkHeader, PacketIo, Pipeline, Snapshot, TunnelGsoProgram, Worker
from lb.dataplane.compile.compiler import Compiler
from lb.model import Unserved
from tests.lab.netns import batch, inside, ip, sysctl, unique_prefix
from tests.model.checksum import checksum, ones_complement_sum, pseudo_header
from tests.model.fragments import pieces
from tests.model.tunnel import segments
from tests.packets.build import MUX_MAC, ROUTER_MAC, ethernet, ipv4, ipv6, tcp, udp
from tests.packets.frames import ROWS as FRAMES
from tests.packets.frames import SYN, FrameRow
from tests.packets.rows import ROWS
from tests.packets.size import SUPER
from tests.packets.test_offloads import VXLAN, vxlan
from tests.packets.world import DNS, DNS6, MUX, MUX6, SERVICES, SETTINGS, Row, to

pytestmark = pytest.mark.lab

MTU = 65535
GATE = "lbwhole"
LARGEST_GSO = 65536 - 14 - 20  #: larger ones the kernel cuts itself before they reach the wire
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING, ETH_P_ALL = 263, 15, 4, 3
NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 1, 0, 1, 4, 5
NOTHING_LEFT = bytes(10)  #: a virtio header that says so
#: What leaves is from the MUX's own address, or an answer of a VIP.
MUX_SOURCES = tuple(map(ip_network, (MUX, MUX6, "203.0.113.0/24", "2001:db8:f::/48")))


def without_id(packet: bytes) -> bytes:
    """Rows expect the first ID of a new MUX; here all rows share one."""
    return packet if packet[0] >> 4 == 6 else packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]


class Wire:
    """Two namespaces, a MUX in one, and a raw socket in the other that plays router and backends.

    ``whole``: super-packets leave as they came, and the last who can cuts them: the kernel, or with ``card`` nobody.
    """

    def __init__(
        self, stack: ExitStack, *, whole: bool = False, card: bool = False, unserved: Unserved = Unserved.DROP
    ) -> None:
        prefix = unique_prefix()
        outside, mux = f"{prefix}-out", f"{prefix}-mux"
        for name in (outside, mux):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            sysctl(name, {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        batch(
            [
                f"link add name m0 address {MUX_MAC.hex(':')} mtu {MTU} type veth "
                f"peer name o0 address {ROUTER_MAC.hex(':')} mtu {MTU} netns {outside}",
                "link set dev m0 up",
            ],
            mux,
        )
        batch(["link set dev o0 up"], outside)
        self.socket = inside(outside, self._open_socket)
        stack.callback(self.socket.close)
        self.forwarding = Compiler(SETTINGS).compile(SERVICES)
        io = inside(mux, lambda: PacketIo("m0"))
        stack.callback(io.close)
        if whole:
            self._open_gso_tap(mux, io, card=card)
        answers = Answers.of(replace(SETTINGS, unserved=unserved, answers=1_000_000))
        self.worker = Worker(Pipeline(SETTINGS.flows, LinkHeader.NEXT_HOP, answers=answers), io, self.snapshot())
        stack.callback(self.worker.close)
        self.worker.start()

    @staticmethod
    def _open_gso_tap(namespace: str, io: PacketIo, *, card: bool) -> None:
        program = TunnelGsoProgram(LinkHeader.NEXT_HOP)
        inside(namespace, lambda: io.set_gso_tap(GATE, program))
        program.close()
        ip("-n", namespace, "link", "set", "dev", GATE, "up")
        if not card:
            ip("netns", "exec", namespace, "ethtool", "-K", "m0", "tso", "off", "gso", "off")

    def snapshot(self, interface: int = 0) -> Snapshot:
        addresses = self.forwarding.hop_addresses
        return self.forwarding.snapshot({a: Hop(a, ROUTER_MAC, MUX_MAC, interface) for a in addresses})

    @staticmethod
    def _open_socket() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        made.bind(("o0", 0))
        made.settimeout(5)
        return made

    def send(self, frame: bytes, offload: bytes = NOTHING_LEFT) -> None:
        self.socket.send(offload + frame)

    def receive(self) -> bytes:
        """The next frame that the MUX sent."""
        while True:
            data, (_, _, kind, *_) = self.socket.recvfrom(70_000)
            if kind == PACKET_OUTGOING:
                continue
            self.offload, frame = data[:10], data[10:]
            source = ip_address(frame[26:30] if frame[12:14] == b"\x08\x00" else frame[22:38])
            if any(source in network for network in MUX_SOURCES):
                return frame

    def receive_finished(self) -> bytes:
        """As :meth:`receive`, with the checksum made that was left to the receiver."""
        frame = self.receive()
        flags, _, _, _, start, field = struct.unpack("<BBHHHH", self.offload)
        if not flags & NEEDS_CSUM:
            return frame
        check = struct.pack("!H", checksum(frame[start:]) or 0xFFFF)
        return frame[: start + field] + check + frame[start + field + 2 :]

    def _forget(self) -> None:
        """What a test that failed left behind."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.socket.recv(70_000)
        self.socket.settimeout(5)

    def run(self, frame: bytes, expected: int, offload: bytes = NOTHING_LEFT) -> tuple[str, list[bytes]]:
        """The reason that was counted, and what came out."""
        self._forget()
        before = self.worker.pipeline_counters()
        self.send(frame, offload)
        deadline = time.monotonic() + 10
        while (after := self.worker.pipeline_counters()).received == before.received:
            assert time.monotonic() < deadline, "the frame never arrived"
        counted = [r.name for r, a, b in zip(REASONS, after.reasons, before.reasons, strict=True) if a != b]
        assert len(counted) == 1, counted
        return counted[0], [self.receive_finished() for _ in range(expected)]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack)


@pytest.fixture(scope="module")
def wires(wire: Wire) -> Iterator[dict[Unserved, Wire]]:
    with ExitStack() as stack:
        others = (Unserved.UNREACHABLE, Unserved.RESET)
        yield {Unserved.DROP: wire} | {unserved: Wire(stack, unserved=unserved) for unserved in others}


@pytest.fixture(scope="module")
def cut_by_kernel() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack, whole=True)


@pytest.fixture(scope="module")
def uncut() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack, whole=True, card=True)


def offload_of(row: Row) -> bytes:
    """The virtio header of a sender that leaves checksum, and cutting, to its NIC."""
    packet = row.packet
    transport = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    field = 16 if protocol == 6 else 6
    kind, size, headers = GSO_NONE, 0, 0
    if row.reason == "segmented":
        kind = GSO_TCPV4 if packet[0] >> 4 == 4 else GSO_TCPV6
        headers = transport + (packet[transport + 12] >> 4) * 4
        inner = row.out[0][20 if packet[0] >> 4 == 4 else 40 :]
        size = len(inner) - headers  # as the sender's TCP chose it
    return struct.pack("<BBHHHH", NEEDS_CSUM, kind, 14 + headers, size, 14 + transport, field)


def as_tcp_leaves_it(packet: bytes) -> bytes:
    """TCP with the sum of the pseudo-header where the checksum will be."""
    four = packet[0] >> 4 == 4
    start, addresses = ((packet[0] & 15) * 4, packet[12:20]) if four else (40, packet[8:40])
    half = len(addresses) // 2
    source, destination = ip_address(addresses[:half]), ip_address(addresses[half:])
    check = ones_complement_sum(pseudo_header(source, destination, 6, len(packet) - start))
    return packet[: start + 16] + check.to_bytes(2, "big") + packet[start + 18 :]


def why_not(row: Row) -> str | None:
    if row.wire_length is not None:
        return "no wire cuts a packet short"
    if row.reason == "not_ip":
        return "Ethernet says which version it is"
    return "longer than the longest frame" if len(row.packet) > MTU else None


def sendable(row: FrameRow) -> bool:
    return len(row.frame) > 14 and row.wire_length is None and "VLAN" not in row.claim


CARRIED = [row for row in ROWS if why_not(row) is None]


def test_most_rows_can_be_carried() -> None:
    assert len(ROWS) - len(CARRIED) < 10


def completed(row: Row) -> bool:
    """What leaves has another checksum than what came: the sender left it to its NIC."""
    return row.partial and row.packet[20:] not in row.out[0]


@pytest.mark.parametrize("row", CARRIED, ids=[row.claim for row in CARRIED])
def test_row_over_a_wire(wires: dict[Unserved, Wire], row: Row) -> None:
    """What a capture must guess is known here: a packet that no offload made is one packet, however long it is."""
    wire = wires[row.unserved]
    if row.reason == "segmented":
        may_be_cut = row.packet[0] >> 4 == 4 and not row.packet[6] & 0x40
        cut = len(list(pieces(row.packet, 1480))) if may_be_cut else 1
        reason, out = wire.run(ethernet(row.packet), cut, NOTHING_LEFT)
        assert (reason, len(out)) == ("forwarded" if may_be_cut else "frag_needed", cut)
        return
    expected = (row.reason, row.out)
    reason, out = wire.run(ethernet(row.packet), len(expected[1]), offload_of(row) if completed(row) else NOTHING_LEFT)
    assert reason == expected[0]
    assert [without_id(frame[14:]) for frame in out] == [without_id(packet) for packet in expected[1]]
    assert {frame[:12] for frame in out} <= {ROUTER_MAC + MUX_MAC}


@pytest.mark.parametrize("row", [r for r in SUPER if len(r.packet) <= LARGEST_GSO], ids=lambda row: row.claim)
def test_super_packet_of_a_nic_offload_over_a_wire(wire: Wire, row: Row) -> None:
    """As a neighbour's TCP sends it: one frame, segment size and unfinished checksum beside it."""
    reason, out = wire.run(ethernet(row.packet), len(row.out), offload_of(row))
    assert reason == "segmented"
    assert [without_id(frame[14:]) for frame in out] == [without_id(packet) for packet in row.out]


def stays_whole(row: Row) -> bool:
    """It has no urgent data, and with its outer header is no longer than that can say."""
    longest = 65535 if row.packet[0] >> 4 == 6 else 65535 - 20
    return len(row.packet) <= longest and "urgent" not in row.claim


@pytest.mark.parametrize("row", [r for r in SUPER if len(r.packet) <= LARGEST_GSO], ids=lambda row: row.claim)
def test_a_super_packet_that_stays_whole_is_cut_by_the_kernel_as_we_would(cut_by_kernel: Wire, row: Row) -> None:
    reason, out = cut_by_kernel.run(ethernet(as_tcp_leaves_it(row.packet)), len(row.out), offload_of(row))
    assert reason == ("forwarded" if stays_whole(row) else "segmented")
    assert [without_id(frame[14:]) for frame in out] == [without_id(packet) for packet in row.out]
    assert {frame[:12] for frame in out} == {ROUTER_MAC + MUX_MAC}


WHOLE = [row for row in SUPER if len(row.packet) <= LARGEST_GSO and stays_whole(row)]


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: row.claim)
def test_on_a_link_that_takes_super_packets_nobody_cuts_them(uncut: Wire, row: Row) -> None:
    """One frame, and beside it the segment size that came."""
    offload = offload_of(row)
    reason, (frame,) = uncut.run(ethernet(as_tcp_leaves_it(row.packet)), 1, offload)
    outer = 20 if row.packet[0] >> 4 == 4 else 40
    flags, kind, _, size, start, field = struct.unpack("<BBHHHH", uncut.offload)
    _, sent_kind, _, sent_size, sent_start, sent_field = struct.unpack("<BBHHHH", offload)
    assert reason == "forwarded"
    assert (flags, kind & 0x7F, size) == (NEEDS_CSUM, sent_kind, sent_size)
    assert (start, field) == (sent_start + outer, sent_field)
    assert len(frame) == 14 + outer + len(row.packet)
    payload = sent_start - 14 + (row.packet[sent_start - 14 + 12] >> 4) * 4
    assert frame[14 + outer + payload :] == row.packet[payload:]


@pytest.mark.parametrize("row", [row for row in WHOLE if "C" not in row.claim], ids=lambda row: row.claim)
@pytest.mark.parametrize("left", [False, True], ids=["with checksums", "left to a NIC"])
def test_segments_that_come_together_leave_as_if_each_had_come_alone(cut_by_kernel: Wire, row: Row, left: bool) -> None:
    """The worker begins when all of them wait: it puts together what may be, and the kernel cuts that again."""
    wire, offload = cut_by_kernel, offload_of(row)
    transport, field = struct.unpack("<HH", offload[6:])
    size = struct.unpack("<H", offload[4:6])[0]
    parts = list(segments(row.packet, size))
    told = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_NONE, 0, 0, transport, field) if left else NOTHING_LEFT
    wire.worker.stop()
    before = wire.worker.pipeline_counters().received
    for part in parts:
        wire.send(ethernet(as_tcp_leaves_it(part) if left else part), told)
    wire.worker.start()
    out = [wire.receive_finished() for _ in parts]
    assert [without_id(frame[14:]) for frame in out] == [without_id(packet) for packet in row.out]
    if "IP options" not in row.claim:  # these stay by themselves
        assert wire.worker.pipeline_counters().received - before < len(parts)


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("way", ["wire", "cut_by_kernel"])
def test_a_train_of_udp_datagrams_stays_several_datagrams(
    request: pytest.FixtureRequest, way: str, count: int, odd: int
) -> None:
    """UDP segmentation offload, as QUIC uses it: however small the whole is, merged it would be another message."""
    wire: Wire = request.getfixturevalue(way)
    parts = [bytes([n]) * 200 for n in range(count)]
    parts[-1] = parts[-1][odd:]
    for version, first, backend in ((4, 34, DNS), (6, 54, DNS6)):
        whole = udp(b"".join(parts), check="partial")
        offload = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_UDP_L4, first + 8, 200, first, 6)
        reason, out = wire.run(ethernet(ipv4(whole) if version == 4 else ipv6(whole)), count, offload)
        assert reason == "segmented"
        single = [ipv4(udp(p), ident=0x1234 + n) if version == 4 else ipv6(udp(p)) for n, p in enumerate(parts)]
        assert [without_id(frame[14:]) for frame in out] == [without_id(to(backend, packet)) for packet in single]


def test_a_train_whose_datagrams_do_not_fit_is_too_big_or_goes_in_fragments(wire: Wire) -> None:
    offload = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_UDP_L4, 42, 1453, 34, 6)
    assert wire.run(ethernet(ipv4(udp(bytes(3000), check="partial"))), 1, offload)[0] == "frag_needed"
    reason, out = wire.run(ethernet(ipv4(udp(bytes(3000), check="partial"), df=False)), 5, offload)
    assert reason == "segmented"
    where = [int.from_bytes(frame[40:42]) for frame in out]
    assert where == [0x2000, 182, 0x2000, 182, 0], "two datagrams of 1,453 bytes, each in two; and the rest"


@pytest.mark.parametrize("size", [1441, 1460])
def test_a_super_packet_whose_segments_do_not_fit_is_too_big_as_they_are(wire: Wire, size: int) -> None:
    offload = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 54, size, 34, 16)
    for packet, told in (
        (ipv4(tcp("A", bytes(size))), NOTHING_LEFT),
        (ipv4(tcp("A", bytes(4000), check="partial")), offload),
    ):
        reason, out = wire.run(ethernet(packet), 1, told)
        assert reason == "frag_needed"
        assert out[0][14:][20:28] == bytes([3, 4]) + out[0][36:38] + bytes([0, 0, 0x05, 0xC8]), "1,480 would fit"


def test_the_inner_checksum_of_a_tunnel_is_finished_and_the_outer_stays_none(wire: Wire) -> None:
    """VXLAN from a neighbour's kernel: it leaves the inner checksum to its NIC and does without an outer one."""
    whole = ipv4(udp(vxlan(ipv4(tcp("A", b"inside"))), check=0))
    packet = ipv4(udp(vxlan(ipv4(tcp("A", b"inside", check="partial"))), check=0))
    offload = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_NONE, 0, 0, 14 + 28 + VXLAN + 20, 16)
    reason, out = wire.run(ethernet(packet), 1, offload)
    assert (reason, [without_id(frame[14:]) for frame in out]) == ("forwarded", [without_id(to(DNS, whole))])


@pytest.mark.parametrize("row", [r for r in FRAMES if sendable(r)], ids=lambda row: row.claim)
def test_frame_over_a_wire(wire: Wire, row: FrameRow) -> None:
    reason, out = wire.run(row.frame, len(row.out))
    assert (reason, [without_id(frame[14:]) for frame in out]) == (row.reason, [without_id(p) for p in row.out])


@pytest.mark.parametrize(
    "frame",
    [
        *(row.frame for row in FRAMES if "VLAN" in row.claim),
        bytes.fromhex("020000000099") + ethernet(SYN)[6:],
        bytes.fromhex("ffffffffffff") + ethernet(SYN)[6:],
    ],
    ids=[
        *(row.claim for row in FRAMES if "VLAN" in row.claim),
        "another machine's MAC",
        "broadcast",
    ],
)
def test_frames_that_a_nic_would_not_give_us_are_stepped_over(wire: Wire, frame: bytes) -> None:
    before = wire.worker.pipeline_counters().received
    wire.send(frame)
    assert wire.run(ethernet(SYN), 1)[0] == "forwarded"
    assert wire.worker.pipeline_counters().received == before + 1


def test_what_the_kernel_refuses_to_send_is_counted_and_ends_nothing(wire: Wire) -> None:
    wire.worker.publish(wire.snapshot(interface=1_000_000))
    try:
        assert wire.run(ethernet(SYN), 0)[0] == "send_failed"
        assert wire.run(ethernet(SUPER[0].packet), 0, offload_of(SUPER[0]))[0] == "send_failed"
    finally:
        wire.worker.publish(wire.snapshot())
    assert wire.run(ethernet(SYN), 1)[0] == "forwarded"
