# SPDX-License-Identifier: Apache-2.0
"""Keeps settings below ``/proc/sys/net`` as a daemon set them. The kernel tells of no change there, so they are read
once a second; a read takes a few microseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.watch import NOTHING, Area
from lb.errors import IoError

#: Names are paths below it, since interface names may hold dots.
SYSCTLS = Path("/proc/sys/net")


def shown(key: str) -> str:
    """As ``sysctl`` writes it."""
    return "net." + key.replace("/", ".")


def write(key: str, value: str) -> None:
    """Raises IoError."""
    try:
        (SYSCTLS / key).write_text(value)
    except OSError as error:
        raise IoError(f"cannot set {shown(key)} to {value}: {(error.strerror or str(error)).lower()}") from None


class KeptSysctls:
    """A part of :mod:`lb.daemon.kernel.keeper`."""

    areas: Area = NOTHING
    interval = 1.0

    def __init__(self, wanted: Callable[[], Mapping[str, str]]) -> None:
        """``wanted``: the values that were set, by name; asked for at each look."""
        self._wanted = wanted

    async def look(self) -> Sequence[Difference]:
        """A setting that is not there has gone with its interface; there is nothing to keep."""
        found = {key: _read(key) for key in self._wanted()}
        return [
            Difference("sysctl", shown(key), f"was set to {found[key]}")
            for key, value in self._wanted().items()
            if found[key] not in (None, value)
        ]

    async def put_back(self, differences: Sequence[Difference]) -> None:
        names = {difference.name for difference in differences}
        for key, value in self._wanted().items():
            if shown(key) in names:
                write(key, value)


def _read(key: str) -> str | None:
    try:
        return (SYSCTLS / key).read_text().strip()
    except OSError:
        return None
