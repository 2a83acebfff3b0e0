# SPDX-License-Identifier: Apache-2.0
"""The last good state on disk, so that a node serves before any manager answers, and when none does.

Two files in ``<state_dir>/node``, owned by :class:`Cache` (one process; the daemon's lock sees to it). ``state`` is a
line of JSON that says what it is (with the checksum of the rest) and then the whole state; it is replaced atomically.
``changes`` holds what came after, one line for each change with its own checksum, so that a change to one VIP of ten
thousand writes that change. Everything is on disk before the call returns; a record cut short by a power cut was never
acknowledged, and is left out. A damaged file costs one clear line in the log, and the start goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.errors import IoError
from lb.log import get_logger
from lb.node.files import make_private_directory, write_private
from lb.node.messages import NodeState, apply
from lb.node.packed import canonical, pack_sections, sections_text

log = get_logger()

_VERSION = 1
#: The file of changes is folded into the state when it is larger than this and than half of the state, bytes.
_FOLD_FROM = 1 << 20
_CHECKSUM = 16


@dataclass(frozen=True, slots=True)
class Cached:
    """A state, and which one it is."""

    term: int
    generation: int
    digest: str
    state: NodeState

    @property
    def label(self) -> dict[str, Any]:
        return {"term": self.term, "generation": self.generation, "digest": self.digest}


class Cache:
    """The state of one node, ``kind:name``. Calls block on the disk."""

    def __init__(self, directory: Path, node: str) -> None:
        self._directory = directory
        self._node = node
        self._base = ""  #: checksum of the state that the changes belong to
        self._base_size = 0
        self._changes_size: int | None = None  #: None: not known to be in order, so the next write is whole

    @property
    def _state_file(self) -> Path:
        return self._directory / "state"

    @property
    def _changes_file(self) -> Path:
        return self._directory / "changes"

    # -- reading ------------------------------------------------------------------------------------------------

    def load(self) -> Cached | None:
        """The last good state, or None; what is wrong with it is logged."""
        try:
            head, _, body = self._state_file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"cannot be read: {(error.strerror or str(error)).lower()}"
            log.error("cached state not used", file=str(self._state_file), reason=reason)
            return None
        try:
            cached = self._parse(head, body)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.error("cached state not used", file=str(self._state_file), reason=f"is damaged: {error}")
            return None
        return self._changed(cached)

    def _parse(self, head: bytes, body: bytes) -> Cached:
        label = json.loads(head)
        if label["version"] != _VERSION:
            raise ValueError(f"is of version {label['version']}")
        if label["node"] != self._node:
            raise ValueError(f"it is the state of {label['node']}, not of {self._node}")
        if label["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("its checksum is wrong")
        state = json.loads(body)
        if not isinstance(state, dict) or not all(isinstance(entries, dict) for entries in state.values()):
            raise ValueError("it is no state")
        self._base, self._base_size = label["sha256"], len(body)
        return Cached(int(label["term"]), int(label["generation"]), str(label["digest"]), pack_sections(state))

    def _changed(self, cached: Cached) -> Cached:
        """With the changes that came after; they end where a record is not whole."""
        try:
            lines = self._changes_file.read_bytes().split(b"\n")
        except OSError:
            return cached
        if lines[0].decode(errors="replace") != self._base:
            return cached  # the changes of an earlier state
        size = len(lines[0]) + 1
        for line in lines[1:]:
            checksum, _, text = line.partition(b" ")
            if not line or checksum != _checksum(text):
                self._changes_size = None if line else size
                break
            record = json.loads(text)
            state = apply(cached.state, {"set": pack_sections(record["set"]), "remove": record["remove"]})
            cached = Cached(record["term"], record["generation"], record["digest"], state)
            size += len(line) + 1
        return cached

    # -- writing ------------------------------------------------------------------------------------------------

    def save(self, cached: Cached, delta: Mapping[str, Any] | None = None) -> None:
        """On disk when it returns; ``delta`` is what made it of the state saved last. Raises IoError."""
        try:
            if delta is not None and self._room():
                self._append(cached, delta)
            else:
                self._write(cached)
        except OSError as error:
            self._changes_size = None
            raise IoError(
                f"{self._directory}: cannot be written: {(error.strerror or str(error)).lower()}; "
                "a restart without a manager would begin with an older state"
            ) from None

    def _room(self) -> bool:
        return self._changes_size is not None and self._changes_size <= max(_FOLD_FROM, self._base_size // 2)

    def _write(self, cached: Cached) -> None:
        body = sections_text(cached.state)
        base = hashlib.sha256(body).hexdigest()
        label = {"version": _VERSION, "node": self._node, **cached.label, "sha256": base}
        make_private_directory(self._directory)
        write_private(self._state_file, json.dumps(label).encode() + b"\n" + body)
        first = f"{base}\n".encode()
        write_private(self._changes_file, first)
        self._base, self._base_size, self._changes_size = base, len(body), len(first)

    def _append(self, cached: Cached, delta: Mapping[str, Any]) -> None:
        label = canonical({**cached.label, "remove": delta["remove"]}).removesuffix(b"}")
        text = label + b',"set":' + sections_text(delta["set"]) + b"}"
        line = _checksum(text) + b" " + text + b"\n"
        file = os.open(self._changes_file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            if os.write(file, line) != len(line):
                raise OSError(0, "the disk is full")
            os.fdatasync(file)
        finally:
            os.close(file)
        self._changes_size = (self._changes_size or 0) + len(line)

    def forget_term(self) -> None:
        """Another authority counts its terms from the beginning; the state stays. Raises IoError."""
        cached = self.load()
        if cached is not None:
            self.save(Cached(0, 0, cached.digest, cached.state))


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECKSUM].encode()
