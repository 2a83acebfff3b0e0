# SPDX-License-Identifier: Apache-2.0
"""Whose a daemon's state directory is: the daemon believes what lies in it, so nobody else may write there.

Called by ``lb-mux``, ``lb-agent`` and ``lb-manager`` at their start, and by the commands of ``lb-manager``, which work
in the daemon's directory. The directory itself may be reached by a symbolic link, for an administrator may want it on
another disk; in it there is none of ours, and one that is there was left by somebody who wants a file elsewhere
written over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lb.errors import IoError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ROOT = 0


def check_private(directory: Path, key: str, *, user: int | None = None) -> None:
    """Raises IoError, with what to do, where somebody else than root and ``user`` (ourselves) has a hand in it.

    ``key`` is where the file names the directory, such as ``mux.state_dir``. What cannot be looked at is not judged:
    whoever uses it says so.
    """
    mine = os.geteuid() if user is None else user
    try:
        found = directory.stat()
        if found.st_uid not in (mine, _ROOT):
            raise IoError(f"{key} {directory} belongs to {_name(found.st_uid)}: {_instead(found.st_uid, mine)}")
        if found.st_mode & _OTHERS_WRITE:
            raise IoError(
                f"{key} {directory} can be written by others: `chmod go-w {directory}`, and look what is in it"
            )
        for entry in _entries(directory):
            if entry.is_symlink():
                raise IoError(f"{key}: {entry.path} is a symbolic link, which nothing of ours is: remove it")
            owner = entry.stat(follow_symlinks=False).st_uid
            if owner not in (mine, _ROOT, found.st_uid):
                raise IoError(
                    f"{key}: {entry.path} belongs to {_name(owner)}: remove it, or `chown` it to {_name(mine)}"
                )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise IoError(f"{key} {directory} cannot be used: {reason}") from None


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """What is in it, and in its folders."""
    with os.scandir(directory) as found:
        for entry in found:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as inside:
                    yield from inside


def _instead(owner: int, mine: int) -> str:
    name = _name(owner)
    if mine == _ROOT:
        return f"run this as {name} (`runuser -u {name} -- …`), or give the directory to root"
    return f"run this as {name}, or choose another directory"


def _name(uid: int) -> str:
    import pwd  # noqa: PLC0415  only for an error

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
