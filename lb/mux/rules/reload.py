# SPDX-License-Identifier: Apache-2.0
"""What a new file may change in a running MUX. Pure.

Services and backends may change in any way, and so may the number of workers where the I/O mode can (see
:meth:`lb.mux.io.ports.Port.keeps_workers`); no flow is forgotten. The rest of the ``[mux]`` table is what the flow
table and the tunnel were built from, so it must stay as it is until a restart. Of ``[bgp]`` passwords may change, for
which sessions are opened anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace

from lb.errors import ConfigError
from lb.model import Address, BgpSettings, Idle, MuxSettings, Service

#: What may change while the MUX runs.
CHANGEABLE = frozenset({"mux.workers"})


def changed_keys(old: MuxSettings, new: MuxSettings) -> list[str]:
    """The keys of ``[mux]`` that differ, as they are written in the file."""
    keys = [
        f"mux.{field.name}"
        for field in fields(MuxSettings)
        if field.name != "idle" and getattr(old, field.name) != getattr(new, field.name)
    ]
    keys += [
        f"mux.idle.{field.name}"
        for field in fields(Idle)
        if getattr(old.idle, field.name) != getattr(new.idle, field.name)
    ]
    return keys


def check_settings(old: MuxSettings, new: MuxSettings) -> None:
    """Raises ConfigError with one mistake for each key that cannot change while the MUX runs."""
    keys = [key for key in changed_keys(old, new) if key not in CHANGEABLE]
    if keys:
        raise ConfigError((key, "cannot change while the MUX runs: restart lb-mux, or put it back") for key in keys)


def check_bgp(old: BgpSettings | None, new: BgpSettings | None) -> None:
    """Raises ConfigError for whatever else than passwords is different."""
    if _without_passwords(old) != _without_passwords(new):
        message = "nothing of it but passwords can change while the MUX runs: systemctl restart lb-mux, or put it back"
        raise ConfigError([("bgp", message)])


def changed_passwords(old: BgpSettings | None, new: BgpSettings | None) -> list[str]:
    """The names of the peers that have another password, or one for the first time, or none any more."""
    if old is None or new is None:
        return []
    before = {peer.name: peer.password for peer in old.peers}
    return [peer.name for peer in new.peers if peer.password != before.get(peer.name)]


def _without_passwords(bgp: BgpSettings | None) -> BgpSettings | None:
    if bgp is None:
        return None
    return replace(bgp, peers=tuple(replace(peer, password=None) for peer in bgp.peers))


def check_vips(
    services: Sequence[Service], local: Mapping[Address, str], fresh: Iterable[Service] | None = None
) -> None:
    """Raises ConfigError for VIPs that are addresses of this machine: its kernel would answer for them.

    ``fresh``: those of the services that did not pass before, with the same addresses; None: all.
    """
    mistakes: list[tuple[str, str]] = []
    for service in services if fresh is None else fresh:
        vip = service.vip
        if vip.prefixlen == vip.max_prefixlen and vip.network_address not in local:
            continue  # of ten thousand, nearly all
        for address, interface in local.items():
            if address.version == service.vip.version and address in service.vip:
                message = (
                    f"{service.vip} covers {address}, an address of this machine on {interface}; "
                    f"a VIP must not be local to a MUX: remove it from {interface}"
                )
                place = next(index for index, other in enumerate(services) if other is service)
                mistakes.append((f"service[{place}].vip", message))
    if mistakes:
        raise ConfigError(mistakes)
