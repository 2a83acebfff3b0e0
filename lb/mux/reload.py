# SPDX-License-Identifier: Apache-2.0
"""What a new file may change in a running MUX. Pure.

Services and backends may change in any way; no flow is forgotten. The ``[mux]`` table is what the workers, the flow
table and the tunnel were built from, so it must stay as it is until a restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields

from lb.errors import ConfigError
from lb.model import Address, BgpSettings, Idle, MuxSettings, Network, Service


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
    keys = changed_keys(old, new)
    if keys:
        raise ConfigError((key, "cannot change while the MUX runs: restart lb-mux, or put it back") for key in keys)


def check_bgp(old: BgpSettings | None, new: BgpSettings | None) -> None:
    """Raises ConfigError if sessions would have to be opened anew."""
    if old != new:
        raise ConfigError([("bgp", "cannot change while the MUX runs: restart lb-mux, or put it back")])


def check_vips(services: Iterable[Service], local: Mapping[Address, str], checked: Container[int] = ()) -> None:
    """Raises ConfigError for VIPs that are addresses of this machine: its kernel would answer for them.

    ``checked``: identities of services that passed before, with the same addresses.
    """
    mistakes: list[tuple[str, str]] = []
    for index, service in enumerate(services):
        if id(service) in checked:
            continue
        vip = service.vip
        if vip.prefixlen == vip.max_prefixlen and vip.network_address not in local:
            continue  # of ten thousand, nearly all
        for address, interface in local.items():
            if address.version == service.vip.version and address in service.vip:
                message = (
                    f"{service.vip} covers {address}, an address of this machine on {interface}; "
                    f"a VIP must not be local to a MUX: remove it from {interface}"
                )
                mistakes.append((f"service[{index}].vip", message))
    if mistakes:
        raise ConfigError(mistakes)


def vips_after(vips: frozenset[Network], before: Sequence[Service], services: Sequence[Service]) -> frozenset[Network]:
    """The VIPs of ``services``; ``vips``, those of ``before``, where none came or went.

    What is the same object has the same VIP. Networks are slow to hash, and of ten thousand services one has changed.
    """
    old, new = {id(service) for service in before}, {id(service) for service in services}
    gone = Counter(service.vip for service in before if id(service) not in new)
    come = Counter(service.vip for service in services if id(service) not in old)
    return vips if gone == come else frozenset(service.vip for service in services)
