# SPDX-License-Identifier: Apache-2.0
"""BPF programs of our own devices, so that super-packets leave whole (``native/bpf/tunnel_gso.h``) and queues run dry
(``native/bpf/tun_steering.h``)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from lb.dataplane.binding import Cdata, c, ffi
from lb.dataplane.pipeline import LinkHeader
from lb.errors import IoError

_LOG_BYTES = 1 << 16
_PLACES = {LinkHeader.NONE: 0, LinkHeader.NEXT_HOP: 1}


class _Program:
    """Loaded once, while the process still may; it can be attached as often as its device is made anew."""

    def __init__(self, load: Callable[[Cdata], int]) -> None:
        log = ffi.new("char[]", _LOG_BYTES)
        fd = load(log)
        if fd < 0:
            raise IoError(_refusal(-fd, ffi.string(log).decode(errors="replace")))
        self.fd = int(fd)

    def close(self) -> None:
        """What is attached stays so."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class TunnelGsoProgram(_Program):
    """Super-packets leave whole."""

    def __init__(self, link: LinkHeader) -> None:
        """Of a TUN device (``NONE``) or of a TAP device (``NEXT_HOP``). Raises IoError: what the kernel says."""
        super().__init__(lambda log: c.tunnel_gso_load(_PLACES[link], log, _LOG_BYTES))


class TunSteeringProgram(_Program):
    """All packets of a TUN device go to its first queue."""

    def __init__(self) -> None:
        """Raises IoError: what the kernel says."""
        super().__init__(lambda log: c.steer_load(log, _LOG_BYTES))


def _refusal(code: int, log: str) -> str:
    reason = {
        errno.EPERM: "BPF is not permitted (it needs CAP_BPF, CAP_NET_ADMIN, and a kernel that is not locked down)",
        errno.ENOSYS: "this kernel has no bpf(2)",
        errno.EOPNOTSUPP: "this kernel's BPF cannot make a tunnel of a super-packet",
    }.get(code, f"BPF is refused: {os.strerror(code).lower()}")
    lines = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    return f"{reason}; the verifier says: {lines[-1]}" if lines else reason


def attach_refusal(code: int) -> str:
    """Why a device did not take the program, or is not to be had."""
    if code == errno.EINVAL:
        return "the kernel is older than Linux 6.6"
    return os.strerror(code).lower()
