# SPDX-License-Identifier: Apache-2.0
"""``lb lookup``: which backend a new flow gets, by a file (offline, the same C code) or by a running MUX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from lb.cli.ask.daemon import ask, find_socket, local_options, require_local
from lb.cli.options.flow_endpoint import parse_endpoint
from lb.cli.terminal.output import example, output_option, print_json
from lb.errors import ControlError, RequestError
from lb.model import Address, Protocol
from lb.tables.values import cell

KEYS = ("service", "slot", "backend", "address")


@click.command(
    "lookup", epilog=example("lb lookup --config mux.toml --proto tcp --src 192.0.2.7:4711 --dst 203.0.113.10:80")
)
@click.option("--proto", required=True, type=click.Choice([p.value for p in Protocol]), help="Transport protocol.")
@click.option("--src", required=True, metavar="ADDR:PORT", help="The client.")
@click.option("--dst", required=True, metavar="ADDR:PORT", help="The VIP and the port that it connects to.")
@local_options
@output_option
def command(
    *,
    proto: str,
    src: str,
    dst: str,
    local: bool,
    socket: str | None,
    config: str | None,
    as_json: bool,
) -> int:
    """Tell what a new flow gets: by --config FILE alone, or by the running MUX with --local.

    Exits 1 if no service takes the flow, or no backend of the service.
    """
    source, source_port = parse_endpoint(src, "--src")
    destination, destination_port = parse_endpoint(dst, "--dst")
    if source.version != destination.version:
        raise RequestError("--src and --dst must be of one family, both IPv4 or both IPv6")
    if config is not None and not local and socket is None:
        answer = _offline(config, Protocol(proto), (source, source_port), (destination, destination_port))
    else:
        require_local(local, socket)
        asked = {
            "op": "lookup",
            "protocol": proto,
            "source": str(source),
            "source_port": source_port,
            "destination": str(destination),
            "destination_port": destination_port,
        }
        answer = _known(ask(find_socket(socket, config, "mux"), asked))
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    return 0 if answer["backend"] is not None else 1


def _offline(
    config: str, protocol: Protocol, source: tuple[Address, int], destination: tuple[Address, int]
) -> dict[str, Any]:
    from lb.config.load import load_mux  # noqa: PLC0415
    from lb.dataplane.compile.compiler import Compiler  # noqa: PLC0415  brings the extension

    loaded = load_mux(config, offline=True)
    # Only services that could take the flow, so that a file of thousands answers at once.
    vip = destination[0]
    services = [service for service in loaded.services if vip.version == service.vip.version and vip in service.vip]
    # A new flow has no connection id that a server gave it, and keys are on MUXes.
    bare = [replace(service, quic=()) for service in services]
    found = Compiler(loaded.mux).compile(bare).lookup(protocol, *source, *destination)
    return {
        "service": found.service.name if found.service else None,
        "slot": found.slot,
        "backend": found.backend.name if found.backend else None,
        "address": str(found.address) if found.address else None,
    }


def _known(answer: Any) -> dict[str, Any]:
    """The keys of the contract, and ``flow``: what the MUX remembers of this very flow, which then decides."""
    if not isinstance(answer, dict):
        raise ControlError("the daemon's answer is not that of a lookup; are daemon and lb of one version?")
    return {key: answer.get(key) for key in (*KEYS, "flow")}


def _show(answer: dict[str, Any]) -> None:
    if answer["service"] is None:
        click.echo("no service takes this flow")
        return
    for key in KEYS:
        if answer[key] is not None:
            click.echo(f"{key:<9}{cell(answer[key]) if key != 'slot' else answer[key]}")
    if answer.get("flow") is not None:
        click.echo(f"{'flow':<9}remembered as {cell(answer['flow']).replace('_', ' ')}, so it stays with this backend")
    if answer["backend"] is None:
        click.echo("no backend takes new flows")
