# SPDX-License-Identifier: Apache-2.0
"""``lb doctor`` of the whole fleet: of faults that are there together it names each cause once, and nothing else.

Faults are made for real, on hosts, MUXes, the router and the manager, several at a time where they do not disturb each
other. The doctor is asked on the manager's machine alone; ``lb get``, the page and the events must tell the same truth;
then the very commands are carried out that it names, and all must be well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from lb.config.render import format_config
from lb.model import MuxConfig, Service
from tests.lab import netns
from tests.lab.clinic import (
    LASTED,
    PROBE,
    Clinic,
    Expected,
    Truth,
    announced_by,
    command,
    is_away,
    is_ill,
    serves_nobody,
    table,
)
from tests.lab.process import Process, in_namespace, wait_for
from tests.lab.routers import Routers, missing
from tests.lab.services import FILES_VIP, WEB_VIP, files, web
from tests.lab.topology import PROGRAMS, Node

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(missing(Routers.BIRD) is not None, reason=str(missing(Routers.BIRD))),
]

SOLO_VIP = "203.0.113.30"
_NFT = "table inet lab_filter {{ chain input {{ type filter hook input priority 0; policy {}; {} }}; }}"
_REST = "iif lo accept; ct state established,related accept; icmp type echo-request accept;"


def solo(hosts: list[Node]) -> Service:
    """A service with one backend."""
    many = web(hosts)
    vip = ip_network(SOLO_VIP)
    return replace(many, name="solo", vip=vip, backends=(replace(many.backends[0], name="solo-host1"),))


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    with Clinic() as started:
        started.start([replace(service, probe=PROBE) for service in services(started)])
        started.wait_hops(WEB_VIP, *started.muxes)
        yield started
        print(table(started.seen))


def services(clinic: Clinic) -> list[Service]:
    return [web(clinic.hosts), files(clinic.hosts), solo(clinic.hosts)]


def session_is_down(mux: str) -> Truth:
    def is_so(row: Mapping[str, Any]) -> bool:
        return [peer["state"] for peer in row["peers"]] != ["established"]

    return Truth(f"mux {mux}", is_so, "BGP session with router is ")


def nginx_on(clinic: Clinic, host: Node, *, loopback: bool) -> None:
    """nginx anew, with port 8080 on loopback alone, or everywhere."""
    file = host.directory / "nginx.conf"
    four, six = ("127.0.0.1:", "[::1]:") if loopback else ("", "[::]:")
    text = re.sub(r"listen (?:[0-9.]+:)?8080 ", f"listen {four}8080 ", file.read_text())
    text = re.sub(r"listen \[[:1]*\]:8080 ", f"listen {six}8080 ", text)
    host.processes["nginx"].stop()
    file.write_text(text)
    clinic.start_web_server(host)


def test_what_others_do_on_hosts_that_are_well_is_no_finding(clinic: Clinic) -> None:
    """As Docker, ufw, firewalld and a second NIC leave them; traffic goes on."""
    host1, host2, host3 = clinic.hosts
    docker = (
        "table ip nat { chain DOCKER { }; chain PREROUTING { type nat hook prerouting priority -100; "
        "fib daddr type local jump DOCKER; }; };"
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; "
        "iifname docker0 accept; }; }"
    )
    clinic.in_node(host1, "nft", "-f", "-", stdin=docker)
    netns.sysctl(host1.namespace, {"ipv4/ip_forward": 1})
    opened = f"{_REST} tcp dport {{ 22, 80, 8080 }} accept; ip saddr 192.0.2.0/24 drop;"
    clinic.in_node(host2, "nft", "-f", "-", stdin=_NFT.format("drop", opened))
    lines = ["link add eth1 type veth peer name eth1peer", "link set eth1 up", "addr add 10.9.0.2/24 dev eth1"]
    netns.batch(lines, host3.namespace)
    netns.sysctl(host3.namespace, {"ipv4/conf/eth0/rp_filter": 2})
    assert clinic.fleet_finds() == []
    wait_for(lambda: {row["state"] for row in clinic.ask("services")} == {"up"}, "all services to be up", 30)
    for host, family, name in ((host1, "ip", "nat"), (host1, "ip", "filter"), (host2, "inet", "lab_filter")):
        clinic.in_node(host, "nft", "delete", "table", family, name)
    netns.sysctl(host1.namespace, {"ipv4/ip_forward": 0})
    netns.batch(["link del eth1"], host3.namespace)
    netns.sysctl(host3.namespace, {"ipv4/conf/eth0/rp_filter": 0})


def test_hosts_that_do_not_take_what_comes_for_them_and_a_file_that_all_may_read(clinic: Clinic) -> None:
    host1, host2, host3 = clinic.hosts
    mux2, before = clinic.muxes[1], clinic.last_event()
    clinic.in_node(host1, "nft", "-f", "-", stdin=_NFT.format("accept", "tcp dport 8080 drop;"))
    untracked = f"{_REST} ct state new tcp dport {{ 80, 8080 }} accept;"
    clinic.in_node(host2, "nft", "-f", "-", stdin=_NFT.format("drop", untracked))
    nginx_on(clinic, host3, loopback=True)
    mux2.config.chmod(0o644)
    clinic.all_say(
        before,
        is_ill("web", "web-host1"),
        is_ill("solo", "solo-host1"),
        is_ill("files", "files-host2"),
        is_ill("web", "web-host3"),
    )
    firewall, policy, loopback, secrets = clinic.fleet_finds(
        Expected("host_firewall", ("agent host1 says", "8080", "web/web-host1"), "host_firewall"),
        Expected("host_firewall", ("agent host2 says", "files/files-host2", "not tracked"), "host_firewall_untracked"),
        Expected("listens", ("agent host3 says", "127.0.0.1", "8080"), "listens_on_loopback"),
        Expected("secrets", ("mux mux2 says", str(mux2.config)), "config_readable", "warning"),
    )
    clinic.note("host firewall that drops a port", firewall)
    clinic.note("policy drop, and what is not tracked is not new", policy)
    clinic.note("a server that listens on loopback alone", loopback)
    clinic.note("a file with passwords that all may read", secrets)
    for node, finding in ((host1, firewall), (host2, policy), (mux2, secrets)):
        clinic.in_node(node, *command(finding).split())
    nginx_on(clinic, host3, loopback=False)
    clinic.well(clinic.manager)
    for node in (host1, host2):
        clinic.in_node(node, "nft", "delete", "table", "inet", "lab_filter")
    assert clinic.fleet_finds() == []


def test_a_session_that_is_down_and_a_vip_that_is_a_muxs_own(clinic: Clinic) -> None:
    mux1, mux2 = clinic.muxes
    before = clinic.last_event()
    rule = f"ip saddr {mux1.address} tcp dport 179 drop; ip saddr {mux1.address} tcp sport 179 drop;"
    rules = f"table ip lab_bgp {{ chain input {{ type filter hook input priority 0; {rule} }}; }}"
    clinic.in_node(clinic.router, "nft", "-f", "-", stdin=rules)
    clinic.in_node(mux2, "ip", "addr", "add", f"{SOLO_VIP}/32", "dev", "lo")
    wait_for(lambda: clinic.watch.hops(WEB_VIP) == frozenset({str(mux2.address)}), "the session to be lost", 30)
    clinic.all_say(before, session_is_down("mux1"))
    clinic.all_say(before, announced_by("mux2", "web"), seconds=LASTED)
    session, local = clinic.fleet_finds(
        Expected("bgp_password", ("mux mux1 says", "10.0.1.1", "nothing from port 179", "announced by mux2 alone")),
        Expected("local_vip", ("mux mux2 says", SOLO_VIP, "on lo")),
    )
    assert "see that port 179 is not filtered" in session["remedy"]
    clinic.note("a BGP session that is down on one MUX", session)
    clinic.note("a VIP that is an address of a MUX", local)
    clinic.in_node(mux2, *command(local).split())
    clinic.in_node(clinic.router, "nft", "delete", "table", "ip", "lab_bgp")
    clinic.well(clinic.manager)


def test_a_program_that_undoes_again_and_again_what_an_agent_puts_back(clinic: Clinic) -> None:
    host, before = clinic.hosts[2], clinic.last_event()
    loop = f"while :; do ip addr del {FILES_VIP}/32 dev lo 2>/dev/null; sleep 0.1; done"
    host.processes["fight"] = Process("the other program", host.namespace, ["sh", "-c", loop], host.directory / "fight")
    clinic.all_say(before, undone_on("agent host3", FILES_VIP), is_ill("files", "files-host3"), seconds=20.0)
    (fight,) = clinic.fleet_finds(Expected("kernel_kept", ("agent host3 says", FILES_VIP), "repair_fight"))
    clinic.note("a program that undoes what is put back", fight)
    assert "stop that program" in fight["remedy"]
    host.processes.pop("fight").kill()
    clinic.stop(host)  # it would remember for a minute
    clinic.start_daemon(host)
    clinic.well(clinic.manager)


def undone_on(node: str, what: str) -> Truth:
    said = "another program undoes"
    return Truth(node, lambda row: str(row["repaired"]).startswith(said) and what in row["repaired"], f"{node} {said}")


def test_services_that_nobody_serves_and_a_mux_with_another_seed(clinic: Clinic) -> None:
    mux2, before = clinic.muxes[1], clinic.last_event()
    clinic.lb("drain", "backend", "solo/solo-host1")
    for host in clinic.hosts:
        clinic.lb("set", "weight", f"files/files-{host.name}", "0")
    configuration = clinic.configuration(mux2)
    assert isinstance(configuration, MuxConfig)
    clinic.stop(mux2)
    other = replace(configuration, mux=replace(configuration.mux, seed=bytes(16)))
    mux2.config.write_text(format_config(other))
    clinic.start_daemon(mux2)
    clinic.all_say(
        before,
        serves_nobody("solo", "no backend takes new flows: all 1 drained"),
        serves_nobody("files", "no backend takes new flows: all 3 of weight 0"),
        Truth("mux mux2", lambda row: bool(row["differs"]), "mux mux2 chooses other backends than the others"),
    )
    drained, weights, seed = clinic.fleet_finds(
        Expected("announced", ("solo", "all 1 drained")),
        Expected("announced", ("files", "all 3 of weight 0")),
        Expected("pool", ("mux2", "seed")),
    )
    clinic.note("the last backend drained", drained)
    clinic.note("all weights 0", weights)
    clinic.note("a MUX with another seed", seed)
    before = clinic.last_event()
    for finding in (drained, weights, seed):
        assert command(finding).startswith("lb ")
        clinic.lb(*command(finding).split()[1:])
    clinic.stop(mux2)
    mux2.config.write_text(format_config(configuration))
    clinic.start_daemon(mux2)
    wait_for(lambda: clinic.watch.hops(WEB_VIP) == frozenset({str(clinic.muxes[0].address)}), "mux1 alone", 30)
    clinic.all_say(before, announced_by("mux1", "web"), seconds=LASTED)
    (alone,) = clinic.fleet_finds(Expected("announced", ("mux1 alone", "mux2"), severity="warning"))
    clinic.note("only one MUX announces", alone)
    clinic.lb(*command(alone).split()[1:])
    clinic.well(clinic.manager)


def test_agents_that_are_away_and_left_something_undone(clinic: Clinic) -> None:
    host1, host2 = clinic.hosts[:2]
    before = clinic.last_event()
    for host in (host1, host2):
        clinic.stop(host)
    clinic.in_node(host1, "nft", "flush", "ruleset")
    clinic.in_node(host2, "ip", "addr", "del", f"{FILES_VIP}/32", "dev", "lo")
    clinic.all_say(
        before,
        is_away("agent host1"),
        is_away("agent host2"),
        is_ill("web", "web-host1"),
        is_ill("files", "files-host2"),
    )
    flushed, taken = clinic.fleet_finds(
        Expected("node", ("agent host1", "not connected"), "node"),
        Expected("node", ("agent host2", "not connected"), "node"),
    )
    clinic.note("nftables flushed while the agent is away", flushed)
    clinic.note("a VIP taken from lo while the agent is away", taken)
    for host, finding, word in ((host1, flushed, "vipmux_agent"), (host2, taken, FILES_VIP)):
        assert command(finding).startswith("lb doctor")
        there = clinic.finds(host, "daemon", word)
        assert there["cause"] == "daemon_down"
        assert "systemctl start lb-agent" in there["remedy"]
        clinic.start_daemon(host)
    clinic.well(clinic.manager)


def is_told_nothing(row: Mapping[str, Any]) -> bool:
    return "goes on with them" in str(row["refused"])


def test_a_backup_that_was_put_back_on_a_manager_whose_disk_is_full(clinic: Clinic) -> None:
    manager = clinic.manager
    backup = clinic.directory / "backup"
    assert manager.processes["manager"].stop() == 0
    backup.mkdir()
    for path in manager.state_dir.glob("manager.db*"):
        shutil.copy2(path, backup)
    clinic.start_manager()
    wait_for(lambda: clinic.connected() == len(clinic.nodes), "the nodes to come back", 60)
    clinic.lb("set", "weight", "web/web-host1", "2")
    wait_for(lambda: clinic.connected() == len(clinic.nodes), "the nodes to have it", 60)
    assert manager.processes["manager"].stop() == 0
    for path in manager.state_dir.glob("manager.db*"):
        path.unlink()
    for path in backup.iterdir():
        shutil.copy2(path, manager.state_dir)
    clinic.start_manager()
    # The events are those of the backup, and go on from there.
    clinic.all_say(0, *(Truth(f"agent {host.name}", is_told_nothing, "it gets no orders") for host in clinic.hosts))
    assert any("older than the orders" in problem["text"] for problem in clinic.page()["summary"]["problems"])
    ballast = manager.state_dir / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(128 << 20))
    history, disk = clinic.fleet_finds(
        Expected("history", (), "backup_restored"), Expected("disk", (str(manager.state_dir), "is full"))
    )
    clinic.note("a backup put back", history)
    clinic.note("a manager whose disk is full", disk)
    subprocess.run(in_namespace(manager.namespace, command(disk).split()), check=True, capture_output=True)
    ballast.unlink()
    take_over = next(one for one in re.findall(r"`([^`]+)`", history["remedy"]) if "take-over" in one)
    assert manager.processes["manager"].stop() == 0
    program, *arguments = take_over.replace("FILE", str(manager.config)).split()
    clinic.in_node(manager, PROGRAMS / program, *arguments)
    clinic.start_manager()
    clinic.well(manager)
