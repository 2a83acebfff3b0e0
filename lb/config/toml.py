# SPDX-License-Identifier: Apache-2.0
"""Reads and writes TOML: the standard library's parser, and a quick way for files of thousands of services.

:mod:`tomllib` takes a second for ten thousand services. Such a file is nearly always as plain as `lb export` writes it:
headers, and on each line a key with a text or a number. :func:`loads` reads these lines by itself, and gives the value
of any other line to tomllib. What it does not know for sure, and every mistake, it leaves to tomllib as a whole, so
that both give the same value or the same error; tests/lb/config/test_toml.py holds it to that. Pure.
"""

from __future__ import annotations

import enum
import functools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lb.errors import ConfigError

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = re.compile(r"(\[{1,2})([A-Za-z0-9_-]+)(?:\.([A-Za-z0-9_-]+))?(\]{1,2})")
#: In one line: no key of ours has more than two, and no text as many as this.
DOTS_MAX = 255
#: What TOML forbids on a line; \r is looked at by tomllib.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
#: Longer ones have limits that tomllib knows.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


class _NotQuickError(Exception):
    """For tomllib."""


def loads(text: str) -> dict[str, Any]:
    """The document; raises what :func:`tomllib.loads` raises."""
    try:
        return _plain(text)
    except (_NotQuickError, ValueError, RecursionError):
        _check_depth(text)
        return tomllib.loads(text)


def _check_depth(text: str) -> None:
    """Of a key of a hundred thousand parts tomllib makes gigabytes."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > DOTS_MAX:
            raise ValueError(f"Too many dots (at line {number}, column 1); no line of ours has more than {DOTS_MAX}")


def _plain(text: str) -> dict[str, Any]:
    text = text.replace("\r\n", "\n")
    if _CONTROL.search(text):
        raise _NotQuickError
    document: dict[str, Any] = {}
    table = document
    keys: set[str] = set()  # that are known to be bare
    begun: set[int] = set()  # the tables and arrays that headers made: what is written in a line is complete
    slashed = "\\" in text
    for whole in text.split("\n"):
        # As `lb export` writes it; of these there may be a million.
        key, mark, value = whole.partition(" = ")
        if key not in keys or not mark:
            line = whole.strip(" \t")
            if not line or line[0] == "#":
                continue
            if line[0] == "[":
                table = _table(document, line, begun)
                continue
            key, mark, value = line.partition("=")
            key, value = key.rstrip(" \t"), value.lstrip(" \t")
            if not mark or not _KEY.fullmatch(key):
                raise _NotQuickError
            keys.add(key)
        if key in table:
            raise _NotQuickError
        parts = value.split('"')
        if len(parts) == 3 and not parts[0] and not parts[2] and not (slashed and "\\" in value):
            table[key] = parts[1]
        elif _NUMBER.fullmatch(value):
            table[key] = int(value)
        else:  # one that goes on in the next line is wrong by itself, so the whole is left to tomllib
            table[key] = tomllib.loads(f"value = {value}")["value"]
    return document


def _table(document: dict[str, Any], line: str, begun: set[int]) -> dict[str, Any]:
    """The table that a header begins: ``[a]`` or ``[[a]]``, and ``[a.b]`` or ``[[a.b]]`` in the latest ``a``."""
    of_array, name, inner = _header(line)
    parent = document
    if inner is not None:
        found: Any = document.get(name)
        if id(found) not in begun:
            raise _NotQuickError
        parent, name = found[-1] if isinstance(found, list) else found, inner
    table: dict[str, Any] = {}
    there = parent.get(name)
    if of_array and there is None:
        parent[name] = [table]
        begun.add(id(parent[name]))
    elif of_array and isinstance(there, list) and id(there) in begun:
        there.append(table)
    elif not of_array and there is None:
        parent[name] = table
        begun.add(id(table))
    else:
        raise _NotQuickError
    return table


@functools.lru_cache(64)
def _header(line: str) -> tuple[bool, str, str | None]:
    """Whether it is of an array, and its one or two names."""
    match = _HEADER.fullmatch(line)
    if match is None or len(match[1]) != len(match[4]):
        raise _NotQuickError
    return match[1] == "[[", match[2], match[3]


def service_tables(text: str) -> tuple[list[Any], list[tuple[str, str]]]:
    """The ``[[service]]`` tables of a file, and what else in it has no place there, as mistakes. Raises ConfigError for
    what is no TOML."""
    try:
        document = loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([("", f"is not TOML: {str(error).lower()}")]) from None
    tables = document.pop("service", [])
    mistakes = [(key, "has no place in a file of services") for key in document]
    if not isinstance(tables, list):
        mistakes.append(("service", "must be an array of tables; write [[service]] above each"))
        tables = []
    return tables, mistakes


# --- writing ---------------------------------------------------------------------------------------------------------


def format_tables(tables: Iterable[Mapping[str, Any]]) -> str:
    """A file of services of what :func:`lb.config.render.service_table` gave."""
    return "\n".join([part for table in tables for part in _sections(table)])


def _sections(table: Mapping[str, Any]) -> Iterator[str]:
    yield section("[[service]]", {key: value for key, value in table.items() if value.__class__ not in (dict, list)})
    for key, value in table.items():
        if isinstance(value, dict):
            yield section(f"[service.{key}]", value)
    for backend in table.get("backend", ()):
        yield section("[[service.backend]]", backend)


def section(header: str, keys: Mapping[str, Any]) -> str:
    """A table that has no tables in it."""
    return header + "\n" + "".join([f"{key} = {_value(value)}\n" for key, value in keys.items()])


def _value(value: Any) -> str:
    """A TOML value; what is none of TOML's types is written as its text."""
    if value.__class__ is str:
        return _quoted(value)
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    """JSON escapes as TOML does, but for DEL, which TOML wants escaped as well."""
    return _json(text).replace("\x7f", "\\u007f")


_json = json.JSONEncoder(ensure_ascii=False).encode
