# SPDX-License-Identifier: Apache-2.0
"""``lb reasons``: every reason for what became of a packet, as replay, metrics and counters name it."""

from __future__ import annotations

import click

from lb.cli.terminal.output import console, example, output_option, print_json, table


@click.command("reasons", epilog=example("lb reasons"))
@output_option
def command(as_json: bool) -> None:
    """List every reason that a packet can end with, and what it means."""
    from lb.dataplane import REASONS  # noqa: PLC0415  brings the extension

    rows = [{"name": reason.name, "verdict": reason.verdict.name.lower(), "help": reason.help} for reason in REASONS]
    if as_json:
        print_json(rows)
    else:
        console().print(table(("name", "verdict", "help"), rows))
