# SPDX-License-Identifier: Apache-2.0
"""ICMP about packets of our tunnels: which counts, what of it, and what is told on."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from lb.dataplane.compile.compiler import Compiler
from lb.model import Address, Encap
from lb.mux.hops.soft_state import MTU_LIFE, UNREACHABLE_LIFE, SoftState
from lb.mux.hops.tunnel_errors import ErrorKind, OwnTunnels, TunnelError, checksum, read_error, told_on
from tests.packets.build import ipv4, ipv6, tcp, udp
from tests.packets.rows import ROWS
from tests.packets.tunnels import GUE, IN4, IN6
from tests.packets.tunnels import ROWS as TUNNEL_ROWS
from tests.packets.world import SERVICES, SETTINGS, WEB, WEB6, to

HOPS = Compiler(SETTINGS).compile(SERVICES).hops
VIPS = [service.vip for service in SERVICES]
TUNNELS = OwnTunnels(SETTINGS, HOPS.has, lambda vip: any(vip in network for network in VIPS))
ROUTER, ROUTER6 = ip_address("10.0.2.1"), ip_address("2001:db8:2::1")
PLAIN = to(WEB, ipv4(tcp(), to="203.0.113.10"), 7)
LONG = to(WEB, ipv4(tcp("A", bytes(1440)), to="203.0.113.10"), 7)
LONG6 = to(WEB6, ipv6(tcp("A", bytes(1400)), to="2001:db8:f::10"), 7)


def says(outer: bytes, kind: int, code: int, value: int = 0, quoted: int = 548) -> bytes:
    """An ICMP message, of the family of the packet that it quotes."""
    message = struct.pack("!BBHI", kind, code, 0, value) + outer[:quoted]
    if outer[0] >> 4 == 4:
        message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return message


def heard(message: bytes, sender: Address = ROUTER, tunnels: OwnTunnels = TUNNELS) -> TunnelError | None:
    return read_error(message, sender, tunnels)


def far_end(outer: bytes) -> Address:
    return IPv4Address(outer[16:20]) if outer[0] >> 4 == 4 else IPv6Address(outer[24:40])


@pytest.mark.parametrize("row", [row for row in (*ROWS, *TUNNEL_ROWS) if row.out], ids=lambda row: row.claim)
@pytest.mark.parametrize("quoted", [28, 48, 548], ids=["eight bytes", "some", "most"])
def test_an_error_about_whatever_the_data_plane_sends_counts(row: object, quoted: int) -> None:
    for outer in row.out:  # type: ignore[attr-defined]
        four = outer[0] >> 4 == 4
        if far_end(outer) not in HOPS.addresses:
            continue  # an answer to a client, not a tunnel
        message = says(outer, 3 if four else 1, 1 if four else 3, quoted=quoted if four else quoted + 20)
        found = heard(message, ROUTER if four else ROUTER6)
        assert found is not None
        assert (found.kind, found.far_end) == (ErrorKind.UNREACHABLE, far_end(outer))


@pytest.mark.parametrize(("told", "mtu"), [(1300, 1300), (552, 552), (68, 552), (1, 552), (0, 1492), (1499, 1499)])
def test_what_does_not_fit_is_remembered_and_never_too_little(told: int, mtu: int) -> None:
    found = heard(says(LONG, 3, 4, told))
    assert found is not None
    assert (found.kind, found.far_end, found.mtu) == (ErrorKind.TOO_BIG, ip_address(WEB), mtu)


@pytest.mark.parametrize(("told", "mtu"), [(1300, 1300), (1280, 1280), (1279, 1280), (0xFFFF0000, None), (1500, None)])
def test_of_ipv6_as_well(told: int, mtu: int | None) -> None:
    found = heard(says(LONG6, 2, 0, told), ROUTER6)
    assert (found.mtu if found is not None else None) == mtu


def without_df(outer: bytes) -> bytes:
    return outer[:6] + bytes([outer[6] & ~0x40]) + outer[7:]


def with_bytes(outer: bytes, at: int, new: bytes) -> bytes:
    return outer[:at] + new + outer[at + len(new) :]


FORGED = {
    "what fits is not too big": says(LONG, 3, 4, 1500),
    "a packet that may be cut is not too big": says(without_df(LONG), 3, 4, 1300),
    "from an address that is not ours": says(with_bytes(LONG, 12, bytes([10, 0, 1, 99])), 3, 4, 1300),
    "to an address where no tunnel leads": says(with_bytes(LONG, 16, bytes([10, 0, 3, 99])), 3, 4, 1300),
    "of another protocol": says(with_bytes(LONG, 9, b"\x2f"), 3, 4, 1300),
    "of another family inside": says(with_bytes(LONG, 9, b"\x29"), 3, 4, 1300),
    "of a tunnel that does not lead there": says(to(WEB6, ipv4(tcp(), to=IN6), 7)[:24] + b"\xfd" * 40, 2, 0, 1300),
    "to no VIP of ours": says(with_bytes(LONG, 36, bytes([198, 51, 100, 1])), 3, 4, 1300),
    "with a TTL that we do not send": says(with_bytes(LONG, 8, b"\x41"), 3, 4, 1300),
    "with options outside": says(with_bytes(LONG, 0, b"\x46"), 3, 4, 1300),
    "a later fragment": says(with_bytes(LONG, 6, b"\x40\x01"), 3, 4, 1300),
    "whose checksum is wrong": says(LONG, 3, 4, 1300)[:2] + b"\0\0" + says(LONG, 3, 4, 1300)[4:],
    "nothing quoted": says(LONG, 3, 4, 1300, quoted=0),
    "half a header quoted": says(LONG, 3, 4, 1300, quoted=19),
    "source route failed": says(LONG, 3, 5),
    "redirect": says(LONG, 5, 1, int(ip_address("10.0.1.1"))),
    "source quench": says(LONG, 4, 0),
    "time to reassemble": says(LONG, 11, 1),
    "parameter problem": says(LONG, 12, 0),
    "empty": b"",
}


@pytest.mark.parametrize("message", FORGED.values(), ids=FORGED)
def test_what_quotes_no_packet_of_ours_or_is_none_of_our_business_says_nothing(message: bytes) -> None:
    assert heard(says(LONG, 3, 4, 1300)) is not None
    sender = ROUTER6 if message[4:8] == struct.pack("!I", 1300) and message[0] == 2 else ROUTER
    assert heard(message, sender) is None


@pytest.mark.parametrize("variant", [0, 1])
def test_gue_is_told_by_its_ports_and_header(variant: int) -> None:
    settings = replace(SETTINGS, gue_variant=variant)
    tunnels = replace(TUNNELS, settings=settings)
    inner = ipv4(tcp(), to="203.0.113.211")
    header = bytes([0, 4, 0, 0]) if variant == 0 else b""
    outer = to(WEB, inner, 7, encap=GUE)[:28] + header + inner
    assert heard(says(outer, 3, 3), tunnels=tunnels) is not None
    assert heard(says(with_bytes(outer, 22, b"\x17\xc1"), 3, 3), tunnels=tunnels) is None, "another port"
    assert heard(says(with_bytes(outer, 20, b"\x17\xc0"), 3, 3), tunnels=tunnels) is None, "no source port of ours"
    if variant == 0:
        assert heard(says(with_bytes(outer, 28, b"\x20"), 3, 3), tunnels=tunnels) is None, "a control message"
    assert heard(says(with_bytes(outer, 28 + len(header), b"\x60"), 3, 3), tunnels=tunnels) is None, "not its version"


# --- told on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "code"), [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (11, 0)])
def test_the_sender_hears_from_the_vip_that_its_host_is_unreachable(kind: int, code: int) -> None:
    inner = ipv4(tcp(), to="203.0.113.10")
    found = heard(says(to(WEB, inner, 7), kind, code))
    answer = told_on(found) if found is not None else None
    assert answer is not None
    packet, client = answer
    assert client == IPv4Address(inner[12:16])
    assert (packet[12:16], packet[16:20]) == (inner[16:20], inner[12:16])
    assert packet[20:22] == bytes([3, 1])
    assert checksum(packet[20:]) == 0
    assert packet[28:36] == to(WEB, inner, 7)[20:28]
    assert len(packet) == int.from_bytes(packet[2:4]) <= 576


def test_of_ipv6_the_address_is_unreachable() -> None:
    found = heard(says(LONG6, 3, 0, quoted=1232), ROUTER6)
    answer = told_on(found) if found is not None else None
    assert answer is not None
    packet, client = answer
    assert packet[40:42] == bytes([1, 3])
    assert packet[8:24] == ip_address("2001:db8:f::10").packed
    assert packet[24:40] == client.packed
    assert len(packet) == 40 + int.from_bytes(packet[4:6]) <= 1280
    pseudo = packet[8:40] + struct.pack("!II", len(packet) - 40, 58)
    assert checksum(pseudo + packet[40:]) == 0


ICMP_INSIDE = with_bytes(ipv4(tcp(), to="203.0.113.10"), 9, b"\1")
SILENT = {
    "no ports quoted": says(PLAIN, 3, 1, quoted=47),
    "ICMP inside": says(to(WEB, ICMP_INSIDE, 7), 3, 1),
    "a later fragment": says(to(WEB, with_bytes(ipv4(udp(), to="203.0.113.10"), 6, b"\0\1"), 7), 3, 1),
    "a multicast source": says(to(WEB, with_bytes(ipv4(tcp(), to="203.0.113.10"), 12, b"\xe0"), 7), 3, 1),
    "too big": says(LONG, 3, 4, 1300),
}


@pytest.mark.parametrize("message", SILENT.values(), ids=SILENT)
def test_nobody_is_told(message: bytes) -> None:
    found = heard(message)
    assert found is not None
    assert told_on(found) is None


# --- remembered and forgotten ----------------------------------------------------------------------------------------


def error(kind: ErrorKind, mtu: int = 0, end: str = WEB) -> TunnelError:
    return TunnelError(kind, ip_address(end), ROUTER, "words", mtu)


def test_an_mtu_is_remembered_for_ten_minutes_after_the_last_word_of_it() -> None:
    state = SoftState()
    assert state.hear(error(ErrorKind.TOO_BIG, 1300), 100.0)
    assert not state.hear(error(ErrorKind.TOO_BIG, 1300), 200.0)
    assert not state.forget(200.0 + MTU_LIFE - 1)
    assert state.next_end == 200.0 + MTU_LIFE
    assert state.states[ip_address(WEB)].mtu == 1300
    assert state.forget(200.0 + MTU_LIFE)
    assert not state.states
    assert state.next_end is None


def test_no_error_makes_an_mtu_larger_or_remembers_it_longer_by_that() -> None:
    state = SoftState()
    state.hear(error(ErrorKind.TOO_BIG, 1300), 100.0)
    assert not state.hear(error(ErrorKind.TOO_BIG, 1400), 300.0)
    assert state.states[ip_address(WEB)].mtu == 1300
    assert state.next_end == 100.0 + MTU_LIFE
    assert state.hear(error(ErrorKind.TOO_BIG, 1280), 300.0)
    assert state.states[ip_address(WEB)].mtu == 1280


def test_unreachable_is_forgotten_by_itself_and_leaves_the_mtu() -> None:
    state = SoftState()
    state.hear(error(ErrorKind.TOO_BIG, 1300), 0.0)
    assert state.hear(error(ErrorKind.UNREACHABLE), 10.0)
    assert not state.hear(error(ErrorKind.UNREACHABLE), 20.0)
    row = state.states[ip_address(WEB)].row(ip_address(WEB), 30.0)
    assert (row["mtu"], row["unreachable"], row["forgotten_in"]) == (1300, True, MTU_LIFE - 30.0)
    assert state.forget(20.0 + UNREACHABLE_LIFE)
    row = state.states[ip_address(WEB)].row(ip_address(WEB), 90.0)
    assert (row["mtu"], row["unreachable"]) == (1300, False)


def test_tunnels_are_remembered_apart() -> None:
    state = SoftState()
    state.hear(error(ErrorKind.TOO_BIG, 1300), 0.0)
    state.hear(error(ErrorKind.TOO_BIG, 1400, WEB6), 300.0)
    assert state.forget(MTU_LIFE)
    assert list(state.states) == [ip_address(WEB6)]


def test_tunnels_are_known_by_their_kind() -> None:
    assert HOPS.has(ip_address(WEB), Encap.IPIP)
    assert HOPS.has(ip_address(WEB), Encap.GUE)
    assert not HOPS.has(ip_address("10.0.3.2"), Encap.GUE)
    assert ip_network(IN4) in VIPS


def test_who_merged_more_than_a_length_can_say_is_heard() -> None:
    found = heard(says(with_bytes(LONG, 2, b"\0\0"), 3, 4, 1300))
    assert found is not None
    assert found.mtu == 1300
    found = heard(says(with_bytes(LONG6, 4, b"\0\0"), 2, 0, 1300), ROUTER6)
    assert found is not None
    assert found.mtu == 1300
