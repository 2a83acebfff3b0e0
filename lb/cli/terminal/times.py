# SPDX-License-Identifier: Apache-2.0
"""Times as plain text, and how wide the terminal is: for the commands that ask the manager."""

from __future__ import annotations

import os
import sys

from lb.errors import RequestError
from lb.tables.layout import NARROWEST


def terminal_width() -> int | None:
    """So wide may a line be; None: the output is a file or a pipe, whose reader wants whole lines."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and int(told) > 0:
        return max(NARROWEST, int(told))
    try:
        return max(NARROWEST, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):  # ValueError: no real file
        return None


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
