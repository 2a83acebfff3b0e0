# SPDX-License-Identifier: Apache-2.0
"""A section of a node's state as JSON texts, read when somebody asks: a fifth of the memory that the values would take.

A node looks at a service's table once, when it is new; but it holds the tables of all, for digests and for its disk.
Used by :mod:`lb.node.client` and :mod:`lb.node.cache` for the sections in :data:`PACKED`; to everybody else a
:class:`PackedMap` is a mapping like others. Never changed in place, and pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from lb.model.persistent_map import PersistentMap, differences

#: Sections that nodes hold as texts.
PACKED = frozenset({"services"})

#: JSON in the one form that is hashed: keys in order, no spaces.
canonical = msgspec.json.Encoder(order="sorted").encode


class PackedMap(Mapping[str, Any]):
    """Equal to any mapping with the same entries; each value is made anew when it is asked for."""

    __slots__ = ("_texts",)

    def __init__(self, entries: Mapping[str, Any] | None = None) -> None:
        self._texts = PersistentMap({key: canonical(value) for key, value in (entries or {}).items()})

    @classmethod
    def _of(cls, texts: PersistentMap[str, bytes]) -> PackedMap:
        made = cls()
        made._texts = texts
        return made

    def __getitem__(self, key: str) -> Any:
        return msgspec.json.decode(self._texts[key])

    def text(self, key: str) -> bytes:
        """The canonical JSON of a value."""
        return self._texts[key]

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedMap):
            return self._texts == other._texts
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedMap({dict(self)!r})"

    def replaced(self, old: Iterable[str], new: Mapping[str, Any]) -> PackedMap:
        """As :meth:`lb.model.persistent_map.PersistentMap.replaced`."""
        return self._of(self._texts.replaced(old, pack(new)._texts))

    def changes(self, after: PackedMap, keys: Iterable[str] | None = None) -> tuple[PackedMap, list[str]]:
        """What differs afterwards, and the keys that are gone. ``keys``: where it may."""
        found, gone = differences(self._texts, after._texts, keys)
        return self._of(PersistentMap(found)), gone


def pack(entries: Mapping[str, Any]) -> PackedMap:
    return entries if isinstance(entries, PackedMap) else PackedMap(entries)


def pack_sections(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A state, or what a delta sets, as a node holds it."""
    return {section: pack(entries) if section in PACKED else share(entries) for section, entries in sections.items()}


def share(entries: Mapping[str, Any]) -> dict[str, Any]:
    """With equal values as the same object: ten thousand VIPs are mostly announced alike."""
    known: dict[bytes, Any] = {}
    return {key: known.setdefault(canonical(value), value) for key, value in entries.items()}


def text_of(entries: Mapping[str, Any], key: str) -> bytes:
    """The canonical JSON of an entry."""
    return entries.text(key) if isinstance(entries, PackedMap) else canonical(entries[key])


def plain_section(entries: Mapping[str, Any]) -> dict[str, Any]:
    """For the JSON encoder, which knows dicts alone."""
    if isinstance(entries, PackedMap):
        return {key: msgspec.Raw(entries.text(key)) for key in entries}
    return dict(sorted(entries.items()))


def sections_text(sections: Mapping[str, Mapping[str, Any]]) -> bytes:
    """JSON of a state, or of what a delta sets, without reading what is packed."""
    return b"{%s}" % b",".join(
        b"%s:{%s}"
        % (canonical(section), b",".join(b"%s:%s" % (canonical(key), text_of(entries, key)) for key in entries))
        for section, entries in sections.items()
    )
