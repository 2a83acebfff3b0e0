# SPDX-License-Identifier: Apache-2.0
"""The ways to take outer headers off, behind one small interface.

``bpf``   a tc program on the interface: fastest, and it stays when the agent is gone.
``ipip``  the kernel's own tunnel device, where the module exists: stays as well; nftables checks who sends what.
``tun``   sockets and a TUN device, run by a worker of ours: works anywhere, ends with the agent.

``bpf`` and ``tun`` take IP in IP of either family in either, and GUE of both variants; ``ipip`` IPv4 in IPv4 alone.

Used by :mod:`agent.agent` in its helper thread. Each object owns what the kernel does not keep by itself: file
descriptors of a program and its maps, a worker with its devices. :meth:`Decap.close` lets go of that and leaves the
host as it is; taking filters and devices away is the plan's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from agent.host.interface import Host, HostLink
from agent.plan import FilterState, FoundFilter
from lb import dataplane
from lb.dataplane import DecapProgram, HostPipeline, RawTunnel
from lb.errors import DataplaneError, FeatureError, IoError
from lb.model import GUE_PORT, Address, DecapMode, Network

IPIP_DEVICE = "vipmux-ipip"
TUN_DEVICE = "vipmux-tun"


class DecapRefused(FeatureError):  # noqa: N818  an outcome among others
    """This way is not possible here; the next one may be."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """From whom packets are taken, and for whom."""

    address: IPv4Address | None
    address6: Address | None
    muxes: frozenset[Address]
    vips: frozenset[Network]
    gue_port: int = GUE_PORT


class Decap(Protocol):
    """A way that is in use."""

    def begin(self, host: Host, interface: str, tunnel: Tunnel) -> None:
        """Takes over from here on; where it works already, goes on with what ``tunnel`` says."""

    def counters(self) -> Mapping[str, int] | None:
        """Packets by reason; None where this way does not count."""

    def turns(self) -> int | None:
        """The heartbeat of the worker; None where the kernel does the work."""

    def close(self) -> None: ...


class BpfDecap:
    """An attached program, known by its maps."""

    def __init__(self, program: DecapProgram) -> None:
        self.program = program

    def begin(self, host: Host, interface: str, tunnel: Tunnel) -> None:
        """In the place of an earlier program; this one's maps say the same as the tunnel."""
        try:
            host.attach(interface, self.program.fd)
        except IoError as error:
            raise DecapRefused(f"decapsulation by BPF is refused: {error}") from None

    def counters(self) -> Mapping[str, int]:
        return self.program.counters()

    def turns(self) -> None:
        return None

    def close(self) -> None:
        self.program.close()


class TunDecap:
    """A worker between a raw socket and a TUN device; takes no packet before :meth:`begin`."""

    def __init__(self, tunnel: Tunnel) -> None:
        try:
            self._pipeline = HostPipeline(tunnel.muxes, tunnel.vips)
            self._raw = RawTunnel(self._pipeline, tunnel.address, TUN_DEVICE, tunnel.address6, tunnel.gue_port)
        except DataplaneError as error:
            raise DecapRefused(f"decapsulation by TUN is not possible here: {error}") from None

        self._works = False

    def begin(self, host: Host, interface: str, tunnel: Tunnel) -> None:
        """Starts the worker, or gives it other MUXes and VIPs with no packet lost; the device is up in any case."""
        host.receive_on(TUN_DEVICE, ipv6=any(vip.version == 6 for vip in tunnel.vips))
        if self._works:
            self._pipeline.publish(tunnel.muxes, tunnel.vips)
            return
        self._raw.start()
        self._works = True

    def counters(self) -> Mapping[str, int]:
        return self._pipeline.counters()

    def turns(self) -> int | None:
        return self._raw.bursts()

    def close(self) -> None:
        self._raw.close()


class IpipDecap:
    """The kernel's device. Whom to trust is checked by nftables, which counts what it drops for itself."""

    def __init__(self, host: Host, tunnel: Tunnel) -> None:
        if tunnel.address is None:
            raise DecapRefused(
                "decapsulation by ipip needs agent.address, an IPv4 address; set decap to auto, bpf or tun"
            )
        host.add_ipip(IPIP_DEVICE, tunnel.address)

    def begin(self, host: Host, interface: str, tunnel: Tunnel) -> None:
        host.receive_on(IPIP_DEVICE)

    def counters(self) -> None:
        return None

    def turns(self) -> None:
        return None

    def close(self) -> None:
        pass


#: Makes a way of decapsulation ready to begin: host, interface, its name, tunnel, mode, and the way now in use.
Prepare = Callable[[Host, HostLink, str, Tunnel, DecapMode, Decap | None], Decap]


def prepare(host: Host, link: HostLink, interface: str, tunnel: Tunnel, mode: DecapMode, now: Decap | None) -> Decap:  # noqa: PLR0917
    """See :data:`Prepare`; raises DecapRefused while no packet goes another way yet."""
    if mode is DecapMode.IPIP:
        return IpipDecap(host, tunnel)
    if mode is DecapMode.TUN:
        if isinstance(now, TunDecap):
            if host.link(TUN_DEVICE) is not None:
                return now
            now.close()  # who deleted the device took the worker's end of it along; its UDP port is wanted again
        return TunDecap(tunnel)
    _, attached = found_filter(host, interface, None)
    known = now.program if isinstance(now, BpfDecap) else None  # it counts on, whatever became of its filter
    try:
        return BpfDecap(load_program(interface, link, tunnel, inherit=attached or known))
    finally:
        if attached is not None:
            attached.close()


def load_program(interface: str, link: HostLink, tunnel: Tunnel, inherit: DecapProgram | None) -> DecapProgram:
    """The program as it should be, not attached yet; raises DecapRefused with the kernel's words."""
    if link.header is None:
        raise DecapRefused(f"decapsulation by BPF is not possible on {interface}: it is neither Ethernet nor plain IP")
    try:
        return DecapProgram.load(
            address=tunnel.address,
            address6=tunnel.address6,
            link_header=link.header,
            gue_port=tunnel.gue_port,
            muxes=tunnel.muxes,
            vips=tunnel.vips,
            inherit=inherit,
        )
    except DataplaneError as error:
        raise DecapRefused(f"decapsulation by BPF is refused: {error}") from None


def open_program(number: int | None) -> DecapProgram | None:
    """The program of a filter found on the host; None if it is none of ours, or may not be looked at."""
    if number is None:
        return None
    try:
        return DecapProgram.open(number)
    except DataplaneError:
        return None


def same_program(one: DecapProgram, other: DecapProgram) -> bool:
    """Same instructions (hence same address), same MUXes, same VIPs."""
    return one.tag == other.tag and one.muxes() == other.muxes() and one.vips() == other.vips()


def found_filter(host: Host, interface: str, wanted: DecapProgram | None) -> tuple[FoundFilter, DecapProgram | None]:
    """What stands at an interface's ingress, and its program if it is ours; the caller closes that."""
    ingress = host.ingress(interface)
    program = open_program(ingress.program)
    if not ingress.place_taken:
        state = FilterState.ABSENT
    elif ingress.program is None:
        state = FilterState.FOREIGN
    elif wanted is not None and (
        same_program(program, wanted) if program is not None else ingress.program == wanted.number
    ):
        state = (
            FilterState.CURRENT
        )  # without CAP_SYS_ADMIN, as by the unit, no program can be opened, but ours is known
    else:
        state = FilterState.STALE
    return FoundFilter(state, ingress.qdisc, ingress.others), program


def drops() -> tuple[str, ...]:
    """The reasons for which a packet ends here."""
    return tuple(reason.name for reason in dataplane.HOST_REASONS if reason.drops)


def dropped(counters: Mapping[str, int]) -> int:
    """Packets that ended here."""
    return sum(counters[name] for name in drops())
