# SPDX-License-Identifier: Apache-2.0
"""Why a BGP session is down, from what the MUX says of it and what the peer's port answers. Pure.

A wrong TCP MD5 password shows as silence: the router's kernel drops segments with another signature than it wants.

    ping  unsigned  signed    then
    no    silent    silent    the router cannot be reached
    yes   answers   silent    we have a password, the router none
    yes   silent    silent    it has another password than we (or port 179 is filtered)
    yes   silent    answers   the password is right: BGP itself is in the way
    any   refused   -         no BGP there, or not for this address
"""

from __future__ import annotations

from collections.abc import Iterator

from lb.doctor.model.facts import Dialled, Row, WayAnswer
from lb.doctor.model.findings import Finding, fault, ok, warning
from lb.model import BgpPeer

PORT = 179


def check_peer(peer: BgpPeer, row: Row | None, dialled: Dialled | None, config: str) -> Iterator[Finding]:
    """``row``: by the MUX; ``dialled`` None: the port was not tried."""
    if row is not None and row.get("state") == "established":
        yield ok("bgp", f"the session with {peer.name} ({peer.address}) is established")
        return
    where = f"the BGP session with {peer.name} ({peer.address})"
    state = f"{row.get('state')}: {row.get('error') or 'no reason yet'}" if row is not None else "lb-mux does not run"
    if dialled is not None:
        found = judge(peer, dialled, where, config)
        if found is not None:
            yield found
            return
    if row is None:
        return
    if row.get("error") is None and row.get("state") in ("connecting", "opening"):
        yield warning("bgp", f"{where} is not up yet: {row.get('state')}", "ask again in a few seconds")
        return
    yield fault(
        "bgp", f"{where} is {state}", f"compare [[bgp.peer]] {peer.name} in {config} with the router; see docs/bgp.md"
    )


def judge(peer: BgpPeer, dialled: Dialled, where: str, config: str) -> Finding | None:
    """None: the port tells nothing."""
    silent = dialled.unsigned is WayAnswer.SILENT
    signed = dialled.signed
    if signed is None and silent and dialled.ping:
        return fault(
            "bgp_password",
            f"{where} is down: the router answers ping, and nothing from port {PORT}. It may want a password "
            "(TCP MD5), "
            f"and {config} has none",
            f"put the router's password for this MUX in [[bgp.peer]] {peer.name} and restart lb-mux; or see that "
            f"port {PORT} "
            "is not filtered",
        )
    if signed is WayAnswer.SILENT and not silent:
        return fault(
            "bgp_password",
            f"{where} is down: the router wants no password of this MUX, and password is set in {config}",
            f"remove password from [[bgp.peer]] {peer.name} and restart lb-mux, or set the same on the router",
        )
    if signed is WayAnswer.SILENT and silent and dialled.ping:
        return fault(
            "bgp_password",
            f"{where} is down: the router drops what is signed with our password without a word, so its password "
            "(TCP MD5) "
            "is another",
            f"make password in [[bgp.peer]] {peer.name} of {config} the router's for this MUX, and restart lb-mux "
            f"(`systemctl restart lb-mux`); if they are equal, port {PORT} is filtered",
        )
    if silent and signed in (None, WayAnswer.SILENT):
        return fault(
            "bgp",
            f"{where} is down: the router answers neither ping nor port {PORT}",
            f"`ip route get {peer.address}`, `ip neigh show {peer.address}`: is it up, and is address right?",
        )
    if WayAnswer.REFUSED in (dialled.unsigned, signed):
        return fault(
            "bgp",
            f"{where} is down: the router refuses connections to port {PORT}",
            "start BGP there, and make this MUX a neighbour of it; deploy/routers/ has examples",
        )
    return None
