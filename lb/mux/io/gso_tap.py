# SPDX-License-Identifier: Apache-2.0
"""The device by which super-packets leave over AF_PACKET and AF_XDP (``native/io/gso_tap.h``): made, kept up, and gone
with its ios.

Owned by :class:`lb.mux.io.ports.PacketPort` or its AF_XDP kin, which opens it anew when it was deleted. Where it cannot
be had super-packets are cut; :attr:`GsoTap.refused` says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from lb.daemon.kernel import sysctls
from lb.daemon.kernel.repairs import Difference
from lb.daemon.kernel.watch import Area
from lb.dataplane import LinkHeader, TapIo, TunnelGsoProgram
from lb.errors import IoError

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFTXQLEN = 0x8913, 0x8914, 0x8943
_IFF_UP, _IFF_NOARP = 0x1, 0x80


class GsoTap:
    """The device of one MUX, and a part of the keeper."""

    areas = Area.LINK
    interval = 10.0

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._program: TunnelGsoProgram | None = None
        #: Its name, None: there is none; and why not.
        self.now: tuple[str | None, str | None] = (None, None)

    @property
    def name(self) -> str | None:
        return self.now[0]

    @property
    def refused(self) -> str | None:
        return self.now[1]

    def open(self, ios: Sequence[TapIo]) -> None:
        """Super-packets of these leave by it, or are cut. The interface is there; no worker runs these ios.

        Where there is one already, it is another beside it, until the ios of that one are closed."""
        name = f"lbwhole{socket.if_nametoindex(self._interface)}"  # of one interface there is one MUX
        if name == self.name:
            name += "b"
        try:
            # The right to load it is given up before the device may have to be made anew.
            self._program = self._program or TunnelGsoProgram(LinkHeader.NEXT_HOP)
            for io in ios:
                io.set_gso_tap(name, self._program, shared=len(ios) > 1)
            _silence(name)
            _set_up(name)
        except IoError as error:
            for io in ios:
                io.set_gso_tap(None)
            self.now = (None, str(error))
            return
        self.now = (name, None)

    def closed(self) -> None:
        """The ios took it along."""
        self.now = (None, self.refused)

    @property
    def lost(self) -> bool:
        return self.name is not None and not _exists(self.name)

    async def look(self) -> Sequence[Difference]:
        """Nothing where it is gone: that is the port's affair."""
        if self.name is None or self.lost or _flags(self.name) & _IFF_UP:
            return ()
        return (Difference("interface", f"device {self.name}", "was set down", urgent=True),)

    async def put_back(self, differences: Iterable[Difference]) -> None:
        del differences
        if self.name is not None and not self.lost:
            _set_up(self.name)


def _exists(name: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.if_nametoindex(name))
    return False


def _silence(name: str) -> None:
    """The kernel sends nothing of its own into it: it gets no address."""
    if Path(f"/proc/sys/net/ipv6/conf/{name}").exists():
        sysctls.write(f"ipv6/conf/{name}/disable_ipv6", "1")


def _flags(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
        except OSError as error:
            raise IoError(f"cannot look at device {name}: {(error.strerror or str(error)).lower()}") from None
    return int(struct.unpack("16xH14x", answer)[0])


def _set_up(name: str) -> None:
    """Nothing is sent into it, and the kernel would keep a queue of any length for each of 256 possible workers."""
    flags = _flags(name) | _IFF_UP | _IFF_NOARP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            fcntl.ioctl(asked, _SIOCSIFTXQLEN, struct.pack("16si20x", name.encode(), 1))
            fcntl.ioctl(asked, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags))
        except OSError as error:
            raise IoError(f"cannot set device {name} up: {(error.strerror or str(error)).lower()}") from None
