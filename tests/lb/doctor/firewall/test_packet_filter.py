# SPDX-License-Identifier: Apache-2.0
"""The packet filter of a host, walked: rules as nft and iptables-save write them, and who drops what."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from lb.doctor.firewall import iptables, packet_filter
from lb.doctor.firewall.packet_filter import FilteredPacket, Ruleset

MUX, HOST = ip_address("10.0.1.11"), ip_address("10.0.3.21")
WEB = FilteredPacket("tcp", None, HOST, None, 8080)
Rule = list[dict[str, Any]]


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


DPORT, SADDR = field("tcp", "dport"), field("ip", "saddr")
STATE, IIF = {"ct": {"key": "state"}}, {"meta": {"key": "iifname"}}
DROP, ACCEPT, RETURN = {"drop": None}, {"accept": None}, {"return": None}


def jump(chain: str, word: str = "jump") -> dict[str, Any]:
    return {word: {"target": chain}}


def ruleset(
    *rules: Rule, policy: str = "accept", other: tuple[Rule, ...] = (), sets: dict[str, list[Any]] | None = None
) -> Ruleset:
    """A table with an input chain, and another that it may jump to."""
    table = {"family": "inet", "table": "filter"}
    items: list[dict[str, Any]] = [
        {"chain": {**table, "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": policy}},
        {"chain": {**table, "name": "other"}},
        *({"set": {**table, "name": name, "elem": elements}} for name, elements in (sets or {}).items()),
        *({"rule": {**table, "chain": "input", "handle": n, "expr": rule}} for n, rule in enumerate(rules, 1)),
        *({"rule": {**table, "chain": "other", "handle": n, "expr": rule}} for n, rule in enumerate(other, 101)),
    ]
    return packet_filter.read(items)


@pytest.mark.parametrize(
    ("rules", "handle"),
    [
        ([[match(DPORT, 8080), DROP]], 1),
        ([[match(DPORT, 80), DROP]], None),
        ([[match(DPORT, {"set": [22, {"range": [8000, 8100]}]}), {"counter": {"packets": 1, "bytes": 2}}, DROP]], 1),
        ([[match(DPORT, 8080, "!="), DROP]], None),
        ([[match(DPORT, 1024, ">"), {"reject": {"type": "tcp reset"}}]], 1),
        ([[match(field("udp", "dport"), 8080), DROP]], None),
        ([[match(field("udp", "dport"), 53, "!="), DROP]], None),  # not of this protocol at all
        ([[match(field("th", "dport"), 8080), DROP]], 1),
        ([[match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), DROP]], 1),
        ([[match(IIF, "lo"), DROP]], None),
        ([[match(IIF, "eth*"), DROP]], 1),
        ([[match({"meta": {"key": "oifname"}}, "eth0"), DROP]], None),  # nothing leaves at input
        ([[match(STATE, ["established", "related"], "in"), DROP]], None),
        ([[match(STATE, "new", "in"), DROP]], 1),
        ([[match(SADDR, {"prefix": {"addr": "10.0.0.0", "len": 8}}), DROP]], None),  # perhaps; of most clients not
        ([[match(SADDR, {"prefix": {"addr": "0.0.0.0", "len": 0}}), DROP]], 1),
        ([[match(SADDR, {"prefix": {"addr": "10.0.0.0", "len": 8}}), ACCEPT], [DROP]], None),
        ([[{"limit": {"rate": 5, "per": "second"}}, ACCEPT], [DROP]], None),  # who is within the rate is let in
        ([[match({"meta": {"key": "mark"}}, 1), DROP]], None),
        ([[match(field("ip", "daddr"), "10.0.3.21"), DROP]], 1),
        ([[match(field("ip6", "daddr"), "fd00::1"), DROP]], None),
        ([[match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROP]], 1),
        ([[match({"&": [field("tcp", "flags"), ["syn", "ack"]]}, "syn"), DROP]], 1),
        ([[match({"&": [field("tcp", "flags"), ["syn", "ack"]]}, "ack"), DROP]], None),
        ([[{"vmap": {"key": DPORT, "data": {"set": [[22, ACCEPT], [8080, DROP]]}}}]], 1),
        ([[{"vmap": {"key": DPORT, "data": {"set": [[22, DROP], [8080, ACCEPT]]}}}], [DROP]], None),
        ([[{"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT], ["invalid", DROP]]}}}], [DROP]], 2),
        ([[{"log": {"prefix": "x"}}, DROP]], 1),
        ([[{"something": "new"}, DROP]], 1),
    ],
)
def test_rules_are_matched_as_the_kernel_does(rules: list[Rule], handle: int | None) -> None:
    found = packet_filter.dropped_at(ruleset(*rules), WEB, "input")
    assert (found.handle if found else None) == handle


def test_sets_of_one_field_and_of_several_are_looked_up() -> None:
    pair = match({"concat": [field("ip", "daddr"), DPORT]}, "@pairs")
    inside = [{"concat": [{"prefix": {"addr": "10.0.3.0", "len": 24}}, {"range": [8000, 8100]}]}]
    outside = [{"concat": ["10.0.3.21", 80]}]
    assert packet_filter.dropped_at(ruleset([pair, DROP], sets={"pairs": inside}), WEB, "input") is not None
    assert packet_filter.dropped_at(ruleset([pair, DROP], sets={"pairs": outside}), WEB, "input") is None
    ports = match(DPORT, "@ports")
    timed = [{"elem": {"val": 8080, "timeout": 60}}]
    assert packet_filter.dropped_at(ruleset([ports, DROP], sets={"ports": timed}), WEB, "input") is not None
    assert packet_filter.dropped_at(ruleset([ports, DROP], sets={"ports": []}), WEB, "input") is None


def test_a_policy_drops_what_no_rule_takes() -> None:
    accepts = [match(DPORT, 80), ACCEPT]
    found = packet_filter.dropped_at(ruleset(accepts, policy="drop"), WEB, "input")
    assert found is not None
    assert found.handle is None
    assert found.words == "the policy (drop) of chain input of table inet filter"
    assert packet_filter.dropped_at(ruleset([ACCEPT], policy="drop"), WEB, "input") is None
    assert packet_filter.dropped_at(ruleset(accepts, policy="drop").without({("inet", "filter")}), WEB, "input") is None


@pytest.mark.parametrize(
    ("rules", "other", "handle"),
    [
        ([[jump("other")], [DROP]], [[match(DPORT, 8080), ACCEPT]], None),
        ([[jump("other")], [DROP]], [[RETURN], [ACCEPT]], 2),
        ([[jump("other")]], [[match(DPORT, 8080), DROP]], 101),
        ([[jump("other", "goto")], [DROP]], [[match(DPORT, 22), DROP]], None),  # it does not come back
        ([[jump("other", "goto")], [DROP]], [[RETURN]], None),
        ([[RETURN], [DROP]], [], None),
        ([[jump("nowhere")], [DROP]], [], None),
        ([[jump("other")]], [[jump("other")]], None),  # nft refuses that; nobody waits for its end
    ],
)
def test_chains_that_are_called_come_back_as_they_do_in_the_kernel(
    rules: list[Rule], other: list[Rule], handle: int | None
) -> None:
    found = packet_filter.dropped_at(ruleset(*rules, other=tuple(other)), WEB, "input")
    assert (found.handle if found else None) == handle


def test_what_is_not_tracked_is_not_new() -> None:
    rules = ruleset([match(STATE, "new", "in"), match(DPORT, 8080), ACCEPT], policy="drop")
    assert packet_filter.dropped_at(rules, WEB, "input") is None
    untracked = FilteredPacket("tcp", None, HOST, None, 8080, state="untracked")
    assert packet_filter.dropped_at(rules, untracked, "input") is not None


def test_an_answer_leaves_by_our_interface_and_is_established() -> None:
    table = {"family": "ip", "table": "f"}
    items = [
        {"chain": {**table, "name": "o", "type": "filter", "hook": "output", "prio": 0, "policy": "drop"}},
        {"rule": {**table, "chain": "o", "handle": 1, "expr": [match({"meta": {"key": "oifname"}}, "lo"), ACCEPT]}},
        {"rule": {**table, "chain": "o", "handle": 2, "expr": [match(STATE, "established", "in"), ACCEPT]}},
    ]
    answer = FilteredPacket("tcp", HOST, None, 8080, None, state="established", leaving=True)
    untracked = FilteredPacket("tcp", HOST, None, 8080, None, state="untracked", leaving=True)
    assert packet_filter.dropped_at(packet_filter.read(items), answer, "output") is None
    assert packet_filter.dropped_at(packet_filter.read(items), untracked, "output") is not None


SAVED = """\
# Generated by iptables-save v1.8.9 (nf_tables)
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:LAB - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,9000:9100 -m comment --comment "the web, mostly" -j ACCEPT
-A INPUT -s 10.0.1.0/24 -p tcp -m tcp --dport 22 -j LAB
-A INPUT -p tcp -m tcp --dport 25 -m owner --uid-owner 7 --suppl-groups -j ACCEPT
-A INPUT -p tcp -m tcp ! --dport 26 --tcp-flags FIN,SYN,RST,ACK SYN -j LOG --log-prefix "no: "
-A INPUT -p ipencap -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-port-unreachable
-A LAB -p tcp -m tcp --syn -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 81 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (WEB, None),
        (
            FilteredPacket("tcp", None, HOST, None, 8080, state="untracked"),
            "-j REJECT --reject-with icmp-port-unreachable",
        ),
        (FilteredPacket("tcp", None, HOST, None, 80, state="untracked"), None),
        (FilteredPacket("tcp", None, HOST, None, 9050), None),
        (FilteredPacket("udp", None, HOST, None, 80), "-j REJECT --reject-with icmp-port-unreachable"),
        (FilteredPacket("tcp", MUX, HOST, None, 22), "-p tcp -m tcp --syn -j DROP"),
        (FilteredPacket("tcp", None, HOST, None, 25), None),  # who knows
        (FilteredPacket("ipencap", MUX, HOST), None),
        (FilteredPacket("tcp", None, HOST, None, 443, interface="lo"), None),
    ],
)
def test_iptables_is_read_from_what_it_saves(packet: FilteredPacket, text: str | None) -> None:
    found = packet_filter.dropped_at(iptables.merged(Ruleset(), SAVED), packet, "input")
    assert (found.why if found else None) == text
    assert found is None or found.iptables


def test_what_iptables_tells_goes_before_what_nft_tells_of_the_same_table() -> None:
    chain = {"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input", "policy": "accept"}
    rules = iptables.merged(packet_filter.read([{"chain": chain}]), SAVED)
    assert [found.policy for found in rules.hooked("input", ("ip",))] == ["drop"]
    ((place, _),) = packet_filter.translations(rules, FilteredPacket("tcp", None, HOST, None, 81))
    assert (place.table, place.chain) == ("nat", "PREROUTING")
    assert packet_filter.translations(rules, WEB) == []


def test_a_translation_tells_where_to() -> None:
    table = {"family": "inet", "table": "vipmux_agent"}
    dnat = {"dnat": {"family": "ip", "addr": "10.0.3.21", "port": 8080}}
    items = [
        {"chain": {**table, "name": "translate", "type": "nat", "hook": "prerouting", "prio": -100}},
        {"rule": {**table, "chain": "translate", "handle": 1, "expr": [match(DPORT, 80), dnat]}},
    ]
    ((_, target),) = packet_filter.translations(packet_filter.read(items), FilteredPacket("tcp", None, HOST, None, 80))
    assert target["port"] == 8080
