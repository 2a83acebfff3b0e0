# SPDX-License-Identifier: Apache-2.0
"""The text of the agent's nftables table, and which of several services decides."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from agent.rules.local_services import serve
from agent.rules.nftables_table import TunnelGuard, render, replacement, segment_size
from lb.model import Address, AgentConfig, Backend, BackendState, DecapMode, Encap, Service
from tests.agent.values import ANY_PORT, HOST, HOST6, MUX, config, own_services, service


def text_for(*services: Service, guard: TunnelGuard | None = None) -> str | None:
    return render(own_services(config(*services, address6=HOST6)), [HOST, HOST6], guard)


def chain(text: str | None, name: str) -> list[str]:
    """The rules of a chain."""
    assert text is not None
    found = re.search(rf"\tchain {name} \{{\n(.*?)\n\t\}}", text, re.DOTALL)
    return [line.strip() for line in found[1].splitlines()[1:]] if found else []


def elements(text: str | None, name: str) -> set[str]:
    assert text is not None
    found = re.search(rf"\tset {name} \{{.*?elements = \{{(.*?)\}}", text, re.DOTALL)
    return {element.strip() for element in found[1].split(",")} if found else set()


def test_host_without_services_needs_no_table() -> None:
    assert text_for(service("elsewhere", "203.0.113.10", address="10.0.3.22")) is None


def test_same_services_in_any_order_give_the_same_text() -> None:
    services = [service("a", "203.0.113.10"), service("b", "203.0.113.11", to=8080), service("c", "203.0.113.128/25")]
    assert text_for(*services) == text_for(*reversed(services))


def test_untranslated_service_is_not_tracked_and_not_translated() -> None:
    text = text_for(service("web", "203.0.113.10"))
    assert chain(text, "untracked_in") == ["ip daddr . tcp dport @serve0_tcp4_as_is notrack return"]
    assert chain(text, "untracked_out") == [
        "ip saddr . tcp sport @serve0_tcp4_as_is notrack return",
        "ip daddr . tcp dport @serve0_tcp4_as_is notrack return",
    ]
    assert chain(text, "translate") == []
    assert "nat" not in (text or "")


def test_translated_service_is_tracked_and_sent_to_its_port() -> None:
    text = text_for(service("web", "203.0.113.10", to=8080))
    assert chain(text, "translate") == ["ip daddr . tcp dport @serve0_tcp4_8080 dnat ip to 10.0.3.21:8080"]
    assert chain(text, "untracked_in") == []


def test_backend_port_that_is_given_is_translated_to_also_where_it_is_the_service_port() -> None:
    text = text_for(service("dns", "203.0.113.10", 53, to=53, protocol="udp"))
    assert chain(text, "translate") == ["ip daddr . udp dport @serve0_udp4_53 dnat ip to 10.0.3.21:53"]


def test_what_the_host_itself_sends_to_its_translated_service_is_translated_as_well() -> None:
    text = text_for(service("web", "203.0.113.10", to=8080), service("tls", "203.0.113.10", 443))
    assert chain(text, "translate_own") == chain(text, "translate")


def test_service_that_asks_for_it_is_tracked_and_left_to_the_rules_of_the_host() -> None:
    text = text_for(service("web", "203.0.113.10", track=True), service("tls", "203.0.113.10", 443))
    assert chain(text, "untracked_in") == [
        "ip daddr . tcp dport @serve0_tcp4_as_is notrack return",
        "ip daddr . tcp dport @serve0_tcp4_tracked return",
    ]
    assert chain(text, "translate") == []
    assert chain(text_for(service("web", "203.0.113.10", track=True)), "untracked_in") == []


@pytest.mark.parametrize("state", list(BackendState))
def test_backend_that_takes_no_new_flows_keeps_its_translation(state: BackendState) -> None:
    text = text_for(service("web", "203.0.113.10", to=8080, state=state, weight=0))
    assert len(chain(text, "translate")) == 1


def test_most_specific_service_decides() -> None:
    text = text_for(
        service("any", "203.0.113.128/25", ANY_PORT),
        service("range", "203.0.113.128/25", (80, 99)),
        service("exact", "203.0.113.128/25", 80, to=8080),
        service("one", "203.0.113.130", 80),
        service("narrow", "203.0.113.192/26", 80, to=8081),
    )
    assert [re.sub(r".*@(\w+) ", r"\1 ", rule) for rule in chain(text, "translate")] == [
        "serve0_tcp4_as_is return",
        "serve1_tcp4_8081 dnat ip to 10.0.3.21:8081",
        "serve2_tcp4_8080 dnat ip to 10.0.3.21:8080",
        "serve3_tcp4_as_is return",
        "serve4_tcp4_as_is return",
    ]
    assert elements(text, "serve0_tcp4_as_is") == {"203.0.113.130 . 80"}
    assert elements(text, "serve4_tcp4_as_is") == {"203.0.113.128/25 . 0-65535"}


def test_services_of_one_kind_share_a_set_and_a_rule() -> None:
    text = text_for(*(service(f"s{i}", f"203.0.113.{i}", to=8080) for i in range(10, 30)))
    assert len(chain(text, "translate")) == 1
    assert len(elements(text, "serve0_tcp4_8080")) == 20


def test_segment_size_leaves_room_for_both_headers() -> None:
    sizes = {
        own.name: segment_size(own)
        for own in own_services(
            config(
                service("four", "203.0.113.10"),
                service("six", "2001:db8::1"),
                service("jumbo", "203.0.113.11", mtu=9000),
                address6=HOST6,
            )
        )
    }
    assert sizes == {"four": 1440, "six": 1400, "jumbo": 8940}


def test_only_larger_segment_sizes_are_changed_and_only_of_tcp_services() -> None:
    text = text_for(service("web", "203.0.113.10"), service("dns", "203.0.113.10", 53, protocol="udp"))
    assert chain(text, "clamp") == [
        "tcp flags & (syn|rst) != syn return",
        "ip saddr . tcp sport @mss0_tcp4_1500 tcp option maxseg size > 1440 tcp option maxseg size set 1440 return",
        "ip saddr . tcp sport @mss0_tcp4_1500 return",
    ]
    assert chain(text_for(service("dns", "203.0.113.10", 53, protocol="udp")), "clamp") == []


def test_ipip_device_is_guarded_by_the_table() -> None:
    guard = TunnelGuard("vipmux-ipip", HOST, (MUX,))
    rules = chain(text_for(service("web", "203.0.113.10"), guard=guard), "tunnel")
    assert rules == [
        'iifname "vipmux-ipip" ip daddr != @served counter name inner_not_vip drop',
        "ip protocol 4 ip daddr 10.0.3.21 ip saddr != { 10.0.1.11 } counter name untrusted_source drop",
    ]


def test_one_host_twice_in_a_service_with_different_ports_leaves_out_that_service_alone() -> None:
    web = service("web", "203.0.113.10", to=8080)
    twice = Service(web.name, web.vip, web.protocol, web.ports, (*web.backends, Backend("web-2", HOST, 8081)))
    served = serve(AgentConfig(config().agent, (twice, service("tls", "203.0.113.10", 443))))
    assert [own.name for own in served.services] == ["tls"]
    assert "web-1 and web-2 are both this host with different ports" in served.left_out["web"]


def test_what_the_kernels_own_device_cannot_take_out_of_its_tunnel_is_left_out() -> None:
    inside = service("in6", "203.0.113.12")
    given = config(
        service("six", "2001:db8::1"),
        service("four", "203.0.113.10"),
        replace(service("gue", "203.0.113.11"), encap=Encap.GUE),
        replace(inside, backends=(Backend("in6-1", HOST6),)),
        address6=HOST6,
    )
    for mode in (DecapMode.BPF, DecapMode.TUN):
        assert serve(given, mode).left_out == {}
    served = serve(given, DecapMode.IPIP)
    assert [own.name for own in served.services] == ["four"]
    assert {name: why.split(",")[0] for name, why in served.left_out.items()} == {
        "six": "is IPv6",
        "gue": "its tunnel is GUE",
        "in6": "its tunnel is of IPv6",
    }


def test_a_port_is_translated_to_an_address_of_the_vips_family_whatever_the_tunnel() -> None:
    web = service("web", "203.0.113.10", to=8080)
    over6 = replace(web, backends=(Backend("web-1", HOST6, 8080),))
    text = render(serve(config(over6, address6=HOST6)).services, [HOST, HOST6])
    assert text is not None
    assert f"dnat ip to {HOST}:8080" in text
    alone = AgentConfig(replace(config(over6, address6=HOST6).agent, address=None), (over6,))
    assert "needs agent.address: an address of the VIP's family" in serve(alone).left_out["web"]


@pytest.mark.parametrize(
    ("vip", "dip", "encap", "size"),
    [
        ("203.0.113.10", HOST, None, 1440),
        ("203.0.113.10", HOST6, None, 1420),
        ("203.0.113.10", HOST, Encap.GUE, 1428),
        ("203.0.113.10", HOST6, Encap.GUE, 1408),
        ("2001:db8::1", HOST6, None, 1400),
        ("2001:db8::1", HOST, None, 1420),
        ("2001:db8::1", HOST6, Encap.GUE, 1388),
        ("2001:db8::1", HOST, Encap.GUE, 1408),
    ],
)
def test_segments_fit_the_tunnel_that_there_is(vip: str, dip: Address, encap: Encap | None, size: int) -> None:
    web = replace(service("web", vip), backends=(Backend("web-1", dip),), encap=encap)
    (own,) = serve(config(web, address6=HOST6)).services
    assert segment_size(own) == size
    default = config(replace(web, encap=None), address6=HOST6)
    (own,) = serve(replace(default, agent=replace(default.agent, encap=encap or Encap.IPIP))).services
    assert segment_size(own) == size


@pytest.mark.lab
def test_nft_accepts_every_kind_of_table() -> None:
    services = (
        service("web", "203.0.113.10", to=8080),
        service("tls", "203.0.113.10", 443),
        service("dns", "203.0.113.10", 53, protocol="udp"),
        service("range", "203.0.113.11", (5000, 5099), protocol="udp"),
        service("any", "203.0.113.128/25", ANY_PORT),
        service("one", "203.0.113.130", 80, to=8080, mtu=9000),
        service("six", "2001:db8::1", to=8080),
        service("six-any", "2001:db8:1::/64", ANY_PORT),
        service("published", "203.0.113.12", 80, track=True),
    )
    for guard in (None, TunnelGuard("vipmux-ipip", HOST, (MUX,))):
        text = text_for(*services, guard=guard)
        assert text is not None
        done = subprocess.run(
            ["unshare", "--net", "nft", "-f", "-"],
            input=replacement(text) * 2,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
