# SPDX-License-Identifier: Apache-2.0
"""The host's nftables table, as text: port translation, MSS clamp, and no connection tracking where none is needed.

:func:`render` is pure and makes the whole table from values; :mod:`agent.host.linux` gives it to ``nft -f -``, which
replaces the old table in one transaction. Connections live in the kernel's conntrack, not in the table, so replacing
it breaks none.

Services may nest (one port of a VIP inside a prefix), and the most specific one decides. Services of the same
specificity cannot overlap, so they share a set and a rule; the rules come in the order of specificity. A translated
service stays in conntrack, which turns its replies back, and so does one whose configuration asks for it
(``track``), for the host's own rules. Any other one is exempt: a SYN flood must not fill the host's conntrack table.

What the host itself sends to a translated service of its own is translated as well (chain ``translate_own``). By the
MUXes it would come back with one of the host's own addresses as source, which no kernel accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from agent.rules.local_services import OwnService
from lb.daemon.kernel.table_names import AGENT_TABLE
from lb.model import Address, Encap, Network, tunnel_bytes

TABLE = AGENT_TABLE

#: Elements of a set on one line; nft reads long lines slowly, and people not at all.
_PER_LINE = 4


@dataclass(frozen=True, slots=True)
class TunnelGuard:
    """Where the kernel's own ipip device takes headers off, the table must check what BPF checks elsewhere."""

    device: str
    address: Address
    muxes: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Services of one specificity, family, protocol and treatment: one set, one rule."""

    name: str
    services: tuple[OwnService, ...]

    @property
    def version(self) -> int:
        return self.services[0].vip.version

    @property
    def family(self) -> str:
        return "ip" if self.version == 4 else "ip6"

    @property
    def protocol(self) -> str:
        return self.services[0].protocol.value

    @property
    def port(self) -> int | None:
        return self.services[0].port

    @property
    def tracked(self) -> bool:
        return self.services[0].tracked

    def arriving(self) -> str:
        return f"{self.family} daddr . {self.protocol} dport @{self.name}"

    def leaving(self) -> str:
        return f"{self.family} saddr . {self.protocol} sport @{self.name}"

    def set_lines(self) -> list[str]:
        elements = [f"{_network(own.vip)} . {_ports(own)}" for own in self.services]
        return [
            f"\tset {self.name} {{",
            f"\t\ttype ipv{self.version}_addr . inet_service",
            "\t\tflags interval",
            *_elements(elements),
            "\t}",
        ]


def render(
    services: Sequence[OwnService], addresses: Iterable[Address], guard: TunnelGuard | None = None
) -> str | None:
    """The table's text; None where the host serves nothing and so needs no table. ``addresses``: its DIPs."""
    if not services:
        return None
    treatment = list(_groups(services, "serve", _treatment))
    clamp = list(_groups(services, "mss", lambda own: str(_effective_mtu(own)), only="tcp"))
    translated = any(own.translated for own in services)
    lines = ["# made by lb-agent; changes are lost when it starts or reloads", f"table inet {TABLE} {{"]
    for group in (*treatment, *clamp):
        lines += group.set_lines()
    if guard is not None:
        lines += _guard_chains(guard, services)
    lines += _untracked_chains(treatment)
    if translated:
        lines += _translation_chains(treatment, {address.version: address for address in addresses})
    lines += _clamp_chain(clamp)
    lines.append("}")
    return "\n".join(lines) + "\n"


def replacement(text: str) -> str:
    """The transaction that puts the table in the place of whatever table of that name there is."""
    return removal() + text


def removal() -> str:
    """The transaction that removes the table, and succeeds where there is none."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n"


def segment_size(own: OwnService) -> int:
    """The largest TCP segment whose packet still fits the tunnel: the outer, inner and TCP headers take their part."""
    ip = 20 if own.vip.version == 4 else 40
    return own.fits - ip - 20


def _effective_mtu(own: OwnService) -> int:
    """With which IP in IP of the VIP's family would leave the same room."""
    return own.fits + tunnel_bytes(own.vip.version, Encap.IPIP)


def _treatment(own: OwnService) -> str:
    return str(own.port) if own.port is not None else "tracked" if own.track else "as_is"


def _groups(
    services: Sequence[OwnService], prefix: str, key: Callable[[OwnService], str], only: str | None = None
) -> Iterator[_Group]:
    """Sets by specificity, then by what ``key`` says must be equal within a rule."""
    chosen = [own for own in services if only in (None, own.protocol.value)]
    ranks = groupby(sorted(chosen, key=lambda own: own.specificity), key=lambda own: own.specificity)
    for rank, (_, members) in enumerate(ranks):
        kinds: dict[tuple[int, str, str], list[OwnService]] = {}
        for own in members:
            kinds.setdefault((own.vip.version, own.protocol.value, key(own)), []).append(own)
        for (version, protocol, value), same in sorted(kinds.items()):
            yield _Group(f"{prefix}{rank}_{protocol}{version}_{value}", tuple(same))


def _untracked_chains(groups: Iterable[_Group]) -> list[str]:
    """Tracked services leave the chain as they are, all others are exempt, in both directions. What the host itself
    sends to a VIP of its own goes out and comes in: half of a connection must not be tracked."""
    groups = list(groups)
    if all(group.tracked for group in groups):
        return []
    arriving = [f"\t\t{group.arriving()} {'return' if group.tracked else 'notrack return'}" for group in groups]
    leaving = [f"\t\t{group.leaving()} {'return' if group.tracked else 'notrack return'}" for group in groups]
    return [
        "\tchain untracked_in {",
        "\t\ttype filter hook prerouting priority raw; policy accept;",
        *arriving,
        "\t}",
        "\tchain untracked_out {",
        "\t\ttype filter hook output priority raw; policy accept;",
        *leaving,
        *arriving,
        "\t}",
    ]


def _translation_chains(groups: Iterable[_Group], dips: dict[int, Address]) -> list[str]:
    rules = []
    for group in groups:
        dip = dips.get(group.version)
        if group.port is None or dip is None:
            rules.append(f"\t\t{group.arriving()} return")
        else:
            target = f"{dip}:{group.port}" if group.version == 4 else f"[{dip}]:{group.port}"
            rules.append(f"\t\t{group.arriving()} dnat {group.family} to {target}")
    return [
        "\tchain translate {",
        "\t\ttype nat hook prerouting priority dstnat; policy accept;",
        *rules,
        "\t}",
        "\tchain translate_own {",
        "\t\ttype nat hook output priority -100; policy accept;",  # dstnat; nft knows that name elsewhere only
        *rules,
        "\t}",
    ]


def _clamp_chain(groups: Sequence[_Group]) -> list[str]:
    """Behind source translation (100), where replies have the VIP as source again; only what is larger is changed."""
    if not groups:
        return []
    rules = ["\t\ttcp flags & (syn|rst) != syn return"]
    for group in groups:
        size = segment_size(group.services[0])
        rules.append(f"\t\t{group.leaving()} tcp option maxseg size > {size} tcp option maxseg size set {size} return")
        rules.append(f"\t\t{group.leaving()} return")
    return ["\tchain clamp {", "\t\ttype filter hook postrouting priority 150; policy accept;", *rules, "\t}"]


def _guard_chains(guard: TunnelGuard, services: Sequence[OwnService]) -> list[str]:
    family = "ip" if guard.address.version == 4 else "ip6"
    protocol = "ip protocol 4" if guard.address.version == 4 else "ip6 nexthdr 41"  # nft's "ipip" is 94
    muxes = ", ".join(str(mux) for mux in guard.muxes if mux.version == guard.address.version)
    strangers = f" {family} saddr != {{ {muxes} }}" if muxes else ""  # with no MUX known, everybody is one
    vips = sorted({_network(own.vip) for own in services if own.vip.version == guard.address.version})
    return [
        "\tcounter untrusted_source {",
        "\t}",
        "\tcounter inner_not_vip {",
        "\t}",
        "\tset served {",
        f"\t\ttype ipv{guard.address.version}_addr",
        "\t\tflags interval",
        "\t\tauto-merge",
        *_elements(vips),
        "\t}",
        "\tchain tunnel {",
        "\t\ttype filter hook prerouting priority -310; policy accept;",
        f'\t\tiifname "{guard.device}" {family} daddr != @served counter name inner_not_vip drop',
        f"\t\t{protocol} {family} daddr {guard.address}{strangers} counter name untrusted_source drop",
        "\t}",
    ]


def _elements(elements: Sequence[str]) -> list[str]:
    if not elements:
        return []
    rows = [", ".join(elements[i : i + _PER_LINE]) for i in range(0, len(elements), _PER_LINE)]
    return ["\t\telements = {", *(f"\t\t\t{row}," for row in rows[:-1]), f"\t\t\t{rows[-1]}", "\t\t}"]


def _network(network: Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _ports(own: OwnService) -> str:
    return "0-65535" if own.ports.any else str(own.ports)
