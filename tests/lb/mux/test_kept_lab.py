# SPDX-License-Identifier: Apache-2.0
"""What other programs take away from under a running lb-mux, while packets flow: it is whole again within two seconds.

Each test breaks one thing after another with the programs that operators and other daemons use.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from lb.config.render import format_config
from lb.daemon.kernel.repairs import FIGHT_REPAIRS
from lb.model import IoMode, MuxConfig, Probe, ProbeType
from tests.lab.netns import ip
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lb.mux.stage import DNS, LB_MUX, MUX, VIP, WEB, Stage

pytestmark = pytest.mark.lab

#: How soon everything is as it was, seconds.
SOON = 2.0


@pytest.fixture
def packet() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture
def tun() -> Iterator[Stage]:
    with Stage(IoMode.TUN) as stage:
        yield stage


def run(stage: Stage, command: str) -> None:
    subprocess.run(["ip", "netns", "exec", stage.mux, "sh", "-ec", command], check=True, capture_output=True)


def text(stage: Stage, command: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", stage.mux, *command.split()], capture_output=True, text=True, check=False
    )
    return done.stdout


def table(stage: Stage) -> str:
    """The isolation as nft lists it, without the kernel's numbers of things."""
    return text(stage, "nft -s list table inet vipmux_mux1")


def serves(stage: Stage) -> bool:
    """A datagram that a client sends now reaches the host."""
    with stage.tap() as tap, stage.udp_client() as client:
        client.sendto(b"now", (VIP, 53))
        return bool(tap.take(1, 0.2))


def repaired(stage: Stage, what: str, was: Callable[[], object], command: str) -> None:
    """``command`` breaks it; it is as it ``was``, and packets flow, within two seconds."""
    counted = f'lb_kernel_repairs_total{{what="{what}"}}'
    before, count = was(), stage.metrics().get(counted, 0)
    run(stage, command)
    began = time.monotonic()
    wait_for(lambda: was() == before and serves(stage), f"all to be whole after {command!r}")
    assert time.monotonic() - began < allowed(SOON), command
    # It is counted, and said, once the kernel has it: a moment later.
    wait_for(lambda: stage.metrics().get(counted, 0) > count, f"the repair after {command!r} to be counted")


def said(stage: Stage, event: str = "put back") -> list[str]:
    assert stage.process is not None
    return re.findall(rf'event="{event}" .*', stage.process.output())


def test_the_isolation_is_put_back_whatever_is_done_to_it(packet: Stage) -> None:
    run(packet, "sysctl -qw net.ipv4.ip_forward=1")
    packet.start(DNS, WEB)
    for command in (
        "nft flush ruleset",
        "nft delete table inet vipmux_mux1",
        "nft flush set inet vipmux_mux1 vips4",
        "nft flush chain inet vipmux_mux1 ingress",
        "nft add table inet vipmux_mux1 '{ flags dormant; }'",
    ):
        repaired(packet, "nftables", lambda: table(packet), command)
    lines = wait_for(lambda: said(packet)[4:] and said(packet), "the five repairs to be said")
    assert len(lines) == 5, lines
    assert all("table inet vipmux_mux1" in line and re.search(r'by="nft \(pid \d+\)"', line) for line in lines)
    (row,) = packet.row()["kernel"]
    assert (row["name"], row["count"], row["fight"]) == ("table inet vipmux_mux1", 5, False)
    assert packet.row()["state"] == "ready"
    assert isinstance(packet.connect(VIP, 81, seconds=0.4), TimeoutError)


def test_while_the_interface_has_another_name_the_kernel_is_kept_from_the_vips_also_of_a_dead_mux(
    packet: Stage,
) -> None:
    """Some kernels hook a chain at an interface's ingress by its name."""
    run(packet, "sysctl -qw net.ipv4.ip_forward=1")  # else it has no answer to what it does not know
    process = packet.start(DNS, WEB)

    def rename(old: str, new: str) -> None:
        run(packet, f"ip link set {old} down; ip link set {old} name {new}; ip link set {new} up")

    rename("eth0", "up0")
    assert isinstance(packet.connect(VIP, 81, seconds=0.4), TimeoutError)
    wait_for(lambda: packet.row()["state"] == "degraded", "the MUX to say that its interface is gone")
    process.kill()
    assert isinstance(packet.connect(VIP, 81, seconds=0.4), TimeoutError)
    rename("up0", "eth0")
    packet.start(DNS, WEB)
    assert serves(packet)
    assert isinstance(packet.connect(VIP, 81, seconds=0.4), TimeoutError)


def test_other_tables_are_left_alone_and_a_change_of_services_is_no_repair(packet: Stage) -> None:
    packet.start(DNS)
    run(packet, "nft add table inet other; nft delete table inet other")
    packet.reload(DNS, replace(WEB, vip=ip_network("203.0.113.20")))
    packet.reload(DNS)
    time.sleep(0.3)  # a look that they might have given rise to
    assert packet.row()["kernel"] == []
    assert packet.vips_of_the_kernel() == [VIP]


def test_a_fight_is_said_once_and_does_not_go_on_at_full_speed(packet: Stage) -> None:
    process = packet.start(DNS)
    process_is_there = 'event="another program undoes it again and again"'
    deadline = time.monotonic() + 30
    while process_is_there not in process.output():
        assert time.monotonic() < deadline
        run(packet, "nft delete table inet vipmux_mux1 2>/dev/null || true; sleep 0.05")
    run(packet, "nft delete table inet vipmux_mux1 2>/dev/null || true")
    wait_for(lambda: any(row["amiss"] for row in packet.row()["kernel"]), "the MUX to see that it is gone once more")
    assert packet.vips_of_the_kernel() is None, "not at once any more"
    (row,) = packet.row()["kernel"]
    assert (row["fight"], row["amiss"], row["count"]) == (True, True, FIGHT_REPAIRS + 1)
    assert packet.metrics()["lb_kernel_fights"] == 1
    wait_for(lambda: packet.vips_of_the_kernel() == [VIP], "the slower repair")
    assert process.output().count(process_is_there) == 1
    assert re.search(process_is_there + r' .*by="nft \(pid', process.output()) or "by=" in process.output()
    assert serves(packet)


def interface(stage: Stage) -> Any:
    return json.loads(ip("-j", "-n", stage.mux, "link", "show", "eth0"))[0]


def make_anew(stage: Stage, link: Any, number: int) -> None:
    """Its interface, with this number."""
    ip("-n", stage.client, "neigh", "replace", MUX, "lladdr", link["address"], "dev", "eth0", "nud", "permanent")
    run(
        stage,
        f"ip link del eth0; ip link add eth0 index {number} address {link['address']} type veth peer name out;"
        f"ip link set out netns {stage.switch}; ip addr add {MUX}/24 dev eth0; ip link set eth0 up;"
        f"ip netns exec {stage.switch} ip link set out master br0 up",
    )


@pytest.mark.parametrize("same_number", [False, True])
def test_an_interface_that_is_deleted_and_made_again_at_once_serves_again(packet: Stage, same_number: bool) -> None:
    packet.start(DNS)
    link = interface(packet)
    make_anew(packet, link, link["ifindex"] if same_number else link["ifindex"] + 100)
    wait_for(lambda: serves(packet), "packets to flow", seconds=allowed(SOON))
    wait_for(lambda: packet.row()["state"] == "ready", "the MUX to be ready", seconds=allowed(SOON))
    assert 'hook ingress device "eth0"' in table(packet)
    assert packet.vips_of_the_kernel() == [VIP]
    assert isinstance(packet.connect(VIP, 81, seconds=0.4), TimeoutError), "the kernel does not answer itself"


def test_a_link_that_goes_and_comes_needs_nothing(packet: Stage) -> None:
    packet.start(DNS)
    run(packet, "ip link set eth0 down")
    wait_for(lambda: packet.row()["state"] == "degraded", "the loss to be seen")
    run(packet, "ip link set eth0 mtu 1400; ip link set eth0 address 02:00:00:00:00:77; ip link set eth0 up")
    ip("-n", packet.client, "neigh", "flush", "all")
    wait_for(lambda: serves(packet), "packets to flow", seconds=allowed(SOON))
    wait_for(lambda: packet.row()["state"] == "ready", "the MUX to say so")  # its worker does not wait for that
    assert packet.row()["kernel"] == []


def test_the_way_out_of_super_packets_is_put_back(packet: Stage) -> None:
    packet.start(DNS)

    def device() -> object:
        found = [link for link in json.loads(text(packet, "ip -j link")) if link["ifname"].startswith("lbwhole")]
        return [(link["ifname"], "UP" in link["flags"]) for link in found]

    ((name, up),) = device()  # type: ignore[misc]
    assert up
    for command in (f"ip link set {name} down", f"ip link del {name}"):
        repaired(packet, "interface", device, command)


def test_super_packets_that_must_be_cut_once_the_interface_was_made_anew_are_said_to_be(packet: Stage) -> None:
    """A device that is not ours has the name of their way out; later it is gone."""
    process, link = packet.start(DNS), interface(packet)
    assert "super-packets stay whole" in packet.row()["mode"]
    run(packet, f"ip link add lbwhole{link['ifindex'] + 100} type bridge")
    make_anew(packet, link, link["ifindex"] + 100)
    wait_for(lambda: "super-packets are cut (" in packet.row()["mode"], "it to be shown", seconds=allowed(SOON))
    process.wait_output(r'level=warning .*event="interface opened again" .*super-packets are cut \(')
    run(packet, f"ip link del lbwhole{link['ifindex'] + 100}")
    make_anew(packet, link, link["ifindex"] + 200)
    wait_for(lambda: "super-packets stay whole" in packet.row()["mode"], "them to be whole", seconds=allowed(SOON))
    wait_for(lambda: serves(packet), "packets to flow", seconds=allowed(SOON))


def test_all_of_the_tun_mode_is_put_back(tun: Stage) -> None:
    tun.start(DNS, WEB)

    def routes() -> object:
        return sorted(text(tun, "ip route show proto 118").splitlines())

    def device() -> object:
        (found,) = json.loads(text(tun, "ip -j addr show lb-mux1") or "[{}]")
        addresses = [item["local"] for item in found.get("addr_info", [])]
        sysctls = [
            text(tun, f"sysctl -n net.ipv4.{key}").strip()
            for key in ("ip_forward", "conf.lb-mux1.rp_filter", "conf.lb-mux1.accept_local")
        ]
        return found.get("mtu"), "UP" in found.get("flags", []), addresses, sysctls, routes()

    for what, command in (
        ("route", "ip route flush proto 118"),
        ("address", "ip addr flush dev lb-mux1"),
        ("sysctl", "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.lb-mux1.accept_local=0"),
        ("interface", "ip link set lb-mux1 down"),
        ("interface", "ip link del lb-mux1"),
    ):
        repaired(tun, what, device, command)
    wait_for(lambda: tun.row()["state"] == "ready", "the MUX to be ready")
    wait_for(lambda: any("TUN device lb-mux1" in line for line in said(tun)), "the repair to be said")


def test_the_way_of_tunnel_probes_is_put_back(packet: Stage) -> None:
    probe = Probe(ProbeType.TCP, interval=0.2, timeout=0.2)
    process = packet.start(DNS, replace(WEB, probe=probe))
    process.wait_output("event=probing")

    def way() -> object:
        rule = re.search(r"fwmark (0x767\S+) lookup (\d+)", text(packet, "ip rule"))
        return rule and (rule[1], text(packet, f"ip route show table {rule[2]}"))

    wait_for(way, "the rule")
    for command in ("ip rule del pref 118", "ip route flush table $(ip rule | sed -n 's/.*fwmark 0x767.*lookup //p')"):
        before = way()
        run(packet, command)
        wait_for(lambda: way() == before, f"the way to be there again after {command}", seconds=allowed(SOON))  # noqa: B023
    wait_for(lambda: len(said(packet)) == 2, "each to be said once")


@pytest.mark.parametrize("io", [IoMode.PACKET, IoMode.TUN])
def test_a_machine_whose_routing_rules_were_flushed_finds_its_way_again(io: IoMode) -> None:
    with Stage(io) as stage:
        stage.start(DNS)
        repaired(stage, "rule", lambda: (text(stage, "ip rule"), text(stage, "ip -6 rule")), "ip rule flush")
        run(stage, "ip rule add pref 100 lookup main; ip rule del pref 32766")
        time.sleep(0.3)
        assert "32766" not in text(stage, "ip rule"), "who has a rule of his own for the table is left alone"


def test_a_second_mux_of_the_name_or_on_the_interface_is_refused_with_the_pid_of_the_first(packet: Stage) -> None:
    first = packet.start(DNS)
    for settings, words in (
        (packet.settings, "mux.name 'mux1'"),
        (replace(packet.settings, name="mux2"), "mux.interface 'eth0'"),
        (replace(packet.settings, name="mux2", io=IoMode.AUTO), "mux.interface 'eth0'"),
    ):
        file = packet.directory / "second.toml"
        changed = replace(settings, state_dir=str(packet.directory / "other"), metrics="127.0.0.1:9799")
        file.write_text(format_config(MuxConfig(changed, (DNS,))))
        done = subprocess.run(
            ["ip", "netns", "exec", packet.mux, str(LB_MUX), "--config", str(file)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert f"another lb-mux (pid {first.pid}) runs here with {words}" in done.stderr
        assert done.returncode == 1
    assert serves(packet)
    assert packet.vips_of_the_kernel() == [VIP]
