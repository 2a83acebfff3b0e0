# SPDX-License-Identifier: Apache-2.0
"""Health probes in the lab: agents ask their own nginx, MUXes ask the VIP through the tunnel of each backend."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest

from lb.model import Backend, IoMode, PortRange, Probe, ProbeType, Protocol, Service
from tests.lab import netns
from tests.lab.pace import allowed
from tests.lab.process import Process, wait_for
from tests.lab.topology import PROGRAMS, Lab, Node

pytestmark = pytest.mark.lab

HTTP = Probe(ProbeType.HTTP, path="/healthz", expect="well", interval=0.5, timeout=0.4, rise=2, fall=2)
#: Until a backend is found down, and what a busy machine may add.
DETECT = HTTP.interval * HTTP.fall + HTTP.timeout
SLACK = 0.6

_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format probes "$server_port $remote_addr $request_uri $status";
    access_log {directory}/access.log probes;
    server {{
        listen 80;
        listen 8080;
        location = /healthz {{
            if (-f {directory}/ill) {{ return 503; }}
            return 200 "well\\n";
        }}
        location / {{ return 200 "{name}\\n"; }}
    }}
}}
"""


class Health:
    """The lab, its nginx with access logs, and what daemons say of backends."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.mux = lab.muxes[0]
        self.one, self.two = lab.hosts
        self.web = self.service("web", "203.0.113.10", HTTP, port=8080)
        self.files = self.service("files", "203.0.113.20", replace(HTTP, type=ProbeType.TCP, expect=None, path="/"))

    def service(self, name: str, vip: str, probe: Probe, port: int | None = None) -> Service:
        backends = tuple(Backend(f"{name}-{host.name}", host.address, port) for host in self.lab.hosts)
        return Service(name, IPv4Network(vip), Protocol.TCP, PortRange(80, 80), backends, probe=probe)

    def start_nginx(self, host: Node) -> None:
        configuration = host.directory / "nginx.conf"
        configuration.write_text(_NGINX.format(directory=host.directory, name=host.name))
        pid = host.directory / "nginx.pid"
        pid.unlink(missing_ok=True)
        host.processes["nginx"] = Process(
            f"nginx on {host.name}",
            host.namespace,
            ["nginx", "-e", host.directory / "error.log", "-c", configuration],
            host.directory / "nginx.log",
        )
        wait_for(pid.exists, f"nginx on {host.name}")

    def start(self) -> None:
        self.lab.write_files((self.web, self.files))
        for host in self.lab.hosts:
            self.start_nginx(host)
        self.lab.start_daemons(self.lab.nodes)

    def row(self, node: Node, service: str, host: Node) -> dict[str, Any]:
        """What a node says of a service's backend on a host."""
        rows = self.lab.get(node, "backends")
        return next(row for row in rows if (row["service"], row["name"]) == (service, f"{service}-{host.name}"))

    def says(self, node: Node, service: str, host: Node, seconds: float = 20.0, **wanted: str) -> dict[str, Any]:
        """Waits until it does."""

        def look() -> dict[str, Any] | None:
            row = self.row(node, service, host)
            return row if all(row.get(key) == value for key, value in wanted.items()) else None

        found = wait_for(look, f"{node.name} to say {wanted} of {service} on {host.name}", seconds)
        assert found is not None
        return found

    def all_well(self) -> None:
        for host in self.lab.hosts:
            self.says(host, "web", host, health="up", reason="HTTP 200")
            self.says(host, "files", host, health="up", reason="TCP connects")
            self.says(self.mux, "web", host, health="up", reason="HTTP 200 through the tunnel")
            self.says(self.mux, "files", host, health="up", reason="TCP connects through the tunnel")

    def asked(self, host: Node, by: Node) -> int:
        """How many requests for /healthz nginx logged, that came from this node."""
        lines = (host.directory / "access.log").read_text().splitlines()
        return sum(line.split()[1:3] == [str(by.address), "/healthz"] for line in lines)

    def in_mux(self, *argv: str) -> str:
        return netns.ip("-n", self.mux.namespace, *argv)

    def traces(self) -> str:
        """All of a probe's way that the kernel of the MUX can show."""
        rules = self.in_mux("rule", "show")
        links = [link["ifname"] for link in json.loads(self.in_mux("-j", "link", "show"))]
        return f"{rules}{[name for name in links if 'probe' in name]}{self.in_mux('route', 'show', 'table', 'all')}"


@pytest.fixture(scope="module", params=[IoMode.PACKET, IoMode.TUN], ids=lambda mode: mode.value)
def health(request: pytest.FixtureRequest) -> Iterator[Health]:
    with Lab(muxes=1, hosts=2, io=request.param) as lab:
        started = Health(lab)
        started.start()
        yield started


@pytest.fixture
def well(health: Health) -> Health:
    """Every probe of every backend succeeds."""
    health.all_well()
    return health


@pytest.mark.parametrize("health", [IoMode.XDP], indirect=True, ids=["xdp"])
def test_probes_go_through_the_tunnel_over_xdp_and_see_a_host_that_tunnels_do_not_reach(well: Health) -> None:
    assert well.lab.status(well.mux)["io"] == "xdp"
    with router_drops_tunnels_to(well, well.two):
        well.says(well.mux, "web", well.two, allowed(DETECT + SLACK), health="down")
        assert well.row(well.mux, "web", well.one)["health"] == "up"
    well.all_well()


def test_agents_and_muxes_find_well_what_is_well(well: Health) -> None:
    assert well.row(well.mux, "web", well.one)["since"] > 1e9
    well.mux.processes["mux"].wait_output('told="nobody: there is no manager')
    well.one.processes["agent"].wait_output("event=probing")


def test_lb_get_shows_health_and_why_it_is_not_up(well: Health) -> None:
    def shown(node: Node) -> str:
        asked = ("get", "backends", "--local", "--config", str(node.config))
        return " ".join(netns.ip("netns", "exec", node.namespace, f"{PROGRAMS}/lb", *asked).split())

    assert "packets health web" in shown(well.mux)
    assert " is " not in shown(well.mux)
    ill = well.two.directory / "ill"
    ill.touch()
    try:
        well.says(well.two, "web", well.two, health="down")
        assert shown(well.two).endswith("web/web-host2 is down: HTTP 503")
    finally:
        ill.unlink()
    well.all_well()


def test_a_killed_process_is_down_in_time_with_the_reason_and_up_once_it_is_back(well: Health) -> None:
    since = well.row(well.one, "web", well.one)["since"]
    began = time.monotonic()
    well.one.processes["nginx"].kill()
    down = well.says(well.one, "web", well.one, allowed(DETECT + SLACK), health="down", reason="connection refused")
    by = "connection refused by 203.0.113.10 through the tunnel to 10.0.3.21"
    well.says(well.mux, "web", well.one, allowed(DETECT + SLACK), health="down", reason=by)
    assert time.monotonic() - began < allowed(DETECT + SLACK)
    assert down["since"] > since
    assert well.row(well.mux, "web", well.two)["health"] == "up"
    well.start_nginx(well.one)
    well.all_well()


def test_an_answer_of_503_is_down_and_says_so(well: Health) -> None:
    ill = well.two.directory / "ill"
    ill.touch()
    try:
        well.says(well.two, "web", well.two, health="down", reason="HTTP 503")
        by = "HTTP 503 by 203.0.113.10 through the tunnel to 10.0.3.22"
        well.says(well.mux, "web", well.two, health="down", reason=by)
        # Each probe went to the backend that it is for: the other one of the same VIP is well.
        assert well.row(well.mux, "web", well.one)["health"] == "up"
        assert well.row(well.mux, "files", well.two)["health"] == "up"
    finally:
        ill.unlink()
    well.all_well()


def test_probes_reach_exactly_the_probed_backend_and_the_port_it_listens_on(well: Health) -> None:
    only = replace(well.web, backends=well.web.backends[1:])
    well.lab.write_files((only, well.files), [well.mux])
    well.lab.reload([well.mux], "mux", 'event="configuration published"')
    one, two = well.asked(well.one, well.mux), well.asked(well.two, well.mux)
    wait_for(lambda: well.asked(well.two, well.mux) >= two + 5, "five probes of host2 alone")
    assert well.asked(well.one, well.mux) <= one + 1  # one may have been on its way
    ports = {
        line.split()[0] for line in (well.two.directory / "access.log").read_text().splitlines() if "/healthz" in line
    }
    assert ports == {"8080"}
    well.lab.write_files((well.web, well.files), [well.mux])
    well.lab.reload([well.mux], "mux", 'event="configuration published"')
    well.all_well()


@contextlib.contextmanager
def router_drops_tunnels_to(health: Health, host: Node) -> Iterator[None]:
    """As some fabrics do. (In nft, "ipip" is another protocol.)"""
    rule = f"ip daddr {host.address} ip protocol 4 drop;"
    rules = f"table ip lab_tunnels {{\nchain forward {{\ntype filter hook forward priority 0;\n{rule}\n}}\n}}\n"
    netns.ip("netns", "exec", health.lab.router, "nft", "-f", "-", stdin=rules)
    try:
        yield
    finally:
        netns.ip("netns", "exec", health.lab.router, "nft", "delete table ip lab_tunnels")


def test_a_host_that_tunnels_do_not_reach_is_down_for_the_mux_and_up_for_its_agent(well: Health) -> None:
    with router_drops_tunnels_to(well, well.two):
        row = well.says(well.mux, "web", well.two, allowed(DETECT + SLACK), health="down")
        assert row["reason"] == (
            "connect timed out after 0.4 s through the tunnel to 10.0.3.22; "
            "is IP-in-IP (protocol 4) dropped on the way, or lb-agent not running there?"
        )
        assert well.row(well.two, "web", well.two)["health"] == "up"
        assert well.row(well.mux, "web", well.one)["health"] == "up"
    well.all_well()


def test_a_host_without_an_agent_says_so_in_the_reason(well: Health) -> None:
    assert well.two.processes["agent"].stop() == 0
    netns.ip("netns", "exec", well.two.namespace, f"{PROGRAMS}/lb-agent", "cleanup", "--config", str(well.two.config))
    reason = (
        "connect timed out after 0.4 s through the tunnel to 10.0.3.22; "
        "10.0.3.22 says: protocol unreachable: IP-in-IP is not accepted there"
    )
    well.says(well.mux, "web", well.two, health="down", reason=reason)
    well.lab.start_agent(well.two)
    well.all_well()


def test_reload_keeps_what_is_known(well: Health) -> None:
    before = [well.row(well.mux, "web", host)["since"] for host in well.lab.hosts]
    agents = [well.row(host, "web", host)["since"] for host in well.lab.hosts]
    well.lab.reload([well.mux], "mux", 'event="configuration published"')
    well.lab.reload(well.lab.hosts, "agent", "event=reloaded")
    assert [well.row(well.mux, "web", host)["since"] for host in well.lab.hosts] == before
    assert [well.row(host, "web", host)["since"] for host in well.lab.hosts] == agents


def test_metrics_show_probes(well: Health) -> None:
    def scrape(node: Node, port: int) -> str:
        return netns.ip("netns", "exec", node.namespace, "curl", "-s", f"http://127.0.0.1:{port}/metrics")

    up = 'lb_probe_up{backend="web-host2",service="web"} 1.0'
    for node, port in ((well.mux, 9741), (well.two, 9742)):
        wait_for(lambda node=node, port=port: up in scrape(node, port), f"{node.name} to have it up")  # type: ignore[misc]


@contextlib.contextmanager
def udp_server(host: Node, answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """Answers datagrams to port 53 of whatever address, from the same one."""

    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        opened.bind(("", 53))
        opened.settimeout(0.05)
        return opened

    stop = threading.Event()
    with netns.inside(host.namespace, listen) as opened:

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data, info, _, sender = opened.recvmsg(2048, 128)
                    opened.sendmsg([answer(data)], info, 0, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def test_udp_with_an_expected_answer_is_probed_through_the_tunnel(well: Health) -> None:
    probe = Probe(ProbeType.UDP, request="ping", expect="pong", interval=0.5, timeout=0.4, rise=1, fall=2)
    dns = replace(well.service("dns", "203.0.113.53", probe), protocol=Protocol.UDP, ports=PortRange(53, 53))
    services = (well.web, well.files, dns)
    with udp_server(well.one, lambda data: b"pong" if data == b"ping" else b"?"):
        well.lab.publish_agents(services)
        well.lab.publish(services)
        well.says(well.one, "dns", well.one, health="up", reason="UDP answers as expected")
        well.says(well.mux, "dns", well.one, health="up", reason="UDP answers as expected through the tunnel")
        well.says(well.two, "dns", well.two, health="down", reason="nobody listens: ICMP port unreachable")
        row = well.says(well.mux, "dns", well.two, health="down")
        assert row["reason"].startswith("nobody listens: ICMP port unreachable")
    well.lab.publish((well.web, well.files))
    well.lab.publish_agents((well.web, well.files))


def test_a_killed_mux_leaves_a_rule_that_the_next_start_repairs_and_a_clean_stop_leaves_nothing(well: Health) -> None:
    probing = well.traces()
    assert "vipmux-probe" in probing
    well.lab.kill_mux(well.mux)
    rule = [line for line in well.traces().splitlines() if "fwmark" in line]
    assert len(rule) == 1
    well.lab.start_mux(well.mux)
    well.all_well()
    assert sorted(well.traces().split()) == sorted(probing.split())
    assert well.lab.stop_mux(well.mux) == 0
    left = well.traces()
    assert "fwmark" not in left
    assert "probe" not in left
    assert "table 198" not in left  # 0x767..... in decimal
    well.lab.start_mux(well.mux)
    well.all_well()


def test_a_device_taken_away_is_made_again(well: Health) -> None:
    device = next(link["ifname"] for link in json.loads(well.in_mux("-j", "link", "show")) if "probe" in link["ifname"])
    well.in_mux("link", "delete", device)
    wait_for(lambda: device in well.in_mux("link", "show"), "the device to return")
    well.all_well()
    well.mux.processes["mux"].wait_output("event=probe_device_lost")


def test_strict_reverse_paths_are_no_trouble_or_are_said(well: Health) -> None:
    """With the default route towards the VIP they are none; in TUN mode the VIP's route leads elsewhere."""
    name = "ipv4/conf/all/rp_filter"
    netns.sysctl(well.mux.namespace, {name: 1})
    try:
        well.lab.reload([well.mux], "mux", 'event="configuration published"')
        if well.lab.io is IoMode.PACKET:
            since = well.asked(well.one, well.mux)
            wait_for(lambda: well.asked(well.one, well.mux) > since + 2, "probes that go on")
            well.all_well()
        else:
            row = well.says(well.mux, "web", well.one, health="unknown")
            assert row["reason"] == (
                "not probed: the route to 203.0.113.10 leads by lb-mux1 and "
                "net.ipv4.conf.eth0.rp_filter is 1 (strict); set it to 2 or 0"
            )
            well.mux.processes["mux"].wait_output("event=tunnel_probes_off")
            netns.sysctl(well.mux.namespace, {name: 2})
            well.lab.reload([well.mux], "mux", 'event="configuration published"')
            well.all_well()
    finally:
        netns.sysctl(well.mux.namespace, {name: 0})
        well.lab.reload([well.mux], "mux", 'event="configuration published"')
