# SPDX-License-Identifier: Apache-2.0
"""The files of services that ``-f`` names: one, several, or folders of them. They count as one file, in that order."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from lb.errors import ConfigError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_SERVICE = re.compile(r"service\[(\d+)\]")


def files_option(
    text: str = "A file of services, a folder of *.toml, or - for the input; may be repeated.",
) -> Callable[[CommandT], CommandT]:
    """``-f``; the function gets ``paths``."""
    return click.option("-f", "--file", "paths", multiple=True, metavar="FILE", type=click.Path(), help=text)


@dataclass(frozen=True, slots=True)
class ServiceFiles:
    """What the files hold together, and how many services came from each."""

    text: bytes
    sources: tuple[tuple[str, int], ...]  #: of one file its number does not matter, and is 0

    def blame(self, error: ConfigError) -> ConfigError:
        """The mistakes of the whole, as mistakes of the files."""
        if len(self.sources) == 1:
            return ConfigError(error.mistakes, self.sources[0][0])
        return ConfigError([(self._place(path), message) for path, message in error.mistakes])

    def _place(self, path: str) -> str:
        found = _SERVICE.match(path)
        if found is None:
            return path
        number = int(found[1])
        for name, count in self.sources:
            if number < count:
                return f"{name}: service[{number}]{path[found.end() :]}"
            number -= count
        return path


def read_files(paths: Sequence[str]) -> ServiceFiles:
    """Raises ConfigError: what cannot be read, and where there are several, what is no file of services."""
    names = [name for path in paths for name in _expanded(path)]
    if len(names) == 1:
        return ServiceFiles(file_bytes(names[0]), ((names[0], 0),))
    parts = [(name, file_bytes(name)) for name in names]
    mistakes: list[tuple[str, str]] = []
    sources = []
    for name, data in parts:
        count, wrong = _look(data)
        sources.append((name, count))
        mistakes += [(f"{name}: {path}" if path else name, message) for path, message in wrong]
    if mistakes:
        raise ConfigError(mistakes)
    return ServiceFiles(b"\n".join(data for _, data in parts), tuple(sources))


def _expanded(path: str) -> list[str]:
    if not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).glob("*.toml"))
    if not found:
        raise ConfigError([("", "is a folder without a file *.toml")], path)
    return found


def _look(data: bytes) -> tuple[int, list[tuple[str, str]]]:
    """How many services it has, and what keeps it from being one of several files."""
    from lb.config.toml import decoded, service_tables  # noqa: PLC0415

    try:
        text = decoded(data)
        tables, mistakes = service_tables(text)
    except ConfigError as error:
        return 0, list(error.mistakes)
    if tables and "[[" not in text:
        mistakes.append(("service", "write [[service]] above each: only such services go together with other files"))
    return len(tables), mistakes


def file_bytes(path: str) -> bytes:
    """What the file holds, or what comes to the standard input."""
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([("", f"cannot be read: {(error.strerror or str(error)).lower()}")], path) from None
