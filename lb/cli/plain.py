# SPDX-License-Identifier: Apache-2.0
"""Tables and times as plain text, without a library to load: for the commands that ask the manager."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from lb.cli.output import cell
from lb.errors import RequestError

_GAP = "  "
#: No column is folded to less.
_NARROWEST = 8


def columns(
    header: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[str] = (), width: int | None = None
) -> list[str]:
    """Lines of a table as wide as its widest cells; names in ``right`` hold numbers. Where that is wider than
    ``width``, the widest of the other columns are folded."""
    # What is text already, as most of it is, need not go through cell(): there may be a hundred thousand of them.
    texts = [tuple(header)]
    texts += [tuple([v if v.__class__ is str and v.isprintable() else cell(v) for v in row]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numbers = {i for i, name in enumerate(header) if name in set(right)}
    wide = width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width
    if wide and width is not None:
        floors = [size if i in numbers else max(_NARROWEST, len(header[i])) for i, size in enumerate(widths)]
        widths = _narrowed(widths, floors, width)
    # One format for all lines: there may be tens of thousands of them.
    form = _GAP.join(f"%{'' if i in numbers else '-'}{size}s" for i, size in enumerate(widths))
    if wide:
        texts = [line for row in texts for line in _folded(row, widths)]
    return [(form % row).rstrip() for row in texts]


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


def terminal_width() -> int | None:
    """So wide may a line be; None: the output is a file or a pipe, whose reader wants whole lines."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and int(told) > 0:
        return max(_NARROWEST, int(told))
    try:
        return max(_NARROWEST, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):  # ValueError: no real file
        return None


def endpoint(address: Any, port: Any) -> str:
    """``10.0.3.21:80``, ``[2001:db8::1]:80``, ``203.0.113.128/25:8000-8099``; port 0 is any."""
    text = cell(address)
    return f"[{text}]:{cell(port)}" if ":" in text else f"{text}:{cell(port)}"


def rate(value: Any) -> str:
    """``12``, ``3.45k``, ``1.25M``: three digits are enough to be compared at a glance."""
    if not isinstance(value, int | float):
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{_three(value / size)}{unit}"
    return f"{value:.0f}" if value >= 9.95 or value == int(value) else f"{value:.1f}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def ago(since: Any, now: float | None = None) -> str:
    """How long, for people: ``12 s``, ``3 min``, ``5 h``, ``9 d``."""
    if not isinstance(since, int | float):
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - since)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def lasting(seconds: float) -> str:
    """A given time for people: ``90 s``, ``10 min``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m`` or ``2h``; raises RequestError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m", "h") else (text, "s")
    if not (number.isascii() and number.replace(".", "", 1).isdigit()):
        raise RequestError(f'a time must be such as 90s, 10m or 2h, not "{text[:40]}"')
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def clock(at: Any) -> str:
    """Local date and time."""
    if not isinstance(at, int | float):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
