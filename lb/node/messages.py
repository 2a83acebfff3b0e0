# SPDX-License-Identifier: Apache-2.0
"""What manager and nodes say to each other: the state of a node, the difference of two, and their digest. Pure.

A node's state is generic, ``{section: {key: plain JSON value}}``, so that the stream need not know what it carries:

    services       name -> ``[[service]]`` table, with the state of each backend as it shall be now
    announcements  VIP prefix -> {"communities", "med", "prepend", "peers"}     MUXes only
    muxes          name -> {"address", "address6"}, whose tunnels to accept     agents only
    options        "drain": true                                                MUXes only

Used by ``manager/nodes.py`` and by the nodes. Values are never changed in place: whoever changes one makes a new
one, so that the same object is the same value and comparing large states is cheap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

NodeState = dict[str, dict[str, Any]]

SECTIONS = ("services", "announcements", "muxes", "options")

#: The state of a node that was never told anything.
EMPTY: NodeState = {}


def diff(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What makes ``new`` of ``old``: ``{"set": {section: {key: value}}, "remove": {section: [key]}}``."""
    changed: dict[str, dict[str, Any]] = {}
    removed: dict[str, list[str]] = {}
    for section in sorted(old.keys() | new.keys()):
        before, after = old.get(section, {}), new.get(section, {})
        if before is after:
            continue
        missing = object()
        found = {
            key: value
            for key, value in after.items()
            if (was := before.get(key, missing)) is not value and was != value
        }
        if found:
            changed[section] = found
        gone = sorted(before.keys() - after.keys())
        if gone:
            removed[section] = gone
    return {"set": changed, "remove": removed}


def apply(state: Mapping[str, Mapping[str, Any]], delta: Mapping[str, Any]) -> NodeState:
    """The state after a delta; the one before stays as it is. Sections that become empty go."""
    new: NodeState = {section: dict(entries) for section, entries in state.items()}
    for section, keys in delta.get("remove", {}).items():
        for key in keys:
            new.get(section, {}).pop(key, None)
    for section, entries in delta.get("set", {}).items():
        new.setdefault(section, {}).update(entries)
    return {section: entries for section, entries in new.items() if entries}


def canonical(value: Any) -> bytes:
    """JSON in the one form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Digest:
    """The digest of a state, kept up to date by deltas without looking at the whole state again.

    Each entry counts as the sha256 of its canonical ``[section, key, value]``; the digest is their sum, which does
    not depend on order. It shows divergence; it is no signature (the stream's TLS is what keeps strangers out).
    """

    _WIDTH = 2**256

    def __init__(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self._sum = 0
        for section, entries in state.items():
            for key, value in entries.items():
                self._sum += _entry(section, key, value)

    def update(self, old: Mapping[str, Mapping[str, Any]], delta: Mapping[str, Any]) -> None:
        """After ``old`` was changed by ``delta``."""
        for section, keys in delta.get("remove", {}).items():
            for key in keys:
                if key in old.get(section, {}):
                    self._sum -= _entry(section, key, old[section][key])
        for section, entries in delta.get("set", {}).items():
            for key, value in entries.items():
                if key in old.get(section, {}):
                    self._sum -= _entry(section, key, old[section][key])
                self._sum += _entry(section, key, value)

    def copy(self) -> Digest:
        twin = Digest({})
        twin._sum = self._sum
        return twin

    def __str__(self) -> str:
        return f"{self._sum % self._WIDTH:064x}"


def _entry(section: str, key: str, value: Any) -> int:
    return int.from_bytes(hashlib.sha256(canonical([section, key, value])).digest())


def digest(state: Mapping[str, Mapping[str, Any]]) -> str:
    """64 hex digits; equal states, and only those, have equal ones."""
    return str(Digest(state))
