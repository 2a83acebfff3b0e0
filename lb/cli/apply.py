# SPDX-License-Identifier: Apache-2.0
"""``lb apply -f FILE``: the services of a file become what the manager wants; prints what changed."""

from __future__ import annotations

import sys
from typing import Any

import click

from lb.cli.output import cell, example, output_option, print_json
from lb.cli.remote import Manager, manager_options
from lb.errors import ConfigError


@click.command("apply", epilog=example("lb apply -f services.toml --wait 10"))
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="A file of services, or - for the input.")
@click.option("--prune", is_flag=True, help="Delete the services that are not in FILE.")
@click.option("--dry-run", is_flag=True, help="Only tell what would change.")
@click.option(
    "--wait", type=click.FloatRange(0, 300), default=0.0, metavar="SECONDS", help="Until every node followed."
)
@manager_options
@output_option
def command(*, path: str, prune: bool, dry_run: bool, wait: float, manager: Manager, as_json: bool) -> int:
    """Create or change the services of FILE; others stay. All mistakes are reported at once, and change nothing.

    Exits 1 if nodes did not follow within --wait.
    """
    return run(manager, path, prune=prune, dry_run=dry_run, wait=wait, as_json=as_json)


def run(manager: Manager, path: str, *, prune: bool, dry_run: bool, wait: float, as_json: bool) -> int:
    tables, mistakes = read(path)
    body = {"services": tables, "prune": prune, "dry_run": dry_run or bool(mistakes), "wait": wait}
    try:
        answer = manager.post("apply", body=body)
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes], path) from None
    if mistakes:
        raise ConfigError(mistakes, path)
    if as_json:
        print_json(answer)
    else:
        show(answer)
    return 1 if answer.get("behind") else 0


def read(path: str) -> tuple[list[Any], list[tuple[str, str]]]:
    """The [[service]] tables of a file, and what else in it has no place there."""
    import tomllib  # noqa: PLC0415

    try:
        if path == "-":
            document = tomllib.loads(sys.stdin.buffer.read().decode())
        else:
            with open(path, "rb") as file:
                document = tomllib.load(file)
    except OSError as error:
        raise ConfigError([(path, f"cannot be read: {(error.strerror or str(error)).lower()}")]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([("", f"is not TOML: {str(error).lower()}")], path) from None
    tables = document.pop("service", [])
    mistakes = [(key, "has no place in a file of services") for key in document]
    if not isinstance(tables, list):
        mistakes.append(("service", "must be an array of tables; write [[service]] above each"))
        tables = []
    return tables, mistakes


def show(answer: dict[str, Any]) -> None:
    """A line for each thing that changed."""
    unchanged = [line for line in answer["lines"] if line["action"] == "unchanged"]
    would = "would be " if answer["dry_run"] else ""
    for line in answer["lines"]:
        if line["action"] != "unchanged":
            details = f": {', '.join(cell(text) for text in line['details'])}" if line["details"] else ""
            click.echo(f"{cell(line['name'])} {would}{line['action']}{details}")
    if len(unchanged) == 1:
        click.echo(f"{cell(unchanged[0]['name'])} unchanged")
    elif unchanged:
        click.echo(f"{len(unchanged):,} unchanged")
    if answer["changed"] and not answer["dry_run"]:
        click.echo(f"version {answer['version']}")
    if "behind" in answer:
        click.echo(f"not live yet on {', '.join(answer['behind'])}" if answer["behind"] else "live on every node")
