# SPDX-License-Identifier: Apache-2.0
"""The agent on a host of its own, with real packets: the same scenarios over BPF and over raw socket and TUN."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
from collections.abc import Iterator

import pytest
from scapy.compat import raw
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from lb.model import BackendState, DecapMode
from tests.agent.hostlab import (
    CLIENT,
    GATEWAY,
    HOST,
    MUX,
    NO_VIP,
    PLAIN_VIP,
    SERVICES,
    TRANSLATED_VIP,
    HostLab,
    exchange,
    service,
)
from tests.lab import netns
from tests.lab.process import wait_for

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=[DecapMode.BPF, DecapMode.TUN], ids=lambda mode: mode.value)
def running(request: pytest.FixtureRequest) -> Iterator[HostLab]:
    """A host with a running agent and two servers, on the service's port and on the translated one."""
    with HostLab(decap=request.param) as lab, lab.server(80, "plain"), lab.server(8080, "translated"):
        lab.write()
        lab.start()
        yield lab


@pytest.fixture
def fresh() -> Iterator[HostLab]:
    """A host whose agent was not started yet."""
    with HostLab() as lab, lab.server(80, "plain"), lab.server(8080, "translated"):
        lab.write()
        yield lab


def datagram(destination: str = PLAIN_VIP, tos: int = 0, port: int = 9999) -> bytes:
    return raw(IP(src=CLIENT, dst=destination, tos=tos) / UDP(sport=5353, dport=port) / Raw(b"x" * 40))


# --- the way of a packet ---------------------------------------------------------------------------------------------


def test_untranslated_service_answers_as_the_vip(running: HostLab) -> None:
    assert running.ask(PLAIN_VIP) == f"plain hello {PLAIN_VIP}"


def test_translated_service_reaches_its_port_and_the_reply_comes_from_the_vip(running: HostLab) -> None:
    with running.connect(TRANSLATED_VIP) as connection:
        assert connection.getpeername() == (TRANSLATED_VIP, 80)
        assert exchange(connection) == f"translated hello {HOST}"


@pytest.mark.parametrize("address", ["203.0.113.128", "203.0.113.200", "203.0.113.255"])
def test_every_address_of_a_prefix_service_answers(running: HostLab, address: str) -> None:
    assert running.ask(address) == f"plain hello {address}"


@pytest.mark.parametrize("vip", [PLAIN_VIP, TRANSLATED_VIP])
def test_long_upload_arrives_whole(running: HostLab, vip: str) -> None:
    assert " 2000000 bytes " in running.ask(vip, text="x" * 2_000_000)


def test_segment_size_in_the_answer_to_a_syn_leaves_room_for_the_tunnel(running: HostLab) -> None:
    for vip in (PLAIN_VIP, TRANSLATED_VIP):
        with running.connect(vip) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1440
        syn_ack = _handshake(running, vip)
        assert dict(syn_ack[TCP].options)["MSS"] == 1440
        assert syn_ack.src == vip


_ports = itertools.count(40000)


def _handshake(lab: HostLab, vip: str) -> IP:
    """The answer to a SYN with a large MSS, as it comes over the wire."""
    return _answer(lab, vip, TCP(sport=next(_ports), dport=80, flags="S", options=[("MSS", 8000)]), with_flag="S")


def _answer(lab: HostLab, vip: str, segment: TCP, with_flag: str) -> IP:
    """The first answer with this flag to a segment of the client, which sends it again twice a second as a TCP would.

    Other segments to its port are passed by: those of a connection that is just closing come when they like.
    """

    def listen() -> socket.socket:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        sniffer.bind(("eth0", 0x0800))
        sniffer.settimeout(0.5)
        return sniffer

    passed_by = []
    with netns.inside(lab.client, listen) as sniffer:
        for _ in range(10):
            lab.mux.send(raw(IP(src=CLIENT, dst=vip) / segment))
            with contextlib.suppress(TimeoutError):
                while True:
                    packet = IP(sniffer.recv(65536))
                    if packet.proto == 6 and packet.src == vip and packet[TCP].dport == segment.sport:
                        if with_flag in str(packet[TCP].flags):
                            return packet
                        passed_by.append(packet.summary())
    raise AssertionError(f"no answer with flag {with_flag}; what came: {passed_by or 'nothing'}")


@pytest.mark.parametrize("vip", [PLAIN_VIP, TRANSLATED_VIP])
def test_a_stray_segment_is_reset_also_where_its_ports_were_used_before(running: HostLab, vip: str) -> None:
    """As when a MUX is lost that alone knew where the flow goes: a reset tells the client, silence does not."""
    with running.connect(vip) as connection:
        port = connection.getsockname()[1]
        exchange(connection)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    stray = TCP(sport=port, dport=80, flags="PA", seq=0x12345678, ack=0x9ABCDEF0) / Raw(b"GET / HTTP/1.1")
    reset = _answer(running, vip, stray, with_flag="R")
    assert reset[TCP].seq == stray.ack


def test_unfinished_checksum_is_completed_or_kept_by_the_kernel(running: HostLab) -> None:
    """Offloads are on in the client, so every packet of these connections had one before the TUN finished it."""
    before = running.row()["decapsulated"]
    assert running.ask(PLAIN_VIP, text="y" * 200_000).endswith(PLAIN_VIP)
    assert running.row()["decapsulated"] > before


def test_tunnel_from_an_unknown_source_is_dropped_and_counted(running: HostLab) -> None:
    before = running.drops("untrusted_source")
    running.mux.send(datagram(), source=GATEWAY)
    wait_for(lambda: running.drops("untrusted_source") == before + 1, "the drop to be counted")


def test_inner_destination_that_is_no_vip_is_dropped_and_counted(running: HostLab) -> None:
    before = running.drops("inner_not_vip")
    for destination in (NO_VIP, HOST, "127.0.0.1"):
        running.mux.send(datagram(destination))
    wait_for(lambda: running.drops("inner_not_vip") == before + 3, "the drops to be counted")


def test_tunnel_with_half_a_packet_is_dropped_and_counted(running: HostLab) -> None:
    before = running.drops("inner_malformed")
    running.mux.send(datagram()[:12])
    running.mux.send(datagram()[:30])
    wait_for(lambda: running.drops("inner_malformed") == before + 2, "the drops to be counted")


def test_congestion_mark_reaches_a_sender_that_knows_ecn(running: HostLab) -> None:
    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((PLAIN_VIP, 9999))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.settimeout(5)
        return sock

    with netns.inside(running.host, listen) as sock:
        for outer, inner, seen in ((3, 2, 3), (3, 1, 3), (1, 2, 1), (0, 2, 2), (2, 0, 0), (3, 3, 3)):
            running.mux.send(datagram(tos=inner | 0x20), tos=outer)
            _, ancillary, _, _ = sock.recvmsg(2048, 64)
            assert ancillary[0][2][0] == seen | 0x20, (outer, inner)


def test_congestion_mark_on_a_packet_without_ecn_drops_it(running: HostLab) -> None:
    before = running.drops("ecn_mismatch")
    running.mux.send(datagram(tos=0), tos=3)
    wait_for(lambda: running.drops("ecn_mismatch") == before + 1, "the drop to be counted")


def test_nobody_answers_arp_for_a_vip(running: HostLab) -> None:
    netns.ip("-n", running.client, "route", "add", f"{PLAIN_VIP}/32", "dev", "eth0", "metric", "1", "table", "77")
    said = running.on_client("arping", "-c", "1", PLAIN_VIP)
    if "No such file" in said:
        netns.ip("-n", running.client, "rule", "add", "fwmark", "77", "table", "77")

        def knock() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 77)
                sock.sendto(b"x", (PLAIN_VIP, 9))
                sock.sendto(b"x", (PLAIN_VIP, 9))

        netns.inside(running.client, knock)
        wait_for(
            lambda: f"{PLAIN_VIP} dev eth0" in running.on_client("ip", "neigh", "show", "nud", "failed"),
            "the question for the VIP to remain without answer",
        )
    assert "lladdr" not in running.on_client("ip", "neigh", "show", PLAIN_VIP)


def test_agent_says_which_way_it_decapsulates_and_why(running: HostLab) -> None:
    row = running.row()
    assert row["mode"] == running.decap.value
    assert row["reason"] == f'configured: decap = "{running.decap.value}"'
    assert (row["services"], row["vips"], row["translated"]) == (3, 3, 1)


def test_drained_backend_still_serves(running: HostLab) -> None:
    running.write([service("plain", PLAIN_VIP, 80, state=BackendState.DRAIN), *SERVICES[1:]])
    running.reload()
    assert running.ask(PLAIN_VIP) == f"plain hello {PLAIN_VIP}"
    running.write()
    running.reload()


def test_reload_keeps_connections_and_changes_what_changed(running: HostLab) -> None:
    with running.connect(PLAIN_VIP) as plain, running.connect(TRANSLATED_VIP) as translated:
        running.write([*SERVICES, service("more", NO_VIP, 80)])
        running.reload()
        assert running.ask(NO_VIP) == f"plain hello {NO_VIP}"
        running.write()
        running.reload()
        assert NO_VIP not in running.traces()["addresses"]
        assert exchange(plain) == f"plain hello {PLAIN_VIP}"
        assert exchange(translated) == f"translated hello {HOST}"


def test_wrong_file_is_refused_whole_and_shown(running: HostLab) -> None:
    before = running.traces()
    running.config.write_text(running.config.read_text().replace("tcp", "sctp").replace("port = 80", "port = 99999"))
    running.reload(until="event=config_refused")
    assert "service[0].protocol" in wait_for(lambda: running.row()["rejected"], "the refusal to be shown")
    assert running.traces() == before
    assert running.ask(PLAIN_VIP) == f"plain hello {PLAIN_VIP}"
    running.write()
    running.reload()
    assert running.row()["rejected"] is None


def test_conntrack_knows_translated_connections_only(running: HostLab) -> None:
    with running.connect(PLAIN_VIP) as plain, running.connect(TRANSLATED_VIP) as translated:
        exchange(plain)
        exchange(translated)
        known = running.on_host("cat", "/proc/net/nf_conntrack")
        if "No such file" in known:
            pytest.skip("this kernel does not list its conntrack table")
        assert f"dst={TRANSLATED_VIP} " in known
        assert not [line for line in known.splitlines() if f"dst={PLAIN_VIP} " in line and "dport=80 " in line]


# --- life and death of the agent -------------------------------------------------------------------------------------


def test_auto_takes_bpf_and_says_so(fresh: HostLab) -> None:
    assert "decap=bpf" in fresh.start()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_connections_live_on_without_and_with_a_new_agent(fresh: HostLab, how: signal.Signals) -> None:
    fresh.start()
    with fresh.connect(PLAIN_VIP) as plain, fresh.connect(TRANSLATED_VIP) as translated:
        assert fresh.agent is not None
        fresh.agent.signal(how)
        fresh.agent.wait()
        assert exchange(plain)
        assert exchange(translated)
        assert fresh.ask(PLAIN_VIP)
        assert fresh.ask(TRANSLATED_VIP)
        decapsulated_before = 10
        fresh.start()
        assert exchange(plain)
        assert exchange(translated)
        assert fresh.row()["decapsulated"] > decapsulated_before  # counted on across the change


def test_start_repairs_what_a_crash_or_a_hand_left(fresh: HostLab) -> None:
    fresh.start()
    good = fresh.traces()
    assert fresh.agent is not None
    fresh.agent.kill()
    fresh.on_host("ip", "addr", "add", f"{NO_VIP}/32", "dev", "lo", "label", "lo:vipmux", "scope", "host")
    fresh.on_host("ip", "addr", "del", f"{PLAIN_VIP}/32", "dev", "lo")
    fresh.on_host("ip", "route", "del", "table", "local", "local", "203.0.113.128/25", "dev", "lo")
    fresh.on_host("nft", "flush", "table", "inet", "vipmux_agent")
    fresh.on_host("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore")
    fresh.on_host("tc", "filter", "del", "dev", "eth0", "ingress")
    foreign = "tc filter add dev eth0 ingress pref 19522 protocol ip handle 1 u32 match u32 0 0 action pass"
    fresh.on_host("sh", "-c", foreign)
    fresh.start()
    repaired = fresh.traces()
    assert _stable(repaired) == _stable(good)
    assert fresh.ask(PLAIN_VIP)
    assert fresh.ask(TRANSLATED_VIP)


def _stable(traces: dict[str, str]) -> dict[str, str]:
    """Without the number of the BPF program, and without an order among addresses."""
    filters = " ".join(word for word in traces["filters"].split() if not word.isdigit())
    return {
        **traces,
        "filters": filters,
        "addresses": "\n".join(sorted(traces["addresses"].splitlines())),
        "routes": "\n".join(sorted(traces["routes"].splitlines())),
    }


@pytest.mark.parametrize("decap", [DecapMode.BPF, DecapMode.TUN], ids=lambda mode: mode.value)
def test_cleanup_leaves_the_host_as_it_was(fresh: HostLab, decap: DecapMode) -> None:
    fresh.decap = decap
    fresh.write()
    fresh.on_host("ip", "addr", "add", "192.0.2.1/32", "dev", "lo", "label", "lo:mine")
    fresh.on_host("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_announce")
    before = fresh.traces()
    fresh.start()
    assert fresh.ask(PLAIN_VIP)
    assert fresh.traces() != before
    assert fresh.agent is not None
    assert fresh.agent.stop() == 0
    fresh.cleanup()
    assert fresh.traces() == before
    assert not (fresh.state_dir / "agent-changes.json").exists()
    assert "nothing" in fresh.cleanup()


def test_cleanup_spares_a_qdisc_that_others_use_and_a_setting_changed_since(fresh: HostLab) -> None:
    fresh.on_host("tc", "qdisc", "add", "dev", "eth0", "clsact")
    fresh.start()
    assert fresh.agent is not None
    fresh.agent.stop()
    fresh.on_host("sh", "-c", "echo 2 > /proc/sys/net/ipv4/conf/all/arp_ignore")
    assert "left net/ipv4/conf/all/arp_ignore alone" in fresh.cleanup()
    left = fresh.traces()
    assert "clsact" in left["qdiscs"]
    assert left["filters"] == ""


def test_strict_reverse_path_filter_of_a_host_with_two_links_is_loosened_and_restored() -> None:
    with HostLab(decap=DecapMode.BPF, strict=True) as lab, lab.server(80, "plain"):
        netns.batch(
            [
                "link add name eth1 type veth peer name eth2",
                "addr add 172.16.0.1/24 dev eth1",
                "link set eth1 up",
                "link set eth2 up",
                f"route add {CLIENT}/32 via 172.16.0.2 dev eth1 onlink",
            ],
            lab.host,
        )
        lab.write()
        before = lab.traces()
        lab.start()
        row = lab.row
        assert lab.traces()["sysctls"] != before["sysctls"]
        lab.mux.send(raw(IP(src=CLIENT, dst=PLAIN_VIP) / UDP(sport=1, dport=2)))
        wait_for(lambda: row()["decapsulated"] == 1, "the packet to be counted")
        assert "eth0/rp_filter:2" in lab.traces()["sysctls"]
        assert lab.agent is not None
        lab.agent.stop()
        lab.cleanup()
        assert lab.traces() == before


def test_single_homed_host_keeps_its_reverse_path_filter() -> None:
    with HostLab(decap=DecapMode.BPF, strict=True) as lab, lab.server(80, "plain"):
        lab.write()
        lab.start()
        assert lab.ask(PLAIN_VIP)
        assert "all/rp_filter:1" in lab.traces()["sysctls"]
        assert "eth0/rp_filter:0" in lab.traces()["sysctls"]


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_missing_interface_is_named(fresh: HostLab) -> None:
    fresh.write(interface="eth7")
    assert "eth7 does not exist" in fresh.run("--config", str(fresh.config), expect=1).stderr


def test_address_that_is_not_on_the_interface_is_named(fresh: HostLab) -> None:
    fresh.config.write_text(fresh.config.read_text().replace(HOST, "10.0.3.99"))
    before = fresh.traces()
    assert "10.0.3.99 is not an address of" in fresh.run("--config", str(fresh.config), expect=1).stderr
    assert fresh.traces() == before


def test_missing_privilege_is_named(fresh: HostLab) -> None:
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    assert "CAP_NET_ADMIN" in fresh.run("--config", str(fresh.config), expect=1, prefix=without).stderr


def test_missing_nft_is_named(fresh: HostLab) -> None:
    said = fresh.run("--config", str(fresh.config), expect=1, prefix=("env", "PATH=/nowhere")).stderr
    assert "nft is not installed" in said


def test_second_agent_is_refused(fresh: HostLab) -> None:
    fresh.start()
    assert "another lb-agent" in fresh.run("--config", str(fresh.config), expect=1).stderr
    assert fresh.ask(PLAIN_VIP)


def test_ipip_device_works_or_says_that_its_module_is_missing(fresh: HostLab) -> None:
    fresh.write(decap=DecapMode.IPIP)
    before = fresh.traces()
    if fresh.on_host("ip", "link", "add", "probe", "type", "ipip", "local", HOST) == "":
        fresh.on_host("ip", "link", "del", "probe")
        fresh.start()
        assert fresh.ask(PLAIN_VIP)
        return
    assert "no ipip module" in fresh.run("--config", str(fresh.config), expect=1).stderr
    assert fresh.traces() == before


def test_refused_bpf_falls_back_to_tun_and_says_why(fresh: HostLab) -> None:
    """Without CAP_BPF and CAP_SYS_ADMIN the kernel refuses the program."""
    argv = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin", "--"]
    line = fresh.start(argv)
    assert "decap=tun" in line
    assert "not permitted" in line
    assert fresh.ask(PLAIN_VIP)
    assert fresh.ask(TRANSLATED_VIP)


def test_forced_bpf_that_is_refused_ends_with_a_sentence(fresh: HostLab) -> None:
    fresh.write(decap=DecapMode.BPF)
    without = ("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin", "--")
    said = fresh.run("--config", str(fresh.config), expect=1, prefix=without).stderr
    assert "refused" in said
    assert 'decap = "auto"' in said


def test_metrics_count_by_reason(fresh: HostLab) -> None:
    fresh.start()
    fresh.mux.send(datagram(), source=GATEWAY)
    wait_for(lambda: fresh.drops("untrusted_source") == 1, "the drop to be counted")
    text = fresh.on_host("curl", "-s", "http://127.0.0.1:9742/metrics")
    assert 'lb_packets_total{reason="untrusted_source",verdict="drop"} 1.0' in text
    assert 'lb_agent_decap{mode="bpf"} 1.0' in text
    assert MUX not in text
