# SPDX-License-Identifier: Apache-2.0
"""Files that must be whole, last a power cut, and be nobody else's business: keys, certificates, cached states.

Used by :mod:`lb.node.identity`, :mod:`lb.node.cache` and the manager's authority. Holds no state.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def make_private_directory(path: Path) -> None:
    """Only its owner may look into it, whoever made it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, data: bytes) -> None:
    """In place of what was there, at once and for good; mode 0600 from its first instant. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()  # of a process that was killed
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """A new name in a directory outlives a power cut only after this."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
