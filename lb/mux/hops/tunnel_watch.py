# SPDX-License-Identifier: Apache-2.0
"""Listens to ICMP about this MUX's tunnels, remembers what it says, and tells it on to senders.

Every I/O mode leaves packets to the MUX's own address to the kernel, and raw ICMP sockets get their copy there. What a
message must be to count is in :mod:`lb.mux.hops.tunnel_errors`, what is remembered in :mod:`lb.mux.hops.soft_state`. A
flood of messages costs no more than ``BURST`` of them for each ``PAUSE``; the rest fall out of the socket's queue.
Owned by :mod:`lb.mux.daemon`; in its event loop only, but for :meth:`TunnelWatch.rows` and its properties.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from lb.daemon.log import get_logger
from lb.dataplane.snapshot import Hop
from lb.model import Address, Encap, MuxSettings, Network, Unserved
from lb.mux.hops.soft_state import SoftState, TunnelState
from lb.mux.hops.tunnel_errors import ErrorKind, OwnTunnels, TunnelError, read_error, told_on

#: Messages taken at a time, and how long others have their turn then, seconds.
BURST, PAUSE = 32, 0.02
#: What is told on at once after a pause, beside ``mux.answers`` for each second.
AT_ONCE = 50

_ICMP_FILTER, _ICMP6_FILTER = 1, 1
_SOL_RAW, _SOL_ICMPV6 = 255, 58
_IPV6_HDRINCL = 36
_TYPES = {4: (3, 11), 6: (1, 2, 3)}

log = get_logger()


class TunnelWatch:
    """See the module's text."""

    def __init__(
        self,
        settings: MuxSettings,
        *,
        has: Callable[[Address, Encap], bool],
        vips: Callable[[], Collection[Network]],
        changed: Callable[[], None],
    ) -> None:
        """``has``: whether a tunnel of this kind leads there. ``changed``: an MTU did, and hops are to be made anew."""
        self._settings = settings
        self._vips = vips
        self._changed = changed
        self._tunnels = OwnTunnels(settings, has, self._serves)
        self._state = SoftState()
        self._rate = _Rate(settings.answers)
        self._sockets: dict[int, socket.socket] = {}
        self._senders: dict[int, socket.socket] = {}
        self._woken = asyncio.Event()
        self._errors = {kind.value: 0 for kind in ErrorKind} | {"ignored": 0}
        self._applied: tuple[object, object, Mapping[Address, Hop]] = (None, None, {})
        self._mtus: Mapping[Address, int] = {}
        self._lengths_of: object = None  # VIPs, and how long their prefixes are
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}

    # --- life --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Where the kernel lets nobody listen, it is said once, and tunnels are taken to be as wide as told."""
        owns: dict[int, Address | None] = {4: self._settings.address, 6: self._settings.address6}
        for version, own in owns.items():
            if own is None:
                continue
            try:
                self._sockets[version] = _listener(version, own)
                if self._settings.unserved is not Unserved.DROP:
                    self._senders[version] = _sender(version)
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                log.warning("nobody listens to ICMP about tunnels", family=f"IPv{version}", reason=reason)
                continue
            self._listen(version)

    def close(self) -> None:
        for version, opened in self._sockets.items():
            asyncio.get_running_loop().remove_reader(opened.fileno())
            opened.close()
            if version in self._senders:
                self._senders[version].close()
        self._sockets.clear()
        self._senders.clear()

    async def run(self) -> None:
        """Until cancelled: forgets."""
        loop = asyncio.get_running_loop()
        while True:
            end = self._state.next_end
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await self._woken.wait()
            self._woken.clear()
            if self._state.forget(loop.time()):
                self._publish()

    # --- for the data plane ------------------------------------------------------------------------------------------

    def narrowed(self, hops: Mapping[Address, Hop]) -> Mapping[Address, Hop]:
        """The same ways with what is known of their MTU; the same object where both are the same."""
        mtus = self._mtus
        if self._applied[0] is not hops or self._applied[1] is not mtus:
            known = {address: hops[address] for address in mtus.keys() & hops.keys()}
            narrow = {address: replace(hop, mtu=mtus[address]) for address, hop in known.items()}
            self._applied = (hops, mtus, {**hops, **narrow} if narrow else hops)
        return self._applied[2]

    # --- shown -------------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """What is remembered, by address; of tunnels of which nobody complained nothing is."""
        now = time.monotonic()
        return [state.row(address, now) for address, state in sorted(self.states.items(), key=_by_address)]

    @property
    def states(self) -> Mapping[Address, TunnelState]:
        """A copy. From any thread."""
        return dict(self._state.states)

    @property
    def errors(self) -> Mapping[str, int]:
        """How many messages so far, by kind; "ignored": they quoted no packet that this MUX would send."""
        return dict(self._errors)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _serves(self, vip: Address) -> bool:
        """Whether the address is in a VIP: mostly it is one."""
        vips = self._vips()
        if vips is not self._lengths_of:
            self._lengths_of = vips
            self._lengths = {4: set(), 6: set()}
            for network in vips:
                self._lengths[network.version].add(network.prefixlen)
        return any(ip_network((vip, length), strict=False) in vips for length in self._lengths[vip.version])

    def _listen(self, version: int) -> None:
        if version in self._sockets:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._sockets[version].fileno(), self._readable, version)

    def _readable(self, version: int) -> None:
        loop = asyncio.get_running_loop()
        opened = self._sockets[version]
        news = False
        for _ in range(BURST):
            try:
                data, sender = opened.recvfrom(2048)
            except BlockingIOError:
                break
            except OSError:  # what ICMP said of what we told on
                continue
            header = (data[0] & 15) * 4 if version == 4 and data else 0
            news = self.heard(data[header:], ip_address(sender[0].partition("%")[0]), loop.time()) or news
        else:
            loop.remove_reader(opened.fileno())
            loop.call_later(PAUSE, self._listen, version)
        if news:
            self._publish()

    def heard(self, message: bytes, sender: Address, now: float) -> bool:
        """One message of ICMP, whole; whether something is remembered that was not."""
        error = read_error(message, sender, self._tunnels)
        if error is None:
            self._errors["ignored"] += 1
            return False
        self._errors[error.kind.value] += 1
        news = self._state.hear(error, now)
        if news:
            what = {"mtu": error.mtu} if error.mtu else {}
            log.warning("tunnel " + error.kind.value, backend=str(error.far_end), reason=error.words, **what)
        self._woken.set()
        self._tell_on(error, now)
        return news

    def _publish(self) -> None:
        before = self._mtus
        self._note_mtus()
        if self._mtus is not before:
            self._changed()

    def _note_mtus(self) -> None:
        mtus = {address: state.mtu for address, state in self._state.states.items() if state.mtu}
        if mtus != self._mtus:
            self._mtus = mtus

    def _tell_on(self, error: TunnelError, now: float) -> None:
        answer = told_on(error)
        if answer is None:
            return
        packet, to = answer
        sender = self._senders.get(to.version)
        if sender is not None and self._rate.takes(now):
            with contextlib.suppress(OSError):  # who cannot be told is not told
                sender.sendto(packet, (str(to), 0))


def _by_address(item: tuple[Address, TunnelState]) -> tuple[int, bytes]:
    return item[0].version, item[0].packed


class _Rate:
    """So many for each second, and ``AT_ONCE`` after a pause; as native/mux/answers.h."""

    def __init__(self, per_second: int) -> None:
        self._step = 1 / per_second if per_second else 0.0
        self._due = 0.0

    def takes(self, now: float) -> bool:
        due = max(self._due, now)
        if not self._step or due - now > (AT_ONCE - 1) * self._step:
            return False
        self._due = due + self._step
        return True


def _listener(version: int, own: Address) -> socket.socket:
    """Of ICMP to our own address that is an error."""
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        wanted = sum(1 << kind for kind in _TYPES[version])
        if version == 4:
            opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~wanted & 0xFFFFFFFF))
        else:
            opened.setsockopt(_SOL_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", ~wanted & 0xFFFFFFFF, *[0xFFFFFFFF] * 7))
        opened.bind((str(own), 0))
    except OSError:
        opened.close()
        raise
    return opened


def _sender(version: int) -> socket.socket:
    """Of whole packets, from whatever address."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    if version == 6:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    return opened
