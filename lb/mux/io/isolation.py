# SPDX-License-Identifier: Apache-2.0
"""Keeps this machine's own kernel away from the VIPs' packets: a drop in nftables, for the interface of the MUX.

AF_PACKET gives the workers a copy of each frame; without this drop the kernel would answer clients itself (resets,
port or host unreachable) or forward the packet a second time. Packet taps come before the ingress hook, so the
workers see everything. Only destination addresses that are VIPs match: ARP, and SSH or BGP to the MUX's own
addresses, do not.

There are two chains over the same sets. The one at the interface's ingress drops as early as can be; yet a newer kernel
hooks it to the interface's name, and unhooks it while the interface has another. The one behind it (prerouting) knows
the interface by its number, which a rename leaves as it is: also where ``lb-mux`` was killed before.

The table is the kernel's: it stays when ``lb-mux`` is killed, is replaced in one transaction at the next start, and
is removed by a clean stop alone. While ``lb-mux`` runs, the table is kept: :class:`Isolation` is one of the parts of
:mod:`lb.daemon.kernel.keeper`. Texts are made and read by pure functions; :func:`apply` runs ``nft``.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from typing import Any

from lb.daemon.kernel import nftables
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.table_names import mux_table
from lb.daemon.kernel.watch import Area, OwnMarks
from lb.errors import IoError
from lb.model import Network
from lb.model.prefixes import Cover, CoverStep, Prefix

#: Before every chain that others may have at the same hook.
PRIORITY = -500
#: nft compares each prefix that it takes out of an interval set with all of them: so many cost as much as a new set.
GONE_MANY = 20


def install_text(table: str, interface: str | None, number: int, vips: Cover) -> str:
    """Replaces whatever an earlier life left behind, in one transaction.

    ``interface``: its name; None: it has another one now. ``number``: its index.
    """
    ipv4, ipv6 = _elements(vips)
    return f"""\
{remove_text(table)}table inet {table} {{
	comment "lb-mux: VIPs are served in userspace, never by this kernel"
	set vips4 {{
		type ipv4_addr
		flags interval
		{_initial(ipv4)}
	}}
	set vips6 {{
		type ipv6_addr
		flags interval
		{_initial(ipv6)}
	}}
{_ingress(interface) if interface is not None else ""}	chain prerouting {{
		type filter hook prerouting priority {PRIORITY}; policy accept;
		iif {number} ip daddr @vips4 counter drop
		iif {number} ip6 daddr @vips6 counter drop
	}}
}}
"""


def _ingress(interface: str) -> str:
    return f"""\
	chain ingress {{
		type filter hook ingress device "{interface}" priority {PRIORITY}; policy accept;
		ip daddr @vips4 counter drop
		ip6 daddr @vips6 counter drop
	}}
"""


def update_text(table: str, vips: Cover) -> str:
    """Makes the sets hold exactly these, in one transaction."""
    lines: list[str] = []
    for version, elements in zip((4, 6), _elements(vips), strict=True):
        lines.append(f"flush set inet {table} vips{version}")
        if elements:
            lines.append(f"add element inet {table} vips{version} {{ {', '.join(elements)} }}")
    return "\n".join(lines) + "\n"


def step_text(table: str, step: CoverStep) -> str:
    """As :func:`update_text`, by what differs."""
    lines = [
        f"{verb} element inet {table} vips{version} {{ {', '.join(elements)} }}"
        for verb, prefixes in (("delete", step.gone), ("add", step.come))
        for version, elements in zip((4, 6), _elements(prefixes), strict=True)
        if elements
    ]
    return "\n".join(lines) + "\n"


def remove_text(table: str) -> str:
    """Removes the table, also where there is none, and that of version 0.1, which was of the family netdev."""
    return "".join(f"add table {family} {table}\ndelete table {family} {table}\n" for family in ("netdev", "inet"))


def _elements(prefixes: Iterable[Prefix]) -> tuple[list[str], list[str]]:
    """Of IPv4 and of IPv6. An interval set refuses overlaps; a cover has none."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for prefix in prefixes:
        found[prefix.version].append(str(prefix.network))
    return found[4], found[6]


def _initial(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }}" if elements else ""


# -- reading what there is ----------------------------------------------------------------------------------------

_ELEMENTS = re.compile(r"^\t\telements = \{([^}]*)\}\n", re.MULTILINE)
_DROPS = re.compile(r"^\t\tip6? daddr @vips[46] counter drop #", re.MULTILINE)
#: An interface's number, as nft writes it: the name that it has now, or a number where there is no such interface.
_IIF = re.compile(r"^\t\tiif (\"[^\"]*\"|\d+) (?=ip6? daddr @vips[46] counter drop #)", re.MULTILINE)
#: Every table, chain, set and rule has a number at its end: ours are a table, two sets, and chains of two rules each.
_NUMBERED = re.compile(r" # handle \d+$", re.MULTILINE)
_OURS, _OF_A_CHAIN = 3, 3


def structure(listing: str) -> str:
    """All of a listing but the elements of its sets, and the name that the interface has at the moment: tables, chains
    and rules, with the kernel's numbers of them."""
    return _IIF.sub("\t\tiif ", _ELEMENTS.sub("", listing))


def elements(listing: str) -> frozenset[str]:
    """Those of both sets, as nft writes them: single addresses without a length."""
    return frozenset(word for found in _ELEMENTS.findall(listing) for word in re.split(r"[,\s]+", found) if word)


def amiss(listing: str, interface: str, now: str, reference: str | None, cover: Cover) -> str | None:
    """What happened to the table, as a sentence goes on; None where it is as it was made.

    ``now``: the name that the interface has; where it is another, the chain at the ingress may be missing.
    ``reference``: the :func:`structure` of an earlier listing, taken since the table was made; a table or rule that was
    made anew by somebody else has other numbers. None: there is no such listing yet; a rule that somebody else put
    between ours, or a chain of his in our table, is told by how many there are.
    """
    renamed, at_ingress = now != interface, "\tchain ingress {" in listing
    if "\tflags dormant" in listing:
        return "was switched off"
    if "\tchain prerouting {" not in listing or not (at_ingress or renamed):
        return "lost its chain"
    known_as = _IIF.findall(listing)
    if len(known_as) < 2 or len(_DROPS.findall(listing)) < 2 * at_ingress:
        return "lost its rules"
    if set(known_as) != {f'"{now}"'} or reference not in (None, structure(listing)):
        return "was changed"
    chains, here = 1 + at_ingress, f'hook ingress device "{interface}"' in listing
    whole = len(_NUMBERED.findall(listing)) == _OURS + chains * _OF_A_CHAIN
    if not whole or listing.count("policy accept;") != chains or not (here or renamed):
        return "was changed"
    return _elements_amiss(elements(listing), cover)


def _elements_amiss(found: frozenset[str], cover: Cover) -> str | None:
    wanted = frozenset(_as_nft_writes(prefix) for prefix in cover)
    if found == wanted:
        return None
    # They may only be written in another way, as an interval for example.
    present, should = _networks(found), frozenset(cover.networks)
    lost, more = len(should - present), len(present - should)
    if lost:
        return "lost all its VIPs" if lost == len(should) else f"lost {lost} of its {len(should)} prefixes of VIPs"
    return f"got {more} prefixes that are no VIPs" if more else None


def _as_nft_writes(prefix: Prefix) -> str:
    network = prefix.network
    return str(network.network_address) if prefix.single else str(network)


def _networks(written: Iterable[str]) -> frozenset[Network]:
    """The fewest that are the same addresses."""
    found: dict[int, list[Any]] = {4: [], 6: []}
    for word in written:
        first, _, last = word.partition("-")
        networks = summarize_address_range(ip_address(first), ip_address(last)) if last else [ip_network(first)]
        for network in networks:
            found[network.version].append(network)
    return frozenset(network for version in found.values() for network in collapse_addresses(version))


# -- the kernel ---------------------------------------------------------------------------------------------------


async def apply(text: str, own: OwnMarks | None = None) -> None:
    """Runs one transaction; it happens whole or not at all."""
    done = await nftables.run("-f", "-", text=text, own=own)
    if done.code:
        raise IoError(f"nft refused to isolate the VIPs: {done.complaint}")


async def listing(table: str) -> str | None:
    """What the kernel has of the table; None: nothing. Raises IoError."""
    done = await nftables.run("-s", "-a", "-n", "list", "table", "inet", table)
    if done.code and not done.absent:
        raise IoError(f"nft cannot list the table inet {table}: {done.complaint}")
    return None if done.code else done.output


class Isolation:
    """The drop of one MUX on one interface. Owns the table in the kernel, not its own survival."""

    areas = Area.NFTABLES | Area.LINK
    interval = 10.0

    def __init__(self, mux: str, interface: str, own: OwnMarks | None = None) -> None:
        self.table = mux_table(mux)
        self._interface = interface
        self._own = own
        self._lock = asyncio.Lock()  # the keeper must not look while a change is half done
        self._vips: frozenset[Network] = frozenset()
        self._cover = Cover()
        self._sure = False  # the kernel has the cover, as far as our own doing goes
        self._reference: str | None = None  # of the table that we made last
        self._well: tuple[int, str] | None = None  # the ruleset's number and the interface's name when all was well
        self._number: int | None = None  # of the interface that the table was made for
        #: A killed predecessor left it behind: then only a clean stop removes it, not a start that fails.
        self.inherited = False

    async def install(self, vips: Iterable[Network]) -> None:
        """At start."""
        async with self._lock:
            self._vips = frozenset(vips)
            self._cover = Cover(self._vips)
            self.inherited = await listing(self.table) is not None
            await self._whole()

    async def cover(self, vips: Iterable[Network]) -> None:
        """Covers exactly these. Before a publish give the old and the new ones, afterwards the new."""
        wanted = frozenset(vips)
        async with self._lock:
            if wanted == self._vips:
                return
            before, self._well = self._vips, None
            step = self._cover.step(wanted - before, before - wanted)
            try:
                self._vips = wanted
                if step.come or step.gone:
                    await self._step(step)
            except BaseException:  # what the kernel has now, only the kernel knows
                self._vips, self._cover, self._sure = before, Cover(before), False
                raise

    async def _step(self, step: CoverStep) -> None:
        """What differs; or everything, where that is quicker, or the kernel has something else than we believe.

        The table may be gone, the sets flushed, a run of nft cancelled half way: none of it is a reason to refuse
        VIPs. Without an interface there is nothing to isolate; it gets its table when it is there again.
        """
        sure, self._sure = self._sure, False
        if sure:
            text = step_text(self.table, step) if len(step.gone) <= GONE_MANY else update_text(self.table, self._cover)
            try:
                await apply(text, self._own)
            except IoError:
                pass
            else:
                self._sure = True
                return
        try:
            await self._whole()
        except IoError:
            if self._now() is not None:
                raise

    async def _whole(self) -> None:
        self._sure, self._reference, self._well = False, None, None
        named = _index(self._interface)
        if named is not None:
            self._number = named
        if self._number is None or self._now() is None:
            raise IoError(f"cannot isolate the VIPs: there is no interface {self._interface}")
        name = self._interface if named is not None else None
        await apply(install_text(self.table, name, self._number, self._cover), self._own)
        self._sure = True

    def _now(self) -> str | None:
        """The name that the interface has now; None: it is gone."""
        if _index(self._interface) is not None:
            return self._interface
        return _name(self._number) if self._number is not None else None

    # -- kept -------------------------------------------------------------------------------------------------------

    async def look(self) -> Sequence[Difference]:
        """Nothing where the interface is gone: the port opens everything anew when it comes back."""
        async with self._lock:
            number, now = nftables.generation(), self._now()
            if now is None or (self._sure and self._well == (number, now)):
                return ()
            found, became = await listing(self.table), "was removed"
            if found is not None:
                changed = amiss(found, self._interface, now, self._reference, self._cover)
                if changed is None:
                    self._sure, self._reference, self._well = True, structure(found), (number, now)
                    return ()
                became = changed
            return (Difference("nftables", f"table inet {self.table}", became),)

    async def put_back(self, differences: Sequence[Difference]) -> None:
        """Also when the interface was made anew: the old one took its hook along."""
        del differences  # it is one table
        async with self._lock:
            await self._whole()

    async def remove(self) -> None:
        """The last act of a clean stop, and the repair of a start in another mode."""
        async with self._lock:
            await apply(remove_text(self.table), self._own)
            self._vips, self._cover, self._sure = frozenset(), Cover(), False


def _index(interface: str) -> int | None:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


def _name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None
