# SPDX-License-Identifier: Apache-2.0
"""A picture of text on a terminal that is drawn again and again without flicker: only lines that changed are written.

Used by ``lb top`` and ``lb get -w``. The picture has a screen of its own, which is gone afterwards, as with less(1).
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from lb.cli.terminal.colour import plain

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"


class Screen:
    """What is on the terminal now."""

    def __init__(self, out: TextIO, size: Callable[[], tuple[int, int]]) -> None:
        self._out = out
        self._size = size
        self._drawn_size = (0, 0)
        self._drawn: list[str] = []

    @property
    def height(self) -> int:
        return self._size()[1]

    def draw(self, lines: Sequence[str]) -> None:
        """The lines that fit; of those that do not, the last line tells."""
        width, height = self._size()
        shown = fitted(lines, width, height)
        if (width, height) != self._drawn_size:
            self._drawn, self._drawn_size = [], (width, height)
            self._out.write("\x1b[2J")
        parts = [
            f"\x1b[{number + 1};1H{line}\x1b[K"
            for number, line in enumerate(shown)
            if number >= len(self._drawn) or self._drawn[number] != line
        ]
        if len(shown) < len(self._drawn):
            parts.append(f"\x1b[{len(shown) + 1};1H\x1b[J")
        if parts:
            self._out.write("".join(parts))
        self._out.flush()
        self._drawn = shown


def fitted(lines: Sequence[str], width: int, height: int) -> list[str]:
    """As much of the lines as a terminal shows."""
    shown = list(lines)
    if len(shown) > height:
        shown = [*shown[: height - 1], f"… {len(shown) - height + 1:,} more lines"]
    return [_cut(line, width) for line in shown]


def _cut(line: str, width: int) -> str:
    """Colours take no room; what is too long loses them."""
    if len(line) <= width or len(text := plain(line)) <= width:
        return line
    return text[: max(0, width - 1)] + "…"


def _size() -> tuple[int, int]:
    found = shutil.get_terminal_size()
    return found.columns, found.lines


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """The terminal, until left; Ctrl-C ends it in peace."""
    out = sys.stdout
    out.write(_ENTER)
    try:
        yield Screen(out, _size)
    except KeyboardInterrupt:
        pass
    finally:
        out.write(_LEAVE)
        out.flush()
