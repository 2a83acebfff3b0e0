# SPDX-License-Identifier: Apache-2.0
"""Checks of a backend's host alone: what decides whether packets out of tunnels are taken in and answered. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Network

from lb.doctor.model.facts import DaemonSeen, Network, NftTable, OwnBackend
from lb.doctor.model.findings import Finding, fault, few, ok, unknown, warning

#: A path below /proc/sys/net in the form of sysctl(8), where a dot in an interface's name is written as a slash.
_DOTS = str.maketrans("/.", "./")
ARP = (("arp_ignore", 1), ("arp_announce", 2))


def check_rp_filter(network: Network, mode: str | None, own: Collection[OwnBackend] = ()) -> Iterator[Finding]:
    """Clients' packets come out of the tunnel on our interface; a strict filter wants their route to lead by it too."""
    name = network.interface.name
    setting = f"net.ipv4.conf.{name.replace('.', '/')}.rp_filter"
    value = effective(network, "rp_filter")
    if mode not in (None, "bpf"):
        yield ok("rp_filter", f"packets come out of a device of lb-agent's own ({mode}), with a loose filter")
    elif value is None:
        yield unknown("rp_filter", f"{setting} cannot be read")
    elif value == 1 and network.default_by != name:
        way = f"by {network.default_by}" if network.default_by else "nowhere"
        yield fault(
            "rp_filter",
            f"{setting} is 1 (strict) and the default route leads {way}: packets of clients, which come out of "
            "the tunnel "
            f"on {name}, are dropped without a word",
            f"`sysctl -w {setting}=2`, and keep it in /etc/sysctl.d/",
            cause="rp_filter",
            about=sorted({one.about for one in own}),
        )
    elif value == 1 and network.other_routes:
        others = ", ".join(sorted(network.other_routes))
        yield warning(
            "rp_filter",
            f"{setting} is 1 (strict), and some routes lead by {others}: packets of clients there are dropped",
            f"`sysctl -w {setting}=2`, and keep it in /etc/sysctl.d/",
        )
    elif value == 2 and network.default_by is None:
        yield warning(
            "rp_filter",
            f"{setting} is 2 (loose) and there is no default route: clients without a route back are dropped",
            f"add a default route, or `sysctl -w {setting}=0`",
        )
    else:
        words = {0: "off", 1: "strict, and clients' routes lead by the same interface", 2: "loose"}
        yield ok("rp_filter", f"reverse path filter of {name}: {words.get(value, value)}")


def check_arp(network: Network) -> Iterator[Finding]:
    """VIPs on lo: every interface would answer for them."""
    vips = sorted(network.labels)
    if not vips:
        yield ok("vip_arp", "no VIP is an address of this host")
        return
    wrong = [(key, least) for key, least in ARP if (effective(network, key) or 0) < least]
    if not wrong:
        yield ok("vip_arp", "this host does not answer ARP for its VIPs")
        return
    is_now = ", ".join(f"{key} is {effective(network, key) or 0}" for key, _ in wrong)
    does = "answers ARP for" if wrong[0][0] == "arp_ignore" else "asks ARP in the name of"
    yield fault(
        "vip_arp",
        f"this host {does} the VIP {vips[0]}{f' and {len(vips) - 1} more' if len(vips) > 1 else ''} on "
        f"{network.interface.name} ({is_now}): packets for it go here, past every MUX",
        "`sysctl -w " + " ".join(f"net.ipv4.conf.all.{key}={least}" for key, least in wrong) + "`; keep it in "
        "/etc/sysctl.d/",
        cause="answers_arp",
        about=[f"vip {vip}" for vip in vips],
    )


def effective(network: Network, key: str) -> int | None:
    """The larger of "all" and the interface's decides, for all three settings."""
    found = [network.sysctls.get(f"ipv4/conf/{name}/{key}") for name in ("all", network.interface.name)]
    seen = [value for value in found if value is not None]
    return max(seen) if seen else None


def check_decapsulation(
    network: Network, daemon: DaemonSeen, own: Collection[OwnBackend] = (), *, asked: str = "auto"
) -> Iterator[Finding]:
    """The way that the agent took is there, and is the good one, or that which its file asks for."""
    mode, name = daemon.status.get("mode"), network.interface.name
    if mode is None:
        return
    if mode == "bpf":
        if network.filter is None:
            yield unknown("decapsulation", f"the filters of {name} were not looked at", "run `lb doctor` as root")
        elif network.filter:
            yield ok("decapsulation", f"the BPF program of lb-agent is at the ingress of {name}")
        else:
            yield fault(
                "decapsulation",
                f"lb-agent's BPF filter is gone from the ingress of {name}: packets in tunnels are refused",
                "lb-agent puts it back by itself, unless somebody removes it again and again: who runs tc there?",
                about=sorted({one.about for one in own}),
            )
        return
    if mode == "tun" and asked != "tun":
        yield warning(
            "decapsulation",
            f"packets are taken out of tunnels by lb-agent itself (tun), slower, and only while it runs: "
            f"{daemon.status.get('reason')}",
            "allow lb-agent CAP_BPF or CAP_SYS_ADMIN, or load the module ipip; then restart it",
        )
    else:
        yield ok("decapsulation", f"packets are taken out of tunnels by {mode}: {daemon.status.get('reason')}")


def check_filters_ahead(network: Network, daemon: DaemonSeen, own: Collection[OwnBackend] = ()) -> Iterator[Finding]:
    """A filter of others before ours that accepts a packet keeps it from ours. The agent judges by what ours counts."""
    if daemon.status.get("mode") != "bpf" or not network.filter or not network.ahead:
        return
    name = network.interface.name
    told = daemon.status.get("filters_ahead") or ()
    who = " and ".join(map(str, told)) or f"a filter of priority {' and '.join(map(str, network.ahead))}"
    passes = daemon.status.get("filters_ahead_pass")
    remedy = "; ".join(f"tc filter del dev {name} ingress pref {priority}" for priority in network.ahead)
    if passes is False:
        yield fault(
            "filter_ahead",
            f"{who} stands before lb-agent's at the ingress of {name} and takes its packets: no tunnel packet has come "
            "to lb-agent's since it is there, and clients wait for an answer in vain",
            f"`{remedy}`, or give it a priority behind lb-agent's (`tc filter show dev {name} ingress` shows both)",
            cause="filter_ahead",
            about=sorted({one.about for one in own}),
        )
    elif passes is None:
        yield warning(
            "filter_ahead",
            f"{who} stands before lb-agent's at the ingress of {name} and may keep packets from it: none has come "
            "since it is there, nor shortly before",
            f"if clients are not answered: `{remedy}`, or give it a priority behind lb-agent's",
        )
    else:
        yield ok(
            "filter_ahead", f"{who} stands before lb-agent's at the ingress of {name} and lets packets go on to it"
        )


def check_strangers(daemon: DaemonSeen) -> Iterator[Finding]:
    """Tunnel packets from machines that are no MUXes of this host."""
    drops = daemon.status.get("drops")
    if not isinstance(drops, dict):
        return
    strangers = drops.get("untrusted_source", 0)
    accepted = ", ".join(map(str, daemon.status.get("muxes") or ())) or "none"
    if strangers:
        yield warning(
            "untrusted_source",
            f"{strangers:,} tunnel packets came from machines that are not among the MUXes of this host ({accepted})",
            "if one of them is a MUX, add its address to muxes in [agent], or have it join the manager; "
            "`tcpdump -ni any ip proto 4` shows who sends",
        )
    else:
        yield ok("untrusted_source", f"tunnel packets came from the MUXes alone ({accepted})")


def check_settings(raised: Mapping[str, int] | None, now: Mapping[str, int]) -> Iterator[Finding]:
    """What the agent remembers to have raised; what is in ``ARP`` and the path filter have checks of their own."""
    if raised is None:
        yield unknown("settings", "what lb-agent changed on this host cannot be read", "run `lb doctor` as root")
        return
    lowered = {
        name: (now[name], value)
        for name, value in raised.items()
        if name in now and now[name] < value and name.rpartition("/")[2] not in ("rp_filter", *(key for key, _ in ARP))
    }
    for name, (value, ours) in sorted(lowered.items()):
        setting = "net." + name.translate(_DOTS)
        yield warning(
            "settings",
            f"{setting} is {value}, and lb-agent had made it {ours}",
            f"`sysctl -w {setting}={ours}`, and see who sets it in /etc/sysctl.d/",
        )
    if not lowered:
        yield ok("settings", f"the settings that lb-agent raised are as it left them ({len(raised)})")


def check_translation(
    tables: Collection[NftTable] | None, daemon: DaemonSeen, own: str, lacking: Collection[OwnBackend] = ()
) -> Iterator[Finding]:
    """The agent's own nftables table, ``own``; ``lacking``: those that it does not translate, and should."""
    if not daemon.answers or not daemon.status.get("services"):
        return
    if tables is None:
        yield unknown("translation", "nftables was not looked at: needs root", "run `lb doctor` as root")
    elif any(table.family == "inet" and table.name == own for table in tables):
        if not lacking:
            yield ok("translation", f"the nftables table inet {own} is there")
            return
        yield fault(
            "translation",
            f"the nftables table inet {own} was changed: it does not translate what is for "
            f"{', '.join(sorted({one.label for one in lacking})[:4])} any more",
            f"`nft delete table inet {own}`, upon which lb-agent makes it anew; find who changed it",
            cause="table_changed",
            about=sorted({one.about for one in lacking}),
        )
    else:
        yield fault(
            "translation",
            f"the nftables table inet {own} is gone: ports are not translated and large segments are lost",
            "lb-agent puts it back by itself, unless another program removes it again and again: does one run `nft "
            "flush ruleset` (nftables.service, firewalld)?",
            about=sorted({one.about for one in lacking}),
        )


def lost(
    network: Network,
    tables: Collection[NftTable] | None,
    own: Collection[OwnBackend],
    table: str,
    lacking: Collection[OwnBackend] = (),
) -> dict[str, list[OwnBackend]]:
    """What a host lacks of all that an agent who does not run left in its kernel, and who needs that. ``lacking``:
    those that the table does not translate, and should."""
    found: dict[str, list[OwnBackend]] = {}
    if tables is not None and not any((one.family, one.name) == ("inet", table) for one in tables):
        found[f"the nftables table inet {table}"] = [one for one in own if one.port is not None]
    elif lacking:
        labels = few(sorted({one.label for one in lacking}))
        found[f"the translation of {labels} in the nftables table inet {table}"] = list(lacking)
    if network.filter is False:
        found[f"the BPF filter at the ingress of {network.interface.name}"] = list(own)
    for one in own:
        held = isinstance(one.vip, IPv4Network) and one.vip.prefixlen == 32  # others are held by a route alone
        if held and one.port is None and one.vip.network_address not in network.addresses:
            found.setdefault(f"the VIP {one.vip.network_address} on lo", []).append(one)
    return found if own else {}


def check_backends(daemon: DaemonSeen) -> Iterator[Finding]:
    """What the agent's probes say of this host's processes."""
    down: dict[tuple[str, str], list[str]] = {}
    for row in daemon.backends:
        label = f"{row.get('service')}/{row.get('name')}"
        where = f"{row.get('address')}:{row.get('port')}"
        if row.get("health") == "down":
            down.setdefault((where, str(row.get("reason"))), []).append(label)
        elif row.get("health") == "up":
            yield ok("backend", f"{label} at {where} answers its probe")
    for (where, reason), labels in down.items():
        does = "does not answer its probe" if len(labels) == 1 else "do not answer their probes"
        yield fault(
            "backend",
            f"{few(labels)} at {where} {does}: {reason}",
            f"is the process running? `ss -lnp` shows who listens; meanwhile `lb drain backend {labels[0]}`",
            about=[f"backend {label}" for label in labels],
        )
