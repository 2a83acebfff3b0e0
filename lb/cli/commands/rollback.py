# SPDX-License-Identifier: Apache-2.0
"""``lb rollback``: services and drains as they were at an earlier version."""

from __future__ import annotations

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.change import ChangeOptions, finish, terms_options
from lb.cli.terminal.output import example, output_option


@click.command("rollback", epilog=example("lb rollback --dry-run", "lb rollback --to 12 --confirm 60s"))
@click.option("--to", type=click.IntRange(0), metavar="VERSION", help="As `lb get history` lists them.")
@terms_options
@manager_options
@output_option
def command(*, to: int | None, terms: ChangeOptions, manager: Manager, as_json: bool) -> int:
    """Make services and drains of backends what they were at an earlier version; that becomes a new version.

    Without --to it rolls back the latest change of them, so that doing it twice changes nothing; and while a change
    waits for `lb confirm`, it rolls back that one. MUXes that drain go on with it.
    """
    given = {"to": to} if to is not None else {}
    return finish(manager.post("rollback", body={**given, **terms.body()}), as_json=as_json)
