# SPDX-License-Identifier: Apache-2.0
"""Tells the service manager how a daemon is: systemd's ``sd_notify``, one datagram to ``$NOTIFY_SOCKET``.

Each daemon makes one :class:`Supervisor` at its start and says ``ready``, ``reloading``, ``stopping`` and its status;
:meth:`Supervisor.alive` is called by whatever loop can vouch for the work, and for nothing less: a loop that hangs, or
that sees a worker hang, does not call it, and systemd ends the daemon and starts it anew. Where nobody supervises the
daemon nothing is sent. The protocol is that of sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping

from lb.daemon.log import get_logger

#: The three variables are for the daemon alone; what it starts is not to speak in its name.
_SOCKET, _WATCHDOG, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
#: How long a supervisor that reads nothing may hold us up, seconds.
PATIENCE = 0.2
#: Signs of life in the time that the supervisor allows between two of them.
PINGS = 4

log = get_logger()


class Supervisor:
    """Whoever started us, if it wants to know; every method may be called at any time, from the event loop."""

    def __init__(
        self,
        address: str | None = None,
        watchdog: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``address``: a path, or ``@name`` for an abstract socket. ``watchdog``: seconds it allows between pings."""
        self._clock = clock
        self._pause = watchdog / PINGS if watchdog is not None else None
        self._last_ping = -float("inf")
        self.text = ""  #: the last status
        self._address: str | None = None
        self._complained = False
        if address is None:
            return
        if address[:1] not in ("/", "@") or len(address) < 2:
            log.warning("supervisor not notified", reason=f"NOTIFY_SOCKET={address} is neither a path nor @name")
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Supervisor:
        """What the environment says, which is taken out of it."""
        address = environment.pop(_SOCKET, None) or None
        interval, owner = environment.pop(_WATCHDOG, ""), environment.pop(_WATCHDOG_PID, "")
        ours = not owner or owner == str(os.getpid())
        return cls(address, int(interval) / 1e6 if ours and interval.isdecimal() and int(interval) else None)

    def ready(self, status: str) -> None:
        """The daemon serves: after its start, and after each reload, whether that was taken or refused."""
        self.text = status
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line for people; sent if it is another than before."""
        if text != self.text:
            self.text = text
            self._send(f"STATUS={text}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self.text = "stopping"
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """The caller vouches for all of the daemon's work. Call it as often as you like: few of the calls are sent."""
        now = self._clock()
        if self._pause is not None and now - self._last_ping >= self._pause:
            self._last_ping = now
            self._send("WATCHDOG=1")

    @property
    def pause(self) -> float | None:
        """Seconds between signs of life; None: nobody waits for them."""
        return self._pause if self._address is not None else None

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        text = "\n".join(" ".join(line.splitlines()) for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(PATIENCE)
                out.sendto(text.encode(errors="replace"), self._address)
        except OSError as error:
            if not self._complained:
                log.warning("supervisor not notified", reason=(error.strerror or str(error)).lower())
            self._complained = True
