# SPDX-License-Identifier: Apache-2.0
"""Ways to backends and to BGP peers: what the answers mean, and the packets that ask."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from lb.doctor.checks import bgp
from lb.doctor.model.facts import Datagram, Dialled, Path, WayAnswer, WayTarget
from lb.doctor.model.findings import Severity
from lb.doctor.path_tests import explain as paths
from lb.doctor.path_tests import send as reach
from lb.model import BgpFamily, BgpPeer

FAULT, WARNING, UNKNOWN, OK = Severity
YES, NO, RST = WayAnswer.ACCEPTED, WayAnswer.SILENT, WayAnswer.REFUSED
MUX, HOST, VIP = IPv4Address("10.0.1.11"), IPv4Address("10.0.3.21"), IPv4Address("203.0.113.10")
TARGET = WayTarget("web/a", HOST, VIP, 80)
WELL = Path(TARGET, 1500, YES, YES, None, YES, YES, YES)


@pytest.mark.parametrize(
    ("path", "check", "severity", "words"),
    [
        (WELL, "path", OK, "1500 bytes too"),
        (replace(WELL, plain=NO, tunnel=NO), "unreachable", FAULT, "cannot be reached from 10.0.1.11"),
        (replace(WELL, plain=NO), "path", OK, ""),  # ping is filtered; who cares
        (replace(WELL, tunnel=NO), "protocol_4", FAULT, "plain packets arrive"),
        (replace(WELL, tunnel=NO, said=f"{HOST} says: protocol unreachable"), "no_agent", FAULT, ""),
        (replace(WELL, tunnel=NO, said="10.0.1.1 says: prohibited"), "protocol_4", FAULT, "10.0.1.1 says: prohibited"),
        (replace(WELL, tunnel=NO, direct=YES), "protocol_4", FAULT, "plain packets arrive"),
        (replace(WELL, tunnel=NO, direct=RST), "protocol_4", FAULT, ""),
        (replace(WELL, tunnel=NO, direct=NO), "host_firewall", FAULT, "neither in a tunnel nor beside it"),
        (replace(WELL, plain_full=NO, largest=1400), "mtu_path", FAULT, "answers of that size do not come back"),
        (replace(WELL, plain_full=NO), "path", OK, ""),  # large pings are filtered; who cares
        (replace(WELL, tunnel_full=NO, largest=1400), "mtu_path", FAULT, "up to 1400 bytes arrive"),
        (replace(WELL, tunnel_full=NO, said_mtu=1380, largest=1360), "mtu_path", FAULT, "up to 1380 bytes arrive"),
        (replace(WELL, tunnel_full=NO, tunnel_some=NO), "mtu_path", UNKNOWN, "begin with data are filtered"),
        (replace(WELL, tunnel=RST, tunnel_some=RST, tunnel_full=RST), "backend", FAULT, "nobody listens"),
        (replace(WELL, tunnel=RST, tunnel_full=NO, tunnel_some=RST), "mtu_path", FAULT, ""),
        (replace(WELL, tunnel=RST, target=replace(TARGET, exact=False)), "path", OK, ""),  # one port of a range
    ],
)
def test_the_answers_tell_host_tunnel_mtu_and_process_apart(
    path: Path, check: str, severity: Severity, words: str
) -> None:
    found = paths.judge(path, MUX)
    assert (found.check, found.severity) == (check, severity)
    assert words in found.what
    assert bool(found.remedy) is (severity is FAULT)


def test_a_host_that_answers_for_another_service_is_not_behind_a_firewall_that_drops_protocol_4() -> None:
    silent = replace(WELL, tunnel=NO, direct=YES, target=replace(TARGET, name="files/a"))
    (fine, found) = paths.check_paths([WELL, silent], MUX)
    assert (fine.check, found.check, found.about) == ("path", "host_silent", ("backend files/a",))
    elsewhere = replace(silent, target=replace(silent.target, address=HOST + 1))
    assert [finding.check for finding in paths.check_paths([WELL, elsewhere], MUX)] == ["path", "protocol_4"]


DNS = WayTarget("dns/a", HOST, IPv4Address("203.0.113.53"), 53, request=b"?")


def test_a_udp_answer_from_the_hosts_own_address_is_told_once() -> None:
    other = replace(DNS, name="dns2/a")
    (found,) = paths.check_datagrams([Datagram(DNS, HOST), Datagram(other, HOST), Datagram(replace(DNS, name="x/y"))])
    assert (found.severity, found.cause) == (FAULT, "udp_answer_source")
    assert found.about == ("backend dns/a", "backend dns2/a")
    assert (found.remedy or "").startswith("`port = 53` in the backend")
    assert [f.severity for f in paths.check_datagrams([Datagram(DNS, DNS.vip)])] == [OK]


def test_udp_services_are_asked_what_their_probe_asks() -> None:
    rows = [{"service": "dns", "name": "a", "address": str(HOST), "port": 53}]
    service = {"name": "dns", "vip": "203.0.113.53", "protocol": "udp", "port": 53, "request": "?"}
    assert paths.questions(rows, [service]) == [replace(DNS, inside=53)]
    assert paths.questions(rows, [{**service, "request": None}]) == []
    assert paths.questions(rows, [{**service, "protocol": "tcp"}]) == []


def test_a_request_in_a_tunnel_is_as_a_client_would_send_it() -> None:
    outer = IP(reach.tunnel_datagram(MUX, DNS, 61001, 0))
    inner = outer[IP:2]
    assert (outer.dst, outer.proto, inner.dst, inner[UDP].dport, bytes(inner[UDP].payload)) == (
        str(HOST),
        4,
        str(DNS.vip),
        53,
        b"?",
    )
    again = IP(bytes(outer))
    for layer in (again, again[IP:2], again[UDP]):
        del layer.chksum
    assert IP(bytes(again)) == outer
    answer = IP(src=str(HOST), dst=str(MUX)) / UDP(sport=53, dport=61001) / b"!"
    assert reach.read_answer(bytes(answer)) == reach.Segment(HOST, 61001, YES)


def test_a_backend_that_the_operator_took_out_is_no_fault() -> None:
    out = replace(WELL, plain=NO, tunnel=NO, target=replace(TARGET, told="down"))
    assert paths.judge(out, MUX).severity is WARNING


def test_one_cause_is_told_once_however_many_have_it() -> None:
    silent = replace(WELL, tunnel=NO)
    others = [replace(silent, target=replace(TARGET, name=f"files/{n}", address=HOST + n)) for n in range(3)]
    (found,) = paths.check_paths([silent, *others], MUX)
    assert found.what.endswith("; likewise 1 more of this host and 10.0.3.22, 10.0.3.23")


def test_a_way_that_is_too_small_there_and_another_that_is_so_back_are_two_causes() -> None:
    there = replace(WELL, tunnel_full=NO, plain_full=NO, largest=1400)
    back = replace(WELL, plain_full=NO, largest=1400, target=replace(TARGET, name="web/b", address=HOST + 1))
    found = list(paths.check_paths([there, back], MUX))
    assert [(one.check, one.cause) for one in found] == [
        ("mtu_path", "mtu_small"),
        ("mtu_path", "mtu_small_back"),
    ]
    assert [one.about for one in found] == [("backend web/a",), ("backend web/b",)]


def rows(number: int, **service: object) -> list[WayTarget]:
    backends = [
        {"service": "web", "name": f"b{n}", "address": str(HOST + n % 50), "state": "down"} for n in range(number)
    ]
    return paths.targets(backends, [{"name": "web", "vip": str(VIP), "protocol": "tcp", "port": 80, **service}])


def test_what_is_tried_are_tcp_services_and_not_too_many() -> None:
    assert rows(1) == [WayTarget("web/b0", HOST, VIP, 80, True, "down")]
    assert rows(1, protocol="udp") == []
    assert rows(1, vip="2001:db8::1") == []
    assert rows(1, port="8000-8099") == [WayTarget("web/b0", HOST, VIP, 8000, False, "down")]
    assert rows(1, port="0") == [WayTarget("web/b0", HOST, VIP, 1, False, "down")]
    assert len(rows(1000)) == 50  # each host once
    assert paths.targets([{"service": "web"}, {}], [{"name": "web", "protocol": "tcp"}]) == []


def test_ways_that_nobody_tried_are_said() -> None:
    rows = [{"service": "dns", "name": f"b{n}", "health": "unknown"} for n in range(6)]
    (found,) = paths.check_probes(rows)
    assert found.severity is UNKNOWN
    assert "dns/b0, dns/b1, dns/b2, dns/b3 and 2 more" in found.what
    up, down, untold = paths.check_probes([{"health": "up"}, {"health": "down", "reason": "connect timed out"}, {}])
    assert (up.severity, down.severity, untold.severity) == (OK, FAULT, UNKNOWN)


PEER = BgpPeer("tor1", IPv4Address("10.0.1.1"), 65000, (BgpFamily.IPV4,), password="x")  # noqa: S106


@pytest.mark.parametrize(
    ("dialled", "check", "words"),
    [
        (Dialled(True, NO, NO), "bgp_password", "its password (TCP MD5) is another"),
        (Dialled(True, YES, NO), "bgp_password", "wants no password"),
        (Dialled(True, RST, NO), "bgp_password", "wants no password"),
        (Dialled(True, NO), "bgp_password", "has none"),
        (Dialled(False, NO, NO), "bgp", "neither ping nor port 179"),
        (Dialled(True, RST), "bgp", "refuses connections"),
        (Dialled(True, NO, RST), "bgp", "refuses connections"),
        (Dialled(True, NO, YES), "bgp", "another AS"),  # the password is right
        (Dialled(True, YES), "bgp", "another AS"),
        (None, "bgp", "another AS"),
    ],
)
def test_a_silent_bgp_port_tells_of_the_password(dialled: Dialled | None, check: str, words: str) -> None:
    row = {"name": "tor1", "state": "opening", "error": "another AS"}
    (found,) = bgp.check_peer(PEER, row, dialled, "/etc/vipmux/mux.toml")
    assert (found.check, found.severity) == (check, FAULT)
    assert words in found.what
    assert found.remedy


def test_a_session_that_is_being_set_up_is_no_fault_yet() -> None:
    (found,) = bgp.check_peer(PEER, {"state": "connecting", "error": None}, Dialled(True, YES, YES), "f")
    assert found.severity is WARNING


def test_an_established_session_is_fine_and_was_not_dialled() -> None:
    (found,) = bgp.check_peer(PEER, {"state": "established"}, None, "f")
    assert found.severity is OK


@pytest.mark.parametrize("size", [60, 64, 160, 161, 1500, 9000])
def test_a_packet_in_a_tunnel_is_as_the_data_plane_sends_it(size: int) -> None:
    data = reach.tunnel_packet(MUX, TARGET, 61001, size)
    outer = IP(data)
    inner = outer[IP:2]
    assert len(data) == outer.len == size
    assert (outer.src, outer.dst, outer.proto) == (str(MUX), str(HOST), 4)
    assert (inner.src, inner.dst, inner.len) == (str(MUX), str(VIP), size - 20)
    assert (inner[TCP].sport, inner[TCP].dport, inner[TCP].flags) == (61001, 80, "S")
    assert outer.flags == inner.flags == "DF"
    again = IP(data)  # scapy fills in what is deleted
    for layer in (again, again[IP:2], again[TCP]):
        del layer.chksum
    assert IP(bytes(again)) == IP(data)


@pytest.mark.parametrize("size", [28, 64, 1499, 1500])
def test_an_echo_request_has_the_size_that_was_asked_for(size: int) -> None:
    packet = ICMP(reach.echo(7, 9, size))
    assert 20 + len(bytes(packet)) == size
    assert (packet.type, packet.id, packet.seq) == (8, 7, 9)
    kept = packet.chksum
    del packet.chksum
    assert ICMP(bytes(packet)).chksum == kept


def test_answers_are_read_and_anything_else_is_nothing() -> None:
    answer = IP(src=str(VIP), dst=str(MUX)) / TCP(sport=80, dport=61001, flags="SA")
    assert reach.read_answer(bytes(answer)) == reach.Segment(VIP, 61001, YES)
    answer[TCP].flags = "RA"
    assert reach.read_answer(bytes(answer)) == reach.Segment(VIP, 61001, RST)
    ours = IP(src=str(MUX), dst=str(HOST), proto=4) / (b"x" * 20)
    said = IP(src="10.0.1.1", dst=str(MUX)) / ICMP(type=3, code=4, nexthopmtu=1400) / bytes(ours)[:28]
    assert reach.read_icmp(bytes(said)) == reach.Complaint(IPv4Address("10.0.1.1"), 4, 1400, HOST, 4)
    said[ICMP].code = 2
    assert reach.read_icmp(bytes(said)) == reach.Complaint(IPv4Address("10.0.1.1"), 2, 0, HOST, 4)
    echo = IP(src=str(HOST), dst=str(MUX)) / ICMP(type=0, id=7, seq=9)
    assert reach.read_icmp(bytes(echo)) == reach.Echo(7, 9)
    arp = Ether() / ARP(op=2, hwsrc="02:00:00:00:00:01", psrc=str(VIP))
    assert reach.read_arp(bytes(arp)) == (bytes([2, 0, 0, 0, 0, 1]), VIP)
    arp[ARP].op = 1
    assert reach.read_arp(bytes(arp)) is None


@pytest.mark.parametrize("seed", range(20))
def test_garbage_and_what_is_cut_short_is_read_without_harm(seed: int) -> None:
    chosen = random.Random(seed)
    whole = bytes(IP(src="10.0.1.1") / ICMP(type=3, code=4) / (bytes(IP(dst=str(HOST))) + b"12345678"))
    for _ in range(200):
        garbage = chosen.randbytes(chosen.randrange(120))
        for data in (garbage, whole[: chosen.randrange(len(whole))], bytes([0x45 + chosen.randrange(11)]) + garbage):
            reach.read_answer(data)
            reach.read_icmp(data)
            reach.read_arp(data)
