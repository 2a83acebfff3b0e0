# SPDX-License-Identifier: Apache-2.0
"""Looks at what this kernel does with packets: filters, sockets, connections, routes. Reads only, and judges nothing.

As :mod:`lb.doctor.collect.this_machine`: plain calls, and what may not be seen comes back as None.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from lb.doctor.collect.this_machine import NFT_TIMEOUT, values
from lb.doctor.firewall import iptables, packet_filter
from lb.doctor.model.facts import Arrival, ConntrackUse, ListeningSocket

#: Between two looks at counters, seconds.
PAUSE = 0.5
_NET = Path("/proc/thread-self/net")
_LISTENS, _UNCONNECTED = "0A", "07"  # states of TCP and UDP sockets
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


# --- packet filters --------------------------------------------------------------------------------------------------


def ruleset() -> packet_filter.Ruleset | None:
    """Of nftables and iptables, IPv4 and IPv6; None: may not be looked at, or there is no nft."""
    listed = _run("nft", "-j", "list", "ruleset")
    if listed is None:
        return None
    try:
        items = json.loads(listed).get("nftables", [])
    except (ValueError, AttributeError):
        return None
    found = packet_filter.read(item for item in items if isinstance(item, dict))
    for family, program in (("ip", "iptables-save"), ("ip6", "ip6tables-save")):
        saved = _run(program)
        if saved:
            found = iptables.merged(found, saved, family)
    return found


def _run(program: str, *arguments: str) -> str | None:
    path = shutil.which(program, path=_PATH)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=NFT_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


# --- sockets ---------------------------------------------------------------------------------------------------------


def listeners() -> frozenset[ListeningSocket] | None:
    """All of this network namespace, whoever has them."""
    found: set[ListeningSocket] = set()
    try:
        for protocol, wanted in (("tcp", _LISTENS), ("udp", _UNCONNECTED)):
            for family in ("", "6"):
                file = _NET / f"{protocol}{family}"
                if file.exists():
                    found |= set(read_sockets(file.read_text(), protocol, wanted))
    except OSError:
        return None
    return frozenset(found)


def read_sockets(text: str, protocol: str, wanted: str) -> Iterator[ListeningSocket]:
    """A table of /proc/net: addresses in hexadecimal, each 32-bit word as this machine stores it."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 4 or words[3] != wanted:
            continue
        address, _, port = words[1].partition(":")
        packed = b"".join(
            int(address[at : at + 8], 16).to_bytes(4, "little" if _LITTLE else "big")
            for at in range(0, len(address), 8)
        )
        known = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
        mapped = known.ipv4_mapped if isinstance(known, IPv6Address) else None
        yield ListeningSocket(protocol, mapped or known, int(port, 16))


_LITTLE = sys.byteorder == "little"


# --- connections -----------------------------------------------------------------------------------------------------


def conntrack() -> ConntrackUse | None:
    """None: there is none here. Waits a moment where the table is filling, to see what it refuses."""
    count, maximum = _occupied()
    if not maximum:
        return None
    if count < maximum // 2:
        return ConntrackUse(count, maximum)
    before, began = _refused(), time.monotonic()
    time.sleep(PAUSE)
    after = _refused()
    count, _ = _occupied()
    dropped, early = (max(0, late - soon) for late, soon in zip(after, before, strict=True))
    return ConntrackUse(count, maximum, dropped, early, time.monotonic() - began)


def _occupied() -> tuple[int, int]:
    names = ("netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max")
    found = values(names)
    return found.get(names[0], 0), found.get(names[1], 0)


def _refused() -> tuple[int, int]:
    try:
        return read_refused((_NET / "stat" / "nf_conntrack").read_text())
    except OSError:
        return 0, 0


def read_refused(text: str) -> tuple[int, int]:
    """Packets dropped, and connections thrown out early: a line for each core, in hexadecimal."""
    head, *lines = [line.split() for line in text.splitlines()] or [[]]
    rows = [dict(zip(head, line, strict=False)) for line in lines]
    try:
        dropped = sum(int(row.get("drop", "0"), 16) + int(row.get("insert_failed", "0"), 16) for row in rows)
        return dropped, sum(int(row.get("early_drop", "0"), 16) for row in rows)
    except ValueError:
        return 0, 0


# --- routes ----------------------------------------------------------------------------------------------------------


def arrivals(interface: str, pairs: Iterable[tuple[IPv4Address, IPv4Address]]) -> list[Arrival] | None:
    """What would become of packets, by source and destination, that come in there: the kernel's own answer, with its
    reverse path filter, its rules and its tables. None: it may not be asked."""
    from pyroute2 import IPRoute  # noqa: PLC0415  slow to import
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    found: list[Arrival] = []
    with IPRoute() as netlink:
        index = next(iter(netlink.link_lookup(ifname=interface)), None)
        if index is None:
            return None
        names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()}
        for source, destination in pairs:
            try:
                came = _route(netlink, dst=str(destination), src=str(source), iif=index)
                back = _route(netlink, dst=str(source))
            except NetlinkError as error:
                if error.code in (errno.EPERM, errno.EOPNOTSUPP):
                    return None
                raise
            leaves = back.get_attr("RTA_OIF") if back is not None else None
            local = came is not None and came["type"] == _LOCAL
            found.append(Arrival(source, destination, local, names.get(leaves)))
    return found


_LOCAL = 2


#: How kernels of different age say that a packet is dropped, or has no route.
_NO_ROUTE = (errno.EXDEV, errno.EINVAL, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES)


def _route(netlink: Any, **question: Any) -> Any | None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        return next(iter(netlink.route("get", **question)), None)
    except NetlinkError as error:
        if error.code in _NO_ROUTE:
            return None
        raise
