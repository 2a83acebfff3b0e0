# SPDX-License-Identifier: Apache-2.0
"""AF_XDP: the XDP program that takes VIPs' frames, and the sockets that it gives them to."""

from __future__ import annotations

import errno
import os

from lb.dataplane.binding import Cdata, Closable, c, ffi
from lb.dataplane.host import bpf_refusal, host_prefixes
from lb.dataplane.io import TapIo
from lb.errors import IoError
from lb.model import Network

#: The longest frame, with its link header, that AF_XDP can take here.
XDP_FRAME_MAX: int = c.XDP_FRAME_MAX
#: Of one worker.
XDP_QUEUES_MAX: int = c.XDP_QUEUES_MAX

_VERIFIER_LOG_BYTES = 1 << 20
#: By errno, as a sentence goes on; lb/doctor/checks/mux.py knows what ends them.
ATTACH_REFUSALS = {
    errno.EBUSY: "another XDP program is on it, which is left alone",
    errno.EEXIST: "another XDP program is on it, which is left alone",
    errno.EOPNOTSUPP: "its driver runs no XDP program",
    errno.EINVAL: "its driver does not take the program as the interface is set up",
    errno.ERANGE: "its MTU is too large for an XDP program in the driver",
}
SOCKET_REFUSALS = {
    errno.EBUSY: "somebody else has a queue of it",
    errno.EMSGSIZE: f"its frames are longer than {XDP_FRAME_MAX:,} bytes",
    errno.EAFNOSUPPORT: "this kernel has no AF_XDP",
    errno.ENOBUFS: "no memory may be locked for it (ulimit -l, LimitMEMLOCK)",
    errno.EOPNOTSUPP: "its driver does not share its memory with us",
}


def _prefix(vip: Network) -> Cdata:
    return host_prefixes([vip])[0]


class Redirect(Closable):
    """The XDP program that gives VIPs' frames to AF_XDP sockets, with its maps; attached to one interface or none."""

    def __init__(self, queues: int) -> None:
        log = ffi.new("char[]", _VERIFIER_LOG_BYTES)
        out = ffi.new("struct redirect **")
        code = c.redirect_load(queues, log, _VERIFIER_LOG_BYTES, out)
        if code < 0:
            reason = bpf_refusal(code, ffi.string(log).decode(errors="replace"))
            raise IoError(f"the XDP program was not loaded: {reason}")
        self._c = ffi.gc(out[0], c.redirect_destroy)

    def add(self, vip: Network) -> None:
        self._done(c.redirect_add_vip(self._c, _prefix(vip)), f"add {vip} to the XDP program")

    def remove(self, vip: Network) -> None:
        """Also where it is not there."""
        code = c.redirect_remove_vip(self._c, _prefix(vip))
        self._done(0 if code == -errno.ENOENT else code, f"take {vip} out of the XDP program")

    def set_address(self, mac: bytes) -> None:
        """The interface's link address; frames to others are not taken, and none at all before this."""
        self._done(c.redirect_set_address(self._c, mac), "tell the XDP program the link address")

    def set_socket(self, queue: int, fd: int) -> None:
        """What a queue's frames go to, as :class:`XdpIo` does of its own sockets."""
        self._done(c.redirect_set_socket(self._c, queue, fd), f"tell the XDP program the socket of queue {queue}")

    def attach(self, ifindex: int, *, generic: bool) -> None:
        """``generic``: by the kernel's own code, not by the driver. Raises IoError with the reason alone."""
        code = c.redirect_attach(self._c, ifindex, generic)
        if code < 0:
            raise IoError(ATTACH_REFUSALS.get(-code, os.strerror(-code).lower()))

    @property
    def attached(self) -> bool:
        """Also False when its interface was removed."""
        return bool(c.redirect_attached(self._c))

    def detach(self) -> None:
        c.redirect_detach(self._c)

    def takes(self, frame: bytes) -> bool:
        """Whether the program takes such a frame, were it received by queue 0; needs CAP_BPF."""
        code = c.redirect_test(self._c, frame, len(frame))
        self._done(code, "run the XDP program")
        return bool(code)

    @staticmethod
    def _done(code: int, what: str) -> None:
        if code < 0:
            raise IoError(f"cannot {what}: {os.strerror(-code).lower()}")


class XdpIo(TapIo):
    """AF_XDP sockets of some queues of an interface; sends by any."""

    def __init__(
        self,
        interface: str,
        redirect: Redirect,
        *,
        queues: int = 1,
        first: int = 0,
        every: int = 1,
        frame_max: int = 1514,
        zero_copy: bool = False,
        busy_poll: bool = False,
    ) -> None:
        """Of ``queues`` of the interface those from ``first`` on, each ``every`` one."""
        settings = ffi.new("struct xdp_settings *", [first, every, queues, frame_max, zero_copy, busy_poll])
        name = interface.encode()
        super().__init__(f"AF_XDP on {interface}", lambda out: c.xdp_io_open(name, redirect._c, settings, out))
        self.busy_poll = bool(settings.busy_poll)  #: obtained; False: not asked for, or refused by the kernel

    def _set_gso_tap(self, name: Cdata, shared: int, program: int) -> int:
        return int(c.xdp_io_set_gso_tap(self._c, name, shared, program))

    @staticmethod
    def _why(number: int) -> str:
        return SOCKET_REFUSALS.get(number, os.strerror(number).lower())
