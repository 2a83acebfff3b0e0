# SPDX-License-Identifier: Apache-2.0
"""ExaBGP's configuration, made from values alone. Pure; called by :mod:`lb.bgp.sidecar` at each start.

What is written, and why:

- families always: ExaBGP would otherwise offer every one that it knows;
- no graceful restart: a MUX that died must lose its routes at once, not after a restart timer;
- ``adj-rib-out``: a session that returns gets all routes again without our help;
- passwords as base64: whatever an operator chose, nothing of it can end the quotes;
- no names of peers: they are free text, and ExaBGP needs none.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence

from lb.bgp.routes import Speaks
from lb.errors import IoError
from lb.model import BgpPeer

#: The name of our process in the configuration.
PROCESS = "vipmux"

_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+", re.ASCII)


def exabgp_config(speaks: Speaks, helper: Sequence[str]) -> str:
    """The whole file. ``helper`` is the command line of :mod:`lb.bgp.helper`; ExaBGP splits it at spaces."""
    for word in helper:
        if not _WORD.fullmatch(word):
            raise IoError(
                f"ExaBGP cannot start {word!r}: install lb in a directory whose path has plain characters only"
            )
    lines = [f"process {PROCESS} {{", f"\trun {' '.join(helper)};", "\tencoder json;", "\trespawn false;", "}"]
    for peer in speaks.settings.peers:
        lines += ["", *_neighbour(speaks, peer)]
    return "\n".join(lines) + "\n"


def _neighbour(speaks: Speaks, peer: BgpPeer) -> Iterator[str]:
    settings = speaks.settings
    local = speaks.address if peer.address.version == 4 else speaks.address6
    assert local is not None  # noqa: S101  lb.config asks for address6 where a peer needs it
    yield f"neighbor {peer.address} {{"
    yield f"\trouter-id {settings.router_id or speaks.address};"
    yield f"\tlocal-address {local};"
    yield f"\tlocal-as {settings.asn};"
    yield f"\tpeer-as {peer.asn};"
    yield f"\thold-time {settings.hold};"
    yield "\tpassive false;"
    yield "\tadj-rib-in false;"  # what routers tell us is of no use here
    yield "\tadj-rib-out true;"
    yield "\tgroup-updates true;"
    if peer.password is not None:
        yield "\tmd5-base64 true;"
        yield f"\tmd5-password '{base64.b64encode(peer.password.encode()).decode()}';"
    if peer.gtsm:
        yield "\toutgoing-ttl 255;"
        yield "\tincoming-ttl 255;"
    yield "\tcapability { graceful-restart disable; route-refresh enable; asn4 enable; }"
    yield f"\tfamily {{ {' '.join(f'{family.value} unicast;' for family in peer.families)} }}"
    yield f"\tapi {{ processes [ {PROCESS} ]; neighbor-changes; }}"
    yield "}"


#: ExaBGP's settings by environment; everything that matters is said, so that no file of the machine does.
ENVIRONMENT = {
    "exabgp_daemon_drop": "false",  # it starts without privileges already
    "exabgp_daemon_daemonize": "false",
    "exabgp_daemon_pid": "",
    "exabgp_api_cli": "false",
    "exabgp_api_ack": "true",
    "exabgp_api_respawn": "false",
    "exabgp_api_terminate": "false",
    "exabgp_tcp_bind": "",  # it dials, and never listens
    "exabgp_tcp_port": "179",
    "exabgp_log_enable": "true",
    "exabgp_log_destination": "stderr",
    "exabgp_log_level": "WARNING",  # on INFO it tells of each prefix, and we read all of it
    "exabgp_log_short": "true",
    "exabgp_log_statistics": "false",
    "exabgp_debug_pdb": "false",
    "EXABGP_ENVFILE": "/dev/null",
}
