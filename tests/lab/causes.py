# SPDX-License-Identifier: Apache-2.0
"""Causes of silence, as they are made on one machine of a lab, and the name under which ``lb doctor`` must find each.

Rows of values: whoever runs them (a lab with or without a manager) has the services ``web`` (translated, VIP:80 to
8080) and ``files`` (not translated) of :mod:`tests.lab.services` on hosts whose agent takes tunnels off by BPF.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.services import FILES_VIP


@dataclass(frozen=True, slots=True)
class Cause:
    """One fault on the host that it is made on."""

    name: str  #: what was done
    cause: str  #: as the finding has it
    make: tuple[str, ...]  #: shell commands, in the host's namespace
    undo: tuple[str, ...]
    about: frozenset[str]  #: services that it hits
    words: tuple[str, ...] = ()  #: of the finding's text
    mends: bool = True  #: the first command of the remedy mends it, as it stands there
    agent_stopped: bool = False  #: an agent that runs puts it right within a second


WEB, FILES = frozenset({"web"}), frozenset({"files"})
BOTH = WEB | FILES
_NFT = (
    "nft -f - <<X\ntable inet lab_filter {{ chain input {{ type filter hook input priority 0; policy {}; {} }}; }}\nX"
)
_GONE = ("nft delete table inet lab_filter",)
_REST = "iif lo accept; ct state established,related accept; icmp type echo-request accept;"

CAUSES = (
    Cause("a rule drops the port", "host_firewall", (_NFT.format("accept", "tcp dport 8080 drop;"),), _GONE, WEB),
    Cause(
        "the policy is drop, and the port was forgotten",
        "host_firewall",
        (_NFT.format("drop", f"{_REST} tcp dport 80 accept;"),),
        _GONE,
        WEB,
        ("policy (drop) of chain input",),
    ),
    Cause(
        "the firewall takes new connections by ct state, and files is not tracked",
        "host_firewall_untracked",
        (_NFT.format("drop", f"{_REST} ct state new tcp dport {{ 80, 8080 }} accept;"),),
        _GONE,
        FILES,
        ("not tracked", "track = true"),
    ),
    Cause(
        "iptables drops the port",
        "host_firewall",
        ("iptables-nft -A INPUT -p tcp --dport 8080 -m comment --comment lab -j DROP",),
        ("iptables-nft -F INPUT",),
        WEB,
        ("--dport 8080",),
    ),
    Cause(
        "the policy of iptables is drop, with conntrack",
        "host_firewall_untracked",
        (
            "iptables-nft -A INPUT -i lo -j ACCEPT",
            "iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "iptables-nft -A INPUT -p tcp -m multiport --dports 80,8080 -m conntrack --ctstate NEW -j ACCEPT",
            "iptables-nft -P INPUT DROP",
        ),
        ("iptables-nft -P INPUT ACCEPT", "iptables-nft -F INPUT"),
        FILES,
    ),
    Cause(
        "answers are dropped on their way out",
        "host_firewall",
        (
            "nft -f - <<X\ntable ip lab_filter { chain output { type filter hook output priority 0; policy accept; "
            "tcp sport 8080 drop; }; }\nX",
        ),
        ("nft delete table ip lab_filter",),
        WEB,
        ("answers",),
    ),
    Cause(
        "the VIP was taken from lo",
        "daemon_down",
        (f"ip addr del {FILES_VIP}/32 dev lo",),
        (f"ip addr add {FILES_VIP}/32 dev lo label lo:vipmux scope host || true",),
        FILES,
        (FILES_VIP,),
        mends=False,
        agent_stopped=True,
    ),
    Cause(
        "nftables was flushed, and no agent puts it back",
        "daemon_down",
        ("nft flush ruleset",),
        (),
        WEB,
        ("nftables table inet vipmux_agent",),
        mends=False,
        agent_stopped=True,
    ),
    Cause(
        "clsact was removed, and no agent puts it back",
        "daemon_down",
        ("tc qdisc del dev eth0 clsact",),
        (),
        BOTH,
        ("BPF filter",),
        mends=False,
        agent_stopped=True,
    ),
    Cause(
        "no route leads back to the MUXes, and rp_filter is loose",
        "no_route_back",
        ("ip route del default", "sysctl -qw net.ipv4.conf.eth0.rp_filter=2"),
        ("sysctl -qw net.ipv4.conf.eth0.rp_filter=0", "ip route add default via 10.0.3.1 || true"),
        BOTH,
        mends=False,  # it wants the router's address
    ),
    Cause(
        "rp_filter of all is strict, and the route to the MUXes leads by another interface",
        "rp_filter",
        (
            "ip link add eth9 type veth peer name eth9peer; ip link set eth9peer up; ip link set eth9 up",
            "ip addr add 10.9.0.2/24 dev eth9; ip route add 10.0.1.0/24 via 10.9.0.1",
            "sysctl -qw net.ipv4.conf.all.rp_filter=1",
        ),
        ("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0", "ip link del eth9"),
        BOTH,
    ),
    Cause(
        "the rule for local addresses is gone",
        "local_table",
        ("ip rule del pref 0",),
        ("ip rule add pref 0 lookup local 2>/dev/null || true",),
        BOTH,
    ),
)
