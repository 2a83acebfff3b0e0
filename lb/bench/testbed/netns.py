# SPDX-License-Identifier: Apache-2.0
"""Network namespaces with names of their own: made, entered, and removed, whoever made them having crashed or not.

Called by :mod:`lb.bench` and by the labs of the tests. A name reads ``vipmux-PID-N-ROLE``; PID is the process
that made it, so that :func:`reap` can tell what a crashed run left behind from what a running one still uses. The
kernel owns the namespaces; nothing here touches the namespace that we were started in.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from lb.errors import IoError

T = TypeVar("T")

NETNS = Path("/run/netns")
#: Files in memory; not on every machine.
MEMORY = Path("/dev/shm")  # noqa: S108
CLONE_NEWNET = 0x40000000
_NAME = re.compile(r"^vipmux-(\d+)-")
_serial = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def unique_prefix() -> str:
    """A prefix for the names of one set of namespaces: nobody else on this machine has it."""
    return f"vipmux-{os.getpid()}-{next(_serial)}"


def ip(*arguments: str, stdin: str | None = None) -> str:
    """Runs ip(8); what it complains about becomes an :class:`IoError`."""
    done = subprocess.run(["ip", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise IoError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def batch(lines: Iterable[str], namespace: str | None = None) -> None:
    """Runs many ip(8) commands in one process."""
    where = ("-n", namespace) if namespace else ()
    ip(*where, "-batch", "-", stdin="\n".join(lines) + "\n")


def enter(namespace: str) -> None:
    """Moves the calling thread into the namespace, for good."""
    with (NETNS / namespace).open("rb") as handle:
        if _libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def inside(namespace: str, function: Callable[[], T]) -> T:
    """Calls the function in a short-lived thread that has entered the namespace; sockets it opens stay there."""
    results: list[T] = []
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            enter(namespace)
            results.append(function())
        except BaseException as failure:  # handed to the caller's thread
            failures.append(failure)

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def sysctl(namespace: str, settings: Mapping[str, int | str]) -> None:
    """Writes ``net.*`` settings of the namespace, named by their path below /proc/sys/net."""

    def write() -> None:
        for name, value in settings.items():
            (Path("/proc/sys/net") / name).write_text(str(value))

    inside(namespace, write)


def pids(namespace: str) -> list[int]:
    """The processes that live in the namespace."""
    return [int(word) for word in ip("netns", "pids", namespace).split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _abandoned(name: str) -> bool:
    found = _NAME.match(name)
    return found is not None and not _alive(int(found[1]))


def reap() -> list[str]:
    """Removes namespaces, their processes and directories of processes that are gone; returns their names."""
    left = sorted(entry.name for entry in NETNS.glob("vipmux-*") if _abandoned(entry.name)) if NETNS.is_dir() else []
    for name in left:
        with contextlib.suppress(IoError):  # another run may be reaping as well
            for pid in pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip("netns", "del", name)
    for place in (Path(tempfile.gettempdir()), MEMORY):
        for directory in place.glob("vipmux-*"):
            if _abandoned(directory.name):
                shutil.rmtree(directory, ignore_errors=True)
    return left
