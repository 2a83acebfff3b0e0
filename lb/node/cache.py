# SPDX-License-Identifier: Apache-2.0
"""The last good state on disk, so that a node serves before any manager answers, and when none does.

Two files in ``<state_dir>/node``, owned by :class:`Cache` (one process; the daemon's lock sees to it). ``state`` is a
line of JSON that says what it is (with the checksum of the rest) and then the whole state; it is replaced atomically.
``changes`` holds what came after, one line for each change with its own checksum, so that a change to one VIP of ten
thousand writes that change. Everything is on disk before the call returns; a record cut short by a power cut was never
acknowledged, and is left out. Wherever there is a state there is a file of changes, if an empty one: the first is made
before the state. So a file of changes that is gone, or that has lost records in the middle, is noticed: what is left is
an older state than the last one, and :attr:`Cache.incomplete` says so.

A damaged file costs one clear line in the log, and the start goes on without it. A file of a newer version is read as
far as this version can.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lb.daemon.files.private_files import make_private_directory, write_private
from lb.daemon.log import get_logger
from lb.errors import IoError
from lb.node.lazy_section import canonical, pack_sections, sections_text
from lb.node.messages import NodeState, apply

log = get_logger()

_VERSION = 1
#: The file of changes is to be folded into the state when it is larger than this and than half of the state, bytes.
_FOLD_FROM = 1 << 20
#: Whoever saves may put that off for quieter times, until the file is so many times larger.
_PATIENCE = 4
_CHECKSUM = 16


@dataclass(frozen=True, slots=True)
class Cached:
    """A state, and which one it is."""

    term: int
    generation: int
    digest: str
    state: NodeState
    lineage: str = ""  #: of the store that it came from; see lb/node/messages.py
    revision: int = 0

    @property
    def label(self) -> dict[str, Any]:
        return {
            "term": self.term,
            "generation": self.generation,
            "digest": self.digest,
            "lineage": self.lineage,
            "revision": self.revision,
        }

    @classmethod
    def labelled(cls, label: Mapping[str, Any], state: NodeState) -> Cached:
        """The other way; raises ValueError, KeyError or TypeError."""
        return cls(
            int(label["term"]),
            int(label["generation"]),
            str(label["digest"]),
            state,
            str(label.get("lineage", "")),
            int(label.get("revision", 0)),
        )


class Cache:
    """The state of one node, ``kind:name``. Calls block on the disk, and wait for one another."""

    def __init__(self, directory: Path, node: str) -> None:
        #: Why the state that was loaded is an older one than the last, or None.
        self.incomplete: str | None = None
        self._guard = threading.RLock()
        self._directory = directory
        self._node = node
        self._base = ""  #: checksum of the state that the changes belong to
        self._base_size = 0
        self._changes_size: int | None = None  #: None: not known to be in order, so the next write is whole
        self._records = 0  #: in the file of changes
        self._follows = False  #: the state that was read says that there is a file of changes

    @property
    def _state_file(self) -> Path:
        return self._directory / "state"

    @property
    def _changes_file(self) -> Path:
        return self._directory / "changes"

    # -- reading ------------------------------------------------------------------------------------------------

    def load(self) -> Cached | None:
        """The last good state, or None; what is wrong with it is logged."""
        with self._guard:
            return self._load()

    def _load(self) -> Cached | None:
        self.incomplete = None
        self._changes_size, self._records = None, 0
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
        label = msgspec.json.decode(head)
        version = label["version"]
        if type(version) is not int or version < 1:
            raise ValueError("it does not say its version")
        if version > _VERSION:
            log.warning(
                "cached state of a newer version",
                file=str(self._state_file),
                version=version,
                reason=f"this program writes version {_VERSION}; what it does not know of the file is passed over",
            )
        if label["node"] != self._node:
            raise ValueError(f"it is the state of {label['node']}, not of {self._node}")
        if label["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("its checksum is wrong")
        state = msgspec.json.decode(body)
        if not isinstance(state, dict) or not all(isinstance(entries, dict) for entries in state.values()):
            raise ValueError("it is no state")
        self._base, self._base_size = label["sha256"], len(body)
        self._follows = version == _VERSION and label.get("changes") is True
        return Cached.labelled(label, pack_sections(state))

    def _changed(self, cached: Cached) -> Cached:
        """With the changes that came after; they end where a record is not whole."""
        try:
            lines = self._changes_file.read_bytes().split(b"\n")
        except OSError as error:
            if self._follows:
                self._miss(f"cannot be read: {(error.strerror or str(error)).lower()}; what came last is lost")
            return cached
        if lines[0].decode(errors="replace") != self._base:
            return cached  # the changes of an earlier state, which has them: we were killed before they could go
        size = len(lines[0]) + 1
        for number, line in enumerate(lines[1:], 1):
            found = _record(line, cached, number)
            if found is None:
                self._changes_size = None if line else size
                if line and number + 1 < len(lines):  # the last one alone may have been cut short
                    self._miss(
                        f"record {number} is damaged, missing or of a newer version; it and what came after it are lost"
                    )
                break
            cached = found
            size += len(line) + 1
            self._records = number
        return cached

    def _miss(self, what: str) -> None:
        self.incomplete = f"{self._changes_file}: {what}"
        log.error(
            "cached state incomplete", file=str(self._changes_file), reason=what, then="the state is an older one"
        )

    # -- writing ------------------------------------------------------------------------------------------------

    def save(self, cached: Cached, delta: Mapping[str, Any] | None = None) -> None:
        """On disk when it returns; ``delta`` is what made it of the state saved last. Raises IoError."""
        with self._guard:
            self._save(cached, delta)

    def _save(self, cached: Cached, delta: Mapping[str, Any] | None) -> None:
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

    @property
    def due(self) -> bool:
        """Whether the next :meth:`save` should be whole, if nobody waits for it: it takes a fifth of a second for ten
        thousand services. Not while one is under way."""
        return self._changes_size is not None and self._changes_size > self._enough

    @property
    def _enough(self) -> int:
        """Of changes, bytes."""
        return max(_FOLD_FROM, self._base_size // 2)

    def _room(self) -> bool:
        return self._changes_size is not None and self._changes_size <= _PATIENCE * self._enough

    def _write(self, cached: Cached) -> None:
        body = sections_text(cached.state)
        base = hashlib.sha256(body).hexdigest()
        label = {"version": _VERSION, "node": self._node, **cached.label, "changes": True, "sha256": base}
        make_private_directory(self._directory)
        if not self._changes_file.exists():  # from here on there always is one
            write_private(self._changes_file, f"{base}\n".encode())
        write_private(self._state_file, msgspec.json.encode(label) + b"\n" + body)
        first = f"{base}\n".encode()
        write_private(self._changes_file, first)
        self._base, self._base_size, self._changes_size = base, len(body), len(first)
        self._records = 0

    def _append(self, cached: Cached, delta: Mapping[str, Any]) -> None:
        label = canonical({**cached.label, "record": self._records + 1, "remove": delta["remove"]}).removesuffix(b"}")
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
        self._records += 1

    def forget_term(self) -> None:
        """Another authority counts its terms from the beginning; the state stays. Raises IoError."""
        with self._guard:
            cached = self._load()
            if cached is not None:
                self._save(Cached(0, 0, cached.digest, cached.state), None)


def _record(line: bytes, before: Cached, number: int) -> Cached | None:
    """The state after a record of the file of changes; None for what is no such record, or not the one expected."""
    checksum, _, text = line.partition(b" ")
    if not line or checksum != _checksum(text):
        return None
    try:
        record = msgspec.json.decode(text)
        if record.get("record", number) != number:  # older versions did not count them
            return None
        changed = apply(before.state, {"set": pack_sections(record["set"]), "remove": record["remove"]})
        return Cached.labelled(record, changed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # whole, but of a newer version
        return None


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECKSUM].encode()
