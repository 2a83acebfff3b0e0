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


def post_file(manager: Manager, call: str, path: str, terms: dict[str, Any]) -> Any:
    """The answer to a request with the services of a file, which the manager reads; it tells every mistake at once."""
    query = {key: "true" if value is True else value for key, value in terms.items() if value}
    try:
        return manager.post_file(call, text=file_bytes(path), **query)
    except ConfigError as error:
        raise ConfigError(error.mistakes, path) from None


def file_bytes(path: str) -> bytes:
    """What the file holds, or what comes to the standard input."""
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError([("", f"cannot be read: {(error.strerror or str(error)).lower()}")], path) from None
