# SPDX-License-Identifier: Apache-2.0
"""``lb apply -f FILE``: the services of a file become what the manager wants; prints what changed."""

from __future__ import annotations

import sys
from typing import Any

import click

from lb.cli.changing import Terms, finish, terms_options
from lb.cli.output import example, output_option
from lb.cli.remote import Manager, manager_options
from lb.errors import ConfigError


@click.command(
    "apply",
    epilog=example("lb apply -f services.toml --wait", 'lb apply -f services.toml --confirm 60s -m "twice the weight"'),
)
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="A file of services, or - for the input.")
@click.option("--prune", is_flag=True, help="Delete the services that are not in FILE.")
@terms_options
@manager_options
@output_option
def command(*, path: str, prune: bool, terms: Terms, manager: Manager, as_json: bool) -> int:
    """Create or change the services of FILE; others stay. All mistakes are reported at once, and change nothing.

    With --wait it returns when every MUX has acknowledged, and exits 1 if one did not, and says why. With --confirm the
    manager takes everything back by itself unless `lb confirm` comes in time: also if you cannot reach it any more.
    """
    return finish(post_file(manager, "apply", path, {"prune": prune, **terms.body()}), as_json=as_json)


def post_file(manager: Manager, call: str, path: str, body: dict[str, Any]) -> Any:
    """The answer to a request with the services of a file. Its mistakes and those that the manager finds are raised as
    one, and then nothing was changed."""
    tables, mistakes = read(path)
    body = {"services": tables, **body}
    if mistakes:
        call, body = "apply", {"services": tables, "prune": body["prune"], "dry_run": True}
    try:
        answer = manager.post(call, body=body)
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes], path) from None
    if mistakes:
        raise ConfigError(mistakes, path)
    return answer


def read(path: str) -> tuple[list[Any], list[tuple[str, str]]]:
    """The [[service]] tables of a file, and what else in it has no place there."""
    from lb import toml  # noqa: PLC0415

    try:
        if path == "-":
            document = toml.loads(sys.stdin.buffer.read().decode())
        else:
            with open(path, "rb") as file:
                document = toml.loads(file.read().decode())
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
