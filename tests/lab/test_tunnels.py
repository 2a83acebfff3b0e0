# SPDX-License-Identifier: Apache-2.0
"""Every kind of tunnel, end to end: either family in either, over UDP, and machines that have IPv6 alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_network

import pytest

from lb.model import AgentSettings, Backend, DecapMode, Encap, IoMode, MuxSettings, PortRange, Protocol, Service
from tests.lab import netns
from tests.lab.accounts import lost_in_mux
from tests.lab.process import wait_for
from tests.lab.services import PROBE
from tests.lab.topology import PUBLISHED, Lab, Node
from tests.lab.traffic import KeepAlive, checksum, download, requests, upload_random

pytestmark = pytest.mark.lab


@dataclass(frozen=True, slots=True)
class Variant:
    io: IoMode
    decap: DecapMode
    gue: int
    only6: bool = False

    def __str__(self) -> str:
        return f"{self.io.value}-{self.decap.value}-gue-{self.gue}" + ("-only-ipv6" if self.only6 else "")


class TunnelLab(Lab):
    """Two MUXes and two hosts with addresses of both families, or without IPv4 between them."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(hosts=2, io=variant.io, decap=variant.decap, ipv6=True)
        self.variant = variant

    def mux_settings(self, mux: Node) -> MuxSettings:
        settings = replace(super().mux_settings(mux), gue_variant=self.variant.gue)
        return replace(settings, address=None) if self.variant.only6 else settings

    def agent_settings(self, host: Node) -> AgentSettings:
        settings = super().agent_settings(host)
        if not self.variant.only6:
            return settings
        return replace(settings, address=None, muxes=tuple(mux.address6 for mux in self.muxes))

    def _build6(self) -> None:
        super()._build6()
        if self.variant.only6:
            for node in self.nodes:
                netns.batch([f"addr del {node.address}/24 dev eth0"], node.namespace)

    def start(self, services: Sequence[Service]) -> None:
        self.write_files(services)
        self.guardian.serve(tuple(sorted({str(service.vip) for service in services if service.vip.version == 4})))
        self.start_nginx()
        self.start_daemons([*self.hosts, *self.muxes])
        ways = " ".join(f"nexthop via {mux.address6}" for mux in self.muxes)
        six = sorted({str(service.vip) for service in services if service.vip.version == 6})
        netns.batch([f"route replace {vip} {ways}" for vip in six], self.router)


def service(
    name: str, vip: str, hosts: Sequence[Node], *, inside: int, port: int | None = None, encap: Encap | None = None
) -> Service:
    """``inside``: the family of the tunnel that it is in."""
    ends = [(host.name, host.address if inside == 4 else host.address6) for host in hosts]
    backends = tuple(Backend(f"{name}-{host}", end, port) for host, end in ends)
    return Service(name, ip_network(vip), Protocol.TCP, PortRange(80, 80), backends, encap=encap, probe=PROBE)


def services(hosts: Sequence[Node], variant: Variant) -> tuple[Service, ...]:
    six = (
        service("6in6", "2001:db8:f::60", hosts, inside=6),
        service("gue-6in6", "2001:db8:f::61", hosts, inside=6, port=8080, encap=Encap.GUE),
    )
    if variant.only6:
        return six
    return (
        *six,
        service("4in6", "203.0.113.46", hosts, inside=6),
        service("4in6-port", "203.0.113.47", hosts, inside=6, port=8080),
        service("6in4", "2001:db8:f::64", hosts, inside=4),
        service("6in4-port", "2001:db8:f::65", hosts, inside=4, port=8080),
        service("gue", "203.0.113.44", hosts, inside=4, encap=Encap.GUE),
        service("gue-4in6", "203.0.113.45", hosts, inside=6, port=8080, encap=Encap.GUE),
        service("gue-6in4", "2001:db8:f::66", hosts, inside=4, encap=Encap.GUE),
    )


VARIANTS = [
    Variant(IoMode.PACKET, DecapMode.BPF, 0),
    Variant(IoMode.TUN, DecapMode.TUN, 1),
    Variant(IoMode.XDP, DecapMode.BPF, 1),
    Variant(IoMode.PACKET, DecapMode.TUN, 0, only6=True),
    Variant(IoMode.PACKET, DecapMode.BPF, 0, only6=True),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def lab(request: pytest.FixtureRequest) -> Iterator[TunnelLab]:
    variant: Variant = request.param
    with TunnelLab(variant) as started:
        started.start(services(started.hosts, variant))
        yield started


def url(one: Service) -> str:
    vip = one.vip.network_address
    return f"http://{vip}" if vip.version == 4 else f"http://[{vip}]"


def test_every_request_is_answered_through_every_tunnel(lab: TunnelLab) -> None:
    for one in lab.services:
        served = requests(lab, f"{url(one)}/", 40)
        assert set(served) == {host.name for host in lab.hosts}, one.name


def test_30_mb_go_up_and_down_bit_for_bit(lab: TunnelLab) -> None:
    for one in lab.services:
        if one.name in ("6in6", "gue-6in6", "4in6", "6in4-port", "gue"):
            assert download(lab, f"{url(one)}/big") == checksum(lab.big_file), one.name
            sent, arrived = upload_random(lab, url(one))
            assert arrived == [sent], one.name


def test_probes_go_through_every_tunnel(lab: TunnelLab) -> None:
    def seen(mux: Node) -> dict[str, str]:
        return {row["name"]: f"{row['health']}: {row['reason']}" for row in lab.get(mux, "backends")}

    def all_up(mux: Node) -> bool:
        return all(text.startswith("up: ") for text in seen(mux).values())

    for mux in lab.muxes:
        wait_for(partial(all_up, mux), "every backend to be up")
        assert all("through the tunnel" in text for text in seen(mux).values()), seen(mux)


@pytest.fixture(scope="module")
def fleet() -> Iterator[TunnelLab]:
    with TunnelLab(Variant(IoMode.PACKET, DecapMode.BPF, 0)) as started:
        web = service("web", "203.0.113.10", started.hosts, inside=4, port=8080)
        started.start((web, service("files", "203.0.113.20", started.hosts, inside=4)))
        yield started


def dropped(lab: TunnelLab) -> int:
    return sum(lab.get(host, "agents")[0]["dropped"] for host in lab.hosts)


def test_a_fleet_changes_to_gue_and_back_one_mux_at_a_time_with_no_loss(fleet: TunnelLab) -> None:
    before = sum(lost_in_mux(fleet, mux) for mux in fleet.muxes), dropped(fleet)
    plain = fleet.services
    kept = [KeepAlive(fleet, vip, 80, count=50, interval=0.05).start() for vip in ("203.0.113.10", "203.0.113.20")]
    try:
        for encap in (Encap.GUE, Encap.IPIP):
            for mux in fleet.muxes:
                fleet.write_files([replace(one, encap=encap) for one in plain], [mux])
                fleet.reload([mux], "mux", PUBLISHED)
                for load in kept:
                    load.one_more_answer()
        flows = [flow for load in kept for flow in load.stop()]
    finally:
        for load in kept:
            load.close()
    assert len(flows) == 100
    assert [flow for flow in flows if flow.broken] == []
    assert (sum(lost_in_mux(fleet, mux) for mux in fleet.muxes), dropped(fleet)) == before


def test_a_host_takes_gue_from_known_muxes_alone(fleet: TunnelLab) -> None:
    host = fleet.hosts[0]

    def strangers() -> int:
        count: int = fleet.get(host, "agents")[0]["drops"].get("untrusted_source", 0)
        return count

    before = strangers()
    say = f"echo nothing >/dev/udp/{host.address}/6080"
    netns.ip("netns", "exec", fleet.client, "bash", "-c", say + "; " + say)
    wait_for(lambda: strangers() == before + 2, "both to be counted")
