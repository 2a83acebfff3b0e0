# SPDX-License-Identifier: Apache-2.0
"""Colours: what somebody should look at is red or yellow. They say nothing that the words do not say as well.

They go to a terminal only, and not where https://no-color.org says so. Pure but for :func:`wanted`; starts quickly.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence

from lb.tables.layout import Paint

BAD, ATTENTION, GOOD = "31", "33", "32"

#: States of services, backends, nodes, announcements and BGP sessions. Others are as they should be, or about to be.
STATES = {
    **dict.fromkeys(("down", "PANIC", "panic", "away", "gone", "refused"), BAD),
    **dict.fromkeys(("degraded", "drain", "drained", "draining", "late", "withheld", "unknown"), ATTENTION),
}
#: Columns of tables in which states stand.
_COLUMNS = ("State", "STATE")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def wanted() -> bool:
    """Whether what is printed now may have colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, colour: str | None) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def plain(text: str) -> str:
    """Without any."""
    return _ESCAPE.sub("", text)


def states(header: Sequence[str], *, on: bool | None = None) -> Paint:
    """Of a table with this header; ``on``: as told, else as :func:`wanted`."""
    if not (wanted() if on is None else on):
        return {}
    return {i: _state for i, name in enumerate(header) if name in _COLUMNS}


def _state(cell: str) -> str:
    """The state in a cell that may be padded."""
    text = cell.rstrip()
    return styled(text, STATES.get(text)) + cell[len(text) :]


def painted(lines: Iterable[str], colour: str | None, *, on: bool | None = None) -> list[str]:
    """Each line in this colour, where there are any."""
    return [styled(line, colour) for line in lines] if (wanted() if on is None else on) else list(lines)
