# SPDX-License-Identifier: Apache-2.0
"""``lb undrain``: see :mod:`lb.cli.commands.drain`."""

from __future__ import annotations

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.commands.drain import complete, order, target
from lb.cli.options.change import show, why_option
from lb.cli.terminal.output import example, output_option, print_json


@click.command("undrain", epilog=example("lb undrain web/web-1", "lb undrain host 10.0.3.21", "lb undrain mux mux1"))
@click.argument(
    "what", nargs=-1, required=True, metavar="SERVICE/BACKEND | host NAME | mux NAME", shell_complete=complete
)
@why_option
@manager_options
@output_option
def command(*, what: tuple[str, ...], why: str, manager: Manager, as_json: bool) -> None:
    """End a drain: a backend takes new connections again, a MUX announces its VIPs again.

    For a host this ends the drains of all its backends, also those that were ordered one by one.
    """
    answer = order("undrain", target("undrain", what), why, manager)
    print_json(answer) if as_json else show(answer)
