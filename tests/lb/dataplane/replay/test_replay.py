# SPDX-License-Identifier: Apache-2.0
"""Replay: what the contract says of report, output and clock, with the real data plane and as the real program."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as Layers

pytest.importorskip("lb._dataplane")

import lb.dataplane.replay.run as replay_module
from lb.config.load import load_mux, parse
from lb.config.render import format_config
from lb.dataplane.replay.pcap import Capture, CapturedPacket, PcapWriter
from lb.dataplane.replay.plane import NativePlane
from lb.dataplane.replay.run import Replay, Switch, make_switch
from lb.errors import RequestError
from lb.model import Backend, BackendState, MuxConfig, MuxSettings, PortRange, Protocol, Service

ROOT = Path(__file__).parents[4]
SECOND = 1_000_000_000
ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")

CONFIG = parse(
    """
[mux]
name = "mux1"
address = "10.0.1.11"
address6 = "2001:db8:1::11"
interface = "eth0"
seed = "00112233445566778899aabbccddeeff"
slots = 4093
flows = 4096

[[service]]
name = "web"
vip = "203.0.113.10"
protocol = "tcp"
port = 80
backend = [{ name = "a", address = "10.0.3.1" }, { name = "b", address = "10.0.3.2" }]

[[service]]
name = "dns"
vip = "203.0.113.10"
protocol = "udp"
port = 53
backend = [{ name = "a", address = "10.0.3.1" }]

[[service]]
name = "six"
vip = "2001:db8:100::/64"
protocol = "tcp"
port = 0
backend = [{ name = "a", address = "2001:db8:3::1" }]

[[service]]
name = "empty"
vip = "203.0.113.11"
protocol = "tcp"
port = 80
"""
)
assert isinstance(CONFIG, MuxConfig)
MUX: MuxSettings = CONFIG.mux
SERVICES = CONFIG.services


def tcp(port: int = 40_000, flags: str = "S", to: str = "203.0.113.10", dport: int = 80) -> Layers:
    return ETHERNET / IP(src="192.0.2.1", dst=to, ttl=64) / TCP(sport=port, dport=dport, flags=flags) / b"hello"


def packet(layers: Layers, time: int = SECOND, cut: int = 0) -> CapturedPacket:
    data = bytes(layers)
    return CapturedPacket(data[: len(data) - cut], len(data), time)


Line = dict[str, Any]


def play(
    packets: Sequence[CapturedPacket],
    switches: Sequence[Switch] = (),
    *,
    raw_ip: bool = False,
    services: Sequence[Service] = SERVICES,
) -> tuple[list[Line], list[CapturedPacket]]:
    """The report and the output."""
    report: list[Line] = []
    out: list[CapturedPacket] = []
    plane = NativePlane(MUX, raw_ip=raw_ip)
    Replay(plane, write=out.append, report=lambda line: report.append(dict(line))).play(packets, services, switches)
    assert [line["n"] for line in report] == list(range(len(packets)))
    assert [index for line in report for index in line["out"]] == list(range(len(out)))
    return report, out


def test_a_forwarded_packet_is_reported_and_written_with_addresses_swapped() -> None:
    report, out = play([packet(tcp(), 5 * SECOND + 7)])
    (line,) = report
    assert line["backend"] in ("a", "b")
    assert line == {
        "n": 0,
        "verdict": "forward",
        "reason": None,
        "service": "web",
        "backend": line["backend"],
        "flow": "new",
        "out": [0],
    }
    sent = Ether(out[0].data)
    assert (sent.src, sent.dst) == (ETHERNET.dst, ETHERNET.src)
    assert (sent[IP].src, sent[IP].dst) == ("10.0.1.11", {"a": "10.0.3.1", "b": "10.0.3.2"}[line["backend"]])
    assert bytes(sent[IP].payload[TCP].payload) == b"hello"
    assert (out[0].wire_len, out[0].time) == (len(out[0].data), 5 * SECOND + 7)


@pytest.mark.parametrize(
    ("layers", "verdict", "reason", "service"),
    [
        (ETHERNET / ARP(), "pass", "not_ip", None),
        (tcp(to="198.51.100.1"), "pass", "not_vip", None),
        (tcp(dport=81), "drop", "no_service", None),
        (tcp(to="203.0.113.11"), "drop", "no_backend", "empty"),
    ],
    ids=["arp", "not a VIP", "no service", "no backend"],
)
def test_a_packet_that_is_not_forwarded_has_a_reason_and_sends_nothing(
    layers: Layers, verdict: str, reason: str, service: str | None
) -> None:
    (line,), out = play([packet(layers)])
    assert (line["verdict"], line["reason"], line["flow"], line["out"], out) == (verdict, reason, None, [], [])
    assert line["backend"] is None
    if service is not None:
        assert line["service"] == service


def test_a_ping_is_answered_as_any_host_would() -> None:
    asked = ETHERNET / IP(src="192.0.2.1", dst="203.0.113.10") / ICMP(id=7, seq=9) / b"payload"
    (line,), (out,) = play([packet(asked)])
    assert (line["verdict"], line["reason"], line["flow"], line["out"]) == ("reply", "echo", None, [0])
    reply = Ether(out.data)
    assert (reply.src, reply.dst) == (ETHERNET.dst, ETHERNET.src)
    assert (reply[IP].src, reply[IP].dst, reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (
        "203.0.113.10",
        "192.0.2.1",
        0,
        7,
        9,
    )
    assert bytes(reply[ICMP].payload) == b"payload"
    assert bytes(reply) == bytes(with_right_checksums(reply))


def test_a_ttl_that_ends_at_the_mux_shows_it_to_traceroute() -> None:
    (line,), (out,) = play([packet(ETHERNET / IP(src="192.0.2.1", dst="203.0.113.10", ttl=1) / TCP(dport=80))])
    assert (line["verdict"], line["reason"], line["out"]) == ("reply", "time_exceeded", [0])
    reply = Ether(out.data)
    assert (reply[IP].src, reply[IP].dst, reply[ICMP].type, reply[ICMP].code) == ("10.0.1.11", "192.0.2.1", 11, 0)
    assert (reply[IPerror].dst, reply[TCPerror].dport) == ("203.0.113.10", 80)
    assert bytes(reply) == bytes(with_right_checksums(reply))


def with_right_checksums(frame: Layers) -> Layers:
    """As scapy computes them."""
    frame = frame.copy()
    del frame[IP].chksum, frame[ICMP].chksum
    return Ether(bytes(frame))


def test_a_frame_cut_short_by_the_capture_is_a_drop_named_truncated() -> None:
    (line,), _ = play([packet(tcp(), cut=3)])
    assert (line["verdict"], line["reason"]) == ("drop", "truncated")


def test_a_flow_is_new_once_and_known_after() -> None:
    report, _ = play([packet(tcp(flags=flags)) for flags in ("S", "A", "A")] + [packet(tcp(port=5))])
    assert [line["flow"] for line in report] == ["new", "known", "known", "new"]


def test_raw_ip_and_ipv6_are_forwarded_in_kind() -> None:
    six = IPv6(src="2001:db8::1", dst="2001:db8:100::5") / TCP(sport=1, dport=443)
    report, out = play([packet(six), packet(tcp()[IP])], raw_ip=True)
    assert [line["service"] for line in report] == ["six", "web"]
    assert IPv6(out[0].data).dst == "2001:db8:3::1"
    assert IP(out[1].data).src == "10.0.1.11"


# --- the clock -------------------------------------------------------------------------------------------------------


def test_the_clock_is_the_captures() -> None:
    later = SECOND + (MUX.idle.tcp + 60) * SECOND
    report, _ = play([packet(tcp()), packet(tcp(flags="A")), packet(tcp(flags="A"), later)])
    assert [line["flow"] for line in report] == ["new", "known", "new"]


def test_a_time_that_goes_back_counts_as_the_latest_seen() -> None:
    """Were it taken as it is, the flow of the third packet would be remembered from 1970."""
    late = 10_000 * SECOND
    times = [(tcp(), late), (tcp(flags="A"), late), (tcp(flags="A"), 1), (tcp(flags="A"), late + SECOND)]
    report, out = play([packet(layers, time) for layers, time in times])
    assert [line["flow"] for line in report] == ["new", "known", "known", "known"]
    assert [sent.time for sent in out] == [late, late, 1, late + SECOND]


# --- determinism -----------------------------------------------------------------------------------------------------

soup = st.lists(
    st.builds(
        lambda port, flags, udp, step, cut: (
            (ETHERNET / IP(src="192.0.2.1", dst="203.0.113.10") / UDP(sport=port, dport=53) / b"q")
            if udp
            else tcp(port, flags),
            step,
            cut,
        ),
        st.integers(1, 20),
        st.sampled_from(["S", "A", "FA", "R"]),
        st.booleans(),
        st.sampled_from([0, 0, 0, 1, SECOND, 20 * SECOND]),
        st.sampled_from([0, 0, 0, 5]),
    ),
    min_size=1,
    max_size=150,
)


@settings(max_examples=25, deadline=None)
@given(soup, st.sampled_from([1, 2, 7, 63, 64, 65]))
def test_results_are_those_of_one_packet_at_a_time(rows: list[tuple[Layers, int, int]], batch: int) -> None:
    time = SECOND
    packets = []
    for layers, step, cut in rows:
        time += step
        packets.append(packet(layers, time, cut))
    usual = play(packets)
    assert usual == play(packets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "BATCH", batch)
        assert play(packets) == usual


# --- switches --------------------------------------------------------------------------------------------------------


def web(*backends: Backend) -> tuple[Service, ...]:
    return (Service("web", IPv4Network("203.0.113.10"), Protocol.TCP, PortRange(80, 80), backends),)


A = Backend("a", IPv4Address("10.0.3.1"))
B = Backend("b", IPv4Address("10.0.3.2"))
B_DRAIN = Backend("b", IPv4Address("10.0.3.2"), state=BackendState.DRAIN)


def test_a_switch_takes_effect_before_its_packet_and_keeps_established_flows() -> None:
    flows = [packet(tcp(port=port, flags=flags)) for flags in ("S", "A") for port in range(1, 101)]
    more = [packet(tcp(port=port, flags="A")) for port in range(1, 101)] + [
        packet(tcp(port=port)) for port in range(101, 201)
    ]
    report, _ = play(flows + more, [Switch(200, web(A, B_DRAIN))], services=web(A, B))
    before = {line["n"] % 100: line["backend"] for line in report[:100]}
    assert {"a", "b"} == set(before.values())
    assert all(line["backend"] == before[line["n"] % 100] for line in report[:300])
    assert {line["backend"] for line in report[300:]} == {"a"}


def test_switches_apply_in_order_of_their_packets_whatever_the_order_given() -> None:
    packets = [packet(tcp(port=port)) for port in range(1, 7)]
    switches = [Switch(4, web(B)), Switch(2, ()), Switch(99, ())]
    report, _ = play(packets, switches, services=web(A))
    assert [(line["reason"], line["backend"]) for line in report] == [
        (None, "a"),
        (None, "a"),
        ("not_vip", None),
        ("not_vip", None),
        (None, "b"),
        (None, "b"),
    ]


def test_a_switch_before_the_first_packet_replaces_the_services() -> None:
    report, _ = play([packet(tcp())], [Switch(0, web(B))], services=web(A))
    assert report[0]["backend"] == "b"


def test_a_switch_to_another_mux_is_refused_and_says_what_differs() -> None:
    other = parse(format_config(CONFIG).replace('"10.0.1.11"', '"10.0.1.12"'))
    assert isinstance(other, MuxConfig)
    with pytest.raises(RequestError, match=r"--switch 5: .* address differ"):
        make_switch(5, other, MUX)


# --- the program -----------------------------------------------------------------------------------------------------


def lb(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lb.cli.main", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a configuration and a capture of ten flows of three packets each."""
    (tmp_path / "mux.toml").write_text(format_config(CONFIG))
    with (tmp_path / "in.pcap").open("wb") as stream:
        writer = PcapWriter(stream, 1)
        for i, flags in enumerate(("S", "A", "FA")):
            for port in range(10):
                writer.write(packet(tcp(port + 1, flags), (i + 1) * SECOND))
    return tmp_path


def run(files: Path, *more: object) -> subprocess.CompletedProcess[str]:
    where = ["--config", files / "mux.toml", "--in", files / "in.pcap", "--out", files / "out.pcap"]
    return lb("replay", *where, "--report", files / "report.jsonl", *more)


def test_the_program_writes_output_and_report(files: Path) -> None:
    done = run(files)
    assert (done.returncode, done.stderr) == (0, "")
    assert "30 packets: 30 forward; 30 sent" in done.stdout
    report = [json.loads(line) for line in (files / "report.jsonl").read_text().splitlines()]
    assert len(report) == 30
    with (files / "out.pcap").open("rb") as stream:
        capture = Capture(stream)
        out = list(capture)
    assert (capture.linktype, len(out)) == (1, 30)
    for line in report:
        want = lb_lookup(files, line["n"] % 10 + 1) if line["n"] < 3 else None
        assert want is None or line["backend"] == want["backend"]


def lb_lookup(files: Path, port: int) -> Line:
    ends = ["--src", f"192.0.2.1:{port}", "--dst", "203.0.113.10:80"]
    done = lb("lookup", "--config", files / "mux.toml", "--proto", "tcp", *ends, "--json")
    assert done.returncode == 0, done
    answer: Line = json.loads(done.stdout)
    assert set(answer) == {"service", "slot", "backend", "address"}
    return answer


def test_two_runs_write_the_same_bytes(files: Path) -> None:
    run(files)
    first = [(files / name).read_bytes() for name in ("out.pcap", "report.jsonl")]
    run(files)
    assert first == [(files / name).read_bytes() for name in ("out.pcap", "report.jsonl")]


def test_the_program_switches(files: Path) -> None:
    (files / "after.toml").write_text(format_config(MuxConfig(MUX, SERVICES[1:])))
    done = run(files, "--switch", f"10={files / 'after.toml'}", "--switch", f"99={files / 'after.toml'}")
    assert done.returncode == 0, done
    assert "drop no_service: 20" in done.stdout
    assert "--switch 99 came after the last packet" in done.stdout


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--switch", "mux.toml"], "N=FILE2"),
        (["--switch", "-1=mux.toml"], "N=FILE2"),
        (["--switch", "1=none.toml"], "none.toml: cannot be read"),
        (["--in", "none.pcap"], "none.pcap: cannot be read"),
        (["--in", "deploy/mux.toml"], "neither pcap nor pcapng"),
        (["--out", "no/such/directory.pcap"], "cannot be written"),
        (["--config", "deploy/agent.toml"], "mux: is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_refused(files: Path, more: list[str], sentence: str) -> None:
    done = run(files, *more)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_the_output_may_not_be_the_input(files: Path) -> None:
    done = run(files, "--out", files / "in.pcap")
    assert done.returncode == 2
    assert "different files" in done.stderr
    assert (files / "in.pcap").stat().st_size > 1000


def test_a_damaged_capture_is_refused(files: Path) -> None:
    data = (files / "in.pcap").read_bytes()
    (files / "in.pcap").write_bytes(data[:-3])
    done = run(files)
    assert done.returncode == 2
    assert "ends within a packet" in done.stderr


def test_lookup_answers_the_same_whatever_other_services_there_are(files: Path) -> None:
    alone = MuxConfig(MUX, SERVICES[:1])
    (files / "alone.toml").write_text(format_config(alone))
    both = [lb_lookup(files, 7)]
    (files / "alone.toml").rename(files / "mux.toml")
    assert both == [lb_lookup(files, 7)]
    assert load_mux(files / "mux.toml") == alone
