# SPDX-License-Identifier: Apache-2.0
"""Prints a configuration as TOML: the canonical form, from which :func:`lb.config.load.parse` makes an equal value.

The table of a program is written out in full, defaults included, so that it documents itself; services
and what is in them only where they differ from the defaults. :func:`service_table` gives one service under the
same keys as plain values, for API, store and node stream. Holds no state.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from lb.config.toml import section
from lb.model import (
    AgentConfig,
    Backend,
    BgpPeer,
    BgpSettings,
    ManagerSettings,
    MuxConfig,
    Network,
    PortRange,
    Probe,
    QuicIds,
    Service,
)


def format_config(config: MuxConfig | AgentConfig | ManagerSettings | tuple[Service, ...]) -> str:
    """The whole file."""
    sections: list[str] = []
    services: tuple[Service, ...]
    if isinstance(config, MuxConfig):
        settings = _everything(config.mux)
        idle = settings.pop("idle")
        settings["seed"] = config.mux.seed.hex()
        sections += [section("[mux]", settings), section("[mux.idle]", _everything(idle))]
        if config.bgp is not None:
            sections += _bgp(config.bgp)
        sections += _follow(config.manager)
        services = config.services
    elif isinstance(config, AgentConfig):
        settings = _everything(config.agent)
        if config.manager is not None:
            del settings["muxes"]
        sections += [section("[agent]", settings), *_follow(config.manager)]
        services = config.services
    elif isinstance(config, ManagerSettings):
        sections.append(section("[manager]", _everything(config)))
        services = ()
    else:
        services = config
    for service in services:
        sections += _service(service)
    return "\n".join(sections)


def _bgp(settings: BgpSettings) -> Iterator[str]:
    table = _everything(settings)
    peers: tuple[BgpPeer, ...] = table.pop("peers")
    yield section("[bgp]", table)
    for peer in peers:
        yield section("[[bgp.peer]]", _everything(peer))


def _follow(manager: str | None) -> Iterator[str]:
    if manager is not None:
        yield section("[manager]", {"url": manager})


def service_table(service: Service) -> dict[str, Any]:
    """A ``[[service]]`` table in plain values, fit for JSON; :func:`lb.config.load.parse_service_tables` reads it."""
    whole: dict[str, Any] = dict(_service_keys(service))
    if service.quic:
        whole["quic"] = [_quic_keys(one) for one in service.quic]
    if service.probe is not None:
        whole["probe"] = _probe_keys(service.probe)
    if service.announce is not None:
        whole["announce"] = _changed(service.announce)
    whole["backend"] = [_backend_keys(backend) for backend in service.backends]
    plain: dict[str, Any] = _plain(whole)
    return plain


def _plain(value: Any) -> Any:
    if value.__class__ in (str, int):  # as nearly all are; an enum is neither
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float) else str(value)


def _service(service: Service) -> Iterator[str]:
    yield section("[[service]]", _service_keys(service))
    for one in service.quic:
        yield section("[[service.quic]]", _quic_keys(one))
    if service.probe is not None:
        yield section("[service.probe]", _probe_keys(service.probe))
    if service.announce is not None:
        yield section("[service.announce]", _changed(service.announce))
    for backend in service.backends:
        yield section("[[service.backend]]", _backend_keys(backend))


def _quic_keys(one: QuicIds) -> dict[str, Any]:
    return {"id": one.id, **_changed(one)}


def _probe_keys(probe: Probe) -> dict[str, Any]:
    changed = _changed(probe)
    if "status" in changed:
        first, last = probe.status
        changed["status"] = first if first == last else f"{first}-{last}"
    return {"type": probe.type, **changed}


def _service_keys(service: Service) -> dict[str, Any]:
    changed = _changed(service)
    for key in ("name", "vip", "protocol", "ports", "backends", "quic", "probe", "announce"):
        changed.pop(key, None)
    return {
        "name": service.name,
        "vip": vip_text(service.vip),
        "protocol": service.protocol,
        "port": port_value(service.ports),
        **changed,
    }


def _backend_keys(backend: Backend) -> dict[str, Any]:
    return {"name": backend.name, "address": backend.address, **_changed(backend)}


def vip_text(vip: Network) -> str:
    """As in a file: a single address without its length."""
    return str(vip.network_address if vip.prefixlen == vip.max_prefixlen else vip)


def port_value(ports: PortRange) -> int | str:
    """As in a file: a number, or a range as text."""
    text = str(ports)
    return int(text) if text.isdecimal() else text


def _everything(value: Any) -> dict[str, Any]:
    """Every field that has a value."""
    given = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: item for name, item in given.items() if item is not None}


def _changed(value: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    known = _defaults(type(value))  # type: ignore[arg-type]  # a class is hashable
    return {
        name: item
        for name, default in known
        if (item := getattr(value, name)) is not default and (default is MISSING or item != default)
    }


@functools.cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in fields(kind))
