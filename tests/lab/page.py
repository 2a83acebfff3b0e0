# SPDX-License-Identifier: Apache-2.0
"""A page of the documents as what it tells to do: commands, files, and what should be seen after them. Pure.

The word after the kind of a fenced block says where it belongs::

    ```sh mux                     commands for every MUX (or ``mux1`` alone, ``host``, ``manager``, ``all``, …)
    ```sh host terminal           the same, in a terminal of their own: the last of them goes on
    ```toml mux /etc/vipmux/…     a file, written on every MUX
    ```text mux                   what the commands before it print there: these lines, in this order

In what should be seen any number stands for any number, several spaces for one, and ``…`` for anything. Blocks without
such a word are for reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_BLOCK = re.compile(r"^```(?P<kind>sh|toml|text) (?P<where>[\w-]+)(?: (?P<more>\S+))?\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    kind: str  #: sh, toml or text
    where: str
    text: str
    path: str | None = None  #: of a file
    goes_on: bool = False


def blocks(page: str) -> Iterator[Block]:
    """In the order of the page."""
    for found in _BLOCK.finditer(page):
        more, kind = found["more"], found["kind"]
        yield Block(
            kind, found["where"], found["text"], more if kind == "toml" else None, kind == "sh" and more == "terminal"
        )


def packages(page: str) -> list[str]:
    """What its commands install of Debian."""
    lines = (line for block in blocks(page) if block.kind == "sh" for line in block.text.splitlines())
    installs = (line.split()[2:] for line in lines if line.startswith("apt-get install "))
    return sorted({word for words in installs for word in words if not word.startswith("-")})


def put(text: str, values: Mapping[str, str]) -> str:
    """The block with a reader's own values."""
    for old, new in values.items():
        text = text.replace(old, new)
    return text


def unseen(wanted: str, printed: str) -> str | None:
    """The first line of what should be seen that was not; None if all were."""
    rest = re.sub(r"[ \t]+", " ", printed)
    for line in wanted.strip().splitlines():
        found = re.search(_pattern(line), rest)
        if found is None:
            return line
        rest = rest[found.end() :]
    return None


def _pattern(line: str) -> str:
    words = [re.sub(r"\d+", r"\\d+", re.escape(re.sub(r" +", " ", part))) for part in line.strip().split("…")]
    return r"[^\n]*".join(word.replace(r"\ ", " ").strip(" ") if word.strip() else "" for word in words)
