# SPDX-License-Identifier: Apache-2.0
"""``lb undrain``: see :mod:`lb.cli.drain`."""

from __future__ import annotations

import click

from lb.cli.drain import run
from lb.cli.output import example, output_option
from lb.cli.remote import Manager, manager_options


@click.command("undrain", epilog=example("lb undrain web/web-1", "lb undrain mux mux1"))
@click.argument("what", nargs=-1, required=True, metavar="SERVICE/BACKEND | mux NAME")
@manager_options
@output_option
def command(*, what: tuple[str, ...], manager: Manager, as_json: bool) -> None:
    """Take a drain back: a backend takes new connections again, a MUX announces its VIPs again."""
    run("undrain", what, manager, as_json)
