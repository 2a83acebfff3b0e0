# SPDX-License-Identifier: Apache-2.0
"""Datagrams of 4,000 bytes, which no link carries whole, through MUXes to real hosts and back: IPv4 and IPv6, ports
translated or not. Three MUXes, among which the router chooses for fragments by other fields than for whole packets."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Network, ip_network

import pytest

from lb.model import DecapMode, IoMode, Protocol, Service
from tests.lab import netns
from tests.lab.pace import allowed
from tests.lab.services import LOAD_PORT, LOAD_VIP, load
from tests.lab.topology import Lab
from tests.lab.traffic import counted

pytestmark = pytest.mark.lab

SIZE = 4000
TRANSLATED_VIP, LOAD6_VIP, TRANSLATED6_VIP = "203.0.113.31", "2001:db8:f::30", "2001:db8:f::31"
HOST_PORT = 7001
VIPS = {"plain": LOAD_VIP, "translated": TRANSLATED_VIP, "plain, IPv6": LOAD6_VIP, "translated, IPv6": TRANSLATED6_VIP}
#: On each host. What is translated goes to the host's own address.
LISTENS = ((LOAD_VIP, LOAD_PORT), (LOAD6_VIP, LOAD_PORT), ("0.0.0.0", HOST_PORT), ("::", HOST_PORT))
MODES = [(IoMode.PACKET, DecapMode.BPF), (IoMode.TUN, DecapMode.TUN), (IoMode.XDP, DecapMode.BPF)]


def services(lab: Lab) -> tuple[Service, ...]:
    plain = load(lab.hosts)
    other = tuple(replace(backend, port=HOST_PORT) for backend in plain.backends)
    four = (plain, replace(plain, name="translated", vip=ip_network(TRANSLATED_VIP), backends=other))
    addresses = {host.address: host.address6 for host in lab.hosts}
    six = [
        replace(
            service,
            name=f"{service.name}6",
            vip=IPv6Network(vip),
            backends=tuple(replace(b, address=addresses[b.address]) for b in service.backends),  # type: ignore[index]
        )
        for service, vip in zip(four, (LOAD6_VIP, TRANSLATED6_VIP), strict=True)
    ]
    assert plain.protocol is Protocol.UDP
    return (*four, *six)


class Echo:
    """Sends back what comes to one address and port in a namespace, with that as its source."""

    def __init__(self, namespace: str, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = netns.inside(namespace, lambda: socket.socket(family, socket.SOCK_DGRAM))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        freebind = (socket.IPPROTO_IPV6, 78) if ":" in address else (socket.IPPROTO_IP, 15)
        if ":" in address:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.setsockopt(*freebind, 1)  # the agent may put the VIP there later
        self._socket.bind((address, port))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(65535)
            if not data:
                return
            self._socket.sendto(data, sender)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it is not connected, says the kernel, and wakes who reads all the same
            self._socket.shutdown(socket.SHUT_RD)
        self._thread.join(10)
        self._socket.close()


@pytest.fixture(scope="module", params=MODES, ids=lambda modes: f"{modes[0].value}-{modes[1].value}")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    io, decap = request.param
    with Lab(muxes=3, hosts=2, io=io, decap=decap, ipv6=True) as started:
        started.write_files(services(started))
        started.guardian.serve((LOAD_VIP, TRANSLATED_VIP))
        started.start_nginx()
        started.start_daemons(started.nodes)
        ways = " ".join(f"nexthop via {mux.address6}" for mux in started.muxes)
        netns.batch([f"route add {vip}/128 {ways}" for vip in (LOAD6_VIP, TRANSLATED6_VIP)], started.router)
        echoes = [
            Echo(host.namespace, address, port)
            for host in started.hosts
            for address, port in (
                (LOAD_VIP, LOAD_PORT),
                (LOAD6_VIP, LOAD_PORT),
                ("0.0.0.0", HOST_PORT),
                ("::", HOST_PORT),
            )
        ]
        try:
            yield started
        finally:
            for echo in echoes:
                echo.close()


@pytest.mark.parametrize("vip", VIPS.values(), ids=VIPS)
def test_datagrams_of_4000_bytes_go_there_and_back(lab: Lab, vip: str) -> None:
    chance = random.Random(vip)
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    before = counted(lab, "fragment")
    for _ in range(20):
        with netns.inside(lab.client, lambda: socket.socket(family, socket.SOCK_DGRAM)) as client:
            client.connect((vip, LOAD_PORT))
            client.settimeout(allowed(1))
            asked = chance.randbytes(SIZE)
            assert answer(client, asked) == asked
    assert counted(lab, "fragment") >= before + 20 * 3


def answer(client: socket.socket, asked: bytes) -> bytes | None:
    """Asks again where nothing comes, as UDP must: over IPv6 the sender first learns what the tunnel carries."""
    for _ in range(5):
        try:
            client.send(asked)
            return client.recv(65535)
        except OSError as error:
            if not isinstance(error, TimeoutError) and error.errno != errno.EMSGSIZE:
                raise
    return None
