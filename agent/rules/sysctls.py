# SPDX-License-Identifier: Apache-2.0
"""Which kernel settings the host needs, and at least how high. Pure; called by the planner.

A setting is touched only where the kernel would otherwise do harm, and only ever raised. Names are paths below
``/proc/sys/net``, since interface names may hold dots. What a setting was before is kept by
:mod:`agent.host.change_log`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

#: Asks for a setting's value; None where this kernel has no such setting.
Read = Callable[[str], int | None]

ARP_IGNORE = "ipv4/conf/all/arp_ignore"
ARP_ANNOUNCE = "ipv4/conf/all/arp_announce"
RP_FILTER_ALL = "ipv4/conf/all/rp_filter"
TCP_LIBERAL = "netfilter/nf_conntrack_tcp_be_liberal"


def rp_filter(interface: str) -> str:
    """Name of the interface's own reverse path filter."""
    return f"ipv4/conf/{interface}/rp_filter"


def needed(
    *,
    owns_vips: bool,
    translates: bool,
    interface: str,
    other_routes: Collection[str],
    decapsulates_on_interface: bool,
    read: Read,
) -> Mapping[str, int]:
    """The least value of each setting that must be raised.

    ``owns_vips``: IPv4 VIPs are local addresses, so every host of a link would answer ARP for them, and use them as
    sender of its own requests. ``translates``: packets need conntrack, which takes a segment outside the window that it
    expects for invalid, and what is invalid is not translated and vanishes: a flow that comes to the wrong host, where
    its ports were used before, would hang for minutes instead of being reset. ``other_routes``: interfaces other than
    ours that routes leave by; a reply to a client may then leave elsewhere, and a strict filter drops the client's
    packet after decapsulation. ``read`` answers with the values before our own changes: what we raised must not look
    as if it needed no raising.
    """
    least: dict[str, int] = {}
    if owns_vips:
        least[ARP_IGNORE] = 1  # answer only for addresses of the interface that was asked
        least[ARP_ANNOUNCE] = 2  # ask with the interface's own address
    if translates:
        least[TCP_LIBERAL] = 1  # the host's own TCP judges sequence numbers, and answers
    # The larger of "all" and the interface's decides: 1 is strict, 2 loose, 0 off.
    strict = max(read(RP_FILTER_ALL) or 0, read(rp_filter(interface)) or 0) == 1
    if decapsulates_on_interface and other_routes and strict:
        least[rp_filter(interface)] = 2
    return least
