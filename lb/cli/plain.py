# SPDX-License-Identifier: Apache-2.0
"""Tables and times as plain text, without a library to load: for the commands that ask the manager."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from lb.cli.output import cell
from lb.errors import RequestError


def columns(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[str] = ()) -> list[str]:
    """Lines of a table as wide as its widest cells; names in ``right`` hold numbers. The last column runs free."""
    texts = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    numbers = {i for i, name in enumerate(header) if name in set(right)}

    def line(row: list[str]) -> str:
        return "  ".join(
            text.rjust(width) if i in numbers else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    return [line(row) for row in texts]


def _cell(value: Any) -> str:
    # What begins a line keeps its indentation: "  -> 10.0.3.21:80".
    return cell(value)


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
