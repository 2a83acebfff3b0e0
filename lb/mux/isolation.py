# SPDX-License-Identifier: Apache-2.0
"""Keeps this machine's own kernel away from the VIPs' packets: a drop in nftables, at the ingress of the interface.

AF_PACKET gives the workers a copy of each frame; without this drop the kernel would answer clients itself (resets,
port or host unreachable) or forward the packet a second time. Packet taps come before the ingress hook, so the
workers see everything. Only destination addresses that are VIPs match: ARP, and SSH or BGP to the MUX's own
addresses, do not.

The table is the kernel's: it stays when ``lb-mux`` is killed, is replaced in one transaction at the next start, and
is removed by a clean stop alone. Texts are made by pure functions; :func:`apply` runs ``nft``.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable

from lb.errors import FeatureError, IoError
from lb.model import Network
from lb.mux.prefixes import Cover, Prefix, Step

#: Before every chain that others may have at the same hook.
PRIORITY = -500
NFT_TIMEOUT = 10.0
#: nft compares each prefix that it takes out of an interval set with all of them: so many cost as much as a new set.
GONE_MANY = 20


def table_name(mux: str) -> str:
    """The table of one MUX; several may run on one machine, on interfaces of their own."""
    return "vipmux_" + re.sub(r"[^A-Za-z0-9_]", "_", mux)


def install_text(table: str, interface: str, vips: Cover) -> str:
    """Replaces whatever an earlier life left behind, in one transaction."""
    ipv4, ipv6 = _elements(vips)
    return f"""\
add table netdev {table}
delete table netdev {table}
table netdev {table} {{
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
	chain ingress {{
		type filter hook ingress device "{interface}" priority {PRIORITY}; policy accept;
		ip daddr @vips4 counter drop
		ip6 daddr @vips6 counter drop
	}}
}}
"""


def update_text(table: str, vips: Cover) -> str:
    """Makes the sets hold exactly these, in one transaction."""
    lines: list[str] = []
    for version, elements in zip((4, 6), _elements(vips), strict=True):
        lines.append(f"flush set netdev {table} vips{version}")
        if elements:
            lines.append(f"add element netdev {table} vips{version} {{ {', '.join(elements)} }}")
    return "\n".join(lines) + "\n"


def step_text(table: str, step: Step) -> str:
    """As :func:`update_text`, by what differs."""
    lines = [
        f"{verb} element netdev {table} vips{version} {{ {', '.join(elements)} }}"
        for verb, prefixes in (("delete", step.gone), ("add", step.come))
        for version, elements in zip((4, 6), _elements(prefixes), strict=True)
        if elements
    ]
    return "\n".join(lines) + "\n"


def remove_text(table: str) -> str:
    """Removes the table, also where there is none."""
    return f"add table netdev {table}\ndelete table netdev {table}\n"


def _elements(prefixes: Iterable[Prefix]) -> tuple[list[str], list[str]]:
    """Of IPv4 and of IPv6. An interval set refuses overlaps; a cover has none."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for prefix in prefixes:
        found[prefix.version].append(str(prefix.network))
    return found[4], found[6]


def _initial(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }}" if elements else ""


async def apply(text: str) -> None:
    """Runs one transaction; it happens whole or not at all."""
    code, errors = await _nft(text, "-f", "-")
    if code:
        raise IoError(f"nft refused to isolate the VIPs: {_first_line(errors)}")


async def exists(table: str) -> bool:
    """Whether the kernel has a table of that name."""
    code, _ = await _nft("", "list", "table", "netdev", table)
    return code == 0


async def _nft(text: str, *arguments: str) -> tuple[int, bytes]:
    """The exit code, and what it complained about."""
    if shutil.which("nft") is None:
        raise FeatureError("nft is not installed: install the package nftables")
    process = await asyncio.create_subprocess_exec(
        "nft",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(NFT_TIMEOUT):
            _, errors = await process.communicate(text.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise IoError(f"nft did not finish within {NFT_TIMEOUT:g} s") from None
    return process.returncode or 0, errors


def _first_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else "no reason given"


class Isolation:
    """The drop of one MUX on one interface. Owns the table in the kernel, not its own survival."""

    def __init__(self, mux: str, interface: str) -> None:
        self._table = table_name(mux)
        self._interface = interface
        self._vips: frozenset[Network] = frozenset()
        self._cover = Cover()
        #: A killed predecessor left it behind: then only a clean stop removes it, not a start that fails.
        self.inherited = False

    async def install(self, vips: Iterable[Network]) -> None:
        """At start, and again when the interface was created anew (the old one took its hook along)."""
        self._vips = frozenset(vips)
        self._cover = Cover(self._vips)
        self.inherited = await exists(self._table)
        await apply(install_text(self._table, self._interface, self._cover))

    async def cover(self, vips: Iterable[Network]) -> None:
        """Covers exactly these. Before a publish give the old and the new ones, afterwards the new."""
        wanted = frozenset(vips)
        if wanted == self._vips:
            return
        step = self._cover.step(wanted - self._vips, self._vips - wanted)
        try:
            if step.come or step.gone:
                await self._step(step)
        except BaseException:
            self._cover = Cover(self._vips)
            raise
        self._vips = wanted

    async def _step(self, step: Step) -> None:
        """What differs; or everything, where that is quicker, or the kernel has something else than we believe."""
        if len(step.gone) <= GONE_MANY:
            try:
                await apply(step_text(self._table, step))
            except IoError:
                pass
            else:
                return
        await apply(update_text(self._table, self._cover))

    def prefixes(self, most: int) -> list[Network] | None:
        """The fewest that cover the VIPs; None if they are more than ``most``."""
        return self._cover.networks if len(self._cover) <= most else None

    async def remove(self) -> None:
        """The last act of a clean stop, and the repair of a start in another mode."""
        await apply(remove_text(self._table))
        self._vips, self._cover = frozenset(), Cover()
