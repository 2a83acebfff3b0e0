# SPDX-License-Identifier: Apache-2.0
"""What the process is allowed to do: ask before the work begins, and give up the rest once it is set up.

Called by the daemons at start. Capabilities belong to a thread and are inherited by the threads it creates
later, so :func:`keep_only` comes before any worker or helper thread is started (the one that writes the log is there
before, and gives up all of them). What is kept is also made
ambient: child programs (``nft``) get it although ``no_new_privs`` is set. Holds no state of its own.
"""

from __future__ import annotations

import ctypes
import enum
import os
from collections.abc import Collection
from pathlib import Path

from lb.errors import PrivilegeError

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522


class Capability(enum.IntEnum):
    """The capabilities that our programs have a use for, by their kernel numbers."""

    KILL = 5
    SETGID = 6
    SETUID = 7
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    SYS_ADMIN = 21
    SYS_NICE = 23
    SYS_RESOURCE = 24
    PERFMON = 38
    BPF = 39

    def __str__(self) -> str:
        return f"CAP_{self.name}"


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def effective() -> int:
    """The effective capabilities of this thread, as a bit mask."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def missing(needed: Collection[Capability]) -> list[Capability]:
    """Those of ``needed`` that this thread does not have."""
    mask = effective()
    return [capability for capability in sorted(needed) if not mask & 1 << capability]


def require(program: str, needed: Collection[Capability]) -> None:
    """Raises PrivilegeError, with all that is missing in one sentence."""
    lacking = missing(needed)
    if lacking:
        names = " and ".join(str(capability) for capability in lacking)
        raise PrivilegeError(f"this process lacks {names}: start {program} as root, or by its systemd unit")


def keep_only(kept: Collection[Capability]) -> list[Capability]:
    """Gives up every other capability for good, here, in later threads and in children; returns those it now has."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = sum(1 << capability for capability in kept) & effective()
    _narrow_bounding_set(libc, mask)
    _set_capabilities(libc, mask)
    for capability in range(64):
        if mask & 1 << capability:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")
    return [capability for capability in sorted(kept) if mask & 1 << capability]


def _narrow_bounding_set(libc: ctypes.CDLL, mask: int) -> None:
    """Only with CAP_SETPCAP; without it the process was started narrow, and no_new_privs holds that."""
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) < 0:
            return
        if not mask & 1 << capability and libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            return


def _set_capabilities(libc: ctypes.CDLL, mask: int) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    for index in range(2):
        word = mask >> (32 * index) & 0xFFFFFFFF
        data[index] = _Data(word, word, word)
    _check(libc.capset(ctypes.byref(header), data), "give up capabilities")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise PrivilegeError(f"cannot {what}: {os.strerror(ctypes.get_errno()).lower()}")
