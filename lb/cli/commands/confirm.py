# SPDX-License-Identifier: Apache-2.0
"""``lb confirm``: what ``lb apply --confirm`` changed lasts."""

from __future__ import annotations

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.change import finish, why_option
from lb.cli.terminal.output import example, output_option


@click.command("confirm", epilog=example("lb confirm", "lb confirm 12"))
@click.argument("version", type=click.IntRange(1), required=False)
@why_option
@manager_options
@output_option
def command(*, version: int | None, why: str, manager: Manager, as_json: bool) -> int:
    """Keep the change that was made with --confirm, before its time is over.

    With VERSION only if it is that one that waits. `lb get status` tells what waits, and until when.
    """
    given = {"version": version} if version is not None else {}
    return finish(manager.post("confirm", body={**given, "why": why}), as_json=as_json)
