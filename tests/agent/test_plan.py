# SPDX-License-Identifier: Apache-2.0
"""From desired and found to actions: what is done, in which order, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from itertools import pairwise

import pytest

from agent.host.change_log import HostChanges, SettingChange
from agent.plan import (
    NOTHING,
    AddQdisc,
    AddRoute,
    AddVip,
    Decapsulate,
    DesiredHost,
    EvictFilter,
    FilterState,
    Found,
    FoundFilter,
    RemoveFilter,
    RemoveIpipDevice,
    RemoveRoute,
    RemoveRules,
    RemoveVip,
    ReplaceRules,
    RestoreSysctl,
    SetSysctl,
    plan,
)
from agent.rules.vips import OwnedVips, owned_vips, served_vips
from lb.model import DecapMode
from tests.agent.values import HOST6, config, own_services, service

VIP, OLD = IPv4Address("203.0.113.10"), IPv4Address("203.0.113.99")
PREFIX, OLD_PREFIX = ip_network("203.0.113.128/25"), ip_network("198.51.100.0/25")
IGNORE, ANNOUNCE = "ipv4/conf/all/arp_ignore", "ipv4/conf/all/arp_announce"
LIBERAL = "netfilter/nf_conntrack_tcp_be_liberal"
RP, RP_ALL = "ipv4/conf/eth0/rp_filter", "ipv4/conf/all/rp_filter"

BARE = Found(sysctls={IGNORE: 0, ANNOUNCE: 0, RP_ALL: 0, RP: 0})
WANTED = DesiredHost("eth0", DecapMode.BPF, OwnedVips(frozenset({VIP}), frozenset({PREFIX})), "table")
#: What a host looks like once WANTED is in force.
DONE = Found(
    addresses=frozenset({VIP}),
    routes=frozenset({PREFIX}),
    table=True,
    sysctls={IGNORE: 1, ANNOUNCE: 2, RP_ALL: 0, RP: 0},
    filters={"eth0": FoundFilter(FilterState.CURRENT, qdisc=True)},
    changes=HostChanges(
        sysctls={IGNORE: SettingChange(0, 1), ANNOUNCE: SettingChange(0, 2)},
        interfaces=frozenset({"eth0"}),
        qdiscs=frozenset({"eth0"}),
    ),
)


def test_bare_host_gets_everything_and_decapsulates_last() -> None:
    assert plan(WANTED, BARE) == [
        SetSysctl(IGNORE, 1),
        SetSysctl(ANNOUNCE, 2),
        ReplaceRules("table"),
        AddVip(VIP),
        AddRoute(PREFIX),
        AddQdisc("eth0"),
        Decapsulate(DecapMode.BPF, "eth0"),
    ]


def test_host_that_is_as_desired_only_gets_its_rules_again() -> None:
    assert plan(WANTED, DONE) == [ReplaceRules("table")]


def test_cleanup_stops_packets_first_and_gives_settings_back_last() -> None:
    assert plan(NOTHING, DONE) == [
        RemoveFilter("eth0", filter=True, qdisc=True),
        RemoveVip(VIP),
        RemoveRoute(PREFIX),
        RemoveRules(),
        RestoreSysctl(ANNOUNCE, 0, restore=True),
        RestoreSysctl(IGNORE, 0, restore=True),
    ]


def test_cleanup_of_a_bare_host_does_nothing() -> None:
    assert plan(NOTHING, BARE) == []


def test_new_comes_before_old_goes() -> None:
    stale = replace(
        DONE,
        addresses=frozenset({OLD}),
        routes=frozenset({OLD_PREFIX}),
        filters={"eth0": FoundFilter(FilterState.STALE, qdisc=True)},
    )
    kinds = [type(action) for action in plan(WANTED, stale)]
    assert kinds == [ReplaceRules, AddVip, AddRoute, Decapsulate, RemoveVip, RemoveRoute]


def test_vip_that_the_operator_put_on_lo_is_neither_added_nor_removed() -> None:
    found = replace(BARE, taken=frozenset({VIP}))
    assert AddVip(VIP) not in plan(WANTED, found)
    assert RemoveVip(VIP) not in plan(NOTHING, found)


def test_foreign_filter_in_our_place_is_evicted_before_ours_comes() -> None:
    found = replace(DONE, filters={"eth0": FoundFilter(FilterState.FOREIGN, qdisc=True)})
    assert plan(WANTED, found)[1:] == [EvictFilter("eth0"), Decapsulate(DecapMode.BPF, "eth0")]


def test_cleanup_leaves_a_foreign_filter_and_its_qdisc() -> None:
    found = replace(DONE, filters={"eth0": FoundFilter(FilterState.FOREIGN, qdisc=True)})
    assert plan(NOTHING, found)[0] == RemoveFilter("eth0", filter=False, qdisc=False)


@pytest.mark.parametrize(
    ("made", "others", "removed"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_qdisc_goes_only_if_we_made_it_and_nobody_else_uses_it(made: bool, others: bool, removed: bool) -> None:
    changes = replace(DONE.changes, qdiscs=frozenset({"eth0"}) if made else frozenset())
    found = replace(DONE, changes=changes, filters={"eth0": FoundFilter(FilterState.STALE, qdisc=True, others=others)})
    assert plan(NOTHING, found)[0] == RemoveFilter("eth0", filter=True, qdisc=removed)


def test_filter_of_an_interface_that_is_no_longer_configured_goes_after_the_new_one_came() -> None:
    found = replace(
        DONE,
        filters={"eth0": FoundFilter(), "eth1": FoundFilter(FilterState.STALE, qdisc=True)},
        changes=replace(DONE.changes, interfaces=frozenset({"eth1"}), qdiscs=frozenset({"eth1"})),
    )
    actions = plan(WANTED, found)
    assert actions.index(Decapsulate(DecapMode.BPF, "eth0")) < actions.index(RemoveFilter("eth1", True, True))


def test_other_ways_of_decapsulation_take_over_from_bpf() -> None:
    actions = plan(replace(WANTED, mode=DecapMode.TUN), DONE)
    assert actions[1:] == [Decapsulate(DecapMode.TUN, "eth0"), RemoveFilter("eth0", filter=True, qdisc=True)]


def test_ipip_device_goes_once_bpf_decapsulates() -> None:
    found = replace(BARE, ipip_device=True)
    actions = plan(WANTED, found)
    assert actions[-1] == RemoveIpipDevice()
    assert RemoveIpipDevice() not in plan(replace(WANTED, mode=DecapMode.IPIP), found)


def test_settings_that_are_high_enough_are_not_touched() -> None:
    found = replace(BARE, sysctls={IGNORE: 2, ANNOUNCE: 2, RP_ALL: 0, RP: 0})
    assert not [action for action in plan(WANTED, found) if isinstance(action, SetSysctl)]


def test_translated_services_need_no_arp_settings() -> None:
    desired = replace(WANTED, vips=OwnedVips(frozenset(), frozenset()))
    assert not [action for action in plan(desired, BARE) if isinstance(action, SetSysctl)]


def test_conntrack_judges_no_sequence_numbers_where_ports_are_translated() -> None:
    desired = replace(WANTED, translates=True)
    without_conntrack = plan(desired, BARE)
    assert without_conntrack.index(SetSysctl(LIBERAL, 1)) > without_conntrack.index(ReplaceRules("table"))
    assert SetSysctl(LIBERAL, 1) in plan(desired, replace(BARE, sysctls={**BARE.sysctls, LIBERAL: 0}))
    assert SetSysctl(LIBERAL, 1) not in plan(desired, replace(BARE, sysctls={**BARE.sysctls, LIBERAL: 1}))


def test_setting_no_longer_needed_is_given_back() -> None:
    desired = replace(WANTED, vips=OwnedVips(frozenset(), frozenset()))
    assert RestoreSysctl(IGNORE, 0, restore=True) in plan(desired, DONE)


def test_setting_that_somebody_changed_after_us_is_left() -> None:
    found = replace(DONE, sysctls={**DONE.sysctls, IGNORE: 2})
    assert RestoreSysctl(IGNORE, 0, restore=False) in plan(NOTHING, found)


@pytest.mark.parametrize(
    ("everywhere", "here", "others", "loosened"),
    [
        (1, 0, {"eth1"}, True),
        (0, 1, {"eth1"}, True),
        (1, 1, set(), False),
        (0, 0, {"eth1"}, False),
        (2, 1, {"eth1"}, False),
        (1, 2, {"eth1"}, False),
    ],
)
def test_strict_reverse_path_filter_is_loosened_only_where_it_would_drop(
    everywhere: int, here: int, others: set[str], loosened: bool
) -> None:
    found = replace(
        BARE, sysctls={RP_ALL: everywhere, RP: here, IGNORE: 1, ANNOUNCE: 2}, other_routes=frozenset(others)
    )
    assert (SetSysctl(RP, 2) in plan(WANTED, found)) is loosened


def test_loosened_reverse_path_filter_stays_loose_at_the_next_start() -> None:
    found = replace(
        DONE,
        sysctls={**DONE.sysctls, RP_ALL: 1, RP: 2},
        other_routes=frozenset({"eth1"}),
        changes=replace(DONE.changes, sysctls={**DONE.changes.sysctls, RP: SettingChange(0, 2)}),
    )
    assert plan(WANTED, found) == [ReplaceRules("table")]


def test_single_addresses_are_owned_as_addresses_and_everything_else_as_routes() -> None:
    own = own_services(
        config(
            service("one", "203.0.113.10"),
            service("translated", "203.0.113.11", to=8080),
            service("prefix", "203.0.113.128/25"),
            service("six", "2001:db8::1"),
            service("elsewhere", "203.0.113.12", address="10.0.3.22"),
            address6=HOST6,
        )
    )
    vips = owned_vips(own)
    assert vips.addresses == {VIP}
    assert vips.routes == {PREFIX, ip_network("2001:db8::1/128")}
    assert served_vips(own) == {*vips.routes, ip_network("203.0.113.10/32"), ip_network("203.0.113.11/32")}


def test_vip_with_a_translated_and_an_untranslated_service_is_owned() -> None:
    own = own_services(config(service("http", "203.0.113.10", 80, to=8080), service("tls", "203.0.113.10", 443)))
    assert owned_vips(own).addresses == {VIP}


def test_order_of_removals_ends_with_settings() -> None:
    ranks = [type(action).__name__ for action in plan(NOTHING, DONE)]
    assert all(not (a == "RestoreSysctl" and b != "RestoreSysctl") for a, b in pairwise(ranks))
