# SPDX-License-Identifier: Apache-2.0
"""``lb get … -w``: a table that follows the manager. It asks for what changed, and is answered when something did.

On a terminal the table is drawn in place; elsewhere, and with ``-o json``, rows follow as they change, one a line. A
manager that is away for a while is waited for.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from lb.cli.ask.manager import Manager
from lb.cli.tables.row_tables import TABLES
from lb.errors import ControlError

Row = dict[str, Any]
Draw = Callable[[Sequence[Row]], list[str]]

#: The longest wait of one question, seconds.
WAIT = 20.0
#: Until a manager that does not answer is asked again, seconds.
RETRY = 1.0


class WatchedRows:
    """A table as known so far. Pure."""

    def __init__(self, table: str) -> None:
        self._key, self._group = TABLES[table].KEY, TABLES[table].GROUP
        self._newest_first = table == "history"
        self._rows: dict[tuple[Any, ...], Row] = {}

    def take(self, answer: dict[str, Any]) -> list[Row]:
        """What an answer changes: rows that are new or others, and those that are no more, marked ``deleted``."""
        rows = {tuple(row.get(name) for name in self._key): row for row in answer["rows"]}
        if answer["whole"]:
            gone = self._rows.keys() - rows.keys()
        else:
            groups = {row.get(self._group) for row in rows.values()} | set(answer["gone"])
            gone = {key for key, row in self._rows.items() if row.get(self._group) in groups and key not in rows}
        changed = [row for key, row in rows.items() if self._rows.get(key) != row]
        deleted = [{**self._rows[key], "deleted": True} for key in sorted(gone, key=str)]
        for key in gone:
            del self._rows[key]
        self._rows.update(rows)
        return [*(changed[::-1] if self._newest_first else changed), *deleted]

    def all(self) -> list[Row]:
        """In the manager's order: what retires comes last."""
        return [row for _, row in sorted(self._rows.items(), key=_order)]


def _order(item: tuple[tuple[Any, ...], Row]) -> tuple[bool, list[tuple[bool, Any]]]:
    key, row = item
    return row.get("state") == "retiring", [(part is not None, part or 0) for part in key]


def run(manager: Manager, table: str, query: dict[str, Any], draw: Draw, *, as_json: bool) -> None:
    """Until Ctrl-C."""
    rows = WatchedRows(table)
    answers = _answers(manager, table, query)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            _append(rows, answers, draw, as_json)
        else:
            _draw(rows, answers, draw, table)


def _answers(manager: Manager, table: str, query: dict[str, Any]) -> Iterator[dict[str, Any] | str]:
    """Each answer, or why there is none just now. The first question must be answered: its mistakes are the asker's."""
    answer = manager.get("watch", what=table, **query)
    yield answer
    while True:
        try:
            answer = manager.get("watch", what=table, since=answer["cursor"], wait=WAIT, **query)
        except ControlError as error:
            yield str(error)
            time.sleep(RETRY)
        else:
            yield answer


def _append(rows: WatchedRows, answers: Iterator[dict[str, Any] | str], draw: Draw, as_json: bool) -> None:
    for number, answer in enumerate(answers):
        if isinstance(answer, str):
            click.echo(f"lb: waiting for the manager: {answer}", err=True)
            continue
        changed = rows.take(answer)
        if as_json:
            click.echo("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in changed), nl=False)
        elif number == 0:
            click.echo("\n".join(draw(changed)))
        else:
            living = [row for row in changed if not row.get("deleted")]
            head = len(draw([]))
            lines = draw(living)[head:] if living else []
            gone = [
                f"gone: {row.get('service', '')} {row.get('name') or row.get('vip')}" for row in changed[len(living) :]
            ]
            click.echo("".join(line + "\n" for line in [*lines, *gone]), nl=False)
        sys.stdout.flush()


def _draw(rows: WatchedRows, answers: Iterator[dict[str, Any] | str], draw: Draw, table: str) -> None:
    from lb.cli.terminal.redraw import screen  # noqa: PLC0415

    with screen() as terminal:
        for answer in answers:
            if not isinstance(answer, str):
                rows.take(answer)
            note = f"waiting for the manager: {answer}" if isinstance(answer, str) else "Ctrl-C ends"
            head = f"{table}  {time.strftime('%H:%M:%S')}  {note}"
            every = rows.all()
            shown = draw(every[: terminal.height])  # to make lines of thousands that nobody sees takes its time
            if len(every) > terminal.height:
                shown = [*shown[: max(0, terminal.height - 3)], f"… {len(every):,} rows in all"]
            terminal.draw([head, "", *shown])


def events(manager: Manager, limit: int, query: dict[str, Any], draw: Draw, *, as_json: bool) -> None:
    """Events are only ever added: the last ones, and then each as it comes, on a terminal too."""
    last, cursor, first = 0, "", True
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                if not first:
                    cursor = manager.get("watch", what="events", since=cursor, wait=WAIT)["cursor"]
                else:  # before the first question, so that nothing comes between
                    cursor = manager.get("watch", what="events", limit=1)["cursor"]
                rows = manager.get("events", limit=limit if first else 5000, after=last, **query)
            except ControlError as error:
                if first:
                    raise
                click.echo(f"lb: waiting for the manager: {error}", err=True)
                time.sleep(RETRY)
                continue
            if as_json:
                click.echo("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), nl=False)
            elif rows or first:
                click.echo("\n".join(draw(rows)[0 if first else 1 :]))
            sys.stdout.flush()
            last = max([last, *(row["id"] for row in rows)])
            first = False
