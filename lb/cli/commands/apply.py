# SPDX-License-Identifier: Apache-2.0
"""``lb apply -f FILE``: the services of a file become what the manager wants; prints what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.change import ChangeOptions, finish, terms_options
from lb.cli.options.service_files import files_option, read_files
from lb.cli.terminal.output import example, output_option
from lb.errors import ConfigError, RequestError


@click.command(
    "apply",
    epilog=example("lb apply -f services.toml --wait", 'lb apply -f services.toml --confirm 60s -m "twice the weight"'),
)
@files_option()
@click.option("--prune", is_flag=True, help="Delete the services that are in none of the files.")
@terms_options
@manager_options
@output_option
def command(*, paths: tuple[str, ...], prune: bool, terms: ChangeOptions, manager: Manager, as_json: bool) -> int:
    """Create or change the services of FILE; others stay. All mistakes are reported at once, and change nothing.
    Several files, or a folder of them, are applied as one change.

    With --wait it returns when every MUX has acknowledged, and says how many of the MUXes that should announce the VIPs
    do, and why others do not. It exits 1 if a MUX did not follow, or if there are MUXes and none announces a VIP,
    for which it waits 10 s at most. With --confirm the manager rolls
    everything back by itself unless `lb confirm` comes in time, also if you cannot reach it any more.
    """
    if not paths:
        raise RequestError("give -f FILE: what is to be applied?")
    return finish(post_files(manager, "apply", paths, {"prune": prune, **terms.body()}), as_json=as_json)


def post_files(manager: Manager, call: str, paths: Sequence[str], terms: dict[str, Any]) -> Any:
    """The answer to a request with the services of files, which the manager reads; it tells every mistake at once."""
    files = read_files(paths)
    query = {key: "true" if value is True else value for key, value in terms.items() if value}
    try:
        return manager.post_file(call, text=files.text, **query)
    except ConfigError as error:
        raise files.blame(error) from None
