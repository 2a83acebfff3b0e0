# SPDX-License-Identifier: Apache-2.0
"""Becomes ExaBGP: run by :mod:`lb.bgp.sidecar` as ``python -m lb.bgp.launch PARENT`` with the configuration on stdin.

What must be true before the first line of ExaBGP runs is made true here: it dies with its parent, whatever kills
that (PR_SET_PDEATHSIG, which must come after the change of user); it has no capability and gets none; and its
configuration, which holds passwords, is a file in memory that no other process can open. The user was already
changed by whoever started us.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from lb.privileges import keep_only

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def die_with(parent: int) -> None:
    """SIGKILL for us when the parent ends; at once if it has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def in_memory(data: bytes) -> str:
    """The path of a file that exists as long as we do."""
    fd = os.memfd_create("exabgp.conf", os.MFD_CLOEXEC)
    os.write(fd, data)
    return f"/proc/self/fd/{fd}"


def main() -> None:
    keep_only(())
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # others of our user may not look into us
    die_with(int(sys.argv[1]))
    path = in_memory(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.argv = ["exabgp", "server", path]
    from exabgp.application.main import main as exabgp  # noqa: PLC0415  only once nothing can go wrong any more

    exabgp()


if __name__ == "__main__":
    main()
