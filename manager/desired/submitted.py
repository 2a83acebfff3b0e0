# SPDX-License-Identifier: Apache-2.0
"""What operators give: a file of ``[[service]]`` tables, or an array of such tables.

One that is word for word what it was makes the service that it made, and need not be read again: whoever applies a file
of ten thousand services has changed a few of them. A file is cut above each ``[[service]]`` for it, and of each piece
only a digest is kept, in memory, so the first file after a start of the manager is read whole. Used by
:class:`manager.controller.controller.Controller`, one change at a time.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lb.config import toml
from lb.errors import ConfigError
from lb.model import Service
from manager.desired.state import AsTold, Desired, DesiredChange, Rules, apply_tables

#: So many pieces that make no service of today may be remembered.
_GONE = 1000
_DIGEST = 16


class _ReadWholeError(Exception):
    """To be read as a whole."""


@dataclass(slots=True)
class _Tables:
    items: list[object]  #: each is a table; or the service that a table makes, where that is known
    digests: list[bytes | None]  #: of what each was; None: not to be remembered
    mistakes: list[tuple[str, str]]  #: what has no place in a file of services


class SubmittedTables:
    """What is known of pieces of files, and of tables."""

    def __init__(self) -> None:
        self._known: dict[bytes, Service] = {}

    def apply(
        self,
        desired: Desired,
        given: str | Sequence[object],
        rules: Rules,
        *,
        replace_all: bool = False,
        as_told: AsTold = lambda service: service,
    ) -> DesiredChange:
        """:func:`manager.desired.state.apply_tables` for a file's text, or an array."""
        tables = self._read(given, desired.services)
        try:
            change = apply_tables(desired, tables.items, rules, replace_all=replace_all, as_told=as_told)
        except ConfigError as error:
            raise ConfigError([*tables.mistakes, *error.mistakes]) from None
        if tables.mistakes:
            raise ConfigError(tables.mistakes)
        self._remember(tables, change.new.services)
        return change

    def _read(self, given: str | Sequence[object], services: Mapping[str, Service]) -> _Tables:
        """Raises ConfigError for what is no TOML."""
        if isinstance(given, str):
            try:
                return self._pieces(given, services)
            except (_ReadWholeError, ConfigError):
                return _whole(given)
        digests = [_digest(marshal.dumps(table, 0)) if isinstance(table, dict) else None for table in given]
        items = [self._service(digest, services) or table for table, digest in zip(given, digests, strict=True)]
        return _Tables(items, digests, [])

    def _pieces(self, text: str, services: Mapping[str, Service]) -> _Tables:
        """Each piece is valid by itself, and has no other table than services; so all of them together are a file that
        means the same, and its mistakes are those of the pieces."""
        pieces = toml.cut(text)
        if pieces is None or toml.loads(pieces[0]):
            raise _ReadWholeError
        found = _Tables([], [], [])
        for piece in (piece.rstrip("\n") for piece in pieces[1]):
            digest = _digest(piece.encode())
            service = self._service(digest, services)
            if service is not None:
                found.items.append(service)
                found.digests.append(digest)
                continue
            document = toml.loads(piece)
            tables = document.pop("service", [])
            if document:
                raise _ReadWholeError
            found.items += tables
            found.digests += [digest] if len(tables) == 1 else [None] * len(tables)
        return found

    def _service(self, digest: bytes | None, services: Mapping[str, Service]) -> Service | None:
        """What is there, and was made of the very same."""
        found = self._known.get(digest) if digest is not None else None
        return found if found is not None and services.get(found.name) is found else None

    def _remember(self, tables: _Tables, services: Mapping[str, Service]) -> None:
        """All were found good; ``services``: what there is after them."""
        for item, digest in zip(tables.items, tables.digests, strict=True):
            if digest is not None and isinstance(item, dict):
                self._known[digest] = services[item["name"]]
        if len(self._known) > len(services) + len(tables.items) + _GONE:
            self._known = {digest: one for digest, one in self._known.items() if services.get(one.name) is one}


def _whole(text: str) -> _Tables:
    tables, mistakes = toml.service_tables(text)
    return _Tables(tables, [None] * len(tables), mistakes)


def _digest(data: bytes) -> bytes:
    """Of a table as :mod:`marshal` writes it, so it tells 1 from 1.0 and from true, and one order of keys from another,
    as the reader of tables does."""
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
