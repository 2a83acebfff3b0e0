# SPDX-License-Identifier: Apache-2.0
"""``lb check FILE``: every mistake of a file on a line each, or what the file says and how much memory it needs."""

from __future__ import annotations

from typing import Any

import click

from lb.cli.terminal.output import example, output_option, plural, print_json
from lb.errors import ConfigError
from lb.tables.values import size


@click.command("check", epilog=example("lb check mux.toml"))
@click.argument("file", type=click.Path())
@click.option("--print", "print_file", is_flag=True, help="Print the file in its canonical form instead.")
@output_option
def command(file: str, print_file: bool, as_json: bool) -> int:
    """Check FILE: a MUX's file, a host agent's, or services alone.

    Prints one line for each mistake (path: what is wrong) and exits 2; or a summary, and exits 0.
    """
    from lb.config.load import load_any  # noqa: PLC0415

    try:
        config = load_any(file)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "mistakes": [{"path": path, "message": text} for path, text in error.mistakes]})
        else:
            click.echo("\n".join(error.lines))
        return error.exit_code
    if print_file:
        from lb.config.render import format_config  # noqa: PLC0415

        click.echo(format_config(config), nl=False)
        return 0

    from lb.cli.config_summary import summarize  # noqa: PLC0415

    summary = summarize(config)
    if as_json:
        print_json({"ok": True, "mistakes": [], **summary.as_dict()})
        return 0
    for name, text in _lines(file, summary):
        click.echo(f"{name:<11}{text}")
    return 0


def _lines(file: str, summary: Any) -> list[tuple[str, str]]:
    lines = [
        ("file", f"{file}: fine, {summary.kind}"),
        (
            "services",
            f"{summary.services:,} ({summary.tcp:,} tcp, {summary.udp:,} udp) at {plural(summary.vips, 'VIP')}",
        ),
        ("backends", f"{summary.backends:,} at {plural(summary.addresses, 'address')}"),
    ]
    if summary.owner:
        lines.insert(1, ("name", summary.owner))
    memory = summary.memory
    if memory is not None:
        lines += [
            ("memory", f"{size(memory.total)} for the data plane:"),
            ("", f"{size(memory.flow_tables)}  {plural(memory.flows, 'flow')} in {plural(memory.workers, 'worker')}"),
            ("", f"{size(memory.maglev)}  {plural(memory.tables, 'Maglev table')} of {memory.slots:,} slots in all"),
        ]
    lines += [("note", note) for note in summary.notes]
    return lines
