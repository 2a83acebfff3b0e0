# SPDX-License-Identifier: Apache-2.0
"""Opens the best I/O that a MUX may have: tries what the configuration allows, in the order of :mod:`lb.mux.io.mode`.

Called once by :mod:`lb.mux.daemon`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lb.daemon.kernel.watch import OwnMarks
from lb.daemon.log import get_logger
from lb.errors import IoError, VipmuxError
from lb.model import IoMode, MuxSettings, Network
from lb.mux.hops.netlink import Netlink
from lb.mux.io.ethernet import OffNote
from lb.mux.io.mode import Mode, candidates, nothing_works, obtained
from lb.mux.io.ports import PacketPort, Port, TunPort
from lb.mux.io.startup import NamespaceClaim
from lb.mux.io.xdp_port import OFF_NOTE, XdpPort

log = get_logger()

_KINDS: Mapping[IoMode, type[XdpPort] | type[PacketPort] | type[TunPort]] = {
    IoMode.XDP: XdpPort,
    IoMode.PACKET: PacketPort,
    IoMode.TUN: TunPort,
}


async def open_port(
    settings: MuxSettings, vips: Iterable[Network], netlink: Netlink, state_dir: Path, own: OwnMarks
) -> tuple[Port, Mode]:
    """The best I/O that works here, open, with the reason for it. ``own`` learns what changes of it are known by."""
    vips = frozenset(vips)
    claims = _claims(settings)
    left_off = OffNote(state_dir / OFF_NOTE).settle()
    if left_off is not None:
        log.info(
            "offloads put back", interface=left_off[0], offloads=" ".join(left_off[1]), left_by="a lb-mux that died"
        )
    refused: dict[IoMode, str] = {}
    for candidate in candidates(settings.io):
        port = _KINDS[candidate](settings, netlink, state_dir, own, claims)
        try:
            await port.open(vips)
        except VipmuxError as error:
            refused[candidate] = str(error)
            continue
        mode = obtained(settings.io, candidate, refused, busy_poll=settings.busy_poll)
        return port, replace(mode, details=port.details)
    for claim in claims:
        claim.close()
    raise nothing_works(settings.io, refused)


def _claims(settings: MuxSettings) -> list[NamespaceClaim]:
    """Before anything is touched; a TUN device is of its MUX alone, and several may be on one interface."""
    claims = [NamespaceClaim("name", settings.name)]
    if IoMode.PACKET in candidates(settings.io):
        try:
            claims.append(NamespaceClaim("interface", settings.interface))
        except IoError:
            claims[0].close()
            raise
    return claims
