# SPDX-License-Identifier: Apache-2.0
"""Causes on a host: what was seen, and the one finding with the command that mends it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from lb.doctor.checks import reception
from lb.doctor.firewall import packet_filter
from lb.doctor.firewall.packet_filter import Ruleset
from lb.doctor.model.facts import Arrival, Interface, ListeningSocket, Network, OwnBackend
from lb.doctor.model.findings import Finding, Severity

MUX, HOST, VIP = IPv4Address("10.0.1.11"), IPv4Address("10.0.3.21"), IPv4Address("203.0.113.20")
WEB = OwnBackend("web/a", ip_network("203.0.113.10"), "tcp", (80, 80), HOST, 8080, tracked=True)
FILES = OwnBackend("files/a", ip_network(VIP), "tcp", (80, 80), HOST)
DNS = OwnBackend("dns/a", ip_network("203.0.113.53"), "udp", (53, 53), HOST)
ETH0 = Interface("eth0", True, True, True, 1500, False)
NETWORK = Network(ETH0, {HOST: "eth0", VIP: "lo"}, frozenset({VIP}), "eth0", local_rule=True)
AGENT = "vipmux_agent"
RP_FILTER = "net.ipv4.conf.eth0.rp_filter"


def faults(found: list[Finding]) -> list[Finding]:
    assert all(finding.remedy and finding.cause for finding in found if finding.severity is Severity.FAULT)
    return [finding for finding in found if finding.severity is Severity.FAULT]


# --- arrivals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrivals", "setting", "cause", "command", "about"),
    [
        ([Arrival(MUX, HOST, True, "eth0")], (NETWORK, 1), None, "", ()),
        ([Arrival(MUX, HOST, False, "eth1")], (NETWORK, 1), "rp_filter", f"sysctl -w {RP_FILTER}=2", ("web/a",)),
        ([Arrival(MUX, HOST, False)], (NETWORK, 2), "no_route_back", "ip route add default via", ("web/a",)),
        ([Arrival(MUX, HOST, False)], (NETWORK, 1), "no_route_back", "ip route add default via", ("web/a",)),
        (
            [Arrival(MUX, VIP, False, "eth0")],
            (replace(NETWORK, addresses={HOST: "eth0"}), 0),
            "vip_missing",
            "ip addr add 203.0.113.20/32 dev lo label lo:vipmux",
            ("files/a",),
        ),
        (
            [Arrival(MUX, HOST, False, "eth0"), Arrival(MUX, VIP, False, "eth0")],
            (replace(NETWORK, local_rule=False), 2),
            "local_table",
            "ip rule add pref 0 lookup local",
            ("files/a", "web/a"),
        ),
        (
            [Arrival(MUX, VIP, False, "eth0")],
            (NETWORK, 2),
            "local_table",
            "ip route add local 203.0.113.20 dev lo",
            ("files/a",),
        ),
        (
            [Arrival(HOST, VIP, False, "lo")],
            (NETWORK, 0),
            "accept_local",
            "sysctl -w net.ipv4.conf.eth0.accept_local=1",
            ("files/a", "web/a"),
        ),
    ],
)
def test_what_the_kernel_does_not_take_in_has_a_cause(
    arrivals: list[Arrival], setting: tuple[Network, int], cause: str | None, command: str, about: tuple[str, ...]
) -> None:
    found = faults(list(reception.check_arrivals([WEB, FILES], arrivals, *setting)))
    assert [finding.cause for finding in found] == ([cause] if cause else [])
    for finding in found:
        assert (finding.remedy or "").startswith(f"`{command}")
        assert finding.about == tuple(f"backend {label}" for label in about)


def test_the_kernel_is_asked_for_each_place_once() -> None:
    assert reception.questions([WEB, WEB, FILES, DNS], [MUX]) == [
        (MUX, HOST),
        (MUX, VIP),
        (MUX, DNS.vip.network_address),
    ]


# --- the host's filter -----------------------------------------------------------------------------------------------


def rules(*lines: list[dict[str, Any]], policy: str = "accept", hook: str = "input", prio: int = 0) -> Ruleset:
    table = {"family": "inet", "table": "fw"}
    items: list[dict[str, Any]] = [
        {"chain": {**table, "name": "c", "type": "filter", "hook": hook, "prio": prio, "policy": policy}}
    ]
    items += [{"rule": {**table, "chain": "c", "handle": n, "expr": line}} for n, line in enumerate(lines, 1)]
    return packet_filter.read(items)


def port(number: int, verdict: str, name: str = "dport") -> list[dict[str, Any]]:
    left = {"payload": {"protocol": "tcp", "field": name}}
    return [{"match": {"op": "==", "left": left, "right": number}}, {verdict: None}]


def state(*names: str) -> dict[str, Any]:
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": list(names)}}


def daddr(address: IPv4Address, *rest: dict[str, Any]) -> list[dict[str, Any]]:
    left = {"payload": {"protocol": "ip", "field": "daddr"}}
    return [{"match": {"op": "==", "left": left, "right": str(address)}}, *rest]


DROP, ACCEPT = {"drop": None}, {"accept": None}


@pytest.mark.parametrize(
    ("ruleset", "cause", "command", "about"),
    [
        (rules(), None, "", ()),
        (rules(port(8080, "drop")), "host_firewall", "nft insert rule inet fw c tcp dport 8080 accept", ("web/a",)),
        (rules(port(80, "drop")), "host_firewall", "nft insert rule inet fw c tcp dport 80 accept", ("files/a",)),
        (
            rules(port(22, "accept"), policy="drop"),
            "host_firewall",
            "nft insert rule inet fw c tcp dport { 80, 8080 } accept",
            ("files/a", "web/a"),
        ),
        (rules([state("new"), ACCEPT], policy="drop"), "host_firewall_untracked", "nft insert rule", ("files/a",)),
        (rules([state("invalid", "untracked"), DROP]), "host_firewall_untracked", "nft insert rule", ("files/a",)),
        (rules(daddr(VIP, DROP)), "host_firewall", "nft insert rule inet fw c tcp dport 80 accept", ("files/a",)),
        # At prerouting a translated service is still for its VIP before dstnat, and for the host behind.
        (rules(daddr(HOST, DROP), hook="prerouting", prio=-300), None, "", ()),
        (rules(daddr(HOST, DROP), hook="prerouting", prio=-90), "host_firewall", "nft insert", ("web/a",)),
        (
            rules(port(8080, "drop", "sport"), hook="output"),
            "host_firewall",
            "nft insert rule inet fw c tcp sport 8080 accept",
            ("web/a",),
        ),
        (rules([state("established"), ACCEPT], policy="drop", hook="output"), "host_firewall_untracked", "", None),
    ],
)
def test_who_drops_what_is_for_backends_is_named_with_what_lets_it_in(
    ruleset: Ruleset, cause: str | None, command: str, about: tuple[str, ...] | None
) -> None:
    found = faults(list(reception.check_firewall([WEB, FILES], ruleset, interface="eth0", muxes=[MUX], mode="bpf")))
    assert [finding.cause for finding in found] == ([cause] if cause else [])
    for finding in found:
        assert (finding.remedy or "").startswith(f"`{command}")
        assert about is None or finding.about == tuple(f"backend {label}" for label in about)


def test_who_is_dropped_may_be_the_mux_alone() -> None:
    left = {"payload": {"protocol": "ip", "field": "saddr"}}
    ruleset = rules([{"match": {"op": "==", "left": left, "right": str(MUX)}}, DROP])
    (found,) = faults(list(reception.check_firewall([WEB], ruleset, interface="eth0", muxes=[MUX], mode="bpf")))
    assert f"from {MUX} (a MUX, for its probes)" in found.what


def test_a_firewall_that_lets_in_some_clients_is_no_fault() -> None:
    left = {"payload": {"protocol": "ip", "field": "saddr"}}
    inside = {"match": {"op": "==", "left": left, "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}}
    ruleset = rules([inside, ACCEPT], policy="drop")
    found = list(reception.check_firewall([WEB, FILES], ruleset, interface="eth0", muxes=[MUX], mode="bpf"))
    assert [finding.severity for finding in found] == [Severity.OK]


@pytest.mark.parametrize(("mode", "cause"), [("bpf", None), ("tun", "host_firewall_tunnel")])
def test_protocol_4_meets_the_hosts_rules_only_where_tc_does_not_take_it_before(mode: str, cause: str | None) -> None:
    left = {"payload": {"protocol": "ip", "field": "protocol"}}
    ruleset = rules([{"match": {"op": "==", "left": left, "right": "ipencap"}}, DROP])
    found = faults(list(reception.check_firewall([WEB], ruleset, interface="eth0", muxes=[MUX], mode=mode)))
    assert [finding.cause for finding in found] == ([cause] if cause else [])
    for finding in found:
        assert finding.remedy is not None
        assert finding.remedy.startswith("`nft insert rule inet fw c ip protocol 4 accept`")


def test_without_rights_it_is_said_that_nobody_looked() -> None:
    (found,) = reception.check_firewall([WEB], None, interface="eth0", muxes=[], mode="bpf")
    assert found.severity is Severity.UNKNOWN


# --- processes -------------------------------------------------------------------------------------------------------


ANY, ANY6, LOCAL = ip_address("0.0.0.0"), ip_address("::"), ip_address("127.0.0.1")


@pytest.mark.parametrize(
    ("own", "listeners", "cause", "words"),
    [
        (WEB, [("tcp", HOST, 8080)], None, ""),
        (WEB, [("tcp", ANY, 8080)], None, ""),
        (WEB, [("tcp", ANY6, 8080)], None, ""),  # of IPv4 as well
        (WEB, [("tcp", LOCAL, 8080)], "listens_on_loopback", "have it listen on 10.0.3.21 or 0.0.0.0"),
        (WEB, [("udp", ANY, 8080)], "nobody_listens", "ss -lntp"),
        (WEB, [("tcp", ANY, 80), ("tcp", ANY, 22)], "nobody_listens", "what listens here: 22, 80"),
        (WEB, [("tcp", VIP, 8080)], "listens_elsewhere", "listens on 203.0.113.20"),
        (FILES, [("tcp", ANY, 80)], None, ""),
        (FILES, [("tcp", VIP, 80)], None, ""),
        (FILES, [("tcp", HOST, 80)], "listens_elsewhere", "`port = 80` in the backend"),
        (FILES, [("tcp", ANY, 8080)], "nobody_listens", "203.0.113.20:80"),
        (DNS, [("udp", ANY, 53)], None, ""),
        (DNS, [], "nobody_listens", "ss -lnup"),
        (DNS, [("udp", LOCAL, 53)], "listens_on_loopback", "have it listen on 203.0.113.53 and restart it"),
        (replace(DNS, health="up", reason="not probed: a UDP service without a probe"), [], "nobody_listens", ""),
        (replace(WEB, health="up", reason="TCP connects"), [], None, ""),
        (replace(WEB, port=None, ports=(8000, 8100)), [], None, ""),  # one of these may do
    ],
)
def test_who_listens_where(
    own: OwnBackend, listeners: list[tuple[str, Any, int]], cause: str | None, words: str
) -> None:
    sockets = {ListeningSocket(*one) for one in listeners}
    found = faults(list(reception.check_listeners([own], sockets, Ruleset(), AGENT, "eth0")))
    assert [finding.cause for finding in found] == ([cause] if cause else [])
    for finding in found:
        assert words in f"{finding.what} {finding.remedy}"
        assert finding.about == (own.about,)


def test_a_udp_server_that_answers_from_the_hosts_address_is_told_to_be_translated() -> None:
    reason = "no answer within 1 s at the VIP 203.0.113.53, but well at 10.0.3.21:53: give the backend `port = 53`"
    ill = replace(DNS, health="down", reason=reason)
    (found,) = faults(
        list(reception.check_listeners([ill], {ListeningSocket("udp", ANY, 53)}, Ruleset(), AGENT, "eth0"))
    )
    assert found.cause == "udp_answer_source"
    assert "answers from 10.0.3.21" in found.what
    assert (found.remedy or "").startswith("`port = 53` in the backend")


def test_services_of_one_process_are_one_finding() -> None:
    many = [replace(WEB, label=f"web{n}/a") for n in range(12)]
    (found,) = faults(list(reception.check_listeners(many, set(), Ruleset(), AGENT, "eth0")))
    assert len(found.about) == 12


def test_what_other_rules_lead_to_a_container_needs_no_listener() -> None:
    items: list[dict[str, Any]] = [
        {"chain": {"family": "ip", "table": "nat", "name": "P", "type": "nat", "hook": "prerouting", "prio": -100}},
        {"rule": {"family": "ip", "table": "nat", "chain": "P", "handle": 1, "expr": port(80, "dnat")}},
    ]
    assert list(reception.check_listeners([FILES], set(), packet_filter.read(items), AGENT, "eth0")) == []


# --- rows ------------------------------------------------------------------------------------------------------------


def test_backends_of_this_host_are_read_from_the_agents_rows() -> None:
    services = [
        {"name": "web", "vip": "203.0.113.10", "protocol": "tcp", "port": "80", "translated_to": 8080, "track": False},
        {"name": "any", "vip": "203.0.113.0/24", "protocol": "udp", "port": "0", "translated_to": None, "track": True},
    ]
    backends = [
        {"service": "web", "name": "a", "address": "10.0.3.21", "port": "8080", "health": "up", "reason": "fine"},
        {"service": "any", "name": "b", "address": "10.0.3.21", "port": "0"},
        {"service": "left out", "name": "c", "address": "10.0.3.21"},
    ]
    one, two = reception.owns(services, backends)
    assert (one.place, one.tracked, one.label) == ((HOST, 8080), True, "web/a")
    assert (two.place, two.tracked, two.ports) == ((ip_address("203.0.113.0"), None), True, (0, 65535))


def test_what_the_agents_table_does_not_translate_any_more_is_found() -> None:
    def table(target: int) -> Ruleset:
        base = {"family": "inet", "table": AGENT}
        dnat = {"dnat": {"family": "ip", "addr": str(HOST), "port": target}}
        return packet_filter.read([
            {"chain": {**base, "name": "translate", "type": "nat", "hook": "prerouting", "prio": -100}},
            {"rule": {**base, "chain": "translate", "handle": 1, "expr": [*port(80, "x")[:1], dnat]}},
        ])  # fmt: skip

    assert reception.untranslated([WEB, FILES], table(8080), AGENT, "eth0") == []
    assert reception.untranslated([WEB, FILES], table(8081), AGENT, "eth0") == [WEB]
    assert reception.untranslated([WEB, FILES], Ruleset(), AGENT, "eth0") == [WEB]
