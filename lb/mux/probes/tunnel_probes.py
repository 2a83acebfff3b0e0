# SPDX-License-Identifier: Apache-2.0
"""The MUX's own probes: the real VIP, through the real tunnel, of each backend in turn.

What a client would meet is met: outer header, the way to the host, decapsulation, translation, the process, and the
reply that comes straight back with the VIP as its source. What to ask is decided by :func:`checks`, which is pure:

    the service has no probe                   nothing; its operator asked for none
    probe tcp or http, at the service's port   the same, at VIP:port
    probe at another port, or a command        TCP connect to VIP:port: the tunnel leads to the service alone
    udp with an expected answer                the same, at VIP:port
    udp without, no single port                whether the backend's machine is there at all

The last goes beside the tunnel: a TCP SYN to the machine's own address, at a port where nobody listens. Whoever refuses
it is there. Silence says something only of a machine that answered before: packet filters are silent, too.

:mod:`lb.mux.daemon` owns one :class:`TunnelProbes`. Their way out of this machine is :mod:`lb.mux.probes.path`; it is
opened when the first backend is to be probed. Where it cannot be, probes are off, and that is said, not guessed at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lb.daemon.kernel.keeper import KeptPart
from lb.daemon.log import get_logger
from lb.errors import VipmuxError
from lb.model import Address, Backend, Encap, MuxSettings, Probe, ProbeType, Protocol, Service
from lb.model.service_diff import ServiceDiff
from lb.mux.hops.netlink import Netlink
from lb.mux.hops.next_hops import RouteKind
from lb.mux.probes.path import ProbePath, TunnelTo
from lb.node.messages import HealthReport
from lb.probe.checkers import PlainSockets, ask
from lb.probe.results import Board, Known, Label, NotProbed
from lb.probe.state import ProbeAnswer, ProbeHealth

#: Services that are looked at in one turn of the event loop.
PIECE = 100

log = get_logger()

_UNASKED = NotProbed("not probed: the service has no probe")


#: Where nobody listens ("discard").
HOST_PORT = 9


@dataclass(frozen=True, slots=True)
class HostCheck:
    """Whether a backend's machine is there; ``instead``: why not its service is asked."""

    probe: Probe
    backend: Address
    instead: str

    @property
    def host(self) -> bool:
        return True

    @property
    def place(self) -> str:
        return f"whether {self.backend} is there; {self.instead}"


@dataclass(frozen=True, slots=True)
class TunnelCheck:
    """A probe of a VIP through the tunnel of one backend."""

    probe: Probe
    vip: Address
    port: int
    to: TunnelTo

    @property
    def backend(self) -> Address:
        return self.to.address

    @property
    def host(self) -> bool:
        return False

    @property
    def place(self) -> str:
        vip = str(self.vip) if self.vip.version == 4 else f"[{self.vip}]"
        return f"{self.probe.type.value} {vip}:{self.port} through the tunnel to {self.backend}"


AnyCheck = TunnelCheck | HostCheck


def checks(services: Iterable[Service], settings: MuxSettings) -> dict[Label, AnyCheck | NotProbed]:
    """What to ask of each backend."""
    return {
        (service.name, backend.name): _check(service, backend, settings)
        for service in services
        for backend in service.backends
    }


def _check(service: Service, backend: Backend, settings: MuxSettings) -> AnyCheck | NotProbed:
    probe, vip = service.probe, service.vip.network_address
    if probe is None:
        return _UNASKED
    if settings.source(vip) is None:  # as a client of the VIP it asks from there
        key = "mux.address" if vip.version == 4 else "mux.address6"
        return _host(backend, probe, f"there is no {key} to ask the VIP from")
    port = _vip_port(service, probe)
    if port is None:
        return _host(backend, probe, "the service has no single port; probe.port may name one of its own")
    asked = _through_tunnel(service, backend, probe, port)
    if asked is None:
        return _host(backend, probe, "through a tunnel, a UDP service must be expected to answer")
    return TunnelCheck(asked, vip, port, TunnelTo(backend.address, service.encap or settings.encap))


def _host(backend: Backend, probe: Probe, instead: str) -> HostCheck:
    return HostCheck(_connect(probe), backend.address, instead)


def _connect(probe: Probe) -> Probe:
    """In the time of another."""
    timing = {"interval": probe.interval, "timeout": probe.timeout, "rise": probe.rise, "fall": probe.fall}
    return Probe(ProbeType.TCP, **timing)  # type: ignore[arg-type]


def _vip_port(service: Service, probe: Probe) -> int | None:
    if service.ports.exact:
        return service.ports.first
    if probe.port is not None and service.ports.first <= probe.port <= service.ports.last:
        return probe.port
    return None


def _through_tunnel(service: Service, backend: Backend, probe: Probe, vip_port: int) -> Probe | None:
    """The service's probe as it can be asked at the VIP, if it can."""
    same_place = probe.port is None or probe.port == (backend.port or vip_port)
    if service.protocol is Protocol.UDP:
        if probe.type is ProbeType.UDP and probe.expect is not None and same_place:
            return _at_vip(probe)
        return None
    if probe.type in (ProbeType.TCP, ProbeType.HTTP) and same_place:
        return _at_vip(probe)
    return _connect(probe)


def _at_vip(probe: Probe) -> Probe:
    return probe if probe.port is None else replace(probe, port=None)


def deaf(vip: Address, interface: str, rp_filter: int, way: str | None) -> str | None:
    """Why the kernel would drop what the VIP answers, or None. ``way``: the interface of the route to the VIP."""
    if rp_filter == 1 and way != interface:
        by = f"by {way}" if way else "nowhere"
        return f"the route to {vip} leads {by} and net.ipv4.conf.{interface}.rp_filter is 1 (strict); set it to 2 or 0"
    if rp_filter == 2 and way is None:
        return (
            f"there is no route to {vip} and net.ipv4.conf.{interface}.rp_filter is 2 (loose); add one, or set it to 0"
        )
    return None


class Hosts:
    """What an answer tells of a machine: only one that answered before can fall silent. Pure."""

    def __init__(self) -> None:
        self._met: set[Address] = set()

    def heard(self, check: HostCheck, answer: ProbeAnswer) -> ProbeAnswer:
        if not answer.made:
            return answer
        if answer.success or answer.refused:
            self._met.add(check.backend)
            return ProbeAnswer(True, f"its machine is there ({check.instead})")
        lost = f"its machine {check.backend} does not answer any more: {answer.reason}"
        return replace(answer, reason=lost, news=check.backend in self._met)

    def __len__(self) -> int:
        return len(self._met)

    def keep_only(self, there: Collection[Address]) -> None:
        self._met &= set(there)


class TunnelProbes:
    """See the module's text. ``send`` hears of changes; None: there is no manager."""

    def __init__(
        self,
        settings: MuxSettings,
        netlink: Netlink,
        send: Callable[[Sequence[HealthReport]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._netlink = netlink
        self._wake = asyncio.Event()
        self._path = ProbePath(settings, netlink, self._wake)
        self._hosts = Hosts()
        self._board: Board[AnyCheck] = Board("tunnel", self._ask, send or _nobody, unprobed=ProbeHealth.UNKNOWN)
        self._told = "the manager" if send else "nobody: there is no manager; see lb get backends --local"
        self._changes: list[ServiceDiff] = []  # that the board has not yet followed
        self._services: dict[str, Service] = {}  # those that the board has: they are to be probed
        self._kernel = _Kernel(settings.interface, 0, {})
        self._anew: frozenset[str] = frozenset()  # services to be looked at whether they changed or not
        self._impossible: frozenset[str] = frozenset()  # services that cannot be probed from this machine now
        self._logged: set[str] = set()  # why not

    async def start(self, services: Iterable[Service]) -> None:
        """Repairs what a killed predecessor left; probes begin with :meth:`run`."""
        if await self._path.repair():
            log.info("repaired", reason="an earlier lb-mux did not stop cleanly; its rule for probes was removed")
        self.update(ServiceDiff.between((), services))

    def update(self, change: ServiceDiff) -> None:
        """The services that are live. Nobody waits for probes: they follow a moment later."""
        self._changes.append(change)
        self._wake.set()

    def known(self) -> Mapping[Label, Known]:
        """Of the backends that are probed, or should be. From any thread."""
        return self._board.known()

    def reports(self) -> list[HealthReport]:
        return self._board.reports()

    def parts(self) -> list[KeptPart]:
        """What is kept in the kernel."""
        return [self._path]

    async def run(self) -> None:
        """Until cancelled: follows changes; raises what is a programming error."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._board.run())
            tasks.create_task(self._follow())

    async def close(self) -> None:
        """Ends probes, and takes away what is ours in the kernel."""
        await self._board.close()
        await self._path.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._path.is_lost:
                log.warning("probe_device_lost", device=self._path.names.device, then="made again")
                await self._path.close()
                self._anew = frozenset(self._services)
                await asyncio.sleep(1)  # not faster than this, if it is taken again and again
            changes, self._changes = self._changes, []
            await self._take(changes)

    async def _take(self, changes: Sequence[ServiceDiff]) -> None:
        """Looks at those alone that are others than before: there may be ten thousand, and they change often."""
        before: dict[str, Service | None] = {}
        for change in changes:
            for service in (*change.gone, *change.come):
                before.setdefault(service.name, self._services.get(service.name))
        for change in changes:
            for service in change.gone:
                self._services.pop(service.name, None)
            for service in change.come:
                if service.probe is not None:  # of the others nothing need be kept
                    self._services[service.name] = service
        if not self._services and not any(before.values()):
            return
        kernel = await self._read_kernel()
        anew = self._anew | (self._impossible if kernel.like(self._kernel) else self._services.keys())
        self._anew = frozenset()
        self._kernel = kernel
        names = dict.fromkeys(
            [*(name for name, old in before.items() if _differ(old, self._services.get(name))), *anew]
        )
        changed = [self._services[name] for name in names if name in self._services]
        probes = len(self._board)
        self._board.change({}, _gone(before, self._services))
        for first in range(0, len(changed), PIECE):
            self._board.change(await self._possible(checks(changed[first : first + PIECE], self._settings)), ())
            await asyncio.sleep(0)  # others have their turn
        if len(self._hosts) > 1000 + 2 * len(self._board):  # a year of other machines
            self._hosts.keep_only({one.address for service in self._services.values() for one in service.backends})
        if len(self._board) != probes:
            log.info("probing", probes=len(self._board), through="the tunnel", told=self._told)

    async def _ask(self, check: AnyCheck) -> ProbeAnswer:
        if isinstance(check, HostCheck):
            answer = await ask(check.probe, check.backend, HOST_PORT, PlainSockets(check.backend))
            return self._hosts.heard(check, answer)
        sockets = self._path.sockets(check.to, check.vip.version)
        answer = await ask(check.probe, check.vip, check.port, sockets)
        if answer.success:
            return replace(answer, reason=f"{answer.reason} through the tunnel")
        if not answer.made:
            return answer
        if answer.silent and sockets.unsent is not None:  # what did not leave cannot be answered
            return replace(answer, reason=sockets.unsent, made=False)
        if answer.silent:
            heard = sockets.complaint or f"is {self._means(check)} dropped on the way, or lb-agent not running there?"
            return replace(answer, reason=f"{answer.reason} through the tunnel to {check.backend}; {heard}")
        return replace(answer, reason=f"{answer.reason} by {check.vip} through the tunnel to {check.backend}")

    def _means(self, check: TunnelCheck) -> str:
        """How the tunnel's packets look on the way."""
        if check.to.encap is Encap.GUE:
            return f"GUE (UDP port {self._settings.gue_port})"
        return f"IP-in-IP (protocol {4 if check.vip.version == 4 else 41})"

    async def _possible(self, wanted: Mapping[Label, AnyCheck | NotProbed]) -> dict[Label, AnyCheck | NotProbed]:
        """Those that cannot be asked from this machine are not, for they would only seem to be down."""
        vips = {check.vip for check in wanted.values() if isinstance(check, TunnelCheck)}
        shut = await self._open() if vips else None
        why = {vip: shut or await self._deaf(vip) for vip in vips}
        possible = dict(wanted)
        for label, check in wanted.items():
            reason = why[check.vip] if isinstance(check, TunnelCheck) else None
            if reason is not None:
                possible[label] = NotProbed(f"not probed: {reason}")
                if reason not in self._logged:
                    log.warning("tunnel_probes_off", reason=reason)
                    self._logged.add(reason)
        off = {label[0] for label, check in possible.items() if check is not wanted[label]}
        self._impossible = self._impossible - {label[0] for label in wanted} | off
        return possible

    async def _open(self) -> str | None:
        """Why there is no way out for probes."""
        try:
            if not self._path.is_open:
                await self._path.open()
        except VipmuxError as error:
            return str(error)
        return None

    async def _read_kernel(self) -> _Kernel:
        links, local = await self._netlink.machine()
        found = local.get(self._settings.own_address, "lo")
        interface = found if found != "lo" else self._settings.interface
        names = {link.index: link.name for link in links.values()}
        return _Kernel(interface, max(_rp_filter("all"), _rp_filter(interface)), names)

    async def _deaf(self, vip: Address) -> str | None:
        """Why this kernel would drop what the VIP answers, or None."""
        if self._kernel.rp_filter == 0 or vip.version == 6:  # the kernel has no such filter for IPv6
            return None
        route = await self._netlink.route(vip)
        unicast = route is not None and route.kind is RouteKind.UNICAST
        way = self._kernel.links.get(route.ifindex) if route is not None and unicast else None
        return deaf(vip, self._kernel.interface, self._kernel.rp_filter, way)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What decides whether answers of VIPs are heard."""

    interface: str  #: by which they come
    rp_filter: int
    links: Mapping[int, str]

    def like(self, other: _Kernel) -> bool:
        return (self.interface, self.rp_filter) == (other.interface, other.rp_filter)


def _gone(before: Mapping[str, Service | None], after: Mapping[str, Service]) -> list[Label]:
    """Backends that are no more, of the services of ``before``."""
    gone: list[Label] = []
    for name, old in before.items():
        new = after.get(name)
        if old is not None and new is not old:
            left = {backend.name for backend in new.backends} if new is not None else set()
            gone += [(name, backend.name) for backend in old.backends if backend.name not in left]
    return gone


def _differ(old: Service | None, new: Service | None) -> bool:
    return old is not new and old != new


def _rp_filter(name: str) -> int:
    try:
        with open(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _nobody(reports: Sequence[HealthReport]) -> None:
    """Without a manager."""
