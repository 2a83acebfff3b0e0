# SPDX-License-Identifier: Apache-2.0
"""What must be right before the first packet: state directory, one ``lb-mux`` in it, the interface, our address.

Called once by :mod:`lb.mux.daemon` and :mod:`lb.mux.io.open_port`. Each check raises an error of one sentence that says
what to do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from lb.daemon.files.state_dir import check_private
from lb.daemon.log import get_logger
from lb.errors import IoError
from lb.model import Address, MuxSettings
from lb.mux.hops.next_hops import Link

LOCK_FILE = "mux.lock"

log = get_logger()


class StateDir:
    """The daemon's directory, locked as long as this object (and so the process) lives."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(self.path, "mux.state_dir")
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


class NamespaceClaim:
    """What only one ``lb-mux`` of a network namespace may have, held until the process ends, however it ends.

    It is an abstract UNIX socket: the kernel frees it, and it is not found in any directory, so that two with other
    state directories, or in other containers with one network, meet as well.
    """

    def __init__(self, what: str, name: str) -> None:
        """Raises IoError where another has it. ``what``: ``name`` or ``interface``."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        address = f"\0vipmux/lb-mux/{what}/{name}"
        try:
            self._socket.bind(address)
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise IoError(f"cannot claim the {what} {name}: {(error.strerror or str(error)).lower()}") from None
            pid, uid = _holder(address)
            if uid not in (None, 0, os.geteuid()):
                log.warning("somebody else holds our name", what=f"{what} {name}", pid=pid, uid=uid)
                return
            who = f"another lb-mux (pid {pid})" if pid else "another lb-mux"
            raise IoError(f"{who} runs here with mux.{what} {name!r}: {_OTHERWISE[what]}") from None

    def close(self) -> None:
        self._socket.close()


_OTHERWISE = {
    "name": "stop it first, or give this one another name; they would take each other's isolation and probes",
    "interface": "stop it first; both would forward each packet",
}


def _holder(address: str) -> tuple[int | None, int | None]:
    """Process and user; None where that is not told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asked:
        try:
            asked.connect(address)
            pid, uid, _ = struct.unpack("=iII", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return None, None
    return pid, uid


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
