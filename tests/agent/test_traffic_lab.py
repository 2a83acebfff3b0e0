# SPDX-License-Identifier: Apache-2.0
"""The ways that packets take on a host, beside the plain one: other ports, containers, firewalls, the host's own
clients, and hosts that forward. With real packets."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers.inet import IP, UDP

from agent.host.linux import LinuxHost
from lb.model import Probe, ProbeType, Protocol, Service
from tests.agent.hostlab import CLIENT, HOST, NO_VIP, PLAIN_VIP, TRANSLATED_VIP, HostLab, service
from tests.lab import netns
from tests.lab.process import wait_for

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[HostLab]:
    """A host with a running agent; each test brings its services by a reload."""
    with HostLab() as lab:
        lab.write([service("web", PLAIN_VIP, 80)])
        lab.start()
        yield lab


def serve(lab: HostLab, *services: Service) -> None:
    lab.write(services)
    lab.reload()


def udp(vip: str, port: int, to: int | None, **more: Any) -> Service:
    return service("udp", vip, port, to, protocol=Protocol.UDP, **more)


def answer(sock: socket.socket, tries: int = 5) -> str:
    """What a server says to this client; it asks again as a client would."""
    for _ in range(tries):
        with contextlib.suppress(TimeoutError, ConnectionError):
            sock.send(b"hello")
            return sock.recv(2048).decode()
    return "nothing"


# --- other ports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_udp_client_that_keeps_its_port_follows_the_backend_to_another_port(lab: HostLab, how: str) -> None:
    serve(lab, udp(TRANSLATED_VIP, 53, 5300))
    with lab.udp_client(TRANSLATED_VIP, 53) as client:
        with lab.udp_server(5300, "old"):
            assert answer(client) == "old hello"
        with lab.udp_server(5301, "new"):
            if how == "reload":
                serve(lab, udp(TRANSLATED_VIP, 53, 5301))
            else:
                assert lab.agent is not None
                lab.agent.stop()
                lab.write([udp(TRANSLATED_VIP, 53, 5301)])
                lab.start()
            assert answer(client) == "new hello"


def test_udp_client_follows_when_translation_is_switched_off(lab: HostLab) -> None:
    serve(lab, udp(TRANSLATED_VIP, 53, 5300))
    with lab.udp_client(TRANSLATED_VIP, 53) as client:
        with lab.udp_server(5300, "old"):
            assert answer(client) == "old hello"
        serve(lab, udp(TRANSLATED_VIP, 53, None, track=True))
        with netns.inside(lab.host, lambda: _bound(TRANSLATED_VIP, 53)) as server:
            client.send(b"hello")
            assert server.recv(2048) == b"hello"


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(3)
    return sock


def test_udp_server_on_all_addresses_answers_as_the_vip_where_its_port_is_given(lab: HostLab) -> None:
    asks = Probe(ProbeType.UDP, request="ping", expect="ping", interval=0.3, timeout=0.2, fall=1)
    with lab.udp_server(53, "dns"), lab.udp_client(NO_VIP, 53) as client:
        serve(lab, udp(NO_VIP, 53, None, probe=asks))
        assert answer(client, 1) == "nothing"  # it answers from the host's own address
        why = wait_for(lambda: _down(lab), "the agent to notice")
        assert "give the backend `port = 53`" in why
        serve(lab, udp(NO_VIP, 53, 53, probe=asks))
        assert answer(client) == "dns hello"
        wait_for(lambda: _health(lab) == "up", "the agent to be content")


def _health(lab: HostLab) -> str:
    return str(lab.rows("backends")[0]["health"])


def _down(lab: HostLab) -> str:
    row = lab.rows("backends")[0]
    return str(row["reason"]) if row["health"] == "down" else ""


# --- containers and firewalls ----------------------------------------------------------------------------------------


def test_container_with_a_published_port_serves_a_tracked_service(lab: HostLab) -> None:
    asks = Probe(ProbeType.TCP, interval=0.3, timeout=0.2, fall=1)
    with lab.container(published=80) as container:
        serve(lab, service("web", PLAIN_VIP, 80, track=True, probe=asks))
        with lab.server(80, "inside", container):
            assert lab.ask(PLAIN_VIP) == "inside hello 172.18.0.2"
            wait_for(lambda: _health(lab) == "up", "the agent to reach it as clients do")
        wait_for(lambda: _health(lab) == "down", "the agent to miss it")


def test_firewall_that_wants_new_connections_lets_a_tracked_service_through_and_no_other(lab: HostLab) -> None:
    rules = (
        "table inet firewall {\nchain input {\ntype filter hook input priority 0; policy drop;\niif lo accept\n"
        "ct state established,related accept\ntcp dport 80 ct state new accept\n}\n}\n"
    )
    with lab.server(80, "plain"):
        serve(lab, service("web", PLAIN_VIP, 80))
        assert not (said := lab.on_host("nft", rules)), said
        try:
            with pytest.raises(TimeoutError):
                netns.inside(lab.client, lambda: socket.create_connection((PLAIN_VIP, 80), timeout=0.5))
            serve(lab, service("web", PLAIN_VIP, 80, track=True))
            assert lab.ask(PLAIN_VIP) == f"plain hello {PLAIN_VIP}"
        finally:
            lab.on_host("nft", "delete table inet firewall")


# --- the host's own clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [None, 80, 8080], ids=["as it is", "the same port", "another port"])
def test_the_hosts_own_clients_are_served_here(lab: HostLab, to: int | None) -> None:
    serve(lab, service("web", PLAIN_VIP, 80, to))

    def own() -> bytes:
        with socket.create_connection((PLAIN_VIP, 80), timeout=2) as connection:
            connection.sendall(b"mine\n")
            return connection.recv(100)

    with lab.server(to or 80, "own"):
        answers = {netns.inside(lab.host, own) for _ in range(20)}
    assert {text.split()[1] for text in answers} == {b"mine"}


# --- a host that forwards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["rules", "addresses", "both"])
def test_packet_of_a_vip_that_nobody_takes_goes_nowhere_also_where_the_host_forwards(lab: HostLab, gone: str) -> None:
    serve(lab, service("plain", PLAIN_VIP, 80), service("translated", TRANSLATED_VIP, 80, 8080))
    assert lab.agent is not None
    lab.agent.kill()  # whatever keeps it right; packets are taken out of tunnels all the same
    netns.sysctl(lab.host, {"ipv4/ip_forward": 1})
    try:
        if gone != "addresses":
            lab.on_host("nft", "flush", "ruleset")
        if gone != "rules":
            lab.on_host("ip", "addr", "flush", "dev", "lo", "label", "lo:vipmux")
        before = lab.decapsulated()
        with _Returning(lab) as returning:
            for vip in (PLAIN_VIP, TRANSLATED_VIP):
                for port in range(20):
                    lab.mux.send(raw(IP(src=CLIENT, dst=vip) / UDP(sport=5000 + port, dport=80)))
            wait_for(lambda: lab.decapsulated() == before + 40, "the packets to be out of their tunnels")
            # One that comes back the ordinary way, after all that could have.
            lab.mux.send(raw(IP(src=CLIENT, dst=NO_VIP) / UDP(sport=1, dport=1)), source="10.0.3.1")
        assert returning.count == 0
    finally:
        netns.sysctl(lab.host, {"ipv4/ip_forward": 0})
        lab.start()
    assert lab.agent.running


class _Returning:
    """Counts packets for VIPs that the host sends back."""

    def __init__(self, lab: HostLab) -> None:
        def listen() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            sniffer.bind(("eth0", 0x0800))
            sniffer.settimeout(0.2)
            return sniffer

        self._sniffer = netns.inside(lab.client, listen)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0

    def __enter__(self) -> _Returning:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sniffer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                data, (_, _, kind, *_) = self._sniffer.recvfrom(2048)
                self.count += kind != socket.PACKET_OUTGOING and IP(data).dst in (PLAIN_VIP, TRANSLATED_VIP)


def test_ipv6_is_fenced_as_well(lab: HostLab) -> None:
    vip = ipaddress.ip_network("2001:db8::10/128")
    netns.sysctl(lab.host, {"ipv6/conf/eth0/disable_ipv6": 0, "ipv6/conf/all/forwarding": 1})
    lab.on_host("ip", "-6", "addr", "add", "2001:db8:3::21/64", "dev", "eth0", "nodad")
    lab.on_host("ip", "-6", "route", "add", "default", "via", "2001:db8:3::1")

    def way() -> str:
        return lab.on_host("ip", "-6", "route", "get", str(vip.network_address), "from", "2001:db8:9::1", "iif", "eth0")

    def fence(verb: str) -> None:
        with LinuxHost() as host:
            getattr(host, f"{verb}_fence_route")(vip)
            getattr(host, f"{verb}_fence_rule")(6, "eth0")

    assert "via 2001:db8:3::1" in way()
    netns.inside(lab.host, lambda: fence("add"))
    assert "Invalid argument" in way()  # what the kernel says of a blackhole
    netns.inside(lab.host, lambda: fence("remove"))
    assert "via 2001:db8:3::1" in way()


# --- what must not keep it from starting -----------------------------------------------------------------------------


def test_agent_starts_over_a_damaged_record_and_a_file_in_the_place_of_its_socket(lab: HostLab) -> None:
    assert lab.agent is not None
    lab.agent.stop()
    (lab.state_dir / "agent-changes.json").write_text("")
    (lab.state_dir / "agent.sock").write_text("not a socket")
    lab.write([replace(service("plain", PLAIN_VIP, 80), track=False)])
    lab.start()
    with lab.server(80, "plain"):
        assert lab.ask(PLAIN_VIP) == f"plain hello {PLAIN_VIP}"
    assert lab.row()["address"] == HOST
    assert "changes_not_known" in lab.agent.output()
