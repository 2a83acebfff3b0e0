# SPDX-License-Identifier: Apache-2.0
"""What the subcommands share for output: tables that fit 80 columns, JSON, sizes and counts for people."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from lb.cli.terminal.colour import ATTENTION, BAD, STATES
from lb.tables.values import cell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])


def output_option(function: F) -> F:
    """``-o table|json``, and ``--json`` for short; the command gets ``as_json``."""

    @functools.wraps(function)
    def command(*arguments: Any, output: str | None, json_flag: bool, **others: Any) -> Any:
        if json_flag and output == "table":
            raise click.UsageError("--json and -o table contradict each other")
        return function(*arguments, as_json=json_flag or output == "json", **others)

    chosen = click.option("-o", "--output", type=click.Choice(["table", "json"]), help="How to show the answer.")
    short = click.option("--json", "json_flag", is_flag=True, help="The same as -o json.")
    return cast(F, chosen(short(command)))


def example(*lines: str) -> str:
    """The end of a command's help, for ``epilog``: command lines that work. tests/lb/cli/test_help.py tries them."""
    return "\b\nExample:\n" + "".join(f"  {line}\n" for line in lines)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def console() -> Console:
    """Plain text where the output is no terminal, and never wider than it is."""
    from rich.console import Console  # noqa: PLC0415  only where a table is drawn

    return Console(highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], right: frozenset[str] = frozenset()) -> Table:
    """Rows with the columns given; names in ``right`` hold numbers."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        drawn.add_column(
            column.replace("_", " "),
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in right,
        )
    for row in rows:
        drawn.add_row(*(Text(cell(row.get(column)), style=_style(column, row.get(column))) for column in columns))
    return drawn


def _style(column: str, value: Any) -> str:
    """Of a state that somebody should look at; no colour where the output is no terminal, or NO_COLOR is set."""
    colour = STATES.get(cell(value)) if column in ("state", "health") else None
    return {BAD: "red", ATTENTION: "yellow"}.get(colour or "", "")


def plural(count: int, noun: str) -> str:
    """``1 service``, ``2 services``."""
    many = {"address": "addresses", "MUX": "MUXes"}.get(noun, noun + "s")
    return f"{count:,} {noun if count == 1 else many}"
