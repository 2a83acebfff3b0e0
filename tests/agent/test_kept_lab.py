# SPDX-License-Identifier: Apache-2.0
"""Whatever another program does to what the agent put into its host's kernel: it is whole again within two seconds."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from lb.model import DecapMode
from tests.agent.hostlab import GATEWAY, HOST, PLAIN_VIP, TRANSLATED_VIP, HostLab, exchange
from tests.lab import netns
from tests.lab.pace import allowed
from tests.lab.process import wait_for
from tests.lab.topology import PROGRAMS

pytestmark = pytest.mark.lab

#: Seconds until all is whole.
SOON = 2.0


@pytest.fixture(scope="module")
def lab() -> Iterator[HostLab]:
    with HostLab(decap=DecapMode.BPF) as lab, lab.server(80, "plain"), lab.server(8080, "translated"):
        lab.write()
        lab.start()
        yield lab


@pytest.fixture(scope="module")
def tun() -> Iterator[HostLab]:
    with HostLab(decap=DecapMode.TUN) as lab, lab.server(80, "plain"):
        lab.write()
        lab.start()
        yield lab


def whole(lab: HostLab) -> dict[str, str]:
    """All of ours in the kernel, without the numbers that are others each time."""
    traces = lab.traces()
    filters = " ".join(word for word in traces["filters"].split() if not word.isdigit())
    addresses = "\n".join(
        sorted(re.sub(r"^\d+: ", "", line) for line in traces["addresses"].splitlines() if "lo" in line)
    )
    routes = sorted(line for line in traces["routes"].splitlines() if "203.0.113" in line)
    return {
        "rules": traces["rules"],
        "filters": filters,
        "addresses": addresses,
        "routes": "\n".join(routes),
        "sysctls": traces["sysctls"],
        "fence": lab.on_host("ip", "rule", "show", "priority", "150"),
        "device": re.sub(r"^\d+: ", "", lab.on_host("ip", "-o", "addr", "show", "dev", "vipmux-tun")),
        "link": " ".join(re.findall(r"vipmux-tun.*<.*?>", lab.on_host("ip", "-br", "link"))),
    }


def said(lab: HostLab) -> list[str]:
    assert lab.agent is not None
    return re.findall(r'event="put back" .*', lab.agent.output())


def repaired(lab: HostLab, what: str, command: str) -> None:
    """``command`` breaks it; all is as it was, and both services answer, within two seconds; and that is said once."""
    before, lines = whole(lab), len(said(lab))
    counted = sum(row["count"] for row in lab.row()["kernel"] if row["what"] == what)
    assert not (complaint := lab.on_host("sh", "-c", command)), complaint
    began = time.monotonic()
    wait_for(lambda: whole(lab) == before, f"all to be whole after {command!r}")
    took = time.monotonic() - began
    assert took < allowed(SOON), (command, took)
    assert lab.ask(PLAIN_VIP)
    wait_for(lambda: sum(r["count"] for r in lab.row()["kernel"] if r["what"] == what) > counted, "it to be counted")
    wait_for(lambda: len(said(lab)) > lines, f"the repair after {command!r} to be said")  # a log may lag behind


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("nftables", "nft flush ruleset"),
        ("nftables", "nft flush chain inet vipmux_agent translate"),
        ("nftables", "nft delete table inet vipmux_agent"),
        ("address", "ip addr flush dev lo label lo:vipmux"),
        ("address", f"ip route del local {PLAIN_VIP} dev lo table local"),
        ("route", "ip route flush table local proto 177"),
        ("route", "ip route flush table 19522"),
        ("rule", "ip rule del priority 150"),
        ("filter", "tc filter del dev eth0 ingress"),
        ("qdisc", "tc qdisc del dev eth0 clsact"),
        ("sysctl", "echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore"),
    ],
)
def test_what_another_program_undoes_is_put_back(lab: HostLab, what: str, command: str) -> None:
    repaired(lab, what, command)


def test_who_did_it_is_named_where_the_kernel_tells(lab: HostLab) -> None:
    assert any(re.search(r'by="nft \(pid \d+\)"', line) for line in said(lab))  # those before waited for their lines


def test_our_own_changes_are_no_repairs(lab: HostLab) -> None:
    before, lines = lab.row()["kernel"], len(said(lab))
    lab.write([])
    lab.reload()
    lab.write()
    lab.reload()
    lab.on_host("nft", "add table inet other; delete table inet other")
    time.sleep(0.5)  # a look that they might have given rise to
    assert [row["count"] for row in lab.row()["kernel"]] == [row["count"] for row in before]
    assert len(said(lab)) == lines


def test_connections_under_load_outlive_a_flush_of_everything(lab: HostLab) -> None:
    """Old connections live on, and new ones are served again within two seconds, each that was begun by then."""
    stop = threading.Event()
    failed: list[float] = []
    done: list[float] = []

    def ask_on() -> None:
        while not stop.is_set():
            began = time.monotonic()
            for vip in (PLAIN_VIP, TRANSLATED_VIP):
                try:
                    with lab.connect(vip) as connection:
                        connection.settimeout(5)
                        exchange(connection)
                    done.append(time.monotonic() - began)
                except OSError:
                    failed.append(began)

    with contextlib.ExitStack() as opened:
        old = [opened.enter_context(lab.connect(vip)) for vip in (PLAIN_VIP, TRANSLATED_VIP) for _ in range(10)]
        asking = [threading.Thread(target=ask_on) for _ in range(3)]
        for thread in asking:
            thread.start()
        time.sleep(0.3)
        lab.on_host("sh", "-c", "nft flush ruleset; ip addr flush dev lo label lo:vipmux; tc qdisc del dev eth0 clsact")
        broke, soon = time.monotonic(), allowed(SOON)
        time.sleep(soon + 0.5)
        stop.set()
        for thread in asking:
            thread.join()
        for connection in old:
            exchange(connection)
    assert len(done) > 20
    assert [moment - broke for moment in failed if moment - broke > soon] == []


def test_interface_that_is_deleted_and_made_again_is_served_again(lab: HostLab) -> None:
    netns.ip("-n", lab.host, "link", "del", "eth0")
    time.sleep(0.2)
    netns.batch(
        [
            f"link add name eth0 type veth peer name eth0 netns {lab.host}",
            f"addr add {GATEWAY}/24 dev eth0",
            "addr add 10.0.3.11/24 dev eth0",
            "link set eth0 up",
        ],
        lab.client,
    )
    netns.batch([f"addr add {HOST}/24 dev eth0", "link set eth0 up", f"route add default via {GATEWAY}"], lab.host)

    def serves() -> bool:
        with contextlib.suppress(OSError), _impatient(lab, PLAIN_VIP) as connection:
            return exchange(connection) == f"plain hello {PLAIN_VIP}"
        return False

    wait_for(serves, "packets to be taken out of their tunnels again", seconds=allowed(SOON))
    assert lab.ask(TRANSLATED_VIP) == f"translated hello {HOST}"
    assert lab.row()["decapsulated"] > 100  # counted on


def test_a_filter_of_others_that_takes_our_packets_is_said_and_one_that_lets_them_go_on_is_not_called_a_fault(
    lab: HostLab,
) -> None:
    assert lab.agent is not None
    add = "tc filter add dev eth0 ingress prio {} bpf bytecode '{}'"
    try:
        assert lab.ask(PLAIN_VIP)
        assert not lab.on_host("sh", "-c", add.format(1, "1,6 0 0 0"))  # matches nothing
        wait_for(lambda: lab.row()["filters_ahead"] == ["the bpf filter of priority 1"], "the first filter to be seen")
        assert lab.ask(PLAIN_VIP)
        wait_for(lambda: lab.row()["filters_ahead_pass"], "packets to be seen behind it")
        assert lab.row()["degraded"] is None
        assert not lab.on_host("sh", "-c", add.format(2, "1,6 0 0 4294967295"))  # accepts everything
        with contextlib.suppress(OSError), _impatient(lab, PLAIN_VIP):
            pytest.fail("the filter lets packets go on")
        said_so = wait_for(lambda: lab.row()["degraded"], "the agent to say it")
        assert "the bpf filter of priority 2" in said_so
        lab.agent.wait_output("cannot be put back.*\\n")
        lines = [line for line in lab.agent.output().splitlines() if "cannot be put back" in line]
        assert len(lines) == 1, lines
        assert "tc filter del dev eth0 ingress pref 2" in lines[0]
        assert any(row["failed"] and "priority 2" in row["name"] for row in lab.row()["kernel"])
        doctor = lab.on_host(str(PROGRAMS / "lb"), "doctor", "--config", str(lab.config))
        assert "FAULT" in doctor.upper()
        assert re.search(
            r"priority 1 and the bpf filter of priority 2 stands before lb-agent's", " ".join(doctor.split())
        )
    finally:
        lab.on_host("sh", "-c", "tc filter del dev eth0 ingress pref 1; tc filter del dev eth0 ingress pref 2")
    wait_for(lambda: lab.row()["degraded"] is None and not lab.row()["filters_ahead"], "all to be well again")
    assert lab.ask(PLAIN_VIP)


def test_while_the_interface_has_another_name_the_rest_of_the_host_is_kept(lab: HostLab) -> None:
    def rename(old: str, new: str) -> None:
        route = f"ip route replace default via {GATEWAY}"
        lab.on_host("sh", "-ec", f"ip link set {old} down; ip link set {old} name {new}; ip link set {new} up; {route}")

    rename("eth0", "up0")
    try:
        wait_for(lambda: "eth0 does not exist" in (lab.row()["degraded"] or ""), "the agent to miss its interface")
        assert not lab.on_host("sh", "-c", "nft delete table inet vipmux_agent; ip addr flush dev lo label lo:vipmux")
        wait_for(lambda: "vipmux_agent" in lab.on_host("nft", "list", "tables"), "the table to be put back")
        wait_for(lambda: PLAIN_VIP in lab.on_host("ip", "addr", "show", "dev", "lo"), "the VIP to be put back")
    finally:
        rename("up0", "eth0")
    wait_for(lambda: lab.row()["degraded"] is None, "the agent to have its interface again")
    assert lab.ask(PLAIN_VIP)


def _impatient(lab: HostLab, vip: str) -> socket.socket:
    return netns.inside(lab.client, lambda: socket.create_connection((vip, 80), timeout=0.3))


@pytest.mark.parametrize(
    "command", ["ip link set vipmux-tun down", "ip addr flush dev vipmux-tun", "ip link del vipmux-tun"]
)
def test_tun_device_is_put_back(tun: HostLab, command: str) -> None:
    assert tun.ask(PLAIN_VIP)
    repaired(tun, "interface", command)


def test_a_fight_is_noticed_and_shown(tun: HostLab) -> None:
    deadline = time.monotonic() + 30
    assert tun.agent is not None
    while "undoes it again and again" not in tun.agent.output():
        assert time.monotonic() < deadline
        tun.on_host("nft", "delete table inet vipmux_agent")
        time.sleep(0.1)
    wait_for(
        lambda: any(row["fight"] for row in tun.row()["kernel"] if row["name"] == "table inet vipmux_agent"),
        "the fight to be shown",
    )
    wait_for(lambda: "vipmux_agent" in tun.on_host("nft", "list tables"), "the slower repair")
