# SPDX-License-Identifier: Apache-2.0
"""``lb-mux``: starts the data plane, keeps it current from a file or a manager, and stops it in the right order.

Start: file, privileges, state directory, interface, isolation, I/O, next hops, workers, then the sockets; the line
``ready`` comes last. A stop goes the other way, and isolation is the last thing removed. SIGHUP reads the file
again: right, it is published with no flow forgotten; wrong, every mistake is logged and the old state serves on.
Whatever a killed predecessor left in the kernel is taken over by the start. One event loop; the workers are C.

With a manager the services come from it: what this MUX cannot serve of them is left out alone, and told to the manager
(:mod:`lb.mux.rules.unservable`). The start takes the last good state from the disk, so that it waits for nobody.

Every task is one of :class:`lb.daemon.supervise.Tasks`. A stop that was not asked for, whatever the reason, leaves the
isolation of the VIPs in the kernel, and the file ``mux.running`` in the state directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lb.bgp.session import SessionState
from lb.config.load import load_mux, parse_manager_url
from lb.daemon import log as log_setup
from lb.daemon.control_socket import ControlServer
from lb.daemon.files.clean_shutdown import RunMarker
from lb.daemon.kernel.keeper import Keeper
from lb.daemon.kernel.main_rule import MainRule
from lb.daemon.kernel.watch import EVERYTHING, NOTHING, KernelWatch, OwnMarks
from lb.daemon.log import get_logger
from lb.daemon.metrics.collectors import MetricsServer, MuxCollector, serve
from lb.daemon.notify import Supervisor
from lb.daemon.process.memory import give_back, tame_allocator
from lb.daemon.process.priority import control_first, helpers
from lb.daemon.process.privileges import Capability, keep_only, require
from lb.daemon.supervise import Tasks, describe, until
from lb.dataplane.compile.compiler import Compiler
from lb.dataplane.compile.quic_keys import QuicKeys
from lb.doctor.checks import startup
from lb.doctor.model.facts import Role
from lb.errors import ConfigError, ControlError, RequestError, VipmuxError
from lb.model import Address, BgpSettings, Encap, IoMode, MuxConfig, Service
from lb.model.service_diff import ServiceDiff
from lb.mux.announcer import Announcer
from lb.mux.hops.netlink import Netlink
from lb.mux.hops.next_hops import Link, Resolution
from lb.mux.hops.tunnel_watch import TunnelWatch
from lb.mux.hops.watch import HopWatch
from lb.mux.io.open_port import open_port
from lb.mux.io.ports import Port
from lb.mux.io.startup import StateDir, check_outer_source, find_interface
from lb.mux.io.tun import ROUTE_PROTOCOL
from lb.mux.io.xdp_support import maps_need_rights
from lb.mux.live_services import SETTLE, LiveServices
from lb.mux.plane import MuxPlane
from lb.mux.probes.tunnel_probes import TunnelProbes
from lb.mux.requests import answer, handlers
from lb.mux.rules.reload import changed_passwords, check_bgp, check_settings
from lb.mux.rules.unservable import readable
from lb.mux.status import Condition, Status
from lb.mux.without_manager import WithoutManager
from lb.mux.workers.engine import Engine
from lb.mux.workers.flow_counts import FlowCensus
from lb.mux.workers.kept_flows import KeptFlows
from lb.mux.workers.overload import OverloadWatch
from lb.mux.workers.worker_watch import Care
from lb.node.token_option import given_token, token_options

if TYPE_CHECKING:
    from lb.mux.workers.flow_sync import FlowSync
    from lb.node.follower import Follower
    from lb.node.messages import NodeState

PROGRAM = "lb-mux"
SOCKET = "mux.sock"
MARKER = "mux.running"
#: To open sockets and devices; to change routes, neighbours and nftables.
NEEDED = (Capability.NET_ADMIN, Capability.NET_RAW)
#: To start ExaBGP as somebody without rights, and to end it.
FOR_BGP = (Capability.KILL, Capability.SETGID, Capability.SETUID)
#: Services that come or go at once from which on the memory of it is given back.
MANY = 1000
#: After how long, seconds.
TIDY = 2.0
#: How long a start waits for the manager, by whom the other MUXes' flows come, before it announces, seconds.
ENTER_WAIT = 1.0
#: How long a stop waits for a change of services that is under way, seconds.
FINISH = 20.0
#: The task that announces after a start.
ENTERING = "first announcements"
_PRIVILEGED_PORTS = 1024

log = get_logger()


class RunningMux:
    """One MUX, from its file to its end."""

    def __init__(
        self,
        path: Path,
        config: MuxConfig,
        netlink: Netlink,
        state_dir: StateDir,
        reload_wanted: asyncio.Event,
        *,
        supervisor: Supervisor,
        token: str | None = None,
    ) -> None:
        """``reload_wanted`` is set by SIGHUP, perhaps before the start has ended. ``token``: to join the manager."""
        self._path = path
        self._supervisor = supervisor
        self._manager = config.manager
        self._settings = config.mux
        self._bgp = config.bgp
        self._announcer: Announcer | None = None
        self._netlink = netlink
        self._state_dir = state_dir
        self._compiler = Compiler(config.mux, QuicKeys(log.warning))
        self._condition = Condition()
        self._watch = HopWatch(netlink, self._hops_changed, self._links_changed)
        self._tunnels = TunnelWatch(
            config.mux,
            has=self._has_tunnel,
            vips=lambda: self._live.vips.networks,
            changed=lambda: self._hops_changed(self._watch.resolutions),
        )
        self._tasks = Tasks(tell=supervisor.status)
        self._marker = RunMarker(state_dir.path / MARKER)
        self._served = False  # the start came to its end
        self._reload_wanted = reload_wanted
        self._opened: MuxPlane | None = None
        self._own = OwnMarks()  # by what our own changes of the kernel are known
        self._keeper = Keeper((), KernelWatch(NOTHING))
        self._follower = self._follow(config, token)
        self._handover = self._hand_over()
        self._announced: Mapping[str, Any] = {}
        self._drained = False
        self._tidying: asyncio.TimerHandle | None = None
        self._tidied = 0  # how many services there were when memory was given back last
        self._probes = TunnelProbes(config.mux, netlink, self._follower.client.send_health if self._follower else None)
        if self._follower is not None:
            self._follower.client.reports = self._probes.reports
        self._live = LiveServices(
            compiler=self._compiler,
            netlink=netlink,
            watch=self._watch,
            probes=self._probes,
            tasks=self._tasks,
            plane=lambda: self._plane,
            announcer=lambda: self._announcer,
        )
        if self._handover is not None:
            self._live.published = self._handover.sharing.changed
        self._control: ControlServer | None = None
        self._metrics: MetricsServer | None = None

    @property
    def _plane(self) -> MuxPlane:
        """For all that happens after the start."""
        assert self._opened is not None  # noqa: S101
        return self._opened

    # -- start and stop -----------------------------------------------------------------------------------------

    async def start(self, services: tuple[Service, ...]) -> None:
        """Everything up to ``ready``."""
        state: NodeState = {}
        self._marker.begin()
        if self._follower is not None:
            state, services = await self._follower.begin()
        plane = await self._open(services)
        if self._bgp is not None:
            self._announcer = Announcer(self._bgp, self._settings, plane.engine, self._unsound)
            if self._handover is not None:
                self._announce({**state, "announcements": {}})  # the others' flows first
        await self._find_hops(plane)
        self._drop_privileges()
        plane.engine.start(plane.port.ios)
        await self._open_sockets()
        self._tunnels.open()
        await self._probes.start(self._live.services)
        self._begin_tasks()
        plane.inherit_soon()
        self._condition.state = "ready"
        self._tidy()
        self._log_ready()
        if self._announcer is not None:
            await self._announcer.start()
        if self._follower is not None:
            self._begin_following(self._follower, state)
        self._served = True
        self._supervisor.ready(self._summary())

    async def _open(self, services: tuple[Service, ...]) -> MuxPlane:
        """The port, and an engine with a first table; nothing is forwarded yet."""
        settings = self._settings
        find_interface(settings.interface, (await self._netlink.links()).values())
        local = await self._netlink.local_addresses()
        check_outer_source(settings, local)
        kept = KeptFlows.open(self._state_dir.path, settings.seed) if settings.keep_flows else None
        elders = kept.begin(self._compiler) if kept is not None else []
        if self._follower is None:
            forwarding = self._live.begin(services, local)
        else:
            forwarding, left_out = self._live.begin_most(services, local)
            if left_out:
                self._follower.begun_without(left_out)
        port, mode = await open_port(settings, self._live.vips.networks, self._netlink, self._state_dir.path, self._own)
        engine = Engine(
            settings, port.link, forwarding, guesses_checksums=port.guesses_checksums, kept=kept, elders=elders
        )
        self._compiler.follow(engine)  # its flow tables hold the compiler's numbers
        self._opened = MuxPlane(
            port,
            mode,
            engine,
            interface=settings.interface,
            workers=settings.workers,
            tasks=self._tasks,
            lost=self._port_lost,
            narrowed=self._tunnels.narrowed,
        )
        self._keeper = self._keep(port)
        if port.inherited:
            log.info(
                "repaired", reason="an earlier lb-mux did not stop cleanly; its isolation of the VIPs was taken over"
            )
        return self._opened

    async def _find_hops(self, plane: MuxPlane) -> None:
        addresses = plane.engine.forwarding.hop_addresses if plane.port.watches_hops else ()
        await self._watch.start(addresses)
        self._tasks.restarted("next hops", self._watch.run)
        await self._watch.settle(addresses, SETTLE)
        self._hops_changed(self._watch.resolutions)

    def _begin_tasks(self) -> None:
        care = Care(self._plane.engine, self._supervisor, self._summary, self._settings.flows)
        self._tasks.restarted("probes", self._probes.run)
        self._tasks.restarted("care of workers", care.run)
        self._tasks.restarted("reloads", self._reloads)
        self._tasks.restarted("memory of tunnels", self._tunnels.run)
        self._tasks.restarted("kept in the kernel", self._keeper.run)

    def _begin_following(self, follower: Follower, state: NodeState) -> None:
        assert self._handover is not None  # noqa: S101
        alone = WithoutManager(follower, self._live, self._probes, self._plane.engine, self._condition)
        follower.begin_tasks(self._tasks)
        self._tasks.restarted("flow sync", self._handover.run)
        self._tasks.restarted("flow sharing", self._handover.sharing.run)
        self._tasks.retried(ENTERING, partial(self._enter, state))
        self._tasks.restarted("own verdicts", alone.run)

    def _summary(self) -> str:
        """The MUX in one line, for ``systemctl status``."""
        engine = self._plane.engine
        text = f"{self._condition.state}: {_count(len(engine.forwarding.services), 'service')}"
        text += f", generation {engine.generation}"
        if self._announcer is not None:
            peers = self._announcer.peers()
            up = sum(peer["state"] == SessionState.ESTABLISHED.value for peer in peers)
            text += f", {up} of {_count(len(peers), 'BGP session')} established"
        if self._condition.rejected is not None:
            text += "; the last configuration was refused"
        return text

    def _log_ready(self) -> None:
        settings = self._settings
        log.info(
            "ready",
            io=self._plane.mode.io.value,
            mode=self._plane.mode.text,
            reason=self._plane.mode.reason,
            vector=self._plane.engine.vector,
            interface=settings.interface,
            workers=settings.workers,
            services=len(self._live.services),
            generation=self._plane.engine.generation,
        )
        startup.say(Role.MUX, settings.state_dir, interface=settings.interface, mtu=settings.mtu)

    def _drop_privileges(self) -> None:
        keep = [*NEEDED, Capability.SYS_NICE]  # the last, if we have it, so that workers go before other threads
        if int(self._settings.metrics.rpartition(":")[2]) < _PRIVILEGED_PORTS:
            keep.append(Capability.NET_BIND_SERVICE)
        if self._plane.mode.io is IoMode.XDP and maps_need_rights(os.uname().release):
            keep.append(Capability.BPF)
        unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
        if self._plane.mode.io is IoMode.XDP and not unlimited:
            keep.append(Capability.IPC_LOCK)  # or an interface that was made anew could not be opened again
        if self._bgp is not None:
            keep += FOR_BGP
        kept = keep_only(keep)
        log.info("privileges dropped", kept=" ".join(str(capability) for capability in kept), new_privileges="never")

    async def _open_sockets(self) -> None:
        census = FlowCensus(self._plane.engine)
        self._tasks.restarted("census of flows", census.run)
        overload = OverloadWatch(
            lambda: self._plane.engine, self._follower.client.send_event if self._follower is not None else None
        )
        self._tasks.restarted("watch for overload", overload.run)
        status = Status(
            self._settings,
            lambda: self._plane.mode,
            self._plane.engine,
            self._condition,
            self._announcer,
            census=census,
            probed=self._probes.known,
            manager=self._follower.row if self._follower is not None else None,
            handover=lambda: self._handover.words if self._handover is not None else None,
            keeper=self._keeper,
            overload=overload,
            tunnels=self._tunnels,
            copies=self._handover.sharing.copies if self._handover is not None else lambda service, backend: 0,
        )
        if self._follower is not None:
            self._follower.status = status.for_manager
            self._follower.client.answer = partial(answer, self._plane.engine)
        self._metrics = serve(self._settings.metrics, MuxCollector(status.figures), key="mux.metrics")
        self._control = ControlServer(self._state_dir.path / SOCKET, handlers(status, self._plane.engine))
        try:
            await self._control.start()
        except ControlError as error:  # nobody can ask us here, which is no reason to serve nobody
            log.error("no local socket", reason=str(error), then="lb-mux serves all the same")
        _go_first()

    async def stop(self, *, clean: bool) -> None:
        """In the reverse order of the start, whatever part of it had happened. Not ``clean``: something failed."""
        self._supervisor.stopping()
        await self._finish()
        self._tasks.end(ENTERING)
        if self._announcer is not None:  # first: while routers are told, packets are still forwarded
            if clean and self._handover is not None and self._announcer.announces:
                await self._handover.give()
            await self._announcer.stop(planned=clean)
        self._condition.state = "stopping"
        await self._tasks.close()
        await self._probes.close()
        self._tunnels.close()
        if self._control is not None:
            await self._control.close()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        if self._opened is not None:
            self._opened.engine.stop()
            self._opened.port.close_ios()
            # After a failure clients may still be sent here: without the drop this kernel would answer them.
            if clean or not (self._served or self._opened.port.inherited):
                await self._opened.port.remove()
            log.info("stopped", clean=clean)
        if clean or not (self._served or self._marker.found):
            self._marker.end()

    async def _finish(self) -> None:
        """Lets a change of services that is under way come to its end, and none begin after it: what it works with is
        closed next, and a helper thread cannot be stopped."""
        try:
            async with asyncio.timeout(FINISH):
                await self._live.changing.acquire()
        except TimeoutError:
            log.error("change not finished", reason=f"it takes longer than {FINISH:g} s", then="stopped all the same")

    async def failed(self) -> None:
        """Returns never; raises TaskFailedError where a task failed that nothing goes on without."""
        await self._tasks.failed()

    # -- next hops and the interface ----------------------------------------------------------------------------

    def _hops_changed(self, resolutions: Mapping[Address, Resolution]) -> None:
        if self._opened is None:
            return
        unreachable = {str(found.address): found.reason for found in self._watch.unreachable()}
        self._condition.unreachable = unreachable
        before = self._plane.engine.generation
        self._plane.engine.publish_hops(self._plane.hops(self._plane.engine.forwarding.hop_addresses, resolutions))
        if self._plane.engine.generation != before:
            self._tell_announcer()

    def _has_tunnel(self, address: Address, encap: Encap) -> bool:
        return self._plane.engine.forwarding.hops.has(address, encap)

    def _unsound(self) -> str | None:
        """Why no VIP may be announced now, whatever the table says."""
        if self._condition.state == "degraded":
            return f"the interface {self._settings.interface} is down or gone"
        return None

    def _links_changed(self, links: Mapping[int, Link]) -> None:
        name = self._settings.interface
        now = next((link for link in links.values() if link.name == name), None)
        was_there = self._condition.state != "degraded"
        if now is None or not now.up:
            if was_there:
                what = "is down" if now else "is gone"
                log.error("interface lost", interface=name, reason=f"{what}; waiting for it to return")
                self._condition.state = "degraded"
                self._tell_announcer()
            return
        if not was_there and self._plane.port.lost() is None:
            log.info("interface back", interface=name)
            self._condition.state = "ready"
            self._tell_announcer()
            if self._announcer is not None:
                self._announcer.link_up()

    def _tell_announcer(self) -> None:
        if self._announcer is not None:
            self._announcer.published()

    # -- kept in the kernel -------------------------------------------------------------------------------------

    def _keep(self, port: Port) -> Keeper:
        self._own.ports.add(self._netlink.port)
        watch = KernelWatch(EVERYTHING, own=self._own, tables=port.tables, protocols=[ROUTE_PROTOCOL])
        return Keeper([MainRule(), *port.parts(self._reopen), *self._probes.parts()], watch)

    async def _reopen(self) -> None:
        await self._plane.reopen()
        self._links_changed(self._watch.links)

    def _port_lost(self) -> None:
        self._condition.state = "degraded"
        self._tell_announcer()

    # -- reload -------------------------------------------------------------------------------------------------

    async def _reloads(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._supervisor.reloading()
            try:
                await self._reload()
            except Exception as error:
                self._reject(error)
                log.warning("serving on with the previous configuration", generation=self._plane.engine.generation)
            self._supervisor.ready(self._summary())

    def _reject(self, error: Exception) -> None:
        """What nobody meant has its traceback in the log; it is no reason to leave whoever sent the signal waiting."""
        meant = isinstance(error, VipmuxError | OSError)
        self._condition.rejected = describe(error)
        lines = error.lines if isinstance(error, ConfigError) else [describe(error)]
        for line in lines:
            more = {} if meant else {"exc_info": error}
            log.error("configuration rejected", file=str(self._path), mistake=line, **more)

    async def _reload(self) -> None:
        config = await asyncio.to_thread(load_mux, self._path, manager=self._manager)
        check_settings(self._settings, config.mux)
        check_bgp(self._bgp, config.bgp)
        self._check_workers(config.mux.workers)
        async with self._live.changing:
            if self._follower is None:
                await self._live.take(config.services)
                self._condition.rejected = None
            await self._change_workers(config.mux.workers)
            self._change_passwords(config.bgp)
        del config
        give_back()
        if self._follower is not None:
            log.info("configuration read", reason="services come from the manager")
            self._follower.client.retry()

    def _change_passwords(self, bgp: BgpSettings | None) -> None:
        """All sessions are opened anew, if a password is another one."""
        peers = changed_passwords(self._bgp, bgp)
        self._bgp = bgp
        if peers and bgp is not None and self._announcer is not None:
            log.warning(
                "BGP passwords changed",
                peers=" ".join(peers),
                then="all sessions are opened anew; until they are up, routers send this MUX nothing",
            )
            self._announcer.change_passwords(bgp)

    def _check_workers(self, workers: int) -> None:
        """Raises ConfigError where their number cannot change now."""
        why_not = None if workers == self._plane.workers else self._plane.port.keeps_workers(workers)
        if why_not is not None:
            raise ConfigError([("mux.workers", why_not)])

    async def _change_workers(self, workers: int) -> None:
        await self._plane.resize(workers)
        self._settings = replace(self._settings, workers=workers)

    # -- with a manager -----------------------------------------------------------------------------------------

    def _follow(self, config: MuxConfig, token: str | None) -> Follower | None:
        if config.manager is None:
            return None
        from lb.node.follower import Follower  # noqa: PLC0415  a MUX without a manager starts faster

        return Follower(config.manager, token, "mux", config.mux, self._follow_state, config=self._path)

    async def _follow_state(self, state: NodeState, change: ServiceDiff) -> Mapping[str, str]:
        """A state of the manager: services first, then what is announced of them. Returns what is left out."""
        async with self._live.changing:
            left_out: dict[str, str] = {}
            state = self._readable(state, left_out)
            try:
                if change:
                    left_out |= await self._live.take_most(change)
                    self._tidy_after(change)
            except VipmuxError as error:
                self._condition.rejected = str(error)
                raise
            self._condition.rejected = None
            await self._exchange_flows(state)
            self._announce(state)
            self._tasks.end(ENTERING)  # what it would announce is no news any more
            return left_out

    def _readable(self, state: NodeState, left_out: dict[str, str]) -> NodeState:
        """The state without announcements that this MUX cannot make."""
        wanted = state.get("announcements", {})
        if self._announcer is None or _same(wanted, self._announced):
            return state
        found, wrong = readable(wanted, self._announcer.check)
        left_out |= {f"announcements/{vip}": reason for vip, reason in wrong.items()}
        return state if found is wanted else {**state, "announcements": found}

    def _tidy_after(self, change: ServiceDiff) -> None:
        """Once the state is on the disk and acknowledged, and nobody waits. Thousands may come piece by piece."""
        grown = len(change.services) != len(change.before) and abs(len(change.services) - self._tidied) > MANY
        if not grown and len(change.gone) + len(change.come) <= MANY:
            return
        if self._tidying is not None:
            self._tidying.cancel()
        self._tidying = asyncio.get_running_loop().call_later(TIDY, self._tidy)

    def _tidy(self) -> None:
        self._tidied = len(self._live.services)
        give_back()

    def _hand_over(self) -> FlowSync | None:
        if self._follower is None:
            return None
        from lb.mux.workers.flow_sync import FlowSync  # noqa: PLC0415

        return FlowSync(self._settings, lambda: self._plane.engine, self._follower.client)

    async def _exchange_flows(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Before routers send packets here that went elsewhere, and before they send them elsewhere."""
        if self._handover is None or self._announcer is None:
            return
        serves = bool(self._announced) and not self._drained
        shall = bool(state.get("announcements", {})) and not _drains(state)
        try:
            if shall and not serves:
                since = self._announcer.away_since
                await self._handover.fetch(None if since is None else asyncio.get_running_loop().time() - since)
            elif serves and not shall and self._announcer.announces:
                await self._handover.give()
        except VipmuxError as error:  # a worker that stands still, or is being replaced
            log.warning("no flow sync", reason=str(error), consequence="flows that one MUX alone knows may break")

    async def _enter(self, state: NodeState) -> None:
        """After a start: announces as in the last good state, once the others' flows are here, or cannot be had."""
        assert self._handover is not None  # noqa: S101
        if not state.get("announcements"):
            return
        await self._handover.connected(ENTER_WAIT)
        async with self._live.changing:  # a newer state of the manager ends this while it waits here
            await self._exchange_flows(state)
            self._announce(state)

    def _announce(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        if self._announcer is None:
            return
        wanted = state.get("announcements", {})
        if not wanted or not _same(wanted, self._announced):
            self._announcer.want(wanted)
        self._announced = wanted
        self._drained = _drains(state)
        self._announcer.drain(self._drained)


def _go_first() -> None:
    """After what may wait (metrics), before what may not (the heart, ExaBGP): they begin with what we have."""
    refused = control_first()
    if refused is not None:
        log.warning("no priority", reason=refused, consequence="a MUX that is saturated may lose BGP and manager")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _drains(state: Mapping[str, Mapping[str, Any]]) -> bool:
    return state.get("options", {}).get("drain") is True


def _same(one: object, other: object) -> bool:
    """At a glance where it is the same object: mappings of ten thousand entries compare one by one otherwise."""
    return one is other or one == other


async def serve_until_told(path: Path, manager: str | None = None, token: str | None = None) -> None:
    """The daemon's whole life; returns after a clean stop."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(helpers())
    end = asyncio.Event()
    hangup = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    supervisor = Supervisor.from_environment()
    config = load_mux(path, manager=parse_manager_url(manager) if manager is not None else None)
    if token is not None and config.manager is None:
        raise RequestError("--token is for joining a manager: give --manager URL as well, or [manager] url in the file")
    require(PROGRAM, NEEDED)
    with contextlib.closing(StateDir(config.mux.state_dir)) as state_dir:
        async with Netlink() as netlink:
            daemon = RunningMux(path, config, netlink, state_dir, hangup, supervisor=supervisor, token=token)
            clean = False
            try:
                if await until(end, daemon.start(config.services)):
                    await until(end, daemon.failed())
                clean = True
            finally:
                await daemon.stop(clean=clean)


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The MUX's TOML file.")
@click.option("--manager", metavar="URL", help="The manager that services come from; goes before the file's.")
@token_options
@click.version_option(package_name="vipmux", prog_name=PROGRAM)
def main(path: Path, manager: str | None, token: str | None, token_file: Path | None) -> None:
    """Forward packets for VIPs to backends until SIGTERM, as a file or a manager says; SIGHUP reads the file again."""
    log_setup.configure(PROGRAM)
    tame_allocator()
    try:
        asyncio.run(serve_until_told(path, manager, given_token(token, token_file)))
    except ConfigError as error:
        for line in error.lines:
            click.echo(line, err=True)
        sys.exit(error.exit_code)
    except VipmuxError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
