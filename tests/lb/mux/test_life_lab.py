# SPDX-License-Identifier: Apache-2.0
"""Starts, stops and crashes of lb-mux in namespaces: what outlives it, what is repaired, and every refusal to start."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lb.dataplane import Redirect
from lb.model import Backend, IoMode
from tests.lab.netns import inside, ip
from tests.lab.process import wait_for
from tests.lb.mux.stage import CLIENT, DNS, MUX, READY, VIP, WEB, Stage

pytestmark = pytest.mark.lab


@pytest.fixture(params=[IoMode.PACKET, IoMode.TUN, IoMode.XDP], ids=lambda mode: mode.value)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with Stage(request.param) as built:
        yield built


@pytest.fixture
def xdp() -> Iterator[Stage]:
    with Stage(IoMode.XDP) as built:
        yield built


@pytest.fixture
def packet() -> Iterator[Stage]:
    with Stage(IoMode.PACKET) as built:
        yield built


def answers_of_the_mux(stage: Stage) -> list[bytes]:
    """What the client hears when it sends a datagram and a SYN to the VIP: ICMP messages and TCP segments."""

    def listen() -> socket.socket:
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        heard.bind(("eth0", 0x0800))
        heard.settimeout(0.3)
        return heard

    found: list[bytes] = []
    with inside(stage.client, listen) as heard:
        with stage.udp_client() as client:
            client.sendto(b"question", (VIP, 53))
        stage.connect(VIP, 80, seconds=0.3)
        while True:
            try:
                data, address = heard.recvfrom(2048)
            except TimeoutError:
                return found
            if address[2] != socket.PACKET_OUTGOING and data[16:20] == socket.inet_aton(CLIENT):
                found.append(data)


def ip_forward(stage: Stage) -> str:
    return stage.run(stage.mux, "cat", "/proc/sys/net/ipv4/ip_forward").strip()


def routes(stage: Stage) -> str:
    return ip("-n", stage.mux, "route", "show", "proto", "118")


def test_a_killed_mux_answers_no_client_and_its_own_ports_work(stage: Stage) -> None:
    process = stage.start(DNS, WEB)
    process.kill()
    # Now the kernel would forward, and say that nobody is there.
    subprocess.run(["ip", "netns", "exec", stage.mux, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    ip("-n", stage.mux, "route", "add", "unreachable", "203.0.113.0/24", "metric", "4100000000")
    assert answers_of_the_mux(stage) == []
    with inside(stage.mux, lambda: socket.create_server((MUX, 22))):
        assert stage.connect(MUX, 22) is None


def test_a_start_after_a_kill_repairs_and_serves(stage: Stage) -> None:
    stage.start(DNS).kill()
    process = stage.start(DNS, WEB)
    assert "event=repaired" in process.output()
    assert 'event="previous run ended uncleanly"' in process.output()
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        assert len(tap.only(1)) == 1


def test_a_clean_stop_leaves_nothing_behind(stage: Stage) -> None:
    before = ip_forward(stage)
    process = stage.start(DNS)
    assert process.stop() == 0
    assert stage.vips_of_the_kernel() is None
    assert stage.run(stage.mux, "nft", "list", "ruleset") == ""
    assert routes(stage) == ""
    assert ip_forward(stage) == before
    state = Path(stage.settings.state_dir)
    assert sorted(path.name for path in state.iterdir()) == ["mux.lock"]


def test_a_log_on_a_full_disk_ends_nothing(packet: Stage) -> None:
    packet.write(DNS)
    process = packet.launch("sh", "-c", 'exec "$0" "$@" 2>/dev/full')
    wait_for((Path(packet.settings.state_dir) / "mux.sock").exists, "the local socket")
    wait_for(lambda: packet.row()["state"] == "ready", "the start to come to its end")
    packet.reload(DNS, WEB)
    wait_for(lambda: packet.metrics()["lb_log_lines_lost_total"] >= 3, "what is lost to be counted")
    assert process.stop() == 0
    assert packet.vips_of_the_kernel() is None


def test_a_start_in_packet_mode_clears_what_a_killed_tun_mode_left() -> None:
    with Stage(IoMode.TUN) as stage:
        before = ip_forward(stage)
        stage.start(DNS).kill()
        assert "blackhole 203.0.113.10" in routes(stage)
        assert ip_forward(stage) == "1"
        stage.settings = replace(stage.settings, io=IoMode.PACKET)
        stage.start(DNS)
        assert routes(stage) == ""
        assert ip_forward(stage) == before
        assert stage.vips_of_the_kernel() == [VIP]


def test_a_start_in_tun_mode_clears_what_a_killed_packet_mode_left(packet: Stage) -> None:
    packet.start(DNS).kill()
    assert packet.vips_of_the_kernel() == [VIP]
    packet.settings = replace(packet.settings, io=IoMode.TUN)
    packet.start(DNS)
    assert packet.vips_of_the_kernel() is None
    with packet.tap() as tap, packet.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        assert len(tap.only(1)) == 1


def test_the_set_of_vips_follows_a_reload(packet: Stage) -> None:
    packet.start(DNS)
    other = replace(DNS, vip=ip_network("203.0.113.64/26"))
    packet.reload(other)
    # Old VIPs leave last, once the new table is live.
    wanted = [{"prefix": {"addr": "203.0.113.64", "len": 26}}]
    wait_for(lambda: packet.vips_of_the_kernel() == wanted, "the old VIP to leave the kernel's set")


def test_automatic_says_what_it_took_and_why(packet: Stage) -> None:
    packet.settings = replace(packet.settings, io=IoMode.AUTO)
    process = packet.start(DNS)
    ready = re.search(READY, process.output())
    assert ready is not None
    assert "io=packet" in ready[0]
    assert 'reason="automatic: ' in ready[0]


def test_privileges_are_given_up(packet: Stage) -> None:
    process = packet.start(DNS)
    mask = 1 << 12 | 1 << 13 | 1 << 23  # CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_NICE
    without = 0
    for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        rights = {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")}
        assert rights in ({mask}, {0})
        without += rights == {0}
        assert fields["NoNewPrivs"] == "1"
    assert without == 1, "the thread that writes the log needs no rights, every other needs these"


def test_without_the_right_to_bpf_super_packets_are_cut_and_it_is_said(packet: Stage) -> None:
    packet.write(DNS)
    process = packet.launch("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin", "--")
    process.wait_output(READY)
    said = "super-packets are cut (BPF is not permitted"
    assert said in process.output()
    assert said in packet.row()["mode"]


def refusal(stage: Stage, code: int, *prefix: str) -> str:
    """Starts with the file as it is; it must end with this code. Returns what it said, one line without a traceback."""
    process = stage.launch(*prefix)
    assert process.wait() == code, process.output()
    said = process.output()
    assert "Traceback" not in said
    return said.strip()


def test_a_missing_interface_is_named_with_those_there_are(packet: Stage) -> None:
    packet.settings = replace(packet.settings, interface="eth7")
    packet.write(DNS)
    assert refusal(packet, 1).startswith(
        "lb-mux: mux.interface 'eth7' does not exist here; the interfaces are: eth0, lo"
    )


def test_a_second_mux_on_the_same_state_directory_is_refused(packet: Stage) -> None:
    first = packet.start(DNS)
    try:
        said = refusal(packet, 1)
    finally:
        first.stop()
    assert "another lb-mux runs with mux.state_dir" in said


@contextlib.contextmanager
def somebody_elses_program(stage: Stage) -> Iterator[None]:
    """An XDP program that passes everything, on the MUX's interface as long as this lasts."""
    program = Redirect(1)
    inside(stage.mux, lambda: program.attach(socket.if_nametoindex("eth0"), generic=False))
    try:
        yield
    finally:
        program.close()


def test_another_xdp_program_is_left_alone_and_packet_serves(xdp: Stage) -> None:
    with somebody_elses_program(xdp):
        process = xdp.start(DNS)
        row = xdp.row()
        assert row["io"] == "packet"
        assert "xdp refused" in row["reason"]
        assert "another XDP program is on it, which is left alone" in row["reason"]
        assert "xdp" in ip("-n", xdp.mux, "link", "show", "eth0")
        with xdp.tap() as tap, xdp.udp_client() as client:
            client.sendto(b"question", (VIP, 53))
            assert len(tap.take(2, seconds=0.5)) == 1
        assert process.stop() == 0
        assert "xdp" in ip("-n", xdp.mux, "link", "show", "eth0")


def test_frames_longer_than_xdp_can_hold_are_refused_in_a_sentence_and_packet_serves(xdp: Stage) -> None:
    ip("-n", xdp.mux, "link", "set", "eth0", "mtu", "9000")
    xdp.start(DNS)
    row = xdp.row()
    assert row["io"] == "packet"
    assert "the MTU of the interface, 9,000, is above 3,822" in row["reason"]


def features(stage: Stage) -> list[str]:
    """Of the switch's port: the neighbour of the MUX's interface."""
    return stage.run(stage.switch, "ethtool", "-k", "p2").splitlines()


def test_what_the_program_does_to_neighbours_is_said_and_undone(xdp: Stage) -> None:
    before = features(xdp)
    process = xdp.start(DNS)
    assert "tcp-segmentation-offload: off" in "\n".join(features(xdp))
    assert 'event="XDP program attached"' in process.output()
    assert 'neighbours="no segmentation offload towards us"' in process.output()
    assert process.stop() == 0
    assert features(xdp) == before
    assert "xdp" not in ip("-n", xdp.mux, "link", "show", "eth0")


def test_a_link_that_gets_another_address_is_served_on(xdp: Stage) -> None:
    process = xdp.start(DNS)
    assert xdp.row()["io"] == "xdp"
    xdp.run(xdp.mux, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    ip("-n", xdp.client, "neigh", "flush", "all")

    def answered() -> bool:
        with xdp.tap() as tap, xdp.udp_client() as client:
            client.sendto(b"question", (VIP, 53))
            return len(tap.take(1, seconds=0.5)) == 1

    wait_for(answered, "packets to the new link address to be taken")
    assert process.stop() == 0


def test_a_vip_that_is_an_address_of_the_mux_is_refused(packet: Stage) -> None:
    ip("-n", packet.mux, "address", "add", f"{VIP}/32", "dev", "lo")
    packet.write(DNS)
    assert "a VIP must not be local to a MUX: remove it from lo" in refusal(packet, 2)


@pytest.mark.parametrize("lacking", ["net_admin", "net_raw"])
def test_a_missing_privilege_is_one_sentence(packet: Stage, lacking: str) -> None:
    packet.write(DNS)
    said = refusal(packet, 1, "setpriv", f"--bounding-set=-{lacking}", f"--inh-caps=-{lacking}", "--")
    assert said == (f"lb-mux: this process lacks CAP_{lacking.upper()}: start lb-mux as root, or by its systemd unit")


def test_a_wrong_file_lists_every_mistake(packet: Stage) -> None:
    packet.write(DNS)
    packet.config.write_text(packet.config.read_text().replace("port = 53", "port = 99999").replace('"udp"', '"sctp"'))
    said = refusal(packet, 2).splitlines()
    assert len(said) == 2
    assert all(line.startswith("service[0].") for line in said)


def test_a_metrics_address_in_use_is_one_sentence_and_leaves_nothing_behind(packet: Stage) -> None:
    packet.write(DNS)
    with inside(packet.mux, lambda: socket.create_server(("127.0.0.1", 9741))):
        said = refusal(packet, 1)
    assert "mux.metrics 127.0.0.1:9741 cannot be served: address already in use" in said
    assert packet.vips_of_the_kernel() is None


def test_a_start_that_fails_leaves_the_isolation_of_a_killed_mux(packet: Stage) -> None:
    packet.start(DNS).kill()
    with inside(packet.mux, lambda: socket.create_server(("127.0.0.1", 9741))):
        refusal(packet, 1)
    assert packet.vips_of_the_kernel() == [VIP]


def test_a_dead_backend_does_not_delay_a_reload(packet: Stage) -> None:
    ghost = replace(DNS, backends=(*DNS.backends, Backend("ghost", ip_address("10.0.1.99"))))
    packet.start(ghost)
    packet.reload(ghost, WEB)
    assert [row["name"] for row in packet.ask(op="get", what="services")] == ["dns", "web"]


def test_a_hangup_during_the_start_is_a_reload_after_it(packet: Stage) -> None:
    packet.write(DNS)
    process = packet.launch()
    process.wait_output("privileges dropped|ready")
    process.signal(signal.SIGHUP)
    process.wait_output('event="configuration published"')
    assert process.stop() == 0
