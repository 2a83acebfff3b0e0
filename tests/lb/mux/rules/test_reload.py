# SPDX-License-Identifier: Apache-2.0
"""What a running MUX accepts of a new file."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from lb.errors import ConfigError
from lb.model import BgpFamily, BgpPeer, BgpSettings, Idle, MuxSettings, PortRange, Protocol, Service
from lb.mux.rules.reload import changed_keys, changed_passwords, check_bgp, check_settings, check_vips

SETTINGS = MuxSettings(name="mux1", address=IPv4Address("10.0.1.11"), seed=bytes(16), interface="eth0")
WEB = Service("web", ip_network("203.0.113.0/25"), Protocol.TCP, PortRange(80, 80))


def test_an_unchanged_mux_table_is_accepted() -> None:
    check_settings(SETTINGS, replace(SETTINGS))


def test_every_changed_key_is_named() -> None:
    new = replace(SETTINGS, workers=2, seed=bytes(15) + b"\1", idle=Idle(udp=30))
    assert changed_keys(SETTINGS, new) == ["mux.seed", "mux.workers", "mux.idle.udp"]
    with pytest.raises(ConfigError) as caught:
        check_settings(SETTINGS, new)
    assert len(caught.value.mistakes) == 2
    assert "mux.seed: cannot change while the MUX runs: restart lb-mux, or put it back" in caught.value.lines


def test_the_number_of_workers_may_change() -> None:
    check_settings(SETTINGS, replace(SETTINGS, workers=2))


def peer(number: int, password: str | None = "old") -> BgpPeer:  # noqa: S107  not a secret of anybody
    return BgpPeer(f"router{number}", IPv4Address(f"10.0.1.{number}"), 65000, (BgpFamily.IPV4,), password)


def test_of_bgp_passwords_may_change_and_nothing_else() -> None:
    before = BgpSettings(65001, (peer(1), peer(2), peer(3, None)))
    after = replace(before, peers=(peer(1, "new"), peer(2), peer(3, "first")))
    check_bgp(before, after)
    assert changed_passwords(before, after) == ["router1", "router3"]
    assert changed_passwords(before, before) == []
    for other in (None, replace(before, hold=30), replace(before, peers=before.peers[:2])):
        with pytest.raises(ConfigError, match=r"bgp: nothing of it but passwords .* systemctl restart lb-mux"):
            check_bgp(before, other)
    assert changed_passwords(None, None) == []


def test_a_vip_that_is_an_address_of_the_mux_is_refused() -> None:
    local = {ip_address("203.0.113.10"): "lo", ip_address("10.0.1.11"): "eth0", ip_address("::1"): "lo"}
    with pytest.raises(ConfigError, match=r"service\[1\].vip: 203.0.113.0/25 covers 203.0.113.10, .* on lo"):
        check_vips([replace(WEB, vip=ip_network("198.51.100.1/32")), WEB], local)


def test_vips_elsewhere_are_accepted() -> None:
    check_vips([WEB], {ip_address("203.0.113.200"): "lo"})


def test_services_that_passed_with_the_same_addresses_are_not_looked_at_again() -> None:
    local = {ip_address("198.51.100.1"): "eth0"}
    wrong = replace(WEB, vip=ip_network("198.51.100.1/32"))
    check_vips([wrong, WEB], local, [WEB])
    with pytest.raises(ConfigError) as caught:
        check_vips([WEB, wrong], local, [wrong])
    assert caught.value.lines[0].startswith("service[1].vip: ")
