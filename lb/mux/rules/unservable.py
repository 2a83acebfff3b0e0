# SPDX-License-Identifier: Apache-2.0
"""Of what a manager wants, what this MUX can serve: the rest is left out alone, and everything else goes on.

Used by :mod:`lb.mux.daemon` for states of a manager; a file is taken whole or not at all (:mod:`lb.mux.rules.reload`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from lb.dataplane.compile.compiler import Compiler, Forwarding
from lb.errors import ConfigError, DataplaneError
from lb.model import Address, Network, Service
from lb.model.service_diff import ServiceDiff
from lb.mux.rules.reload import check_vips


def local_vips(
    services: Iterable[Service], local: Mapping[Address, str], served: Collection[Network]
) -> dict[str, str]:
    """Services whose VIPs are addresses of this machine, and why they cannot be. Of a VIP that is ``served`` already
    the kernel gets no packet to answer: it goes on, for its clients are worse off without."""
    left_out: dict[str, str] = {}
    for service in services:
        if service.vip in served:
            continue
        try:
            check_vips((service,), local)
        except ConfigError as error:
            left_out[service.name] = error.mistakes[0][1]
    return left_out


def compile_most(compiler: Compiler, change: ServiceDiff, before: Forwarding) -> tuple[Forwarding, dict[str, str]]:
    """As :meth:`~lb.dataplane.compile.compiler.Compiler.change`, without those services for which there is no room, and
    why.

    Raises DataplaneError where not even what goes could be taken away. Not thread-safe, as the compiler is.
    """
    try:
        return compiler.change(change, before), {}
    except (DataplaneError, MemoryError):
        if not change.come:
            raise
    left_out: dict[str, str] = {}
    coming = set(map(id, change.come))
    stay = tuple(service for service in change.services if id(service) not in coming)
    forwarding = compiler.change(ServiceDiff(change.before, stay, change.gone, ()), before)
    return _add(compiler, forwarding, change.come, left_out), left_out


def _add(compiler: Compiler, before: Forwarding, come: tuple[Service, ...], left_out: dict[str, str]) -> Forwarding:
    """By halves: of thousands mostly one does not fit."""
    try:
        return compiler.change(ServiceDiff(before.services, before.services + come, (), come), before)
    except (DataplaneError, MemoryError) as error:
        if len(come) == 1:
            left_out[come[0].name] = str(error) or "there is no memory for it"
            return before
    half = len(come) // 2
    return _add(compiler, _add(compiler, before, come[:half], left_out), come[half:], left_out)


def readable(
    section: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The entries of a state's section that pass ``check``, which raises ConfigError; and what is wrong with others.
    The very same section where all do."""
    try:
        check(section)
    except ConfigError:
        pass
    else:
        return section, {}
    left_out: dict[str, str] = {}
    for key, entry in section.items():
        try:
            check({key: entry})
        except ConfigError as error:
            left_out[key] = "; ".join(message for _, message in error.mistakes)
    return {key: entry for key, entry in section.items() if key not in left_out}, left_out
