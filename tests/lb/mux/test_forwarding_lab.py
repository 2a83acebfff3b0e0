# SPDX-License-Identifier: Apache-2.0
"""A running lb-mux in namespaces: what goes in comes out encapsulated once, over every I/O mode of this version."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from lb.model import Backend, IoMode
from tests.lab.netns import inside, ip
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lb.mux.stage import CLIENT, DNS, HOST, MUX, VIP, WEB, Stage, services, udp_checksum_is_right

pytestmark = pytest.mark.lab


@pytest.fixture(params=[IoMode.PACKET, IoMode.TUN, IoMode.XDP], ids=lambda mode: mode.value)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with Stage(request.param) as built:
        yield built


@pytest.fixture
def packet() -> Iterator[Stage]:
    with Stage(IoMode.PACKET) as built:
        yield built


def adds_up(stage: Stage) -> dict[str, int]:
    """received = forwarded + passed + replied + dropped, in the row and in the metrics; returns the row."""
    row = stage.row()
    assert row["received"] == row["forwarded"] + row["passed"] + row["replied"] + row["dropped"]
    metrics = stage.metrics()
    by_reason = sum(value for name, value in metrics.items() if name.startswith("lb_packets_total"))
    assert by_reason == metrics["lb_io_received_total"] >= row["received"]
    return row


def test_a_packet_leaves_once_in_one_outer_header_with_its_checksum_complete(stage: Stage) -> None:
    stage.start(DNS)
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        arrived = tap.only(1)
        sender = client.getsockname()[1]
    assert [(frame.outer_source, frame.outer_destination) for frame in arrived] == [(MUX, HOST)]
    assert stage.row()["io"] == stage.settings.io.value
    inner = arrived[0].inner
    assert (socket.inet_ntoa(inner[12:16]), socket.inet_ntoa(inner[16:20])) == (CLIENT, VIP)
    assert int.from_bytes(inner[20:22], "big") == sender
    assert arrived[0].payload == b"question"
    assert udp_checksum_is_right(inner)
    assert adds_up(stage)["forwarded"] == 1


def test_every_datagram_of_a_burst_arrives_in_order(stage: Stage) -> None:
    stage.start(DNS)
    sent = [b"%04d" % number for number in range(300)]
    with stage.tap() as tap, stage.udp_client() as client:
        for payload in sent:
            client.sendto(payload, (VIP, 53))
        assert [frame.payload for frame in tap.take(300)] == sent
    assert adds_up(stage)["forwarded"] == 300


def test_two_workers_share_the_packets_and_keep_a_flow_together(stage: Stage) -> None:
    stage.settings = replace(stage.settings, workers=2)
    stage.start(DNS)
    row = stage.many_flows_arrive()
    adds_up(stage)
    assert min(worker["flows"] for worker in row["workers"]) > 0


def test_workers_that_poll_busily_say_so_and_serve() -> None:
    with Stage(IoMode.XDP) as stage:
        stage.settings = replace(stage.settings, busy_poll=True)
        process = stage.start(DNS)
        assert ", busy polling; " in stage.row()["mode"]
        with stage.tap() as tap, stage.udp_client() as client:
            for payload in (b"one", b"two"):
                client.sendto(payload, (VIP, 53))
                assert [frame.payload for frame in tap.take(1)] == [payload]
        stage.reload(DNS, WEB)
        assert adds_up(stage)["forwarded"] == 2
        assert process.stop() == 0


@pytest.mark.parametrize("stage", [IoMode.PACKET, IoMode.TUN], ids=lambda mode: mode.value, indirect=True)
def test_workers_that_become_more_and_fewer_under_load_lose_no_packet_and_move_no_flow(stage: Stage) -> None:
    """From 1 to 4 to 2 to 1, with flows that Maglev would send elsewhere by now, and packets all the time."""
    addresses = [HOST, "10.0.1.22", "10.0.1.23", "10.0.1.24"]
    for address in addresses[1:]:
        ip("-n", stage.host, "address", "add", f"{address}/24", "dev", "eth0")
    pool = [Backend(f"b{number}", ip_address(address)) for number, address in enumerate(addresses)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(stage.udp_client()) for _ in range(60)]
        newcomers: list[socket.socket] = []

        def new_flows_reach_all(workers: int) -> dict[str, Any] | None:
            """A flow that goes on stays with the queue of the TUN device that wrote its last packet (tun(4)'s driver,
            tun_flow_update): one worker may have all 60."""
            for _ in range(8):
                newcomers.append(stack.enter_context(stage.udp_client()))
                newcomers[-1].sendto(b"new", (VIP, 53))
            return everyone_has_flows(stage, workers)

        tap = stack.enter_context(stage.tap())
        process = stage.start(*services(DNS, backends=pool[:2]))
        load = stack.enter_context(Load(clients))
        load.go_on()
        stage.reload(*services(DNS, backends=pool))
        load.go_on()
        received = stage.row()["received"]
        for workers in (4, 2, 1):
            stage.settings = replace(stage.settings, workers=workers)
            stage.write(*services(DNS, backends=pool))
            process.signal(signal.SIGHUP)
            process.wait_output(rf"workers changed.* workers={workers}\b")
            load.go_on()
            row = wait_for(partial(new_flows_reach_all, workers), "flows of each worker")
            assert row["received"] > received, "counters go on"
            received = row["received"]
        sent = {b"%d" % number for number in range(load.stop())}
        arrived = tap.take(len(sent) + len(newcomers), seconds=20)
        arrived += tap.take(1000, seconds=0.5)
        arrived = [frame for frame in arrived if not frame.payload.startswith(b"new")]
        assert adds_up(stage)["missed"] == 0
    times = Counter(frame.payload for frame in arrived)
    assert sent - times.keys() == set(), "none is lost"
    assert max(times.values()) == 1 or stage.settings.io is IoMode.PACKET
    assert sum(times.values()) - len(times) < len(times) / 10, "hardly one comes twice"
    went: dict[int, set[str]] = {}
    for frame in arrived:
        went.setdefault(int.from_bytes(frame.inner[20:22], "big"), set()).add(frame.outer_destination)
    assert len(went) == len(clients)
    assert all(len(destinations) == 1 for destinations in went.values())
    assert len(set().union(*went.values())) == 2
    wait_for(lambda: stage.row()["flows"] == len(clients) + len(newcomers), "one entry for each flow")


def everyone_has_flows(stage: Stage, workers: int) -> dict[str, Any] | None:
    """The MUX's row, if so."""
    row = stage.row()
    shares = [worker["flows"] for worker in row["workers"]]
    return row if len(shares) == workers and min(shares) > 0 else None


class Load:
    """A thread that sends a numbered datagram of each client, again and again."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self._clients = clients
        self._sent = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            for client in self._clients:
                client.sendto(b"%d" % self._sent, (VIP, 53))
                self._sent += 1

    def go_on(self) -> None:
        """Returns after some more rounds."""
        enough = self._sent + 6 * len(self._clients)
        wait_for(lambda: self._sent >= enough, "packets")

    def stop(self) -> int:
        """How many there were."""
        self._over.set()
        self._thread.join()
        return self._sent


def test_a_backend_behind_a_gateway_gets_its_packets_by_the_gateway(stage: Stage) -> None:
    ip("-n", stage.mux, "route", "add", "10.0.3.0/24", "via", HOST)
    stage.start(*services(DNS, backends=[Backend("far", ip_address("10.0.3.21"))]))
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        (frame,) = tap.take(1)
    assert frame.outer_destination == "10.0.3.21"
    assert frame.destination_mac == stage.mac(stage.host)


def test_other_traffic_of_the_mux_is_left_alone(stage: Stage) -> None:
    stage.start(DNS)
    listener = inside(stage.mux, lambda: socket.create_server((MUX, 22)))
    with listener:
        assert stage.connect(MUX, 22) is None
    stage.run(stage.client, "ping", "-c", "1", "-W", "2", MUX)


def test_a_reload_forgets_no_flow_and_adds_the_new_vip(stage: Stage) -> None:
    stage.start(DNS)
    second = replace(DNS, name="second", vip=type(DNS.vip)("203.0.113.77"))
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"one", (VIP, 53))
        assert len(tap.take(1)) == 1
        stage.reload(DNS, second)
        client.sendto(b"two", (VIP, 53))
        client.sendto(b"new", ("203.0.113.77", 53))
        assert sorted(frame.payload for frame in tap.take(2)) == [b"new", b"two"]
        asked = {"source": CLIENT, "source_port": client.getsockname()[1], "destination": VIP, "destination_port": 53}
        answer = stage.ask(op="lookup", protocol="udp", **asked)
        assert answer["flow"] is not None
    assert adds_up(stage)["flows"] == 2


def test_a_wrong_file_is_refused_whole_and_the_old_one_serves_on(stage: Stage) -> None:
    process = stage.start(DNS)
    stage.config.write_text(stage.config.read_text().replace("port = 53", 'port = "many"').replace("eth0", "eth9"))
    process.signal(signal.SIGHUP)
    wait_for(lambda: stage.row()["rejected"], "the refusal")
    assert "service[0].port" in stage.row()["rejected"]
    process.wait_output('event="configuration rejected"')  # a log may lag behind
    assert process.output().count('event="configuration rejected"') == 1
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        assert len(tap.take(1)) == 1
    stage.reload(DNS)
    assert stage.row()["rejected"] is None


def test_settings_that_cannot_change_live_are_named(packet: Stage) -> None:
    process = packet.start(DNS)
    packet.settings = replace(packet.settings, flows=20_000, mtu=1400)
    packet.write(DNS)
    process.signal(signal.SIGHUP)
    wait_for(lambda: packet.row()["rejected"], "the refusal")
    wait_for(lambda: process.output().count("cannot change while the MUX runs") == 2, "both settings to be named")
    process.wait_output('mistake="mux.flows: ')


def test_an_unreachable_backend_is_named_and_its_packets_are_counted(packet: Stage) -> None:
    process = packet.start(*services(DNS, backends=[Backend("ghost", ip_address("10.0.1.99"))]))
    with packet.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        wait_for(lambda: packet.row()["dropped"] == 1, "the drop")
    assert packet.ask(op="get", what="backends")[0]["state"] == "unreachable"
    assert packet.metrics()['lb_packets_total{reason="no_next_hop",verdict="drop"}'] == 1
    process.wait_output(r'event="backend unreachable" address=10.0.1.99 reason="10.0.1.99 on eth0 does not answer ARP"')
    adds_up(packet)


def test_a_backends_new_link_address_is_used_at_once(packet: Stage) -> None:
    packet.start(DNS)
    new = "02:00:00:00:00:99"
    batch = ["link set dev eth0 down", f"link set dev eth0 address {new}", "link set dev eth0 up"]
    generation = packet.row()["generation"]
    ip("-n", packet.host, "-batch", "-", stdin="\n".join(batch) + "\n")
    ip("-n", packet.mux, "neigh", "replace", HOST, "lladdr", new, "dev", "eth0", "nud", "reachable")
    wait_for(lambda: packet.row()["generation"] > generation, "the new snapshot", seconds=allowed(0.5))
    with packet.tap() as tap, packet.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        (frame,) = tap.take(1)
    assert frame.destination_mac.hex(":") == new


def test_frames_lost_in_a_full_ring_are_counted_as_missed(packet: Stage) -> None:
    process = packet.start(DNS)
    frames, size = 30_000, 1400
    destination = packet.mac(packet.mux)
    with packet.udp_client() as client:
        client.connect((VIP, 53))
        client.send(b"first")
    wait_for(lambda: packet.row()["received"] == 1, "the first packet")
    process.signal(signal.SIGSTOP)
    try:
        flood(packet, destination, frames, size)
    finally:
        process.signal(signal.SIGCONT)
    wait_for(lambda: packet.row()["received"] + packet.row()["missed"] == frames + 1, "all to be accounted for")
    assert packet.row()["missed"] > 0
    adds_up(packet)


def flood(stage: Stage, destination: bytes, frames: int, size: int, tag: bytes = b"") -> None:
    """UDP datagrams to the VIP, as whole frames; ``tag``: before the type."""
    source = stage.mac(stage.client)
    header = bytes.fromhex("4500") + (size - 14).to_bytes(2, "big") + bytes.fromhex("000040004011")
    addresses = socket.inet_aton(CLIENT) + socket.inet_aton(VIP)
    words = header + addresses
    total = sum(int.from_bytes(words[index : index + 2], "big") for index in range(0, len(words), 2))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    udp = (4000).to_bytes(2, "big") + (53).to_bytes(2, "big") + (size - 34).to_bytes(2, "big") + bytes(2)
    packet_ = header + checksum.to_bytes(2, "big") + addresses + udp
    frame = (destination + source + tag + b"\x08\x00" + packet_).ljust(size + len(tag), b"x")

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("eth0", 0))
            for _ in range(frames):
                sender.send(frame)

    inside(stage.client, send)


def test_a_removed_interface_is_reported_once_costs_no_cpu_and_serves_again_when_it_returns(packet: Stage) -> None:
    process = packet.start(DNS)
    with packet.udp_client() as client:
        client.sendto(b"question", (VIP, 53))
        wait_for(lambda: packet.row()["flows"] == 1, "the flow")
    ip("-n", packet.mux, "link", "del", "eth0")
    process.wait_output(r'event="interface lost" interface=eth0 reason="is gone; waiting for it to return"')
    assert packet.row()["state"] == "degraded"
    bursts = packet.metrics()['lb_worker_bursts_total{worker="0"}']
    used = cpu_seconds(process.pid)
    wait_for(lambda: packet.metrics()['lb_worker_bursts_total{worker="0"}'] > bursts + 5, "the heartbeat")
    assert packet.metrics()['lb_worker_bursts_total{worker="0"}'] < bursts + 100
    assert cpu_seconds(process.pid) - used < 0.5
    packet.plug("p9", packet.mux, MUX)
    ip("-n", packet.client, "neigh", "flush", "all")  # the new interface has another link address
    process.wait_output(r'event="interface opened again"')
    wait_for(lambda: packet.row()["state"] == "ready" and not packet.row()["unreachable"], "the MUX to serve")
    with packet.tap() as tap, packet.udp_client() as client:
        client.sendto(b"again", (VIP, 53))
        assert [frame.payload for frame in tap.take(1)] == [b"again"]
    assert process.output().count('event="interface lost"') == 1
    assert packet.vips_of_the_kernel() == [VIP]
    assert adds_up(packet)["flows"] == 2


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as handle:
        words = handle.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_frames_of_a_vlan_or_for_another_station_are_not_ours(packet: Stage) -> None:
    packet.start(DNS)
    flood(packet, bytes.fromhex("02ffffffffff"), 10, 200)
    flood(packet, packet.mac(packet.mux)[:6], 1, 200)
    wait_for(lambda: packet.row()["received"] >= 1, "the one that is ours")
    assert adds_up(packet)["received"] == 1


@pytest.mark.parametrize("tag", ["8100e000", "88a80000"], ids=["802.1Q", "802.1ad"])
def test_frames_whose_tag_says_a_priority_alone_are_untagged(stage: Stage, tag: str) -> None:
    stage.start(DNS)
    with stage.tap() as tap:
        flood(stage, stage.mac(stage.mux)[:6], 1, 200, bytes.fromhex(tag))
        assert [frame.payload[:4] for frame in tap.take(1)] == [b"xxxx"]
    assert adds_up(stage)["forwarded"] == 1


def test_connections_to_a_vip_see_silence_from_the_mux_itself(stage: Stage) -> None:
    subprocess.run(["ip", "netns", "exec", stage.mux, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    stage.start(WEB)
    assert isinstance(stage.connect(VIP, 81, seconds=0.4), TimeoutError)
    assert adds_up(stage)["dropped"] >= 1
