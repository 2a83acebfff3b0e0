# SPDX-License-Identifier: Apache-2.0
"""``lb delete``: services, which are withdrawn and then removed; and nodes that will not come back."""

from __future__ import annotations

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.change import show, why_option
from lb.cli.options.completion import by_kind
from lb.cli.options.service_files import files_option, read_files
from lb.cli.terminal.output import example, output_option, print_json
from lb.errors import ConfigError, RequestError

PATHS = {"mux": "muxes", "agent": "agents"}


@click.command("delete", epilog=example("lb delete service web"))
@click.argument("kind", type=click.Choice(["service", *PATHS]), required=False)
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=by_kind("kind"))
@files_option("Delete the services of this file, or of a folder of *.toml; may be repeated.")
@why_option
@manager_options
@output_option
def command(
    *, kind: str | None, names: tuple[str, ...], paths: tuple[str, ...], why: str, manager: Manager, as_json: bool
) -> None:
    """Delete services: they are withdrawn everywhere first. Or forget a MUX or an agent that will not come back."""
    if paths:
        if kind is not None:
            raise RequestError("give either -f FILE, or what to delete and its name")
        kind, names = "service", _names_in(paths)
    if kind is None or not names:
        raise RequestError("what is to be deleted? `lb delete service NAME`, mux NAME, agent NAME, or -f FILE")
    if why and kind != "service":
        raise RequestError("-m goes with a service: that a node was forgotten is an event, and no change in the audit")
    if kind == "service":
        answer = manager.post("delete", body={"services": list(dict.fromkeys(names)), **({"why": why} if why else {})})
        print_json(answer) if as_json else show(answer)
        return
    for name in names:
        answer = manager.delete(PATHS[kind], name)
        print_json(answer) if as_json else click.echo(f"{kind} {name} forgotten")


def _names_in(paths: tuple[str, ...]) -> tuple[str, ...]:
    from lb.config.toml import decoded, service_tables  # noqa: PLC0415

    files = read_files(paths)
    try:
        tables, mistakes = service_tables(decoded(files.text))
    except ConfigError as error:
        raise files.blame(error) from None
    names = [table.get("name") for table in tables if isinstance(table, dict)]
    mistakes += [(f"service[{i}].name", "is missing") for i, name in enumerate(names) if not isinstance(name, str)]
    if mistakes:
        raise files.blame(ConfigError(mistakes))
    return tuple(str(name) for name in names)
