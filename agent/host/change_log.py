# SPDX-License-Identifier: Apache-2.0
"""What the agent has changed on the host and cannot see there: former sysctl values, who made a qdisc.

Kept in ``<state_dir>/agent-changes.json``, written in full and put in place atomically *before* each change, so that
``lb-agent cleanup`` can undo it whatever happens in between. :class:`HostChanges` is a value; :class:`ChangeLog` owns
the file. The record serves the clean-up alone: without it, or where it cannot be written, the agent does its work all
the same.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from lb.daemon.files.private_files import write_private
from lb.daemon.files.state_dir import check_private
from lb.errors import IoError

_VERSION = 1


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting's value before us, and the one we gave it."""

    original: int
    ours: int


@dataclass(frozen=True, slots=True)
class HostChanges:
    """All that must be remembered."""

    sysctls: Mapping[str, SettingChange] = field(default_factory=dict)
    interfaces: frozenset[str] = frozenset()  #: where a filter of ours is, or was
    qdiscs: frozenset[str] = frozenset()  #: interfaces whose clsact qdisc we made

    def with_sysctl(self, name: str, original: int, ours: int) -> HostChanges:
        """Remembers a change; of several changes to one setting the first original counts."""
        first = self.sysctls[name].original if name in self.sysctls else original
        return replace(self, sysctls={**self.sysctls, name: SettingChange(first, ours)})

    def without_sysctl(self, name: str) -> HostChanges:
        return replace(self, sysctls={key: value for key, value in self.sysctls.items() if key != name})

    def with_interface(self, name: str, *, made_qdisc: bool) -> HostChanges:
        qdiscs = self.qdiscs | {name} if made_qdisc else self.qdiscs
        return replace(self, interfaces=self.interfaces | {name}, qdiscs=qdiscs)

    def without_interface(self, name: str) -> HostChanges:
        return replace(self, interfaces=self.interfaces - {name}, qdiscs=self.qdiscs - {name})


class ChangeLog:
    """The file. Reading a damaged one is an error: guessing could restore wrong values.

    Whoever can go on without it calls :meth:`set_aside` then."""

    def __init__(self, state_dir: str | Path) -> None:
        self.path = Path(state_dir) / "agent-changes.json"

    def load(self) -> HostChanges:
        try:
            raw = msgspec.json.decode(self.path.read_text())
            if raw["version"] != _VERSION:
                raise ValueError("another version")
            return HostChanges(
                sysctls={name: SettingChange(int(old), int(ours)) for name, (old, ours) in raw["sysctls"].items()},
                interfaces=frozenset(map(str, raw["interfaces"])),
                qdiscs=frozenset(map(str, raw["qdiscs"])),
            )
        except FileNotFoundError:
            return HostChanges()
        except OSError as error:
            raise IoError(f"{self.path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise IoError(f"{self.path}: is damaged") from None

    def set_aside(self) -> Path | None:
        """Gives a file that cannot be read another name, for people to look at; None where even that fails."""
        aside = self.path.with_name(self.path.name + ".damaged")
        try:
            self.path.replace(aside)
        except OSError:
            return None
        return aside

    def save(self, changes: HostChanges) -> None:
        """In place of the old one, at once and for good; with nothing to remember there is no file."""
        try:
            if changes == HostChanges():
                self.path.unlink(missing_ok=True)
                return
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(_dump(changes))
        except OSError as error:
            raise IoError(f"{self.path}: cannot be written: {(error.strerror or str(error)).lower()}") from None

    def _write(self, text: str) -> None:
        write_private(self.path, text.encode())


def _dump(changes: HostChanges) -> str:
    raw = {
        "version": _VERSION,
        "sysctls": {name: [change.original, change.ours] for name, change in sorted(changes.sysctls.items())},
        "interfaces": sorted(changes.interfaces),
        "qdiscs": sorted(changes.qdiscs),
    }
    return msgspec.json.format(msgspec.json.encode(raw), indent=1).decode() + "\n"


class Lock:
    """One agent in a state directory, as long as this object (and so the process) lives."""

    def __init__(self, state_dir: str | Path) -> None:
        directory = Path(state_dir)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(directory, "agent.state_dir")
            self._file = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise IoError(f"agent.state_dir {directory} cannot be used: {reason}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise IoError(f"another lb-agent runs with agent.state_dir {directory}: stop it first") from None

    def close(self) -> None:
        os.close(self._file)
