# SPDX-License-Identifier: Apache-2.0
"""Fifty set-ups that are well: hosts, MUXes and fleets of many kinds, in none of which ``lb doctor`` may find anything.

The machine's examination is the real one, by a real file; what it sees of the machine is given. What a finding of a
healthy machine would be worth is nothing: whoever reads it learns to pass over the next one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lb.daemon.kernel.table_names import mux_table
from lb.doctor import examine, fleet
from lb.doctor.checks import reception
from lb.doctor.collect import kernel, this_machine
from lb.doctor.firewall.packet_filter import Ruleset, read
from lb.doctor.model.facts import (
    Arrival,
    CertificateFile,
    Clock,
    ConntrackUse,
    DaemonSeen,
    Disk,
    Interface,
    Kernel,
    ListeningSocket,
    Network,
    NftTable,
    Rights,
    Role,
    Row,
    Twin,
    WayAnswer,
)
from lb.doctor.model.facts import Path as Way
from lb.doctor.model.findings import Finding, Severity, explained
from lb.doctor.path_tests import explain as paths
from lb.doctor.path_tests import send as reach
from tests.lb.doctor.firewall.test_packet_filter import ACCEPT, DPORT, DROP, IIF, SADDR, STATE, jump, match

NOW = 1.7e9
EVERY = (1 << 41) - 1  #: all capabilities
MANAGER = {"url": "https://10.0.1.9:9740", "connected": True, "problem": None, "refused": None}
MUXES = ["10.0.1.11", "10.0.1.12"]
HOST = "10.0.3.21"
LINK = Interface("eth0", True, True, True, 1500, False)


def service(name: str, vip: str, *, protocol: str = "tcp", port: str = "80", **keys: Any) -> Row:
    return {"name": name, "vip": vip, "protocol": protocol, "port": port, "translated_to": None, **keys}


def backend(of: Row, **keys: Any) -> Row:
    row = {"service": of["name"], "name": f"{of['name']}-1", "address": HOST, "port": of["translated_to"] or of["port"]}
    return {**row, "state": "up", "health": "up", "reason": "connected", **keys}


WEB = service("web", "203.0.113.10", translated_to=8080)
FILES = service("files", "203.0.113.20")


@dataclass(frozen=True)
class Machine:
    """What is seen of one machine; by default a host with two services, or a MUX of them."""

    services: tuple[Row, ...] = (WEB, FILES)
    backends: tuple[Row, ...] | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    link: Interface = LINK
    sysctls: Mapping[str, int] = field(default_factory=dict)
    rules: Ruleset = field(default_factory=Ruleset)
    settings: str = ""  #: more lines of its table in the file
    tables: str = ""  #: more tables of the file
    managed: bool = True
    peers: tuple[Row, ...] = ()
    elements: tuple[str, ...] | None = None  #: of the MUX's nftables set
    others: tuple[Twin, ...] = ()
    foreign: tuple[NftTable, ...] = ()
    listeners: tuple[ListeningSocket, ...] = (
        ListeningSocket("tcp", ip_address("0.0.0.0"), 80),
        ListeningSocket("tcp", ip_address("0.0.0.0"), 8080),
    )

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(map(backend, self.services)) if self.backends is None else self.backends


def chain(
    *rules: list[Any], hook: str = "input", policy: str = "accept", table: str = "filter", **keys: Any
) -> Ruleset:
    """A ruleset of one base chain, and the chain ``other`` that it may jump to."""
    place = {"family": "ip", "table": table}
    base = {**place, "name": hook, "type": "filter", "hook": hook, "prio": 0, "policy": policy, **keys}
    items: list[dict[str, Any]] = [{"chain": base}, {"chain": {**place, "name": "other"}}]
    items += [{"rule": {**place, "chain": hook, "handle": n, "expr": rule}} for n, rule in enumerate(rules, 1)]
    items.append(
        {"rule": {**place, "chain": "other", "handle": 99, "expr": [match(DPORT, {"set": [80, 8080]}), ACCEPT]}}
    )
    return read(items)


ESTABLISHED = [match(STATE, ["established", "related"], "in"), ACCEPT]
LOOPBACK = [match(IIF, "lo"), ACCEPT]
OPEN = [match(DPORT, {"set": [22, 80, 8080]}), ACCEPT]
SOME = match(SADDR, {"prefix": {"addr": "198.51.100.0", "len": 24}})
TRACKED = service("files", "203.0.113.20", track=True)
DNS = service("dns", "203.0.113.53", protocol="udp", port="53", translated_to=5353)
DNS_LISTENS = (ListeningSocket("udp", ip_address("10.0.3.21"), 5353),)
LO = {"addresses": {ip_address(HOST): "eth0", ip_address("203.0.113.20"): "lo"}}
ARP = {"ipv4/conf/all/arp_ignore": 1, "ipv4/conf/all/arp_announce": 2}

HOSTS: dict[str, Machine] = {
    "two services": Machine(),
    "no service yet": Machine(()),
    "translated alone": Machine((WEB,)),
    "VIPs on lo that answer no ARP": Machine((FILES,), network=LO, sysctls=ARP),
    "UDP, translated": Machine((DNS,), listeners=DNS_LISTENS),
    "UDP without a probe": Machine(
        (DNS,), (backend(DNS, health="unknown", reason="not probed"),), listeners=DNS_LISTENS
    ),
    "a range of ports": Machine((service("range", "203.0.113.11", port="8000-8099"),)),
    "any port of a prefix": Machine((service("all", "203.0.113.128/25", port="0"),)),
    "IPv6": Machine((service("six", "2001:db8::10"),)),
    "a backend that drains": Machine((WEB,), (backend(WEB, state="drain"),)),
    "no manager": Machine(managed=False),
    "jumbo frames": Machine(link=replace(LINK, mtu=9000), settings="mtu = 9000"),
    "an MTU with room": Machine(link=replace(LINK, mtu=9000)),
    "a bridge for containers, and forwarding": Machine(
        network={"other_routes": frozenset({"docker0"})}, sysctls={"ipv4/ip_forward": 1, "ipv4/conf/eth0/rp_filter": 2}
    ),
    "two NICs, a loose filter": Machine(
        network={"other_routes": frozenset({"eth1"})}, sysctls={"ipv4/conf/eth0/rp_filter": 2}
    ),
    "two NICs, the default route by the other, no filter": Machine(network={"default_by": "eth1"}),
    "a strict filter with one NIC": Machine(sysctls={"ipv4/conf/all/rp_filter": 1}),
    "policy drop, and both ports open": Machine(rules=chain(LOOPBACK, ESTABLISHED, OPEN, policy="drop")),
    "ports opened in a chain of their own": Machine(rules=chain(LOOPBACK, [jump("other")], policy="drop")),
    "new connections alone, of services that are tracked": Machine(
        (WEB, TRACKED), rules=chain(ESTABLISHED, [match(STATE, "new", "in"), *OPEN], policy="drop")
    ),
    "an attacker's network shut out": Machine(rules=chain([SOME, DROP])),
    "other ports closed": Machine(rules=chain([match(DPORT, {"set": [25, 3306]}), DROP])),
    "a forward chain that drops, as Docker's": Machine(rules=chain(hook="forward", policy="drop")),
    "tunnels by a raw socket, by wish": Machine(
        status={"mode": "tun", "reason": 'decap = "tun"'}, settings='decap = "tun"', network={"filter": None}
    ),
    "repairs of long ago": Machine(
        status={"kernel": [{"name": "table", "count": 3, "last": NOW - 90_000, "became": "was gone"}]}
    ),
}

UP_PEER = {"name": "tor1", "address": "10.0.1.1", "state": "established", "error": None}
BGP = '[bgp]\nasn = 64512\n[[bgp.peer]]\nname = "tor1"\naddress = "10.0.1.1"\nasn = 64500\n'
NEIGHBOURS = (service("a", "203.0.113.40"), service("b", "203.0.113.41"), service("c", "203.0.113.42"))

MUX_SETUPS: dict[str, Machine] = {
    "two services": Machine(),
    "no service yet": Machine(()),
    "BGP": Machine(tables=BGP, peers=(UP_PEER,)),
    "neighbouring VIPs, kept as an interval": Machine(NEIGHBOURS, elements=("203.0.113.40-203.0.113.42",)),
    "neighbouring VIPs, kept as prefixes": Machine(NEIGHBOURS, elements=("203.0.113.40/31", "203.0.113.42")),
    "a prefix and an address in it": Machine(
        (service("all", "203.0.113.128/25", port="0"), service("one", "203.0.113.130")), elements=("203.0.113.128/25",)
    ),
    "IPv6": Machine((service("six", "2001:db8::10"),), elements=("2001:db8::10",)),
    "UDP with probes": Machine((DNS,), (backend(DNS, reason="answered"),)),
    "io = tun": Machine(
        status={"io": "tun", "mode": "tun", "reason": "as configured"}, settings='io = "tun"', elements=()
    ),
    "io = xdp by the driver": Machine(
        status={"io": "xdp", "mode": "xdp, native, zero-copy", "reason": "as configured"}, settings='io = "xdp"'
    ),
    "jumbo frames": Machine(link=replace(LINK, mtu=9000), settings="mtu = 9000"),
    "another MUX on another interface": Machine(
        others=(Twin(99, "/etc/vipmux/second.toml", "second"),), foreign=(NftTable("inet", mux_table("second")),)
    ),
    "tables of others": Machine(foreign=(NftTable("inet", "vipmux_agent"),)),
    "without a manager": Machine(managed=False),
    "a backend that drains": Machine((WEB,), (backend(WEB, state="drain"),)),
}


def look_at(seen: Machine, role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the examination sees is this."""
    name = "mux1" if role is Role.MUX else "host1"
    address = ip_address("10.0.1.11" if role is Role.MUX else HOST)
    status: dict[str, Any] = {"kernel": [], "manager": MANAGER if seen.managed else None}
    if role is Role.MUX:
        status |= {"io": "packet", "mode": "AF_PACKET", "reason": "chosen", "flows": 7, "flow_capacity": 1000}
        status |= {"saturated": None, "unreachable": {}}
    else:
        status |= {"mode": "bpf", "reason": "chosen", "services": 2, "muxes": MUXES, "drops": {"untrusted_source": 0}}
    status |= seen.status
    sysctls = {f"ipv4/conf/{of}/{key}": 0 for of in ("all", "eth0") for key in this_machine.SETTINGS} | seen.sysctls
    network = Network(
        seen.link, **{"addresses": {address: "eth0"}, "default_by": "eth0", "filter": True, "local_rule": True}
        | seen.network, sysctls=sysctls, labels=frozenset(
            one for one, by in dict(seen.network.get("addresses", {})).items() if by == "lo" and one.version == 4
        ),
    )  # fmt: skip
    daemon = DaemonSeen("s", True, None, True, 77, EVERY, status, seen.services, seen.rows, seen.peers)
    held = tuple(str(row["vip"]) for row in seen.services) if seen.elements is None else seen.elements
    own = (
        [] if status.get("io") == "tun" or role is Role.AGENT else [NftTable("inet", mux_table(name), frozenset(held))]
    )
    tables = [*own, *seen.foreign, *([NftTable("inet", "vipmux_agent")] if role is Role.AGENT else [])]
    fakes: dict[Any, dict[str, Callable[..., Any]]] = {
        this_machine: {
            "rights": lambda: Rights(True, EVERY),
            "daemon": lambda *_: daemon,
            "network": lambda *_, **__: network,
            "twins": lambda wanted: [Twin(77, "x.toml", name), *seen.others] if wanted is role else [],
            "tables": lambda: tables,
            "kernel": lambda: Kernel("6.1.0", True, None),
            "disk": lambda path: Disk(path, 1 << 34, 1 << 35, 1000, 2000),
            "certificate": lambda file: CertificateFile(
                str(file), f"{role.value}:{name}", NOW - 86400, NOW + 20 * 86400
            ),
            "clock": lambda url: Clock(NOW, True, 0.0 if url else None, url),
            "private_in": lambda _: [],
            "user_of": lambda _: 0,
            "values": lambda _: {},
        },
        kernel: {
            "conntrack": lambda: ConntrackUse(100, 65536),
            "ruleset": lambda: seen.rules,
            "listeners": lambda: frozenset(seen.listeners),
            "arrivals": lambda _, pairs: [Arrival(source, to, True, "eth0") for source, to in pairs],
        },
        reception: {"untranslated": lambda *_: []},
        reach: {
            "claims": lambda *_: [],
            "paths": lambda targets, _, mtu: [_answers(target, mtu) for target in targets],
            "dial_bgp": _never,
        },
    }
    for module, functions in fakes.items():
        for function, fake in functions.items():
            monkeypatch.setattr(module, function, fake)


def _answers(target: paths.WayTarget, mtu: int) -> Way:
    yes = WayAnswer.ACCEPTED
    return Way(target, mtu, yes, yes, None, yes, yes, yes)


def _never(*_: object) -> None:
    raise AssertionError("a session that is up is not dialled")


def wrong(found: list[Finding]) -> list[str]:
    return [
        f"{one.severity.value} {one.check}: {one.what}" for one in explained(found) if one.severity is not Severity.OK
    ]


@pytest.mark.parametrize("setup", HOSTS)
def test_a_host_that_is_well_gives_no_finding(setup: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = HOSTS[setup]
    text = f'[agent]\nname = "host1"\naddress = "{HOST}"\ninterface = "eth0"\n{seen.settings}\n'
    text += "" if seen.managed else f"muxes = {MUXES}\n"
    assert wrong(examined(seen, Role.AGENT, text, tmp_path, monkeypatch)) == []


@pytest.mark.parametrize("setup", MUX_SETUPS)
def test_a_mux_that_is_well_gives_no_finding(setup: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = MUX_SETUPS[setup]
    text = f'[mux]\nname = "mux1"\naddress = "10.0.1.11"\ninterface = "eth0"\nseed = "{"0f" * 16}"\n{seen.settings}\n'
    assert wrong(examined(seen, Role.MUX, text, tmp_path, monkeypatch)) == []


def examined(seen: Machine, role: Role, text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    file = directory / "node.toml"
    file.write_text(f'{text}state_dir = "{directory}"\n{seen.tables}')
    look_at(seen, role, monkeypatch)
    found = examine.machine(str(file), manager=MANAGER["url"] if seen.managed else None)
    assert len(found) > 10
    return found


# --- fleets ----------------------------------------------------------------------------------------------------------

NODE = {"state": "ready", "since": NOW - 60, "refused": None, "generation": 7, "wanted": 7, "clock_skew": 0.1}
NODE |= {"certificate_expires": NOW + 20 * 86400, "differs": None, "repaired": None, "drain": None, "saturated": None}


def a_fleet() -> dict[str, Any]:
    """Two MUXes, two hosts, one service, as the manager's API tells of them."""
    muxes = [{**NODE, "name": f"mux{n}", "address": f"10.0.1.1{n}", "peers": [dict(UP_PEER)]} for n in (1, 2)]
    agents = [{**NODE, "name": f"host{n}", "address": f"10.0.3.2{n}"} for n in (1, 2)]
    both = ["mux1", "mux2"]
    web = {"name": "web", "vip": "203.0.113.10", "state": "up", "backends": 2, "healthy": 2, "note": None}
    rows = [
        {"service": "web", "name": f"web-{n}", "address": f"10.0.3.2{n}", "port": "8080", "agent": f"host{n}"}
        | {"state": "up", "weight": 1, "reason": "connected"}
        for n in (1, 2)
    ]
    told = [
        {"vip": "203.0.113.10/32", "mux": mux, "wanted": True, "peer": "tor1", "state": "announced", "reason": None}
        for mux in both
    ]
    looked = [{"kind": "mux", "name": mux, "findings": [], "fine": 30, "left_out": 0, "error": None} for mux in both]
    return {
        "status": {"now": NOW, "refusals": [], "history": None, "held": []},
        "muxes": muxes, "agents": agents, "services": [{**web, "announced_by": both, "wanted_by": both}],
        "backends": rows, "announcements": told, "examination": looked,
    }  # fmt: skip


def one_mux(found: dict[str, Any]) -> None:
    del found["muxes"][1], found["announcements"][1]
    found["services"][0] |= {"announced_by": ["mux1"], "wanted_by": ["mux1"]}


def without_bgp(found: dict[str, Any]) -> None:
    for row in found["muxes"]:
        row["peers"] = []
    for row in found["announcements"]:
        row |= {"peer": None, "state": None, "reason": "it speaks no BGP, so what it has live counts"}


def drained_backend(found: dict[str, Any]) -> None:
    found["backends"][0] |= {"state": "drain", "reason": "drained by operator:ada"}


def down_by_wish(found: dict[str, Any]) -> None:
    found["backends"][0] |= {"state": "down", "reason": 'its table says state = "down"'}
    found["services"][0] |= {"state": "degraded", "healthy": 1}


def taken_out(found: dict[str, Any]) -> None:
    found["backends"][0] |= {"state": "down", "reason": "taken out by operator:ada"}
    found["services"][0] |= {"state": "degraded", "healthy": 1}


def weight_0(found: dict[str, Any]) -> None:
    found["backends"][0]["weight"] = 0


def being_installed(found: dict[str, Any]) -> None:
    found["backends"][0] |= {"state": "installing", "reason": "agent host1 has not installed it yet"}


def retiring(found: dict[str, Any]) -> None:
    found["services"].append({"name": "old", "state": "retiring", "backends": 1, "healthy": 0, "note": None})


def no_services(found: dict[str, Any]) -> None:
    found["services"], found["backends"], found["announcements"] = [], [], []


def an_older_manager(found: dict[str, Any]) -> None:
    found["examination"] = []
    for row in (*found["muxes"], *found["agents"]):
        for key in ("differs", "repaired", "saturated", "clock_skew"):
            row.pop(key, None)


def refused_long_ago(found: dict[str, Any]) -> None:
    row = {"node": "mux:mux3", "address": "10.0.1.13", "reason": "no certificate", "duplicate": False}
    found["status"]["refusals"] = [{**row, "first": NOW - 900, "last": NOW - 600, "count": 3}]


FLEETS: dict[str, Callable[[dict[str, Any]], None]] = {
    "two MUXes": lambda _: None,
    "one MUX by wish": one_mux,
    "static routes": without_bgp,
    "a backend that drains": drained_backend,
    "a backend that its table takes out": down_by_wish,
    "a backend that an operator took out": taken_out,
    "a backend of weight 0": weight_0,
    "a host that is being set up": being_installed,
    "a service that goes": retiring,
    "nothing to serve yet": no_services,
    "an older manager": an_older_manager,
    "a stranger some time ago": refused_long_ago,
}


@pytest.mark.parametrize("setup", FLEETS)
def test_a_fleet_that_is_well_gives_no_finding(setup: str) -> None:
    found = copy.deepcopy(a_fleet())
    FLEETS[setup](found)
    assert wrong(fleet.examine(lambda what: found[what])) == []


def test_they_are_fifty() -> None:
    assert len(HOSTS) + len(MUX_SETUPS) + len(FLEETS) >= 50
