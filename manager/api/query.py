# SPDX-License-Identifier: Apache-2.0
"""Parameters of a query: how each is read, and how the OpenAPI description tells of it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lb.config.tables import show
from lb.errors import RequestError

#: A number is shorter.
_NUMBER = re.compile(r"[0-9]{1,16}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Words:
    """Any text."""

    meaning: str | None = None
    many: bool = False  #: may be given any number of times

    def read(self, _: str, text: str | None) -> str | None:
        return text

    def schema(self) -> dict[str, Any]:
        text = {"type": "string"}
        return _described({"type": "array", "items": text} if self.many else text, self.meaning)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words; the first if none is given."""

    words: tuple[str, ...]
    meaning: str | None = None
    default: str | None = None

    def read(self, key: str, text: str | None) -> str:
        found = (self.default or self.words[0]) if text is None else text
        if found not in self.words:
            raise RequestError(f"{key} must be one of {', '.join(self.words)}, not {show(found)}")
        return found

    def schema(self) -> dict[str, Any]:
        found = {"type": "string", "enum": list(self.words), "default": self.default or self.words[0]}
        return _described(found, self.meaning)


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds, both of them allowed."""

    least: float
    most: float
    default: float | None = None  #: None: it must be given, or its absence means something
    meaning: str | None = None
    whole: bool = True

    def read(self, key: str, text: str | None) -> float | None:
        if text is None:
            return self.default
        number = float(text) if _NUMBER.fullmatch(text) else -1.0
        if not self.least <= number <= self.most or (self.whole and number != int(number)):
            raise RequestError(f"{key} must be {self.least:g} to {self.most:g}, not {show(text)}")
        return int(number) if self.whole else number

    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "integer" if self.whole else "number", "minimum": self.least}
        found |= {"maximum": self.most} if self.most < 2**53 else {}
        return _described(found | ({"default": self.default} if self.default is not None else {}), self.meaning)


#: A parameter of a query.
Parameter = Words | Choice | Number


def _described(schema: dict[str, Any], meaning: str | None) -> dict[str, Any]:
    return schema if meaning is None else {**schema, "description": meaning}
