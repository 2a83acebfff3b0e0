# SPDX-License-Identifier: Apache-2.0
"""What must be right before the first packet: state directory, one ``lb-mux`` in it, the interface, our address.

Called once by :mod:`lb.mux.daemon`. Each check raises an error of one sentence that says what to do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lb.errors import IoError
from lb.model import Address, MuxSettings
from lb.mux.nexthops import Link

LOCK_FILE = "mux.lock"


class StateDir:
    """The daemon's directory, locked as long as this object (and so the process) lives."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise IoError(f"mux.state_dir {self.path} cannot be used: {reason}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise IoError(
                f"another lb-mux runs with mux.state_dir {self.path}: stop it first, or give this one its own"
            ) from None

    def close(self) -> None:
        os.close(self._lock)


def find_interface(name: str, links: Iterable[Link]) -> Link:
    """The interface that VIP traffic arrives on."""
    present = {link.name: link for link in links}
    link = present.get(name)
    if link is None:
        others = ", ".join(sorted(present)) or "none"
        raise IoError(f"mux.interface {name!r} does not exist here; the interfaces are: {others}")
    if link.mac is None:
        raise IoError(f"mux.interface {name!r} has no Ethernet address; choose the link to the router")
    return link


def check_outer_source(settings: MuxSettings, local: Mapping[Address, str]) -> None:
    """The tunnel's source must be ours: hosts accept it alone, and what they answer must come back here."""
    for key, address in (("mux.address", settings.address), ("mux.address6", settings.address6)):
        if address is not None and address not in local:
            others = (str(own) for own in local if own.version == address.version and not own.is_loopback)
            present = ", ".join(others) or "none of that family"
            raise IoError(f"{key} {address} is not an address of this machine; it has {present}")
