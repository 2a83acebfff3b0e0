# SPDX-License-Identifier: Apache-2.0
"""Single values as people read them: the cells of tables, addresses with ports, rates, times past. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

#: Of many names a sentence has so many.
_NAMED = 3
#: Printable ASCII, and the end of a line.
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n"


def cell(value: Any) -> str:  # noqa: PLR0911  one way for each type
    """One value of a table."""
    if isinstance(value, str) and value.isprintable():  # as nearly all are
        return value
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{cell(key)}: {cell(item)}" for key, item in value.items()) or "-"
    return "".join(c if c.isprintable() else "?" for c in str(value))  # what a daemon says must not steer a terminal


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


def clock(at: Any) -> str:
    """Local date and time."""
    if not isinstance(at, int | float):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def size(count: Any) -> str | None:
    """Bytes for people; None: no number."""
    if not isinstance(count, int):
        return None
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


def harmless(text: str) -> str:
    """Without what a terminal could take for an order; lines stay lines."""
    if text.isascii() and not text.encode().translate(None, _PLAIN):  # the quickest look at a million characters
        return text
    return "\n".join(map(cell, text.split("\n")))
