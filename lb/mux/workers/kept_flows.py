# SPDX-License-Identifier: Apache-2.0
"""Memory for flow tables that outlives ``lb-mux``: who is killed, restarted or upgraded goes on with what it knew.

A directory in a file system without a disk below it, of one MUX alone. In it are a file for each flow table
(native/flow/kept_table.h), one with the numbers that stand in them (:mod:`lb.dataplane.compile.kept_numbers`), one that
says whose it is, and one with the time when it was last in use. The next ``lb-mux`` of the same state directory looks
into the tables that are there (:class:`lb.mux.workers.engine.Engine` has them as elders), takes their flows over, and
removes them.

Everything here may fail, and no failure is a reason not to forward: flows are then remembered in memory of the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lb.daemon.files.state_dir import check_private
from lb.daemon.log import get_logger
from lb.dataplane import Pipeline, regroup
from lb.dataplane.compile.compiler import Compiler
from lb.dataplane.compile.kept_numbers import KeptService, NumbersFile
from lb.errors import DataplaneError, IoError

#: Where Linux has a file system in memory, whatever else it has.
MEMORY = Path("/dev/shm")  # noqa: S108  ours alone: see _private()
_PREFIX = "vipmux-"
_OWNER = "owner"
_NUMBERS = "numbers"
_TABLE = "table-"
_BEAT = "beat"
_TIME = struct.Struct("<d")
#: Who was away for longer forgets, seconds: meanwhile other MUXes had its clients, who may have used their ports anew
#: for connections that only those know.
KEPT_SECONDS = 120.0
#: What of a file's fault is said, by errno.
_REFUSED = {
    errno.EBADMSG: "it is not whole",
    errno.EPROTONOSUPPORT: "another version made it, with another layout",
    errno.EKEYREJECTED: "the pool's seed is another one now",
}

log = get_logger()

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class KeptTable:
    """A flow table and its file."""

    table: regroup.FlowTable
    path: Path


class KeptFlows:
    """Of one MUX, whose state directory nobody else has meanwhile."""

    def __init__(self, directory: Path, seed: bytes, clock: Clock = time.monotonic) -> None:
        """The directory is there. See :meth:`open`. ``clock``: one that all processes since the boot have in common."""
        self.directory = directory
        self.numbers = NumbersFile(directory / _NUMBERS, self._lost)
        self._mark = regroup.seed_mark(seed)
        self._made = 0
        self._alive = True
        self._clock = clock

    @classmethod
    def open(cls, state_dir: Path, seed: bytes, memory: Path = MEMORY) -> KeptFlows | None:
        """None, and a line in the log, where there is no such memory."""
        remove_orphans(memory)
        directory = directory_of(state_dir, memory)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.is_symlink():  # anybody may make one here, to where we would write as root
                raise IoError(f"{directory} is a symbolic link, which nothing of ours is: remove it")
            check_private(directory, "the memory of flows")
            (directory / _OWNER).write_text(str(state_dir.absolute()))
        except (OSError, IoError) as error:
            reason = str(error) if isinstance(error, IoError) else (error.strerror or str(error)).lower()
            _say_lost(reason, directory)
            return None
        return cls(directory, seed)

    # -- what a process before left -----------------------------------------------------------------------------

    def _find(self) -> tuple[list[KeptTable], list[KeptService]]:
        """Its tables, and what their numbers mean; what is of no use is removed, and the log says why."""
        tables = list(self._opened(self._tables()))
        if not tables:
            return [], []
        try:
            return tables, self.numbers.load()
        except (OSError, ValueError) as error:
            log.warning("kept flows refused", reason=str(error), consequence="their numbers mean nothing")
            self._remove_tables()
            return [], []

    def _away(self) -> float | None:
        """For how long nobody has been here, seconds; None: nobody ever was."""
        try:
            return self._clock() - float(_TIME.unpack((self.directory / _BEAT).read_bytes())[0])
        except FileNotFoundError:
            return None
        except (OSError, struct.error):
            return float("inf")

    def _remove_tables(self) -> None:
        for path in self._tables():
            self.remove(path)

    def _tables(self) -> list[Path]:
        return sorted(self.directory.glob(_TABLE + "*"))

    def _opened(self, paths: Iterable[Path]) -> Iterable[KeptTable]:
        for path in paths:
            try:
                yield KeptTable(regroup.open_table(path, self._mark), path)
            except OSError as error:
                reason = _REFUSED.get(error.errno or 0) or (error.strerror or str(error)).lower()
                log.warning("kept flows refused", file=path.name, reason=reason, then="other MUXes are asked")
                self.remove(path)

    # -- what this one keeps ------------------------------------------------------------------------------------

    def begin(self, compiler: Compiler) -> list[KeptTable]:
        """The compiler notes its numbers here from now on, and begins with those of a process before; its tables."""
        away = self._away()
        if away is not None and away > KEPT_SECONDS:
            log.info("kept flows are too old", away=f"{away:.0f} s", then="other MUXes are asked")
            self._remove_tables()
        tables, lent = self._find()
        self.beat()
        try:
            compiler.keep(self.numbers, lent)
        except OSError as error:
            self.numbers.remove()
            self._lost((error.strerror or str(error)).lower())
        return tables

    def beat(self) -> None:
        """It is in use. To be called about twice a second."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.directory / _BEAT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, _TIME.pack(self._clock()), 0)  # written over in one: it is never half
            finally:
                os.close(descriptor)

    def replace_table(self, pipeline: Pipeline, flows: int) -> tuple[regroup.FlowTable | None, Path | None]:
        """An empty table for a pipeline that no worker runs, in memory that is kept where that can be had: the table
        that it had, and the file of the new one. Raises DataplaneError."""
        if not self._alive or not flows:
            return regroup.replace_table(pipeline, flows), None
        path = self._fresh()
        try:
            with path.open("x+b") as file:
                path.chmod(0o600)
                return regroup.replace_table(pipeline, flows, file.fileno(), self._mark), path
        except (OSError, DataplaneError) as error:
            self.remove(path)
            self.numbers.remove()
            self._lost(str(error))
            return regroup.replace_table(pipeline, flows), None

    def remove(self, path: Path | None) -> None:
        """A table's file that is of no use any more."""
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _fresh(self) -> Path:
        while True:
            path = self.directory / f"{_TABLE}{os.getpid()}-{self._made}"
            self._made += 1
            if not path.exists():
                return path

    def _lost(self, reason: str) -> None:
        self._alive = False
        _say_lost(reason, self.directory)


def _say_lost(reason: str, directory: Path) -> None:
    log.warning("flows not kept", reason=reason, memory=str(directory), consequence="a restart forgets them")


def directory_of(state_dir: Path, memory: Path = MEMORY) -> Path:
    """Two MUXes of one machine have two state directories."""
    digest = hashlib.blake2b(os.fsencode(state_dir.absolute()), digest_size=8).hexdigest()
    return memory / f"{_PREFIX}{digest}"


def remove_orphans(memory: Path = MEMORY) -> None:
    """Whose state directory is gone, will not come back for them."""
    for directory in memory.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if directory.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            owner = (directory / _OWNER).read_text()
            if owner and not Path(owner).exists():
                shutil.rmtree(directory, ignore_errors=True)
