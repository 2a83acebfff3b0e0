# SPDX-License-Identifier: Apache-2.0
"""Reads and writes TOML, and cuts files of thousands of services in pieces. Holds no state."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import rtoml

from lb.errors import ConfigError

#: Larger files are not configurations, bytes.
FILE_MAX = 256 * 2**20
#: What begins a service in a file.
HEADER = "[[service]]"


def read_text(path: str | Path) -> str:
    """A file's text; raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            data = bytearray()
            while len(data) <= FILE_MAX and (more := file.read(2**20)):
                data += more
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([(str(path), f"cannot be read: {reason}")]) from None
    except ValueError:  # a NUL in the name
        raise ConfigError([(ascii(str(path)), "cannot be the name of a file")]) from None
    if len(data) > FILE_MAX:
        raise ConfigError([(str(path), f"is larger than {FILE_MAX >> 20} MiB")])
    return decoded(data, str(path))


def decoded(data: bytes | bytearray, file: str | None = None) -> str:
    """What was sent, or is in the file, as text; raises ConfigError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([(f"line {line}", "must be UTF-8 text")], file) from None


def read(path: str | Path) -> dict[str, Any]:
    """The document in a file, as far as that is TOML; raises ConfigError."""
    return loads(read_text(path), str(path))


def loads(text: str, file: str | None = None) -> dict[str, Any]:
    """The document. A mistake of syntax ends the reading, so ConfigError tells only one, with its line."""
    try:
        document: dict[str, Any] = rtoml.loads(text)
    except ValueError as error:
        raise ConfigError([_mistake(str(error))], file) from None
    return document


def _mistake(said: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.*) at line (\d+) column (\d+)", said, re.DOTALL)
    if match is None:  # a key of thousands of parts, or a number of thousands of digits
        return "file", f"is not TOML: {said}"
    reason = "".join(c if c.isprintable() else " " for c in match[1])
    return f"line {match[2]}", f"is not TOML at column {match[3]}: {reason}"


def cut(text: str) -> tuple[str, list[str]] | None:
    """What stands before the first ``[[service]]``, and a piece from each of them to the next. None: a text of several
    lines may hold what looks like one."""
    if '"""' in text or "'''" in text:
        return None
    *before, last = f"\n{text}".split(f"\n{HEADER}")
    head, *pieces = [*(f"{part}\n" for part in before), last]
    return head, [HEADER + piece for piece in pieces]


def service_tables(text: str) -> tuple[list[Any], list[tuple[str, str]]]:
    """The ``[[service]]`` tables of a file, and what else in it has no place there, as mistakes. Raises ConfigError for
    what is no TOML."""
    document = loads(text)
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
