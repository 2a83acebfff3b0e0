# SPDX-License-Identifier: Apache-2.0
"""Checks of a MUX alone: the drop that keeps the kernel from its VIPs, who else answers for them, its table. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from typing import Any

from lb.daemon.kernel.table_names import AGENT_TABLE
from lb.doctor.model.facts import ArpClaim, DaemonSeen, NftTable, Row
from lb.doctor.model.findings import Finding, fault, ok, unknown, warning
from lb.model import Address, IoMode
from lb.model.prefixes import Prefix

#: Part of the flow table from which on it is nearly full.
FLOWS_WARNING = 0.9


def check_isolation(
    tables: Sequence[NftTable] | None,
    own: str,
    daemon: DaemonSeen,
    others: Collection[str],
    vips: Collection[str],
    *,
    forwards: bool = False,
) -> Iterator[Finding]:
    """``own``: the table of this MUX; ``others``: those of other MUXes that run on this machine. ``forwards``: this
    machine's kernel is a router (``ip_forward``)."""
    does = "answers clients with resets"
    if forwards:
        does = "sends their packets back to the router, which sends them here again (net.ipv4.ip_forward is 1)"
    if tables is None:
        yield unknown("isolation", "nftables was not looked at: needs root", "run `lb doctor` as root")
        return
    found = {table.name: table for table in tables if table.family == "inet"}
    yield from told_stale(stale(tables, {own, *others}))
    mine = found.get(own)
    by_tun = daemon.status.get("io") == "tun"
    if not daemon.answers:
        if mine is not None and daemon.may_ask:
            yield fault(
                "stale_table",
                f"lb-mux does not run, and the table inet {own} that it left drops the packets of "
                f"{_few(mine.addresses)}",
                f"start lb-mux, which takes it over; or, if this is no MUX any more: `nft delete table inet {own}`",
            )
        return
    if by_tun:
        yield ok("isolation", "in TUN mode no table is needed")
    elif mine is None:
        yield fault(
            "isolation",
            f"the table inet {own} is missing: this machine's own kernel {does}",
            "lb-mux puts it back by itself, unless another program removes it again and again: does one run `nft flush "
            "ruleset` (nftables.service, firewalld)? `journalctl -u lb-mux -n 20` may name it",
            about=[f"vip {vip}" for vip in vips],
        )
    else:
        open_ = uncovered(vips, mine.addresses)
        if open_:
            yield fault(
                "isolation",
                f"the table inet {own} does not hold {_few(open_)}: the kernel {does}",
                "lb-mux puts it back by itself: what says its log? `journalctl -u lb-mux -n 20`",
                about=[f"vip {vip}" for vip in open_],
            )
        else:
            yield ok("isolation", f"the table inet {own} keeps the kernel from {_many(len(set(vips)), 'VIP')}")


def uncovered(vips: Collection[str], elements: Collection[str]) -> list[str]:
    """VIPs that are not wholly within what a set holds, however nft writes it: single addresses, prefixes, ranges."""
    held = {4: _fewest(4, elements), 6: _fewest(6, elements)}
    lengths = {version: sorted({prefix.length for prefix in found}) for version, found in held.items()}

    def covered(vip: Prefix) -> bool:
        return any(
            vip.shortened(length) in held[vip.version] for length in lengths[vip.version] if length <= vip.length
        )

    return sorted(vip for vip in set(vips) if not covered(Prefix.of(ip_network(vip))))


def _fewest(version: int, elements: Collection[str]) -> set[Prefix]:
    """The fewest prefixes that are the same addresses."""
    found: list[Any] = []
    for element in elements:
        first, _, last = element.partition("-")
        if ip_network(first, strict=False).version == version:
            found += summarize_address_range(ip_address(first), ip_address(last)) if last else [ip_network(first)]
    return {Prefix.of(network) for network in collapse_addresses(found)}


def stale(tables: Sequence[NftTable], running: Collection[str]) -> list[NftTable]:
    """Tables of MUXes that are no more, on a MUX or on any other machine. ``running``: those of who runs here."""
    live = {("inet", name) for name in (*running, AGENT_TABLE)}
    return [table for table in tables if (table.family, table.name) not in live]


def told_stale(found: Sequence[NftTable]) -> Iterator[Finding]:
    for table in found:
        yield fault(
            "stale_table",
            f"the nftables table {table.family} {table.name} belongs to no MUX that runs here, and drops all packets "
            f"to {_few(table.addresses)}",
            f"`nft delete table {table.family} {table.name}`",
        )
    if not found:
        yield ok("stale_table", "no nftables table of a former MUX is left")


def check_vips_not_local(vips: Collection[str], addresses: Mapping[Address, str]) -> Iterator[Finding]:
    local = {str(address): interface for address, interface in addresses.items()}
    for vip in sorted(set(vips) & local.keys()):
        yield fault(
            "local_vip",
            f"the VIP {vip} is an address of this MUX, on {local[vip]}: its kernel takes the packets for itself",
            f"`ip addr del {vip} dev {local[vip]}`",
            cause="local_vip",
            about=[f"vip {vip}"],
        )
    if not set(vips) & local.keys():
        yield ok("local_vip", "no VIP is an address of this machine")


def check_claims(claims: Sequence[ArpClaim] | str, interface: str, asked: int) -> Iterator[Finding]:
    """Who answers ARP for VIPs on this machine's link; a text: why nobody was asked."""
    if isinstance(claims, str):
        yield unknown("vip_arp", f"nobody was asked on {interface} whether he answers for VIPs: {claims}")
        return
    for claim in claims:
        whose = f"{claim.neighbour} (MAC {claim.mac})" if claim.neighbour else f"a machine with MAC {claim.mac}"
        yield fault(
            "vip_arp",
            f"{whose} answers ARP for the VIP {claim.vip} on {interface}: packets for it go there, past every MUX",
            "there: `sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2`, or `ip addr del "
            f"{claim.vip} dev INTERFACE` where it is no host of its service",
            about=[f"vip {claim.vip}"],
        )
    if not claims and asked:
        yield ok("vip_arp", f"nobody on {interface} answers ARP for a VIP ({asked} asked for)")


#: Words of a refusal, and what ends it. ``{interface}`` and ``{file}`` are filled in.
_IO_REMEDIES = (
    ("another XDP program", "`ip link set dev {interface} xdp off`, if nobody needs it (`bpftool net` names it)"),
    ("the MTU of the interface", "`ip link set dev {interface} mtu 3822`"),
    ("its MTU is too large", "`ip link set dev {interface} mtu 1500`"),
    ("queues, more than", "`ethtool -L {interface} combined 64`, or more workers in {file}"),
    (
        "one at least for each of",
        "`ethtool -L {interface} combined N` with a queue for each worker, or fewer workers",
    ),
    ("packets of its VLANs", "`ethtool -K {interface} rxvlan off`"),
    ("no memory may be locked", "LimitMEMLOCK=infinity in the unit of lb-mux"),
    ("somebody else has a queue", "`ss --xdp -p` names who has it; end it"),
)


def check_io(status: Row, asked: IoMode, interface: str, file: str) -> Iterator[Finding]:
    """Whether the I/O mode is the one that was asked for, and as good as it can be."""
    got, mode, reason = (str(status.get(key) or "") for key in ("io", "mode", "reason"))
    if not got:
        return
    if asked is not IoMode.AUTO and got != asked.value:
        cure = next((cure for words, cure in _IO_REMEDIES if words in reason), "remove the cause")
        yield warning(
            "io",
            f'io = "{asked.value}" in {file}, and {got} serves: {reason}',
            f'{cure.format(interface=interface, file=file)}, and restart lb-mux; or write io = "{got}"',
        )
    elif "generic" in mode:
        yield warning(
            "io",
            f"AF_XDP on {interface} is run by the kernel's own code, not by the driver: no faster than packet, and "
            "super-packets are lost",
            f'io = "packet" in {file}; or a driver that runs XDP programs (`ethtool -i {interface}` names this one)',
        )
    elif "no busy polling" in mode:
        yield warning(
            "io",
            f"busy_poll = true in {file}, and the kernel refused it: {mode}",
            "Linux 5.11 or later has it; else write busy_poll = false",
        )
    else:
        yield ok("io", f"packets come and go by {mode or got} ({reason})")


def check_flows(status: Row) -> Iterator[Finding]:
    flows, capacity = status.get("flows"), status.get("flow_capacity")
    if not isinstance(flows, int) or not isinstance(capacity, int) or not capacity:
        return
    if flows > capacity * FLOWS_WARNING:
        yield warning(
            "flow_table",
            f"the flow table holds {flows:,} of {capacity:,} flows; when it is full, new flows are forwarded by "
            "Maglev "
            "alone and may move when backends change",
            "raise flows in [mux], and restart lb-mux",
        )
    else:
        yield ok("flow_table", f"the flow table holds {flows:,} of {capacity:,} flows")


def check_tunnels(status: Row, mtu: int) -> Iterator[Finding]:
    """What ICMP told the MUX of its tunnels; ``mtu``: what they should carry."""
    told = status.get("tunnels")
    if not isinstance(told, list):  # an older one
        return
    for row in told:
        address, words = row.get("address"), row.get("reason")
        if row.get("unreachable"):
            yield fault(
                "tunnel",
                f"packets in the tunnel to {address} do not arrive: {words}",
                f"let the tunnel through on the way from this MUX to {address}: routes, firewalls, and lb-agent there",
                about=[f"address {address}"],
            )
        elif isinstance(row.get("mtu"), int):
            yield from _narrow(str(address), row["mtu"], str(words), mtu)
    if not told:
        yield ok("tunnel", "no router and no host has complained of a tunnel")


def _narrow(address: str, found: int, words: str, mtu: int) -> Iterator[Finding]:
    """Senders are told what fits; of IPv6 nobody believes less than 1,280."""
    least = 1280 + (20 if ip_address(address).version == 4 else 40)
    lost = f"; packets of IPv6 need {least:,}, so that their largest are lost" if found < least else ""
    yield warning(
        "tunnel_mtu",
        f"the way to {address} carries {found:,} bytes, not {mtu:,}: {words}; senders are told{lost}",
        f"widen that way, or write mtu = {found} in [mux] and in the [agent] there, so that TCP begins with what fits",
        about=[f"address {address}"],
    )


def check_saturation(status: Row, where: str, top: str) -> Iterator[Finding]:
    """Whether the workers keep up; the MUX's own row, or what the manager has of it."""
    if "saturated" not in status:  # an older one
        return
    if status["saturated"]:
        yield fault(
            "saturated",
            f"{where} {status['saturated']}",
            f"`{top}` shows for whom they come; what is lost first, and what helps: docs/operating.md, Overload",
        )
    else:
        yield ok("saturated", f"{where} keeps up with what comes")


def _few(names: Collection[str]) -> str:
    shown = sorted(names)
    if not shown:
        return "no address"
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
