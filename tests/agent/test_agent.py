# SPDX-License-Identifier: Apache-2.0
"""The agent over a host in memory: what it does, what it remembers, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.agent import Agent
from agent.decap import Decap, DecapRefused, Tunnel
from agent.host.change_log import ChangeLog, HostChanges, SettingChange
from agent.host.conntrack import ConntrackEntry
from agent.host.fake import FakeHost
from agent.host.interface import Host, HostLink
from agent.kernel_parts import amiss
from agent.rules.stray_packets import Fence
from lb.daemon.kernel.repairs import Difference
from lb.errors import ConfigError, FeatureError, IoError
from lb.model import DecapMode, Protocol, Service
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
        self.host.devices.add("vipmux-tun")

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
    def prepare(_host: Host, _link: HostLink, _name: str, _tunnel: Tunnel, mode: DecapMode, now: Decap | None) -> Decap:
        if mode in refuses:
            raise DecapRefused(f"decapsulation by {mode.value} is refused: no")
        return now or FakeDecap(host)

    return Agent(lambda: host, ChangeLog(state_dir), prepare)


def test_apply_installs_then_decapsulates(agent: Agent, host: FakeHost) -> None:
    agent.apply(config(WEB, NAT, WIDE))
    assert host.calls == [
        "sysctl ipv4/conf/all/arp_ignore=1",
        "sysctl ipv4/conf/all/arp_announce=2",
        "rules",
        "sysctl netfilter/nf_conntrack_tcp_be_liberal=1",
        "add 203.0.113.10",
        "add 203.0.113.128/25",
        "blackhole 203.0.113.10/32",
        "blackhole 203.0.113.11/32",
        "blackhole 203.0.113.128/25",
        "rule 4 vipmux-tun",
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
    assert host.table is None
    assert host.fence() == Fence()
    assert list(tmp_path.iterdir()) == []
    assert again.cleanup(config().agent) == []


def test_reload_removes_what_is_gone_and_keeps_the_way_of_decapsulation(agent: Agent, host: FakeHost) -> None:
    agent.apply(config(WEB, WIDE))
    host.calls.clear()
    agent.apply(config(WEB, NAT))
    liberal = "sysctl netfilter/nf_conntrack_tcp_be_liberal=1"
    assert host.calls == [
        "rules",
        liberal,
        "blackhole 203.0.113.11/32",
        "decapsulate",
        "remove 203.0.113.128/25",
        "no blackhole 203.0.113.128/25",
    ]


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
    class Watching(ChangeLog):
        def save(self, changes: HostChanges) -> None:
            host.calls.append("saved " + ",".join(sorted(changes.sysctls)))
            super().save(changes)

    Agent(lambda: host, Watching(tmp_path), lambda *_: FakeDecap(host)).apply(config(WEB))
    assert host.calls[:2] == ["saved ipv4/conf/all/arp_ignore", "sysctl ipv4/conf/all/arp_ignore=1"]


def test_record_that_cannot_be_written_keeps_no_service_waiting(host: FakeHost, tmp_path: Path) -> None:
    with capture_logs() as logs:
        Agent(lambda: host, _Unwritable(tmp_path), lambda *_: FakeDecap(host)).apply(config(WEB))
    assert host.calls[-1] == "decapsulate"
    said = [entry["reason"] for entry in logs if entry["event"] == "change_not_remembered"]
    assert said == [f"{tmp_path}/agent-changes.json: cannot be written: no space left on device"]


class _Unwritable(ChangeLog):
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
    changes = HostChanges().with_sysctl("a/b", 0, 1).with_interface("eth0", made_qdisc=True)
    store = ChangeLog(tmp_path)
    store.save(changes)
    assert store.load() == changes
    assert changes.with_sysctl("a/b", 1, 2).sysctls["a/b"] == SettingChange(0, 2)
    store.save(changes.without_sysctl("a/b").without_interface("eth0"))
    assert not store.path.exists()


DAMAGED = ["", "{", "[]", '{"version": 2}', '{"version": 1, "sysctls": {"a": 1}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_record_is_set_aside_and_the_agent_serves(host: FakeHost, tmp_path: Path, text: str) -> None:
    store = ChangeLog(tmp_path)
    store.path.write_text(text)
    with pytest.raises(IoError, match="is damaged"):
        store.load()
    with capture_logs() as logs:
        agent = agent_on(host, tmp_path)
    (said,) = [entry for entry in logs if entry["event"] == "changes_not_known"]
    assert "cannot give back the sysctls" in said["then"]
    agent.apply(config(WEB))
    assert host.calls[-1] == "decapsulate"
    assert Path(said["kept_as"]).read_text() == text
    assert store.load().sysctls["ipv4/conf/all/arp_ignore"] == SettingChange(0, 1)


def test_record_that_is_a_directory_is_set_aside_too(host: FakeHost, tmp_path: Path) -> None:
    ChangeLog(tmp_path).path.mkdir()
    agent_on(host, tmp_path).apply(config(WEB))
    assert host.calls[-1] == "decapsulate"


# --- flows that conntrack remembers ----------------------------------------------------------------------------------


def flow(
    vip: str, port: int, answers: str, protocol: Protocol = Protocol.UDP, *, answered: bool = True
) -> ConntrackEntry:
    address, _, source = answers.rpartition(":")
    packed = (IPv4Address(vip).packed, port, IPv4Address(address).packed, int(source))
    return ConntrackEntry(4, protocol.number, *packed, answered)


def dns(to: int | None, *, track: bool = False) -> Service:
    return service("dns", "203.0.113.11", 53, to, protocol="udp", track=track)


OLD, NEW = flow("203.0.113.11", 53, "10.0.3.21:5300"), flow("203.0.113.11", 53, "10.0.3.21:5301")
AS_IS, ELSEWHERE = flow("203.0.113.11", 53, "203.0.113.11:53"), flow("198.51.100.9", 53, "10.0.3.21:5300")
CONTAINER = flow("203.0.113.11", 53, "172.18.0.2:53")


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        pytest.param(dns(5300), dns(5301), [NEW], id="another port"),
        pytest.param(dns(None, track=True), dns(5301), [NEW], id="translated from now on"),
        pytest.param(dns(5300), dns(None, track=True), [AS_IS, CONTAINER], id="no more, and the host's own rules are"),
        pytest.param(dns(5300), dns(None), [], id="neither translated nor tracked any more"),
        pytest.param(dns(5300), None, [], id="no more served"),
        pytest.param(dns(5300), dns(5300), [OLD, NEW, AS_IS, CONTAINER], id="nothing changed"),
        pytest.param(None, dns(5301), [NEW], id="another agent was here before"),
    ],
)
def test_flows_that_a_change_leaves_with_a_wrong_translation_are_forgotten(
    host: FakeHost, agent: Agent, before: Service | None, after: Service | None, kept: list[ConntrackEntry]
) -> None:
    if before is not None:
        agent.apply(config(before))
    host.flows = [OLD, NEW, AS_IS, CONTAINER, ELSEWHERE]
    agent.apply(config(after) if after is not None else config())
    assert host.flows == [*kept, ELSEWHERE]


def test_tcp_connection_lives_on_with_the_old_port_and_an_unanswered_syn_does_not(host: FakeHost, agent: Agent) -> None:
    agent.apply(config(NAT))
    lives = flow("203.0.113.11", 80, "10.0.3.21:8080", Protocol.TCP)
    host.flows = [lives, replace(lives, answered=False)]
    agent.apply(config(service("nat", "203.0.113.11", to=8081)))
    assert host.flows == [lives]


def test_flow_of_a_service_that_is_gone_is_judged_by_the_wider_one_that_takes_its_packets(
    host: FakeHost, agent: Agent
) -> None:
    wide = service("wide", "203.0.113.0/24", (1, 9999), protocol="udp", track=True)
    agent.apply(config(dns(5300), wide))
    host.flows = [OLD, AS_IS]
    agent.apply(config(wide))
    assert host.flows == [AS_IS]


def test_conntrack_that_cannot_be_looked_at_is_said_and_stops_nothing(host: FakeHost, agent: Agent) -> None:
    def refuses(*_: object) -> int:
        raise FeatureError("load the module nf_conntrack_netlink")

    host.forget_flows = refuses  # type: ignore[method-assign, assignment]
    with capture_logs() as logs:
        agent.apply(config(dns(5300)))
    assert [entry["reason"] for entry in logs if entry["event"] == "flows_not_forgotten"]
    assert agent.applied is not None


def test_flows_that_could_not_be_forgotten_are_forgotten_later(
    host: FakeHost, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conntrack that is busy for a moment must not cost a UDP client its server for as long as it sends."""

    def busy(*_: object) -> int:
        raise IoError("cannot look at conntrack: connection timed out")

    agent.apply(config(dns(5300)))
    host.flows = [OLD, ELSEWHERE]
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(host, "forget_flows", busy)
        agent.apply(config(dns(5301)))
        agent.forget_again()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["flows_not_forgotten"]
    assert host.flows == [OLD, ELSEWHERE]
    agent.forget_again()
    assert host.flows == [ELSEWHERE]


# --- what others undo ------------------------------------------------------------------------------------------------


def _rules(host: FakeHost) -> None:
    host.table, host.generation = None, host.generation + 1


def _changed_rules(host: FakeHost) -> None:
    host.table, host.generation = f"{host.table} and more", host.generation + 1


UNDONE: list[tuple[Callable[[FakeHost], object], Difference]] = [
    (_rules, Difference("nftables", "table inet vipmux_agent", "was removed or changed", urgent=True)),
    (_changed_rules, Difference("nftables", "table inet vipmux_agent", "was removed or changed", urgent=True)),
    (lambda host: host.addresses.pop(IPv4Address("203.0.113.10")), Difference("address", "203.0.113.10 on lo")),
    (lambda host: host.unrouted.add(IPv4Address("203.0.113.10")), Difference("address", "203.0.113.10 on lo")),
    (lambda host: host.routes.clear(), Difference("route", "local route 203.0.113.128/25")),
    (
        lambda host: host.fence_routes.discard(ip_network("203.0.113.11/32")),
        Difference("route", "blackhole 203.0.113.11/32 in table 19522"),
    ),
    (lambda host: host.fence_rules.clear(), Difference("rule", "ip rule 150 for vipmux-tun")),
    (
        lambda host: host.devices.clear(),
        Difference("interface", "device vipmux-tun", "was removed or changed", urgent=True),
    ),
]


@pytest.mark.parametrize(("undo", "told"), UNDONE)
def test_what_another_program_undoes_is_told_and_put_back(
    host: FakeHost, agent: Agent, undo: Callable[[FakeHost], object], told: Difference
) -> None:
    agent.apply(config(WEB, NAT, WIDE))
    assert list(amiss(agent.undone())) == []
    undo(host)
    assert list(amiss(agent.undone())) == [told]
    agent.apply_again()
    assert list(amiss(agent.undone())) == []


def test_lowered_setting_is_told_and_a_higher_one_is_left(host: FakeHost, agent: Agent) -> None:
    agent.apply(config(WEB))
    host.settings["ipv4/conf/all/arp_ignore"] = 2
    host.settings["ipv4/conf/all/arp_announce"] = 0
    assert agent.lowered() == {"ipv4/conf/all/arp_announce": 0}
    agent.apply_again()
    assert agent.lowered() == {}
    assert host.settings["ipv4/conf/all/arp_ignore"] == 2


def test_rules_of_others_cost_one_listing_and_are_no_change_of_ours(host: FakeHost, agent: Agent) -> None:
    agent.apply(config(WEB))
    host.generation += 1
    assert agent.undone() == []
    host.calls.clear()
    agent.apply_again()
    assert host.calls == []


def test_interface_that_is_gone_is_said_and_taken_up_again(host: FakeHost, agent: Agent) -> None:
    agent.apply(config(WEB))
    gone = host.links.pop("eth0")
    assert "eth0 does not exist" in (agent.interface_amiss() or "")
    host.links["eth0"] = gone
    assert agent.interface_amiss() is None
    assert agent.undone() == []


def test_without_the_interface_all_the_rest_is_watched_and_put_back(host: FakeHost, agent: Agent) -> None:
    agent.apply(config(WEB, NAT, WIDE))
    gone, filters = host.links.pop("eth0"), host.filters.copy()
    host.filters.clear()
    host.addresses.pop(IPv4Address("203.0.113.10"))
    host.table = None
    host.generation += 1
    assert {difference.what for difference in amiss(agent.undone())} == {"address", "nftables"}
    agent.apply_again()
    assert agent.undone() == []
    assert host.table is not None
    assert host.addresses[IPv4Address("203.0.113.10")]
    host.links["eth0"], host.filters = gone, filters
    assert agent.undone() == []


def test_change_that_failed_half_way_goes_on_from_what_the_host_has(host: FakeHost, agent: Agent) -> None:
    agent.apply(config(WEB))
    works, host.add_route = host.add_route, _broken  # type: ignore[method-assign, assignment]
    with pytest.raises(IoError, match="no buffer space"):
        agent.apply(config(WEB, NAT, WIDE))
    host.add_route = works  # type: ignore[method-assign]
    host.calls.clear()
    agent.apply(config(WEB, NAT, WIDE))
    assert "rules" not in host.calls  # those are there already
    assert "add 203.0.113.128/25" in host.calls


def _broken(_: object) -> None:
    raise IoError("cannot add the local route: no buffer space available")


def test_flows_are_judged_anew_after_the_rules_were_gone(host: FakeHost, agent: Agent) -> None:
    """What came meanwhile has no translation, and would keep that for as long as it sends."""
    agent.apply(config(dns(5301)))
    _rules(host)
    host.flows = [AS_IS, NEW]
    agent.apply_again()
    assert host.flows == [NEW]
