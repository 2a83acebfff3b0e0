# SPDX-License-Identifier: Apache-2.0
"""Causes of silence, as they are made on one machine of a lab, and the name under which ``lb doctor`` must find each.

Rows of values: whoever runs them (a lab with or without a manager) has the services ``web`` (translated, VIP:80 to
8080) and ``files`` (not translated) of :mod:`tests.lab.services` on hosts whose agent takes tunnels off by BPF.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

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
    agent_anew: bool = False  #: it remembers what was done to it, and is started anew afterwards
    tun: bool = False  #: on the host whose agent takes tunnels off by a TUN device


WEB, FILES = frozenset({"web"}), frozenset({"files"})
BOTH = WEB | FILES
_NFT = (
    "nft -f - <<X\ntable inet lab_filter {{ chain input {{ type filter hook input priority 0; policy {}; {} }}; }}\nX"
)
_GONE = ("nft delete table inet lab_filter",)
_REST = "iif lo accept; ct state established,related accept; icmp type echo-request accept;"
_CONNTRACK = f"{sys.executable} {Path(__file__).parent / 'tools' / 'fill_conntrack.py'}"
#: Goes on by itself; whose it is stands in a file.
_FLUSH = "nft flush chain inet vipmux_agent translate 2>/dev/null"
_FIGHT = f"sh -c 'echo $$ >$DIRECTORY/fight; while {_FLUSH}; do sleep 0.2; done' >/dev/null 2>&1 &"

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
        ("ip route del default", "echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter"),
        ("echo 0 > /proc/sys/net/ipv4/conf/eth0/rp_filter", "ip route add default via 10.0.3.1 || true"),
        BOTH,
        mends=False,  # it wants the router's address
    ),
    Cause(
        "the rule for local addresses is gone",
        "local_table",
        ("ip rule del pref 0",),
        ("ip rule add pref 0 lookup local 2>/dev/null || true",),
        BOTH,
    ),
    Cause(
        "what the agent's table translates was flushed, and no agent puts it back",
        "daemon_down",
        ("nft flush chain inet vipmux_agent translate",),
        (),
        WEB,
        ("translation",),
        mends=False,
        agent_stopped=True,
    ),
    Cause(
        "another program changes the agent's table again and again",
        "repair_fight",
        (_FIGHT,),
        ("kill $(cat $DIRECTORY/fight)",),
        BOTH,
        ("table inet vipmux_agent", "stop that program"),
        mends=False,
        agent_anew=True,
    ),
    Cause(
        "a filter of others stands before the agent's, and takes all",
        "filter_ahead",
        ("tc filter add dev eth0 ingress prio 1 bpf bytecode '1,6 0 0 4294967295'",),
        ("tc filter del dev eth0 ingress prio 1 2>/dev/null || true",),
        BOTH,
        ("priority 1",),
        agent_anew=True,
    ),
    Cause(
        "the address of a MUX is one of the host's own",
        "accept_local",
        ("ip addr add 10.0.1.11/32 dev lo",),
        ("ip addr del 10.0.1.11/32 dev lo", "echo 0 > /proc/sys/net/ipv4/conf/eth0/accept_local"),
        BOTH,
        ("10.0.1.11",),
    ),
    Cause(
        "the table of connections is full",
        "conntrack_full",
        (_CONNTRACK,),
        (f"{_CONNTRACK} flush",),
        WEB,
        ("nf_conntrack_max=",),
        mends=False,  # the setting is the whole machine's, not the namespace's
    ),
    Cause(
        "the host's own rules drop protocol 4 before the agent gets it",
        "host_firewall_tunnel",
        (_NFT.format("drop", f"{_REST} tcp dport {{ 80, 8080 }} ct state new,untracked accept;"),),
        _GONE,
        BOTH,
        ("protocol 4",),
        tun=True,
    ),
)
