# SPDX-License-Identifier: Apache-2.0
"""A table of rows as text: which columns their type has, their cells, and the lines. The one renderer of ``lb get``.

There may be sixty thousand rows, so the manager keeps cells, and puts in only what is counted
(:mod:`manager.api.kept_rows`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from lb.errors import ControlError
from lb.rows.backend import BELOW_HEADER, BackendRow, head_cells
from lb.rows.row import Column, Row
from lb.tables.layout import Paint, drawn, noted
from lb.tables.values import cell

C = TypeVar("C")
R = TypeVar("R", bound=Row)
S = TypeVar("S", bound=msgspec.Struct)


def columns_of(row_type: type[Row], kind: type[C]) -> Iterator[tuple[str, C]]:
    """The columns of one kind that its fields have, each with the name of its field; in the order of the fields."""
    for field in msgspec.structs.fields(row_type):
        for item in _annotations(field.type):
            if isinstance(item, msgspec.Meta) and item.extra is not None:
                yield from ((field.name, column) for column in item.extra["columns"] if isinstance(column, kind))


def _annotations(found: Any) -> tuple[Any, ...]:
    return getattr(found, "__metadata__", ())


@dataclass(frozen=True, slots=True)
class RowTable:
    """How rows of one type stand in a table."""

    row_type: type[Row]
    columns: tuple[tuple[str, Column], ...]

    @property
    def header(self) -> tuple[str, ...]:
        return tuple(column.heading for _, column in self.columns)

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(i for i, (_, column) in enumerate(self.columns) if column.number)

    @property
    def counted(self) -> tuple[tuple[int, Callable[[Any], str]], ...]:
        """Where what is counted stands, and what makes its cell."""
        return tuple((i, _maker(*found)) for i, found in enumerate(self.columns) if found[1].counted)

    @property
    def makers(self) -> tuple[Callable[[Any], str], ...]:
        """What makes a row's cells."""
        return tuple(_maker(name, column) for name, column in self.columns)

    def lines(self, rows: Iterable[Any]) -> list[tuple[str, ...]]:
        """The cells of each line. Backends have a line of their service above them."""
        makers = self.makers
        if not issubclass(self.row_type, BackendRow):
            return [tuple([make(row) for make in makers]) for row in rows]
        found = []
        for _, some in groupby(rows, lambda row: row.service):
            members = list(some)
            found += [head_cells(members[0], len(makers)), *(tuple([make(row) for make in makers]) for row in members)]
        return found

    def without_empty(self, rows: Sequence[Any]) -> RowTable:
        """Columns that are there only if a row has something in them, are."""
        kept = [
            (name, column)
            for name, column in self.columns
            if not column.if_any or any(getattr(row, name) for row in rows)
        ]
        return RowTable(self.row_type, tuple(kept))


def _maker(name: str, column: Column) -> Callable[[Any], str]:
    return column.cell if column.cell is not None else lambda row: cell(getattr(row, name))


@cache
def table_of(row_type: type[Row], *, stats: bool = False) -> RowTable:
    """``stats``: the wide one, with exact counters."""
    found = [(name, column) for name, column in columns_of(row_type, Column) if column.stats in (None, stats)]
    return RowTable(row_type, tuple(sorted(found, key=lambda item: item[1].place)))


@dataclass(frozen=True, slots=True)
class Listing:
    """A table before anybody knows how wide it may be."""

    table: RowTable
    columns: Sequence[Sequence[str]]  #: the cells of each; or already those of several lines, each on a line
    notes: Sequence[str] = ()  #: sentences that stand below


def listing(row_type: type[Row], rows: Sequence[Any], *, stats: bool = False) -> Listing:
    table = table_of(row_type, stats=stats).without_empty(rows)
    lines = table.lines(rows)
    notes = () if stats and issubclass(row_type, BackendRow) else row_type.notes(rows)  # each has its reason beside it
    return Listing(table, list(zip(*lines, strict=True)) if lines else [()] * len(table.columns), notes)


def listed(found: Listing, width: int | None = None, paint: Paint | None = None) -> list[str]:
    """Its lines, none longer than ``width`` where the columns can be folded so far."""
    table = found.table
    head, *lines = drawn(table.header, found.columns, table.numbers, width, paint or {})
    return framed(found, head, lines, width)


def framed(found: Listing, head: str, lines: Iterable[str], width: int | None = None) -> list[str]:
    """The drawn lines below their header and above the notes."""
    second = [BELOW_HEADER] if issubclass(found.table.row_type, BackendRow) else []
    return [head, *second, *lines, *noted(found.notes, width)]


# --- rows that were sent ---------------------------------------------------------------------------------------------


def read_rows(row_type: type[S], text: bytes) -> list[S]:
    """Rows of an answer; see :func:`rows_of`. Raises ControlError."""
    try:
        return msgspec.json.decode(text, type=list[row_type])  # type: ignore[valid-type]
    except msgspec.ValidationError:
        return rows_of(row_type, msgspec.json.decode(text))
    except (msgspec.DecodeError, ValueError) as error:
        raise _no_table(error) from None


def rows_of(row_type: type[S], found: Any) -> list[S]:
    """Of rows as JSON has them. What an older version does not tell is empty. Raises ControlError."""
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise _no_table("it should be an array of objects")
    try:
        return [msgspec.convert(row, row_type) for row in found]
    except msgspec.ValidationError:
        return [_partly(row_type, row) for row in found]


def _partly(row_type: type[S], row: Mapping[str, Any]) -> S:
    known: dict[str, Any] = {}
    for field in msgspec.structs.fields(row_type):
        try:
            known[field.name] = msgspec.convert(row.get(field.encode_name), field.type)
        except msgspec.ValidationError:
            known[field.name] = _empty(field.type)
    return row_type(**known)


def _empty(type_: Any) -> Any:
    """An empty list or mapping, where the type is one; else None, which every cell can show."""
    empty: tuple[object, ...] = ([], {})
    for value in empty:
        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(value, type_)
    return None


def _no_table(why: object) -> ControlError:
    return ControlError(f"the answer is not a table of rows: {why}; are the daemon and lb of one version?")
