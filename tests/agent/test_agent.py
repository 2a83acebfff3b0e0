# SPDX-License-Identifier: Apache-2.0
"""The agent over a host in memory: what it does, what it remembers, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from agent.agent import Agent
from agent.decap import Decap, DecapRefused, Tunnel
from agent.fake import FakeHost
from agent.host import Host, Link
from agent.state import Change, Changes, Store
from lb.errors import ConfigError, FeatureError, IoError
from lb.model import DecapMode
from tests.agent.values import config, service

WEB = service("web", "203.0.113.10")
NAT = service("nat", "203.0.113.11", to=8080)
WIDE = service("wide", "203.0.113.128/25")


class FakeDecap:
    """A way of decapsulation that only says when it takes over."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.tunnel: Tunnel | None = None
        self.closed = False

    def begin(self, host: Host, interface: str, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.host.calls.append("decapsulate")

    def counters(self) -> Mapping[str, int]:
        return {}

    def turns(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def agent(host: FakeHost, tmp_path: Path) -> Agent:
    return agent_on(host, tmp_path)


def agent_on(host: FakeHost, state_dir: Path, refuses: tuple[DecapMode, ...] = ()) -> Agent:
    def prepare(_host: Host, _link: Link, _name: str, _tunnel: Tunnel, mode: DecapMode, now: Decap | None) -> Decap:
        if mode in refuses:
            raise DecapRefused(f"decapsulation by {mode.value} is refused: no")
        return now or FakeDecap(host)

    return Agent(lambda: host, Store(state_dir), prepare)


def test_apply_installs_then_decapsulates(agent: Agent, host: FakeHost) -> None:
    agent.apply(config(WEB, NAT, WIDE))
    assert host.calls == [
        "sysctl ipv4/conf/all/arp_ignore=1",
        "sysctl ipv4/conf/all/arp_announce=2",
        "rules",
        "sysctl netfilter/nf_conntrack_tcp_be_liberal=1",
        "add 203.0.113.10",
        "add 203.0.113.128/25",
        "decapsulate",
    ]


def test_cleanup_restores_the_host(agent: Agent, host: FakeHost, tmp_path: Path) -> None:
    before = dict(host.settings)
    agent.apply(config(WEB, NAT, WIDE))
    agent.close()
    again = agent_on(host, tmp_path)
    again.cleanup(config().agent)
    assert host.settings == before
    assert host.addresses == {IPv4Address("127.0.0.1"): False}
    assert host.routes == set()
    assert host.rules is None
    assert list(tmp_path.iterdir()) == []
    assert again.cleanup(config().agent) == []


def test_reload_removes_what_is_gone_and_keeps_the_way_of_decapsulation(agent: Agent, host: FakeHost) -> None:
    agent.apply(config(WEB, WIDE))
    host.calls.clear()
    agent.apply(config(WEB, NAT))
    liberal = "sysctl netfilter/nf_conntrack_tcp_be_liberal=1"
    assert host.calls == ["rules", liberal, "decapsulate", "remove 203.0.113.128/25"]


def test_services_of_other_hosts_are_not_installed(agent: Agent, host: FakeHost) -> None:
    agent.apply(config(service("elsewhere", "203.0.113.50", address="10.0.3.99")))
    assert host.calls == ["decapsulate"]


def test_agent_restarted_after_a_crash_keeps_the_first_originals(agent: Agent, host: FakeHost, tmp_path: Path) -> None:
    agent.apply(config(WEB))
    host.settings["ipv4/conf/all/arp_ignore"] = 0  # somebody put it back
    again = agent_on(host, tmp_path)
    again.apply(config(WEB))
    assert host.settings["ipv4/conf/all/arp_ignore"] == 1
    again.cleanup(config().agent)
    assert host.settings["ipv4/conf/all/arp_ignore"] == 0


def test_change_is_remembered_before_it_is_made(host: FakeHost, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(IoError, match="changes nothing that it cannot remember"):
        Agent(lambda: host, _Unwritable(tmp_path), lambda *_: FakeDecap(host)).apply(config(WEB))
    assert host.calls == []


class _Unwritable(Store):
    def _write(self, text: str) -> None:
        raise OSError(28, "No space left on device")


def test_second_way_is_taken_where_the_first_is_refused_and_both_are_told(host: FakeHost, tmp_path: Path) -> None:
    applied = agent_on(host, tmp_path, (DecapMode.BPF,)).apply(config(WEB, decap=DecapMode.AUTO))
    assert applied.mode is DecapMode.TUN
    assert applied.reason == "decapsulation by bpf is refused: no"


def test_forced_way_that_is_refused_is_an_error_and_changes_nothing(host: FakeHost, tmp_path: Path) -> None:
    agent = agent_on(host, tmp_path, (DecapMode.BPF, DecapMode.TUN))
    with pytest.raises(FeatureError, match='set decap = "auto"'):
        agent.apply(config(WEB, decap=DecapMode.BPF))
    with pytest.raises(FeatureError, match="no other way is left"):
        agent.apply(config(WEB, decap=DecapMode.AUTO))
    assert host.calls == []


def test_missing_interface_missing_address_and_missing_nft_change_nothing(agent: Agent, host: FakeHost) -> None:
    with pytest.raises(IoError, match="eth7 does not exist"):
        agent.apply(config(WEB, interface="eth7"))
    with pytest.raises(IoError, match="is not an address of interface eth0"):
        agent.apply(config(WEB, address=IPv4Address("10.0.3.9")))
    host.nft_installed = False
    with pytest.raises(FeatureError, match="install the package nftables"):
        agent.apply(config(WEB))
    assert host.calls == []


def test_reload_that_changes_what_connections_hang_on_is_refused_with_every_key(agent: Agent, host: FakeHost) -> None:
    agent.apply(config(WEB))
    host.calls.clear()
    with pytest.raises(ConfigError) as refused:
        agent.apply(config(WEB, address=IPv4Address("10.0.3.9"), interface="eth1"))
    assert [path for path, _ in refused.value.mistakes] == ["agent.address", "agent.interface"]
    assert host.calls == []


def test_tunnel_knows_every_own_vip_whatever_the_state_of_its_backend(agent: Agent) -> None:
    applied = agent.apply(config(WEB, NAT, WIDE))
    assert {own.vip for own in applied.services} == {
        ip_network("203.0.113.10"),
        ip_network("203.0.113.11"),
        ip_network("203.0.113.128/25"),
    }


def test_record_of_changes_survives_writing_and_reading(tmp_path: Path) -> None:
    changes = Changes().with_sysctl("a/b", 0, 1).with_interface("eth0", made_qdisc=True)
    store = Store(tmp_path)
    store.save(changes)
    assert store.load() == changes
    assert changes.with_sysctl("a/b", 1, 2).sysctls["a/b"] == Change(0, 2)
    store.save(changes.without_sysctl("a/b").without_interface("eth0"))
    assert not store.path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "sysctls": {"a": 1}}'])
def test_damaged_record_is_refused_with_advice(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.path.write_text(text)
    with pytest.raises(IoError, match="is damaged"):
        store.load()
