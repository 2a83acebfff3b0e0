# SPDX-License-Identifier: Apache-2.0
"""``lb diff -f FILE``: what ``lb apply`` would change."""

from __future__ import annotations

import click

from lb.cli.apply import post_file
from lb.cli.changing import finish
from lb.cli.output import example, output_option
from lb.cli.remote import Manager, manager_options


@click.command("diff", epilog=example("lb diff -f services.toml"))
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="A file of services, or - for the input.")
@click.option("--prune", is_flag=True, help="As if services that are not in FILE were to be deleted.")
@manager_options
@output_option
def command(*, path: str, prune: bool, manager: Manager, as_json: bool) -> int:
    """Tell what `lb apply -f FILE` would change, and every mistake in it. Changes nothing."""
    return finish(post_file(manager, "apply", path, {"prune": prune, "dry_run": True}), as_json=as_json)
