# SPDX-License-Identifier: Apache-2.0
"""Tables and long lines as plain text, without a library to load. Pure; widths are in characters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat, zip_longest
from typing import Any

from lb.tables.values import cell

_GAP = "  "
#: No column is folded to less.
NARROWEST = 8

#: By the number of a column: what its cells become once they are as wide as the column. Nothing of it takes any room.
Paint = Mapping[int, Callable[[str], str]]
_UNPAINTED: Paint = {}


def columns(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    right: Iterable[str] = (),
    width: int | None = None,
    paint: Paint = _UNPAINTED,
) -> list[str]:
    """The lines of a table of any values; see :func:`drawn`."""
    texts = [[cell(value) for value in row] for row in rows]
    names = set(right)
    numbers = {i for i, name in enumerate(header) if name in names}
    return drawn(header, list(zip(*texts, strict=True)) or [()] * len(header), numbers, width, paint)


def drawn(
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    numbers: Collection[int] = (),
    width: int | None = None,
    paint: Paint = _UNPAINTED,
) -> list[str]:
    """Lines of a table as wide as its widest cells, which are given column by column; those of ``numbers`` stand to the
    right. Where that is wider than ``width``, the widest of the other columns are folded."""
    widths = [max(len(name), max(map(len, column), default=0)) for name, column in zip(header, cells, strict=True)]
    if width is None or sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        return [*aligned([[name] for name in header], widths, numbers), *aligned(cells, widths, numbers, paint)]
    floors = [size if i in numbers else max(NARROWEST, len(header[i])) for i, size in enumerate(widths)]
    widths = _narrowed(widths, floors, width)
    lines = [line for row in (tuple(header), *zip(*cells, strict=True)) for line in _folded(row, widths)]
    return aligned(list(zip(*lines, strict=True)), widths, numbers, paint)


def aligned(
    cells: Sequence[Sequence[str]], widths: Sequence[int], numbers: Collection[int], paint: Paint = _UNPAINTED
) -> list[str]:
    """Lines of columns that are as wide as told; those of ``numbers`` stand to the right."""
    # A column at a time: there may be tens of thousands of lines.
    padded = [
        map(str.rjust if i in numbers else str.ljust, column, repeat(size))
        for i, (column, size) in enumerate(zip(cells, widths, strict=True))
    ]
    for i, become in paint.items():
        padded[i] = map(become, padded[i])
    return list(map(str.rstrip, map(_GAP.join, zip(*padded, strict=True))))


def _narrowed(widths: Sequence[int], floors: Sequence[int], width: int) -> list[int]:
    """What the columns may take: the widest give first, and none more than its floor."""
    found = list(widths)
    for _ in range(sum(found) + len(_GAP) * (len(found) - 1) - width):
        widest = max(range(len(found)), key=lambda i: (found[i] > floors[i], found[i]))
        if found[widest] <= floors[widest]:
            break
        found[widest] -= 1
    return found


def _folded(row: Sequence[str], widths: Sequence[int]) -> Iterable[tuple[str, ...]]:
    """One line of a table as the lines that it needs."""
    if all(len(text) <= width for text, width in zip(row, widths, strict=True)):
        return [tuple(row)]
    cells = [fold(text, width) for text, width in zip(row, widths, strict=True)]
    return zip_longest(*cells, fillvalue="")


def fold(text: str, width: int) -> list[str]:
    """A text in lines: at spaces where there are any, and within a word that is too long."""
    lines = []
    while len(text) > width:
        at = text.rfind(" ", 1, width + 1)
        if not text[: max(at, 0)].strip():
            at = width
        lines.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*lines, text]


def hanging(lines: Iterable[str], width: int | None, indent: int | None = None) -> list[str]:
    """Lines no longer than ``width``. What goes on stands ``indent`` columns from the left, or 4 more than before."""
    if width is None:
        return list(lines)
    found = []
    for line in lines:
        if len(line) <= width:
            found.append(line)
            continue
        by = min(width // 2, len(line) - len(line.lstrip()) + 4 if indent is None else indent)
        first, *_ = fold(line, width)
        found.append(first)
        found += [" " * by + part for part in fold(line[len(first) :].lstrip(), width - by)]
    return found


def noted(notes: Iterable[str | None], width: int | None) -> list[str]:
    """Sentences below a table, for a column is too narrow for them."""
    found = hanging((note for note in notes if note), width)
    return ["", *found] if found else []
