# SPDX-License-Identifier: Apache-2.0
"""A mapping that is never changed in place, whose next version shares what did not change with the one before. Pure.

The entries lie in buckets by their hash. A version with another value copies one bucket and the list of buckets, and
two versions are compared by looking only into the buckets that are not the same object: with ten thousand entries and
a change of one, that is some hundred pointers instead of ten thousand. For states of nodes, of which the manager makes
a new version with every change and sends the difference (:mod:`manager.plan.node_states`, :mod:`lb.node.messages`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MISSING: Any = object()
#: Entries of a bucket, about: more buckets cost every version, larger ones every change.
_BUCKET = 64


class PersistentMap(Mapping[K, V]):
    """Equal to any mapping with the same entries; iterates in no particular order. Safe to read from any thread."""

    __slots__ = ("_buckets", "_count")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        found = entries or {}
        self._count = len(found)
        #: A power of two, so that a part of the hash is the bucket.
        buckets: list[dict[K, V]] = [{} for _ in range(1 << (len(found) // _BUCKET).bit_length())]
        mask = len(buckets) - 1
        for key, value in found.items():
            buckets[hash(key) & mask][key] = value
        self._buckets = buckets

    def __getitem__(self, key: K) -> V:
        return self._buckets[hash(key) & (len(self._buckets) - 1)][key]

    def get(self, key: K, default: Any = None) -> Any:
        return self._buckets[hash(key) & (len(self._buckets) - 1)].get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._buckets[hash(key) & (len(self._buckets) - 1)]

    def __iter__(self) -> Iterator[K]:
        for bucket in self._buckets:
            yield from bucket

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PersistentMap):
            return isinstance(other, Mapping) and dict(self) == dict(other)
        if len(self._buckets) != len(other._buckets):
            return dict(self) == dict(other)
        # Lists compare by identity before they compare by value.
        return self._count == other._count and self._buckets == other._buckets

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self)!r})"

    def replaced(self, old: Iterable[K], new: Mapping[K, V]) -> PersistentMap[K, V]:
        """The version without the keys ``old`` and with the entries ``new``; itself where that is the same."""
        put = {key: value for key, value in new.items() if self.get(key, _MISSING) != value}
        take = [key for key in old if key not in new and key in self]
        if not put and not take:
            return self
        buckets, mask, copied = self._buckets.copy(), len(self._buckets) - 1, set()
        count = self._count - len(set(take))

        def own(key: K) -> dict[K, V]:
            index = hash(key) & mask
            if index not in copied:
                copied.add(index)
                buckets[index] = buckets[index].copy()
            return buckets[index]

        for key in take:
            own(key).pop(key, None)
        for key, value in put.items():
            bucket = own(key)
            count += key not in bucket
            bucket[key] = value
        after: PersistentMap[K, V] = PersistentMap()
        after._buckets, after._count = buckets, count
        crowded = count > 4 * _BUCKET * len(buckets)
        deserted = len(buckets) > 1 and count < _BUCKET // 8 * len(buckets)
        return PersistentMap(dict(after)) if crowded or deserted else after


def differences(
    before: Mapping[K, V], after: Mapping[K, V], keys: Iterable[K] | None = None
) -> tuple[dict[K, V], list[K]]:
    """The entries of ``after`` that are not in ``before`` or are others there, and the keys that ``after`` lacks.
    ``keys``: where they may differ, if that is known."""
    found: dict[K, V] = {}
    gone: list[K] = []
    if keys is not None:
        for key in keys:
            if key not in after:
                gone += [key] * (key in before)
            elif before.get(key, _MISSING) != after[key]:
                found[key] = after[key]
        return found, gone
    for one, other in _pairs(before, after):
        for key, value in other.items():
            was = one.get(key, _MISSING)
            if was is not value and was != value:
                found[key] = value
        gone += one.keys() - other.keys()
    return found, gone


def _pairs(before: Mapping[K, V], after: Mapping[K, V]) -> Iterable[tuple[Mapping[K, V], Mapping[K, V]]]:
    """Parts of both that hold all that differs."""
    if before is after:
        return ()
    if isinstance(before, PersistentMap) and isinstance(after, PersistentMap):
        one, other = before._buckets, after._buckets
        if len(one) == len(other):
            return [(a, b) for a, b in zip(one, other, strict=True) if a is not b]
    return ((before, after),)
