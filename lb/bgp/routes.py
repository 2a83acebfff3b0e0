# SPDX-License-Identifier: Apache-2.0
"""What to tell ExaBGP so that routers hear what they should: a pure plan from what is announced to what is wanted.

:func:`offers` says what each peer shall hear; :func:`plan` turns the difference to what it has heard into commands.
Everything that goes into a command is a number, an address or a checked community, so no text of an operator, a
manager or a router can become part of one. Used by :mod:`lb.bgp.ledger` and :mod:`lb.mux.announcer`, which ask about
what changed alone; the state of :class:`Wishes` is which announcements were read last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, NamedTuple

from lb.config import tables
from lb.errors import ConfigError
from lb.model import Address, AnnouncePeers, BgpFamily, BgpPeer, BgpSettings, Network
from lb.model.persistent_map import differences

#: RFC 8326: routers that honour it prefer every other path, and none is lost as long as there is another.
GRACEFUL_SHUTDOWN = "65535:0"
#: Prefixes in one command: ExaBGP's line stays far below its limit, and an error does not take too many along.
BATCH = 50
#: The attributes of a withdrawal, by family. It needs none, only that ExaBGP can read the line; and that does not know
#: what ``self`` is for IPv6 in a session over IPv4, and would leave the route.
WITHDRAWN = {4: "next-hop self", 6: "next-hop ::"}


@dataclass(frozen=True, slots=True)
class BgpRoute:
    """How one VIP is announced."""

    communities: tuple[str, ...] = ()  #: "65000:1", or large "65000:1:2"
    med: int | None = None
    prepend: int = 0  #: how often the own AS is put in front, towards external peers
    peers: AnnouncePeers = AnnouncePeers.ALL


class Key(NamedTuple):
    """One VIP towards one peer."""

    peer: Address
    vip: Network


@dataclass(frozen=True, slots=True)
class ExabgpCommand:
    """One line for ExaBGP and what is true once it was accepted: these keys have these attributes, or are gone."""

    line: str
    keys: tuple[Key, ...]
    attributes: str | None


@dataclass(frozen=True, slots=True)
class Speaks:
    """The MUX's side of its sessions."""

    settings: BgpSettings
    address: IPv4Address | None
    address6: IPv6Address | None = None


def family(vip: Network) -> BgpFamily:
    return BgpFamily.IPV4 if vip.version == 4 else BgpFamily.IPV6


def hears(peer: BgpPeer, vip: Network, route: BgpRoute) -> bool:
    """Whether the peer is one of those that shall hear of the VIP, and can."""
    wanted = route.peers is AnnouncePeers.ALL or route.peers.value == peer.kind.value
    return wanted and family(vip) in peer.families


def attributes(speaks: Speaks, peer: BgpPeer, vip: Network, route: BgpRoute, *, drained: bool) -> str:
    """The path attributes as ExaBGP reads them, the same text for the same attributes."""
    words = ["next-hop", _next_hop(speaks, peer, vip)]
    own = speaks.settings.asn
    if route.prepend and peer.asn != own:  # within one AS a path with our own number would be a loop
        words += ["as-path", "[", *[str(own)] * (route.prepend + 1), "]"]
    if route.med is not None:
        words += ["med", str(route.med)]
    communities = dict.fromkeys((*route.communities, *([GRACEFUL_SHUTDOWN] if drained else [])))
    for name, parts in (("community", 2), ("large-community", 3)):
        of_kind = [community for community in communities if community.count(":") == parts - 1]
        if of_kind:
            words += [name, "[", *of_kind, "]"]
    return " ".join(words)


def _next_hop(speaks: Speaks, peer: BgpPeer, vip: Network) -> str:
    """``self`` is the session's own address, which is of the wrong family for the other one's prefixes."""
    if peer.address.version == vip.version:
        return "self"
    return str(speaks.address if vip.version == 4 else speaks.address6)


def offers(speaks: Speaks, wanted: Mapping[Network, BgpRoute], *, drained: bool = False) -> dict[Key, str]:
    """What each peer shall hear: attributes by peer and VIP. Of thousands of VIPs most have the same."""
    found: dict[Key, str] = {}
    for peer in speaks.settings.peers:
        same: dict[tuple[int, BgpRoute], str | None] = {}
        for vip, route in wanted.items():
            kind = (vip.version, route)
            if kind not in same:
                heard = hears(peer, vip, route)
                same[kind] = attributes(speaks, peer, vip, route, drained=drained) if heard else None
            text = same[kind]
            if text is not None:
                found[Key(peer.address, vip)] = text
    return found


def plan(announced: Mapping[Key, str], wanted: Mapping[Key, str]) -> tuple[ExabgpCommand, ...]:
    """The commands that lead from one to the other: what must go goes first. Empty when they are equal.

    Changed attributes replace the announcement in one step; the route is never gone in between.
    """
    gone = {key: text for key, text in announced.items() if key not in wanted}
    fresh = {key: text for key, text in wanted.items() if announced.get(key) != text}
    return (*_commands("withdraw", gone), *_commands("announce", fresh))


def withdrawals(announced: Mapping[Key, str]) -> list[str]:
    """The lines that take everything back."""
    return [command.line for command in plan(announced, {})]


def _commands(verb: str, keys: Mapping[Key, str]) -> Iterator[ExabgpCommand]:
    groups: dict[tuple[Address, int, str], list[Key]] = {}
    for key, text in keys.items():
        said = text if verb == "announce" else WITHDRAWN[key.vip.version]
        groups.setdefault((key.peer, key.vip.version, said), []).append(key)
    for (peer, _, text), members in sorted(groups.items(), key=lambda item: _order(item[0])):
        ordered = sorted(members, key=lambda key: (key.vip.network_address.packed, key.vip.prefixlen))
        for start in range(0, len(ordered), BATCH):
            part = tuple(ordered[start : start + BATCH])
            line = f"neighbor {peer} {verb} attributes {text} nlri {' '.join(str(key.vip) for key in part)}"
            yield ExabgpCommand(line, part, text if verb == "announce" else None)


def _order(group: tuple[Address, int, str]) -> tuple[int, bytes, int, str]:
    peer, version, text = group
    return (peer.version, peer.packed, version, text)


# --- announcements as a manager sends them -----------------------------------------------------------------------


def parse_announcements(table: Mapping[str, Any]) -> dict[Network, BgpRoute]:
    """A node state's section ``announcements``; raises ConfigError with everything that is wrong in it."""
    mistakes: list[tuple[str, str]] = []
    found: dict[Network, BgpRoute] = {}
    before: tuple[object, BgpRoute | None] = {}, BgpRoute()  # ten thousand VIPs mostly are announced in the same way
    for vip, raw in table.items():
        network = _read_vip(vip, mistakes)
        if before[1] is None or raw != before[0]:
            before = raw, _read_route(vip, raw, mistakes)
        if network is not None and before[1] is not None:
            found[network] = before[1]
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _read_vip(vip: str, mistakes: list[tuple[str, str]]) -> Network | None:
    try:
        network = tables.parse_vip(vip)
    except ValueError as error:
        mistakes.append((f"announcements.{tables.show(vip)}", str(error)))
        return None
    if vip != str(network):  # else one VIP could be there twice
        mistakes.append((f"announcements.{tables.show(vip)}", f'must be written as "{network}"'))
    return network


def _read_route(vip: str, raw: Any, mistakes: list[tuple[str, str]]) -> BgpRoute | None:
    where = f"announcements.{tables.show(vip)}"
    if not isinstance(raw, dict):
        mistakes.append((where, f"must be a table, not {tables.show(raw)}"))
        return None
    checks = {
        "communities": tables.check_communities,
        "med": tables.between(0, 0xFFFFFFFF),
        "prepend": tables.between(0, 16),
        "peers": tables.word(AnnouncePeers),
    }
    given: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in checks:
            mistakes.append((f"{where}.{key}", "unknown key"))
        elif value is not None:
            try:
                given[key] = checks[key](value)
            except ValueError as error:
                mistakes.append((f"{where}.{key}", str(error)))
    return BgpRoute(**given)


class Wishes:
    """A manager's section ``announcements``, of which only what differs from the one taken last is read."""

    def __init__(self) -> None:
        self._taken: Mapping[str, Any] = {}

    def read(self, table: Mapping[str, Any]) -> tuple[dict[Network, BgpRoute], list[Network]]:
        """The VIPs that are new or announced in another way, and those that are gone. As :func:`parse_announcements`;
        nothing is taken yet."""
        put, gone = differences(self._taken, table)
        return parse_announcements(put), [ip_network(vip) for vip in gone]

    def take(self, table: Mapping[str, Any]) -> tuple[dict[Network, BgpRoute], list[Network]]:
        """The same, and what comes next is compared to it. The table is not changed any more."""
        found = self.read(table)
        self._taken = table
        return found


#: A comment, which ExaBGP answers as it does a command: is it there?
ALIVE = "# alive"
_SAFE = re.compile(r"[0-9a-z:./ \[\]-]*", re.ASCII)


def is_safe(lines: Iterable[str]) -> bool:
    """Whether lines hold nothing but what commands of ours are made of; asked once more before they leave."""
    return all(line == ALIVE or _SAFE.fullmatch(line) for line in lines)
