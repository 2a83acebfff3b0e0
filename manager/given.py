# SPDX-License-Identifier: Apache-2.0
"""Tables as operators last gave them. One that is word for word what it was makes the service that it made, and need
not be read again: whoever applies a file of ten thousand services has changed a few of them.

Used by :func:`manager.desired.apply_tables`, one change at a time. In memory only, and of each table only a digest, so
the first file after a start of the manager is read whole.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Mapping, Sequence
from typing import Any

from lb.model import Service

#: So many tables of services that are no more may be remembered.
_GONE = 1000
_DIGEST = 16


class Given:
    """Of each service, the digest of its table and what was made of it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, Service]] = {}

    def same(self, array: Sequence[object], services: Mapping[str, Service]) -> list[bool]:
        """Of each table, whether it makes the very service that is there."""
        return [isinstance(table, dict) and self._is_same(table, services) for table in array]

    def _is_same(self, table: dict[str, Any], services: Mapping[str, Service]) -> bool:
        name = table.get("name")
        known = self._known.get(name) if isinstance(name, str) else None
        return known is not None and services.get(known[1].name) is known[1] and _digest(table) == known[0]

    def remember(self, array: Sequence[object], made: Mapping[str, Service], services: Mapping[str, Service]) -> None:
        """Tables that were found good, and the services that they make; ``services``: all that there are."""
        for table in array:
            if isinstance(table, dict):
                self._known[table["name"]] = _digest(table), made[table["name"]]
        if len(self._known) > len(services) + len(array) + _GONE:
            self._known = {name: known for name, known in self._known.items() if name in services}


def _digest(table: dict[str, Any]) -> bytes:
    """Tells 1 from 1.0 and from true, as the reader of tables does, and one order of keys from another."""
    return hashlib.blake2b(marshal.dumps(table, 0), digest_size=_DIGEST).digest()
