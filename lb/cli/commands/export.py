# SPDX-License-Identifier: Apache-2.0
"""``lb export``: the services that the manager holds, as a file that ``lb apply`` takes."""

from __future__ import annotations

import click

from lb.cli.ask.manager import Manager, manager_options
from lb.cli.options.completion import of, services
from lb.cli.terminal.output import example


@click.command("export", epilog=example("lb export > services.toml", "lb export web"))
@click.argument("names", nargs=-1, metavar="[SERVICE]...", shell_complete=of(services))
@manager_options
def command(*, names: tuple[str, ...], manager: Manager) -> None:
    """Print all services, or those named, as TOML. To apply it again changes nothing.

    Drains are not part of it: they are orders, and `lb apply` leaves them alone.
    """
    click.echo(manager.raw("tables", service=names, **{"as": "toml"}), nl=False)
