# SPDX-License-Identifier: Apache-2.0
"""``lb get``: what a running daemon says of its services, backends and itself."""

from __future__ import annotations

from typing import Any

import click

from lb.cli.local import ask, find_socket, local_options, require_local
from lb.cli.output import cell, console, output_option, print_json, size, table
from lb.errors import ControlError

#: What can be asked -> (columns of the table, those that hold numbers).
TABLES: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "services": (
        ("name", "vip", "port", "backends", "packets", "bytes", "flows_new"),
        frozenset({"backends", "packets", "bytes", "flows_new"}),
    ),
    "backends": (
        ("service", "name", "address", "port", "weight", "state", "packets"),
        frozenset({"weight", "packets"}),
    ),
    "announcements": (("vip", "peer", "state", "med", "prepend", "communities", "why"), frozenset({"med", "prepend"})),
    "peers": (
        ("name", "address", "asn", "kind", "state", "seconds", "announced", "error"),
        frozenset({"seconds", "announced"}),
    ),
}
#: Asked of an agent, not of a MUX.
_OF_AGENT = ("agents",)
#: One row each, so shown as a list of keys and values.
_SINGLE = ("muxes", "agents", "status")


@click.command("get")
@click.argument(
    "what", type=click.Choice(["services", "backends", "muxes", "agents", "announcements", "peers", "status"])
)
@local_options
@output_option
def command(*, what: str, local: bool, socket: str | None, config: str | None, as_json: bool) -> None:
    """Show services, backends, announcements and so on, as the daemon on this machine knows them (--local)."""
    require_local(local, socket)
    data = ask(find_socket(socket, config, "agent" if what in _OF_AGENT else "mux"), {"op": "get", "what": what})
    if as_json:
        print_json(data)
        return
    rows = data if isinstance(data, list) else [data]
    if not all(isinstance(row, dict) for row in rows):
        raise ControlError("the daemon's answer is not a table; are daemon and lb of one version?")
    if what in _SINGLE:
        _show_keys(rows)
        return
    columns, numbers = TABLES[what]
    if any("health" in row for row in rows):  # where backends are probed
        columns = (*columns, "health", "reason")
    console().print(table(columns, [_short(row) for row in rows], numbers))


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it fits a terminal; JSON has it all, and exactly."""
    shown = dict(row)
    if "protocol" in row:
        shown["port"] = f"{row.get('port')}/{row['protocol']}"
    if isinstance(row.get("asn"), int):
        shown["asn"] = str(row["asn"])  # a number of no quantity
    if isinstance(row.get("bytes"), int):
        shown["bytes"] = size(row["bytes"])
    return shown


def _show_keys(rows: list[dict[str, Any]]) -> None:
    for i, row in enumerate(rows):
        if i:
            click.echo()
        width = max((len(key) for key in row), default=0) + 2
        for key, value in row.items():
            click.echo(f"{key.replace('_', ' '):<{width}}{cell(value)}")
