# SPDX-License-Identifier: Apache-2.0
"""Checks of a MUX and of a host: tables of what was seen, and what is said of it."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from lb.dataplane.xdp import ATTACH_REFUSALS, SOCKET_REFUSALS
from lb.doctor.checks import host, mux
from lb.doctor.model.facts import ArpClaim, DaemonSeen, Interface, Network, NftTable, OwnBackend
from lb.doctor.model.findings import Severity
from lb.model import IoMode
from lb.mux.io.ethernet import Facts
from lb.mux.io.mode import obtained
from lb.mux.io.xdp_support import GENERIC, NATIVE, described, refusal

FAULT, WARNING, UNKNOWN, OK = Severity
VIP = IPv4Address("203.0.113.20")
OWN = NftTable("inet", "vipmux_mux1", frozenset({str(VIP)}))
OLD = NftTable("inet", "vipmux_old", frozenset({"203.0.113.9"}))
RUNS = DaemonSeen("/s", True, status={"io": "packet"})
GONE = DaemonSeen("/s", False, error="is not there")
LIBERAL = "netfilter/nf_conntrack_tcp_be_liberal"
ETH0 = Interface("eth0", True, True, True, 1500, False)


@pytest.mark.parametrize(
    ("tables", "daemon", "wrong"),
    [
        ([OWN], RUNS, []),
        ([OWN, OLD], RUNS, [("stale_table", FAULT)]),
        ([], RUNS, [("isolation", FAULT)]),
        ([], replace(RUNS, status={"io": "tun"}), []),
        ([replace(OWN, addresses=frozenset())], RUNS, [("isolation", FAULT)]),
        ([OWN], GONE, [("stale_table", FAULT)]),  # nobody serves what it drops
        ([], GONE, []),
        ([OWN], replace(GONE, may_ask=False), []),  # nobody knows whether it runs
        (None, RUNS, [("isolation", UNKNOWN)]),
        ([OWN, NftTable("inet", "vipmux_mux2")], RUNS, []),  # another MUX runs here as well
        ([OWN, NftTable("inet", "vipmux_agent")], RUNS, []),
    ],
)
def test_tables_of_no_running_mux_are_stale_and_the_own_one_must_be_there(
    tables: list[NftTable] | None, daemon: DaemonSeen, wrong: list[tuple[str, Severity]]
) -> None:
    found = list(mux.check_isolation(tables, "vipmux_mux1", daemon, {"vipmux_mux2"}, {str(VIP)}))
    assert [(f.check, f.severity) for f in found if f.severity is not OK] == wrong


@pytest.mark.parametrize(
    ("elements", "vips", "open_"),
    [
        ({"203.0.113.40/31"}, {"203.0.113.40", "203.0.113.41"}, []),  # neighbours are one element
        ({"203.0.113.40/31"}, {"203.0.113.40", "203.0.113.42"}, ["203.0.113.42"]),
        ({"203.0.113.40-203.0.113.42"}, {"203.0.113.40", "203.0.113.41", "203.0.113.42"}, []),
        ({"203.0.113.0/25", "203.0.113.128/26", "203.0.113.192/26"}, {"203.0.113.0/24"}, []),
        ({"203.0.113.0/25"}, {"203.0.113.0/24", "203.0.113.7"}, ["203.0.113.0/24"]),
        ({"2001:db8::/127"}, {"2001:db8::", "2001:db8::1", "2001:db8::2"}, ["2001:db8::2"]),
        (set(), {"203.0.113.40"}, ["203.0.113.40"]),
    ],
)
def test_a_vip_is_held_if_its_addresses_are_however_nft_writes_them(
    elements: set[str], vips: set[str], open_: list[str]
) -> None:
    assert mux.uncovered(vips, elements) == open_
    table = replace(OWN, addresses=frozenset(elements))
    found = [f for f in mux.check_isolation([table], "vipmux_mux1", RUNS, (), vips) if f.check == "isolation"]
    assert [f.severity for f in found] == [FAULT if open_ else OK]


def test_the_remedy_for_a_stale_table_is_its_removal() -> None:
    (found,) = mux.told_stale(mux.stale([OLD], []))
    assert found.remedy == "`nft delete table inet vipmux_old`"
    assert "203.0.113.9" in found.what


def test_a_vip_that_is_an_address_of_the_mux_is_a_fault() -> None:
    (found,) = mux.check_vips_not_local({str(VIP)}, {ip_address(VIP): "lo"})
    assert found.severity is FAULT
    assert found.remedy == f"`ip addr del {VIP} dev lo`"


def test_who_answers_arp_for_a_vip_is_named() -> None:
    (found,) = mux.check_claims([ArpClaim(VIP, "02:00:00:00:00:01", "10.0.3.21")], "eth0", 1)
    assert found.severity is FAULT
    assert "10.0.3.21 (MAC 02:00:00:00:00:01) answers ARP for the VIP 203.0.113.20 on eth0" in found.what
    assert "net.ipv4.conf.all.arp_ignore=1" in (found.remedy or "")
    assert [f.severity for f in mux.check_claims([], "eth0", 1)] == [OK]
    assert [f.severity for f in mux.check_claims("needs root", "eth0", 1)] == [UNKNOWN]


NIC = Facts("virtio_net", 1500, 2)


@pytest.mark.parametrize(
    ("why", "command"),
    [
        (refusal(replace(NIC, mtu=9000), 1, IoMode.XDP), "`ip link set dev eth1 mtu 3822`"),
        (refusal(NIC, 3, IoMode.XDP), "`ethtool -L eth1 combined N`"),
        (refusal(replace(NIC, queues=65), 1, IoMode.XDP), "`ethtool -L eth1 combined 64`"),
        (refusal(replace(NIC, vlans=("eth1.5",), strips_vlans=True), 1, IoMode.XDP), "`ethtool -K eth1 rxvlan off`"),
        (f"native, copying: {ATTACH_REFUSALS[errno.EBUSY]}", "`ip link set dev eth1 xdp off`"),
        (f"native, copying: {ATTACH_REFUSALS[errno.ERANGE]}", "`ip link set dev eth1 mtu 1500`"),
        (f"AF_XDP on eth1: {SOCKET_REFUSALS[errno.ENOBUFS]}", "LimitMEMLOCK=infinity"),
        (f"AF_XDP on eth1: {SOCKET_REFUSALS[errno.EBUSY]}", "`ss --xdp -p`"),
        (f"native, copying: {ATTACH_REFUSALS[errno.EOPNOTSUPP]}", 'write io = "packet"'),
    ],
)
def test_a_mode_that_fell_back_says_why_and_what_ends_it(why: str | None, command: str) -> None:
    assert why is not None
    reason = obtained(IoMode.XDP, IoMode.PACKET, {IoMode.XDP: why}).reason
    row = {"io": "packet", "mode": "AF_PACKET", "reason": reason}
    (found,) = mux.check_io(row, IoMode.XDP, "eth1", "/etc/mux.toml")
    assert (found.check, found.severity) == ("io", WARNING)
    assert why in found.what
    assert 'io = "xdp" in /etc/mux.toml' in found.what
    assert command in (found.remedy or "")


@pytest.mark.parametrize(
    ("asked", "mode", "severity"),
    [
        (IoMode.XDP, described(NATIVE[1], 2, busy_asked=False, busy=[False]), OK),
        (IoMode.AUTO, described(NATIVE[0], 1, busy_asked=True, busy=[True]), OK),
        (IoMode.XDP, described(GENERIC, 1, busy_asked=False, busy=[False]), WARNING),
        (IoMode.XDP, described(NATIVE[1], 1, busy_asked=True, busy=[False]), WARNING),
    ],
)
def test_what_was_obtained_of_xdp_is_judged(asked: IoMode, mode: str, severity: Severity) -> None:
    row = {"io": "xdp", "mode": f"AF_XDP: {mode}", "reason": "asked for by the configuration"}
    assert [f.severity for f in mux.check_io(row, asked, "eth0", "mux.toml")] == [severity]


def test_a_mux_that_does_not_answer_has_no_mode_to_judge() -> None:
    assert list(mux.check_io({}, IoMode.XDP, "eth0", "mux.toml")) == []


@pytest.mark.parametrize(("flows", "severity"), [(10, OK), (95, WARNING)])
def test_a_flow_table_that_is_nearly_full_is_a_warning(flows: int, severity: Severity) -> None:
    assert [f.severity for f in mux.check_flows({"flows": flows, "flow_capacity": 100})] == [severity]


def test_a_mux_that_does_not_keep_up_is_a_fault_in_its_own_words() -> None:
    words = "loses 9 of 10 packets/s, its worker is saturated; add a MUX"
    (found,) = mux.check_saturation({"saturated": words}, "this MUX", "lb top --local")
    assert (found.check, found.severity, found.what) == ("saturated", FAULT, f"this MUX {words}")
    assert "`lb top --local` shows for whom they come" in (found.remedy or "")
    assert [f.severity for f in mux.check_saturation({"saturated": None}, "this MUX", "lb top")] == [OK]
    assert list(mux.check_saturation({}, "this MUX", "lb top")) == [], "an older lb-mux does not say"


def network(all_: int, own: int, default: str | None = "eth0", others: frozenset[str] = frozenset()) -> Network:
    settings = {"ipv4/conf/all/rp_filter": all_, "ipv4/conf/eth0/rp_filter": own}
    return Network(ETH0, default_by=default, other_routes=others, sysctls=settings)


ETH1 = frozenset({"eth1"})


@pytest.mark.parametrize(
    ("network", "mode", "severity"),
    [
        (network(0, 0), "bpf", OK),
        (network(0, 1), "bpf", OK),
        (network(1, 0, "eth1", ETH1), "bpf", FAULT),
        (network(0, 1, "eth1", ETH1), "bpf", FAULT),
        (network(0, 1, None), "bpf", FAULT),
        (network(1, 1, "eth0", ETH1), "bpf", WARNING),
        (network(2, 1, "eth1", ETH1), "bpf", OK),  # the larger one decides: loose
        (network(2, 2, None), "bpf", WARNING),
        (network(0, 1, "eth1", ETH1), "tun", OK),  # by a device of its own
        (network(0, 1, "eth1", ETH1), None, FAULT),  # the agent does not run; it would be so
        (Network(ETH0), "bpf", UNKNOWN),
    ],
)
def test_a_strict_reverse_path_filter_hurts_where_clients_routes_lead_elsewhere(
    network: Network, mode: str | None, severity: Severity
) -> None:
    (found,) = host.check_rp_filter(network, mode)
    assert found.severity is severity
    if severity is FAULT:
        assert "`sysctl -w net.ipv4.conf.eth0.rp_filter=2`" in (found.remedy or "")


@pytest.mark.parametrize(
    ("ignore", "announce", "remedy"),
    [
        (1, 2, None),
        (0, 2, "`sysctl -w net.ipv4.conf.all.arp_ignore=1`"),
        (1, 0, "`sysctl -w net.ipv4.conf.all.arp_announce=2`"),
        (0, 0, "`sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2`"),
    ],
)
def test_a_host_with_vips_must_not_speak_arp_for_them(ignore: int, announce: int, remedy: str | None) -> None:
    settings = {"ipv4/conf/all/arp_ignore": ignore, "ipv4/conf/eth0/arp_announce": announce}
    (found,) = host.check_arp(Network(ETH0, labels=frozenset({VIP}), sysctls=settings))
    assert (found.severity is OK) is (remedy is None)
    assert found.remedy is None or found.remedy.startswith(remedy or "")
    (found,) = host.check_arp(Network(ETH0, sysctls=settings))
    assert found.severity is OK


@pytest.mark.parametrize(
    ("mode", "filter_", "severity"),
    [("bpf", True, OK), ("bpf", False, FAULT), ("bpf", None, UNKNOWN), ("tun", None, WARNING), ("ipip", None, OK)],
)
def test_decapsulation_must_be_where_the_agent_put_it(mode: str, filter_: bool | None, severity: Severity) -> None:
    daemon = replace(RUNS, status={"mode": mode, "reason": "BPF is refused"})
    assert [f.severity for f in host.check_decapsulation(Network(ETH0, filter=filter_), daemon)] == [severity]


@pytest.mark.parametrize(
    ("ahead", "passes", "severities"),
    [((), None, []), ((1,), True, [OK]), ((1,), None, [WARNING]), ((1, 7), False, [FAULT])],
)
def test_filters_before_the_agents_are_judged_by_what_comes_to_it(
    ahead: tuple[int, ...], passes: bool | None, severities: list[Severity]
) -> None:
    told = {"mode": "bpf", "filters_ahead": ["the bpf filter of priority 1"], "filters_ahead_pass": passes}
    network = Network(ETH0, filter=True, ahead=ahead)
    found = list(host.check_filters_ahead(network, replace(RUNS, status=told)))
    assert [f.severity for f in found] == severities
    if severities and severities != [OK]:
        assert "the bpf filter of priority 1" in found[0].what
        assert "tc filter del dev eth0 ingress pref 1" in (found[0].remedy or "")


def test_tunnels_from_strangers_and_silent_processes_are_told() -> None:
    rows = (
        {"service": "web", "name": "a", "address": "10.0.3.21", "port": "80", "health": "down", "reason": "refused"},
        {"service": "web", "name": "b", "address": "10.0.3.21", "port": "81", "health": "up", "reason": "ok"},
    )
    daemon = replace(RUNS, status={"drops": {"untrusted_source": 3}, "muxes": ["10.0.1.11"]}, backends=rows)
    assert [f.severity for f in host.check_strangers(daemon)] == [WARNING]
    up, down = host.check_backends(daemon)
    assert (down.severity, up.severity) == (FAULT, OK)
    assert "`lb drain backend web/a`" in (down.remedy or "")


@pytest.mark.parametrize(
    ("raised", "now", "severity"),
    [
        ({LIBERAL: 1}, {LIBERAL: 1}, OK),
        ({LIBERAL: 1}, {LIBERAL: 0}, WARNING),
        ({LIBERAL: 1}, {}, OK),  # the module is gone, and the setting with it
        ({"ipv4/conf/all/arp_ignore": 1}, {"ipv4/conf/all/arp_ignore": 0}, OK),  # has a check of its own
        ({}, {}, OK),
        (None, {}, UNKNOWN),
    ],
)
def test_settings_that_the_agent_raised_must_stay(
    raised: dict[str, int] | None, now: dict[str, int], severity: Severity
) -> None:
    (found,) = host.check_settings(raised, now)
    assert found.severity is severity
    if severity is WARNING:
        assert (found.remedy or "").startswith("`sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1`")


@pytest.mark.parametrize(
    ("tables", "severity"),
    [([NftTable("inet", "vipmux_agent")], OK), ([], FAULT), (None, UNKNOWN)],
)
def test_the_agents_own_table_must_be_there(tables: list[NftTable] | None, severity: Severity) -> None:
    daemon = replace(RUNS, status={"services": 1})
    assert [f.severity for f in host.check_translation(tables, daemon, "vipmux_agent")] == [severity]


def test_twelve_services_of_a_dead_process_are_one_finding() -> None:
    rows = [
        {"service": f"s{n}", "name": "a", "address": "10.0.3.21", "port": "80", "health": "down", "reason": "refused"}
        for n in range(12)
    ]
    (found,) = host.check_backends(replace(RUNS, backends=tuple(rows)))
    assert found.what == "s0/a, s1/a, s2/a, s3/a and 8 more at 10.0.3.21:80 do not answer their probes: refused"
    assert len(found.about) == 12


def test_without_its_table_a_mux_that_forwards_sends_packets_round() -> None:
    found = [
        f for f in mux.check_isolation([], "vipmux_mux1", RUNS, (), {str(VIP)}, forwards=True) if f.check == "isolation"
    ]
    assert [f.about for f in found] == [(f"vip {VIP}",)]
    assert "net.ipv4.ip_forward is 1" in found[0].what


def test_what_an_agent_that_is_down_left_undone_is_found_by_who_needs_it() -> None:
    web = OwnBackend("web/a", ip_network("203.0.113.10"), "tcp", (80, 80), ip_address("10.0.3.21"), 8080)
    files = OwnBackend("files/a", ip_network(VIP), "tcp", (80, 80), ip_address("10.0.3.21"))
    agent = NftTable("inet", "vipmux_agent")
    whole = Network(ETH0, {VIP: "lo"}, frozenset({VIP}), "eth0", filter=True)
    assert host.lost(whole, [agent], [web, files], "vipmux_agent") == {}
    assert host.lost(whole, [], [web, files], "vipmux_agent") == {"the nftables table inet vipmux_agent": [web]}
    assert host.lost(whole, [agent], [web, files], "vipmux_agent", [web]) == {
        "the translation of web/a in the nftables table inet vipmux_agent": [web]
    }
    assert host.lost(replace(whole, filter=False), [agent], [web], "vipmux_agent") == {
        "the BPF filter at the ingress of eth0": [web]
    }
    assert host.lost(replace(whole, addresses={}), [agent], [web, files], "vipmux_agent") == {
        f"the VIP {VIP} on lo": [files]
    }
    assert host.lost(replace(whole, filter=False), [], [], "vipmux_agent") == {}  # it serves nothing
    six = OwnBackend("six/a", ip_network("2001:db8::/32"), "tcp", (80, 80), ip_address("10.0.3.21"))
    assert host.lost(whole, [agent], [six], "vipmux_agent") == {}  # a route has it, and no address


def test_a_table_that_was_changed_is_told_with_what_makes_it_anew() -> None:
    web = OwnBackend("web/a", ip_network("203.0.113.10"), "tcp", (80, 80), ip_address("10.0.3.21"), 8080)
    daemon = replace(RUNS, status={"services": 1})
    (found,) = host.check_translation([NftTable("inet", "vipmux_agent")], daemon, "vipmux_agent", [web])
    assert (found.cause, found.about) == ("table_changed", ("backend web/a",))
    assert (found.remedy or "").startswith("`nft delete table inet vipmux_agent`")
